package p11

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/miekg/pkcs11"
)

func officerPIN() secret.Bytes { return secret.New([]byte(hsmtest.PIN + "-so")) }

// object finds a token's root.
func object(t *testing.T, token *Token, s pkcs11.SessionHandle, r root) pkcs11.ObjectHandle {
	t.Helper()
	o, err := token.findRoot(s, r)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// transports counts the trusted keys in a token.
func transports(t *testing.T, uri string) (n int) {
	t.Helper()
	token := mustOpen(t, uri)
	defer token.Close()
	writable(t, token, func(s pkcs11.SessionHandle) {
		for _, class := range []uint{pkcs11.CKO_PUBLIC_KEY, pkcs11.CKO_PRIVATE_KEY} {
			if err := token.mod.ctx.FindObjectsInit(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_LABEL, transportLabel)}); err != nil {
				t.Fatal(err)
			}
			found, _, err := token.mod.ctx.FindObjects(s, 100)
			if err != nil {
				t.Fatal(err)
			}
			n += len(found)
			if err := token.mod.ctx.FindObjectsFinal(s); err != nil {
				t.Fatal(err)
			}
		}
	})
	return n
}

// The whole way: what one token has encrypted and wrapped the others decrypt and unwrap, and the one that is cloned can be cloned from.
func TestClone(t *testing.T) {
	from, first, second := hsmtest.SoftHSM(t), hsmtest.SoftHSM(t), hsmtest.SoftHSM(t)
	made, err := InitClonable(from)
	if err != nil || !made.Clonable {
		t.Fatalf("%+v, %v", made, err)
	}
	if r, err := InitClonable(from); err != nil || len(r.Made) != 0 || !r.Clonable {
		t.Errorf("a second init: %+v, %v", r, err)
	}
	if r, err := InitRoots(from); err != nil || len(r.Made) != 0 || !r.Clonable {
		t.Errorf("a second init that does not ask for it: %+v, %v", r, err)
	}
	source := mustOpen(t, from)
	wrapped, _, err := source.GenerateKey(keyspec.AES256)
	if err != nil {
		t.Fatal(err)
	}
	use := func(token *Token) (image, key []byte) {
		s, err := token.OpenSession()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		image = make([]byte, 32)
		if err := s.Round([]byte("the input of a key derivation..."), image, nil); err != nil {
			t.Fatal(err)
		}
		k, err := token.LoadKey(keyspec.AES256, wrapped)
		if err != nil {
			t.Fatal(err)
		}
		key = make([]byte, keyspec.AES256.Info().Result)
		n, err := s.(hsm.KeySession).Use(k, keyspec.AES256, hsm.EncryptBlocks, []byte("keyplane's block"), key)
		if err != nil {
			t.Fatal(err)
		}
		return image, key[:n]
	}
	image, key := use(source)
	if err := source.Close(); err != nil {
		t.Fatal(err)
	}

	reports, err := Clone(from, []string{first}, officerPIN())
	if err != nil || len(reports) != 1 || len(reports[0].Copied) != 2 || reports[0].Root != made.Root || len(reports[0].Audit.Made) != 1 {
		t.Fatalf("%+v, %v", reports, err)
	}
	// From the clone, to one that has them already and one that has not.
	reports, err = Clone(first, []string{from, second}, officerPIN())
	if err != nil || len(reports) != 2 || len(reports[0].Copied) != 0 || len(reports[1].Copied) != 2 {
		t.Fatalf("%+v, %v", reports, err)
	}
	for _, uri := range []string{first, second} {
		token := mustOpen(t, uri)
		if i, k := use(token); !bytes.Equal(i, image) || !bytes.Equal(k, key) {
			t.Error("a clone gives something else than its source")
		}
		if r, err := token.Roots(); err != nil || r.ID != made.Root || !r.Clonable {
			t.Errorf("%+v, %v", r, err)
		}
		// The working copy is taken of a clone too: rounds on SoftHSM cost half without a token object.
		s, err := token.OpenSession()
		if err != nil {
			t.Fatal(err)
		}
		if a, err := token.read(s.(*session).handle, s.(*session).root); err != nil || !a.is(pkcs11.CKA_TOKEN, false) || !a.is(pkcs11.CKA_SENSITIVE, true) {
			t.Errorf("no working copy: %v", err)
		}
		s.Close()
		token.Close()
		if report, err := Probe(uri); err != nil || !report.Roots || !report.Clonable {
			t.Errorf("probe: %+v, %v", report.Roots, err)
		}
	}
	for _, uri := range []string{from, first, second} {
		if n := transports(t, uri); n != 0 {
			t.Errorf("%d transport keys are left", n)
		}
	}
	if r, err := InitRoots(second); err != nil || len(r.Made) != 0 || r.Root != made.Root {
		t.Errorf("init of a clone: %+v, %v", r, err)
	}
	var text strings.Builder
	if _, err := reports[1].WriteTo(&text); err != nil || strings.Count(text.String(), "copied") != 2 || !strings.Contains(text.String(), "its host only") {
		t.Errorf("%v\n%s", err, &text)
	}
}

