package p11

import (
	"bytes"
	"crypto/ecdsa"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
	"github.com/miekg/pkcs11"
)

// writable runs f on a read-write session.
func writable(t *testing.T, token *Token, f func(pkcs11.SessionHandle)) {
	t.Helper()
	s, err := token.mod.ctx.OpenSession(token.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	defer token.mod.ctx.CloseSession(s)
	f(s)
}

// destroy destroys the halves of the audit key that are wanted gone.
func destroy(t *testing.T, token *Token, class uint) {
	t.Helper()
	writable(t, token, func(s pkcs11.SessionHandle) {
		found, err := token.findTwo(s, class, auditPair.id)
		if err != nil || len(found) != 1 {
			t.Fatalf("%d objects, %v", len(found), err)
		}
		if err := token.mod.ctx.DestroyObject(s, found[0]); err != nil {
			t.Fatal(err)
		}
	})
}

// A token that was set up before there were audit keys gets its key by a second InitRoots, and only that.
func TestInitAuditLater(t *testing.T) {
	for name, uri := range map[string]string{"SoftHSM": hsmtest.SoftHSM(t), "NSS": hsmtest.NSS(t)} {
		t.Run(name, func(t *testing.T) {
			first, err := InitRoots(uri)
			if err != nil {
				t.Fatal(err)
			}
			token := mustOpen(t, uri)
			destroy(t, token, pkcs11.CKO_PUBLIC_KEY)
			if _, err := token.OpenAuditSession(); err == nil || !strings.Contains(err.Error(), "public half of the audit key is gone") {
				t.Errorf("without the public half: %v", err)
			}
			if _, err := token.initRoots(); err == nil || !strings.Contains(err.Error(), "public half of the audit key is gone") {
				t.Errorf("init without the public half: %v", err)
			}
			destroy(t, token, pkcs11.CKO_PRIVATE_KEY)
			if _, err := token.OpenAuditSession(); !errors.Is(err, hsm.ErrNoAuditKey) {
				t.Errorf("without the pair: %v", err)
			}
			if r, err := token.Roots(); err != nil || r.ID != first.Root {
				t.Errorf("roots of a token without an audit key: %v", err)
			}
			again, err := token.initRoots()
			if err != nil || len(again.Made) != 1 || again.Made[0] != auditPair.label || again.Root != first.Root || again.NoAudit != "" {
				t.Fatalf("%+v, %v", again, err)
			}
			if third, err := token.initRoots(); err != nil || len(third.Made) != 0 {
				t.Errorf("%+v, %v", third, err)
			}
			destroy(t, token, pkcs11.CKO_PRIVATE_KEY)
			if _, err := token.OpenAuditSession(); err == nil || !strings.Contains(err.Error(), "private half of the audit key is gone") {
				t.Errorf("without the private half: %v", err)
			}
		})
	}
}

func TestTwoAuditKeys(t *testing.T) {
	token := mustOpen(t, hsmtest.SoftHSM(t))
	if _, err := token.initRoots(); err != nil {
		t.Fatal(err)
	}
	writable(t, token, func(s pkcs11.SessionHandle) {
		if _, _, err := token.generatePair(s, auditPair); err != nil {
			t.Fatal(err)
		}
	})
	_, err := token.OpenAuditSession()
	if err == nil || !strings.Contains(err.Error(), "more than one object has the CKA_ID of the audit key") {
		t.Errorf("two pairs: %v", err)
	}
	if _, err := token.initRoots(); err == nil || !strings.Contains(err.Error(), "more than one object") {
		t.Errorf("init over two pairs: %v", err)
	}
}

// A token that cannot have an audit key is set up without, and says so.
func TestNoAuditKey(t *testing.T) {
	for what, fault := range map[string]slowhsm.Fault{
		"the token has no CKM_EC_KEY_PAIR_GEN": {Function: "C_GetMechanismInfo", Nth: 1, CKR: hsm.CKR_MECHANISM_INVALID},
		"the token has no CKM_ECDSA":           {Function: "C_GetMechanismInfo", Nth: 2, CKR: hsm.CKR_MECHANISM_INVALID},
		"the token has no curve P-256":         {Function: "C_GenerateKeyPair", Nth: 1, CKR: hsm.CKR_CURVE_NOT_SUPPORTED},
	} {
		t.Run(what, func(t *testing.T) {
			slow := slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{})
			token := mustOpen(t, slow.URI())
			setSlow(t, slow, slowhsm.Settings{Faults: []slowhsm.Fault{fault}})
			report, err := token.initRoots()
			if err != nil || report.NoAudit != what || len(report.Made) != 2 {
				t.Fatalf("%+v, %v", report, err)
			}
			var text strings.Builder
			if _, err := report.WriteTo(&text); err != nil || !strings.Contains(text.String(), "audit key     none, "+what+": another token has to sign") {
				t.Errorf("report: %v\n%s", err, &text)
			}
			if _, err := hsm.OpenAuditKey([]hsm.Token{token}, nil, time.Minute); !errors.Is(err, hsm.ErrNoAuditKey) {
				t.Errorf("key: %v", err)
			}
			if fault.Function == "C_GetMechanismInfo" {
				setSlow(t, slow, slowhsm.Settings{Faults: []slowhsm.Fault{fault}})
				if text, err := token.probeAudit(); err != nil || !strings.HasPrefix(text, what+": it cannot have one") {
					t.Errorf("probe: %q, %v", text, err)
				}
			}
		})
	}
}

