package p11

import (
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
	"github.com/miekg/pkcs11"
)

// hexBytes is hexadecimal in JSON.
type hexBytes []byte

func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

// group and vector have what the three kinds of files have.
type group struct {
	KeySize    int      `json:"keySize"`
	SHA        string   `json:"sha"`
	MGFSHA     string   `json:"mgfSha"`
	PrivateKey hexBytes `json:"privateKeyPkcs8"`
	Tests      []vector `json:"tests"`
}

type vector struct {
	ID         int      `json:"tcId"`
	Message    hexBytes `json:"msg"`
	Ciphertext hexBytes `json:"ct"`
	Label      hexBytes `json:"label"`
	Signature  hexBytes `json:"sig"`
	Public     hexBytes `json:"public"`
	Private    hexBytes `json:"private"`
	Shared     hexBytes `json:"shared"`
	Result     string   `json:"result"`
}

func vectors(t *testing.T, name string) []group {
	t.Helper()
	f, err := os.Open("testdata/" + name + "_test.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []group `json:"testGroups"`
	}
	if err := json.NewDecoder(z).Decode(&file); err != nil {
		t.Fatal(err)
	}
	return file.Groups
}

// vectorRig uses keys whose private half is known: brought in on a session of its own, used through another's Use.
type vectorRig struct {
	testing.TB
	token   *Token
	session pkcs11.SessionHandle
	use     hsm.KeySession
	nss     bool
}

func newVectorRig(t *testing.T, uri string, nss bool) *vectorRig {
	token := opener(t, uri)(t).(*Token)
	t.Cleanup(func() { token.Close() })
	session, err := token.mod.ctx.OpenSession(token.slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	use, err := token.OpenSession()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { use.Close() })
	return &vectorRig{t, token, session, use.(hsm.KeySession), nss}
}

// bring makes a session object of a private key: a PKCS #8 RSA key, or the number of an EC one. It is gone when the test is over.
func (r *vectorRig) bring(s keyspec.Spec, private []byte) hsm.LoadedKey {
	r.Helper()
	if r.token.Keys(s) == 0 {
		r.Fatalf("%v is not offered", s)
	}
	template := keyTemplate(s, false)
	if s.Info().Family == keyspec.RSA {
		key, err := x509.ParsePKCS8PrivateKey(private)
		if err != nil {
			r.Fatal(err)
		}
		k := key.(*rsa.PrivateKey)
		template = append(template,
			pkcs11.NewAttribute(pkcs11.CKA_MODULUS, k.N.Bytes()),
			pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{byte(k.E >> 16), byte(k.E >> 8), byte(k.E)}),
			pkcs11.NewAttribute(pkcs11.CKA_PRIVATE_EXPONENT, k.D.Bytes()),
			pkcs11.NewAttribute(pkcs11.CKA_PRIME_1, k.Primes[0].Bytes()), pkcs11.NewAttribute(pkcs11.CKA_PRIME_2, k.Primes[1].Bytes()),
			pkcs11.NewAttribute(pkcs11.CKA_EXPONENT_1, k.Precomputed.Dp.Bytes()), pkcs11.NewAttribute(pkcs11.CKA_EXPONENT_2, k.Precomputed.Dq.Bytes()),
			pkcs11.NewAttribute(pkcs11.CKA_COEFFICIENT, k.Precomputed.Qinv.Bytes()))
	} else {
		size := (s.Info().Bits + 7) / 8
		value := bytes.TrimLeft(private, "\x00")
		value = append(make([]byte, size-len(value)), value...)
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, curves[s][0]), pkcs11.NewAttribute(pkcs11.CKA_VALUE, value))
		if r.nss {
			template = append(template, dbName(s)...)
		}
	}
	object, err := r.token.mod.ctx.CreateObject(r.session, template)
	if err != nil {
		r.Fatalf("C_CreateObject: %v", err)
	}
	return hsm.LoadedKey{Handle: hsm.Handle(object), Generation: r.token.Generation()}
}

func (r *vectorRig) drop(k hsm.LoadedKey) {
	if err := r.token.mod.ctx.DestroyObject(r.session, pkcs11.ObjectHandle(k.Handle)); err != nil {
		r.Errorf("C_DestroyObject: %v", err)
	}
}

// alone is the module's own way of doing an operation, without what our layer does about it, on a session of its own.
func (r *vectorRig) alone(s keyspec.Spec, m hsm.Mechanism, k hsm.LoadedKey, in []byte) ([]byte, error) {
	r.Helper()
	session, err := r.token.mod.ctx.OpenSession(r.token.slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		r.Fatal(err)
	}
	defer r.token.mod.ctx.CloseSession(session)
	o := operationOf(s, m, false)
	out := make([]byte, s.Info().Result)
	n, err := r.token.mod.fns.use(uint(session), uint(k.Handle), &o, in, out)
	return out[:n], err
}

