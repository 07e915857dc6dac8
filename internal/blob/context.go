package blob

import (
	"bytes"
	"encoding/binary"
	"unicode/utf8"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// Fault says why a pair of the encryption context is refused. FaultNone is success.
type Fault uint8

const (
	FaultNone      Fault = iota
	FaultUTF8            // key or value is not UTF-8
	FaultDuplicate       // the key occurs already
	FaultPairs           // more than kmsapi.ContextPairsMax pairs
	FaultLength          // more than kmsapi.ContextBytesMax bytes of canonical form
)

var faultNames = [...]string{"none", "not UTF-8", "duplicate key", "too many pairs", "too long"}

// String names the fault, for logs and tests; the wording of the API's exception is its caller's.
func (f Fault) String() string {
	if int(f) < len(faultNames) {
		return faultNames[f]
	}
	return "unknown"
}

// Sizes of the canonical form's parts, in bytes.
const (
	pairsLen = 2 // number of pairs
	pairLen  = 4 // the two lengths of a pair
)

// Context collects the encryption context of one request and gives its canonical form (docs/ciphertext.md §2). It borrows the slices it is
// given: they must stay unchanged until Reset. The zero value is the empty context, which is the same as an absent one. For one
// goroutine; to be kept in a pooled struct, since it is 3 KiB of slice headers by value.
type Context struct {
	pairs [kmsapi.ContextPairsMax]pair // the first n are in ascending byte order of their keys, all different
	n     int
	bytes int // of the pairs' canonical form, without the count
}

type pair struct{ key, value []byte }

// Add adds a pair, in any order. Where it returns a fault the context is unchanged, and the request is to be refused. Keys and values are
// the bytes after JSON unescaping, compared without Unicode normalisation; both may be empty.
func (c *Context) Add(key, value []byte) Fault {
	if !utf8.Valid(key) || !utf8.Valid(value) {
		return FaultUTF8
	}
	at, found := c.search(key)
	if found {
		return FaultDuplicate
	}
	if c.n == len(c.pairs) {
		return FaultPairs
	}
	// Compared before they are added up, so that no length can overflow the sum. The bound keeps every length below 2^16.
	room := kmsapi.ContextBytesMax - pairsLen - c.bytes - pairLen
	if room < 0 || len(key) > room || len(value) > room-len(key) {
		return FaultLength
	}
	copy(c.pairs[at+1:c.n+1], c.pairs[at:c.n])
	c.pairs[at] = pair{key, value}
	c.n++
	c.bytes += pairLen + len(key) + len(value)
	return FaultNone
}

// search finds where key is or belongs.
func (c *Context) search(key []byte) (at int, found bool) {
	lo, hi := 0, c.n
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		switch d := bytes.Compare(c.pairs[mid].key, key); {
		case d == 0:
			return mid, true
		case d < 0:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return lo, false
}

// AppendTo appends the canonical form to dst: pairs (2), then for each pair len(key) (2) || key || len(value) (2) || value in ascending
// byte order of the keys. It is at most kmsapi.ContextBytesMax bytes, and two contexts have the same form only if they are the same map.
func (c *Context) AppendTo(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(c.n))
	for i := range c.n {
		p := &c.pairs[i]
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(p.key)))
		dst = append(dst, p.key...)
		dst = binary.BigEndian.AppendUint16(dst, uint16(len(p.value)))
		dst = append(dst, p.value...)
	}
	return dst
}

// CanonicalLen is the length of what AppendTo appends.
func (c *Context) CanonicalLen() int { return pairsLen + c.bytes }

// Len is the number of pairs.
func (c *Context) Len() int { return c.n }

// Pair returns pair i, 0 <= i < Len, in ascending byte order of the keys. The slices are those given to Add.
func (c *Context) Pair(i int) (key, value []byte) {
	p := &c.pairs[:c.n][i]
	return p.key, p.value
}

// Value returns the value of key, and whether the context has the key.
func (c *Context) Value(key []byte) (value []byte, ok bool) {
	at, found := c.search(key)
	if !found {
		return nil, false
	}
	return c.pairs[at].value, true
}

// Reset empties the context and lets go of all slices. What they hold is their owner's to wipe.
func (c *Context) Reset() {
	clear(c.pairs[:c.n])
	c.n, c.bytes = 0, 0
}
