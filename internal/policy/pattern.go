package policy

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// Symbols of a pattern besides bytes. A byte is never taken for one, whatever a request sends.
const (
	anyRun uint16 = 0x100 + iota // *
	anyOne                       // ?
)

// glob is a pattern without variables: * is any run of characters, ? is one.
type glob struct {
	kind    globKind
	text    string   // exact: all of it; prefix: what comes before the only *, at its end
	pattern []uint16 // general
}

type globKind uint8

const (
	general globKind = iota
	exact
	prefix
)

func newGlob(s string) glob {
	i := strings.IndexAny(s, "*?")
	switch {
	case i < 0:
		return glob{kind: exact, text: s}
	case i == len(s)-1 && s[i] == '*':
		return glob{kind: prefix, text: s[:i]}
	}
	return glob{pattern: appendPattern(nil, s)}
}

// globOf is the glob of a pattern that may have bytes * and ? that stand for themselves.
func globOf(pattern []uint16) glob {
	var b []byte
	for i, s := range pattern {
		if s >= anyRun {
			if s == anyRun && i == len(pattern)-1 {
				return glob{kind: prefix, text: string(b)}
			}
			return glob{pattern: pattern}
		}
		b = append(b, byte(s))
	}
	return glob{kind: exact, text: string(b)}
}

// symbols is the glob as a pattern.
func (g *glob) symbols() []uint16 {
	switch g.kind {
	case exact:
		return appendLiteral(nil, g.text)
	case prefix:
		return append(appendLiteral(nil, g.text), anyRun)
	}
	return g.pattern
}

func (g *glob) match(v []byte) bool {
	switch g.kind {
	case exact:
		return string(v) == g.text
	case prefix:
		return len(v) >= len(g.text) && string(v[:len(g.text)]) == g.text
	}
	return match(g.pattern, v)
}

// appendPattern appends s with its wildcards. Several * in a row are one.
func appendPattern(dst []uint16, s string) []uint16 {
	for i := range len(s) {
		switch s[i] {
		case '*':
			if len(dst) == 0 || dst[len(dst)-1] != anyRun {
				dst = append(dst, anyRun)
			}
		case '?':
			dst = append(dst, anyOne)
		default:
			dst = append(dst, uint16(s[i]))
		}
	}
	return dst
}

// appendLiteral appends s, whose * and ? stand for themselves.
func appendLiteral[T string | []byte](dst []uint16, s T) []uint16 {
	for i := range len(s) {
		dst = append(dst, uint16(s[i]))
	}
	return dst
}

// match reports whether all of v matches p. It goes back to the last * only, which suffices, because an earlier one that took more would find
// nothing that the last could not: at most len(p)·len(v) steps. Steps are whole characters; bytes that are not UTF-8 are one each.
func match(p []uint16, v []byte) bool {
	steps := math.MaxInt
	return matchWithin(p, v, &steps)
}

// matchWithin is match that takes its steps from a number of them, and gives up when there are none left.
func matchWithin(p []uint16, v []byte, steps *int) bool {
	i, j := 0, 0
	star, from := -1, 0
	for j < len(v) {
		if *steps--; *steps < 0 {
			return false
		}
		if i < len(p) {
			switch c := p[i]; {
			case c == anyRun:
				i++
				star, from = i, j
				if i == len(p) {
					return true
				}
				continue
			case c == anyOne:
				i++
				j += width(v[j:])
				continue
			case c == uint16(v[j]):
				i++
				j++
				continue
			}
		}
		if star < 0 {
			return false
		}
		from += width(v[from:])
		i, j = star, from
	}
	for i < len(p) && p[i] == anyRun {
		i++
	}
	return i == len(p)
}

// width is the number of bytes of the first character of v.
func width(v []byte) int {
	if v[0] < utf8.RuneSelf {
		return 1
	}
	_, n := utf8.DecodeRune(v)
	return n
}

// matchARN compares the six parts of an ARN, each on its own: * and ? do not reach over a colon of the first five. v is an ARN.
func matchARN(p []uint16, v []byte) bool {
	if len(p) == 1 && p[0] == anyRun {
		return true
	}
	for range 5 {
		i, j := slices.Index(p, ':'), bytes.IndexByte(v, ':')
		if i < 0 || !match(p[:i], v[:j]) {
			return false
		}
		p, v = p[i+1:], v[j+1:]
	}
	return match(p, v)
}

// isARN reports whether v has the six parts of an ARN.
func isARN(v []byte) bool {
	for range 5 {
		i := bytes.IndexByte(v, ':')
		if i < 0 {
			return false
		}
		v = v[i+1:]
	}
	return true
}

// lower is s with A–Z in lower case; all else, letters outside ASCII too, stays.
func lower(s string) string { return string(appendLower(nil, s)) }

func appendLower(dst []byte, s string) []byte {
	for i := range len(s) {
		dst = append(dst, lowerByte(s[i]))
	}
	return dst
}

// sameFold reports whether a, in any case, is low, which is in lower case.
func sameFold[T string | []byte](a T, low string) bool {
	if len(a) != len(low) {
		return false
	}
	for i := range len(a) {
		if lowerByte(a[i]) != low[i] {
			return false
		}
	}
	return true
}

func lowerByte(c byte) byte {
	if c-'A' < 26 {
		c += 'a' - 'A'
	}
	return c
}
