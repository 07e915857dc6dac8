package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha512"
	"encoding/binary"
	"math/big"
)

// Initial bytes of CBOR data items (RFC 8949 §3.1): the major type above five bits of length.
const (
	cborBytes = 2
	cborText  = 3
	cborArray = 4
	cborMap   = 5

	tagSign1 = 0xd2 // tag 18, COSE_Sign1: optional
)

// es384 is the protected header of every document, {1: -35}: algorithm ES384. Documents have nothing else in it and nothing unprotected.
var es384 = []byte{0xa1, 0x01, 0x38, 0x22}

// signatureLen is the length of r || s.
const signatureLen = 96

// openEnvelope takes a COSE_Sign1 apart: [protected header, unprotected header, payload, signature]. There is one way to write it down, with the shortest
// lengths and the one protected header; so it is taken apart by what has to be there, and no other algorithm can be asked for. The results alias the input.
func openEnvelope(document []byte) (payload, signature []byte, err error) {
	if len(document) > DocumentMax {
		return nil, nil, refuse("it is too long")
	}
	rest := bytes.TrimPrefix(document, []byte{tagSign1})
	rest, ok := bytes.CutPrefix(rest, []byte{cborArray<<5 | 4})
	if !ok {
		return nil, nil, refuse("it is not a COSE_Sign1")
	}
	if rest, ok = bytes.CutPrefix(rest, append([]byte{cborBytes<<5 | byte(len(es384))}, es384...)); !ok {
		return nil, nil, refuse("its protected header is not {1: -35}")
	}
	if rest, ok = bytes.CutPrefix(rest, []byte{cborMap << 5}); !ok {
		return nil, nil, refuse("its unprotected header is not empty")
	}
	if payload, rest, ok = cutBytes(rest); !ok || len(payload) < 1 || len(payload) > payloadMax {
		return nil, nil, refuse("its payload is not a byte string of 1 to 16384 bytes")
	}
	if signature, rest, ok = cutBytes(rest); !ok || len(signature) != signatureLen {
		return nil, nil, refuse("its signature is not a byte string of 96 bytes")
	}
	if len(rest) != 0 {
		return nil, nil, refuse("bytes follow it")
	}
	return payload, signature, nil
}

// cutBytes reads a byte string, its length written in the shortest way, of 65535 bytes at most.
func cutBytes(data []byte) (s, rest []byte, ok bool) {
	if len(data) < 1 || data[0]>>5 != cborBytes {
		return nil, nil, false
	}
	n, head := int(data[0]&31), 1
	switch {
	case n < 24:
	case n == 24 && len(data) >= 2:
		if n, head = int(data[1]), 2; n < 24 {
			return nil, nil, false
		}
	case n == 25 && len(data) >= 3:
		if n, head = int(binary.BigEndian.Uint16(data[1:])), 3; n < 256 {
			return nil, nil, false
		}
	default:
		return nil, nil, false
	}
	if len(data)-head < n {
		return nil, nil, false
	}
	return data[head : head+n], data[head+n:], true
}

// appendHead appends the head of a byte or text string, in the shortest way.
func appendHead(dst []byte, major byte, n int) []byte {
	switch {
	case n < 24:
		return append(dst, major<<5|byte(n))
	case n < 256:
		return append(dst, major<<5|24, byte(n))
	}
	return binary.BigEndian.AppendUint16(append(dst, major<<5|25), uint16(n))
}

// verifySignature verifies r || s, 48 bytes each, over the Sig_structure of RFC 9052 §4.4: ["Signature1", protected header, external data, payload].
func verifySignature(key *ecdsa.PublicKey, payload, signature []byte) bool {
	const context = "Signature1"
	m := make([]byte, 0, len(payload)+32)
	m = append(m, cborArray<<5|4)
	m = append(appendHead(m, cborText, len(context)), context...)
	m = append(appendHead(m, cborBytes, len(es384)), es384...)
	m = appendHead(m, cborBytes, 0)
	m = append(appendHead(m, cborBytes, len(payload)), payload...)
	digest := sha512.Sum384(m)
	r, s := new(big.Int).SetBytes(signature[:signatureLen/2]), new(big.Int).SetBytes(signature[signatureLen/2:])
	return ecdsa.Verify(key, digest[:], r, s)
}
