package sigv4

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// The AWS signing test suite. It tests signers; each case has a decision here on what the verifier does with the signed request.
const suiteCases = 38

type decision int

const (
	accepted decision = iota

	// The path is not cleaned. Clients of KMS send "/"; the suite signs the cleaned path and sends the other. With the cleaned path the
	// same signature is accepted.
	refusedPath

	// KMS requests have no query string.
	refusedQuery

	// A signed header occurs once.
	refusedDuplicate

	// Folded header lines are obsolete (RFC 9112 §5.2) and refused.
	refusedFolded

	// Session tokens are not issued: a token that is signed is invalid.
	refusedToken

	// The same, but the token was added after signing: every x-amz-* header must be signed.
	refusedUnsignedToken
)

var decisions = map[string]decision{
	"get-header-key-duplicate":              refusedDuplicate,
	"get-header-value-multiline":            refusedFolded,
	"get-header-value-order":                refusedDuplicate,
	"get-header-value-trim":                 accepted,
	"get-relative-normalized":               refusedPath,
	"get-relative-relative-normalized":      refusedPath,
	"get-relative-relative-unnormalized":    accepted,
	"get-relative-unnormalized":             accepted,
	"get-slash-dot-slash-normalized":        refusedPath,
	"get-slash-dot-slash-unnormalized":      accepted,
	"get-slash-normalized":                  refusedPath,
	"get-slash-pointless-dot-normalized":    refusedPath,
	"get-slash-pointless-dot-unnormalized":  accepted,
	"get-slash-unnormalized":                accepted,
	"get-slashes-normalized":                refusedPath,
	"get-slashes-unnormalized":              accepted,
	"get-space-normalized":                  accepted,
	"get-space-unnormalized":                accepted,
	"get-unreserved":                        accepted,
	"get-utf8":                              accepted,
	"get-vanilla":                           accepted,
	"get-vanilla-empty-query-key":           refusedQuery,
	"get-vanilla-query":                     accepted, // its query string is empty
	"get-vanilla-query-order-encoded":       refusedQuery,
	"get-vanilla-query-order-key-case":      refusedQuery,
	"get-vanilla-query-unreserved":          refusedQuery,
	"get-vanilla-utf8-query":                refusedQuery,
	"get-vanilla-with-session-token":        refusedToken,
	"post-header-key-case":                  accepted,
	"post-header-key-sort":                  accepted,
	"post-header-value-case":                accepted,
	"post-sts-header-after":                 refusedUnsignedToken,
	"post-sts-header-before":                refusedToken,
	"post-vanilla":                          accepted,
	"post-vanilla-empty-query-value":        refusedQuery,
	"post-vanilla-query":                    refusedQuery,
	"post-x-www-form-urlencoded":            accepted,
	"post-x-www-form-urlencoded-parameters": accepted,
}

// refusals is what the verifier answers; the empty message stands for the default text of the code.
var refusals = map[decision]struct {
	code    kmsapi.Code
	message string
}{
	refusedPath:          {kmsapi.InvalidSignature, ""},
	refusedQuery:         {kmsapi.IncompleteSignature, textQuery},
	refusedDuplicate:     {kmsapi.InvalidSignature, "The request has more than one 'my-header1' header."},
	refusedFolded:        {kmsapi.BadRequest, ""},
	refusedToken:         {kmsapi.UnrecognizedClient, ""},
	refusedUnsignedToken: {kmsapi.InvalidSignature, "'x-amz-security-token' must be a 'SignedHeader' in the AWS Authorization."},
}

type suiteCase struct {
	name  string
	files map[string]string

	id, secret, region, service string
	now                         time.Time
}

