package p11

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/miekg/pkcs11"
)

// Clonable roots are CKA_SENSITIVE, CKA_EXTRACTABLE and CKA_WRAP_WITH_TRUSTED: the token wraps them under a key that its Security Officer has marked as
// CKA_TRUSTED, and under no other. The user's PIN alone brings no root out, and neither does the officer's. Clone copies them:
//
//	target            an RSA pair, session objects, the private half never extractable, for C_UnwrapKey only
//	source, officer   its public half as a token object, CKA_TRUSTED, for C_WrapKey only
//	source, user      C_WrapKey of each root, CKM_RSA_PKCS_OAEP; the public half is destroyed
//	target            C_UnwrapKey, clonable again; the attributes are read back; the pair is destroyed
//	                  the root ID and a key wrapped by the source prove that both roots are the source's
//
// What passes through this process is wrapped. Where it goes is the officer's and the user's word: whoever has both PINs, and names a target that is no HSM, has the
// roots.

const (
	transportBits  = 3072
	transportLabel = "keyplane clone transport"
)

// ErrOtherRoot is a target that holds another root.
var ErrOtherRoot = errors.New("p11: the token holds another root already: it is left as it is")

// kindOf says how a root is kept.
func kindOf(clonable bool) string {
	if clonable {
		return "clonable: wrapped under a key that the Security Officer has marked as trusted, and no other"
	}
	return "never extractable"
}

// clonable says whether these attributes are those of a clonable key. Whether they are all that they must be is unguarded's.
func (a attributes) clonable() bool {
	return a.is(pkcs11.CKA_EXTRACTABLE, true) && a.is(pkcs11.CKA_WRAP_WITH_TRUSTED, true)
}

// unguarded is what speaks against a clonable key. CKA_LOCAL, CKA_ALWAYS_SENSITIVE and CKA_NEVER_EXTRACTABLE say nothing of a clone: that it is one is proved by what it does.
func (a attributes) unguarded() (faults []string) {
	for _, w := range []struct {
		attr uint
		name string
	}{{pkcs11.CKA_TOKEN, "CKA_TOKEN"}, {pkcs11.CKA_PRIVATE, "CKA_PRIVATE"}, {pkcs11.CKA_SENSITIVE, "CKA_SENSITIVE"}, {pkcs11.CKA_EXTRACTABLE, "CKA_EXTRACTABLE"},
		{pkcs11.CKA_WRAP_WITH_TRUSTED, "CKA_WRAP_WITH_TRUSTED"}} {
		if !a.is(w.attr, true) {
			faults = append(faults, w.name+" is not true")
		}
	}
	if _, ok := a[pkcs11.CKA_VALUE]; ok {
		faults = append(faults, "CKA_VALUE can be read")
	}
	return faults
}

// writable runs f on a read-write session of its own. f holds the module.
func (t *Token) writable(f func(slot uint, session pkcs11.SessionHandle) error) error {
	t.mod.mu.RLock()
	defer t.mod.mu.RUnlock()
	session, err := t.mod.ctx.OpenSession(t.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return failed("C_OpenSession", err)
	}
	defer t.mod.ctx.CloseSession(session)
	return f(t.slot, session)
}

