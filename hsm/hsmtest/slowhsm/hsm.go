package slowhsm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/pkcs11uri"
)

// Limits of Settings.
const (
	LatencyMax = time.Minute
	HangMax    = time.Hour
	NthMax     = 1_000_000_000
	MovedMax   = 1_000_000_000
	FaultsMax  = 64
)

// Settings are what the module does to calls. The zero value forwards them and no more.
type Settings struct {
	Latency time.Duration // of every call that reaches the device, in whole microseconds
	Init    bool          // C_EncryptInit and the like reach the device too
	Down    bool          // the device does not answer: CKR_DEVICE_REMOVED
	Gone    bool          // there are no slots; the sessions that there are have ended for good
	Moved   uint          // slots have numbers that are higher by so much; when that changes, the sessions that there are have ended
	Faults  []Fault       // of several for one call the first strikes
}

// Fault is what happens to one call of a function, to each Nth, or from one call onwards: one of CKR, Hang and Act.
type Fault struct {
	Function string        // "C_Encrypt", …; Any: each that a client library does not answer by itself
	Nth      int           // which call of it, from 1; counted from when the settings are read
	Onwards  bool          // all later calls too
	Every    bool          // each Nth call; not with Onwards
	For      time.Duration // how long after the settings are read it may strike, in whole microseconds; 0: as long as they stand
	CKR      hsm.CKR       // the answer, in the place of the real module's
	Hang     time.Duration // the time the call takes longer, in whole microseconds
	Act      Act           // what befalls the call, which goes on
}

// Any is the function of a Fault that strikes all of them.
const Any = "*"

// Act is something that befalls a call. Outputs are those of encryption, decryption, signing, digests, wrapping and C_GenerateRandom.
type Act string

// The acts.
const (
	Stall   Act = "stall"   // it hangs until other settings are read
	Flip    Act = "flip"    // one bit of every 16 bytes of its output is another, or of every attribute that C_GetAttributeValue reads
	Nick    Act = "nick"    // one bit of its output's first byte is another, or of every attribute's
	Short   Act = "short"   // its output is said to be a byte shorter; not C_GenerateRandom
	Long    Act = "long"    // and a byte longer
	Swap    Act = "swap"    // it gets the output of the call that it struck before, and the next such call gets this one's
	Repeat  Act = "repeat"  // it gets the output of the first call that it struck
	LogOut  Act = "logout"  // the user is logged out before it
	Kill    Act = "kill"    // its session has ended: CKR_SESSION_HANDLE_INVALID until the application closes it
	KillAll Act = "killall" // all sessions of its slot have
	Abort   Act = "abort"   // the module takes the process with it
)

// text is the control file.
func (s Settings) text() (string, error) {
	if s.Latency < 0 || s.Latency > LatencyMax || s.Latency%time.Microsecond != 0 {
		return "", fmt.Errorf("slowhsm: latency %v is not whole microseconds up to %v", s.Latency, LatencyMax)
	}
	if len(s.Faults) > FaultsMax || s.Moved > MovedMax {
		return "", fmt.Errorf("slowhsm: %d faults, at most %d, or slots moved by %d, at most %d", len(s.Faults), FaultsMax, s.Moved, MovedMax)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "micros=%d\ninit=%d\ndown=%d\ngone=%d\nmoved=%d\nfaults=", s.Latency.Microseconds(), digit(s.Init), digit(s.Down), digit(s.Gone), s.Moved)
	for i, f := range s.Faults {
		if i > 0 {
			b.WriteByte(',')
		}
		if err := f.append(&b); err != nil {
			return "", err
		}
	}
	b.WriteByte('\n')
	return b.String(), nil
}

// append writes NAME:NTH:WHAT, as parse_fault in slow.c reads it.
func (f Fault) append(b *strings.Builder) error {
	if f.Nth < 1 || f.Nth > NthMax || f.CKR > 0xFFFFFFFF || f.Onwards && f.Every || strings.ContainsAny(f.Function+string(f.Act), ":,=\n\x00") {
		return fmt.Errorf("slowhsm: fault %+v: a call from 1, Onwards or Every, and no separators", f)
	}
	if one := digit(f.CKR != 0) + digit(f.Hang != 0) + digit(f.Act != ""); one != 1 {
		return fmt.Errorf("slowhsm: fault %+v: either a CKR, a time, or an act", f)
	}
	for _, d := range []time.Duration{f.Hang, f.For} {
		if d < 0 || d > HangMax || d%time.Microsecond != 0 {
			return fmt.Errorf("slowhsm: fault %+v: times are whole microseconds up to %v", f, HangMax)
		}
	}
	fmt.Fprintf(b, "%s:%d", f.Function, f.Nth)
	if f.Onwards {
		b.WriteByte('+')
	}
	if f.Every {
		b.WriteByte('*')
	}
	switch {
	case f.Hang > 0:
		fmt.Fprintf(b, ":hang=%dus", f.Hang.Microseconds())
	case f.Act != "":
		fmt.Fprintf(b, ":%s", f.Act)
	default:
		fmt.Fprintf(b, ":%#x", uint(f.CKR))
	}
	if f.For > 0 {
		fmt.Fprintf(b, ":for=%dus", f.For.Microseconds())
	}
	return nil
}

