package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/textproto"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// A second implementation in the plainest Go, to compare with. It shares no code with the package.

var spaces = regexp.MustCompile(` +`)

// plainCanonical makes the canonical request of a request without a query string, with all headers signed.
func plainCanonical(method, path string, header http.Header, body []byte) string {
	segments := strings.Split(path, "/")
	for i := range segments {
		segments[i] = strings.ReplaceAll(url.QueryEscape(segments[i]), "+", "%20")
	}
	var names, lines []string
	for name := range header {
		names = append(names, strings.ToLower(name))
	}
	slices.Sort(names)
	for _, name := range names {
		value := strings.Trim(header.Get(name), " \t")
		lines = append(lines, name+":"+spaces.ReplaceAllString(value, " "))
	}
	hash := sha256.Sum256(body)
	return strings.Join([]string{method, strings.Join(segments, "/"), "", strings.Join(lines, "\n"), "", strings.Join(names, ";"), hex.EncodeToString(hash[:])}, "\n")
}

func plainSignature(secretKey, date, region, service, canonical string) string {
	sum := func(key []byte, text string) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(text))
		return m.Sum(nil)
	}
	hash := sha256.Sum256([]byte(canonical))
	scope := strings.Join([]string{date[:8], region, service, "aws4_request"}, "/")
	text := strings.Join([]string{"AWS4-HMAC-SHA256", date, scope, hex.EncodeToString(hash[:])}, "\n")
	key := sum(sum(sum(sum([]byte("AWS4"+secretKey), date[:8]), region), service), "aws4_request")
	return hex.EncodeToString(sum(key, text))
}

// plainHeader is r's headers as net/http holds them, false where it would not have them: a name it cannot write, a name twice.
func plainHeader(r *Request) (http.Header, bool) {
	h := http.Header{}
	for _, x := range r.Headers {
		name := string(x.Name)
		if !regexp.MustCompile("^[!#$%&'*+.^_`|~0-9a-z-]{1,64}$").MatchString(name) || h.Get(name) != "" || len(h.Values(name)) > 0 {
			return nil, false
		}
		if strings.ContainsFunc(string(x.Value), func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) {
			return nil, false
		}
		h[textproto.CanonicalMIMEHeaderKey(name)] = []string{string(x.Value)}
	}
	return h, true
}

// plainAuthorization splits an Authorization header, false where it is not exactly three parameters with values.
func plainAuthorization(value string) (algorithm string, parameters map[string]string, ok bool) {
	value = strings.Trim(value, " \t")
	algorithm, list, ok := strings.Cut(value, " ")
	if !ok {
		return algorithm, nil, false
	}
	parameters = map[string]string{}
	for _, part := range strings.Split(strings.Trim(list, " \t"), ",") {
		name, value, ok := strings.Cut(strings.Trim(part, " \t"), "=")
		if _, twice := parameters[name]; !ok || twice || value == "" {
			return algorithm, nil, false
		}
		parameters[name] = value
	}
	for _, name := range []string{"Credential", "SignedHeaders", "Signature"} {
		if _, ok := parameters[name]; !ok {
			return algorithm, nil, false
		}
	}
	return algorithm, parameters, len(parameters) == 3
}
