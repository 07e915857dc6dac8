package p11

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/hsm/hsmtest"
)

func probe(t *testing.T, uri string) (Report, string) {
	t.Helper()
	r, err := Probe(uri)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if n, err := r.WriteTo(&b); err != nil || n != int64(b.Len()) {
		t.Fatalf("WriteTo: %d, %v", n, err)
	}
	return r, b.String()
}

// offers is "spec algorithm" and "spec mechanism", for everything that worked.
func offers(r Report) []string {
	var all []string
	for _, o := range r.Offers {
		for _, a := range append(slices.Clone(o.Algorithms), o.Mechanisms...) {
			all = append(all, o.KeySpec+" "+a)
		}
		for _, m := range o.Decoded {
			all = append(all, o.KeySpec+" "+m+" decoded")
		}
	}
	return all
}

// TestProbe holds the probe to what is known of the two modules: each lacks something that its mechanism list does not admit.
func TestProbe(t *testing.T) {
	common := []string{"SYMMETRIC_DEFAULT SYMMETRIC_DEFAULT", "RSA_2048 RSAES_OAEP_SHA_256", "ECC_NIST_P256 DeriveECDH", "RSA_2048 RSAES_OAEP_SHA_1", "RSA_4096 RSASSA_PSS_SHA_512",
		"RSA_2048 RSASSA_PKCS1_V1_5_SHA_256", "ECC_NIST_P256 ECDSA_SHA_256", "ECC_NIST_P384 ECDSA_SHA_384", "ECC_NIST_P521 ECDSA_SHA_512",
		"ECC_NIST_P256 ECDH", "HMAC_224 HMAC_SHA_224", "HMAC_512 HMAC_SHA_512"}
	for _, test := range []struct {
		name, uri string
		has, not  []string
	}{
		{"SoftHSM", hsmtest.SoftHSM(t),
			[]string{"ECC_SECG_P256K1 ECDSA_SHA_256", "RSA_2048 DecryptOAEP256 decoded"},
			// It makes Ed25519 keys and does not wrap them.
			[]string{"ECC_NIST_EDWARDS25519 ED25519_SHA_512", "ECC_NIST_EDWARDS25519 ED25519_PH_SHA_512"}},
		{"NSS", hsmtest.NSS(t),
			[]string{"RSA_2048 DecryptOAEP256"},
			[]string{"RSA_2048 DecryptOAEP256 decoded",
				"ECC_SECG_P256K1 ECDSA_SHA_256", "ECC_NIST_EDWARDS25519 ED25519_SHA_512"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, text := probe(t, test.uri)
			got := offers(r)
			for _, want := range append(test.has, common...) {
				if !slices.Contains(got, want) {
					t.Errorf("not offered: %s", want)
				}
			}
			for _, unwanted := range test.not {
				if slices.Contains(got, unwanted) {
					t.Errorf("offered: %s", unwanted)
				}
			}
			if !strings.Contains(text, "audit key  hsm: the token has no key \"keyplane audit\"") {
				t.Error("audit key reported before there is one")
			}
			if r.Roots || !strings.Contains(text, "the token has no keyplane roots") {
				t.Error("roots reported before there are any")
			}
			for _, want := range []string{"CKM_AES_ECB", "no stated limit", "not keys: no such mechanism", r.Token.Serial, "Cryptoki 2.40"} {
				if !strings.Contains(text, want) {
					t.Errorf("report lacks %q", want)
				}
			}
			var back Report
			if encoded, err := json.Marshal(r); err != nil {
				t.Error(err)
			} else if err := json.Unmarshal(encoded, &back); err != nil || !reflect.DeepEqual(back, r) {
				t.Errorf("JSON: %v\n%s", err, encoded)
			}
			if _, err := InitRoots(test.uri); err != nil {
				t.Fatal(err)
			}
			if r, text := probe(t, test.uri); !r.Roots || !strings.Contains(text, "roots      present, never extractable") ||
				!strings.Contains(text, "audit key  present, never extractable") {
				t.Errorf("roots: %v", r.RootsFault)
			}
		})
	}
}
