package slowhsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Report is what the module has counted.
type Report struct {
	Calls  map[string]uint64 // by function: "C_Encrypt", …; those that were never called are missing
	Peak   uint64            // most calls in flight at once
	Faults uint64            // faults that struck

	// Violations.
	Concurrent       uint64 // calls on a session that was busy; they took turns
	UseAfterClose    uint64 // calls on a session that had been closed
	UnknownSession   uint64 // calls on a session that never was
	FinalizeInFlight uint64 // C_Finalize before all calls had returned; it waited
	ControlRefused   uint64 // control files with a mistake; nothing changed
	StaleHandle      uint64 // object handles from before the login, the sessions or the C_Initialize that their session is of
	SecretInTemplate uint64 // objects made with a secret that stays or can be read, or as keys that can be
}

// Violations is nil if there were none.
func (r Report) Violations() error {
	if r.Concurrent+r.UseAfterClose+r.UnknownSession+r.FinalizeInFlight+r.ControlRefused+r.StaleHandle+r.SecretInTemplate == 0 {
		return nil
	}
	return fmt.Errorf("slowhsm: violations: %d concurrent, %d use after close, %d unknown session, %d finalize in flight, %d control files refused, "+
		"%d stale handles, %d secrets in templates", r.Concurrent, r.UseAfterClose, r.UnknownSession, r.FinalizeInFlight, r.ControlRefused,
		r.StaleHandle, r.SecretInTemplate)
}

// Report reads the counters, each exact but not of one instant. Before the module is opened they are all zero.
func (h *HSM) Report() (Report, error) {
	b, err := os.ReadFile(h.report)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Report{}, err
	}
	return parseReport(b)
}

// A counter is a name, zero-padded, and a value in the machine's byte order: struct counter in slow.c.
const (
	nameLen    = 24
	counterLen = nameLen + 8
)

func parseReport(b []byte) (Report, error) {
	if len(b)%counterLen != 0 {
		return Report{}, fmt.Errorf("slowhsm: a report of %d bytes", len(b))
	}
	r := Report{Calls: map[string]uint64{}}
	events := map[string]*uint64{
		"peak": &r.Peak, "faults": &r.Faults, "concurrent": &r.Concurrent, "use-after-close": &r.UseAfterClose,
		"unknown-session": &r.UnknownSession, "finalize-in-flight": &r.FinalizeInFlight, "control-refused": &r.ControlRefused,
		"stale-handle": &r.StaleHandle, "secret-in-template": &r.SecretInTemplate,
	}
	for ; len(b) > 0; b = b[counterLen:] {
		name := string(bytes.TrimRight(b[:nameLen], "\x00"))
		value := binary.NativeEndian.Uint64(b[nameLen:])
		if e := events[name]; e != nil {
			*e = value
		} else if value > 0 {
			r.Calls[name] = value
		}
	}
	return r, nil
}
