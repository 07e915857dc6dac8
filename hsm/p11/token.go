package p11

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/miekg/pkcs11"
)

// Token is a token of a PKCS#11 module: logged in, its anchor session open. The anchor is never used for work and never closed before
// the token is: on several modules closing the last session logs out and makes every handle invalid.
type Token struct {
	cfg        config
	mod        *module
	info       hsm.TokenInfo
	generation atomic.Uint64
	resets     atomic.Uint64 // counts Resets that succeeded: a generation also ends without one
	handles    atomic.Uint64 // counts anchors opened: handles of sessions from before are nobody's, or somebody else's

	streaming atomic.Int32  // streamsUnknown, …: found out by the first session
	streamAge time.Duration // tests change it

	ring      ring // what owns the loaded keys
	known     [keyspec.AES256 + 1]knowledge
	importing [keyspec.AES256 + 1]importing
	probing   atomic.Pointer[madeKey] // to import under, to see whether that works
	namesDB   atomic.Bool             // C_UnwrapKey wants to be told dbName
	own       bool                    // opened by OpenPIN

	// attribute reads one attribute of an object; tests put a token that lies here.
	attribute func(pkcs11.SessionHandle, pkcs11.ObjectHandle, uint) ([]byte, error)

	mu      sync.Mutex // single flight of Reset; guards the rest
	slot    uint
	login   bool // the token wants a login
	anchor  pkcs11.SessionHandle
	opened  uint64 // handles when the anchor was opened
	closed  bool
	pin     secret.Bytes // of OpenPIN
	refusal error        // of that PIN: it is not tried again
}

// Open opens the token that the URI names and logs in where the token wants that. A token that refuses the PIN is hsm.ErrPIN, and no
// later Open or Reset in this process tries again. Roots need not exist yet: Roots and OpenSession say so.
func Open(uri string) (hsm.Token, error) { return open(uri) }

func open(uri string) (*Token, error) {
	cfg, err := parseConfig(uri)
	if err != nil {
		return nil, err
	}
	return openAs(cfg, secret.Bytes{})
}

// openAs opens a token with a PIN, which is the token's from now on, or with that of the configuration's file.
func openAs(cfg config, pin secret.Bytes) (*Token, error) {
	mod, err := acquire(cfg.modulePath, cfg.initArgs)
	if err != nil {
		pin.Wipe()
		return nil, err
	}
	t := &Token{cfg: cfg, mod: mod, streamAge: streamAge, own: pin.Len() > 0, pin: pin}
	t.attribute = t.getAttribute
	mod.join(t)
	if err := t.connect(); err != nil {
		mod.leave(t)
		mod.release()
		t.pin.Wipe()
		return nil, fmt.Errorf("p11: module %s: %w", mod.path, err)
	}
	return t, nil
}

// connect finds the token and establishes anchor and login. It needs t.mu, or t not yet shared.
func (t *Token) connect() error {
	t.mod.mu.RLock()
	defer t.mod.mu.RUnlock()
	slot, ti, err := t.mod.find(t.cfg)
	if err != nil {
		return err
	}
	if t.info.Serial == "" {
		t.info = t.mod.infoOf(ti)
		// From now on this very token is meant, whatever else appears under its label.
		t.cfg.token, t.cfg.serial = ti.Label, ti.SerialNumber
	}
	t.slot, t.login = slot, ti.Flags&pkcs11.CKF_LOGIN_REQUIRED != 0
	if t.opened != t.handles.Load() {
		t.anchor = 0 // the module began anew: the number may be another's session
	}
	if t.anchor != 0 {
		if _, err := t.mod.ctx.GetSessionInfo(t.anchor); err != nil {
			t.anchor = 0
		}
	}
	if t.anchor == 0 {
		if t.anchor, err = t.mod.ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION); err != nil {
			t.anchor = 0
			return failed("C_OpenSession", err)
		}
		t.opened = t.handles.Add(1)
	}
	err = t.logIn(ti.Flags)
	if err != nil {
		_ = t.mod.ctx.CloseSession(t.anchor) // the login's error is the one to report
		t.anchor = 0
	}
	return err
}

