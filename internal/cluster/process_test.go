package cluster

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// shell is a process that runs a script.
func shell(t *testing.T, script string) *Process {
	t.Helper()
	p := &Process{Name: "test", Log: filepath.Join(t.TempDir(), "log"), command: "/bin/sh", args: []string{"-c", script}, env: os.Environ()}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for began := time.Now(); !is(); time.Sleep(time.Millisecond) {
		if time.Since(began) > patience {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func TestProcess(t *testing.T) {
	p := shell(t, "echo alive; while :; do sleep 0.01; done")
	eventually(t, "output", func() bool { return strings.Contains(p.Tail(100), "alive\n") })
	state := func() string {
		b, _ := os.ReadFile(filepath.Join("/proc", pidText(p), "stat"))
		_, rest, _ := strings.Cut(string(b), ") ")
		state, _, _ := strings.Cut(rest, " ")
		return state
	}
	if err := p.Freeze(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "frozen", func() bool { return state() == "T" })
	if err := p.Thaw(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "thawed", func() bool { return state() != "T" })
	pid := p.Pid()
	p.Kill()
	if p.Running() || p.Freeze() == nil {
		t.Error("it runs after Kill")
	}
	if err := p.Start(); err != nil || p.Pid() == pid || !p.Running() {
		t.Errorf("after Start: %v", err)
	}
	_ = p.Freeze()
	p.Terminate() // a frozen process too
	if p.Running() {
		t.Error("it runs after Terminate")
	}
	if len(p.Exits()) != 0 {
		t.Errorf("ends that nobody asked for: %v", p.Exits())
	}
}

func pidText(p *Process) string { return strconv.Itoa(p.Pid()) }

// TestRespawn: a process that ends by itself is started again, and that is remembered.
func TestRespawn(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	p := shell(t, "if [ -e "+mark+" ]; then echo again; sleep 100; fi; touch "+mark+"; exit 3")
	eventually(t, "started again", func() bool { return strings.Contains(p.Tail(1000), "again\n") })
	if e := p.Exits(); len(e) != 1 || e[0].Status != "exit status 3" {
		t.Errorf("ends: %v", e)
	}
}

func TestCPU(t *testing.T) {
	p := shell(t, "while :; do :; done")
	eventually(t, "some processor time", func() bool { return p.CPU() > 0 })
	if got := cpuOf([]byte("1 (a ) b) S 0 0 0 0 0 0 0 0 0 0 7 5 0 0")); got != 120*time.Millisecond {
		t.Errorf("7 and 5 ticks are %v", got)
	}
}
