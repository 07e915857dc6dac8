package slowhsm

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
)

func TestSettingsLimits(t *testing.T) {
	fault := func(change func(*Fault)) Settings {
		f := Fault{Function: "C_Encrypt", Nth: 1, CKR: hsm.CKR_DEVICE_ERROR}
		change(&f)
		return Settings{Faults: []Fault{f}}
	}
	for _, s := range []Settings{
		{}, {Latency: LatencyMax}, {Faults: slices.Repeat(fault(func(*Fault) {}).Faults, FaultsMax)},
		fault(func(f *Fault) { f.Nth = NthMax }), fault(func(f *Fault) { f.CKR = 0xFFFFFFFF }),
		fault(func(f *Fault) { f.CKR, f.Hang = 0, HangMax }), fault(func(f *Fault) { f.Every, f.For = true, HangMax }), {Moved: MovedMax},
		fault(func(f *Fault) { f.Function = Any }),
	} {
		d := start(t, s) // the module takes what text writes
		d.want(t, "load", 0)
	}
	for _, s := range []Settings{
		{Latency: LatencyMax + time.Microsecond}, {Latency: -time.Microsecond}, {Latency: 1500 * time.Nanosecond},
		{Faults: slices.Repeat(fault(func(*Fault) {}).Faults, FaultsMax+1)},
		fault(func(f *Fault) { f.Nth = 0 }), fault(func(f *Fault) { f.Nth = NthMax + 1 }), fault(func(f *Fault) { f.CKR = 0 }),
		fault(func(f *Fault) { f.CKR = 0x100000000 }), fault(func(f *Fault) { f.Hang = time.Second }),
		fault(func(f *Fault) { f.CKR, f.Hang = 0, HangMax+time.Microsecond }), fault(func(f *Fault) { f.CKR, f.Hang = 0, -time.Second }),
		fault(func(f *Fault) { f.Every, f.Onwards = true, true }), fault(func(f *Fault) { f.Act = Flip }), fault(func(f *Fault) { f.For = time.Nanosecond }),
		fault(func(f *Fault) { f.CKR, f.Act = 0, "flip:for=1s" }), fault(func(f *Fault) { f.For = HangMax + time.Microsecond }), {Moved: MovedMax + 1},
		fault(func(f *Fault) { f.CKR, f.Hang = 0, time.Nanosecond }), fault(func(f *Fault) { f.Function = "C_Sign:1:0x30,C_Encrypt" }),
	} {
		if text, err := s.text(); err == nil {
			t.Errorf("%+v became %q", s, text)
		}
	}
}

func TestSettingsText(t *testing.T) {
	s := Settings{Latency: 200 * time.Microsecond, Init: true, Faults: []Fault{
		{Function: "C_Encrypt", Nth: 3, CKR: hsm.CKR_DEVICE_ERROR},
		{Function: "C_GenerateRandom", Nth: 1, Onwards: true, Hang: 500 * time.Millisecond},
		{Function: Any, Nth: 7, Every: true, For: 2 * time.Second, Act: LogOut},
	}, Gone: true, Moved: 5}
	const want = "micros=200\ninit=1\ndown=0\ngone=1\nmoved=5\nfaults=C_Encrypt:3:0x30,C_GenerateRandom:1+:hang=500000us,*:7*:logout:for=2000000us\n"
	if text, err := s.text(); err != nil || text != want {
		t.Errorf("%q, %v", text, err)
	}
}

// TestURI: everything but the module's path stays.
func TestURI(t *testing.T) {
	dir := t.TempDir()
	h, err := New(dir, "pkcs11:token=a%20b;serial=1?pin-source=file:/pin&module-path=/lib/real.so&x-init-args=c", Settings{})
	if err != nil {
		t.Fatal(err)
	}
	if want := "pkcs11:token=a%20b;serial=1?pin-source=file:/pin&module-path=" + dir + "/libslowhsm.so&x-init-args=c"; h.URI() != want {
		t.Errorf("%s, want %s", h.URI(), want)
	}
	if env := h.Env(); env[0] != "KEYPLANE_SLOW_MODULE=/lib/real.so" {
		t.Error(env)
	}
	if r, err := h.Report(); err != nil || r.Violations() != nil || len(r.Calls) != 0 {
		t.Errorf("before the module is opened: %+v, %v", r, err)
	}
	for _, uri := range []string{"", "pkcs11:token=a", "http://host/"} {
		if _, err := New(dir, uri, Settings{}); err == nil {
			t.Errorf("%q was accepted", uri)
		}
	}
	if _, err := New(dir, "pkcs11:token=a?module-path=/m", Settings{Latency: -1}); err == nil {
		t.Error("a negative latency was accepted")
	}
}

// TestOpen: another process steers the module and reads what it has counted.
func TestOpen(t *testing.T) {
	d := ready(t, Settings{})
	other, err := Open(d.Dir())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := other.Set(Settings{Faults: []Fault{{Function: "C_Encrypt", Nth: 1, Onwards: true, CKR: hsm.CKR_DEVICE_ERROR}}}); err != nil {
			t.Fatal(err)
		}
		d.want(t, "call C_Encrypt", uint64(hsm.CKR_DEVICE_ERROR))
		if err := d.Clear(); err != nil {
			t.Fatal(err)
		}
		d.want(t, "call C_Encrypt", 0)
	}
	if r, err := other.Report(); err != nil || r.Faults != 3 || r.Calls["C_Encrypt"] != 6 {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := Open(t.TempDir()); err == nil {
		t.Error("a directory without a module was accepted")
	}
}

func TestBuildAt(t *testing.T) {
	dir := t.TempDir()
	path, err := BuildAt(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o022 != 0 || filepath.Dir(path) != dir {
		t.Errorf("%s: %v, %v", path, info, err)
	}
	if _, err := BuildAt(filepath.Join(dir, "missing")); err == nil {
		t.Error("a directory that is not there was accepted")
	}
	if a, b := Build(t), Build(t); a == b {
		t.Error("two tests would share a module")
	}
	t.Setenv("CC", "/nonexistent/cc")
	if _, err := BuildAt(dir); err == nil || !strings.Contains(err.Error(), "/nonexistent/cc") {
		t.Errorf("a compiler that is not there: %v", err)
	}
}

func TestReportOfWrongSize(t *testing.T) {
	for n, ok := range map[int]bool{0: true, counterLen - 1: false, counterLen: true, counterLen + 1: false} {
		if _, err := parseReport(make([]byte, n)); (err == nil) != ok {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}
