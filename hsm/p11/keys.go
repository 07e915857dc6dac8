package p11

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/miekg/pkcs11"
)

var (
	_ hsm.KeyToken   = (*Token)(nil)
	_ hsm.KeySession = (*session)(nil)
)

// Wrapped keys are a format byte and what C_WrapKey gave: of a private key its PKCS #8 PrivateKeyInfo, of a secret key its value, in
// AES key wrap with padding.
const (
	wrapsKWP = 1 // CKM_AES_KEY_WRAP_KWP
	wrapsPad = 2 // CKM_AES_KEY_WRAP_PAD, which is RFC 5649 on some modules, and RFC 3394 over PKCS #7 padding on others
)

// wrappers are the mechanisms, best first.
var wrappers = []struct {
	format    byte
	mechanism uint
}{{wrapsKWP, ckmAESKeyWrapKWP}, {wrapsPad, pkcs11.CKM_AES_KEY_WRAP_PAD}}

// ring is the session that owns the loaded keys: session objects end with the session that made them, and every other can use them. It
// lives as long as the token's generation, and does nothing else.
type ring struct {
	mu         sync.Mutex // of the session too: it is one goroutine's at a time
	open       bool
	session    pkcs11.SessionHandle
	generation uint64
	handles    uint64 // Token.handles when it was opened
	root       pkcs11.ObjectHandle
}

// withRing runs f on the ring of the present generation. f holds the module.
func (t *Token) withRing(f func(r *ring) error) error {
	t.mu.Lock()
	slot, login, closed, generation, handles := t.slot, t.login, t.closed, t.generation.Load(), t.handles.Load()
	t.mu.Unlock()
	if closed {
		return hsm.ErrSessionClosed
	}
	t.ring.mu.Lock()
	defer t.ring.mu.Unlock()
	t.mod.mu.RLock()
	defer t.mod.mu.RUnlock()
	if generation != t.generation.Load() { // a Reset since: slot and login may be others
		return &hsm.Error{CKR: hsm.CKR_SESSION_HANDLE_INVALID, Function: "C_OpenSession"}
	}
	if t.ring.generation < generation { // a later one is as good: somebody was faster
		t.dropRing()
	}
	if !t.ring.open {
		session, err := t.openKeySession(slot, login)
		if err != nil {
			return err
		}
		root, err := t.findRoot(session, wrappingRoot)
		if err != nil {
			_ = t.mod.ctx.CloseSession(session) // the first error is the one to report
			return err
		}
		if generation != t.generation.Load() || handles != t.handles.Load() { // a Reset meanwhile: it may have been opened before or after
			_ = t.mod.ctx.CloseSession(session)
			return &hsm.Error{CKR: hsm.CKR_SESSION_HANDLE_INVALID, Function: "C_OpenSession"}
		}
		t.ring.open, t.ring.session, t.ring.root, t.ring.generation, t.ring.handles = true, session, root, generation, handles
	}
	return f(&t.ring)
}

// dropRing closes the ring's session, and with it ends the keys, unless the module has lost it. It needs t.ring.mu and mod.mu.
func (t *Token) dropRing() {
	if t.ring.open && t.ring.handles == t.handles.Load() {
		_ = t.mod.ctx.CloseSession(t.ring.session) // what cannot be closed is lost anyway
	}
	t.ring.open = false
}

// openKeySession opens a session that is logged in. It needs mod.mu.
func (t *Token) openKeySession(slot uint, login bool) (pkcs11.SessionHandle, error) {
	session, err := t.mod.ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return 0, failed("C_OpenSession", err)
	}
	if err := t.wantLogin(session, login); err != nil {
		_ = t.mod.ctx.CloseSession(session) // the first error is the one to report
		return 0, err
	}
	return session, nil
}

// withKeySession runs f on a session of its own. f holds the module.
func (t *Token) withKeySession(f func(slot uint, session pkcs11.SessionHandle) error) error {
	t.mu.Lock()
	slot, login, closed := t.slot, t.login, t.closed
	t.mu.Unlock()
	if closed {
		return hsm.ErrSessionClosed
	}
	t.mod.mu.RLock()
	defer t.mod.mu.RUnlock()
	session, err := t.openKeySession(slot, login)
	if err != nil {
		return err
	}
	defer t.mod.ctx.CloseSession(session)
	return f(slot, session)
}

