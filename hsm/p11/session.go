package p11

import (
	"bytes"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/miekg/pkcs11"
)

// session is one PKCS#11 session and the derivation root's handle in it.
//
// Where the module streams, the session's rounds are parts of one encryption that stays active: ECB has no state between blocks, and
// C_EncryptInit is what a round mostly costs (on SoftHSM a round of one job takes 7 µs of processor time with it and 1.5 without). The
// operation is ended and begun anew every streamAge, because a login that was lost, or a root that was destroyed in hardware, is noticed by C_EncryptInit.
type session struct {
	token      *Token
	handle     pkcs11.SessionHandle
	root       pkcs11.ObjectHandle
	generation uint64
	handles    uint64 // Token.handles when it was opened
	streams    bool
	began      time.Time // the active operation; zero: none
	closed     bool
	block      []byte // scratch of Use, made when it is first needed
	gone       bool   // with the module, which was finalised behind our back: a late C_CloseSession crashes SoftHSM
}

// OpenSession opens a read-only session and finds the derivation root by its CKA_ID.
func (t *Token) OpenSession() (hsm.Session, error) {
	t.mu.Lock()
	slot, login, closed, generation, handles := t.slot, t.login, t.closed, t.generation.Load(), t.handles.Load()
	t.mu.Unlock()
	if closed {
		return nil, hsm.ErrSessionClosed
	}
	t.mod.mu.RLock()
	defer t.mod.mu.RUnlock()
	if t.streaming.Load() == streamsUnknown {
		s, err := t.openSession(slot, login)
		if err != nil {
			return nil, err
		}
		err = t.tryStream(s)
		_ = t.mod.ctx.CloseSession(s.handle) // its operation is left active
		if err != nil {
			return nil, err
		}
	}
	s, err := t.openSession(slot, login)
	if err != nil {
		return nil, err
	}
	s.generation, s.handles = generation, handles
	return s, nil
}

func (t *Token) openSession(slot uint, login bool) (*session, error) {
	handle, err := t.mod.ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return nil, failed("C_OpenSession", err)
	}
	s := &session{token: t, handle: handle, streams: t.streaming.Load() == streamsYes}
	if s.root, err = t.usable(handle, login); err != nil {
		_ = t.mod.ctx.CloseSession(handle) // the first error is the one to report
		return nil, err
	}
	return s, nil
}

// What a Token knows of its module's C_EncryptUpdate.
const (
	streamsUnknown = iota
	streamsYes
	streamsNo
)

// streamAge is how long an encryption stays active.
const streamAge = time.Second

// tryBlocks is a full round of 256 jobs.
const tryBlocks = 6*256 + 1

// tryStream finds out whether the module streams: whether C_EncryptUpdate gives whole blocks at once, the same as C_Encrypt, with
// C_GenerateRandom in between. The block that it encrypts is the one whose image is no secret. The session may only be closed afterwards.
func (t *Token) tryStream(s *session) error {
	in := bytes.Repeat([]byte(hsm.RootIDBlock), tryBlocks)
	got := make([]byte, len(in))
	var random [16]byte
	round := func(m mode, n int) error {
		return t.mod.fns.round(uint(s.handle), uint(s.root), m, in[:n], got[:n], random[:])
	}
	if err := round(single, 16); err != nil {
		return err
	}
	want := bytes.Repeat(got[:16], tryBlocks)
	streams := t.mod.fns.streams()
	for _, step := range []struct {
		mode mode
		n    int
	}{{begin, 16}, {next, len(in)}, {renew, 48}, {next, 16}} {
		clear(got)
		streams = streams && round(step.mode, step.n) == nil && bytes.Equal(got[:step.n], want[:step.n])
	}
	if streams {
		t.streaming.Store(streamsYes)
	} else {
		t.streaming.Store(streamsNo)
	}
	return nil
}

// usable checks that the session is logged in and finds the derivation root. Without the login, private objects are not found at all,
// which must not look like a token without roots.
func (t *Token) usable(handle pkcs11.SessionHandle, login bool) (pkcs11.ObjectHandle, error) {
	if err := t.wantLogin(handle, login); err != nil {
		return 0, err
	}
	root, err := t.findRoot(handle, derivationRoot)
	if err == nil && t.info.Software {
		root = t.workingCopy(handle, root)
	}
	return root, err
}

func (t *Token) wantLogin(handle pkcs11.SessionHandle, login bool) error {
	info, err := t.mod.ctx.GetSessionInfo(handle)
	if err != nil {
		return failed("C_GetSessionInfo", err)
	}
	if login && !loggedIn(info.State) {
		return &hsm.Error{CKR: hsm.CKR_USER_NOT_LOGGED_IN, Function: "C_GetSessionInfo"}
	}
	return nil
}

// workingCopy makes a session object of the derivation root, which ends with the session. Software tokens go to their files or database
// at every use of a token object: a round of one job on SoftHSM takes 38 µs that way and 20 µs with a copy, on NSS 260 µs and 1.5 µs
// (BenchmarkRound). A copy that is not protected as the root is, or that the module refuses, is not used. Tokens in hardware have their
// keys at hand, and are not asked to copy any.
func (t *Token) workingCopy(session pkcs11.SessionHandle, root pkcs11.ObjectHandle) pkcs11.ObjectHandle {
	copied, err := t.mod.ctx.CopyObject(session, root, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false)})
	if err != nil {
		return root
	}
	a, err := t.read(session, copied)
	if err != nil || derivationRoot.checkCopy(a) != nil {
		_ = t.mod.ctx.DestroyObject(session, copied) // it goes with the session anyway
		return root
	}
	return copied
}

// Round makes the crossing. It allocates nothing unless the module fails.
func (s *session) Round(in, out, random []byte) error {
	if len(in)%16 != 0 || len(out) != len(in) {
		panic("p11: in is not whole blocks or out is not as long")
	}
	if s.closed {
		clear(out)
		clear(random)
		return hsm.ErrSessionClosed
	}
	m := s.token.mod
	m.mu.RLock()
	if s.generation != s.token.generation.Load() { // not before: the module could begin anew in between
		m.mu.RUnlock()
		clear(out)
		clear(random)
		return &hsm.Error{CKR: hsm.CKR_SESSION_HANDLE_INVALID, Function: "C_EncryptInit"}
	}
	how, now := s.mode(len(in))
	err := m.fns.round(uint(s.handle), uint(s.root), how, in, out, random)
	m.mu.RUnlock()
	switch {
	case err != nil:
		s.began = time.Time{} // nobody knows; the session is replaced
	case how == begin || how == renew:
		s.began = now
	}
	if e, ok := err.(*hsm.Error); ok && e.CKR == hsm.CKR_CRYPTOKI_NOT_INITIALIZED {
		s.gone = true
	}
	return err
}

// mode is how the next round encrypts n bytes.
func (s *session) mode(n int) (how mode, now time.Time) {
	if !s.streams || n == 0 {
		return single, now
	}
	now = time.Now()
	switch {
	case s.began.IsZero():
		return begin, now
	case now.Sub(s.began) < s.token.streamAge:
		return next, now
	}
	return renew, now
}

// Close closes the session, if its handle is still its own: where the anchor, which outlives every session, had to be opened anew, the module
// has lost them all and may have given the handle to somebody else. A new login alone does not end a session.
func (s *session) Close() error {
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
