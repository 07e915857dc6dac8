package pubkey

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/sha512"
	"testing"

	"github.com/keyplane/keyplane/internal/alloctest"
	"github.com/keyplane/keyplane/internal/keyspec"
)

// Which message types each algorithm takes, and what comes of a message.
func TestPrepare(t *testing.T) {
	message := []byte("message")
	d256, d384, d512 := sha256.Sum256(message), sha512.Sum384(message), sha512.Sum512(message)
	again := sha512.Sum512(d512[:])
	k, err := Parse(keyspec.MLDSA44, public()[keyspec.MLDSA44])
	if err != nil {
		t.Fatal(err)
	}
	mu := muOf(k, nil, message)
	info := func(size int, digest []byte) []byte { return append(DigestInfo(size), digest...) }
	for _, c := range []struct {
		s             keyspec.Spec
		a             keyspec.Algorithm
		digest        []byte // given as DIGEST or EXTERNAL_MU
		ofRaw, of, mu []byte // nil is refused
	}{
		{keyspec.RSA2048, keyspec.PKCS1SHA256, d256[:], info(32, d256[:]), info(32, d256[:]), nil},
		{keyspec.RSA2048, keyspec.PKCS1SHA384, d384[:], info(48, d384[:]), info(48, d384[:]), nil},
		{keyspec.RSA2048, keyspec.PKCS1SHA512, d512[:], info(64, d512[:]), info(64, d512[:]), nil},
		{keyspec.RSA2048, keyspec.PSSSHA256, d256[:], d256[:], d256[:], nil},
		{keyspec.RSA2048, keyspec.PSSSHA384, d384[:], d384[:], d384[:], nil},
		{keyspec.RSA2048, keyspec.PSSSHA512, d512[:], d512[:], d512[:], nil},
		{keyspec.P256, keyspec.ECDSASHA256, d256[:], d256[:], d256[:], nil},
		{keyspec.Secp256k1, keyspec.ECDSASHA256, d256[:], d256[:], d256[:], nil},
		{keyspec.P384, keyspec.ECDSASHA384, d384[:], d384[:], d384[:], nil},
		{keyspec.P521, keyspec.ECDSASHA512, d512[:], d512[:], d512[:], nil},
		{keyspec.Ed25519, keyspec.Ed25519SHA512, d512[:], message, nil, nil},
		{keyspec.Ed25519, keyspec.Ed25519PHSHA512, d512[:], nil, again[:], nil},
		{keyspec.MLDSA44, keyspec.MLDSAShake256, mu, mu, nil, mu},
	} {
		k, err := Parse(c.s, public()[c.s])
		if err != nil {
			t.Fatal(err)
		}
		check := func(m Message, message, want []byte) {
			t.Helper()
			if got, ok := Prepare(c.a, m, k, message, make([]byte, PreparedMax)); ok != (want != nil) || !bytes.Equal(got, want) {
				t.Errorf("%s, %d: %x, %t, want %x", c.a, m, got, ok, want)
			}
		}
		check(RAW, message, c.ofRaw)
		check(DIGEST, c.digest, c.of)
		check(EXTERNALMU, c.digest, c.mu)
		check(EXTERNALMU+1, c.digest, nil)
		for _, m := range []Message{DIGEST, EXTERNALMU} {
			for _, bad := range [][]byte{nil, c.digest[1:], append(c.digest[:len(c.digest):len(c.digest)], 0), d256[:20]} {
				check(m, bad, nil)
			}
		}
		for _, a := range []keyspec.Algorithm{keyspec.NoAlgorithm, keyspec.OAEPSHA256, keyspec.HMACSHA256, keyspec.ECDHAgreement, keyspec.MLKEMEncapsulation, 200} {
			if got, ok := Prepare(a, RAW, k, message, make([]byte, PreparedMax)); ok {
				t.Errorf("%s: %x", a, got)
			}
			if k.Verify(a, RAW, message, make([]byte, 64)) {
				t.Errorf("%s verifies", a)
			}
		}
	}
	if _, ok := Prepare(keyspec.MLDSAShake256, RAW, nil, message, make([]byte, PreparedMax)); ok {
		t.Error("a μ without a key")
	}
	if in, ok := Prepare(keyspec.ECDSASHA256, RAW, nil, message, make([]byte, PreparedMax)); !ok || !bytes.Equal(in, d256[:]) {
		t.Error("no digest without a key")
	}
	if k, err := Parse(keyspec.P384, public()[keyspec.P384]); err != nil {
		t.Fatal(err)
	} else if _, ok := Prepare(keyspec.ECDSASHA256, RAW, k, message, make([]byte, PreparedMax)); ok {
		t.Error("SHA-256 for P-384")
	}
}

// The prefixes are those of the library: a signature of what it hashes has them.
func TestDigestInfo(t *testing.T) {
	for size, h := range map[int]crypto.Hash{32: crypto.SHA256, 48: crypto.SHA384, 64: crypto.SHA512} {
		if h.Size() != size || len(DigestInfo(size)) != 19 || DigestInfo(size)[18] != byte(size) || DigestInfo(size)[1] != byte(17+size) {
			t.Errorf("%d: %x", size, DigestInfo(size))
		}
	}
}

func TestAllocPrepare(t *testing.T) {
	message, digest, buf := make([]byte, 4096), make([]byte, 64), make([]byte, PreparedMax)
	raw := bytes.Repeat([]byte{0x90}, 132)
	der := AppendSignature(nil, keyspec.ECDSASHA384, raw[:96])
	out, half := make([]byte, 0, 256), make([]byte, 96)
	for _, s := range keyspec.All() {
		if public()[s] == nil {
			continue
		}
		k, err := Parse(s, public()[s])
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range s.Algorithms(keyspec.SignVerify) {
			if n := alloctest.Mallocs(20, func() {
				Prepare(a, RAW, k, message, buf)
				Prepare(a, DIGEST, k, digest[:a.Info().Digest], buf)
				AppendSignature(out, a, raw)
				RawSignature(keyspec.P384, der, half)
			}); n != 0 {
				t.Errorf("%s, %s: %d allocations", s, a, n)
			}
		}
	}
}
