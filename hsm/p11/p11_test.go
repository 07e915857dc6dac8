package p11

import (
	"bytes"
	"crypto/aes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
	"github.com/keyplane/keyplane/internal/pkcs11uri"
	"github.com/miekg/pkcs11"
)

func TestMain(m *testing.M) {
	// Those that wait for their module's turn are no load.
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	hsmtest.Main(m)
}

// Long tests of one module run beside those of the other, after all tests that are not parallel. Two of one module would meet: NSS has one database at a time,
// and SoftHSM sees new tokens when no test has one open.
var softHSMTurn, nssTurn sync.Mutex

func beside(t *testing.T, turn *sync.Mutex) {
	t.Helper()
	t.Parallel()
	turn.Lock()
	t.Cleanup(turn.Unlock)
}

// opener makes the roots in a token and returns what opens it.
func opener(t testing.TB, uri string) func(t testing.TB) hsm.Token {
	t.Helper()
	if _, err := InitRoots(uri); err != nil {
		t.Fatal(err)
	}
	return func(t testing.TB) hsm.Token {
		t.Helper()
		token, err := Open(uri)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
}

func mustOpen(t testing.TB, uri string) *Token {
	t.Helper()
	token, err := open(uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { token.Close() })
	return token
}

// with returns the URI with one query attribute replaced.
func with(t testing.TB, uri, name, value string) string {
	t.Helper()
	u, err := pkcs11uri.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	for i := range u.Query {
		if u.Query[i].Name == name {
			u.Query[i].Value = value
		}
	}
	return u.String()
}

func TestConformanceSoftHSM(t *testing.T) { hsmtest.TestToken(t, opener(t, hsmtest.SoftHSM(t))) }
func TestConformanceNSS(t *testing.T)     { hsmtest.TestToken(t, opener(t, hsmtest.NSS(t))) }

func TestConfigRefuses(t *testing.T) {
	for uri, want := range map[string]string{
		"pkcs11:":                                                         "names no token",
		"pkcs11:manufacturer=a?module-path=/m":                            "names no token",
		"pkcs11:token=a":                                                  "names no module",
		"pkcs11:token=a;slot-id=1?module-path=/m":                         "slot-id is not accepted",
		"pkcs11:token=a;object=k?module-path=/m":                          "object is not accepted",
		"pkcs11:token=a?module-path=/m&pin-value=1234":                    "pin-value is not accepted",
		"pkcs11:token=a?module-path=/m&module-name=x":                     "module-name is not accepted",
		"pkcs11:token=a?module-path=/m&pin-source=%7C/bin/echo":           "pin-source must be",
		"pkcs11:token=a?module-path=/m&pin-source=https://x/pin":          "pin-source must be",
		"pkcs11:token=a?module-path=/m&pin-source=file://host/pin":        "pin-source must be",
		"pkcs11:token=a?module-path=/m&pin-source=file:pin":               "pin-source must be",
		"pkcs11:token=a?module-path=/m&x-init-args=a%00b":                 "zero byte",
		"pkcs11:token=a?module-path=m":                                    "not absolute",
		"pkcs11:token=a?module-path=/nonexistent/module.so":               "no such file",
		"pkcs11:token=a?module-path=/etc/hostname":                        "module",
		"pkcs11:token=nosuch?module-path=/usr/lib/softhsm/libsofthsm2.so": "no token \"nosuch\"",
	} {
		token, err := Open(uri)
		if err == nil {
			token.Close()
			t.Errorf("%s was opened", uri)
			continue
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", uri, err, want)
		}
		if strings.Contains(err.Error(), "1234") {
			t.Errorf("%s: the error repeats the PIN", uri)
		}
	}
	for in, want := range map[string]string{"file:/p": "/p", "file:///p": "/p", "/p": "/p"} {
		c, err := parseConfig("pkcs11:token=a?module-path=/m&pin-source=" + in)
		if err != nil || c.pinFile != want {
			t.Errorf("pin-source %s: %q, %v", in, c.pinFile, err)
		}
	}
}

func TestModuleFileMustBeProtected(t *testing.T) {
	path := filepath.Join(t.TempDir(), "module.so")
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := checkFile(path); err != nil {
		t.Errorf("0644: %v", err)
	}
	for _, mode := range []os.FileMode{0o664, 0o646} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := checkFile(path); err == nil {
			t.Errorf("module with permissions %o was accepted", mode)
		}
	}
}

