package dataplane

import (
	"strconv"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// Encryption with RSA keys: RSAES-OAEP. A ciphertext is as long as the modulus and names no key.

// admitPlaintext refuses a plaintext that is too long for an RSA key.
func (r *request) admitPlaintext(k *keyView, algorithm, plaintext []byte) kmsapi.Code {
	most := k.spec.PlaintextMax(keyspec.AlgorithmOf(algorithm))
	if len(plaintext) <= most {
		return kmsapi.OK
	}
	r.msg = append(append(append(emptied(r.msg), "Algorithm "...), algorithm...), " and key spec "...)
	r.msg = append(append(r.msg, k.Spec...), " cannot encrypt data larger than "...)
	r.msg = append(strconv.AppendInt(r.msg, int64(most), 10), " bytes."...)
	return kmsapi.Validation
}

// sealRSA leaves in r.ctext the ciphertext of plaintext under k. It needs no HSM.
func (s *Server) sealRSA(r *request, k *keyView, algorithm, plaintext []byte) kmsapi.Code {
	r.ctext = emptied(r.ctext)[:k.spec.Info().Public]
	n, err := k.public.EncryptOAEP(keyspec.AlgorithmOf(algorithm), plaintext, r.ctext)
	if err != nil {
		return s.fail(r, err)
	}
	r.ctext = r.ctext[:n]
	return kmsapi.OK
}

// openRSA leaves in r.plain the plaintext of the ciphertext that was sent, with r.key.
func (s *Server) openRSA(r *request) kmsapi.Code {
	in := &r.in
	switch {
	case in.ciphertextBlob == nil:
		return s.noCiphertext(r)
	case len(in.ciphertextBlob) != r.key.spec.Info().Public:
		return r.refuse(kmsapi.InvalidCiphertext)
	}
	m := hsm.DecryptOAEP1
	if keyspec.AlgorithmOf(in.algorithm) == keyspec.OAEPSHA256 {
		m = hsm.DecryptOAEP256
	}
	code := s.private(r, r.key, m, in.ciphertextBlob, kmsapi.InvalidCiphertext)
	if code == kmsapi.OK && len(r.plain) == 0 {
		// Whoever has the public key can encrypt nothing; the service's plaintexts have one byte at least.
		return r.refuse(kmsapi.InvalidCiphertext)
	}
	return code
}