// score counts cases: what our layer did with them, which must be right, and in how many the module alone is wrong.
type score struct {
	Ran    int // through Session.Use, and right
	Closed int // refused before the module saw them: the peer is no key
	Skip   int // what the API does not have: labels, other hashes
	Off    int // of those closed: points off the curve, which the module alone was given
	Wrong  int // the module alone refuses what is valid, or accepts what is not
}

func eachModule(t *testing.T, f func(t *testing.T, r *vectorRig) map[string]score, want map[string]map[string]score) {
	t.Parallel()
	for name, uri := range map[string]func(testing.TB) string{"SoftHSM": hsmtest.SoftHSM, "NSS": hsmtest.NSS} {
		t.Run(name, func(t *testing.T) {
			beside(t, map[string]*sync.Mutex{"SoftHSM": &softHSMTurn, "NSS": &nssTurn}[name])
			got := f(t, newVectorRig(t, uri(t), name == "NSS"))
			for file, w := range want[name] {
				if got[file] != w {
					t.Errorf("%s: %+v, want %+v (the table is in docs/hsm-modules.md too)", file, got[file], w)
				}
			}
			if len(got) != len(want[name]) {
				t.Errorf("%d files, want %d", len(got), len(want[name]))
			}
		})
	}
}

var rsaSpecs = map[int]keyspec.Spec{2048: keyspec.RSA2048, 3072: keyspec.RSA3072, 4096: keyspec.RSA4096}

// What the modules do with the vectors of Wycheproof, by file. docs/hsm-modules.md says what it means.
var (
	wycheproofOAEP = map[string]map[string]score{
		// SoftHSM has OAEP with SHA-1 only: the ten valid ciphertexts of each other file are wrong, and opened by a raw decryption and our decoding.
		"SoftHSM": {
			"rsa_oaep_2048_sha1_mgf1sha1": {Ran: 36}, "rsa_oaep_2048_sha256_mgf1sha256": {Ran: 37, Wrong: 10},
			"rsa_oaep_3072_sha256_mgf1sha256": {Ran: 37, Wrong: 10}, "rsa_oaep_4096_sha256_mgf1sha256": {Ran: 37, Wrong: 10},
			"rsa_oaep_misc": {Ran: 18, Skip: 377, Wrong: 9},
		},
		"NSS": {
			"rsa_oaep_2048_sha1_mgf1sha1": {Ran: 36}, "rsa_oaep_2048_sha256_mgf1sha256": {Ran: 37}, "rsa_oaep_3072_sha256_mgf1sha256": {Ran: 37},
			"rsa_oaep_4096_sha256_mgf1sha256": {Ran: 37}, "rsa_oaep_misc": {Ran: 18, Skip: 377},
		},
	}
	bothSign       = map[string]score{"rsa_pkcs1_2048_sig_gen": {Ran: 27, Skip: 16}, "rsa_pkcs1_3072_sig_gen": {Ran: 26}, "rsa_pkcs1_4096_sig_gen": {Ran: 24}}
	wycheproofSign = map[string]map[string]score{"SoftHSM": bothSign, "NSS": bothSign}
	bothECDH       = map[string]score{
		"ecdh_secp256r1": {Ran: 330, Closed: 282, Off: 25}, "ecdh_secp384r1": {Ran: 771, Closed: 276, Off: 21}, "ecdh_secp521r1": {Ran: 632, Closed: 284, Off: 19},
	}
	wycheproofECDH = map[string]map[string]score{"SoftHSM": bothECDH, "NSS": bothECDH}
)

func TestWycheproofOAEP(t *testing.T) {
	files := []string{"rsa_oaep_2048_sha1_mgf1sha1", "rsa_oaep_2048_sha256_mgf1sha256", "rsa_oaep_3072_sha256_mgf1sha256",
		"rsa_oaep_4096_sha256_mgf1sha256", "rsa_oaep_misc"}
	eachModule(t, func(t *testing.T, r *vectorRig) map[string]score {
		all := map[string]score{}
		for _, file := range files {
			var n score
			for _, g := range vectors(t, file) {
				s, m := rsaSpecs[g.KeySize], map[string]hsm.Mechanism{"SHA-1": hsm.DecryptOAEP1, "SHA-256": hsm.DecryptOAEP256}[g.SHA]
				if s == keyspec.None || m == hsm.NoMechanism || g.SHA != g.MGFSHA {
					n.Skip += len(g.Tests)
					continue
				}
				k := r.bring(s, g.PrivateKey)
				for _, v := range g.Tests {
					r.oaep(t, file, s, m, k, v, &n)
				}
				r.drop(k)
			}
			all[file] = n
		}
		return all
	}, wycheproofOAEP)
}

