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

	live    bool            // guarded by registry.mu: initialised by us and not finalised
	args    string          // guarded by registry.mu: what it was initialised with
	tokens  int             // guarded by registry.mu: tokens open
	members map[*Token]bool // guarded by registry.mu: those of them that work, which lose every handle when the module begins anew
	refused map[string]bool // guarded by registry.mu: tokens, by serial and label, that have refused the PIN
}

// registry has every module this process has loaded, by real path. C_Initialize and the PIN counters are the process's, so this is too.
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
	registry.mu.Lock()
	defer registry.mu.Unlock()
	m := registry.modules[real]
	if m == nil {
		fns, err := load(real)
		if err != nil {
			return nil, fmt.Errorf("p11: module %s: %w", real, err)
		}
		ctx := pkcs11.New(real)
		if ctx == nil {
			return nil, fmt.Errorf("p11: module %s: cannot be loaded", real)
		}
		m = &module{path: real, fns: fns, ctx: ctx, refused: map[string]bool{}, members: map[*Token]bool{}}
		registry.modules[real] = m
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

// begin and end need registry.mu.
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
	registry.mu.Lock()
	defer registry.mu.Unlock()
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
	registry.mu.Lock()
	defer registry.mu.Unlock()
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
		for t := range m.members {
			t.handles.Add(1)
			t.generation.Add(1)
		}
	}
	return err
}

// join and leave tell of a token that has handles.
func (m *module) join(t *Token) {
	registry.mu.Lock()
	m.members[t] = true
	registry.mu.Unlock()
}

func (m *module) leave(t *Token) {
	registry.mu.Lock()
	delete(m.members, t)
	registry.mu.Unlock()
}

// refuse and refuses keep the promise that a PIN a token has refused is not tried again in this process's life, whoever opens it.
func (m *module) refuse(token string) {
	registry.mu.Lock()
	m.refused[token] = true
	registry.mu.Unlock()
}

func (m *module) refuses(token string) bool {
	registry.mu.Lock()
	defer registry.mu.Unlock()
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