func digit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// HSM is a built module in front of a real token, with its control file and report. Methods are safe for concurrent use.
type HSM struct {
	uri, real, control, report string

	mu   sync.Mutex
	last time.Time // guarded by mu: the control file's modification time
}

// New builds the module into dir, which must exist and be this module's alone, in front of the token that uri names. Whoever opens URI needs
// the environment Env.
func New(dir, uri string, s Settings) (*HSM, error) {
	path, err := filepath.Abs(filepath.Join(dir, moduleName))
	if err != nil {
		return nil, err
	}
	h, err := at(path, uri, s)
	if err != nil {
		return nil, err
	}
	if _, err := BuildAt(dir); err != nil {
		return nil, err
	}
	return h, nil
}

// Over builds the module into a directory of the test, in front of the token that uri names, and sets the environment for this process.
// Open URI once at least before the next Over. When the test ends, violations fail it.
func Over(t testing.TB, uri string, s Settings) *HSM {
	t.Helper()
	h, err := at(Build(t), uri, s)
	if err == nil {
		err = h.apart()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range h.Env() {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	t.Cleanup(func() {
		r, err := h.Report()
		if err == nil {
			err = r.Violations()
		}
		if err != nil {
			t.Error(err)
		}
	})
	return h
}

// apart puts a copy of SoftHSM behind the module instead of the library itself. A module with a call that hangs is left initialised, and SoftHSM with it:
// the next test of this process that opens the library would find CKR_CRYPTOKI_ALREADY_INITIALIZED. NSS, which loads its parts from beside itself, stays.
func (h *HSM) apart() error {
	if filepath.Base(h.real) != "libsofthsm2.so" {
		return nil
	}
	library, err := os.ReadFile(h.real)
	if err != nil {
		return err
	}
	h.real = filepath.Join(h.Dir(), filepath.Base(h.real))
	return os.WriteFile(h.real, library, 0o755)
}

// at is an HSM for the module at path, which need not be there yet.
func at(path, uri string, s Settings) (*HSM, error) {
	u, err := pkcs11uri.Parse(uri)
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(path)
	h := &HSM{control: filepath.Join(dir, "control"), report: filepath.Join(dir, "report")}
	for i := range u.Query {
		if u.Query[i].Name == "module-path" {
			h.real, u.Query[i].Value = u.Query[i].Value, path
		}
	}
	if h.real == "" {
		return nil, errors.New("slowhsm: the URI names no module")
	}
	h.uri = u.String()
	return h, h.Set(s)
}

// Open is the HSM whose module New or Over has put into dir, which another process may have opened: it sets what that one's module does, and reads
// what it has counted. It has no URI and no Env.
func Open(dir string) (*HSM, error) {
	h := &HSM{control: filepath.Join(dir, "control"), report: filepath.Join(dir, "report")}
	if _, err := os.Stat(filepath.Join(dir, moduleName)); err != nil {
		return nil, fmt.Errorf("slowhsm: %w", err)
	}
	info, err := os.Stat(h.control)
	if err != nil {
		return nil, fmt.Errorf("slowhsm: %w", err)
	}
	h.last = info.ModTime()
	return h, nil
}

// Dir is where the module is: what Open takes.
func (h *HSM) Dir() string { return filepath.Dir(h.control) }

// Clear ends all faults and latency, and lets calls go on that stall.
func (h *HSM) Clear() error { return h.Set(Settings{}) }

// URI names the same token through the slow module.
func (h *HSM) URI() string { return h.uri }

// Env is the environment of the process that opens URI.
func (h *HSM) Env() []string {
	return []string{"KEYPLANE_SLOW_MODULE=" + h.real, "KEYPLANE_SLOW_CONTROL=" + h.control, "KEYPLANE_SLOW_REPORT=" + h.report}
}

// Set replaces the settings, for calls that begin after it returns. Faults count calls from then on.
func (h *HSM) Set(s Settings) error {
	text, err := s.text()
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	next := fmt.Sprintf("%s.%d", h.control, os.Getpid()) // several processes may steer one module
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		return err
	}
	// The module tells files apart by their modification time, and the kernel's clock for that only ticks every few milliseconds.
	now := time.Now()
	if info, err := os.Stat(h.control); err == nil && info.ModTime().After(h.last) {
		h.last = info.ModTime() // another process's
	}
	if !now.After(h.last) {
		now = h.last.Add(time.Microsecond)
	}
	h.last = now
	if err := os.Chtimes(next, now, now); err != nil {
		return err
	}
	return os.Rename(next, h.control)
}
