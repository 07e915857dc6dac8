package pubkey

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // #nosec: RSAES_OAEP_SHA_1 is an algorithm of the service, and its hash needs no resistance to collisions
	"crypto/sha256"
	"crypto/subtle"
	"errors"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// ErrLength says that a plaintext is too long for the key and algorithm, or that room is too small.
var ErrLength = errors.New("pubkey: wrong length")

// EncryptOAEP encrypts with an RSA key; the label is empty, and MGF1 uses the algorithm's hash. out has room for the modulus (keyspec.Info.Public).
func (k *Key) EncryptOAEP(a keyspec.Algorithm, plaintext, out []byte) (n int, err error) {
	if k.rsa == nil || !k.spec.Has(keyspec.EncryptDecrypt, a) {
		return 0, ErrKey
	}
	if len(plaintext) > k.spec.PlaintextMax(a) || len(out) < k.spec.Info().Public {
		return 0, ErrLength
	}
	hash := crypto.SHA1
	if a == keyspec.OAEPSHA256 {
		hash = crypto.SHA256
	}
	c, err := rsa.EncryptOAEP(hash.New(), rand.Reader, k.rsa, plaintext, nil)
	if err != nil {
		return 0, err
	}
	return copy(out, c), nil
}

const modulusBytesMax = 512

// DecodeOAEP takes the plaintext out of em, the block as long as the modulus that the private operation on a ciphertext gives: EME-OAEP decoding
// of RFC 8017, 7.1.2 step 3, with the empty label. out has room for the longest plaintext (keyspec.Spec.PlaintextMax); beyond the first n bytes
// that room is zeros, all of it where ok is false. em is not changed.
//
// It is for tokens whose OAEP does not have the hash, and is an oracle if its time tells why a block was refused (Manger's attack) or where the
// plaintext starts. So nothing in it depends on em but the values it computes:
//   - no branch, no early exit, no index and no division is made of bytes of em or of what is derived from them, up to the result ok;
//   - the first byte, the label's hash and the padding are all checked, and the faults gathered in one bit;
//   - the plaintext is moved to the front by shifts of 1, 2, 4, … bytes, each done or not done by a mask, over the whole block;
//   - hashes run over lengths that only the modulus and the algorithm determine.
//
// Of the machine code for amd64, as Go 1.26 makes it, every branch and index was read: they depend on lengths only. What the caller may see is n
// and ok, as with any decryption.
func DecodeOAEP(a keyspec.Algorithm, em, out []byte) (n int, ok bool) {
	size := a.Info().Digest
	max := len(em) - 2*size - 2
	if a != keyspec.OAEPSHA1 && a != keyspec.OAEPSHA256 || max < 0 || len(em) > modulusBytesMax || len(out) < max {
		return 0, false // lengths are public
	}
	var block [modulusBytesMax]byte
	defer clear(block[:])
	copy(block[:], em)
	seed, db := block[1:1+size], block[1+size:len(em)]
	maskMGF1(a, seed, db)
	maskMGF1(a, db, seed)

	var label [sha256.Size]byte
	hashOAEP(a, &label, nil)
	bad := subtle.ConstantTimeByteEq(block[0], 0) ^ 1
	bad |= subtle.ConstantTimeCompare(label[:size], db[:size]) ^ 1

	rest := db[size:] // zeros, a one, the plaintext: max+1 bytes
	looking, one := 1, 0
	for i, b := range rest {
		isOne, isZero := subtle.ConstantTimeByteEq(b, 1), subtle.ConstantTimeByteEq(b, 0)
		one = subtle.ConstantTimeSelect(looking&isOne, i, one)
		bad |= looking & (isOne ^ 1) & (isZero ^ 1)
		looking &= isOne ^ 1
	}
	bad |= looking
	good := bad ^ 1

	for bit := uint(0); 1<<bit <= len(rest); bit++ { // move the plaintext, which starts at one+1, to the front
		step, shift := 1<<bit, -((one + 1) >> bit & 1) // shift is all ones or all zeros
		for i := range rest {
			var from byte
			if i+step < len(rest) { // public
				from = rest[i+step]
			}
			rest[i] ^= (rest[i] ^ from) & byte(shift)
		}
	}
	for i := range out[:max] {
		inside := subtle.ConstantTimeLessOrEq(i+1, max-one) // the plaintext has max-one bytes
		out[i] = rest[i] & byte(-(inside & good))
	}
	clear(out[max:])
	return subtle.ConstantTimeSelect(good, max-one, 0), good == 1
}

// maskMGF1 XORs MGF1 of seed, as long as data, into data.
func maskMGF1(a keyspec.Algorithm, data, seed []byte) {
	var in [modulusBytesMax + 4]byte
	var h [sha256.Size]byte
	defer clear(in[:])
	defer clear(h[:])
	size := a.Info().Digest
	n := copy(in[:], seed)
	for counter := byte(0); len(data) > 0; counter++ { // never as many as 256
		in[n+3] = counter
		hashOAEP(a, &h, in[:n+4])
		m := subtle.XORBytes(data, data, h[:size])
		data = data[m:]
	}
}

func hashOAEP(a keyspec.Algorithm, h *[sha256.Size]byte, in []byte) {
	if a == keyspec.OAEPSHA1 {
		sum := sha1.Sum(in)
		copy(h[:], sum[:])
		return
	}
	*h = sha256.Sum256(in)
}
