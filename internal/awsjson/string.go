package awsjson

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf16"
	"unicode/utf8"
)

// string reads the string whose opening quote is at pos, unescapes it in place and returns its bytes. What is unescaped is never longer
// than its escape, so the write position never passes the read position.
func (s *Scanner) string() ([]byte, bool) {
	start := s.pos + 1
	end := start + plain(s.body[start:])
	if end < len(s.body) && s.body[end] == '"' {
		s.pos = end + 1
		return s.body[start:end:end], true
	}
	return s.unescape(start, end)
}

// unescape goes on with a string from r, the first byte that needs a closer look.
func (s *Scanner) unescape(start, r int) ([]byte, bool) {
	b := s.body
	for w := r; r < len(b); {
		c, n := b[r], 0
		switch {
		case c == '"':
			s.pos = r + 1
			return b[start:w:w], true
		case c == '\\':
			char, n := escape(b[r:])
			if n <= 0 {
				s.pos = r
				if n < 0 {
					s.fail(UTF8)
				} else {
					s.fail(Syntax)
				}
				return nil, false
			}
			r += n
			w += utf8.EncodeRune(b[w:], char)
			continue
		case c < ' ':
			s.pos = r
			s.fail(Syntax)
			return nil, false
		case c < utf8.RuneSelf:
			n = plain(b[r:])
		default:
			var char rune
			if char, n = utf8.DecodeRune(b[r:]); char == utf8.RuneError && n == 1 {
				s.pos = r
				s.fail(UTF8)
				return nil, false
			}
		}
		if w != r { // a string without escapes is not written to
			copy(b[w:], b[r:r+n])
		}
		r += n
		w += n
	}
	s.pos = len(b)
	s.fail(Syntax)
	return nil, false
}

// escape reads the escape sequence at the start of b and returns its length: 0 if it is not one, negative for a lone surrogate.
func escape(b []byte) (char rune, n int) {
	if len(b) < 2 {
		return 0, 0
	}
	switch b[1] {
	case '"', '\\', '/':
		return rune(b[1]), 2
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'u':
	default:
		return 0, 0
	}
	char, ok := hex4(b)
	if !ok {
		return 0, 0
	}
	if !utf16.IsSurrogate(char) {
		return char, 6
	}
	low, ok := hex4(b[6:])
	if !ok {
		return 0, -1
	}
	if char = utf16.DecodeRune(char, low); char == utf8.RuneError {
		return 0, -1
	}
	return char, 12
}

// hex4 reads \uXXXX at the start of b.
func hex4(b []byte) (rune, bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	var v rune
	for _, c := range b[2:6] {
		switch {
		case c >= '0' && c <= '9':
			v = v<<4 | rune(c-'0')
		case c >= 'a' && c <= 'f':
			v = v<<4 | rune(c-'a'+10)
		case c >= 'A' && c <= 'F':
			v = v<<4 | rune(c-'A'+10)
		default:
			return 0, false
		}
	}
	return v, true
}

const (
	ones = 0x0101010101010101
	high = 0x8080808080808080
)

// plain is the length of b's prefix without quotes, backslashes, control characters and bytes outside ASCII.
func plain(b []byte) int {
	i := 0
	for ; len(b)-i >= 8; i += 8 {
		// Eight bytes at a time: a byte's top bit is set in found if the byte is one of those. A borrow can set it wrongly only above a
		// byte where it is set rightly, and the lowest one is taken.
		x := binary.LittleEndian.Uint64(b[i:])
		found := (x | (x - ones*' ') | ((x ^ ones*'"') - ones) | ((x ^ ones*'\\') - ones)) & high
		if found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for ; i < len(b); i++ {
		if c := b[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			break
		}
	}
	return i
}
