package pubkey

import (
	"crypto/sha3"
	"slices"
	"testing"

	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/wycheproof"
)

// verifyGroup has what the files of signatures have in common.
type verifyGroup struct {
	KeyDER  wycheproof.Bytes `json:"publicKeyDer"`
	KeySize int              `json:"keySize"`
	SHA     string           `json:"sha"`
	MGFSHA  string           `json:"mgfSha"`
	Salt    int              `json:"sLen"`
}

type verifyCase struct {
	wycheproof.Case
	Msg wycheproof.Bytes  `json:"msg"`
	Ctx *wycheproof.Bytes `json:"ctx"`
	Sig wycheproof.Bytes  `json:"sig"`
}

// verifyFile runs the cases of a file and gives their number. encode turns a signature of the file into one of the API.
func verifyFile(t *testing.T, name string, s keyspec.Spec, a keyspec.Algorithm, use func(verifyGroup) bool, encode func([]byte) []byte) (ran int) {
	t.Helper()
	for _, g := range wycheproof.Load[verifyGroup, verifyCase](t, name) {
		if !use(g.Parameters) {
			continue
		}
		k, err := Parse(s, g.Parameters.KeyDER)
		if err != nil {
			t.Errorf("%s: %x: %v", name, g.Parameters.KeyDER, err)
			continue
		}
		for _, c := range g.Tests {
			ran++
			// Decision: acceptable is refused. There is one such case in each rsa_signature file, a DigestInfo without its NULL.
			if got := k.Verify(a, RAW, c.Msg, encode(c.Sig)); got != c.Valid() {
				t.Errorf("%s, case %d (%s, %v): %t, want %s", name, c.ID, c.Comment, c.Flags, got, c.Result)
			}
			if a == keyspec.Ed25519SHA512 {
				continue
			}
			digest := make([]byte, 0, 64)
			if got := k.Verify(a, DIGEST, appendHash(digest, a.Info().Digest, c.Msg), encode(c.Sig)); got != c.Valid() {
				t.Errorf("%s, case %d (%s, %v): %t of the digest, want %s", name, c.ID, c.Comment, c.Flags, got, c.Result)
			}
		}
	}
	return ran
}

func same(b []byte) []byte { return b }

func TestWycheproofSignatures(t *testing.T) {
	long(t)
	all := func(verifyGroup) bool { return true }
	for _, f := range []struct {
		name string
		s    keyspec.Spec
		a    keyspec.Algorithm
		want int
	}{
		{"ecdsa_secp256r1_sha256", keyspec.P256, keyspec.ECDSASHA256, 484},
		{"ecdsa_secp384r1_sha384", keyspec.P384, keyspec.ECDSASHA384, 504},
		{"ecdsa_secp521r1_sha512", keyspec.P521, keyspec.ECDSASHA512, 542},
		{"ecdsa_secp256k1_sha256", keyspec.Secp256k1, keyspec.ECDSASHA256, 476},
		{"ed25519", keyspec.Ed25519, keyspec.Ed25519SHA512, 151},
		{"rsa_signature_2048_sha256", keyspec.RSA2048, keyspec.PKCS1SHA256, 259},
		{"rsa_signature_2048_sha384", keyspec.RSA2048, keyspec.PKCS1SHA384, 258},
		{"rsa_signature_2048_sha512", keyspec.RSA2048, keyspec.PKCS1SHA512, 259},
		{"rsa_signature_3072_sha256", keyspec.RSA3072, keyspec.PKCS1SHA256, 259},
		{"rsa_signature_3072_sha384", keyspec.RSA3072, keyspec.PKCS1SHA384, 259},
		{"rsa_signature_3072_sha512", keyspec.RSA3072, keyspec.PKCS1SHA512, 260},
		{"rsa_signature_4096_sha256", keyspec.RSA4096, keyspec.PKCS1SHA256, 258},
		{"rsa_signature_4096_sha384", keyspec.RSA4096, keyspec.PKCS1SHA384, 259},
		{"rsa_signature_4096_sha512", keyspec.RSA4096, keyspec.PKCS1SHA512, 259},
		{"rsa_pss_2048_sha256_mgf1_32", keyspec.RSA2048, keyspec.PSSSHA256, 108},
		{"rsa_pss_2048_sha384_mgf1_48", keyspec.RSA2048, keyspec.PSSSHA384, 141},
		{"rsa_pss_3072_sha256_mgf1_32", keyspec.RSA3072, keyspec.PSSSHA256, 108},
		{"rsa_pss_4096_sha256_mgf1_32", keyspec.RSA4096, keyspec.PSSSHA256, 108},
		{"rsa_pss_4096_sha384_mgf1_48", keyspec.RSA4096, keyspec.PSSSHA384, 141},
		{"rsa_pss_4096_sha512_mgf1_64", keyspec.RSA4096, keyspec.PSSSHA512, 179},
	} {
		if ran := verifyFile(t, f.name, f.s, f.a, all, same); ran != f.want {
			t.Errorf("%s: %d cases, want %d", f.name, ran, f.want)
		}
	}
}