// wrapper is the mechanism to wrap with. It needs mod.mu.
func (t *Token) wrapper(slot uint) (format byte, mechanism uint, err error) {
	for _, w := range wrappers {
		info, err := t.mod.ctx.GetMechanismInfo(slot, mech(w.mechanism, nil))
		switch {
		case err == nil && info.Flags&pkcs11.CKF_WRAP != 0 && info.Flags&pkcs11.CKF_UNWRAP != 0:
			return w.format, w.mechanism, nil
		case err != nil && err != pkcs11.Error(pkcs11.CKR_MECHANISM_INVALID):
			return 0, 0, failed("C_GetMechanismInfo", err)
		}
	}
	return 0, 0, &hsm.Error{CKR: hsm.CKR_MECHANISM_INVALID, Function: "C_WrapKey"}
}

// GenerateKey makes the key on a session of its own, wraps it and destroys it; then it loads what it wrapped and uses that once, so that nothing
// is given out that would not come back.
func (t *Token) GenerateKey(s keyspec.Spec) (wrapped, public []byte, err error) {
	if err := t.offers(s); err != nil {
		return nil, nil, err
	}
	var made madeKey
	err = t.withKeySession(func(slot uint, session pkcs11.SessionHandle) error {
		root, err := t.findRoot(session, wrappingRoot)
		if err == nil {
			made, err = t.makeKey(slot, session, root, s)
		}
		return err
	})
	if err == nil {
		err = t.prove(s, &made)
	}
	if err != nil {
		return nil, nil, err
	}
	return made.wrapped, made.public, nil
}

// madeKey is a key that is nowhere but here.
type madeKey struct {
	wrapped, public []byte
	mac             []byte // of secret keys, what they give of macMessage or blockMessage: what takes the place of a public half
}

var macMessage, blockMessage = []byte("keyplane"), []byte("keyplane's block")

// secretUse is what a secret key does, and of what.
func secretUse(s keyspec.Spec) (m hsm.Mechanism, in []byte) {
	if s.Info().Family == keyspec.AES {
		return hsm.EncryptBlocks, blockMessage
	}
	return hsm.MAC, macMessage
}

// makeKey generates and wraps a key, and destroys what it generated whatever happens. It needs mod.mu.
func (t *Token) makeKey(slot uint, session pkcs11.SessionHandle, root pkcs11.ObjectHandle, s keyspec.Spec) (made madeKey, err error) {
	format, wrapper, err := t.wrapper(slot)
	if err != nil {
		return made, err
	}
	public, private, err := t.generateKey(session, s)
	if err != nil {
		return made, err
	}
	defer func() {
		for _, object := range []pkcs11.ObjectHandle{private, public} {
			if object == 0 {
				continue
			}
			if derr := t.mod.ctx.DestroyObject(session, object); derr != nil && err == nil {
				made, err = madeKey{}, failed("C_DestroyObject", derr)
			}
		}
	}()
	a, err := t.readKey(session, private, s)
	if err != nil {
		return made, err
	}
	if err = checkKey(s, a, true); err != nil {
		return made, fmt.Errorf("p11: a key just made: %w", err)
	}
	if public != 0 {
		if made.public, err = t.publicOf(session, public, s); err != nil {
			return made, err
		}
	} else {
		m, in := secretUse(s)
		out := make([]byte, s.Info().Result)
		n, err := t.mod.fns.operate(uint(session), uint(private), s, m, false, in, out, nil)
		if err != nil {
			return made, err
		}
		made.mac = out[:n]
	}
	made.wrapped, err = t.mod.fns.wrap(uint(session), wrapper, uint(root), uint(private), format)
	return made, err
}

// unwrap brings a key in and refuses it unless it is what it was asked to be. It needs mod.mu.
func (t *Token) unwrap(session pkcs11.SessionHandle, root pkcs11.ObjectHandle, s keyspec.Spec, wrapped []byte) (pkcs11.ObjectHandle, error) {
	return t.unwrapAs(session, root, s, keyForm(s, false), wrapped)
}

// unwrapAs is unwrap of a key that is wanted in another form.
func (t *Token) unwrapAs(session pkcs11.SessionHandle, root pkcs11.ObjectHandle, s keyspec.Spec, f form, wrapped []byte) (pkcs11.ObjectHandle, error) {
	f.stored = true
	mechanism := unwrapperOf(wrapped)
	switch {
	case !wrappedLength(s, len(wrapped)-1):
		return 0, &hsm.Error{CKR: hsm.CKR_WRAPPED_KEY_LEN_RANGE, Function: "C_UnwrapKey"}
	case mechanism == 0:
		return 0, &hsm.Error{CKR: hsm.CKR_WRAPPED_KEY_INVALID, Function: "C_UnwrapKey"}
	}
	object, err := t.unwrapUnder(session, mech(mechanism, nil), root, s, f.template(s), wrapped[1:])
	if err != nil {
		return 0, err
	}
	a, err := t.readNarrow(session, object, s, f)
	if err == nil {
		err = f.check(s, a)
	}
	if err != nil {
		if derr := t.mod.ctx.DestroyObject(session, object); derr != nil {
			err = errors.Join(err, failed("C_DestroyObject", derr))
		}
		return 0, err
	}
	return object, nil
}