// tryClonable finds out, with keys that end with it, whether the token keeps what clonable roots rest on: a key that is CKA_WRAP_WITH_TRUSTED stays so, also as a copy, and is
// wrapped under no key that is not trusted; and the user cannot make a trusted key.
func (t *Token) tryClonable(slot uint, session pkcs11.SessionHandle) (err error) {
	c := &carrier{t: t, session: session}
	defer c.destroy(&err)
	refuse := func(why string) error {
		return fmt.Errorf("p11: token %q cannot have clonable roots: %s", t.info.Label, why)
	}
	template := derivationRoot.template(true, true)
	for i, a := range template {
		if a.Type == pkcs11.CKA_TOKEN {
			template[i] = pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false)
		}
	}
	key, err := c.keep(t.mod.ctx.GenerateKey(session, mech(pkcs11.CKM_AES_KEY_GEN, nil), template))
	if err != nil {
		return refuse("it makes no key that is CKA_WRAP_WITH_TRUSTED: " + failed("C_GenerateKey", err).Error())
	}
	guarded := func(object pkcs11.ObjectHandle) bool {
		a, err := t.read(session, object)
		_, readable := a[pkcs11.CKA_VALUE]
		return err == nil && a.is(pkcs11.CKA_WRAP_WITH_TRUSTED, true) && a.is(pkcs11.CKA_SENSITIVE, true) && !readable
	}
	if !guarded(key) {
		return refuse("it does not say of a key that it is CKA_WRAP_WITH_TRUSTED")
	}
	open := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_WRAP_WITH_TRUSTED, false)}
	if _ = t.mod.ctx.SetAttributeValue(session, key, open); !guarded(key) {
		return refuse("CKA_WRAP_WITH_TRUSTED can be taken away again")
	}
	if copied, err := c.keep(t.mod.ctx.CopyObject(session, key, open)); err == nil && !guarded(copied) {
		return refuse("a copy of a key need not be CKA_WRAP_WITH_TRUSTED")
	}
	out := make([]byte, wrappedMax)
	defer secret.Wipe(out)
	untrusted, err := c.keep(t.mod.ctx.CreateObject(session, transportPublic(randomModulus(), nil, false, false)))
	if err != nil {
		return refuse("it takes no RSA public key: " + failed("C_CreateObject", err).Error())
	}
	for _, w := range []keyspec.Wrapping{keyspec.WrapOAEP256, keyspec.WrapOAEP1} {
		if _, err := t.mod.fns.wrapInto(uint(session), oaepOf(w), uint(untrusted), uint(key), out); err == nil {
			return refuse("it wraps a key that is CKA_WRAP_WITH_TRUSTED under an RSA key that is not trusted")
		}
	}
	if _, pad, err := t.wrapper(slot); err == nil {
		kek, err := c.keep(t.mod.ctx.GenerateKey(session, mech(pkcs11.CKM_AES_KEY_GEN, nil),
			append(form{usages: []uint{pkcs11.CKA_WRAP}}.template(keyspec.AES256), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, kekBytes))))
		if err != nil {
			return failed("C_GenerateKey", err)
		}
		if _, err := t.mod.fns.wrapInto(uint(session), operation{mechanism: pad}, uint(kek), uint(key), out); err == nil {
			return refuse("it wraps a key that is CKA_WRAP_WITH_TRUSTED under an AES key that is not trusted")
		}
	}
	if forged, err := c.keep(t.mod.ctx.CreateObject(session, transportPublic(randomModulus(), nil, false, true))); err == nil {
		if a, err := t.readThese(session, forged, []uint{pkcs11.CKA_TRUSTED}); err != nil || a.is(pkcs11.CKA_TRUSTED, true) {
			return refuse("its user can mark keys as CKA_TRUSTED")
		}
	}
	return nil
}

// randomModulus is the size of an RSA modulus, and nobody's.
func randomModulus() []byte {
	n := make([]byte, 2048/8)
	_, _ = rand.Read(n) // it does not fail
	n[0] |= 0x80
	n[len(n)-1] |= 1
	return n
}

// transportPublic is an RSA public key that wraps.
func transportPublic(modulus, id []byte, token, trusted bool) []*pkcs11.Attribute {
	t := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, token),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, false),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, transportLabel),
		pkcs11.NewAttribute(pkcs11.CKA_ID, id),
		pkcs11.NewAttribute(pkcs11.CKA_WRAP, true),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, false),
		pkcs11.NewAttribute(pkcs11.CKA_VERIFY, false),
		pkcs11.NewAttribute(pkcs11.CKA_MODULUS, modulus),
		pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent),
	}
	if trusted {
		t = append(t, pkcs11.NewAttribute(pkcs11.CKA_TRUSTED, true))
	}
	return t
}

// proof is what a token with the same roots can do: it has the root ID, and brings in a key that was wrapped under the wrapping root.
type proof struct {
	root hsm.RootID
	made madeKey // of keyspec.AES256
}

