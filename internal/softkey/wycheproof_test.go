package softkey

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"math/big"
	"slices"
	"testing"

	"filippo.io/mldsa/mldsacrypto"

	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
	"github.com/keyplane/keyplane/internal/wycheproof"
)

// rsaSpecs are the specs of sizes of keys.
var rsaSpecs = map[int]keyspec.Spec{2048: keyspec.RSA2048, 3072: keyspec.RSA3072, 4096: keyspec.RSA4096}

type oaepGroup struct {
	KeySize int              `json:"keySize"`
	SHA     string           `json:"sha"`
	MGFSHA  string           `json:"mgfSha"`
	PKCS8   wycheproof.Bytes `json:"privateKeyPkcs8"`
}

type oaepCase struct {
	wycheproof.Case
	Msg   wycheproof.Bytes `json:"msg"`
	Ct    wycheproof.Bytes `json:"ct"`
	Label wycheproof.Bytes `json:"label"`
}

// Each ciphertext is decrypted by the library and by the raw operation with DecodeOAEP. Decisions: the service has no labels, so a ciphertext with
// one is refused. Of rsa_oaep_misc, groups of other sizes and hashes are no keys and algorithms of the service; of those left, none is acceptable.
func TestWycheproofOAEP(t *testing.T) {
	long(t)
	for _, f := range []struct {
		name         string
		ran, labels  int
		otherGroups  int
		plaintexts   int
		anyParameter bool
	}{
		{"rsa_oaep_2048_sha1_mgf1sha1", 36, 7, 0, 10, false},
		{"rsa_oaep_2048_sha256_mgf1sha256", 37, 8, 0, 10, false},
		{"rsa_oaep_3072_sha256_mgf1sha256", 37, 8, 0, 10, false},
		{"rsa_oaep_4096_sha256_mgf1sha256", 37, 8, 0, 10, false},
		{"rsa_oaep_misc", 18, 0, 122, 18, true},
	} {
		ran, labels, others, plaintexts := 0, 0, 0, 0
		for _, g := range wycheproof.Load[oaepGroup, oaepCase](t, f.name) {
			s, known := rsaSpecs[g.Parameters.KeySize]
			a, op := keyspec.OAEPSHA1, DecryptOAEP1
			if g.Parameters.SHA == "SHA-256" {
				a, op = keyspec.OAEPSHA256, DecryptOAEP256
			}
			if !known || g.Parameters.SHA != g.Parameters.MGFSHA || g.Parameters.SHA != "SHA-1" && g.Parameters.SHA != "SHA-256" {
				if !f.anyParameter {
					t.Fatalf("%s has a group of %+v", f.name, g.Parameters.KeySize)
				}
				others++
				continue
			}
			k, err := Load(s, g.Parameters.PKCS8)
			if err != nil {
				t.Fatalf("%s: %v", f.name, err)
			}
			for _, c := range g.Tests {
				ran++
				want := c.Valid() && len(c.Label) == 0
				if len(c.Label) > 0 {
					labels++
				}
				if want {
					plaintexts++
				}
				out := bytes.Repeat([]byte{0xee}, s.Info().Result)
				n, err := k.Do(op, c.Ct, out)
				if want && (err != nil || !bytes.Equal(out[:n], c.Msg)) || !want && (!errors.Is(err, ErrData) || n != 0 || !zeros(out)) {
					t.Errorf("%s, case %d (%s, %v): %x, %v, want %s", f.name, c.ID, c.Comment, c.Flags, out[:n], err, c.Result)
				}
				em, ok := rawRSA(k.rsa, c.Ct)
				if !ok {
					continue // no block: such a ciphertext a token refuses
				}
				out = bytes.Repeat([]byte{0xee}, s.Info().Result)
				n, ok = pubkey.DecodeOAEP(a, em, out)
				if ok != want || want && !bytes.Equal(out[:n], c.Msg) || !want && n != 0 || !zeros(out[n:]) {
					t.Errorf("%s, case %d (%s, %v): decoded to %x, %t, want %s", f.name, c.ID, c.Comment, c.Flags, out[:n], ok, c.Result)
				}
			}
		}
		if ran != f.ran || labels != f.labels || others != f.otherGroups || plaintexts != f.plaintexts {
			t.Errorf("%s: %d cases, %d with labels, %d other groups, %d plaintexts; want %d, %d, %d, %d", f.name, ran, labels, others, plaintexts,
				f.ran, f.labels, f.otherGroups, f.plaintexts)
		}
	}
}