// Signatures r || s: what is not of the curve's length is no result of a token; what is becomes DER, which is verified.
func TestWycheproofRaw(t *testing.T) {
	long(t)
	for _, f := range []struct {
		name string
		s    keyspec.Spec
		a    keyspec.Algorithm
		want int
	}{
		{"ecdsa_secp256r1_sha256_p1363", keyspec.P256, keyspec.ECDSASHA256, 262},
		{"ecdsa_secp384r1_sha384_p1363", keyspec.P384, keyspec.ECDSASHA384, 280},
		{"ecdsa_secp521r1_sha512_p1363", keyspec.P521, keyspec.ECDSASHA512, 318},
		{"ecdsa_secp256k1_sha256_p1363", keyspec.Secp256k1, keyspec.ECDSASHA256, 252},
	} {
		encode := func(raw []byte) []byte {
			if len(raw) != f.s.Info().Result {
				return nil
			}
			der := AppendSignature(nil, f.a, raw)
			if back, ok := RawSignature(f.s, der, make([]byte, f.s.Info().Result)); ok && !slices.Equal(back, raw) {
				t.Errorf("%s: %x comes back as %x", f.name, raw, back)
			}
			return der
		}
		if ran := verifyFile(t, f.name, f.s, f.a, func(verifyGroup) bool { return true }, encode); ran != f.want {
			t.Errorf("%s: %d cases, want %d", f.name, ran, f.want)
		}
	}
}

// rsa_pss_misc has valid signatures with every pair of hashes and several lengths of salt, of RSA_2048. Only those of the three hashes, with the
// same for MGF1 and a salt as long, are signatures of the service; every other is refused by all three algorithms.
func TestWycheproofPSSOfOthers(t *testing.T) {
	algorithms := map[string]keyspec.Algorithm{"SHA-256": keyspec.PSSSHA256, "SHA-384": keyspec.PSSSHA384, "SHA-512": keyspec.PSSSHA512}
	ran, taken := 0, 0
	for _, g := range wycheproof.Load[verifyGroup, verifyCase](t, "rsa_pss_misc") {
		p := g.Parameters
		k, err := Parse(keyspec.RSA2048, p.KeyDER)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range g.Tests {
			for hash, a := range algorithms {
				ran++
				want := p.SHA == hash && p.MGFSHA == hash && p.Salt == a.Info().Digest
				if got := k.Verify(a, RAW, c.Msg, c.Sig); got != want {
					t.Errorf("%s with MGF1 of %s and %d bytes of salt: %s gives %t", p.SHA, p.MGFSHA, p.Salt, a, got)
				}
				if want {
					taken++
				}
			}
		}
	}
	if ran != 450 || taken != 3 {
		t.Errorf("%d cases and %d taken, want 450 and 3", ran, taken)
	}
}

