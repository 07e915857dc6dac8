package cloudtrail

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

const (
	ones      = 0x0101010101010101
	high      = 0x8080808080808080
	hexDigits = "0123456789abcdef"
)

// appendString appends s as a JSON string of at most most bytes between its quotes: it ends before the character that would exceed them.
// Bytes that are not UTF-8 become U+FFFD each.
func appendString(dst, s []byte, most int) []byte {
	dst = append(dst, '"')
	if n := plain(s); n == len(s) && n <= most {
		return append(append(dst, s...), '"')
	}
	limit := len(dst) + most
	for {
		n := min(plain(s), limit-len(dst))
		dst = append(dst, s[:n]...)
		if s = s[n:]; len(s) == 0 {
			break
		}
		var esc [6]byte
		out, read := esc[:0], 1
		switch c := s[0]; {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c == '\n':
			out = append(out, '\\', 'n')
		case c == '\r':
			out = append(out, '\\', 'r')
		case c == '\t':
			out = append(out, '\\', 't')
		case c < ' ':
			out = append(out, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		case c < utf8.RuneSelf: // plain, and there was no room for it
			return append(dst, '"')
		default:
			var r rune
			r, read = utf8.DecodeRune(s)
			out = utf8.AppendRune(out, r)
		}
		if len(dst)+len(out) > limit {
			break
		}
		dst = append(dst, out...)
		s = s[read:]
	}
	return append(dst, '"')
}

// plain is how many bytes at the start of s stand for themselves in a JSON string, outside ASCII not counted.
func plain(s []byte) int {
	n, i := len(s), 0
	if n < 8 {
		for ; i < n; i++ {
			if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' {
				break
			}
		}
		return i
	}
	for ; n-i >= 8; i += 8 {
		if found := special(s[i:]); found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	// The last eight bytes again: those of them that the loop saw are plain.
	if found := special(s[n-8:]); found != 0 {
		return n - 8 + bits.TrailingZeros64(found)/8
	}
	return n
}

// special has the top bit of a byte set where one of the first eight bytes of b does not stand for itself. A borrow can set it wrongly only
// above a byte where it is set rightly, so the lowest one is right.
func special(b []byte) uint64 {
	x := binary.LittleEndian.Uint64(b)
	return (x | (x - ones*' ') | ((x ^ ones*'"') - ones) | ((x ^ ones*'\\') - ones)) & high
}