// unwrapperOf is the mechanism by which a key was wrapped, 0 if there is none like that.
func unwrapperOf(wrapped []byte) uint {
	for _, w := range wrappers {
		if len(wrapped) > 0 && wrapped[0] == w.format {
			return w.mechanism
		}
	}
	return 0
}

// unwrapUnder is C_UnwrapKey, with what else NSS wants to know.
func (t *Token) unwrapUnder(session pkcs11.SessionHandle, m []*pkcs11.Mechanism, key pkcs11.ObjectHandle, s keyspec.Spec, template []*pkcs11.Attribute, wrapped []byte) (
	pkcs11.ObjectHandle, error) {
	if t.namesDB.Load() {
		template = append(template, dbName(s)...)
	}
	object, err := t.mod.ctx.UnwrapKey(session, m, key, wrapped, template)
	incomplete := err == pkcs11.Error(pkcs11.CKR_TEMPLATE_INCOMPLETE) || err == pkcs11.Error(pkcs11.CKR_KEY_TYPE_INCONSISTENT)
	if incomplete && !t.namesDB.Load() && dbName(s) != nil {
		if object, err = t.mod.ctx.UnwrapKey(session, m, key, wrapped, append(template, dbName(s)...)); err == nil {
			t.namesDB.Store(true)
		}
	}
	return object, failed("C_UnwrapKey", err)
}

// readNarrow reads a key's attributes, and takes away the usages that it was not to have.
func (t *Token) readNarrow(session pkcs11.SessionHandle, object pkcs11.ObjectHandle, s keyspec.Spec, f form) (attributes, error) {
	a, err := t.readKey(session, object, s)
	if err != nil {
		return nil, err
	}
	return t.narrow(session, object, s, f, a)
}

// narrow takes away the usages that a key was not to have: NSS gives an RSA key that it unwraps all that its kind can do, whatever the template
// says, and lets them be taken away. The attributes are those afterwards.
func (t *Token) narrow(session pkcs11.SessionHandle, object pkcs11.ObjectHandle, s keyspec.Spec, f form, a attributes) (attributes, error) {
	var no []*pkcs11.Attribute
	for _, u := range possibleUsages(s.Info().Family) {
		if a.is(u, true) && !slices.Contains(f.usages, u) {
			no = append(no, pkcs11.NewAttribute(u, false))
		}
	}
	if len(no) == 0 {
		return a, nil
	}
	if err := t.mod.ctx.SetAttributeValue(session, object, no); err != nil {
		return a, nil // checkKey says what is wrong with it
	}
	return t.readKey(session, object, s)
}

// wrappedLength says whether a key of the spec could be n bytes when it is wrapped: whole blocks of 8 bytes and one more, after a padding of 0 to
// 7 bytes or of 1 to 8.
func wrappedLength(s keyspec.Spec, n int) bool {
	if info := s.Info(); secretKey(info.Family) {
		return n == info.Bits/8/8*8+16 || n == info.Bits/8+8
	}
	return n >= 24 && n%8 == 0 && n <= wrappedMax
}

// dbName is what NSS wants to be told of an EC private key that it unwraps: the name under which its database would have it. It is a session
// object and never gets there.
func dbName(s keyspec.Spec) []*pkcs11.Attribute {
	if s.Info().Family != keyspec.EC {
		return nil
	}
	return []*pkcs11.Attribute{pkcs11.NewAttribute(ckaNSSDB, []byte("keyplane"))}
}

// LoadKey unwraps the key on the ring.
func (t *Token) LoadKey(s keyspec.Spec, wrapped []byte) (k hsm.LoadedKey, err error) {
	if err := t.offers(s); err != nil {
		return k, err
	}
	return t.load(s, wrapped)
}

func (t *Token) load(s keyspec.Spec, wrapped []byte) (k hsm.LoadedKey, err error) {
	lost := false
	err = t.withRing(func(r *ring) error {
		object, err := t.unwrap(r.session, r.root, s, wrapped)
		if e, ok := errors.AsType[*hsm.Error](err); ok && (e.CKR == hsm.CKR_SESSION_HANDLE_INVALID || e.CKR == hsm.CKR_SESSION_CLOSED) {
			r.open, lost = false, true
		} else if ok && !t.ringLives(r, e) {
			t.dropRing()
			lost = true
		}
		k = hsm.LoadedKey{Handle: hsm.Handle(object), Generation: r.generation}
		return err
	})
	if lost {
		t.endGeneration(k.Generation)
	}
	if err != nil {
		return hsm.LoadedKey{}, err
	}
	return k, nil
}