// prove makes the proof.
func (t *Token) cloneProof() (p proof, err error) {
	if p.root, err = t.rootID(); err != nil {
		return p, err
	}
	err = t.withKeySession(func(slot uint, session pkcs11.SessionHandle) error {
		w, err := t.findRoot(session, wrappingRoot)
		if err == nil {
			p.made, err = t.makeKey(slot, session, w, keyspec.AES256)
		}
		return err
	})
	return p, err
}

// lacking are the roots that a token lacks of those that the proof is of. ErrOtherRoot if one that it has is another.
func (t *Token) lacking(p *proof) (lacks []root, err error) {
	for _, r := range slices.Backward(roots) { // the derivation root comes last: it is what a token is known by
		err := t.withKeySession(func(_ uint, session pkcs11.SessionHandle) error {
			object, err := t.findRoot(session, r)
			if err == nil {
				_, err = t.readChecked(session, object, r)
			}
			return err
		})
		switch {
		case errors.Is(err, hsm.ErrNoRoots):
			lacks = append(lacks, r)
		case err != nil:
			return nil, fmt.Errorf("p11: token %q: %w", t.info.Label, err)
		case r.id == derivationRoot.id:
			id, err := t.rootID()
			if err != nil {
				return nil, err
			}
			if id != p.root {
				return nil, fmt.Errorf("%w (token %q: root %x)", ErrOtherRoot, t.info.Label, id)
			}
		default:
			if err := t.checkProof(p); err != nil {
				return nil, fmt.Errorf("%w (token %q: the wrapping root: %w)", ErrOtherRoot, t.info.Label, err)
			}
		}
	}
	return lacks, nil
}

// checkProof has the token bring in and use the key that the source wrapped.
func (t *Token) checkProof(p *proof) error {
	return t.withKeySession(func(_ uint, session pkcs11.SessionHandle) error {
		w, err := t.findRoot(session, wrappingRoot)
		if err != nil {
			return err
		}
		key, err := t.unwrap(session, w, keyspec.AES256, p.made.wrapped)
		if err != nil {
			return err
		}
		m, in := secretUse(keyspec.AES256)
		out := make([]byte, keyspec.AES256.Info().Result)
		n, err := t.mod.fns.operate(uint(session), uint(key), keyspec.AES256, m, false, in, out, nil)
		if derr := t.mod.ctx.DestroyObject(session, key); derr != nil {
			err = errors.Join(err, failed("C_DestroyObject", derr))
		}
		if err == nil && !bytes.Equal(out[:n], p.made.mac) {
			err = hsm.ErrWrong
		}
		return err
	})
}

// CloneReport says what Clone did to one target.
type CloneReport struct {
	From, To hsm.TokenInfo
	Root     hsm.RootID
	Copied   []string // labels of the roots copied now; none: it had them
	Audit    InitReport
}

