package awsquery

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// ParametersMax bounds the parameters of one request, NameMax the bytes of a parameter's name.
	ParametersMax = 512
	NameMax       = 256
)

// ErrMalformed says that a body is no form, or that a parameter occurs twice.
var ErrMalformed = errors.New("awsquery: the body is not a form with each parameter once")

// Query is the parameters of one request. It remembers which of them were read.
type Query struct {
	values map[string]string
	read   map[string]bool
}

// Parse reads a form. An empty body is a form without parameters.
func Parse(body []byte) (*Query, error) {
	q := &Query{values: map[string]string{}, read: map[string]bool{}}
	if len(body) == 0 {
		return q, nil
	}
	for pair := range strings.SplitSeq(string(body), "&") {
		rawName, rawValue, found := strings.Cut(pair, "=")
		name, ok := unescape(rawName)
		value, okValue := unescape(rawValue)
		if !found || !ok || !okValue || name == "" || len(name) > NameMax || len(q.values) == ParametersMax {
			return nil, ErrMalformed
		}
		if _, twice := q.values[name]; twice {
			return nil, ErrMalformed
		}
		q.values[name] = value
	}
	return q, nil
}

// unescape undoes %XX and +, false for an escape that is none and for what is not UTF-8.
func unescape(s string) (string, bool) {
	if !strings.ContainsAny(s, "%+") {
		return s, utf8.ValidString(s)
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '+':
			b = append(b, ' ')
		case '%':
			if i+2 >= len(s) {
				return "", false
			}
			high, low := hex(s[i+1]), hex(s[i+2])
			if high < 0 || low < 0 {
				return "", false
			}
			b, i = append(b, byte(high<<4|low)), i+2
		default:
			b = append(b, s[i])
		}
	}
	return string(b), utf8.Valid(b)
}

func hex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// Get is the value of a parameter, false if there is none.
func (q *Query) Get(name string) (string, bool) {
	v, ok := q.values[name]
	if ok {
		q.read[name] = true
	}
	return v, ok
}

// List is the values of <name>.member.1, .2 …, nil if there are none. An empty list may be written as <name>= .
func (q *Query) List(name string) []string {
	var list []string
	for {
		v, ok := q.Get(name + ".member." + strconv.Itoa(len(list)+1))
		if !ok {
			break
		}
		list = append(list, v)
	}
	q.empty(name)
	return list
}

// Structs is the values of <name>.member.1.<field>, .2 …, one element for each number, its values in the order of the fields. A structure
// ends the list if it has none of the fields; a field that is not there is "".
func (q *Query) Structs(name string, fields ...string) [][]string {
	var list [][]string
	for {
		values, some := make([]string, len(fields)), false
		for i, f := range fields {
			v, ok := q.Get(name + ".member." + strconv.Itoa(len(list)+1) + "." + f)
			values[i], some = v, some || ok
		}
		if !some {
			break
		}
		list = append(list, values)
	}
	q.empty(name)
	return list
}

// empty counts the form of an empty list as read.
func (q *Query) empty(name string) {
	if v, ok := q.values[name]; ok && v == "" {
		q.read[name] = true
	}
}

// Unread is the first parameter, in ascending order of names, that nobody asked for; "" if there is none.
func (q *Query) Unread() string {
	var names []string
	for name := range q.values {
		if !q.read[name] {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return slices.Min(names)
}