// soundAudit is what a good token says of the private half.
func soundAudit() attributes {
	_, private := auditPair.templates(false)
	a := attributes{pkcs11.CKA_EC_PARAMS: bytes.Clone(p256)}
	for _, x := range private {
		a[x.Type] = x.Value
	}
	for _, x := range []uint{pkcs11.CKA_ALWAYS_SENSITIVE, pkcs11.CKA_NEVER_EXTRACTABLE, pkcs11.CKA_LOCAL} {
		a[x] = []byte{1}
	}
	return a
}

func TestCheckAuditRefusesEveryLie(t *testing.T) {
	if err := auditPair.check(soundAudit(), true); err != nil {
		t.Fatal(err)
	}
	optional := map[uint]bool{pkcs11.CKA_DECRYPT: true, pkcs11.CKA_UNWRAP: true, pkcs11.CKA_DERIVE: true} // not telling is not having
	for attr, value := range soundAudit() {
		if attr == pkcs11.CKA_LABEL || attr == pkcs11.CKA_MODIFIABLE {
			continue
		}
		lie := bytes.Clone(value)
		lie[0] ^= 1
		for name, v := range map[string][]byte{"flipped": lie, "empty": {}, "long": append(bytes.Clone(value), 0)} {
			a := soundAudit()
			a[attr] = v
			if err := auditPair.check(a, true); err == nil {
				t.Errorf("attribute %x %s was accepted", attr, name)
			}
		}
		a := soundAudit()
		delete(a, attr)
		if err := auditPair.check(a, true); (err == nil) != optional[attr] {
			t.Errorf("attribute %x missing: %v", attr, err)
		}
	}
	for _, attr := range []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_WRAP, pkcs11.CKA_VERIFY} {
		a := soundAudit()
		a[attr] = []byte{1}
		if err := auditPair.check(a, true); err == nil {
			t.Errorf("usage %x was accepted", attr)
		}
	}
	a := soundAudit()
	a[pkcs11.CKA_VALUE] = nil
	if err := auditPair.check(a, true); err == nil || !strings.Contains(err.Error(), "CKA_VALUE can be read") {
		t.Errorf("a key that can be read: %v", err)
	}
	a = soundAudit()
	a[pkcs11.CKA_LOCAL] = []byte{0}
	if err := auditPair.check(a, false); err != nil {
		t.Errorf("CKA_LOCAL where it means nothing: %v", err)
	}
}

