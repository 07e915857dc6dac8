package pubkey

import (
	"crypto/rand"

	"github.com/cloudflare/circl/kem/mlkem/mlkem512"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// SecretBytes is the length of the secret that Encapsulate makes.
const SecretBytes = 32

// CiphertextBytes is the length of an ML-KEM ciphertext, 0 for specs that have none.
func CiphertextBytes(s keyspec.Spec) int {
	switch s {
	case keyspec.MLKEM512:
		return 768
	case keyspec.MLKEM768:
		return 1088
	case keyspec.MLKEM1024:
		return 1568
	}
	return 0
}

// Encapsulate makes a secret of SecretBytes, and the ciphertext of CiphertextBytes out of which the private key makes the same: ML-KEM.Encaps of
// FIPS 203. The check of the encapsulation key (7.2) was Parse's.
func (k *Key) Encapsulate(secret, ciphertext []byte) error {
	size := CiphertextBytes(k.spec)
	if size == 0 {
		return ErrKey
	}
	if len(secret) != SecretBytes || len(ciphertext) != size {
		return ErrLength
	}
	var s, c []byte
	switch k.spec {
	case keyspec.MLKEM512:
		var seed [mlkem512.EncapsulationSeedSize]byte
		_, _ = rand.Read(seed[:]) // never fails
		k.kem512.EncapsulateTo(ciphertext, secret, seed[:])
		clear(seed[:])
		return nil
	case keyspec.MLKEM768:
		s, c = k.kem768.Encapsulate()
	case keyspec.MLKEM1024:
		s, c = k.kem1024.Encapsulate()
	}
	copy(secret, s)
	copy(ciphertext, c)
	clear(s)
	return nil
}