// WriteTo prints the report as lines of text.
func (r CloneReport) WriteTo(w io.Writer) (int64, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "from          %s, serial %s\nto            %s, serial %s (%s, %s)\n", r.From.Label, r.From.Serial, r.To.Label, r.To.Serial, r.To.Manufacturer, r.To.Model)
	for _, root := range roots {
		state := "was there"
		if slices.Contains(r.Copied, root.label) {
			state = "copied"
		}
		fmt.Fprintf(&b, "%-13s %s\n", strings.TrimSuffix(root.name, " root")+" key", state)
	}
	switch {
	case r.Audit.NoAudit != "":
		fmt.Fprintf(&b, "%-13s none, %s: another token has to sign the audit log\n", auditPair.name, r.Audit.NoAudit)
	case len(r.Audit.Made) > 0:
		fmt.Fprintf(&b, "%-13s made: each token has its own\n", auditPair.name)
	default:
		fmt.Fprintf(&b, "%-13s was there: each token has its own\n", auditPair.name)
	}
	fmt.Fprintf(&b, "root ID       %x, the same as the source's; a key wrapped by the source opens here\n", r.Root)
	if r.To.Software {
		b.WriteString("note          the target protects keys by its host only\n")
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

// source is the token that a clone is made of, closed: the Security Officer logs in only where nobody else has a session.
type source struct {
	uri     string
	cfg     config // of this very token
	info    hsm.TokenInfo
	proof   proof
	officer secret.Bytes
}

// Clone copies the roots of one token, made by InitClonable, to others. A target that has them is left as it is, and what one lacks of them is added; one with another root is
// refused (ErrOtherRoot), before anything is done to it. The officer's PIN is the source's; it is tried once for each target that lacks something, and stays the caller's.
// Each target gets an audit key of its own. Reports are those of the targets before an error.
func Clone(from string, to []string, officer secret.Bytes) (reports []CloneReport, err error) {
	s, err := openSource(from, officer)
	if err != nil {
		return nil, err
	}
	for _, uri := range to {
		r, err := s.cloneTo(uri)
		if err != nil {
			return reports, err
		}
		reports = append(reports, r)
	}
	return reports, nil
}

func openSource(uri string, officer secret.Bytes) (s *source, err error) {
	t, err := open(uri)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	has, err := t.Roots()
	if err != nil {
		return nil, fmt.Errorf("p11: the source, token %q: %w", t.info.Label, err)
	}
	if !has.Clonable {
		return nil, fmt.Errorf("p11: the roots of token %q never leave it: only those that were made by keyplane hsm init --clonable can be cloned", t.info.Label)
	}
	s = &source{uri: uri, cfg: t.cfg, info: t.info, officer: officer}
	if s.proof, err = t.cloneProof(); err != nil {
		return nil, fmt.Errorf("p11: the source, token %q, cannot prove what its wrapping root is: %w", t.info.Label, err)
	}
	return s, nil
}

func (s *source) cloneTo(uri string) (report CloneReport, err error) {
	t, err := open(uri)
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	report = CloneReport{From: s.info, To: t.info, Root: s.proof.root}
	if t.info.Serial == s.info.Serial && t.info.Label == s.info.Label && t.info.Module == s.info.Module {
		return report, errors.New("p11: source and target are one token")
	}
	lacks, err := t.lacking(&s.proof)
	if err != nil {
		return report, err
	}
	if len(lacks) > 0 {
		if err := t.writable(func(slot uint, session pkcs11.SessionHandle) error { return s.copy(t, slot, session, lacks) }); err != nil {
			return report, fmt.Errorf("p11: cloning to token %q: %w", t.info.Label, err)
		}
		for _, r := range lacks {
			report.Copied = append(report.Copied, r.label)
		}
	}
	return report, t.initAudit(&report.Audit)
}

// copy brings roots into a target. What it brought is destroyed again unless it is proved. It needs the target's mod.mu; the source may be a token of the same module, whose lock
// is only ever tried for writing, so that it may be held for reading twice.
func (s *source) copy(t *Token, slot uint, session pkcs11.SessionHandle, lacks []root) (err error) {
	if err := t.tryClonable(slot, session); err != nil {
		return err
	}
	pair := &carrier{t: t, session: session}
	defer pair.destroy(&err)
	private, modulus, err := t.transport(pair)
	if err != nil {
		return err
	}
	sealed, err := s.wrapFor(modulus, lacks)
	if err != nil {
		return err
	}
	brought := &carrier{t: t, session: session}
	defer func() {
		if err != nil {
			brought.destroy(&err)
		}
	}()
	for i, r := range lacks {
		object, err := brought.keep(t.unseal(session, private, r, sealed, i))
		if err != nil {
			return err
		}
		if _, err := t.readChecked(session, object, r); err != nil {
			return err
		}
	}
	has, err := t.Roots()
	switch {
	case err != nil:
		return err
	case has.ID != s.proof.root:
		return fmt.Errorf("%w: the derivation root that came is another: root %x, not %x", hsm.ErrWrong, has.ID, s.proof.root)
	}
	if err := t.checkProof(&s.proof); err != nil {
		return fmt.Errorf("the wrapping root that came is another: %w", err)
	}
	return nil
}

// transport makes the RSA pair under which roots come.
func (t *Token) transport(c *carrier) (private pkcs11.ObjectHandle, modulus []byte, err error) {
	f := form{usages: []uint{pkcs11.CKA_UNWRAP}}
	public, private, err := t.mod.ctx.GenerateKeyPair(c.session, mech(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil), []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, transportBits),
		pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent),
		pkcs11.NewAttribute(pkcs11.CKA_WRAP, true),
	}, append(f.template(keyspec.RSA3072), pkcs11.NewAttribute(pkcs11.CKA_LABEL, transportLabel)))
	if err != nil {
		return 0, nil, failed("C_GenerateKeyPair", err)
	}
	c.objects = append(c.objects, private, public)
	a, err := t.readKey(c.session, private, keyspec.RSA3072)
	if err == nil {
		err = f.check(keyspec.RSA3072, a)
	}
	if err != nil {
		return 0, nil, err
	}
	return private, a[pkcs11.CKA_MODULUS], nil
}

