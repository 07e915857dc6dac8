package slowhsm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
)

// TestForward: each function's call arrives as it was sent, and its answer comes back.
func TestForward(t *testing.T) {
	d := ready(t, Settings{})
	d.want(t, "forward "+checked.echo, 65) // all but C_Initialize, C_Finalize and C_GetFunctionList
	d.want(t, "call C_Finalize", 0)
	r := d.counts(t)
	if len(r.Calls) != 68 {
		t.Errorf("%d functions were called", len(r.Calls))
	}
	// The made-up handles of all functions that have a session.
	if r.UnknownSession != 55 || r.Concurrent+r.UseAfterClose+r.FinalizeInFlight+r.ControlRefused != 0 {
		t.Errorf("%+v", r)
	}
}

func TestLatency(t *testing.T) {
	const latency = 30 * time.Millisecond
	d := ready(t, Settings{Latency: latency})
	for _, f := range []string{"C_Encrypt", "C_Decrypt", "C_Sign", "C_Verify", "C_GenerateRandom", "C_UnwrapKey", "C_WrapKey", "C_DeriveKey",
		"C_GenerateKey", "C_GenerateKeyPair", "C_FindObjects", "C_Login", "C_GetAttributeValue"} {
		if took := d.want(t, "call "+f, 0); took < latency {
			t.Errorf("%s took %v, latency is %v", f, took, latency)
		}
	}
	free := func(f string) {
		t.Helper()
		best := time.Hour
		for n := 0; n < 100 && best >= latency; n++ { // the machine may be busy
			best = min(best, d.want(t, "call "+f, 0))
		}
		if best >= latency {
			t.Errorf("%s took %v", f, best)
		}
	}
	staged := []string{"C_EncryptInit", "C_DecryptInit", "C_SignInit", "C_VerifyInit", "C_DigestInit", "C_FindObjectsInit"}
	for _, f := range append(staged, "C_GetSessionInfo", "C_FindObjectsFinal") {
		free(f)
	}
	d.set(t, Settings{Latency: latency, Init: true})
	for _, f := range staged {
		if took := d.want(t, "call "+f, 0); took < latency {
			t.Errorf("%s took %v with init=1", f, took)
		}
	}
	free("C_GetSessionInfo")
	d.set(t, Settings{})
	free("C_Encrypt")
	d.clean(t)
}

// TestSessionsOverlap: calls on several sessions take one latency, calls on one session add up.
func TestSessionsOverlap(t *testing.T) {
	const latency, threads = 100 * time.Millisecond, 8
	d := ready(t, Settings{Latency: latency})
	best := time.Hour
	for n := 0; n < 100 && (best >= 2*latency || d.counts(t).Peak < threads); n++ { // the machine may be busy
		best = min(best, d.want(t, fmt.Sprintf("apart %d C_Encrypt", threads), 0))
	}
	if best < latency || best >= 2*latency {
		t.Errorf("%d sessions at once took %v, latency %v", threads, best, latency)
	}
	d.clean(t)
	if r := d.counts(t); r.Peak != threads {
		t.Errorf("at most %d calls in flight", r.Peak)
	}
	if took := d.want(t, fmt.Sprintf("together %d C_Encrypt", threads), 0); took < threads*latency {
		t.Errorf("%d calls on one session took %v", threads, took)
	}
	if r := d.counts(t); r.Concurrent != threads-1 {
		t.Errorf("%d concurrent calls counted", r.Concurrent)
	}
}

func TestEnvironment(t *testing.T) {
	d := start(t, Settings{}, "KEYPLANE_SLOW_CONTROL="+filepath.Join(t.TempDir(), "none"), "KEYPLANE_SLOW_MICROS=20000", "KEYPLANE_SLOW_INIT=1",
		"KEYPLANE_SLOW_FAULTS=C_Encrypt:2:0x30")
	for _, command := range []string{"load", "call C_Initialize", "open", "call C_Encrypt"} {
		d.want(t, command, 0)
	}
	if took := d.want(t, "call C_Encrypt", uint64(hsm.CKR_DEVICE_ERROR)); took < 20*time.Millisecond {
		t.Errorf("a refused call took %v", took)
	}
	if took := d.want(t, "call C_EncryptInit", 0); took < 20*time.Millisecond {
		t.Errorf("C_EncryptInit took %v", took)
	}
}