// ML-DSA: every case without a context as a message and as a μ, every one with a context as a μ.
func TestWycheproofMLDSA(t *testing.T) {
	for _, f := range []struct {
		name                     string
		s                        keyspec.Spec
		ran, badKeys, noSuchKind int
	}{
		{"mldsa_44_verify", keyspec.MLDSA44, 171, 4, 5},
		{"mldsa_65_verify", keyspec.MLDSA65, 201, 4, 5},
		{"mldsa_87_verify", keyspec.MLDSA87, 232, 4, 5},
	} {
		ran, badKeys, noSuchKind := 0, 0, 0
		for _, g := range wycheproof.Load[struct {
			Key wycheproof.Bytes `json:"publicKey"`
			DER wycheproof.Bytes `json:"publicKeyDer"`
		}, verifyCase](t, f.name) {
			spki, err := Marshal(f.s, g.Parameters.Key)
			if err == nil && len(g.Parameters.DER) > 0 && !slices.Equal(spki, g.Parameters.DER) {
				t.Errorf("%s: the key encodes to %x, want %x", f.name, spki[:30], g.Parameters.DER[:30])
			}
			if err != nil {
				for _, c := range g.Tests {
					badKeys++
					if c.Valid() || !slices.Contains(c.Flags, "IncorrectPublicKeyLength") {
						t.Errorf("%s, case %d (%s, %v): the key is refused", f.name, c.ID, c.Comment, c.Flags)
					}
				}
				continue
			}
			k, err := Parse(f.s, spki)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range g.Tests {
				var context []byte
				if c.Ctx != nil {
					context = *c.Ctx
				}
				if len(context) > 255 { // there is no μ of it
					noSuchKind++
					if c.Valid() {
						t.Errorf("%s, case %d: a context of %d bytes is valid", f.name, c.ID, len(context))
					}
					continue
				}
				ran++
				if got := k.Verify(keyspec.MLDSAShake256, EXTERNALMU, muOf(k, context, c.Msg), c.Sig); got != c.Valid() {
					t.Errorf("%s, case %d (%s, %v): %t of the μ, want %s", f.name, c.ID, c.Comment, c.Flags, got, c.Result)
				}
				if got, want := k.Verify(keyspec.MLDSAShake256, RAW, c.Msg, c.Sig), c.Valid() && len(context) == 0; got != want {
					t.Errorf("%s, case %d (%s, %v): %t, want %t", f.name, c.ID, c.Comment, c.Flags, got, want)
				}
			}
		}
		if ran != f.ran || badKeys != f.badKeys || noSuchKind != f.noSuchKind {
			t.Errorf("%s: %d cases, %d of keys that are none, %d of contexts that are none; want %d, %d, %d", f.name, ran, badKeys, noSuchKind, f.ran, f.badKeys, f.noSuchKind)
		}
	}
}

// muOf is FIPS 204's μ of a message with a context, written without the package's.
func muOf(k *Key, context, message []byte) []byte {
	tr := sha3.SumSHAKE256(k.Raw(), 64)
	return sha3.SumSHAKE256(slices.Concat(tr, []byte{0, byte(len(context))}, context, message), 64)
}

// CCTV's edge cases of Ed25519. Decisions: a key of small order or in an encoding that is not canonical is none (Parse). With the others the check is
// the one without the cofactor and compares the encoding of R: a residue of small order is refused, and so is an R that is not canonical.
func TestEdwardsEdgeCases(t *testing.T) {
	ran, noKey, taken := 0, 0, 0
	for _, c := range wycheproof.LoadEdwards(t) {
		ran++
		has := func(flag string) bool { return slices.Contains(c.Flags, flag) }
		spki, err := Marshal(keyspec.Ed25519, c.Key)
		if refuse := has("low_order_A") || has("non_canonical_A"); refuse != (err != nil) {
			t.Errorf("case %d (%v): Marshal: %v", c.Number, c.Flags, err)
			continue
		}
		if err != nil {
			noKey++
			continue
		}
		k, err := Parse(keyspec.Ed25519, spki)
		if err != nil {
			t.Fatal(err)
		}
		want := !has("low_order_residue") && !has("non_canonical_R")
		if got := k.Verify(keyspec.Ed25519SHA512, RAW, []byte(c.Msg), c.Sig); got != want {
			t.Errorf("case %d (%v): %t", c.Number, c.Flags, got)
		}
		if want {
			taken++
		}
	}
	if ran != 914 || noKey != 526 || taken != 86 {
		t.Errorf("%d cases, %d of keys that are none, %d taken; want 914, 526, 86", ran, noKey, taken)
	}
}

// ECDH public keys. Decision: acceptable is refused, all of it being compressed points, curves written out, and encodings that are not DER.
func TestWycheproofPeers(t *testing.T) {
	type peerCase struct {
		wycheproof.Case
		Public wycheproof.Bytes `json:"public"`
	}
	for _, f := range []struct {
		name string
		s    keyspec.Spec
		want int
	}{{"ecdh_secp256r1", keyspec.P256, 612}, {"ecdh_secp384r1", keyspec.P384, 1047}, {"ecdh_secp521r1", keyspec.P521, 916}} {
		ran := 0
		for _, g := range wycheproof.Load[struct{}, peerCase](t, f.name) {
			for _, c := range g.Tests {
				ran++
				if _, err := Parse(f.s, c.Public); (err == nil) != c.Valid() {
					t.Errorf("%s, case %d (%s, %v): %v, want %s", f.name, c.ID, c.Comment, c.Flags, err, c.Result)
				}
			}
		}
		if ran != f.want {
			t.Errorf("%s: %d cases, want %d", f.name, ran, f.want)
		}
	}
}

// long skips a test in short mode, which is for the race detector: vectors have no races, and take minutes with it.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("vectors are for runs that are not short")
	}
}