// A target that lacks one of the roots gets that one; what an interrupted clone left in the source goes.
func TestClonePartial(t *testing.T) {
	if testing.Short() {
		t.Skip("makes RSA keys")
	}
	from := hsmtest.SoftHSM(t)
	if _, err := InitClonable(from); err != nil {
		t.Fatal(err)
	}
	for _, r := range roots {
		to := hsmtest.SoftHSM(t)
		if _, err := Clone(from, []string{to}, officerPIN()); err != nil {
			t.Fatal(err)
		}
		token := mustOpen(t, to)
		writable(t, token, func(s pkcs11.SessionHandle) {
			if err := token.mod.ctx.DestroyObject(s, object(t, token, s, r)); err != nil {
				t.Fatal(err)
			}
		})
		token.Close()
		s := &source{officer: officerPIN()}
		var err error
		if s.cfg, err = parseConfig(from); err != nil {
			t.Fatal(err)
		}
		if err := s.asOfficer(func(m *module, session pkcs11.SessionHandle) error {
			return m.createTrusted(session, randomModulus(), []byte("left behind"))
		}); err != nil {
			t.Fatal(err)
		}
		if n := transports(t, from); n != 1 {
			t.Fatalf("%d trusted keys", n)
		}
		reports, err := Clone(from, []string{to}, officerPIN())
		if err != nil || len(reports[0].Copied) != 1 || reports[0].Copied[0] != r.label {
			t.Errorf("%s: %+v, %v", r.name, reports, err)
		}
		if n := transports(t, from); n != 0 {
			t.Errorf("%d trusted keys are left", n)
		}
	}
}

func TestCloneRefused(t *testing.T) {
	from, fixed, other, empty := hsmtest.SoftHSM(t), hsmtest.SoftHSM(t), hsmtest.SoftHSM(t), hsmtest.SoftHSM(t)
	if _, err := InitClonable(from); err != nil {
		t.Fatal(err)
	}
	before, err := InitRoots(fixed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := InitClonable(other); err != nil {
		t.Fatal(err)
	}
	if _, err := InitClonable(fixed); err == nil || !strings.Contains(err.Error(), "cannot become clonable") {
		t.Errorf("init --clonable over roots that are not: %v", err)
	}
	for what, c := range map[string]struct {
		from, to string
		pin      secret.Bytes
		want     string
	}{
		"not clonable":        {fixed, empty, officerPIN(), "never leave it"},
		"no roots":            {empty, other, officerPIN(), "no keyplane roots"},
		"another root":        {from, fixed, officerPIN(), "holds another root"},
		"another root, again": {from, other, officerPIN(), "holds another root"},
		"itself":              {from, from, officerPIN(), "one token"},
		"no officer":          {from, empty, secret.Bytes{}, "PIN is missing"},
	} {
		_, err := Clone(c.from, []string{c.to}, c.pin)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: want %q: %v", what, c.want, err)
		}
		if strings.HasPrefix(what, "another") && !errors.Is(err, ErrOtherRoot) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// The wrapping root alone is another: seen by what it opens, since it has no ID.
	if _, err := Clone(from, []string{empty}, officerPIN()); err != nil {
		t.Fatal(err)
	}
	token := mustOpen(t, empty)
	writable(t, token, func(s pkcs11.SessionHandle) {
		if err := token.mod.ctx.DestroyObject(s, object(t, token, s, wrappingRoot)); err != nil {
			t.Fatal(err)
		}
		if _, err := token.generate(s, wrappingRoot, true); err != nil {
			t.Fatal(err)
		}
	})
	token.Close()
	if _, err := Clone(from, []string{empty}, officerPIN()); !errors.Is(err, ErrOtherRoot) {
		t.Errorf("another wrapping root: %v", err)
	}
	if r, err := InitRoots(fixed); err != nil || r.Root != before.Root || r.Clonable {
		t.Errorf("a refused target: %+v, %v", r, err)
	}

	// A wrong PIN is tried once.
	last := hsmtest.SoftHSM(t)
	for range 2 {
		if _, err := Clone(other, []string{last}, secret.New([]byte("wrong"))); !errors.Is(err, hsm.ErrPIN) {
			t.Errorf("a wrong PIN: %v", err)
		}
	}
	if _, err := Clone(other, []string{last}, officerPIN()); !errors.Is(err, hsm.ErrPIN) {
		t.Errorf("after a wrong PIN: %v", err)
	}
	if token := mustOpen(t, last); !errors.Is(second(token.Roots()), hsm.ErrNoRoots) {
		t.Error("a clone that failed left a root")
	}
}

func second(_ hsm.Roots, err error) error { return err }

// Without the officer's mark nothing wraps a clonable root, and no attribute or copy gets around it: tried on the root itself.
func TestClonableIsGuarded(t *testing.T) {
	uri := hsmtest.SoftHSM(t)
	if _, err := InitClonable(uri); err != nil {
		t.Fatal(err)
	}
	token := mustOpen(t, uri)
	writable(t, token, func(s pkcs11.SessionHandle) {
		public, err := token.mod.ctx.CreateObject(s, transportPublic(randomModulus(), nil, false, false))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range roots {
			o := object(t, token, s, r)
			if _, err := token.mod.ctx.WrapKey(s, oaepPtr(keyspec.WrapOAEP1).oaep(), public, o); err == nil {
				t.Errorf("%s: wrapped under a key that is not trusted", r.name)
			}
			if _, err := token.mod.ctx.WrapKey(s, mech(pkcs11.CKM_AES_KEY_WRAP_PAD, nil), object(t, token, s, wrappingRoot), o); err == nil {
				t.Errorf("%s: wrapped under the wrapping root", r.name)
			}
			for _, attr := range []uint{pkcs11.CKA_WRAP_WITH_TRUSTED, pkcs11.CKA_SENSITIVE} {
				off := []*pkcs11.Attribute{pkcs11.NewAttribute(attr, false), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false)}
				if err := token.mod.ctx.SetAttributeValue(s, o, off[:1]); err == nil {
					t.Errorf("%s: attribute %#x was taken away", r.name, attr)
				}
				if c, err := token.mod.ctx.CopyObject(s, o, off); err == nil {
					t.Errorf("%s: copied without attribute %#x: %d", r.name, attr, c)
				}
			}
			if _, err := token.mod.ctx.GetAttributeValue(s, o, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_VALUE, nil)}); err == nil {
				t.Errorf("%s: its value can be read", r.name)
			}
		}
		if _, err := token.mod.ctx.CreateObject(s, transportPublic(randomModulus(), nil, false, true)); err == nil {
			t.Error("the user has made a trusted key")
		}
	})
}