func readSuite(t *testing.T) []suiteCase {
	t.Helper()
	f, err := os.Open("testdata/aws-signing-test-suite-v4.tar.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]map[string]string{}
	for archive := tar.NewReader(z); ; {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		b, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		name := path.Base(path.Dir(h.Name))
		if files[name] == nil {
			files[name] = map[string]string{}
		}
		files[name][path.Base(h.Name)] = string(b)
	}
	var cases []suiteCase
	for name, f := range files {
		c := suiteCase{name: name, files: f}
		var context struct {
			Credentials struct {
				ID     string `json:"access_key_id"`
				Secret string `json:"secret_access_key"`
			}
			Region, Service string
			Timestamp       time.Time
		}
		if err := json.Unmarshal([]byte(f["context.json"]), &context); err != nil {
			t.Fatal(name, err)
		}
		c.id, c.secret = context.Credentials.ID, context.Credentials.Secret
		c.region, c.service, c.now = context.Region, context.Service, context.Timestamp
		cases = append(cases, c)
	}
	return cases
}

// parseRequest reads a request of the suite: lines end in LF, a target may hold spaces, a folded line stays part of its header's value.
func parseRequest(t *testing.T, text string) *Request {
	t.Helper()
	head, body, _ := strings.Cut(text, "\n\n")
	lines := strings.Split(head, "\n")
	first, last := strings.Index(lines[0], " "), strings.LastIndex(lines[0], " ")
	if first < 0 || first == last {
		t.Fatalf("request line %q", lines[0])
	}
	r := &Request{Method: []byte(lines[0][:first]), Body: []byte(body)}
	target, query, _ := strings.Cut(lines[0][first+1:last], "?")
	r.Path, r.Query = []byte(target), []byte(query)
	for _, line := range lines[1:] {
		if line == "" {
			continue
		}
		if line[0] == ' ' {
			h := &r.Headers[len(r.Headers)-1]
			h.Value = append(append(h.Value, '\n'), line...)
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			t.Fatalf("header line %q", line)
		}
		add(r, strings.ToLower(name), value)
	}
	return r
}

func (c *suiteCase) canonicalPath() []byte {
	return []byte(strings.Split(c.files["header-canonical-request.txt"], "\n")[1])
}

func TestSuiteVerifier(t *testing.T) {
	ran := 0
	for _, c := range readSuite(t) {
		want, decided := decisions[c.name]
		if !decided {
			t.Errorf("%s: no decision", c.name)
			continue
		}
		ran++
		t.Run(c.name, func(t *testing.T) {
			v := mustVerifier(t, Config{Regions: []string{c.region}, Service: c.service, Keys: keyTable{c.id: mustKey(t, c.id, c.secret)}})
			r := parseRequest(t, c.files["header-signed-request.txt"])
			id, code, message := verify(t, v, r, c.now)
			if want == accepted {
				c.checkAccepted(t, v, r, id, code, message)
				return
			}
			refusal := refusals[want]
			if refusal.message == "" {
				refusal.message = refusal.code.Text()
			}
			if code != refusal.code || message != refusal.message {
				t.Fatalf("%v %q, want %v %q", code, message, refusal.code, refusal.message)
			}
			if want == refusedPath {
				r.Path = c.canonicalPath()
				id, code, message := verify(t, v, r, c.now)
				c.checkAccepted(t, v, r, id, code, message)
			}
		})
	}
	if ran != suiteCases || len(decisions) != suiteCases {
		t.Fatalf("ran %d cases, have %d decisions, want %d of both", ran, len(decisions), suiteCases)
	}
}

// checkAccepted also compares the canonical request with the suite's.
func (c *suiteCase) checkAccepted(t *testing.T, v *Verifier, r *Request, id Identity, code kmsapi.Code, message string) {
	t.Helper()
	if code != kmsapi.OK || id.AccessKeyID() != c.id || id.Region() != c.region {
		t.Fatalf("%v %q, identity %v", code, message, id)
	}
	var s Scratch
	if _, code := v.Verify(r, &s, c.now); code != kmsapi.OK {
		t.Fatal(code)
	}
	if want := c.files["header-canonical-request.txt"]; string(s.canon) != want {
		t.Fatalf("canonical request\n%s\nwant\n%s", s.canon, want)
	}
}

func TestSuiteSigner(t *testing.T) {
	ran := 0
	for _, c := range readSuite(t) {
		want, decided := decisions[c.name]
		if !decided {
			t.Errorf("%s: no decision", c.name)
			continue
		}
		ran++
		t.Run(c.name, func(t *testing.T) {
			r := parseRequest(t, c.files["header-signed-request.txt"])
			authorization := get(r, "authorization")
			del(r, "authorization")
			switch want {
			case refusedPath:
				r.Path = c.canonicalPath() // the caller cleans
			case refusedUnsignedToken:
				del(r, "x-amz-security-token") // added after signing
			}
			var s Scratch
			got, err := AppendAuthorization([]byte("kept "), mustKey(t, c.id, c.secret), c.region, c.service, r, &s)
			if want == refusedQuery || want == refusedDuplicate || want == refusedFolded {
				if err == nil || string(got) != "kept " {
					t.Fatalf("signed %q, %v", got, err)
				}
				return
			}
			if err != nil || string(got) != "kept "+authorization {
				t.Fatalf("%q, %v\nwant %q", got, err, authorization)
			}
			if !bytes.HasSuffix(got, []byte(c.files["header-signature.txt"])) {
				t.Fatalf("%q does not end in the signature", got)
			}
			var canonical [32]byte
			if !parseHex(&canonical, []byte(c.files["header-string-to-sign.txt"][len(c.files["header-string-to-sign.txt"])-64:])) {
				t.Fatal("no hash at the end of the string to sign")
			}
			if text := appendStringToSign(nil, []byte(get(r, "x-amz-date")), c.region, c.service, &canonical); string(text) != c.files["header-string-to-sign.txt"] {
				t.Fatalf("string to sign %q", text)
			}
		})
	}
	if ran != suiteCases {
		t.Fatalf("ran %d cases, want %d", ran, suiteCases)
	}
}
