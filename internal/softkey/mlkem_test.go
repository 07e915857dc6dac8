package softkey

import (
	"bytes"
	"crypto/sha3"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/cloudflare/circl/kem/mlkem/mlkem512"

	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
)

// CCTV's accumulated ML-KEM vectors (github.com/C2SP/CCTV, ML-KEM), of the set that Go's library lacks: a SHAKE128 stream gives d, z, m and a random
// ciphertext; the keys, the ciphertext, the secret and the secret of the random ciphertext go into another. Go tests the other two sets itself.
func TestMLKEM512Accumulated(t *testing.T) {
	in, out := sha3.NewSHAKE128(), sha3.NewSHAKE128()
	seed, m, random := make([]byte, 64), make([]byte, 32), make([]byte, pubkey.CiphertextBytes(keyspec.MLKEM512))
	ek, dk := make([]byte, mlkem512.PublicKeySize), make([]byte, mlkem512.PrivateKeySize)
	c, secret := make([]byte, len(random)), make([]byte, 32)
	for range 10000 {
		for _, b := range [][]byte{seed, m, random} {
			_, _ = in.Read(b)
		}
		public, private := mlkem512.NewKeyFromSeed(seed)
		public.Pack(ek)
		private.Pack(dk)
		public.EncapsulateTo(c, secret, m)
		k, err := Load(keyspec.MLKEM512, seed)
		if err != nil {
			t.Fatal(err)
		}
		if got := do(t, k, DecapsulateMLKEM, c); !bytes.Equal(got, secret) {
			t.Fatalf("seed %x: %x, want %x", seed, got, secret)
		}
		for _, b := range [][]byte{ek, dk, c, secret, do(t, k, DecapsulateMLKEM, random)} {
			_, _ = out.Write(b)
		}
	}
	sum := make([]byte, 32)
	_, _ = out.Read(sum)
	if got := hex.EncodeToString(sum); got != "705dcffc87f4e67e35a09dcaa31772e86f3341bd3ccf1e78a5fef99ae6a35a13" {
		t.Error(got)
	}
}

// The examples of RFC 9935, of the public key only the start and the end: the seed 0, 1, …, 63.
func TestMLKEMExample(t *testing.T) {
	seed := make([]byte, kemSeedBytes)
	for i := range seed {
		seed[i] = byte(i)
	}
	const example = "MFQCAQAwCwYJYIZIAWUDBAQBBEKAQAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8="
	if got := base64.StdEncoding.EncodeToString(append([]byte(kemHeads[keyspec.MLKEM512]), seed...)); got != example {
		t.Errorf("private key %s, want %s", got, example)
	}
	public, _ := mlkem512.NewKeyFromSeed(seed)
	raw := make([]byte, mlkem512.PublicKeySize)
	public.Pack(raw)
	spki, err := pubkey.Marshal(keyspec.MLKEM512, raw)
	if err != nil {
		t.Fatal(err)
	}
	const start, end = "MIIDMjALBglghkgBZQMEBAEDggMhADmVgV5ZfRBDVc8pqlMzyTJRhp1bzb5IcST2Ari2pmwWxHYWSK12XPXYAGtRXpBafwrAdrDGLvoygVPnylcBaZ8TBfHmvG", "KFEZ3IzRLrdAA+NjFN8SPmY8FMHzr0e3guBw7xZoGWhttY7Js"
	if got := base64.StdEncoding.EncodeToString(spki); !strings.HasPrefix(got, start) || !strings.HasSuffix(got, end) {
		t.Errorf("public key %s, want %s…%s", got, start, end)
	}
}
