package pubkey

import (
	"bytes"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// SignatureMax is the longest signature as the API has it: of ML-DSA-87. ECDSA signatures are of 139 bytes at most.
const SignatureMax = 4627

// orders are those of the curves' groups.
var orders = map[keyspec.Spec]string{
	keyspec.P256: "\xff\xff\xff\xff\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xbc\xe6\xfa\xad\xa7\x17\x9e\x84\xf3\xb9\xca\xc2\xfc\x63\x25\x51",
	keyspec.P384: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff" +
		"\xc7\x63\x4d\x81\xf4\x37\x2d\xdf\x58\x1a\x0d\xb2\x48\xb0\xa7\x7a\xec\xec\x19\x6a\xcc\xc5\x29\x73",
	keyspec.P521: "\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfa" +
		"\x51\x86\x87\x83\xbf\x2f\x96\x6b\x7f\xcc\x01\x48\xf7\x09\xa5\xd0\x3b\xb5\xc9\xb8\x89\x9c\x47\xae\xbb\x6f\xb7\x1e\x91\x38\x64\x09",
	keyspec.Secp256k1: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xba\xae\xdc\xe6\xaf\x48\xa0\x3b\xbf\xd2\x5e\x8c\xd0\x36\x41\x41",
}

// AppendSignature appends a signature as the API has it: of ECDSA's r || s, of one length each, the DER encoding of Ecdsa-Sig-Value; every other is
// the same.
func AppendSignature(dst []byte, a keyspec.Algorithm, raw []byte) []byte {
	switch a {
	case keyspec.ECDSASHA256, keyspec.ECDSASHA384, keyspec.ECDSASHA512:
	default:
		return append(dst, raw...)
	}
	r, s := minimal(raw[:len(raw)/2]), minimal(raw[len(raw)/2:])
	size := 4 + length(r) + length(s)
	dst = append(dst, 0x30)
	if size >= 0x80 {
		dst = append(dst, 0x81) // never more than 138
	}
	dst = append(dst, byte(size))
	return appendInteger(appendInteger(dst, r), s)
}

// minimal is a big-endian number without leading zeros.
func minimal(n []byte) []byte { return bytes.TrimLeft(n, "\x00") }

// length is how many bytes the contents of an INTEGER of a minimal number have: no number needs one byte, and one with a high top bit a zero.
func length(n []byte) int {
	if len(n) == 0 || n[0] >= 0x80 {
		return len(n) + 1
	}
	return len(n)
}

func appendInteger(dst, n []byte) []byte {
	dst = append(dst, 2, byte(length(n)))
	if length(n) > len(n) {
		dst = append(dst, 0)
	}
	return append(dst, n...)
}

// RawSignature is the inverse of AppendSignature for ECDSA with a key of the spec: r || s of one length each, in buf, which has room for
// keyspec.Info.Result. ok is false for what is not the one DER encoding of two numbers from 1 to the order of the curve's group less 1. Nothing
// is allocated.
func RawSignature(s keyspec.Spec, signature, buf []byte) (raw []byte, ok bool) {
	order, known := orders[s]
	if !known || len(signature) < 8 || signature[0] != 0x30 {
		return nil, false
	}
	rest := signature[1:]
	size := int(rest[0])
	switch {
	case size == 0x81 && rest[1] >= 0x80:
		size, rest = int(rest[1]), rest[2:]
	case size < 0x80:
		rest = rest[1:]
	default:
		return nil, false
	}
	if size != len(rest) {
		return nil, false
	}
	half := len(order)
	raw = buf[:2*half]
	if rest, ok = cutInteger(raw[:half], rest, order); !ok {
		return nil, false
	}
	if rest, ok = cutInteger(raw[half:], rest, order); !ok || len(rest) != 0 {
		return nil, false
	}
	return raw, true
}

// cutInteger puts the INTEGER at the start of in, from 1 to the order less 1, into out.
func cutInteger(out, in []byte, order string) (rest []byte, ok bool) {
	if len(in) < 3 || in[0] != 2 || in[1] >= 0x80 || len(in) < 2+int(in[1]) {
		return nil, false
	}
	n, rest := in[2:2+in[1]], in[2+in[1]:]
	switch {
	case len(n) == 0, n[0] >= 0x80: // negative
		return nil, false
	case n[0] == 0:
		if n = n[1:]; len(n) == 0 || n[0] < 0x80 { // zero, or a zero too many
			return nil, false
		}
	}
	if len(n) > len(out) {
		return nil, false
	}
	clear(out[:len(out)-len(n)])
	copy(out[len(out)-len(n):], n)
	return rest, string(out) < order
}