func TestFaults(t *testing.T) {
	d := ready(t, Settings{Faults: []Fault{
		{Function: "C_Encrypt", Nth: 3, CKR: hsm.CKR_DEVICE_ERROR},
		{Function: "C_Encrypt", Nth: 4, CKR: hsm.CKR_VENDOR_DEFINED},
		{Function: "C_Encrypt", Nth: 4, CKR: hsm.CKR_GENERAL_ERROR},
		{Function: "C_GenerateRandom", Nth: 1, Hang: 80 * time.Millisecond},
		{Function: "C_Sign", Nth: 2, Onwards: true, CKR: hsm.CKR_DEVICE_MEMORY},
	}})
	for i, want := range []hsm.CKR{0, 0, hsm.CKR_DEVICE_ERROR, hsm.CKR_VENDOR_DEFINED, 0, 0} {
		if rv, _ := d.do(t, "call C_Encrypt"); hsm.CKR(rv) != want {
			t.Errorf("C_Encrypt %d: %v", i+1, hsm.CKR(rv))
		}
	}
	for i, want := range []hsm.CKR{0, hsm.CKR_DEVICE_MEMORY, hsm.CKR_DEVICE_MEMORY, hsm.CKR_DEVICE_MEMORY} {
		if rv, _ := d.do(t, "call C_Sign"); hsm.CKR(rv) != want {
			t.Errorf("C_Sign %d: %v", i+1, hsm.CKR(rv))
		}
	}
	if took := d.want(t, "call C_GenerateRandom", 0); took < 80*time.Millisecond {
		t.Errorf("the call that hangs took %v", took)
	}
	d.want(t, "call C_Verify", 0)
	if r := d.counts(t); r.Faults != 6 {
		t.Errorf("%d faults struck", r.Faults)
	}
	// The same file again is a new script.
	for range 3 {
		d.set(t, Settings{Faults: []Fault{{Function: "C_Encrypt", Nth: 2, CKR: hsm.CKR_DEVICE_ERROR}}})
		d.want(t, "call C_Encrypt", 0)
		d.want(t, "call C_Encrypt", uint64(hsm.CKR_DEVICE_ERROR))
		d.want(t, "call C_Encrypt", 0)
	}
	d.clean(t)
}

// TestControlInPlace: a file of the same length that is a nanosecond younger is another one.
func TestControlInPlace(t *testing.T) {
	d := ready(t, Settings{})
	now := time.Now()
	for i, want := range []hsm.CKR{0, hsm.CKR_DEVICE_REMOVED, 0} {
		if err := os.WriteFile(d.control, fmt.Appendf(nil, "down=%d\n", i%2), 0o600); err != nil {
			t.Fatal(err)
		}
		when := now.Add(time.Hour + time.Duration(i))
		if err := os.Chtimes(d.control, when, when); err != nil {
			t.Fatal(err)
		}
		d.want(t, "call C_Encrypt", uint64(want))
	}
	d.clean(t)
}

func TestDown(t *testing.T) {
	const removed = uint64(hsm.CKR_DEVICE_REMOVED)
	d := ready(t, Settings{})
	d.set(t, Settings{Down: true})
	for _, f := range []string{"C_Encrypt", "C_EncryptInit", "C_GetSessionInfo", "C_GetTokenInfo", "C_GenerateRandom"} {
		d.want(t, "call "+f, removed)
	}
	d.want(t, "open", removed)
	d.want(t, "call C_GetInfo", 0)
	d.want(t, "call C_GetSlotList", 0)
	d.set(t, Settings{})
	d.want(t, "call C_Encrypt", 0) // the session is still there
	d.set(t, Settings{Down: true})
	d.want(t, "call C_CloseSession", removed)
	d.set(t, Settings{})
	d.clean(t)
	d.want(t, "call C_Encrypt", 0) // nothing to a module that does not know closed sessions
	if r := d.counts(t); r.UseAfterClose != 1 {
		t.Errorf("the session was not closed: %+v", r)
	}
	d.set(t, Settings{Faults: []Fault{{Function: "C_Finalize", Nth: 1, CKR: hsm.CKR_FUNCTION_FAILED}}})
	d.want(t, "call C_Finalize", uint64(hsm.CKR_FUNCTION_FAILED))
	d.want(t, "call C_Initialize", 0)
}

