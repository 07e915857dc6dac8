// Package uuid makes, writes and reads the identifiers of requests and events without allocating: UUIDs of a random part per generator and a
// counter. They are unique, and they are not secret.
package uuid

import (
	"crypto/rand"
	"encoding/binary"
	"sync/atomic"
)

// Len is the length of a UUID as text: 8-4-4-4-12 hexadecimal digits in lower case.
const Len = 36

// Generator makes UUIDs that have the form of version 4 (RFC 9562 §5.4). New makes one. Safe for concurrent use.
type Generator struct {
	prefix [8]byte
	next   atomic.Uint64
}

// New draws the random part.
func New() *Generator {
	g := new(Generator)
	var b [16]byte
	_, _ = rand.Read(b[:])
	copy(g.prefix[:], b[:8])
	g.prefix[6] = g.prefix[6]&0x0f | 0x40              // version 4
	g.next.Store(binary.BigEndian.Uint64(b[8:]) >> 16) // a start that leaves 2^48 and more to count
	return g
}

// Fill writes the next UUID.
func (g *Generator) Fill(dst *[Len]byte) {
	var b [16]byte
	copy(b[:], g.prefix[:])
	binary.BigEndian.PutUint64(b[8:], g.next.Add(1))
	b[8] = b[8]&0x3f | 0x80 // RFC 9562 variant
	write(dst, &b)
}

// Append appends a UUID as text.
func Append(dst []byte, id *[16]byte) []byte {
	var text [Len]byte
	write(&text, id)
	return append(dst, text[:]...)
}

func write(dst *[Len]byte, id *[16]byte) {
	const digits = "0123456789abcdef"
	at := 0
	for i, c := range id {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			dst[at] = '-'
			at++
		}
		dst[at], dst[at+1] = digits[c>>4], digits[c&15]
		at += 2
	}
}

// Parse reads a UUID as text, of any version; false for what is none. Digits in upper case are none.
func Parse(dst *[16]byte, s []byte) bool {
	if len(s) != Len {
		return false
	}
	at := 0
	for i := 0; i < len(s); i += 2 {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if s[i] != '-' {
				return false
			}
			i++
		}
		high, low := hex(s[i]), hex(s[i+1])
		if high|low > 15 {
			return false
		}
		dst[at] = high<<4 | low
		at++
	}
	return true
}

func hex(c byte) byte {
	switch {
	case c-'0' < 10:
		return c - '0'
	case c-'a' < 6:
		return c - 'a' + 10
	}
	return 0xff
}
