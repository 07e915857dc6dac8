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
	FaultsMax  = 64
)

// Settings are what the module does to calls. The zero value forwards them and no more.
type Settings struct {
	Latency time.Duration // of every call that reaches the device, in whole microseconds
	Init    bool          // C_EncryptInit and the like reach the device too
	Down    bool          // the device does not answer: CKR_DEVICE_REMOVED
	Faults  []Fault       // of several for one call the first strikes
}

// Fault is what happens to one call of a function, or from one call onwards.
type Fault struct {
	Function string        // "C_Encrypt", …
	Nth      int           // which call of it, from 1; counted from when the settings are read
	Onwards  bool          // all later calls too
	CKR      hsm.CKR       // the answer, in the place of the real module's
	Hang     time.Duration // or the time the call takes longer, in whole microseconds; not both
}

// text is the control file.
func (s Settings) text() (string, error) {
	if s.Latency < 0 || s.Latency > LatencyMax || s.Latency%time.Microsecond != 0 {
		return "", fmt.Errorf("slowhsm: latency %v is not whole microseconds up to %v", s.Latency, LatencyMax)
	}
	if len(s.Faults) > FaultsMax {
		return "", fmt.Errorf("slowhsm: %d faults, at most %d", len(s.Faults), FaultsMax)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "micros=%d\ninit=%d\ndown=%d\nfaults=", s.Latency.Microseconds(), digit(s.Init), digit(s.Down))
	for i, f := range s.Faults {
		if i > 0 {
			b.WriteByte(',')
		}
		if f.Nth < 1 || f.Nth > NthMax || (f.CKR == 0) == (f.Hang == 0) || f.CKR > 0xFFFFFFFF || f.Hang < 0 || f.Hang > HangMax ||
			f.Hang%time.Microsecond != 0 || strings.ContainsAny(f.Function, ":,=\n\x00") {
			return "", fmt.Errorf("slowhsm: fault %+v: a call from 1, and either a CKR or whole microseconds", f)
		}
		fmt.Fprintf(&b, "%s:%d", f.Function, f.Nth)
		if f.Onwards {
			b.WriteByte('+')
		}
		if f.Hang > 0 {
			fmt.Fprintf(&b, ":hang=%dus", f.Hang.Microseconds())
		} else {
			fmt.Fprintf(&b, ":%#x", uint(f.CKR))
		}
	}
	b.WriteByte('\n')
	return b.String(), nil
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
	next := h.control + ".next"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		return err
	}
	// The module tells files apart by their modification time, and the kernel's clock for that only ticks every few milliseconds.
	now := time.Now()
	if !now.After(h.last) {
		now = h.last.Add(time.Microsecond)
	}
	h.last = now
	if err := os.Chtimes(next, now, now); err != nil {
		return err
	}
	return os.Rename(next, h.control)
}
