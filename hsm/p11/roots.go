package p11

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unsafe"

	"github.com/keyplane/keyplane/hsm"
	"github.com/miekg/pkcs11"
)

// root is one of the two keys that a token of keyplane holds.
type root struct {
	name   string // for messages
	label  string // CKA_LABEL
	id     string // CKA_ID, 16 bytes
	usages []uint // the only usages that are true
}

var (
	derivationRoot = root{"derivation root", "keyplane derivation root", "keyplane/root/R1", []uint{pkcs11.CKA_ENCRYPT}}
	wrappingRoot   = root{"wrapping root", "keyplane wrapping root", "keyplane/root/W1", []uint{pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP}}
)

// roots are all that a token holds.
var roots = []root{derivationRoot, wrappingRoot}

const rootBytes = 32 // AES-256

var usageNames = []struct {
	attr uint
	name string
}{
	{pkcs11.CKA_ENCRYPT, "CKA_ENCRYPT"}, {pkcs11.CKA_DECRYPT, "CKA_DECRYPT"}, {pkcs11.CKA_WRAP, "CKA_WRAP"},
	{pkcs11.CKA_UNWRAP, "CKA_UNWRAP"}, {pkcs11.CKA_SIGN, "CKA_SIGN"}, {pkcs11.CKA_VERIFY, "CKA_VERIFY"}, {pkcs11.CKA_DERIVE, "CKA_DERIVE"},
}

func (r root) uses(attr uint) bool {
	for _, u := range r.usages {
		if u == attr {
			return true
		}
	}
	return false
}

// template is what the root is generated with.
func (r root) template(modifiable, clonable bool) []*pkcs11.Attribute {
	return append(r.bareTemplate(modifiable, clonable), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, rootBytes))
}

// bareTemplate is without the length, which C_UnwrapKey is not told.
func (r root) bareTemplate(modifiable, clonable bool) []*pkcs11.Attribute {
	t := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, r.label),
		pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(r.id)),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, clonable),
	}
	if clonable {
		t = append(t, pkcs11.NewAttribute(pkcs11.CKA_WRAP_WITH_TRUSTED, true))
	}
	for _, u := range usageNames {
		t = append(t, pkcs11.NewAttribute(u.attr, r.uses(u.attr)))
	}
	if !modifiable {
		t = append(t, pkcs11.NewAttribute(pkcs11.CKA_MODIFIABLE, false))
	}
	return t
}

// attributes are what a token says of an object; a type that is missing is one the token would not tell.
type attributes map[uint][]byte

func (a attributes) is(attr uint, want bool) bool {
	v, ok := a[attr]
	return ok && len(v) == 1 && (v[0] != 0) == want
}

func (a attributes) ulong(attr uint) (uint, bool) {
	v := a[attr]
	switch {
	case unsafe.Sizeof(uint(0)) == 8 && len(v) == 8:
		return uint(binary.NativeEndian.Uint64(v)), true
	case len(v) == 4:
		return uint(binary.NativeEndian.Uint32(v)), true
	}
	return 0, false
}

// check holds a root's attributes, as read back from the token, to what keyplane's promise rests on. All faults are in the one error.
// local says whether CKA_LOCAL means anything on this token (localMatters). Where it does not, as on NSS, CKA_ALWAYS_SENSITIVE and
// CKA_NEVER_EXTRACTABLE carry the proof: a module sets both to false on a key that was made outside and brought in (PKCS#11 2.40 §4.9).
// A clonable root (clone.go) is the other kind that there is.
func (r root) check(a attributes, local bool) error {
	faults := a.unprotected(local)
	if a.clonable() {
		faults = a.unguarded()
	}
	for _, u := range usageNames {
		if want := r.uses(u.attr); !a.is(u.attr, want) {
			faults = append(faults, fmt.Sprintf("%s is not %v", u.name, want))
		}
	}
	if v, ok := a.ulong(pkcs11.CKA_CLASS); !ok || v != pkcs11.CKO_SECRET_KEY {
		faults = append(faults, "CKA_CLASS is not CKO_SECRET_KEY")
	}
	if v, ok := a.ulong(pkcs11.CKA_KEY_TYPE); !ok || v != pkcs11.CKK_AES {
		faults = append(faults, "CKA_KEY_TYPE is not CKK_AES")
	}
	// SoftHSM says 0 of every key that it has unwrapped: what a clone does is held to what the root does that it is a clone of.
	if v, ok := a.ulong(pkcs11.CKA_VALUE_LEN); !ok || v != rootBytes && (v != 0 || !a.clonable() || a.is(pkcs11.CKA_LOCAL, true)) {
		faults = append(faults, "CKA_VALUE_LEN is not 32")
	}
	if !bytes.Equal(a[pkcs11.CKA_ID], []byte(r.id)) {
		faults = append(faults, "CKA_ID is not "+r.id)
	}
	return refusal(r.name, faults)
}