func zeros(b []byte) bool { return bytes.Count(b, []byte{0}) == len(b) }

// rawRSA is the operation without any padding.
func rawRSA(k *rsa.PrivateKey, c []byte) (em []byte, ok bool) {
	n := new(big.Int).SetBytes(c)
	if len(c) != k.Size() || n.Cmp(k.N) >= 0 {
		return nil, false
	}
	return n.Exp(n, k.D, k.N).FillBytes(make([]byte, k.Size())), true
}

// PKCS #1 signatures are deterministic: ours are the vectors'. Decisions: acceptable ones of hashes that the service lacks are left out; those of
// keys with the exponent 3 are made like the others.
func TestWycheproofPKCS1(t *testing.T) {
	algorithms := map[string]keyspec.Algorithm{"SHA-256": keyspec.PKCS1SHA256, "SHA-384": keyspec.PKCS1SHA384, "SHA-512": keyspec.PKCS1SHA512}
	for _, f := range []struct {
		name           string
		s              keyspec.Spec
		ran, otherHash int
	}{{"rsa_pkcs1_2048_sig_gen", keyspec.RSA2048, 27, 16}, {"rsa_pkcs1_3072_sig_gen", keyspec.RSA3072, 26, 0}, {"rsa_pkcs1_4096_sig_gen", keyspec.RSA4096, 24, 0}} {
		ran, otherHash := 0, 0
		for _, g := range wycheproof.Load[struct {
			SHA    string           `json:"sha"`
			PKCS8  wycheproof.Bytes `json:"privateKeyPkcs8"`
			KeyDER wycheproof.Bytes `json:"keyDer"`
		}, struct {
			wycheproof.Case
			Msg wycheproof.Bytes `json:"msg"`
			Sig wycheproof.Bytes `json:"sig"`
		}](t, f.name) {
			a, known := algorithms[g.Parameters.SHA]
			if !known {
				otherHash += len(g.Tests)
				continue
			}
			k, err := Load(f.s, g.Parameters.PKCS8)
			if err != nil {
				t.Fatalf("%s: %v", f.name, err)
			}
			public, err := pubkey.Parse(f.s, g.Parameters.KeyDER)
			if err != nil {
				t.Fatalf("%s: %v", f.name, err)
			}
			for _, c := range g.Tests {
				ran++
				in, ok := pubkey.Prepare(a, pubkey.RAW, public, c.Msg, make([]byte, pubkey.PreparedMax))
				if !ok {
					t.Fatal("not prepared")
				}
				if got := do(t, k, SignPKCS1, in); !bytes.Equal(got, c.Sig) {
					t.Errorf("%s, case %d: %x, want %x", f.name, c.ID, got, c.Sig)
				}
				if !public.Verify(a, pubkey.RAW, c.Msg, c.Sig) {
					t.Errorf("%s, case %d does not verify", f.name, c.ID)
				}
			}
		}
		if ran != f.ran || otherHash != f.otherHash {
			t.Errorf("%s: %d cases and %d of other hashes, want %d and %d", f.name, ran, otherHash, f.ran, f.otherHash)
		}
	}
}