func oaepPtr(w keyspec.Wrapping) *operation { o := oaepOf(w); return &o }

// Clonable is a kind of its own: each attribute that is other is refused, and so is a root that could be wrapped under any key.
func TestCheckClonable(t *testing.T) {
	for _, r := range roots {
		soundly := func() attributes {
			a := attributes{}
			for _, x := range r.template(false, true) {
				a[x.Type] = x.Value
			}
			return a
		}
		if err := r.check(soundly(), true); err != nil {
			t.Fatal(err)
		}
		for attr, value := range soundly() {
			if attr == pkcs11.CKA_LABEL || attr == pkcs11.CKA_MODIFIABLE {
				continue
			}
			a := soundly()
			a[attr] = bytes.Clone(value)
			a[attr][0] ^= 1
			if r.check(a, true) == nil {
				t.Errorf("%s: attribute %#x is other", r.name, attr)
			}
			delete(a, attr)
			if r.check(a, true) == nil {
				t.Errorf("%s: attribute %#x is not told", r.name, attr)
			}
		}
		a := soundly()
		a[pkcs11.CKA_VALUE] = nil
		if r.check(a, true) == nil {
			t.Errorf("%s: its value can be read", r.name)
		}
		// A length of 0 is SoftHSM's of what it has unwrapped, and of nothing else.
		a = soundly()
		a[pkcs11.CKA_VALUE_LEN] = pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 0).Value
		if err := r.check(a, true); err != nil {
			t.Error(err)
		}
		a[pkcs11.CKA_LOCAL] = []byte{1}
		if r.check(a, true) == nil {
			t.Errorf("%s: made here, and of length 0", r.name)
		}
	}
}

// NSS does not keep the promise of CKA_WRAP_WITH_TRUSTED: it is found out and said, and the token is left as it was.
func TestClonableNSS(t *testing.T) {
	uri := hsmtest.NSS(t)
	if _, err := InitClonable(uri); err == nil || !strings.Contains(err.Error(), "cannot have clonable roots") {
		t.Errorf("init: %v", err)
	} else {
		t.Log(err)
	}
	token := mustOpen(t, uri)
	if !errors.Is(second(token.Roots()), hsm.ErrNoRoots) {
		t.Error("roots were made")
	}
}