func refusal(name string, faults []string) error {
	if len(faults) > 0 {
		return fmt.Errorf("%s refused: %s", name, strings.Join(faults, ", "))
	}
	return nil
}

// unprotected is what speaks against a key that is said never to have left this token and never to leave it.
func (a attributes) unprotected(local bool) (faults []string) {
	for _, w := range []struct {
		attr uint
		name string
		want bool
	}{
		{pkcs11.CKA_TOKEN, "CKA_TOKEN", true},
		{pkcs11.CKA_PRIVATE, "CKA_PRIVATE", true},
		{pkcs11.CKA_SENSITIVE, "CKA_SENSITIVE", true},
		{pkcs11.CKA_ALWAYS_SENSITIVE, "CKA_ALWAYS_SENSITIVE", true},
		{pkcs11.CKA_EXTRACTABLE, "CKA_EXTRACTABLE", false},
		{pkcs11.CKA_NEVER_EXTRACTABLE, "CKA_NEVER_EXTRACTABLE", true},
		{pkcs11.CKA_LOCAL, "CKA_LOCAL", true},
	} {
		if !a.is(w.attr, w.want) && (local || w.attr != pkcs11.CKA_LOCAL) {
			faults = append(faults, fmt.Sprintf("%s is not %v", w.name, w.want))
		}
	}
	if _, ok := a[pkcs11.CKA_VALUE]; ok {
		faults = append(faults, "CKA_VALUE can be read")
	}
	return faults
}

// checkCopy holds a session's working copy to its root's protection and usage. Where it came from is not asked: modules differ in what
// C_CopyObject leaves of CKA_LOCAL, CKA_ALWAYS_SENSITIVE and CKA_NEVER_EXTRACTABLE, and the root itself has been checked.
func (r root) checkCopy(a attributes) error {
	if !a.is(pkcs11.CKA_TOKEN, false) {
		return errors.New("the working copy is not a session object")
	}
	origin := attributes{}
	for attr, value := range a {
		origin[attr] = value
	}
	for _, attr := range []uint{pkcs11.CKA_TOKEN, pkcs11.CKA_LOCAL, pkcs11.CKA_ALWAYS_SENSITIVE, pkcs11.CKA_NEVER_EXTRACTABLE} {
		origin[attr] = []byte{1}
	}
	if n, ok := a.ulong(pkcs11.CKA_VALUE_LEN); ok && n == 0 && a.clonable() {
		origin[pkcs11.CKA_VALUE_LEN] = pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, rootBytes).Value
	}
	return r.check(origin, true)
}