// importKey puts a known AES key under the derivation root's CKA_ID. Roots refuses such a key; OpenSession, below it, does not look.
func importKey(t *testing.T, token *Token, value []byte) {
	t.Helper()
	s, err := token.mod.ctx.OpenSession(token.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	defer token.mod.ctx.CloseSession(s)
	var template []*pkcs11.Attribute
	for _, a := range derivationRoot.template(true, false) {
		if a.Type != pkcs11.CKA_VALUE_LEN {
			template = append(template, a)
		}
	}
	if _, err := token.mod.ctx.CreateObject(s, append(template, pkcs11.NewAttribute(pkcs11.CKA_VALUE, value))); err != nil {
		t.Fatal(err)
	}
}

func TestRoundKnownAnswer(t *testing.T) {
	for name, uri := range map[string]string{"SoftHSM": hsmtest.SoftHSM(t), "NSS": hsmtest.NSS(t)} {
		t.Run(name, func(t *testing.T) {
			token := mustOpen(t, uri)
			key := []byte("0123456789abcdefFEDCBA9876543210")
			importKey(t, token, key)
			s, err := token.OpenSession()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			block, err := aes.NewCipher(key)
			if err != nil {
				t.Fatal(err)
			}
			in := make([]byte, 16*257)
			for i := range in {
				in[i] = byte(i * i >> 3)
			}
			want, out := make([]byte, len(in)), make([]byte, len(in))
			for i := 0; i < len(in); i += 16 {
				block.Encrypt(want[i:], in[i:])
			}
			if err := s.Round(in, out, nil); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(out, want) {
				t.Error("not AES-256 in ECB mode")
			}
			if _, err := token.Roots(); err == nil {
				t.Error("a key that was brought in was accepted as the root")
			}
			if _, err := InitRoots(uri); err == nil || !strings.Contains(err.Error(), "derivation root refused") {
				t.Errorf("InitRoots over a key that was brought in: %v", err)
			}
			if _, err := token.OpenSession(); err != nil {
				t.Errorf("InitRoots destroyed a key it had not made: %v", err)
			}
			if name == "NSS" {
				return // its database keeps one secret key per CKA_ID
			}
			importKey(t, token, key)
			if _, err := token.OpenSession(); err == nil || !strings.Contains(err.Error(), "more than one object") {
				t.Errorf("two keys with the root's CKA_ID: %v", err)
			}
		})
	}
}

func TestRootsDiffer(t *testing.T) {
	a, b := hsmtest.SoftHSM(t), hsmtest.SoftHSM(t)
	ra, err := InitRoots(a)
	if err != nil {
		t.Fatal(err)
	}
	rb, err := InitRoots(b)
	if err != nil {
		t.Fatal(err)
	}
	if ra.Root == rb.Root {
		t.Error("two tokens have the same root")
	}
	again, err := InitRoots(a)
	if err != nil {
		t.Fatal(err)
	}
	if len(ra.Made) != 3 || len(again.Made) != 0 || again.Root != ra.Root {
		t.Errorf("first %v, again %v", ra, again)
	}
	var text strings.Builder
	if _, err := ra.WriteTo(&text); err != nil || !strings.Contains(text.String(), "derivation key made") ||
		!strings.Contains(text.String(), "audit key     made: EC P-256") {
		t.Errorf("report: %v\n%s", err, &text)
	}
}

// sound is what a good token says of a root.
func sound(r root) attributes {
	a := attributes{}
	for _, x := range r.template(false, false) {
		a[x.Type] = x.Value
	}
	for _, x := range []uint{pkcs11.CKA_ALWAYS_SENSITIVE, pkcs11.CKA_NEVER_EXTRACTABLE, pkcs11.CKA_LOCAL} {
		a[x] = []byte{1}
	}
	return a
}

func TestCheckRefusesEveryLie(t *testing.T) {
	for _, r := range []root{derivationRoot, wrappingRoot} {
		if err := r.check(sound(r), true); err != nil {
			t.Fatalf("%s: %v", r.name, err)
		}
		for attr, value := range sound(r) {
			if attr == pkcs11.CKA_LABEL || attr == pkcs11.CKA_MODIFIABLE {
				continue // for people; frozen attributes are asked for, not required
			}
			lie := bytes.Clone(value)
			lie[0] ^= 1
			for name, v := range map[string][]byte{"flipped": lie, "empty": {}, "long": append(bytes.Clone(value), 0)} {
				a := sound(r)
				a[attr] = v
				if err := r.check(a, true); err == nil {
					t.Errorf("%s: attribute %x %s was accepted", r.name, attr, name)
				}
			}
			a := sound(r)
			delete(a, attr)
			if err := r.check(a, true); err == nil {
				t.Errorf("%s: attribute %x missing was accepted", r.name, attr)
			}
		}
		a := sound(r)
		if err := r.checkCopy(a); err == nil {
			t.Errorf("%s: a token object passed for a working copy", r.name)
		}
		for _, attr := range []uint{pkcs11.CKA_TOKEN, pkcs11.CKA_LOCAL, pkcs11.CKA_ALWAYS_SENSITIVE, pkcs11.CKA_NEVER_EXTRACTABLE} {
			a[attr] = []byte{0}
		}
		if err := r.checkCopy(a); err != nil {
			t.Errorf("%s: working copy: %v", r.name, err)
		}
		for attr, want := range map[uint]byte{pkcs11.CKA_SENSITIVE: 0, pkcs11.CKA_EXTRACTABLE: 1, pkcs11.CKA_DECRYPT: 1, pkcs11.CKA_PRIVATE: 0} {
			before := a[attr]
			if a[attr] = []byte{want}; r.checkCopy(a) == nil {
				t.Errorf("%s: a working copy with attribute %x = %d was accepted", r.name, attr, want)
			}
			a[attr] = before
		}
		a = sound(r)
		a[pkcs11.CKA_VALUE] = nil
		if err := r.check(a, true); err == nil {
			t.Errorf("%s: a readable value was accepted", r.name)
		}
		a = sound(r)
		a[pkcs11.CKA_LOCAL] = []byte{0}
		if err := r.check(a, false); err != nil {
			t.Errorf("%s: CKA_LOCAL where it means nothing: %v", r.name, err)
		}
		a[pkcs11.CKA_NEVER_EXTRACTABLE] = []byte{0}
		if err := r.check(a, false); err == nil {
			t.Errorf("%s: without CKA_LOCAL, CKA_NEVER_EXTRACTABLE has to prove it", r.name)
		}
	}
}

// TestWorkingCopy: rounds on software tokens use a session object, rounds on a frozen root the root itself, with the same results.
func TestWorkingCopy(t *testing.T) {
	for name, uri := range map[string]string{"SoftHSM": hsmtest.SoftHSM(t), "NSS": hsmtest.NSS(t)} {
		t.Run(name, func(t *testing.T) {
			token := mustOpen(t, uri)
			if _, err := token.initRoots(); err != nil {
				t.Fatal(err)
			}
			var images [2][16]byte
			for i, software := range []bool{true, false} {
				token.info.Software = software
				s, err := token.OpenSession()
				if err != nil {
					t.Fatal(err)
				}
				a, err := token.read(s.(*session).handle, s.(*session).root)
				if err != nil || !a.is(pkcs11.CKA_TOKEN, !software) {
					t.Errorf("software %v: the round's key is a token object: %x, %v", software, a[pkcs11.CKA_TOKEN], err)
				}
				if err := s.Round([]byte(hsm.RootIDBlock), images[i][:], nil); err != nil {
					t.Fatal(err)
				}
				s.Close()
			}
			if images[0] != images[1] {
				t.Error("the working copy is another key")
			}
		})
	}
	token := mustOpen(t, hsmtest.SoftHSM(t))
	token.info.Software = false // makes frozen roots
	if report, err := token.initRoots(); err != nil || len(report.Modifiable) != 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	token.info.Software = true
	s, err := token.OpenSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Round([]byte(hsm.RootIDBlock), make([]byte, 16), nil); err != nil {
		t.Errorf("a root that cannot be copied: %v", err)
	}
}

// TestLyingTokenLosesTheKey has the token say that the key just made was extractable once: it is refused and destroyed.
func TestLyingTokenLosesTheKey(t *testing.T) {
	token := mustOpen(t, hsmtest.SoftHSM(t))
	token.attribute = func(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, attr uint) ([]byte, error) {
		v, err := token.getAttribute(s, o, attr)
		if attr == pkcs11.CKA_NEVER_EXTRACTABLE && err == nil {
			v = []byte{0}
		}
		return v, err
	}
	if _, err := token.initRoots(); err == nil || !strings.Contains(err.Error(), "CKA_NEVER_EXTRACTABLE is not true") {
		t.Fatalf("initRoots: %v", err)
	}
	if _, err := token.OpenSession(); !errors.Is(err, hsm.ErrNoRoots) {
		t.Fatalf("the refused key is still there: %v", err)
	}
	token.attribute = token.getAttribute
	if _, err := token.initRoots(); err != nil {
		t.Fatal(err)
	}
}

func TestSameLabelTwice(t *testing.T) {
	uri := hsmtest.SoftHSM(t)
	first := mustOpen(t, uri)
	slots, err := first.mod.ctx.GetSlotList(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range slots {
		if ti, err := first.mod.ctx.GetTokenInfo(slot); err == nil && ti.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			if err := first.mod.ctx.InitToken(slot, "so-pin", first.info.Label); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	_, err = Open(uri)
	if err == nil || !strings.Contains(err.Error(), "2 tokens match") || !strings.Contains(err.Error(), first.info.Serial) {
		t.Fatalf("two tokens with one label: %v", err)
	}
	u, _ := pkcs11uri.Parse(uri)
	u.Path = append(u.Path, pkcs11uri.Attr{Name: "serial", Value: first.info.Serial})
	second, err := Open(u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if second.Info() != first.Info() {
		t.Errorf("%+v, want %+v", second.Info(), first.Info())
	}
}

func TestInitArgsConflict(t *testing.T) {
	uri := hsmtest.NSS(t)
	mustOpen(t, uri)
	if _, err := Open(with(t, uri, "x-init-args", "configdir='sql:/nonexistent'")); err == nil || !strings.Contains(err.Error(), "other x-init-args") {
		t.Errorf("second database in one process: %v", err)
	}
}

// TestWrongPINOnce proves that there is no second attempt by putting the right PIN in place after the first refusal: it is not used.
func TestWrongPINOnce(t *testing.T) {
	for _, at := range []string{"Open", "Reset"} {
		t.Run(at, func(t *testing.T) {
			pin := filepath.Join(t.TempDir(), "pin")
			write := func(s string) {
				if err := os.WriteFile(pin, []byte(s+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			good := hsmtest.SoftHSM(t)
			uri := with(t, good, "pin-source", "file:"+pin)
			attempt := func() error {
				token, err := Open(uri)
				if err == nil {
					token.Close()
				}
				return err
			}
			if at == "Reset" {
				write(hsmtest.PIN)
				token := mustOpen(t, uri)
				if err := token.mod.ctx.CloseAllSessions(token.slot); err != nil {
					t.Fatal(err)
				}
				attempt = token.Reset
			}
			write("wrong-pin")
			if err := attempt(); !errors.Is(err, hsm.ErrPIN) || strings.Contains(err.Error(), "wrong-pin") {
				t.Fatalf("wrong PIN: %v", err)
			}
			write(hsmtest.PIN)
			for range 3 {
				if err := attempt(); !errors.Is(err, hsm.ErrPIN) {
					t.Fatalf("a second attempt was made: %v", err)
				}
			}
			if _, err := Open(good); !errors.Is(err, hsm.ErrPIN) {
				t.Fatalf("a second attempt was made by another opener: %v", err)
			}
			if hsm.Outcome(hsm.ErrPIN) != hsm.Internal {
				t.Error("a refused PIN is an internal fault to the client")
			}
		})
	}
}

// TestOpenPIN: a PIN that is not the process's own is tried once by each OpenPIN, never again by the Token, and never shares a login with another.
func TestOpenPIN(t *testing.T) {
	slow := slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{})
	u, err := pkcs11uri.Parse(slow.URI())
	if err != nil {
		t.Fatal(err)
	}
	u.Query = slices.DeleteFunc(u.Query, func(a pkcs11uri.Attr) bool { return a.Name == "pin-source" })
	uri := u.String()
	tries := func() uint64 {
		t.Helper()
		r, err := slow.Report()
		if err != nil {
			t.Fatal(err)
		}
		return r.Calls["C_Login"]
	}
	refused := func(pin string, want hsm.CKR, wantTries uint64) {
		t.Helper()
		before := tries()
		token, err := OpenPIN(uri, []byte(pin))
		if err == nil {
			token.Close()
		}
		e, _ := errors.AsType[*hsm.Error](err)
		if !errors.Is(err, hsm.ErrPIN) || e == nil || e.CKR != want || e.Function != "C_Login" || pin != "" && strings.Contains(err.Error(), pin) {
			t.Errorf("PIN %q: %v", pin, err)
		}
		if n := tries() - before; n != wantTries {
			t.Errorf("PIN %q: %d tries, want %d", pin, n, wantTries)
		}
	}
	refused("wrong-pin", hsm.CKR_PIN_INCORRECT, 1)
	refused("wrong-pin", hsm.CKR_PIN_INCORRECT, 1) // somebody may have changed it in the HSM meanwhile
	refused("", hsm.CKR_PIN_LEN_RANGE, 0)
	refused(strings.Repeat("1", 257), hsm.CKR_PIN_LEN_RANGE, 0)
	if _, err := OpenPIN(slow.URI(), []byte(hsmtest.PIN)); err == nil || !strings.Contains(err.Error(), "pin-source") {
		t.Errorf("a URI with a PIN file: %v", err)
	}

	opened, err := OpenPIN(uri, []byte(hsmtest.PIN))
	if err != nil {
		t.Fatal(err)
	}
	token := opened.(*Token)
	defer token.Close()
	refused("wrong-pin", hsm.CKR_PIN_INCORRECT, 0) // the login that there is says that it is wrong
	second, err := OpenPIN(uri, []byte(hsmtest.PIN))
	if err != nil {
		t.Fatal(err)
	}
	second.Close()

	lose := func() {
		t.Helper()
		if err := token.mod.ctx.Logout(token.anchor); err != nil {
			t.Fatal(err)
		}
	}
	lose()
	if err := token.Reset(); err != nil {
		t.Errorf("after the login was lost: %v", err)
	}
	lose()
	setSlow(t, slow, slowhsm.Settings{Faults: []slowhsm.Fault{{Function: "C_Login", Nth: 1, CKR: hsm.CKR_PIN_INCORRECT}}})
	before := tries()
	for range 3 {
		if err := token.Reset(); !errors.Is(err, hsm.ErrPIN) {
			t.Errorf("the PIN was changed: %v", err)
		}
	}
	if n := tries() - before; n != 1 {
		t.Errorf("%d tries by one token", n)
	}
}

// TestOpenPINLocked: a PIN that is locked is not a wrong one, and a token without a user's PIN is neither.
func TestOpenPINLocked(t *testing.T) {
	slow := slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{})
	u, err := pkcs11uri.Parse(slow.URI())
	if err != nil {
		t.Fatal(err)
	}
	u.Query = slices.DeleteFunc(u.Query, func(a pkcs11uri.Attr) bool { return a.Name == "pin-source" })
	uri := u.String()
	for _, code := range []hsm.CKR{hsm.CKR_PIN_LOCKED, hsm.CKR_USER_PIN_NOT_INITIALIZED, hsm.CKR_PIN_EXPIRED} {
		setSlow(t, slow, slowhsm.Settings{Faults: []slowhsm.Fault{{Function: "C_Login", Nth: 1, CKR: code}}})
		_, err := OpenPIN(uri, []byte(hsmtest.PIN))
		if e, _ := errors.AsType[*hsm.Error](err); !errors.Is(err, hsm.ErrPIN) || e == nil || e.CKR != code {
			t.Errorf("%v: %v", code, err)
		}
	}
	token, err := OpenPIN(uri, []byte(hsmtest.PIN))
	if err != nil {
		t.Fatal(err)
	}
	token.Close()
}

func TestPINFile(t *testing.T) {
	uri := hsmtest.SoftHSM(t)
	dir := t.TempDir()
	pin := filepath.Join(dir, "pin")
	if err := os.WriteFile(pin, []byte(hsmtest.PIN), 0o600); err != nil {
		t.Fatal(err)
	}
	uri = with(t, uri, "pin-source", pin)
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620} {
		if err := os.Chmod(pin, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(uri); err == nil || !strings.Contains(err.Error(), "want 0600") {
			t.Errorf("PIN file with permissions %o: %v", mode, err)
		}
	}
	if err := os.Chmod(pin, 0o400); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, uri)
	u, _ := pkcs11uri.Parse(uri)
	u.Query = u.Query[:1]
	mustOpen(t, u.String()) // the first token's login is the process's: a second opener needs no PIN while it lasts
}