// TestOutputs: what acts make of outputs, of which each is a byte more often than the one before.
func TestOutputs(t *testing.T) {
	d := ready(t, Settings{})
	next := 0
	for _, c := range []struct {
		act      Act
		function string
		want     []string // of two calls for 17 bytes; %N is output N
	}{
		{Flip, "C_Encrypt", []string{"17 ^1 000000000000000000000000000000 ^1", "17 ^1 000000000000000000000000000000 ^1"}},
		{Nick, "C_GenerateRandom", []string{"17 ^1 00000000000000000000000000000000", "17 ^1 00000000000000000000000000000000"}},
		{Short, "C_Encrypt", []string{"16", "16"}},
		{Long, "C_Encrypt", []string{"18", "18"}},
		{Swap, "C_Encrypt", []string{"17 own", "17 last"}},
		{Repeat, "C_GenerateRandom", []string{"17 own", "17 last"}},
	} {
		d.set(t, Settings{Faults: []Fault{{Function: c.function, Nth: 1, Onwards: true, Act: c.act}}})
		for i, want := range c.want {
			got := d.line(t, "output "+c.function+" 17")
			own := strings.Repeat(fmt.Sprintf("%02x", next), 17)
			bit := fmt.Sprintf("%02x", next^1)
			switch length, how, _ := strings.Cut(want, " "); {
			case how == "":
				own = map[string]string{"16": own[:32], "18": own + "ee"}[length]
				want = "0x0 " + length + " " + own
			case how == "own":
				want = "0x0 17 " + own
			case how == "last":
				want = "0x0 17 " + strings.Repeat(fmt.Sprintf("%02x", next-1), 17)
			case strings.HasSuffix(how, "^1"):
				want = "0x0 17 " + bit + own[2:32] + bit
			default:
				want = "0x0 17 " + bit + own[2:]
			}
			if got != want {
				t.Errorf("%s, %s %d: %s, want %s", c.act, c.function, i, got, want)
			}
			next++
		}
	}
	d.clean(t)
}

// TestSessionsEnd: a session that was killed says so until it is closed, and costs no violation; its neighbours live, or not.
func TestSessionsEnd(t *testing.T) {
	const gone = uint64(hsm.CKR_SESSION_HANDLE_INVALID)
	d := ready(t, Settings{})
	d.want(t, "open", 0) // session 2
	d.set(t, Settings{Faults: []Fault{{Function: "C_Encrypt", Nth: 1, Act: Kill}}})
	d.want(t, "call C_Encrypt", gone)
	d.want(t, "call C_Sign", gone)
	d.want(t, "session 1", 1)
	d.want(t, "call C_Encrypt", 0)
	d.want(t, "session 2", 2)
	d.want(t, "call C_CloseSession", gone)
	d.clean(t)
	d.want(t, "call C_Encrypt", 0) // as it does not know closed sessions
	if r := d.counts(t); r.UseAfterClose != 1 {
		t.Errorf("%+v", r)
	}
	d.want(t, "open", 0)
	d.set(t, Settings{Faults: []Fault{{Function: Any, Nth: 2, Act: KillAll}}})
	d.want(t, "call C_Encrypt", 0)
	d.want(t, "call C_Encrypt", gone)
	d.want(t, "session 1", 1)
	d.want(t, "call C_Encrypt", gone)

	d.set(t, Settings{Faults: []Fault{{Function: "C_Sign", Nth: 1, Act: LogOut}}})
	d.want(t, "open", 0)
	before := d.counts(t).Calls["C_Logout"]
	d.want(t, "call C_Sign", 0)
	if d.counts(t).Calls["C_Logout"] != before {
		t.Error("the application's log-outs count, not the fault's")
	}
}

