package p11

import (
	"errors"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/miekg/pkcs11"
)

// The CA key is made beside the roots and the audit key, once, and is held to what they are held to.
func TestInitCA(t *testing.T) {
	for name, fresh := range map[string]func(testing.TB) string{"SoftHSM": hsmtest.SoftHSM, "NSS": hsmtest.NSS} {
		t.Run(name, func(t *testing.T) {
			uri := fresh(t)
			before, err := InitRoots(uri)
			if err != nil {
				t.Fatal(err)
			}
			token := mustOpen(t, uri)
			if _, err := hsm.OpenCAKey([]hsm.Token{token}, nil, time.Minute); !errors.Is(err, hsm.ErrNoCAKey) {
				t.Errorf("before: %v", err)
			}
			if err := token.Close(); err != nil {
				t.Fatal(err)
			}
			first, err := InitCA(uri)
			if err != nil || !first.Made {
				t.Fatalf("%+v, %v", first, err)
			}
			again, err := InitCA(uri)
			if err != nil || again.Made || !again.Public.Equal(first.Public) {
				t.Fatalf("%+v, %v", again, err)
			}
			if r, err := InitRoots(uri); err != nil || len(r.Made) != 0 || r.Root != before.Root {
				t.Errorf("hsm init after it: %+v, %v", r, err)
			}
			token = mustOpen(t, uri)
			key, err := hsm.OpenCAKey([]hsm.Token{token}, first.Public, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			defer key.Close()
			if _, err := key.Sign(make32(7)); err != nil {
				t.Error(err)
			}
			audit, err := hsm.OpenAuditKey([]hsm.Token{token}, nil, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			defer audit.Close()
			if audit.Public().Equal(first.Public) {
				t.Error("the CA key is the audit key")
			}
			if _, err := hsm.OpenCAKey([]hsm.Token{token}, audit.Public(), time.Minute); !errors.Is(err, hsm.ErrNoCAKey) {
				t.Errorf("another key is wanted: %v", err)
			}
			// What the token says of the private half, asked without our code's opinion.
			writable(t, token, func(s pkcs11.SessionHandle) {
				_, private, err := token.findPair(s, caPair)
				if err != nil {
					t.Fatal(err)
				}
				got, err := token.mod.ctx.GetAttributeValue(s, private, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, nil),
					pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, nil), pkcs11.NewAttribute(pkcs11.CKA_NEVER_EXTRACTABLE, nil),
					pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, nil), pkcs11.NewAttribute(pkcs11.CKA_DERIVE, nil)})
				if err != nil {
					t.Fatal(err)
				}
				if string(got[0].Value) != "keyplane CA" || got[1].Value[0] != 0 || got[2].Value[0] != 1 || got[3].Value[0] != 1 || got[4].Value[0] != 0 {
					t.Errorf("attributes: %q %v %v %v %v", got[0].Value, got[1].Value, got[2].Value, got[3].Value, got[4].Value)
				}
			})
		})
	}
}

func make32(b byte) []byte { return append(make([]byte, 31), b) }

// A CA key that could leave the token is refused.
func TestCARefused(t *testing.T) {
	token := mustOpen(t, hsmtest.SoftHSM(t))
	if _, err := token.initRoots(); err != nil {
		t.Fatal(err)
	}
	writable(t, token, func(s pkcs11.SessionHandle) {
		public, private := caPair.templates(true)
		for i, a := range private {
			if a.Type == pkcs11.CKA_EXTRACTABLE {
				private[i] = pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true)
			}
		}
		if _, _, err := token.mod.ctx.GenerateKeyPair(s, mech(pkcs11.CKM_EC_KEY_PAIR_GEN, nil), public, private); err != nil {
			t.Fatal(err)
		}
	})
	if _, err := token.OpenCASession(); err == nil || errors.Is(err, hsm.ErrNoCAKey) {
		t.Errorf("an extractable key: %v", err)
	}
	if _, err := token.initPair(caPair); err == nil {
		t.Error("init took an extractable key")
	}
}
