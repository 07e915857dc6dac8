package p11

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"fmt"
	"slices"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/miekg/pkcs11"
)

// pair is an EC P-256 pair for signatures, beside the two roots.
type pair struct {
	name  string // for messages
	label string // CKA_LABEL of both halves
	id    string // CKA_ID of both halves, 16 bytes
	none  error  // that neither half is there
}

var (
	auditPair = pair{"audit key", "keyplane audit", "keyplane/audit/1", hsm.ErrNoAuditKey}
	caPair    = pair{"CA key", "keyplane CA", "keyplane/ca/0001", hsm.ErrNoCAKey}
)

// p256 is CKA_EC_PARAMS of the curve, its OID in DER.
var p256 = []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}

// signUsages are the usages that the private half of an EC pair may have (PKCS#11 3.0 §4.9): of them it has the one.
var signUsages = []uint{pkcs11.CKA_SIGN, pkcs11.CKA_DECRYPT, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE}

// templates are what the pair is generated with.
func (p pair) templates(modifiable bool) (public, private []*pkcs11.Attribute) {
	common := func(class uint, private bool) []*pkcs11.Attribute {
		t := []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, class),
			pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC),
			pkcs11.NewAttribute(pkcs11.CKA_LABEL, p.label),
			pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(p.id)),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
			pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, private),
		}
		if !modifiable {
			t = append(t, pkcs11.NewAttribute(pkcs11.CKA_MODIFIABLE, false))
		}
		return t
	}
	public = append(common(pkcs11.CKO_PUBLIC_KEY, false),
		pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, p256),
		pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true))
	private = append(common(pkcs11.CKO_PRIVATE_KEY, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false))
	for _, u := range signUsages {
		private = append(private, pkcs11.NewAttribute(u, u == pkcs11.CKA_SIGN))
	}
	return public, private
}

// check holds the private half's attributes to the same promise as a root's. A usage that the token does not tell of is none.
func (p pair) check(a attributes, local bool) error {
	faults := a.unprotected(local)
	for _, u := range usageNames {
		_, told := a[u.attr]
		switch {
		case u.attr == pkcs11.CKA_SIGN:
			if !a.is(u.attr, true) {
				faults = append(faults, u.name+" is not true")
			}
		case told && !a.is(u.attr, false):
			faults = append(faults, u.name+" is not false")
		}
	}
	if v, ok := a.ulong(pkcs11.CKA_CLASS); !ok || v != pkcs11.CKO_PRIVATE_KEY {
		faults = append(faults, "CKA_CLASS is not CKO_PRIVATE_KEY")
	}
	if v, ok := a.ulong(pkcs11.CKA_KEY_TYPE); !ok || v != pkcs11.CKK_EC {
		faults = append(faults, "CKA_KEY_TYPE is not CKK_EC")
	}
	if !bytes.Equal(a[pkcs11.CKA_EC_PARAMS], p256) {
		faults = append(faults, "CKA_EC_PARAMS is not P-256")
	}
	if !bytes.Equal(a[pkcs11.CKA_ID], []byte(p.id)) {
		faults = append(faults, "CKA_ID is not "+p.id)
	}
	return refusal(p.name, faults)
}

// findPair finds the pair by its CKA_ID; p.none if neither half is there.
func (t *Token) findPair(session pkcs11.SessionHandle, p pair) (public, private pkcs11.ObjectHandle, err error) {
	var n [2]int
	for i, half := range []struct {
		class  uint
		object *pkcs11.ObjectHandle
	}{{pkcs11.CKO_PUBLIC_KEY, &public}, {pkcs11.CKO_PRIVATE_KEY, &private}} {
		found, err := t.findTwo(session, half.class, p.id)
		if err != nil {
			return 0, 0, err
		}
		if n[i] = len(found); n[i] > 0 {
			*half.object = found[0]
		}
	}
	switch {
	case n == [2]int{0, 0}:
		return 0, 0, p.none
	case n[0] > 1 || n[1] > 1:
		return 0, 0, fmt.Errorf("p11: more than one object has the CKA_ID of the %s: remove the wrong one first", p.name)
	case n[0] == 0:
		return 0, 0, fmt.Errorf("p11: the public half of the %s is gone from the token: remove the other one and run keyplane %s init", p.name, p.command())
	case n[1] == 0:
		return 0, 0, fmt.Errorf("p11: the private half of the %s is gone from the token: remove the other one and run keyplane %s init", p.name, p.command())
	}
	return public, private, nil
}

// checkedPair finds and checks the pair. attributes are the private half's.
func (t *Token) checkedPair(session pkcs11.SessionHandle, p pair) (private pkcs11.ObjectHandle, public *ecdsa.PublicKey, a attributes, err error) {
	publicObject, private, err := t.findPair(session, p)
	if err != nil {
		return 0, nil, nil, err
	}
	public, a, err = t.checkPair(session, p, publicObject, private)
	return private, public, a, err
}