// read asks for the attributes one by one, because one that the token does not know spoils a whole list. The value, should the token give
// it away, is wiped and leaves an empty entry.
func (t *Token) read(session pkcs11.SessionHandle, object pkcs11.ObjectHandle) (attributes, error) {
	wanted := []uint{pkcs11.CKA_CLASS, pkcs11.CKA_KEY_TYPE, pkcs11.CKA_VALUE_LEN, pkcs11.CKA_ID, pkcs11.CKA_TOKEN, pkcs11.CKA_PRIVATE,
		pkcs11.CKA_SENSITIVE, pkcs11.CKA_ALWAYS_SENSITIVE, pkcs11.CKA_EXTRACTABLE, pkcs11.CKA_NEVER_EXTRACTABLE, pkcs11.CKA_LOCAL,
		pkcs11.CKA_WRAP_WITH_TRUSTED, pkcs11.CKA_MODIFIABLE, pkcs11.CKA_EC_PARAMS, pkcs11.CKA_VALUE}
	for _, u := range usageNames {
		wanted = append(wanted, u.attr)
	}
	return t.readThese(session, object, wanted)
}

// secretParts are the attributes that no token may tell of a key in it.
var secretParts = []uint{pkcs11.CKA_VALUE, pkcs11.CKA_PRIVATE_EXPONENT, pkcs11.CKA_PRIME_1}

func (t *Token) readThese(session pkcs11.SessionHandle, object pkcs11.ObjectHandle, wanted []uint) (attributes, error) {
	a := attributes{}
	for _, attr := range wanted {
		value, err := t.attribute(session, object, attr)
		if code, ok := err.(pkcs11.Error); ok && (code == pkcs11.CKR_ATTRIBUTE_TYPE_INVALID || code == pkcs11.CKR_ATTRIBUTE_SENSITIVE) {
			continue
		}
		if err != nil {
			return nil, failed("C_GetAttributeValue", err)
		}
		if !slices.Contains(secretParts, attr) {
			a[attr] = value
		} else if len(value) > 0 {
			clear(value)
			a[attr] = nil
		}
	}
	return a, nil
}

// getAttribute is Token.attribute outside tests.
func (t *Token) getAttribute(session pkcs11.SessionHandle, object pkcs11.ObjectHandle, attr uint) ([]byte, error) {
	got, err := t.mod.ctx.GetAttributeValue(session, object, []*pkcs11.Attribute{{Type: attr}})
	if err != nil {
		return nil, err
	}
	return got[0].Value, nil
}

// findRoot finds the one object with the root's CKA_ID; hsm.ErrNoRoots if there is none.
func (t *Token) findRoot(session pkcs11.SessionHandle, r root) (pkcs11.ObjectHandle, error) {
	found, err := t.findTwo(session, pkcs11.CKO_SECRET_KEY, r.id)
	switch {
	case err != nil:
		return 0, err
	case len(found) == 0:
		return 0, hsm.ErrNoRoots
	case len(found) > 1:
		return 0, fmt.Errorf("p11: more than one object has the CKA_ID of the %s: remove the wrong one first", r.name)
	}
	return found[0], nil
}

// findTwo finds token objects by class and CKA_ID, two at most.
func (t *Token) findTwo(session pkcs11.SessionHandle, class uint, id string) ([]pkcs11.ObjectHandle, error) {
	ctx := t.mod.ctx
	err := ctx.FindObjectsInit(session, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, class),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), // sessions' working copies have the same CKA_ID
		pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(id)),
	})
	if err != nil {
		return nil, failed("C_FindObjectsInit", err)
	}
	found, _, err := ctx.FindObjects(session, 2)
	if ferr := ctx.FindObjectsFinal(session); err == nil && ferr != nil {
		return nil, failed("C_FindObjectsFinal", ferr)
	}
	if err != nil {
		return nil, failed("C_FindObjects", err)
	}
	return found, nil
}

// Roots reads both roots' attributes back, refuses them unless they are as InitRoots makes them, and names the derivation root.
func (t *Token) Roots() (hsm.Roots, error) {
	s, err := t.OpenSession()
	if err != nil {
		return hsm.Roots{}, err
	}
	defer s.Close()
	handle := s.(*session).handle
	clonable := false
	for _, r := range roots {
		t.mod.mu.RLock()
		a, err := t.verify(handle, r)
		t.mod.mu.RUnlock()
		if err != nil {
			return hsm.Roots{}, err
		}
		clonable = clonable || a.clonable()
	}
	id, err := rootIDOf(s)
	return hsm.Roots{ID: id, Clonable: clonable}, err
}