// TestSlots: slots that vanish, and come back under other numbers.
func TestSlots(t *testing.T) {
	d := ready(t, Settings{})
	line := func(command, want string) {
		t.Helper()
		if got := d.line(t, command); got != want {
			t.Errorf("%s: %s, want %s", command, got, want)
		}
	}
	line("slots", "0x0 1 1")
	d.set(t, Settings{Gone: true})
	line("slots", "0x0 0 1")
	line("slot 1", "0xe0 0xe0")
	d.want(t, "call C_Encrypt", uint64(hsm.CKR_DEVICE_REMOVED))
	d.set(t, Settings{Moved: 7})
	line("slots", "0x0 1 8")
	line("slot 8", "0x0 0x0")
	d.want(t, "call C_Encrypt", uint64(hsm.CKR_SESSION_HANDLE_INVALID))
	d.want(t, "call C_CloseSession", uint64(hsm.CKR_SESSION_HANDLE_INVALID))
	d.set(t, Settings{})
	line("slots", "0x0 1 1")
	d.clean(t)
}

// TestWhich: each n-th call, for a time, and a stall until it is released.
func TestWhich(t *testing.T) {
	d := ready(t, Settings{Faults: []Fault{{Function: "C_Encrypt", Nth: 3, Every: true, CKR: hsm.CKR_DEVICE_ERROR}}})
	for i := range 9 {
		want := uint64(0)
		if i%3 == 2 {
			want = uint64(hsm.CKR_DEVICE_ERROR)
		}
		d.want(t, "call C_Encrypt", want)
	}
	d.set(t, Settings{Faults: []Fault{{Function: "C_Encrypt", Nth: 1, Onwards: true, CKR: hsm.CKR_DEVICE_ERROR, For: 300 * time.Millisecond}}})
	began := time.Now()
	struck := 0
	for rv := uint64(1); rv != 0; struck++ {
		rv, _ = d.do(t, "call C_Encrypt")
		time.Sleep(time.Millisecond)
	}
	if took := time.Since(began); struck < 2 || took < 300*time.Millisecond {
		t.Errorf("struck %d times in %v", struck, took)
	}
	d.set(t, Settings{Faults: []Fault{{Function: "C_Encrypt", Nth: 1, Act: Stall}}})
	released := make(chan error, 1)
	go func() {
		time.Sleep(200 * time.Millisecond)
		released <- d.Clear()
	}()
	if took := d.want(t, "call C_Encrypt", 0); took < 190*time.Millisecond {
		t.Errorf("the call that stalls took %v", took)
	}
	if err := <-released; err != nil {
		t.Error(err)
	}
	d.clean(t)
}

// TestMonitor: handles of another generation, and templates that make keys which can be read.
func TestMonitor(t *testing.T) {
	d := ready(t, Settings{})
	key := func(sensitive string) string {
		t.Helper()
		_, handle, _ := strings.Cut(d.line(t, "key "+sensitive), " ")
		return handle
	}
	old := key("1")
	d.want(t, "use "+old, 0)
	d.want(t, "call C_Login", 0)
	d.want(t, "use "+old, 0) // the session is as old
	d.clean(t)
	d.want(t, "open", 0)
	d.want(t, "use "+key("1"), 0)
	d.clean(t)
	d.want(t, "use "+old, 0)
	if r := d.counts(t); r.StaleHandle != 1 {
		t.Errorf("%+v", r)
	}
	key("0")
	r := d.counts(t)
	if r.StaleHandle != 1 || r.SecretInTemplate != 1 {
		t.Errorf("%+v", r)
	}
	if r.Violations() == nil {
		t.Error("not reported")
	}
}

// TestAbort: the process of the module ends.
func TestAbort(t *testing.T) {
	d := ready(t, Settings{Faults: []Fault{{Function: "C_Encrypt", Nth: 2, Act: Abort}}})
	d.want(t, "call C_Encrypt", 0)
	fmt.Fprintln(d.in, "call C_Encrypt")
	if d.out.Scan() {
		t.Fatalf("an answer: %s", d.out.Text())
	}
	d.aborts = true
}

