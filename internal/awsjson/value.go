package awsjson

import "math"

// String reads a string. The result aliases the body and is not nil when present, even for "".
func (s *Scanner) String() (v []byte, present bool) {
	c := s.value()
	if c == '"' {
		return s.string()
	}
	if c != 0 {
		s.mismatch(c, aString)
	}
	return nil, false
}

// Int reads an integer of 64 bits. A number with a fraction or an exponent is refused, even where its value is an integer.
func (s *Scanner) Int() (v int64, present bool) {
	c := s.value()
	if c == 0 {
		return 0, false
	}
	if c != '-' && (c < '0' || c > '9') {
		s.mismatch(c, anInteger)
		return 0, false
	}
	v, kind := s.number()
	switch {
	case s.fault != None:
	case kind == decimal:
		s.fault, s.got, s.want = Type, aDecimal, anInteger
	case kind == outOfRange:
		s.fail(Range)
	default:
		return v, true
	}
	return 0, false
}

// Bool reads true or false.
func (s *Scanner) Bool() (v, present bool) {
	switch c := s.value(); c {
	case 0:
		return false, false
	case 't':
		v = s.literal("true")
		return v, v
	case 'f':
		return false, s.literal("false")
	default:
		s.mismatch(c, aBool)
		return false, false
	}
}

// Base64 reads a blob: a string in the standard alphabet of RFC 4648 §4 with padding, without line breaks, and with zero trailing bits, so
// that a blob has one encoding. It is decoded over its own bytes; the result aliases the body and is not nil when present.
func (s *Scanner) Base64() (v []byte, present bool) {
	c := s.value()
	if c != '"' {
		if c != 0 {
			s.mismatch(c, aBlob)
		}
		return nil, false
	}
	text, ok := s.string()
	if !ok {
		return nil, false
	}
	n, ok := decodeBase64(text)
	if !ok {
		s.fail(Blob)
		return nil, false
	}
	return text[:n:n], true
}

type numberKind uint8

const (
	integer    numberKind = iota
	outOfRange            // an integer that does not fit 64 bits
	decimal               // with a fraction or an exponent
)

// number reads a number as RFC 8259 §6 writes it, at the first byte of a value. v is set for integers.
func (s *Scanner) number() (v int64, kind numberKind) {
	negative := s.body[s.pos] == '-'
	if negative {
		s.pos++
	}
	first := s.pos
	limit := uint64(math.MaxInt64)
	if negative {
		limit++
	}
	var u uint64
	for ; s.digit(); s.pos++ {
		d := uint64(s.body[s.pos] - '0')
		if u > (limit-d)/10 {
			kind = outOfRange
		} else {
			u = u*10 + d
		}
	}
	if s.pos == first || s.body[first] == '0' && s.pos > first+1 {
		s.fail(Syntax)
		return 0, kind
	}
	if s.pos < len(s.body) && s.body[s.pos] == '.' {
		s.pos++
		s.digits()
		kind = decimal
	}
	if s.pos < len(s.body) && s.body[s.pos]|0x20 == 'e' {
		s.pos++
		if s.pos < len(s.body) && (s.body[s.pos] == '+' || s.body[s.pos] == '-') {
			s.pos++
		}
		s.digits()
		kind = decimal
	}
	if negative {
		return -int64(u), kind // u == 1<<63 negates to itself, which is math.MinInt64
	}
	return int64(u), kind
}

func (s *Scanner) digit() bool {
	return s.pos < len(s.body) && s.body[s.pos] >= '0' && s.body[s.pos] <= '9'
}

// digits reads one digit or more.
func (s *Scanner) digits() {
	if !s.digit() {
		s.fail(Syntax)
		return
	}
	for s.digit() {
		s.pos++
	}
}
