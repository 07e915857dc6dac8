package attesttest

import (
	"encoding/binary"
	"slices"
)

// Data items of CBOR (RFC 8949), in the shortest form.

func Uint(n uint64) []byte          { return head(0, n) }
func Negative(n uint64) []byte      { return head(1, n) } // -1-n
func Bytes(b []byte) []byte         { return append(head(2, uint64(len(b))), b...) }
func Text(s string) []byte          { return append(head(3, uint64(len(s))), s...) }
func Array(of ...[]byte) []byte     { return append(head(4, uint64(len(of))), slices.Concat(of...)...) }
func Tag(n uint64, b []byte) []byte { return append(head(6, n), b...) }
func Null() []byte                  { return []byte{0xf6} }

// Map is a map of pairs, in the order given.
func Map(pairs ...[2][]byte) []byte {
	b := head(5, uint64(len(pairs)))
	for _, p := range pairs {
		b = append(append(b, p[0]...), p[1]...)
	}
	return b
}

// IndefiniteMap is a map's data item with an indefinite length instead of its own, for maps of less than 24 pairs.
func IndefiniteMap(m []byte) []byte {
	return append(append([]byte{0xbf}, m[1:]...), 0xff)
}

func head(major byte, n uint64) []byte {
	b := []byte{major << 5}
	switch {
	case n < 24:
		b[0] |= byte(n)
	case n < 1<<8:
		b[0] |= 24
		b = append(b, byte(n))
	case n < 1<<16:
		b[0] |= 25
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	case n < 1<<32:
		b[0] |= 26
		b = binary.BigEndian.AppendUint32(b, uint32(n))
	default:
		b[0] |= 27
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}