// rootID names the derivation root, whatever else there is.
func (t *Token) rootID() (hsm.RootID, error) {
	s, err := t.OpenSession()
	if err != nil {
		return hsm.RootID{}, err
	}
	defer s.Close()
	return rootIDOf(s)
}

func rootIDOf(s hsm.Session) (hsm.RootID, error) {
	var image [16]byte
	if err := s.Round([]byte(hsm.RootIDBlock), image[:], nil); err != nil {
		return hsm.RootID{}, err
	}
	return hsm.RootID(image[:8]), nil
}

func (t *Token) verify(session pkcs11.SessionHandle, r root) (attributes, error) {
	object, err := t.findRoot(session, r)
	if err != nil {
		return nil, err
	}
	a, err := t.readChecked(session, object, r)
	if err != nil {
		return nil, fmt.Errorf("p11: %w", err)
	}
	return a, nil
}

func (t *Token) readChecked(session pkcs11.SessionHandle, object pkcs11.ObjectHandle, r root) (attributes, error) {
	a, local, err := t.readLocal(session, object)
	if err != nil {
		return nil, err
	}
	return a, r.check(a, local)
}

// readLocal reads the attributes, and finds out whether CKA_LOCAL means anything where it is not true.
func (t *Token) readLocal(session pkcs11.SessionHandle, object pkcs11.ObjectHandle) (a attributes, local bool, err error) {
	if a, err = t.read(session, object); err != nil || a.is(pkcs11.CKA_LOCAL, true) {
		return a, true, err
	}
	local, err = t.localMatters(session)
	return a, local, err
}

// localMatters generates a session key and reports whether the module says CKA_LOCAL=true of it, as it must.
func (t *Token) localMatters(session pkcs11.SessionHandle) (bool, error) {
	object, err := t.mod.ctx.GenerateKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, rootBytes),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
	})
	if err != nil {
		return false, failed("C_GenerateKey", err)
	}
	local, err := t.attribute(session, object, pkcs11.CKA_LOCAL)
	if derr := t.mod.ctx.DestroyObject(session, object); derr != nil {
		return false, failed("C_DestroyObject", derr)
	}
	if err != nil {
		return false, nil // it will not even tell
	}
	return attributes{pkcs11.CKA_LOCAL: local}.is(pkcs11.CKA_LOCAL, true), nil
}

// InitReport says what InitRoots found and made.
type InitReport struct {
	Token      hsm.TokenInfo
	Root       hsm.RootID
	Clonable   bool     // the roots can be wrapped under a key that the Security Officer marks as trusted
	Made       []string // labels of the keys made now
	Modifiable []string // labels of the keys whose attributes are not frozen
	NoAudit    string   // why the token has no audit key; "": it has
	NotLocal   bool     // the module says CKA_LOCAL=false of keys it has generated
}