func TestViolations(t *testing.T) {
	check := func(d *driver, want Report) {
		t.Helper()
		r := d.counts(t)
		r.Calls, r.Peak, r.Faults = nil, 0, 0
		if fmt.Sprint(r) != fmt.Sprint(want) {
			t.Errorf("%+v, want %+v", r, want)
		}
		if r.Violations() == nil {
			t.Error("not reported")
		}
	}
	d := ready(t, Settings{})
	d.want(t, "call C_CloseSession", 0)
	d.clean(t)
	d.want(t, "call C_Encrypt", 0)
	check(d, Report{UseAfterClose: 1})
	d.want(t, "session 4711", 4711)
	d.want(t, "call C_Encrypt", 0)
	check(d, Report{UseAfterClose: 1, UnknownSession: 1})

	d = ready(t, Settings{Latency: 2 * time.Second})
	d.want(t, "during C_Encrypt C_Finalize", 0) // C_Finalize comes into the call and waits
	check(d, Report{FinalizeInFlight: 1})
	d.want(t, "call C_Encrypt", uint64(hsm.CKR_CRYPTOKI_NOT_INITIALIZED))
	check(d, Report{FinalizeInFlight: 1, UseAfterClose: 1})
	d.want(t, "call C_Finalize", uint64(hsm.CKR_CRYPTOKI_NOT_INITIALIZED))
	d.want(t, "call C_Initialize", 0)
	d.set(t, Settings{})
	d.want(t, "open", 0) // the same number as before
	d.want(t, "call C_Encrypt", 0)
	check(d, Report{FinalizeInFlight: 1, UseAfterClose: 1})

	d = ready(t, Settings{Latency: time.Second})
	d.want(t, "together 2 C_CloseSession", 0)
	check(d, Report{Concurrent: 1})

	// The session and the slot both have the number 1.
	d = ready(t, Settings{Faults: []Fault{{Function: "C_Encrypt", Nth: 1, Hang: 2 * time.Second}}})
	d.want(t, "during C_Encrypt C_CloseAllSessions", 0)
	check(d, Report{Concurrent: 1})
	d.want(t, "call C_Encrypt", 0)
	check(d, Report{Concurrent: 1, UseAfterClose: 1})
}

// TestHammer opens and closes sessions from many threads while the settings change; more of them than the module remembers.
func TestHammer(t *testing.T) {
	settings := func(i int) Settings {
		return Settings{Latency: time.Duration(i%3) * 10 * time.Microsecond, Faults: []Fault{{Function: "C_Encrypt", Nth: 2, Hang: time.Microsecond}}}
	}
	d := ready(t, settings(0))
	done := make(chan struct{})
	stopped := make(chan error, 1)
	go func() {
		var err error
		for i := 0; err == nil; i++ {
			select {
			case <-done:
				stopped <- nil
				return
			default:
				err = d.Set(settings(i))
			}
		}
		stopped <- err
	}()
	d.want(t, "hammer 8 400", 0)
	close(done)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	d.want(t, "call C_Finalize", 0)
	d.clean(t)
	d.want(t, "call C_Initialize", 0)
	d.want(t, "session 2", 2)
	d.want(t, "call C_Encrypt", 0)
	if r := d.counts(t); r.UnknownSession != 1 {
		t.Errorf("a session that was closed thousands ago is still remembered: %+v", r)
	}
	if r := d.counts(t); r.Calls["C_OpenSession"] != 8*400+1 || r.Calls["C_CloseSession"] != 8*400 || r.Calls["C_Encrypt"] != 4*8*400+1 || r.Faults == 0 {
		t.Errorf("%+v", r)
	}
}

