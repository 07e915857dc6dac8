package xks

import "crypto/sha256"

// CDIV is the ciphertextDataIntegrityValue, SHA_256, of what Encrypt answers: the proxy says with it that Decrypt will take this with the same
// additional authenticated data ("Appendix C: CDIV implementation guidelines"). It is over the bytes themselves, without lengths between them: it finds what
// was damaged, and authenticates nothing.
func CDIV(s *Sealed, aad []byte) (sum [sha256.Size]byte) {
	h := sha256.New()
	h.Write(aad)
	h.Write(s.Metadata)
	h.Write(s.IV)
	h.Write(s.Ciphertext)
	h.Write(s.Tag)
	h.Sum(sum[:0])
	return sum
}
