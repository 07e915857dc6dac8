package pubkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"

	"filippo.io/mldsa"
	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	secpecdsa "github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// Verify says whether signature, as the API has it, is one of the message by the key. It is false too for an algorithm that is not the key's and
// for a message that Prepare refuses.
//
// There is one encoding of a signature: ECDSA's is minimal DER of two numbers in range, DigestInfo has its NULL, a PSS salt is as long as the hash,
// S of Ed25519 is reduced, an ML-DSA hint is in order.
func (k *Key) Verify(a keyspec.Algorithm, t Message, message, signature []byte) bool {
	var buf [PreparedMax]byte
	in, ok := Prepare(a, t, k, message, buf[:])
	if !ok {
		return false
	}
	switch a {
	case keyspec.PKCS1SHA256, keyspec.PKCS1SHA384, keyspec.PKCS1SHA512:
		return rsa.VerifyPKCS1v15(k.rsa, hashOf(a), in[len(in)-a.Info().Digest:], signature) == nil
	case keyspec.PSSSHA256, keyspec.PSSSHA384, keyspec.PSSSHA512:
		return rsa.VerifyPSS(k.rsa, hashOf(a), in, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	case keyspec.ECDSASHA256, keyspec.ECDSASHA384, keyspec.ECDSASHA512:
		return k.verifyECDSA(in, signature)
	case keyspec.Ed25519SHA512:
		return len(signature) == ed25519.SignatureSize && ed25519.Verify(k.raw, in, signature)
	case keyspec.Ed25519PHSHA512:
		return len(signature) == ed25519.SignatureSize && ed25519.VerifyWithOptions(k.raw, in, signature, &ed25519.Options{Hash: crypto.SHA512}) == nil
	case keyspec.MLDSAShake256:
		if t == RAW {
			return mldsa.Verify(k.mldsa, message, signature, nil) == nil
		}
		return k.verifyMu(in, signature)
	}
	return false
}

func hashOf(a keyspec.Algorithm) crypto.Hash {
	switch a.Info().Digest {
	case 32:
		return crypto.SHA256
	case 48:
		return crypto.SHA384
	}
	return crypto.SHA512
}

func (k *Key) verifyECDSA(digest, signature []byte) bool {
	var buf [2 * 66]byte
	raw, ok := RawSignature(k.spec, signature, buf[:])
	if !ok {
		return false
	}
	if k.nist != nil {
		return ecdsa.VerifyASN1(k.nist, digest, signature)
	}
	var r, s secp256k1.ModNScalar
	if r.SetByteSlice(raw[:32]) || s.SetByteSlice(raw[32:]) { // too large, which RawSignature has refused
		return false
	}
	return secpecdsa.NewSignature(&r, &s).Verify(digest, k.secp)
}
