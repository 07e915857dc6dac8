// Package uuid makes the identifiers of requests and events without allocating: UUIDs of a random part per generator and a counter. They are
// unique, and they are not secret.
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
	const digits = "0123456789abcdef"
	var b [16]byte
	copy(b[:], g.prefix[:])
	binary.BigEndian.PutUint64(b[8:], g.next.Add(1))
	b[8] = b[8]&0x3f | 0x80 // RFC 9562 variant
	at := 0
	for i, c := range b {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			dst[at] = '-'
			at++
		}
		dst[at], dst[at+1] = digits[c>>4], digits[c&15]
		at += 2
	}
}