// A pair just made that the token says was extractable once is refused and destroyed, both halves.
func TestLyingTokenLosesTheAuditKey(t *testing.T) {
	token := mustOpen(t, hsmtest.SoftHSM(t))
	token.attribute = func(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, attr uint) ([]byte, error) {
		v, err := token.getAttribute(s, o, attr)
		if class, cerr := token.getAttribute(s, o, pkcs11.CKA_CLASS); cerr == nil && err == nil && attr == pkcs11.CKA_NEVER_EXTRACTABLE &&
			bytes.Equal(class, pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY).Value) {
			v = []byte{0}
		}
		return v, err
	}
	if _, err := token.initRoots(); err == nil || !strings.Contains(err.Error(), "audit key refused: CKA_NEVER_EXTRACTABLE is not true") {
		t.Fatalf("initRoots: %v", err)
	}
	if _, err := token.OpenAuditSession(); !errors.Is(err, hsm.ErrNoAuditKey) {
		t.Fatalf("the refused pair is still there: %v", err)
	}
	token.attribute = token.getAttribute
	if report, err := token.initRoots(); err != nil || len(report.Made) != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
}

func TestECPoint(t *testing.T) {
	token := opener(t, hsmtest.SoftHSM(t))(t)
	defer token.Close()
	s, err := token.OpenAuditSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	point, err := s.Public().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string][]byte{"wrapped": append([]byte{4, 65}, point...), "bare": point} {
		if got, err := ecPoint(value); err != nil || !got.Equal(s.Public()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	off := bytes.Clone(point)
	off[64] ^= 1
	for name, value := range map[string][]byte{"empty": nil, "off the curve": off, "short": point[:64], "infinity": {0}, "trailing": append([]byte{4, 65}, append(bytes.Clone(point), 0)...)} {
		if _, err := ecPoint(value); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// TestAuditLossIsHidden takes sessions, logins and the module away; the key goes on to sign.
func TestAuditLossIsHidden(t *testing.T) {
	for name, uri := range map[string]func(testing.TB) string{"SoftHSM": hsmtest.SoftHSM, "NSS": hsmtest.NSS} {
		for what, lose := range map[string]func(*Token) error{
			"CloseAllSessions": func(token *Token) error { return token.mod.ctx.CloseAllSessions(token.slot) },
			"Logout":           func(token *Token) error { return token.mod.ctx.Logout(token.anchor) },
			"Finalize":         func(token *Token) error { return token.mod.fns.finalize() },
		} {
			if name == "NSS" && what == "Finalize" {
				continue // initialised again, it has no slots
			}
			t.Run(name+"/"+what, func(t *testing.T) {
				token := opener(t, uri(t))(t).(*Token)
				defer token.Close()
				k, err := hsm.OpenAuditKey([]hsm.Token{token}, nil, time.Minute)
				if err != nil {
					t.Fatal(err)
				}
				defer k.Close()
				for range 3 {
					if err := lose(token); err != nil {
						t.Fatal(err)
					}
					digest := make([]byte, 32)
					der, err := k.Sign(digest)
					if err != nil || !ecdsa.VerifyASN1(k.Public(), digest, der) {
						t.Fatalf("%v", err)
					}
				}
			})
		}
	}
}

// A module that hangs costs a caller the time limit.
func TestAuditHangs(t *testing.T) {
	slow := slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{})
	token := opener(t, slow.URI())(t)
	defer token.Close()
	const timeout = time.Second
	var k *hsm.AuditKey
	err := hsm.ErrTimeout
	for n := 0; n < 20 && errors.Is(err, hsm.ErrTimeout); n++ { // the machine may be busy
		k, err = hsm.OpenAuditKey([]hsm.Token{token}, nil, timeout)
	}
	if err != nil {
		t.Fatal(err)
	}
	setSlow(t, slow, slowhsm.Settings{Faults: []slowhsm.Fault{{Function: "C_Sign", Nth: 1, Hang: 4 * timeout}}})
	if _, err := k.Sign(make([]byte, 32)); !errors.Is(err, hsm.ErrTimeout) {
		t.Error(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		if _, err = k.Sign(make([]byte, 32)); err == nil {
			break
		}
		if !errors.Is(err, hsm.ErrTimeout) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}