// oaep is one case. One with a label is a ciphertext that does not open without it.
func (r *vectorRig) oaep(t *testing.T, file string, s keyspec.Spec, m hsm.Mechanism, k hsm.LoadedKey, v vector, n *score) {
	opens := v.Result == "valid" && len(v.Label) == 0
	if v.Result == "acceptable" {
		t.Errorf("%s %d: an acceptable case nobody has decided about", file, v.ID)
	}
	out := make([]byte, s.Info().Result)
	length, err := r.use.Use(k, s, m, v.Ciphertext, out)
	switch {
	case opens && (err != nil || !bytes.Equal(out[:length], v.Message)):
		t.Errorf("%s %d: %x, %v", file, v.ID, out[:length], err)
	case !opens && (err == nil || hsm.Final(err) != hsm.DataError):
		t.Errorf("%s %d: was opened or is no data error: %v", file, v.ID, err)
	}
	n.Ran++
	own, err := r.alone(s, m, k, v.Ciphertext)
	if opens != (err == nil) || opens && !bytes.Equal(own, v.Message) {
		n.Wrong++
	}
}

func TestWycheproofPKCS1Sign(t *testing.T) {
	eachModule(t, func(t *testing.T, r *vectorRig) map[string]score {
		all := map[string]score{}
		for _, file := range []string{"rsa_pkcs1_2048_sig_gen", "rsa_pkcs1_3072_sig_gen", "rsa_pkcs1_4096_sig_gen"} {
			var n score
			for _, g := range vectors(t, file) {
				s, h := rsaSpecs[g.KeySize], map[string]crypto.Hash{"SHA-256": crypto.SHA256, "SHA-384": crypto.SHA384, "SHA-512": crypto.SHA512}[g.SHA]
				if h == 0 {
					n.Skip += len(g.Tests)
					continue
				}
				k := r.bring(s, g.PrivateKey)
				for _, v := range g.Tests {
					d := h.New()
					d.Write(v.Message)
					in, out := d.Sum(pubkey.DigestInfo(h.Size())), make([]byte, s.Info().Result)
					length, err := r.use.Use(k, s, hsm.SignPKCS1, in, out)
					if err != nil || !bytes.Equal(out[:length], v.Signature) {
						t.Errorf("%s %d: %x, %v", file, v.ID, out[:length], err)
					}
					n.Ran++
					if own, err := r.alone(s, hsm.SignPKCS1, k, in); err != nil || !bytes.Equal(own, v.Signature) {
						n.Wrong++
					}
				}
				r.drop(k)
			}
			all[file] = n
		}
		return all
	}, wycheproofSign)
}

func TestWycheproofECDH(t *testing.T) {
	eachModule(t, func(t *testing.T, r *vectorRig) map[string]score {
		all := map[string]score{}
		for file, s := range map[string]keyspec.Spec{"ecdh_secp256r1": keyspec.P256, "ecdh_secp384r1": keyspec.P384, "ecdh_secp521r1": keyspec.P521} {
			var n score
			var private []byte
			var k hsm.LoadedKey
			for _, g := range vectors(t, file) {
				for _, v := range g.Tests {
					if !bytes.Equal(v.Private, private) || private == nil {
						if private != nil {
							r.drop(k)
						}
						private, k = v.Private, r.bring(s, v.Private)
					}
					r.ecdh(t, file, s, k, v, &n)
				}
			}
			r.drop(k)
			all[file] = n
		}
		return all
	}, wycheproofECDH)
}

// ecdh is one case. The peer's key comes through pubkey.Parse, as the API's does; what that refuses, the module is given all the same, if there is a
// point of the right length at the end of it.
func (r *vectorRig) ecdh(t *testing.T, file string, s keyspec.Spec, k hsm.LoadedKey, v vector, n *score) {
	peer, err := pubkey.Parse(s, v.Public)
	if err != nil {
		if v.Result == "valid" {
			t.Errorf("%s %d: a valid key was refused", file, v.ID)
		}
		n.Closed++
		size := s.Info().Public
		if v.Result == "invalid" && len(v.Public) > size && v.Public[len(v.Public)-size] == 4 && pointOff(s, v.Public[len(v.Public)-size:]) {
			n.Off++
			if _, err := r.alone(s, hsm.DeriveECDH, k, v.Public[len(v.Public)-size:]); err == nil {
				n.Wrong++
			}
		}
		return
	}
	if v.Result == "invalid" {
		t.Errorf("%s %d: an invalid key was taken", file, v.ID)
	}
	out := make([]byte, s.Info().Result)
	length, err := r.use.Use(k, s, hsm.DeriveECDH, peer.Raw(), out)
	if err != nil || !bytes.Equal(out[:length], v.Shared) {
		t.Errorf("%s %d: %x, %v, want %x", file, v.ID, out[:length], err, v.Shared)
	}
	n.Ran++
	if own, err := r.alone(s, hsm.DeriveECDH, k, peer.Raw()); err != nil || !bytes.Equal(own, v.Shared) {
		n.Wrong++
	}
}

// pointOff says whether a point is not on the curve.
func pointOff(s keyspec.Spec, point []byte) bool {
	_, err := pubkey.Marshal(s, point)
	return errors.Is(err, pubkey.ErrKey)
}