// sealed are roots wrapped in one way.
type sealed struct {
	how   operation
	roots [][]byte // in the order that they were asked for
}

// unseal brings in the root that is the i-th of each way, by the first way that the token takes.
func (t *Token) unseal(session pkcs11.SessionHandle, private pkcs11.ObjectHandle, r root, ways []sealed, i int) (object pkcs11.ObjectHandle, err error) {
	for _, w := range ways {
		for _, modifiable := range []bool{t.thawed(r), true} {
			object, err = t.mod.ctx.UnwrapKey(session, w.how.oaep(), private, w.roots[i], r.bareTemplate(modifiable, true))
			if code, ok := err.(pkcs11.Error); !ok || !slices.Contains(templateRefused, uint(code)) {
				break
			}
		}
		if err == nil {
			return object, nil
		}
	}
	return 0, failed("C_UnwrapKey", err)
}

// wrapFor wraps roots under a public key that the Security Officer marks as trusted for it, in every way that the source can.
func (s *source) wrapFor(modulus []byte, wanted []root) (ways []sealed, err error) {
	id := []byte("kp/" + hex.EncodeToString(random(6)) + "/")[:16]
	if err := s.asOfficer(func(m *module, session pkcs11.SessionHandle) error {
		if err := m.destroyTransports(session); err != nil { // of a clone that was interrupted
			return err
		}
		return m.createTrusted(session, modulus, id)
	}); err != nil {
		return nil, fmt.Errorf("the Security Officer of the source, token %q: %w", s.info.Label, err)
	}
	gone := false
	defer func() {
		if gone {
			return
		}
		if derr := s.asOfficer(func(m *module, session pkcs11.SessionHandle) error { return m.destroyTransports(session) }); derr != nil {
			ways, err = nil, errors.Join(err, fmt.Errorf("destroying the trusted key %q in token %q: %w", transportLabel, s.info.Label, derr))
		}
	}()
	t, err := openAs(s.cfg, secret.Bytes{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	err = t.writable(func(_ uint, session pkcs11.SessionHandle) error {
		found, err := t.findTwo(session, pkcs11.CKO_PUBLIC_KEY, string(id))
		if err != nil {
			return err
		}
		if len(found) != 1 {
			return fmt.Errorf("%d objects are the trusted key", len(found))
		}
		ways, err = t.wrapRoots(session, found[0], modulus, wanted)
		gone = t.mod.ctx.DestroyObject(session, found[0]) == nil // else the officer has to
		return err
	})
	return ways, err
}

// wrapRoots wraps under the trusted key, if it is that.
func (t *Token) wrapRoots(session pkcs11.SessionHandle, trusted pkcs11.ObjectHandle, modulus []byte, wanted []root) (ways []sealed, err error) {
	a, err := t.readThese(session, trusted, []uint{pkcs11.CKA_TRUSTED, pkcs11.CKA_WRAP, pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT})
	if err != nil {
		return nil, err
	}
	if !a.is(pkcs11.CKA_TRUSTED, true) || !bytes.Equal(bytes.TrimLeft(a[pkcs11.CKA_MODULUS], "\x00"), bytes.TrimLeft(modulus, "\x00")) ||
		!bytes.Equal(bytes.TrimLeft(a[pkcs11.CKA_PUBLIC_EXPONENT], "\x00"), publicExponent) {
		return nil, errors.New("the trusted key in the source is not the target's, or not trusted")
	}
	key := rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: 65537}
	for _, w := range []keyspec.Wrapping{keyspec.WrapOAEP256, keyspec.WrapOAEP1} {
		way := sealed{how: oaepOf(w)}
		for _, r := range wanted {
			object, ferr := t.findRoot(session, r)
			if ferr != nil {
				return nil, ferr
			}
			out := make([]byte, key.Size())
			var n int
			if n, err = t.mod.fns.wrapInto(uint(session), way.how, uint(trusted), uint(object), out); err != nil {
				break
			}
			if n != len(out) {
				return nil, fmt.Errorf("%w: an RSA block of %d bytes", hsm.ErrWrong, n)
			}
			way.roots = append(way.roots, out)
		}
		if len(way.roots) == len(wanted) {
			ways = append(ways, way)
		}
	}
	if len(ways) == 0 {
		return nil, err
	}
	return ways, nil
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it does not fail
	return b
}

// asOfficer runs f on a session in which the source's Security Officer is logged in. A PIN that is refused is not tried again.
func (s *source) asOfficer(f func(m *module, session pkcs11.SessionHandle) error) (err error) {
	if s.officer.Len() == 0 {
		return errors.New("its PIN is missing")
	}
	m, err := acquire(s.cfg.modulePath, s.cfg.initArgs)
	if err != nil {
		return err
	}
	defer m.release()
	m.mu.RLock()
	defer m.mu.RUnlock()
	slot, ti, err := m.find(s.cfg)
	if err != nil {
		return err
	}
	if ti.Flags&(pkcs11.CKF_SO_PIN_LOCKED|pkcs11.CKF_SO_PIN_FINAL_TRY) != 0 {
		return fmt.Errorf("the token says that the PIN is locked or has one try left: %w", hsm.ErrPIN)
	}
	name := ti.SerialNumber + " " + ti.Label + " (officer)"
	if m.refuses(name) {
		return hsm.ErrPIN
	}
	session, err := m.ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return failed("C_OpenSession", err)
	}
	defer m.ctx.CloseSession(session) // it logs out where it is the last
	if err := m.fns.loginOfficer(uint(session), s.officer.Expose()); err != nil {
		if e, ok := errors.AsType[*hsm.Error](err); ok && slices.Contains([]hsm.CKR{hsm.CKR_PIN_INCORRECT, hsm.CKR_PIN_LOCKED, hsm.CKR_PIN_EXPIRED, hsm.CKR_PIN_INVALID,
			hsm.CKR_PIN_LEN_RANGE}, e.CKR) {
			m.refuse(name)
			return fmt.Errorf("%w: %w", hsm.ErrPIN, err)
		}
		return err
	}
	err = f(m, session)
	if lerr := m.ctx.Logout(session); lerr != nil {
		err = errors.Join(err, failed("C_Logout", lerr))
	}
	return err
}

