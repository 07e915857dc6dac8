package apitest

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Deadlines of a subprocess. They only bound what goes wrong.
const (
	processStartMax = 120 * time.Second
	processEndMax   = 90 * time.Second
)

var built struct {
	once sync.Once
	path string
	err  error
}

// Binary builds the keyplane command once per test process and returns its path. It lies beside the test binary, in the directory that
// `go test` removes afterwards.
func Binary(t testing.TB) string {
	t.Helper()
	built.once.Do(func() {
		self, err := os.Executable()
		if err != nil {
			built.err = err
			return
		}
		built.path = filepath.Join(filepath.Dir(self), "keyplane-under-test")
		out, err := exec.Command("go", "build", "-o", built.path, "github.com/keyplane/keyplane/cmd/keyplane").CombinedOutput()
		if err != nil {
			built.err = errors.New("go build: " + err.Error() + "\n" + string(out))
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.path
}

// Process is `keyplane serve` as a process of its own. It is killed with the test.
type Process struct {
	Endpoint
	Dir   string // data directory
	cmd   *exec.Cmd
	out   *logTail // stdout and stderr
	addr  chan string
	ended chan struct{}
}

// serving is the line that announces the address.
var serving = regexp.MustCompile(`serves AWS KMS for account [0-9]{12} in [a-z0-9-]+ at http://(\S+)`)

// Command starts `keyplane serve` on a data directory and waits until it serves.
func Command(t testing.TB, dir string, args ...string) *Process {
	t.Helper()
	p := Launch(t, dir, args...)
	select {
	case a := <-p.addr:
		p.Endpoint = newEndpoint(t, a, filepath.Join(dir, "credentials"))
	case <-p.ended:
		t.Fatalf("keyplane serve ended at once: %v\n%s", p.cmd.ProcessState, p.out)
	case <-time.After(processStartMax):
		t.Fatalf("keyplane serve does not serve after %v\n%s", processStartMax, p.out)
	}
	return p
}

// patient is the configuration of every process here: on a busy machine nothing is throttled, given up or cut off where a test expects
// something else. Records need not survive a power cut here.
const patient = "queue_time_max: 10s\nround_timeout: 10s\nread_timeout: 30s\naudit: {timeout: 10s, durability: write}\n"

// Launch starts the process and waits for nothing: its Endpoint is not known.
func Launch(t testing.TB, dir string, args ...string) *Process {
	t.Helper()
	config := filepath.Join(t.TempDir(), "keyplane.yaml")
	if err := os.WriteFile(config, []byte(patient), 0o600); err != nil {
		t.Fatal(err)
	}
	args = append([]string{"serve", "--config", config, "--listen", "127.0.0.1:0", "--data-dir", dir, "--region", Region, "--account", Account}, args...)
	p := &Process{Dir: dir, cmd: exec.Command(Binary(t), args...), out: &logTail{}, addr: make(chan string, 1), ended: make(chan struct{})}
	p.cmd.Stderr = p.out
	p.cmd.Env = cleanEnv()
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the process's output
		defer close(p.ended)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			_, _ = io.WriteString(p.out, lines.Text()+"\n")
			if m := serving.FindStringSubmatch(lines.Text()); m != nil {
				p.addr <- m[1]
			}
		}
		_ = p.cmd.Wait() // after the last read, as StdoutPipe asks
	}()
	t.Cleanup(func() {
		p.Kill(t)
		if t.Failed() {
			t.Logf("keyplane serve said:\n%s", p.out)
		}
	})
	return p
}

// cleanEnv is the environment without what would configure keyplane or an AWS client.
func cleanEnv(extra ...string) []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "AWS_") && !strings.HasPrefix(v, "KEYPLANE_") {
			env = append(env, v)
		}
	}
	return append(env, extra...)
}

// Kill ends the process with SIGKILL, if it still runs, and waits for its end.
func (p *Process) Kill(t testing.TB) {
	t.Helper()
	_ = p.cmd.Process.Kill()
	p.Wait(t)
}

// Terminate sends SIGTERM.
func (p *Process) Terminate(t testing.TB) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

// Wait waits for the process's end and returns its exit status, -1 after a signal.
func (p *Process) Wait(t testing.TB) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(processEndMax):
		t.Fatalf("keyplane serve has not ended after %v\n%s", processEndMax, p.out)
	}
	return p.cmd.ProcessState.ExitCode()
}

// Output is the end of what the process printed so far.
func (p *Process) Output() string { return p.out.String() }