// Ask says which token it is that the URI names, and so that its module answers. It opens no session and logs nobody in.
func Ask(uri string) (hsm.TokenInfo, error) {
	cfg, err := parseConfig(uri)
	if err != nil {
		return hsm.TokenInfo{}, err
	}
	mod, err := acquire(cfg.modulePath, cfg.initArgs)
	if err != nil {
		return hsm.TokenInfo{}, err
	}
	defer mod.release()
	mod.mu.RLock()
	defer mod.mu.RUnlock()
	_, ti, err := mod.find(cfg)
	if err != nil {
		return hsm.TokenInfo{}, fmt.Errorf("p11: module %s: %w", mod.path, err)
	}
	return mod.infoOf(ti), nil
}

func (m *module) infoOf(ti pkcs11.TokenInfo) hsm.TokenInfo {
	return hsm.TokenInfo{
		Label: ti.Label, Serial: ti.SerialNumber, Manufacturer: ti.ManufacturerID, Model: ti.Model, Module: m.path,
		Firmware: fmt.Sprintf("%d.%d", ti.FirmwareVersion.Major, ti.FirmwareVersion.Minor),
		Software: strings.Contains(ti.Model, "SoftHSM") || strings.Contains(ti.Model, "NSS"),
	}
}

// find looks through the slots for the one token that the configuration means. The caller holds m.mu for reading.
func (m *module) find(cfg config) (uint, pkcs11.TokenInfo, error) {
	slots, err := m.ctx.GetSlotList(true)
	if err != nil {
		return 0, pkcs11.TokenInfo{}, failed("C_GetSlotList", err)
	}
	var slot uint
	var match []pkcs11.TokenInfo
	var present []string
	for _, id := range slots {
		ti, err := m.ctx.GetTokenInfo(id)
		// A slot may empty itself meanwhile, and an uninitialised token is listed as present.
		if err != nil || ti.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue
		}
		present = append(present, fmt.Sprintf("%q serial %q", ti.Label, ti.SerialNumber))
		if cfg.matches(ti) {
			slot, match = id, append(match, ti)
		}
	}
	switch len(match) {
	case 1:
		return slot, match[0], nil
	case 0:
		return 0, pkcs11.TokenInfo{}, fmt.Errorf("no token %q serial %q (present: %s): %w", cfg.token, cfg.serial,
			strings.Join(present, ", "), &hsm.Error{CKR: hsm.CKR_TOKEN_NOT_PRESENT, Function: "C_GetSlotList"})
	}
	var serials []string
	for _, ti := range match {
		serials = append(serials, ti.SerialNumber)
	}
	return 0, pkcs11.TokenInfo{}, fmt.Errorf("%d tokens match; add serial= to the URI, one of: %s", len(match), strings.Join(serials, ", "))
}

func (c config) matches(ti pkcs11.TokenInfo) bool {
	is := func(want, have string) bool { return want == "" || want == have }
	return is(c.token, ti.Label) && is(c.serial, ti.SerialNumber) && is(c.manufacturer, ti.ManufacturerID) && is(c.model, ti.Model)
}