func (t *Token) checkPair(session pkcs11.SessionHandle, p pair, publicObject, private pkcs11.ObjectHandle) (*ecdsa.PublicKey, attributes, error) {
	a, local, err := t.readLocal(session, private)
	if err != nil {
		return nil, nil, err
	}
	if err := p.check(a, local); err != nil {
		return nil, nil, fmt.Errorf("p11: %w", err)
	}
	value, err := t.attribute(session, publicObject, pkcs11.CKA_EC_POINT)
	if err != nil {
		return nil, nil, failed("C_GetAttributeValue", err)
	}
	public, err := ecPoint(value)
	if err != nil {
		return nil, nil, fmt.Errorf("p11: CKA_EC_POINT of the %s: %w", p.name, err)
	}
	return public, a, nil
}

// ecPoint reads CKA_EC_POINT: an uncompressed point in a DER octet string; some modules leave the wrapping out.
func ecPoint(value []byte) (*ecdsa.PublicKey, error) {
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), pointOf(value, keyspec.P256.Info().Public))
}

// pairSession is one session and the handle of a pair's private half in it.
type pairSession struct {
	token      *Token
	handle     pkcs11.SessionHandle
	key        pkcs11.ObjectHandle
	public     *ecdsa.PublicKey
	generation uint64
	handles    uint64 // Token.handles when it was opened
	closed     bool
	gone       bool // as session.gone
}

// OpenAuditSession opens a read-only session and finds the audit key.
func (t *Token) OpenAuditSession() (hsm.AuditSession, error) { return t.openPair(auditPair) }

// OpenCASession opens a read-only session and finds the CA key.
func (t *Token) OpenCASession() (hsm.AuditSession, error) { return t.openPair(caPair) }

func (t *Token) openPair(p pair) (hsm.AuditSession, error) {
	t.mu.Lock()
	slot, login, closed, generation, handles := t.slot, t.login, t.closed, t.generation.Load(), t.handles.Load()
	t.mu.Unlock()
	if closed {
		return nil, hsm.ErrSessionClosed
	}
	t.mod.mu.RLock()
	defer t.mod.mu.RUnlock()
	handle, err := t.mod.ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return nil, failed("C_OpenSession", err)
	}
	s := &pairSession{token: t, handle: handle, generation: generation, handles: handles}
	if err = t.wantLogin(handle, login); err == nil {
		s.key, s.public, _, err = t.checkedPair(handle, p)
	}
	if err != nil {
		_ = t.mod.ctx.CloseSession(handle) // the first error is the one to report
		return nil, err
	}
	return s, nil
}

func (s *pairSession) Public() *ecdsa.PublicKey { return s.public }

func (s *pairSession) Sign(digest [32]byte) (sig [64]byte, err error) {
	if s.closed {
		return sig, hsm.ErrSessionClosed
	}
	m := s.token.mod
	m.mu.RLock()
	defer m.mu.RUnlock()
	if s.generation != s.token.generation.Load() { // not before: the module could begin anew in between
		return sig, &hsm.Error{CKR: hsm.CKR_SESSION_HANDLE_INVALID, Function: "C_SignInit"}
	}
	sig, err = m.sign(s.handle, s.key, digest)
	if e, ok := errors.AsType[*hsm.Error](err); ok && e.CKR == hsm.CKR_CRYPTOKI_NOT_INITIALIZED {
		s.gone = true
	}
	return sig, err
}

// sign needs m.mu.
func (m *module) sign(session pkcs11.SessionHandle, key pkcs11.ObjectHandle, digest [32]byte) (sig [64]byte, err error) {
	if err := m.ctx.SignInit(session, mech(pkcs11.CKM_ECDSA, nil), key); err != nil {
		return sig, failed("C_SignInit", err)
	}
	out, err := m.ctx.Sign(session, digest[:])
	if err != nil {
		return sig, failed("C_Sign", err)
	}
	if len(out) != len(sig) {
		return sig, hsm.ErrWrong
	}
	return [64]byte(out), nil
}

// Close closes the session under the conditions of session.Close.
func (s *pairSession) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	s.token.mod.mu.RLock()
	defer s.token.mod.mu.RUnlock()
	if s.gone || s.handles != s.token.handles.Load() {
		return nil
	}
	if err := s.token.mod.ctx.CloseSession(s.handle); err != nil {
		return failed("C_CloseSession", err)
	}
	return nil
}

// command is the one that makes the pair.
func (p pair) command() string {
	if p == caPair {
		return "ca"
	}
	return "hsm"
}

// lacks says why the token cannot have such a pair, "" if its mechanism list has what that takes. It needs mod.mu.
func (t *Token) lacks() (string, error) {
	for _, m := range []struct{ mechanism, flag uint }{
		{pkcs11.CKM_EC_KEY_PAIR_GEN, pkcs11.CKF_GENERATE_KEY_PAIR}, {pkcs11.CKM_ECDSA, pkcs11.CKF_SIGN},
	} {
		info, err := t.mod.ctx.GetMechanismInfo(t.slot, mech(m.mechanism, nil))
		switch {
		case err == pkcs11.Error(pkcs11.CKR_MECHANISM_INVALID), err == nil && info.Flags&m.flag == 0:
			return "the token has no " + mechanismName(m.mechanism), nil
		case err != nil:
			return "", failed("C_GetMechanismInfo", err)
		}
	}
	return "", nil
}

