package p11

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/keyplane/keyplane/hsm"
	"github.com/miekg/pkcs11"
)

// module is a loaded PKCS#11 library. Every call into it holds mu for reading.
type module struct {
	path string
	fns  functions
	ctx  *pkcs11.Ctx

	// mu is held for reading by calls and taken for writing, with TryLock only, to initialise or finalise: neither may happen while a call
	// is in flight, and waiting for a call that hangs would stop every other one.
	mu sync.RWMutex

	// life is held while the module is loaded, initialised or finalised. One that hangs in that keeps those away who open and close its own tokens, and nobody else.
	life   sync.Mutex
	loaded bool   // guarded by life: fns and ctx are there
	live   bool   // guarded by life: initialised by us and not finalised
	args   string // guarded by life: what it was initialised with
	tokens int    // guarded by life: tokens open

	known   sync.Mutex        // held for an instant, never through a call
	members map[*Token]bool   // guarded by known: open tokens that work, which lose every handle when the module begins anew
	logins  map[string]*login // guarded by known: by serial and label
	refused map[string]bool   // guarded by known: tokens, by serial and label, that have refused the PIN
}

// registry has every module this process has loaded, or tried to, by real path. C_Initialize and the PIN counters are the process's, so this is too. Its mutex is
// held for an instant, never through a call.
var registry = struct {
	mu      sync.Mutex
	modules map[string]*module
}{modules: map[string]*module{}}

var errBusy = errors.New("p11: a call is still in flight in the module; it cannot be initialised again now")

// acquire loads and initialises the module, or joins those who have. Each acquire is undone by one release.
func acquire(path, args string) (*module, error) {
	real, err := checkFile(path)
	if err != nil {
		return nil, err
	}
	m := moduleAt(real)
	m.life.Lock()
	defer m.life.Unlock()
	if err := m.load(); err != nil {
		return nil, fmt.Errorf("p11: module %s: %w", real, err)
	}
	if m.live && args != m.args {
		if m.tokens > 0 {
			return nil, fmt.Errorf("p11: module %s is in use with other x-init-args", real)
		}
		if m.end(); m.live {
			return nil, errBusy
		}
	}
	if !m.live {
		if err := m.begin(args); err != nil {
			return nil, fmt.Errorf("p11: module %s: %w", real, err)
		}
	}
	m.tokens++
	return m, nil
}

// moduleAt is the module of a real path, loaded or not.
func moduleAt(real string) *module {
	registry.mu.Lock()
	defer registry.mu.Unlock()
	m := registry.modules[real]
	if m == nil {
		m = &module{path: real, refused: map[string]bool{}, logins: map[string]*login{}, members: map[*Token]bool{}}
		registry.modules[real] = m
	}
	return m
}

// load, begin and end need m.life.
func (m *module) load() error {
	if m.loaded {
		return nil
	}
	fns, err := load(m.path)
	if err != nil {
		return err
	}
	ctx := pkcs11.New(m.path)
	if ctx == nil {
		return errors.New("cannot be loaded")
	}
	m.fns, m.ctx, m.loaded = fns, ctx, true
	return nil
}

func (m *module) begin(args string) error {
	if !m.mu.TryLock() {
		return errBusy
	}
	defer m.mu.Unlock()
	// CKR_CRYPTOKI_ALREADY_INITIALIZED is an error too: whoever else uses the module in this process would share, and break, our logins.
	if err := m.fns.initialize(args); err != nil {
		return err
	}
	m.live, m.args = true, args
	return nil
}

// end leaves the module as it is while a call is in flight: a session may still be closing, or hang.
func (m *module) end() {
	if !m.mu.TryLock() {
		return
	}
	defer m.mu.Unlock()
	// There is nothing to do about a module that does not want to end: the next begin reports what follows from it.
	_ = m.fns.finalize()
	m.live = false
}

func (m *module) release() {
	m.life.Lock()
	defer m.life.Unlock()
	if m.tokens--; m.tokens == 0 {
		m.end()
	}
}

// revive initialises the module again if it has been finalised behind our back, or lost its device link and says so that way.
func (m *module) revive() error {
	m.mu.RLock()
	_, err := m.ctx.GetInfo()
	m.mu.RUnlock()
	if code, ok := err.(pkcs11.Error); !ok || code != pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED {
		return nil
	}
	m.life.Lock()
	defer m.life.Unlock()
	if !m.mu.TryLock() {
		return errBusy
	}
	defer m.mu.Unlock()
	err = m.fns.initialize(m.args)
	if e, ok := errors.AsType[*hsm.Error](err); ok && e.CKR == hsm.CKR_CRYPTOKI_ALREADY_INITIALIZED {
		return nil // another of our tokens was faster
	}
	if err == nil {
		// The module gives the same numbers out again, to whichever token asks first: a handle of before may be another token's key.
		m.known.Lock()
		defer m.known.Unlock()
		for t := range m.members {
			t.handles.Add(1)
			t.generation.Add(1)
		}
	}
	return err
}

// join and leave tell of a token that has handles.
func (m *module) join(t *Token) {
	m.known.Lock()
	m.members[t] = true
	m.known.Unlock()
}

func (m *module) leave(t *Token) {
	m.known.Lock()
	delete(m.members, t)
	m.known.Unlock()
}

// refuse and refuses keep the promise that a PIN a token has refused is not tried again in this process's life, whoever opens it.
func (m *module) refuse(token string) {
	m.known.Lock()
	m.refused[token] = true
	m.known.Unlock()
}

func (m *module) refuses(token string) bool {
	m.known.Lock()
	defer m.known.Unlock()
	return m.refused[token]
}

// checkFile resolves the module's path. The file decides what runs in this process, so only root or this user may be able to change it.
func checkFile(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("p11: module-path %q is not absolute", path)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("p11: module: %w", err)
	}
	info, err := os.Stat(real)
	if err != nil {
		return "", fmt.Errorf("p11: module: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o022 != 0 {
		return "", fmt.Errorf("p11: module %s: must be a regular file that group and others cannot write", real)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Getuid() {
		return "", fmt.Errorf("p11: module %s: belongs to user %d, not to this one or root", real, st.Uid)
	}
	return real, nil
}

// failed gives a miekg error its function's name.
func failed(function string, err error) error {
	if code, ok := err.(pkcs11.Error); ok {
		return &hsm.Error{CKR: hsm.CKR(code), Function: function}
	}
	return err
}
