package p11

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// decodeOAEP takes the message out of em, the whole block of a raw decryption, as RFC 8017 §7.1.2 step 3 has it, with an empty label. em is
// overwritten. What it does before it knows whether all is well takes a time that depends on lengths only, so that nobody learns which of the
// checks failed (Manger's attack).
func decodeOAEP(a keyspec.Algorithm, em, out []byte) (n int, ok bool) {
	h := a.Info().Digest
	if len(em) < 2*h+2 {
		return 0, false
	}
	seed, db := em[1:1+h], em[1+h:]
	mask(a, db, seed)
	mask(a, seed, db)
	var label [sha256.Size]byte
	if a == keyspec.OAEPSHA1 {
		sum := sha1.Sum(nil)
		copy(label[:], sum[:])
	} else {
		label = sha256.Sum256(nil)
	}
	good := subtle.ConstantTimeByteEq(em[0], 0) & subtle.ConstantTimeCompare(label[:h], db[:h])
	rest := db[h:]
	looking, at := 1, 0
	for i, b := range rest {
		zero, one := subtle.ConstantTimeByteEq(b, 0), subtle.ConstantTimeByteEq(b, 1)
		at = subtle.ConstantTimeSelect(looking&one, i, at)
		looking = subtle.ConstantTimeSelect(one, 0, looking)
		good = subtle.ConstantTimeSelect(looking&^zero, 0, good)
	}
	if good&^looking != 1 {
		return 0, false
	}
	return copy(out, rest[at+1:]), true
}

// mask adds MGF1 of seed to data.
func mask(a keyspec.Algorithm, seed, data []byte) {
	var in [512 + 4]byte // the longest block, and the counter
	n := copy(in[:512], seed)
	for i := 0; len(data) > 0; i++ {
		in[n], in[n+1], in[n+2], in[n+3] = byte(i>>24), byte(i>>16), byte(i>>8), byte(i)
		var done int
		if a == keyspec.OAEPSHA1 {
			sum := sha1.Sum(in[:n+4])
			done = subtle.XORBytes(data, data, sum[:min(len(sum), len(data))])
		} else {
			sum := sha256.Sum256(in[:n+4])
			done = subtle.XORBytes(data, data, sum[:min(len(sum), len(data))])
		}
		data = data[done:]
	}
	clear(in[:])
}