// createTrusted makes the trusted public key. It needs m.mu.
func (m *module) createTrusted(session pkcs11.SessionHandle, modulus, id []byte) error {
	_, err := m.ctx.CreateObject(session, transportPublic(modulus, id, true, true))
	if code, ok := err.(pkcs11.Error); ok && slices.Contains(templateRefused, uint(code)) { // some take the mark only afterwards
		var object pkcs11.ObjectHandle
		if object, err = m.ctx.CreateObject(session, transportPublic(modulus, id, true, false)); err == nil {
			err = m.ctx.SetAttributeValue(session, object, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TRUSTED, true)})
			return failed("C_SetAttributeValue", err)
		}
	}
	return failed("C_CreateObject", err)
}

// destroyTransports destroys every trusted key that a clone has made. It needs m.mu.
func (m *module) destroyTransports(session pkcs11.SessionHandle) error {
	if err := m.ctx.FindObjectsInit(session, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, transportLabel),
	}); err != nil {
		return failed("C_FindObjectsInit", err)
	}
	found, _, err := m.ctx.FindObjects(session, 100)
	if ferr := m.ctx.FindObjectsFinal(session); err == nil && ferr != nil {
		return failed("C_FindObjectsFinal", ferr)
	}
	if err != nil {
		return failed("C_FindObjects", err)
	}
	for _, object := range found {
		if err := m.ctx.DestroyObject(session, object); err != nil {
			return failed("C_DestroyObject", err)
		}
	}
	return nil
}