// Decision: acceptable peers are refused (internal/pubkey's test says which those are).
func TestWycheproofECDH(t *testing.T) {
	long(t)
	for _, f := range []struct {
		name         string
		s            keyspec.Spec
		agreed, none int
	}{{"ecdh_secp256r1", keyspec.P256, 330, 282}, {"ecdh_secp384r1", keyspec.P384, 771, 276}, {"ecdh_secp521r1", keyspec.P521, 632, 284}} {
		agreed, none := 0, 0
		for _, g := range wycheproof.Load[struct{}, struct {
			wycheproof.Case
			Public  wycheproof.Bytes `json:"public"`
			Private wycheproof.Bytes `json:"private"`
			Shared  wycheproof.Bytes `json:"shared"`
		}](t, f.name) {
			for _, c := range g.Tests {
				k, public := ofScalar(t, f.s, c.Private)
				point, err := public.Peer(c.Public)
				if (err == nil) != c.Valid() {
					t.Errorf("%s, case %d (%s, %v): %v, want %s", f.name, c.ID, c.Comment, c.Flags, err, c.Result)
				}
				if err != nil {
					none++
					continue
				}
				agreed++
				if got := do(t, k, DeriveECDH, point); !bytes.Equal(got, c.Shared) {
					t.Errorf("%s, case %d (%s, %v): %x, want %x", f.name, c.ID, c.Comment, c.Flags, got, c.Shared)
				}
			}
		}
		if agreed != f.agreed || none != f.none {
			t.Errorf("%s: %d agreed, %d refused, want %d and %d", f.name, agreed, none, f.agreed, f.none)
		}
	}
}

// ofScalar is the key of a scalar in any length.
func ofScalar(t *testing.T, s keyspec.Spec, scalar []byte) (*Key, *pubkey.Key) {
	t.Helper()
	e, err := ecdsa.ParseRawPrivateKey(curve(s), new(big.Int).SetBytes(scalar).FillBytes(make([]byte, (s.Info().Bits+7)/8)))
	if err != nil {
		t.Fatal(err)
	}
	private, public, err := marshal(s, e)
	if err != nil {
		t.Fatal(err)
	}
	k, err := Load(s, private)
	if err != nil {
		t.Fatal(err)
	}
	p, err := pubkey.Parse(s, public)
	if err != nil {
		t.Fatal(err)
	}
	return k, p
}