// pairReport is what initPair found and made.
type pairReport struct {
	made, frozen bool
	lacks        string // why the token has none; "": it has
	public       *ecdsa.PublicKey
}

// initPair makes the pair where there is none, and refuses it on the terms of the roots. A token that cannot have one is no error.
func (t *Token) initPair(p pair) (r pairReport, err error) {
	ctx := t.mod.ctx
	t.mod.mu.RLock()
	defer t.mod.mu.RUnlock()
	if r.lacks, err = t.lacks(); err != nil || r.lacks != "" {
		return r, err
	}
	session, err := ctx.OpenSession(t.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return r, failed("C_OpenSession", err)
	}
	defer ctx.CloseSession(session)
	publicObject, private, err := t.findPair(session, p)
	if r.made = errors.Is(err, p.none); r.made {
		publicObject, private, err = t.generatePair(session, p)
		if code, ok := err.(pkcs11.Error); ok {
			if slices.Contains(curveRefused, uint(code)) {
				return pairReport{lacks: "the token has no curve P-256"}, nil
			}
			err = failed("C_GenerateKeyPair", err)
		}
	}
	if err != nil {
		return r, err
	}
	var a attributes
	r.public, a, err = t.checkPair(session, p, publicObject, private)
	if err == nil {
		err = t.tryPair(session, p, private, r.public)
	}
	if err != nil {
		if r.made {
			for _, object := range []pkcs11.ObjectHandle{private, publicObject} {
				if derr := ctx.DestroyObject(session, object); derr != nil {
					err = errors.Join(err, failed("C_DestroyObject", derr))
				}
			}
		}
		return r, err
	}
	r.frozen = a.is(pkcs11.CKA_MODIFIABLE, false)
	return r, nil
}

// initAudit is initPair of the audit key. Where a token cannot have one another of the list may sign.
func (t *Token) initAudit(report *InitReport) error {
	r, err := t.initPair(auditPair)
	if report.NoAudit = r.lacks; err != nil || r.lacks != "" {
		return err
	}
	if r.made {
		report.Made = append(report.Made, auditPair.label)
	}
	if !r.frozen {
		report.Modifiable = append(report.Modifiable, auditPair.label)
	}
	return nil
}

// CAReport says what InitCA found and made.
type CAReport struct {
	Token        hsm.TokenInfo
	Public       *ecdsa.PublicKey
	Made, Frozen bool // made now; CKA_MODIFIABLE=false
}

// InitCA makes the CA key if the token lacks it, on the terms of the audit key: sensitive, never extractable, for signatures only, read back. A second run makes
// nothing.
func InitCA(uri string) (CAReport, error) {
	t, err := open(uri)
	if err != nil {
		return CAReport{}, err
	}
	defer t.Close()
	r, err := t.initPair(caPair)
	if err == nil && r.lacks != "" {
		err = fmt.Errorf("p11: %s: it can hold no %s", r.lacks, caPair.name)
	}
	if err != nil {
		return CAReport{}, err
	}
	return CAReport{Token: t.info, Public: r.public, Made: r.made, Frozen: r.frozen}, nil
}

// curveRefused is how modules say that they know the mechanism and not the curve.
var curveRefused = []uint{pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_FUNCTION_NOT_SUPPORTED, pkcs11.CKR_DOMAIN_PARAMS_INVALID, ckrCurveNotSupported}

const ckrCurveNotSupported = 0x140 // PKCS#11 2.40 §2.3.3; the binding lacks it

// generatePair makes the pair, frozen where the token can do that. The error is miekg's.
func (t *Token) generatePair(session pkcs11.SessionHandle, p pair) (public, private pkcs11.ObjectHandle, err error) {
	for _, modifiable := range []bool{false, true} {
		publicTemplate, privateTemplate := p.templates(modifiable)
		public, private, err = t.mod.ctx.GenerateKeyPair(session, mech(pkcs11.CKM_EC_KEY_PAIR_GEN, nil), publicTemplate, privateTemplate)
		if code, ok := err.(pkcs11.Error); !ok || !slices.Contains(templateRefused, uint(code)) {
			break
		}
	}
	return public, private, err
}

// tryPair has the pair sign, and verifies it: the public half is the private one's.
func (t *Token) tryPair(session pkcs11.SessionHandle, p pair, private pkcs11.ObjectHandle, public *ecdsa.PublicKey) error {
	digest := [32]byte{31: 2}
	raw, err := t.mod.sign(session, private, digest)
	if err != nil {
		return err
	}
	if !hsm.VerifyAudit(public, digest, raw) {
		return fmt.Errorf("p11: %w: a signature of the %s does not verify", hsm.ErrWrong, p.name)
	}
	return nil
}
