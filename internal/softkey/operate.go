package softkey

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // #nosec: see internal/pubkey
	"crypto/sha256"
	"crypto/sha512"
	"hash"

	"filippo.io/mldsa/mldsacrypto"

	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
)

const (
	muBytes      = 64
	kemSeedBytes = 64
)

// Do does one operation and returns the length of its result, which is in out. out has room for the longest result of the spec
// (keyspec.Info.Result), and of EncryptBlocks for as much as in has; in and out do not overlap. EncryptBlocks allocates nothing. On an error out is cleared. The error is ErrData, ErrUnsupported, ErrRoom or ErrWiped, or a fault
// of a library that there is no input for.
func (k *Key) Do(op Op, in, out []byte) (n int, err error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.wiped {
		clear(out)
		return 0, ErrWiped
	}
	if len(out) < k.spec.Info().Result {
		clear(out)
		return 0, ErrRoom
	}
	if k.aes != nil && op == EncryptBlocks {
		return k.encryptBlocks(in, out)
	}
	result, err := k.do(op, in)
	if err != nil {
		clear(out)
		return 0, err
	}
	n = copy(out, result)
	clear(result)
	return n, nil
}

// do gives the result in memory of its own, for Do to clear.
func (k *Key) do(op Op, in []byte) ([]byte, error) {
	switch k.spec.Info().Family {
	case keyspec.RSA:
		return k.doRSA(op, in)
	case keyspec.EC:
		switch {
		case op == SignECDSA:
			return k.signECDSA(in)
		case op == DeriveECDH && k.ecdh != nil:
			return k.deriveECDH(in)
		}
	case keyspec.Edwards:
		return k.signEdwards(op, in)
	case keyspec.HMAC:
		if op == MAC {
			h := hmac.New(hashOf(k.spec), k.raw)
			_, _ = h.Write(in)
			return h.Sum(nil), nil
		}
	case keyspec.MLDSA:
		if op == SignMLDSA {
			if len(in) != muBytes {
				return nil, ErrData
			}
			return k.mldsa.Sign(nil, in, mldsacrypto.MLDSAMu) // hedged
		}
	case keyspec.MLKEM:
		if op == DecapsulateMLKEM {
			return k.decapsulate(in)
		}
	}
	return nil, ErrUnsupported
}

func (k *Key) encryptBlocks(in, out []byte) (int, error) {
	switch {
	case len(in) == 0 || len(in)%aes.BlockSize != 0:
		clear(out)
		return 0, ErrData
	case len(out) < len(in):
		clear(out)
		return 0, ErrRoom
	}
	for i := 0; i < len(in); i += aes.BlockSize {
		k.aes.Encrypt(out[i:i+aes.BlockSize], in[i:i+aes.BlockSize])
	}
	return len(in), nil
}

func (k *Key) doRSA(op Op, in []byte) ([]byte, error) {
	switch op {
	case SignPKCS1:
		hash, digest, ok := cutDigestInfo(in)
		if !ok {
			return nil, ErrData
		}
		return rsa.SignPKCS1v15(nil, k.rsa, hash, digest)
	case SignPSS256, SignPSS384, SignPSS512:
		hash := [...]crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512}[op-SignPSS256]
		if len(in) != hash.Size() {
			return nil, ErrData
		}
		return rsa.SignPSS(rand.Reader, k.rsa, hash, in, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	case DecryptOAEP1:
		return k.decryptOAEP(sha1.New(), in)
	case DecryptOAEP256:
		return k.decryptOAEP(sha256.New(), in)
	}
	return nil, ErrUnsupported
}

// decryptOAEP takes ciphertexts as long as the modulus only: crypto/rsa takes shorter ones too.
func (k *Key) decryptOAEP(h hash.Hash, ciphertext []byte) ([]byte, error) {
	if len(ciphertext) != k.spec.Info().Public {
		return nil, ErrData
	}
	plaintext, err := rsa.DecryptOAEP(h, nil, k.rsa, ciphertext, nil)
	if err != nil {
		return nil, ErrData
	}
	return plaintext, nil
}

// cutDigestInfo is the hash and the digest of the three DigestInfos that there are.
func cutDigestInfo(in []byte) (h crypto.Hash, digest []byte, ok bool) {
	for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		if digest, ok := bytes.CutPrefix(in, pubkey.DigestInfo(h.Size())); ok && len(digest) == h.Size() {
			return h, digest, true
		}
	}
	return 0, nil, false
}

func (k *Key) signECDSA(digest []byte) ([]byte, error) {
	result := k.spec.Info().Result
	if len(digest) == 0 || len(digest) > (k.spec.Info().Bits+7)/8 {
		return nil, ErrData
	}
	raw := make([]byte, result)
	if k.spec == keyspec.Secp256k1 {
		signSecp256k1(k.raw, digest, raw)
		return raw, nil
	}
	der, err := ecdsa.SignASN1(rand.Reader, k.ecdsa, digest)
	if err != nil {
		return nil, err
	}
	if _, ok := pubkey.RawSignature(k.spec, der, raw); !ok {
		return nil, ErrKey // never: the library's signatures are DER
	}
	return raw, nil
}

func (k *Key) deriveECDH(point []byte) ([]byte, error) {
	peer, err := k.ecdh.Curve().NewPublicKey(point) // checks that the point is on the curve
	if err != nil || len(point) != k.spec.Info().Public {
		return nil, ErrData
	}
	secret, err := k.ecdh.ECDH(peer)
	if err != nil {
		return nil, ErrData // the point at infinity
	}
	return secret, nil
}

func (k *Key) signEdwards(op Op, in []byte) ([]byte, error) {
	switch op {
	case SignEd25519:
		return ed25519.Sign(k.ed25519, in), nil
	case SignEd25519ph:
		if len(in) != sha512.Size {
			return nil, ErrData
		}
		return k.ed25519.Sign(nil, in, &ed25519.Options{Hash: crypto.SHA512})
	}
	return nil, ErrUnsupported
}

func (k *Key) decapsulate(ciphertext []byte) ([]byte, error) {
	if len(ciphertext) != pubkey.CiphertextBytes(k.spec) {
		return nil, ErrData
	}
	switch k.spec {
	case keyspec.MLKEM768:
		return k.kem768.Decapsulate(ciphertext)
	case keyspec.MLKEM1024:
		return k.kem1024.Decapsulate(ciphertext)
	}
	secret := make([]byte, pubkey.SecretBytes)
	k.kem512.DecapsulateTo(secret, ciphertext)
	return secret, nil
}

func hashOf(s keyspec.Spec) func() hash.Hash {
	switch s {
	case keyspec.HMAC224:
		return sha256.New224
	case keyspec.HMAC256:
		return sha256.New
	case keyspec.HMAC384:
		return sha512.New384
	}
	return sha512.New
}