// ringLives reports whether the ring is as it was opened, after an error of a load that may have been its own: an idle session can be lost without
// a word, and the wrapping root's handle with it. Errors of the key's bytes are not the ring's.
func (t *Token) ringLives(r *ring, e *hsm.Error) bool {
	switch e.CKR {
	case hsm.CKR_WRAPPED_KEY_INVALID, hsm.CKR_WRAPPED_KEY_LEN_RANGE:
		return true
	}
	if _, err := t.mod.ctx.GetSessionInfo(r.session); err != nil {
		return false
	}
	root, err := t.findRoot(r.session, wrappingRoot)
	return err == nil && root == r.root
}

// endGeneration is for a ring that somebody closed: its keys are gone, and their handles may become others'. Everything of the generation, keys and
// sessions, is opened anew.
func (t *Token) endGeneration(generation uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.generation.CompareAndSwap(generation, generation+1)
	}
}

// UnloadKey destroys the object. One of another generation is not looked for: it ended with its ring.
func (t *Token) UnloadKey(k hsm.LoadedKey) error {
	t.ring.mu.Lock()
	defer t.ring.mu.Unlock()
	t.mod.mu.RLock()
	defer t.mod.mu.RUnlock()
	if !t.ring.open || k.Generation != t.ring.generation || k.Generation != t.generation.Load() {
		return nil
	}
	err := t.mod.ctx.DestroyObject(t.ring.session, pkcs11.ObjectHandle(k.Handle))
	if err == pkcs11.Error(pkcs11.CKR_OBJECT_HANDLE_INVALID) {
		return nil
	}
	return failed("C_DestroyObject", err)
}

// prove loads a key that was just made, uses it once and unloads it. The result has to be right by the public half.
func (t *Token) prove(s keyspec.Spec, made *madeKey) error {
	k, err := t.load(s, made.wrapped)
	if err != nil {
		return err
	}
	offer := t.knowledgeOf(s).offer.Load()
	var m hsm.Mechanism
	for _, m = range mechanismsOf(s) {
		if offer != nil && offer.mechanisms.Has(m) {
			break
		}
	}
	err = t.withKeySession(func(_ uint, session pkcs11.SessionHandle) error {
		return t.checkUse(s, m, offer != nil && offer.raw.Has(m), made, uint(session), uint(k.Handle))
	})
	if uerr := t.UnloadKey(k); err == nil {
		err = uerr
	}
	return err
}

// Use does one operation. It allocates nothing unless it fails.
func (s *session) Use(k hsm.LoadedKey, spec keyspec.Spec, m hsm.Mechanism, in, out []byte) (n int, err error) {
	if len(out) < spec.Info().Result {
		panic("p11: out is shorter than the longest result")
	}
	offer := s.token.knowledgeOf(spec).offer.Load()
	switch {
	case s.closed:
		clear(out)
		return 0, hsm.ErrSessionClosed
	case offer == nil || !offer.mechanisms.Has(m): // a loaded key has been offered
		clear(out)
		return 0, hsm.ErrNotOffered
	}
	raw := offer.raw.Has(m)
	mod := s.token.mod
	mod.mu.RLock()
	defer mod.mu.RUnlock()
	if g := s.token.generation.Load(); k.Generation != g || s.generation != g { // not before: the module could begin anew in between
		clear(out)
		o := operationOf(spec, m, raw)
		if k.Generation != g {
			return 0, &hsm.Error{CKR: hsm.CKR_KEY_HANDLE_INVALID, Function: o.initFunction()}
		}
		return 0, &hsm.Error{CKR: hsm.CKR_SESSION_HANDLE_INVALID, Function: o.initFunction()}
	}
	if raw && s.block == nil {
		s.block = make([]byte, keyspec.RSA4096.Info().Public)
	}
	if !s.began.IsZero() { // a session does one thing at a time
		s.began = time.Time{}
		err = mod.fns.end(uint(s.handle))
	}
	if err == nil {
		n, err = mod.fns.operate(uint(s.handle), uint(k.Handle), spec, m, raw, in, out, s.block)
	} else {
		clear(out)
	}
	if k.Generation != s.token.generation.Load() { // it ended meanwhile: nobody knows whose key that was
		clear(out)
		return 0, &hsm.Error{CKR: hsm.CKR_KEY_HANDLE_INVALID, Function: operationOf(spec, m, raw).initFunction()}
	}
	if e, ok := err.(*hsm.Error); ok && e.CKR == hsm.CKR_CRYPTOKI_NOT_INITIALIZED {
		s.gone = true
	}
	return n, err
}
