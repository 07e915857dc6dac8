package pubkey

import (
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// Message is what the caller of Sign and Verify says its message is.
type Message uint8

const (
	RAW        Message = iota // the message itself
	DIGEST                    // its hash, with the algorithm's hash function
	EXTERNALMU                // the message representative μ of ML-DSA
)

// PreparedMax is the room that Prepare needs.
const PreparedMax = 19 + 64

// digestInfos are what precedes a digest in DigestInfo, by the digest's length: RFC 8017, 9.2 note 1.
var digestInfos = map[int]string{
	32: "\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20",
	48: "\x30\x41\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\x04\x30",
	64: "\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40",
}

// DigestInfo is what precedes a digest of size bytes, 32, 48 or 64, in its DigestInfo.
func DigestInfo(size int) []byte { return []byte(digestInfos[size]) }

// Prepare turns a message into what the private operation takes. buf has room for PreparedMax bytes; the result is in it, or is the message.
// Nothing is allocated.
//
//	RSASSA_PKCS1_V1_5_SHA_…   DigestInfo of the message's hash or of the digest
//	RSASSA_PSS_…, ECDSA_…     the hash or the digest
//	ED25519_SHA_512           the message; RAW only
//	ED25519_PH_SHA_512        64 bytes, which HashEdDSA hashes no more; DIGEST only
//	ML_DSA_SHAKE_256          μ of the message for the key and the empty context, or the μ given; RAW and EXTERNAL_MU
//
// Of ED25519_PH_SHA_512 the service says that it hashes the supplied value again. We read this as: the message of HashEdDSA (M of RFC 8032) is
// the 64-byte digest, so PH(M) is the SHA-512 of the digest, and that is the result. Whoever verifies outside gives the digest to an Ed25519ph
// function that hashes, or its SHA-512 to one that does not.
//
// ok is false when the algorithm is not one of signing with a key of k's spec, it does not take such a message, or a digest or μ has the wrong
// length. k may be nil, except for a message with ML_DSA_SHAKE_256; nothing is known of the spec then.
func Prepare(a keyspec.Algorithm, t Message, k *Key, message, buf []byte) (in []byte, ok bool) {
	if k != nil && !k.spec.Has(keyspec.SignVerify, a) {
		return nil, false
	}
	size := a.Info().Digest
	if t != RAW && len(message) != size {
		return nil, false
	}
	switch a {
	case keyspec.PKCS1SHA256, keyspec.PKCS1SHA384, keyspec.PKCS1SHA512:
		buf = append(buf[:0], digestInfos[size]...)
		switch t {
		case RAW:
			return appendHash(buf, size, message), true
		case DIGEST:
			return append(buf, message...), true
		}
	case keyspec.PSSSHA256, keyspec.PSSSHA384, keyspec.PSSSHA512, keyspec.ECDSASHA256, keyspec.ECDSASHA384, keyspec.ECDSASHA512:
		switch t {
		case RAW:
			return appendHash(buf[:0], size, message), true
		case DIGEST:
			return message, true
		}
	case keyspec.Ed25519SHA512:
		if t == RAW {
			return message, true
		}
	case keyspec.Ed25519PHSHA512:
		if t == DIGEST {
			return appendHash(buf[:0], size, message), true
		}
	case keyspec.MLDSAShake256:
		switch {
		case t == EXTERNALMU:
			return message, true
		case t == RAW && k != nil:
			return k.appendMu(buf[:0], message), true
		}
	}
	return nil, false
}

// appendHash appends the SHA-2 hash of the size.
func appendHash(dst []byte, size int, message []byte) []byte {
	switch size {
	case 32:
		h := sha256.Sum256(message)
		return append(dst, h[:]...)
	case 48:
		h := sha512.Sum384(message)
		return append(dst, h[:]...)
	}
	h := sha512.Sum512(message)
	return append(dst, h[:]...)
}

// appendMu appends μ = SHAKE256(SHAKE256(key, 64) || 0 || 0 || message, 64) of FIPS 204, algorithms 2 and 7, where the zeros are for a pure
// message and for an empty context.
func (k *Key) appendMu(dst, message []byte) []byte {
	var h sha3.SHAKE // SHAKE256
	var mu [64]byte
	_, _ = h.Write(k.tr[:])
	_, _ = h.Write([]byte{0, 0})
	_, _ = h.Write(message)
	_, _ = h.Read(mu[:])
	return append(dst, mu[:]...)
}