// logIn logs the user in on the anchor. flags are the token's.
func (t *Token) logIn(flags uint) error {
	if !t.login && !t.own {
		return nil
	}
	name := t.cfg.serial + " " + t.cfg.token
	switch {
	case t.own && t.refusal != nil:
		return t.refusal
	case t.own && !t.login:
		return t.refuse(name, &hsm.Error{CKR: hsm.CKR_USER_PIN_NOT_INITIALIZED, Function: "C_Login"})
	case !t.own && t.mod.refuses(name):
		return hsm.ErrPIN
	}
	l := t.mod.loginOf(name)
	l.mu.Lock()
	defer l.mu.Unlock()
	if si, err := t.mod.ctx.GetSessionInfo(t.anchor); err == nil && loggedIn(si.State) {
		return t.share(name, l)
	}
	if t.cfg.pinFile == "" && !t.own {
		return errors.New("the token wants a login; add pin-source=file:/path to the URI")
	}
	if flags&(pkcs11.CKF_USER_PIN_LOCKED|pkcs11.CKF_USER_PIN_FINAL_TRY) != 0 {
		err := t.refuse(name, &hsm.Error{CKR: hsm.CKR_PIN_LOCKED, Function: "C_Login"})
		return fmt.Errorf("the token says that its PIN is locked or has one try left: %w", err)
	}
	pin := t.pin
	if !t.own {
		var err error
		if pin, err = hsm.ReadPIN(t.cfg.pinFile); err != nil {
			return err
		}
		defer pin.Wipe()
	}
	err := t.mod.fns.login(uint(t.anchor), pin.Expose())
	if err == nil {
		l.with = fingerprint(pin)
		return nil
	}
	e, ok := errors.AsType[*hsm.Error](err)
	if !ok {
		return err
	}
	switch e.CKR {
	case hsm.CKR_USER_ALREADY_LOGGED_IN:
		return t.share(name, l)
	case hsm.CKR_PIN_INCORRECT, hsm.CKR_PIN_LOCKED, hsm.CKR_PIN_EXPIRED, hsm.CKR_PIN_INVALID, hsm.CKR_PIN_LEN_RANGE,
		hsm.CKR_USER_PIN_NOT_INITIALIZED:
		return t.refuse(name, e)
	}
	return e
}

// share is for a login that there is already, which is the process's: whoever has a PIN of his own must have had that one.
func (t *Token) share(name string, l *login) error {
	if t.own && l.with != fingerprint(t.pin) {
		return t.refuse(name, &hsm.Error{CKR: hsm.CKR_PIN_INCORRECT, Function: "C_Login"})
	}
	return nil
}

// refuse keeps a refusal of the PIN, and is its error.
func (t *Token) refuse(name string, e *hsm.Error) error {
	err := fmt.Errorf("%w: %w", hsm.ErrPIN, e)
	if t.own {
		t.refusal = err
	} else {
		t.mod.refuse(name)
	}
	return err
}

func loggedIn(state uint) bool {
	return state == pkcs11.CKS_RO_USER_FUNCTIONS || state == pkcs11.CKS_RW_USER_FUNCTIONS
}

// Info says which token this is.
func (t *Token) Info() hsm.TokenInfo { return t.info }

// Generation counts Resets, and what else ends all handles.
func (t *Token) Generation() uint64 { return t.generation.Load() }

// Reset finds the token again by its serial, whatever slot it is in now, and re-establishes module, anchor session and login. Callers that
// waited for somebody else's Reset share its success.
func (t *Token) Reset() error {
	before := t.resets.Load()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return hsm.ErrSessionClosed
	}
	if t.resets.Load() != before {
		return nil
	}
	if err := t.mod.revive(); err != nil {
		return err
	}
	if err := t.connect(); err != nil {
		return err
	}
	t.generation.Add(1)
	t.resets.Add(1)
	if t.ring.mu.TryLock() { // else whoever has it, or comes next, finds that its generation is over
		t.mod.mu.RLock()
		t.dropRing()
		t.mod.mu.RUnlock()
		t.ring.mu.Unlock()
	}
	return nil
}

// Close closes the anchor, and ends the loaded keys. Sessions must be closed before.
func (t *Token) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	t.pin.Wipe()
	t.generation.Add(1)
	t.mod.mu.RLock()
	if t.ring.mu.TryLock() { // else a call hangs in it
		t.dropRing()
		t.ring.mu.Unlock()
	}
	var err error
	if t.anchor != 0 && t.opened == t.handles.Load() { // else the module has begun anew, and the number is somebody else's
		err = t.mod.ctx.CloseSession(t.anchor)
	}
	t.handles.Add(1)
	t.mod.mu.RUnlock()
	t.mod.leave(t)
	t.mod.release()
	if err != nil {
		return failed("C_CloseSession", err)
	}
	return nil
}
