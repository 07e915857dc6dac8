package pkcs11uri

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Limits on what Parse accepts.
const (
	LenMax  = 4096 // bytes of the whole URI
	AttrMax = 32   // attributes
)

// Attr is one attribute, its value percent-decoded.
type Attr struct{ Name, Value string }

// URI is a parsed PKCS #11 URI. The attributes keep their order; no name occurs twice in a component.
type URI struct {
	Path  []Attr // before the question mark: which token or object
	Query []Attr // after it: how to get there
}

// The attributes of RFC 7512 §2.3. Any other name is a vendor's and must begin with "x-", so that a misspelt one is noticed.
var (
	pathNames = []string{"id", "library-description", "library-manufacturer", "library-version", "manufacturer", "model", "object",
		"serial", "slot-description", "slot-id", "slot-manufacturer", "token", "type"}
	queryNames = []string{"module-name", "module-path", "pin-source", "pin-value"}
)

// Parse reads a URI. Messages of its errors name attributes and never repeat values, one of which may be a PIN.
func Parse(s string) (*URI, error) {
	if len(s) > LenMax {
		return nil, fmt.Errorf("pkcs11 URI: longer than %d bytes", LenMax)
	}
	const scheme = "pkcs11:"
	if len(s) < len(scheme) || !strings.EqualFold(s[:len(scheme)], scheme) {
		return nil, errors.New("pkcs11 URI: the scheme is not pkcs11")
	}
	path, query, hasQuery := strings.Cut(s[len(scheme):], "?")
	u := new(URI)
	var err error
	if u.Path, err = parseAttrs(path, ";", pathNames, pathChars); err != nil {
		return nil, err
	}
	if hasQuery {
		if u.Query, err = parseAttrs(query, "&", queryNames, queryChars); err != nil {
			return nil, err
		}
	}
	if len(u.Path)+len(u.Query) > AttrMax {
		return nil, fmt.Errorf("pkcs11 URI: more than %d attributes", AttrMax)
	}
	return u, nil
}

// Characters that may stand unescaped in a value beside letters and digits: RFC 7512 §2.3, pk11-pchar and pk11-qchar.
const (
	unreserved = "-._~"
	pathChars  = unreserved + ":[]@!$'()*+,=&"
	queryChars = unreserved + ":[]@!$'()*+,=/?|"
)

func parseAttrs(s, sep string, names []string, allowed string) ([]Attr, error) {
	if s == "" {
		return nil, nil
	}
	var attrs []Attr
	for part := range strings.SplitSeq(s, sep) {
		name, raw, ok := strings.Cut(part, "=")
		if !ok || !isName(name) {
			return nil, errors.New("pkcs11 URI: an attribute is not of the form name=value")
		}
		if !slices.Contains(names, name) && !strings.HasPrefix(name, "x-") {
			return nil, fmt.Errorf("pkcs11 URI: unknown attribute %s", name)
		}
		if slices.ContainsFunc(attrs, func(a Attr) bool { return a.Name == name }) {
			return nil, fmt.Errorf("pkcs11 URI: attribute %s occurs twice", name)
		}
		value, err := decode(raw, allowed)
		if err != nil {
			return nil, fmt.Errorf("pkcs11 URI: attribute %s: %w", name, err)
		}
		attrs = append(attrs, Attr{name, value})
	}
	return attrs, nil
}

// isName holds names to letters, digits, hyphen and underscore (RFC 7512 §2.3, pk11-v-attr-nm-char), at most 64 of them.
func isName(s string) bool {
	for i := range len(s) {
		if !isAlphanumeric(s[i]) && s[i] != '-' && s[i] != '_' {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

func isAlphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

func decode(s, allowed string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '%':
			if i+2 >= len(s) {
				return "", errors.New("percent sign without two hexadecimal digits")
			}
			hi, lo := unhex(s[i+1]), unhex(s[i+2])
			if hi < 0 || lo < 0 {
				return "", errors.New("percent sign without two hexadecimal digits")
			}
			b.WriteByte(byte(hi<<4 | lo))
			i += 2
		case isAlphanumeric(c) || strings.IndexByte(allowed, c) >= 0:
			b.WriteByte(c)
		default:
			return "", errors.New("a character that must be percent-encoded")
		}
	}
	return b.String(), nil
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// Get returns the value of the attribute in a component, "" if it is absent.
func Get(attrs []Attr, name string) string {
	for _, a := range attrs {
		if a.Name == name {
			return a.Value
		}
	}
	return ""
}

// Has reports whether the attribute is in a component.
func Has(attrs []Attr, name string) bool {
	return slices.ContainsFunc(attrs, func(a Attr) bool { return a.Name == name })
}

// String writes the URI with everything escaped that has to be. A pin-value comes out as it went in: print Redacted instead.
func (u *URI) String() string {
	var b strings.Builder
	b.WriteString("pkcs11:")
	writeAttrs(&b, u.Path, ';', pathChars)
	if len(u.Query) > 0 {
		b.WriteByte('?')
		writeAttrs(&b, u.Query, '&', queryChars)
	}
	return b.String()
}

// Redacted is String without the value of pin-value, for logs.
func (u *URI) Redacted() string {
	r := URI{Path: u.Path, Query: slices.Clone(u.Query)}
	for i := range r.Query {
		if r.Query[i].Name == "pin-value" {
			r.Query[i].Value = "REDACTED"
		}
	}
	return r.String()
}

func writeAttrs(b *strings.Builder, attrs []Attr, sep byte, allowed string) {
	const hex = "0123456789ABCDEF"
	for i, a := range attrs {
		if i > 0 {
			b.WriteByte(sep)
		}
		b.WriteString(a.Name)
		b.WriteByte('=')
		for k := range len(a.Value) {
			if c := a.Value[k]; isAlphanumeric(c) || strings.IndexByte(allowed, c) >= 0 {
				b.WriteByte(c)
			} else {
				b.Write([]byte{'%', hex[c>>4], hex[c&15]})
			}
		}
	}
}
