package dataplane

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"hash"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// What the plane does with public keys is done here again with the standard library, where that knows the algorithm.

// use does an operation with the private key of a record, past the plane.
func (w *world) use(k *snapshot.Record, m hsm.Mechanism, in []byte) ([]byte, error) {
	w.Helper()
	p := k.Private
	key := &hsm.Key{ID: p.ID, Spec: keyspec.Of(k.Spec), Root: hsm.RootID(p.Root), Software: p.Software, Wrapped: p.Wrapped}
	j := &hsm.KeyJob{Key: key, Mechanism: m, In: in, Out: make([]byte, key.Spec.Info().Result)}
	err := w.ring.Run(j, time.Now())
	return j.Out[:j.N], err
}

func (w *world) mustUse(k *snapshot.Record, m hsm.Mechanism, in []byte) []byte {
	w.Helper()
	out, err := w.use(k, m, in)
	w.must(err)
	return out
}

// public is the public half of a record for the standard library; of keys that it does not know, a *pubkey.Key.
func (w *world) public(k *snapshot.Record) any {
	w.Helper()
	s := keyspec.Of(k.Spec)
	if s == keyspec.Secp256k1 || s.Info().Family == keyspec.MLDSA || s.Info().Family == keyspec.MLKEM {
		p, err := pubkey.Parse(s, k.Private.Public)
		w.must(err)
		return p
	}
	p, err := x509.ParsePKIXPublicKey(k.Private.Public)
	w.must(err)
	return p
}

func hashOf(a keyspec.Algorithm) crypto.Hash {
	return map[int]crypto.Hash{20: crypto.SHA1, 32: crypto.SHA256, 48: crypto.SHA384, 64: crypto.SHA512}[a.Info().Digest]
}

func digest(h crypto.Hash, message []byte) []byte {
	x := h.New()
	x.Write(message)
	return x.Sum(nil)
}

// verifies says whether a signature by the key of a record is one of the message.
func (w *world) verifies(k *snapshot.Record, a keyspec.Algorithm, typ string, message, signature []byte) bool {
	w.Helper()
	d := message
	if typ != "DIGEST" && a != keyspec.MLDSAShake256 && a != keyspec.Ed25519SHA512 {
		d = digest(hashOf(a), message)
	}
	switch p := w.public(k).(type) {
	case *rsa.PublicKey:
		if a >= keyspec.PKCS1SHA256 {
			return rsa.VerifyPKCS1v15(p, hashOf(a), d, signature) == nil
		}
		return rsa.VerifyPSS(p, hashOf(a), d, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(p, d, signature)
	case ed25519.PublicKey:
		if a == keyspec.Ed25519PHSHA512 {
			again := sha512.Sum512(message) // the service hashes the digest again: pubkey.Prepare
			return ed25519.VerifyWithOptions(p, again[:], signature, &ed25519.Options{Hash: crypto.SHA512}) == nil
		}
		return ed25519.Verify(p, message, signature)
	case *pubkey.Key:
		t, _ := messageTypeOf([]byte(typ))
		return p.Verify(a, t, message, signature)
	}
	w.Fatalf("no public key of %s", k.Spec)
	return false
}

// encryptOAEP encrypts for the RSA key of a record.
func (w *world) encryptOAEP(k *snapshot.Record, a keyspec.Algorithm, plaintext []byte) []byte {
	w.Helper()
	var h hash.Hash = sha256.New()
	if a == keyspec.OAEPSHA1 {
		h = sha1.New()
	}
	c, err := rsa.EncryptOAEP(h, rand.Reader, w.public(k).(*rsa.PublicKey), plaintext, nil)
	w.must(err)
	return c
}

func decryption(a keyspec.Algorithm) hsm.Mechanism {
	if a == keyspec.OAEPSHA1 {
		return hsm.DecryptOAEP1
	}
	return hsm.DecryptOAEP256
}

// peer is the other side of a key agreement: a private key that is the same in every run, and its public half.
func peer(t testing.TB, s keyspec.Spec) (*ecdh.PrivateKey, []byte) {
	t.Helper()
	curve := map[keyspec.Spec]ecdh.Curve{keyspec.P256: ecdh.P256(), keyspec.P384: ecdh.P384(), keyspec.P521: ecdh.P521()}[s]
	n := map[keyspec.Spec]int{keyspec.P256: 32, keyspec.P384: 48, keyspec.P521: 66}[s]
	scalar, err := hkdf.Key(sha256.New, []byte("peer"), nil, s.String(), n)
	if err != nil {
		t.Fatal(err)
	}
	scalar[0] = 0 // below the order of each curve
	private, err := curve.NewPrivateKey(scalar)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(private.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	return private, spki
}

// agreed is what the peer computes.
func (w *world) agreed(k *snapshot.Record) []byte {
	w.Helper()
	private, _ := peer(w, keyspec.Of(k.Spec))
	public, err := w.public(k).(*ecdsa.PublicKey).ECDH()
	w.must(err)
	secret, err := private.ECDH(public)
	w.must(err)
	return secret
}

// encapsulated is a secret and its ciphertext for the key of a record.
func (w *world) encapsulated(k *snapshot.Record) (secret, ciphertext []byte) {
	w.Helper()
	p := w.public(k).(*pubkey.Key)
	switch keyspec.Of(k.Spec) {
	case keyspec.MLKEM768:
		e, err := mlkem.NewEncapsulationKey768(p.Raw())
		w.must(err)
		return e.Encapsulate()
	case keyspec.MLKEM1024:
		e, err := mlkem.NewEncapsulationKey1024(p.Raw())
		w.must(err)
		return e.Encapsulate()
	}
	secret, ciphertext = make([]byte, pubkey.SecretBytes), make([]byte, pubkey.CiphertextBytes(p.Spec()))
	w.must(p.Encapsulate(secret, ciphertext))
	return secret, ciphertext
}

// matches says whether a private key, DER PKCS #8, is that of a public key, DER SubjectPublicKeyInfo, of the spec.
func matches(t testing.TB, s keyspec.Spec, private, public []byte) bool {
	t.Helper()
	if _, err := pubkey.Parse(s, public); err != nil {
		t.Errorf("%v: %v", s, err)
		return false
	}
	parsed, err := x509.ParsePKCS8PrivateKey(private)
	if err != nil { // one that the standard library does not know: secp256k1, ML-KEM
		return s == keyspec.Secp256k1 && bytes.Contains(private, []byte{0x2b, 0x81, 0x04, 0x00, 0x0a}) || s.Info().Family == keyspec.MLKEM && len(private) == 86
	}
	spki, err := x509.MarshalPKIXPublicKey(parsed.(crypto.Signer).Public())
	return err == nil && bytes.Equal(spki, public)
}