// WriteTo prints the report as lines of text.
func (r InitReport) WriteTo(w io.Writer) (int64, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "token         %s, serial %s (%s, %s)\n", r.Token.Label, r.Token.Serial, r.Token.Manufacturer, r.Token.Model)
	state := func(label string) string {
		if slices.Contains(r.Made, label) {
			return "made"
		}
		return "was there"
	}
	for _, root := range roots {
		fmt.Fprintf(&b, "%-13s %s: AES-256, sensitive, %s\n", strings.TrimSuffix(root.name, " root")+" key", state(root.label), kindOf(r.Clonable))
	}
	if r.NoAudit == "" {
		fmt.Fprintf(&b, "%-13s %s: EC P-256, sensitive, never extractable, for signatures\n", auditPair.name, state(auditPair.label))
	} else {
		fmt.Fprintf(&b, "%-13s none, %s: another token has to sign the audit log\n", auditPair.name, r.NoAudit)
	}
	for _, m := range r.Modifiable {
		fmt.Fprintf(&b, "note          %q is not CKA_MODIFIABLE=false: a software token, or one that does not take it\n", m)
	}
	fmt.Fprintf(&b, "root ID       %x\n", r.Root)
	if r.NotLocal {
		b.WriteString("note          the module says CKA_LOCAL=false of keys it has generated itself\n")
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

// InitRoots makes the roots and the audit key that the token lacks and refuses a token that lets them be extracted: a key whose attributes
// come back other than asked for is destroyed again. A second run makes nothing.
func InitRoots(uri string) (InitReport, error) { return initRoots(uri, false) }

// InitClonable is InitRoots with roots that Clone can copy to other tokens. It is refused where the token has roots that never leave it, and by tokens that do not
// keep the promise of CKA_WRAP_WITH_TRUSTED.
func InitClonable(uri string) (InitReport, error) { return initRoots(uri, true) }

func initRoots(uri string, clonable bool) (InitReport, error) {
	t, err := open(uri)
	if err != nil {
		return InitReport{}, err
	}
	defer t.Close()
	return t.initRootsAs(clonable)
}

func (t *Token) initRoots() (InitReport, error) { return t.initRootsAs(false) }

func (t *Token) initRootsAs(clonable bool) (InitReport, error) {
	report := InitReport{Token: t.info}
	if clonable {
		if err := t.writable(t.tryClonable); err != nil {
			return report, err
		}
	}
	for _, r := range roots {
		if err := t.initRoot(r, clonable, &report); err != nil {
			return report, err
		}
	}
	if err := t.initAudit(&report); err != nil {
		return report, err
	}
	has, err := t.Roots()
	report.Root, report.Clonable = has.ID, has.Clonable
	return report, err
}

func (t *Token) initRoot(r root, clonable bool, report *InitReport) error {
	ctx := t.mod.ctx
	t.mod.mu.RLock()
	defer t.mod.mu.RUnlock()
	session, err := ctx.OpenSession(t.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return failed("C_OpenSession", err)
	}
	defer ctx.CloseSession(session)
	object, err := t.findRoot(session, r)
	made := errors.Is(err, hsm.ErrNoRoots)
	if made {
		object, err = t.generate(session, r, clonable)
	}
	if err != nil {
		return err
	}
	a, err := t.readChecked(session, object, r)
	if err != nil {
		if made {
			if derr := ctx.DestroyObject(session, object); derr != nil {
				err = errors.Join(err, failed("C_DestroyObject", derr))
			}
		}
		return fmt.Errorf("p11: %w", err)
	}
	if clonable && !a.clonable() {
		return fmt.Errorf("p11: the %s is there and never leaves the token: it cannot become clonable", r.name)
	}
	if made {
		report.Made = append(report.Made, r.label)
	}
	if !a.is(pkcs11.CKA_LOCAL, true) && !a.clonable() {
		report.NotLocal = true
	}
	if !a.is(pkcs11.CKA_MODIFIABLE, false) {
		report.Modifiable = append(report.Modifiable, r.label)
	}
	return nil
}

// templateRefused is how modules say that they do not take CKA_MODIFIABLE=false.
var templateRefused = []uint{pkcs11.CKR_ATTRIBUTE_READ_ONLY, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID,
	pkcs11.CKR_TEMPLATE_INCONSISTENT}

// generate makes the root, frozen where the token can do that. A software token's derivation root is not: SoftHSM copies no frozen object
// (workingCopy), and who could thaw a root there can read the token's files.
func (t *Token) generate(session pkcs11.SessionHandle, r root, clonable bool) (pkcs11.ObjectHandle, error) {
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}
	object, err := t.mod.ctx.GenerateKey(session, mechanism, r.template(t.thawed(r), clonable))
	if code, ok := err.(pkcs11.Error); ok && slices.Contains(templateRefused, uint(code)) {
		object, err = t.mod.ctx.GenerateKey(session, mechanism, r.template(true, clonable))
	}
	if err != nil {
		return 0, failed("C_GenerateKey", err)
	}
	return object, nil
}

// thawed says whether a root is left modifiable.
func (t *Token) thawed(r root) bool { return t.info.Software && r.id == derivationRoot.id }