// TestRefused: settings with a mistake do not load, and as a control file change nothing. Each at its limit is accepted.
func TestRefused(t *testing.T) {
	many := func(n int) string { return strings.TrimSuffix(strings.Repeat("C_Sign:1:0x30,", n), ",") }
	for _, c := range []struct {
		line string
		ok   bool
	}{
		{"", true}, {"faults=", true}, {"micros=60000000", true}, {"init=1", true}, {"down=1\ninit=0\n\nmicros=7", true},
		{"faults=C_Encrypt:1000000000+:0xFFFFFFFF", true}, {"faults=C_Encrypt:1:hang=3600s", true}, {"faults=" + many(64), true},
		{"faults=C_WaitForSlotEvent:1:48", true}, {"gone=1\nmoved=1000000000", true}, {"faults=*:1*:stall:for=1ms", true},
		{"faults=C_WrapKey:1:swap,C_Sign:1:long,C_GetAttributeValue:1:flip,C_GenerateRandom:1+:repeat,C_Login:1:killall,*:1:logout,*:2:abort", true},
		{"gone=2", false}, {"moved=1000000001", false}, {"faults=C_Sign:1+*:0x30", false}, {"faults=C_Sign:1:0x30:for=0s", false},
		{"faults=C_Sign:1:0x30:for=1s:for=1s", false}, {"faults=C_Sign:1:0x30:", false}, {"faults=C_SignInit:1:flip", false},
		{"faults=C_GenerateRandom:1:short", false}, {"faults=C_GetAttributeValue:1:swap", false}, {"faults=*:1:flip", false},
		{"faults=C_GetSlotList:1:kill", false}, {"faults=C_Sign:1:trip", false}, {"faults=C_Sign:1:(null)", false}, {strings.Repeat("\n", 65536), true},
		{"micros=60000001", false}, {"micros=-1", false}, {"micros= 1", false}, {"micros=1 ", false}, {"micros=", false}, {"micros=x", false},
		{"micros=99999999999999999999", false}, {"micros=0x", false}, {"micros", false}, {"=", false}, {"init=2", false}, {"down=2", false},
		{"latency=1", false}, {"MICROS=1", false}, {"faults=" + many(65), false}, {"faults=,", false}, {"faults=C_Sign:1:0x30,", false},
		{"faults=C_Sign", false}, {"faults=C_Sign:", false}, {"faults=C_Sign:1", false}, {"faults=C_Sign:1:", false}, {"faults=C_Sign:0:0x30", false},
		{"faults=C_Sign:1000000001:0x30", false}, {"faults=C_Sign:1:0", false}, {"faults=C_Sign:1:0x100000000", false},
		{"faults=C_Sign:1:hang", false}, {"faults=C_Sign:1:hang=", false}, {"faults=C_Sign:1:hang=1", false}, {"faults=C_Sign:1:hang=0s", false},
		{"faults=C_Sign:1:hang=3601s", false}, {"faults=C_Sign:1:hang=3600000001us", false}, {"faults=C_Sign:1:hang=1h", false},
		{"faults=C_Sign:1-:0x30", false}, {"faults=C_Nothing:1:0x30", false}, {"faults=:1:0x30", false}, {"faults=C_Sign:1:0x30\x00", false},
		{strings.Repeat("\n", 65537), false},
	} {
		name := c.line[:min(len(c.line), 40)]
		d := start(t, Settings{})
		d.want(t, "load", 0)
		d.want(t, "call C_Initialize", 0)
		if err := os.WriteFile(d.control, []byte(c.line), 0o600); err != nil {
			t.Fatal(err)
		}
		later := time.Now().Add(time.Hour)
		if err := os.Chtimes(d.control, later, later); err != nil {
			t.Fatal(err)
		}
		d.want(t, "call C_GetInfo", 0)
		if r := d.counts(t); (r.ControlRefused == 0) != c.ok {
			t.Errorf("control file %q: refused %d times", name, r.ControlRefused)
		}
		d = start(t, Settings{}, "KEYPLANE_SLOW_CONTROL="+d.control)
		if rv, _ := d.do(t, "load"); (rv == 0) != c.ok {
			t.Errorf("control file %q at the start: %#x", name, rv)
		}
	}
	for env, ok := range map[string]bool{
		"KEYPLANE_SLOW_MICROS=60000000": true, "KEYPLANE_SLOW_MICROS=60000001": false, "KEYPLANE_SLOW_MICROS=": false, "KEYPLANE_SLOW_INIT=yes": false,
		"KEYPLANE_SLOW_FAULTS=": true, "KEYPLANE_SLOW_FAULTS=C_Sign:1": false, "KEYPLANE_SLOW_MODULE=/nonexistent.so": false,
		"KEYPLANE_SLOW_MODULE=" + checked.driver: false, "KEYPLANE_SLOW_REPORT=/nonexistent/report": false, "KEYPLANE_SLOW_CONTROL=/nonexistent": true,
	} {
		d := start(t, Settings{}, env)
		if rv, _ := d.do(t, "load"); (rv == 0) != ok {
			t.Errorf("%s: %#x", env, rv)
		}
	}
	itself := start(t, Settings{}, "KEYPLANE_SLOW_MODULE="+checked.module)
	if rv, _ := itself.do(t, "load"); rv == 0 {
		t.Error("the module in front of itself was accepted")
	}
}