// HMAC: keys of the specs' lengths with whole tags are the service's; the files have a second group with shorter tags, which has to be the start.
func TestWycheproofHMAC(t *testing.T) {
	for _, f := range []struct {
		name                        string
		s                           keyspec.Spec
		ran, otherKey, shorter, bad int
	}{
		{"hmac_sha224", keyspec.HMAC224, 160, 12, 79, 106},
		{"hmac_sha256", keyspec.HMAC256, 162, 12, 81, 108},
		{"hmac_sha384", keyspec.HMAC384, 162, 12, 81, 108},
		{"hmac_sha512", keyspec.HMAC512, 162, 12, 81, 108},
	} {
		ran, otherKey, shorter, bad := 0, 0, 0, 0
		for _, g := range wycheproof.Load[struct {
			TagSize int `json:"tagSize"`
		}, struct {
			wycheproof.Case
			Key wycheproof.Bytes `json:"key"`
			Msg wycheproof.Bytes `json:"msg"`
			Tag wycheproof.Bytes `json:"tag"`
		}](t, f.name) {
			for _, c := range g.Tests {
				k, err := Load(f.s, c.Key)
				if len(c.Key) != f.s.Info().Bits/8 {
					otherKey++
					if !errors.Is(err, ErrKey) {
						t.Errorf("%s, case %d: a key of %d bytes: %v", f.name, c.ID, len(c.Key), err)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				ran++
				got := do(t, k, MAC, c.Msg)
				if g.Parameters.TagSize/8 < len(got) {
					shorter++
				}
				if !c.Valid() {
					bad++
				}
				if same := bytes.Equal(got[:g.Parameters.TagSize/8], c.Tag); same != c.Valid() {
					t.Errorf("%s, case %d (%s, %v): %x, want %s %x", f.name, c.ID, c.Comment, c.Flags, got, c.Result, c.Tag)
				}
				k.Wipe()
			}
		}
		if ran != f.ran || otherKey != f.otherKey || shorter != f.shorter || bad != f.bad {
			t.Errorf("%s: %d cases, %d of other keys, %d of shorter tags, %d bad; want %d, %d, %d, %d", f.name, ran, otherKey, shorter, bad, f.ran, f.otherKey, f.shorter, f.bad)
		}
	}
}

// ML-DSA from seeds. All vectors but one per file are deterministic, which the package never is: the key that Load made signs them without
// randomness, and the operation itself has to give other signatures that verify.
func TestWycheproofMLDSASign(t *testing.T) {
	long(t)
	for _, f := range []struct {
		name                                      string
		s                                         keyspec.Spec
		ran, ofMuAlone, randomized, badKeys, none int
	}{
		{"mldsa_44_sign_seed", keyspec.MLDSA44, 82, 8, 1, 3, 1},
		{"mldsa_65_sign_seed", keyspec.MLDSA65, 101, 17, 1, 3, 1},
		{"mldsa_87_sign_seed", keyspec.MLDSA87, 92, 17, 1, 3, 1},
	} {
		ran, ofMuAlone, randomized, badKeys, none := 0, 0, 0, 0, 0
		for _, g := range wycheproof.Load[struct {
			Seed   wycheproof.Bytes `json:"privateSeed"`
			Public wycheproof.Bytes `json:"publicKey"`
		}, struct {
			wycheproof.Case
			Msg *wycheproof.Bytes `json:"msg"`
			Mu  wycheproof.Bytes  `json:"mu"`
			Ctx *wycheproof.Bytes `json:"ctx"`
			Rnd *wycheproof.Bytes `json:"rnd"`
			Sig wycheproof.Bytes  `json:"sig"`
		}](t, f.name) {
			k, err := Load(f.s, g.Parameters.Seed)
			if err != nil {
				for _, c := range g.Tests {
					badKeys++
					if c.Valid() || !slices.Contains(c.Flags, "IncorrectPrivateKeyLength") {
						t.Errorf("%s, case %d (%s, %v): Load: %v", f.name, c.ID, c.Comment, c.Flags, err)
					}
				}
				continue
			}
			spki, err := pubkey.Marshal(f.s, g.Parameters.Public)
			if err != nil || !bytes.Equal(k.mldsa.PublicKey().Bytes(), g.Parameters.Public) {
				t.Fatalf("%s: another public key than the vectors' (%v)", f.name, err)
			}
			public, err := pubkey.Parse(f.s, spki)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range g.Tests {
				if !c.Valid() { // a context that is too long has no μ
					none++
					if !slices.Contains(c.Flags, "InvalidContext") {
						t.Errorf("%s, case %d (%s, %v) is invalid", f.name, c.ID, c.Comment, c.Flags)
					}
					continue
				}
				ran++
				if c.Msg == nil {
					ofMuAlone++
				} else if mu, ok := pubkey.Prepare(keyspec.MLDSAShake256, pubkey.RAW, public, *c.Msg, make([]byte, pubkey.PreparedMax)); c.Ctx == nil && (!ok || !bytes.Equal(mu, c.Mu)) {
					t.Errorf("%s, case %d: μ is %x, want %x", f.name, c.ID, mu, c.Mu)
				}
				if !public.Verify(keyspec.MLDSAShake256, pubkey.EXTERNALMU, c.Mu, c.Sig) {
					t.Errorf("%s, case %d (%s, %v) does not verify", f.name, c.ID, c.Comment, c.Flags)
				}
				if c.Rnd != nil {
					randomized++ // nothing takes the randomness from outside: verified only
				} else if got, err := k.mldsa.SignDeterministic(c.Mu, mldsacrypto.MLDSAMu); err != nil || !bytes.Equal(got, c.Sig) {
					t.Errorf("%s, case %d (%s, %v): another signature, %v", f.name, c.ID, c.Comment, c.Flags, err)
				}
				hedged := do(t, k, SignMLDSA, c.Mu)
				if bytes.Equal(hedged, c.Sig) || !public.Verify(keyspec.MLDSAShake256, pubkey.EXTERNALMU, c.Mu, hedged) {
					t.Errorf("%s, case %d: a signature that is not hedged or does not verify", f.name, c.ID)
				}
			}
		}
		if ran != f.ran || ofMuAlone != f.ofMuAlone || randomized != f.randomized || badKeys != f.badKeys || none != f.none {
			t.Errorf("%s: %d cases, %d of μ alone, %d randomized, %d keys that are none, %d contexts that are none; want %d, %d, %d, %d, %d", f.name,
				ran, ofMuAlone, randomized, badKeys, none, f.ran, f.ofMuAlone, f.randomized, f.badKeys, f.none)
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
