package apitest

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
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

// built are the commands that were built, by their build tags.
var built struct {
	mu   sync.Mutex
	path map[string]string
}

// Binary builds the keyplane command once per test process and returns its path. It lies beside the test binary, in the directory that
// `go test` removes afterwards.
func Binary(t testing.TB) string { return build(t, "") }

// build is Binary with a build tag.
func build(t testing.TB, tag string) string {
	t.Helper()
	built.mu.Lock()
	defer built.mu.Unlock()
	if path := built.path[tag]; path != "" {
		return path
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(filepath.Dir(self), "keyplane-under-test"+tag)
	if out, err := exec.Command("go", "build", "-tags", tag, "-o", path, "github.com/keyplane/keyplane/cmd/keyplane").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	if built.path == nil {
		built.path = map[string]string{}
	}
	built.path[tag] = path
	return path
}

// Process is `keyplane serve`, or `keyplane xks-proxy`, controlplane or dataplane where that is the first argument, as a process of its own. It is killed with the test.
type Process struct {
	Endpoint
	Dir   string // data directory
	cmd   *exec.Cmd
	out   *logTail // stdout and stderr
	addr  chan string
	ended chan struct{}
}

// serving is the line that announces the address.
var serving = regexp.MustCompile(`serves AWS KMS for account [0-9]{12} in [a-z0-9, -]+ at http://(\S+)`)

// Command starts `keyplane serve` on a data directory and waits until it serves. Of the arguments, a --config and a --region are instead of those that every process
// here has.
func Command(t testing.TB, dir string, args ...string) *Process {
	t.Helper()
	return Launch(t, dir, args...).serve(t)
}

// Failing is Command with a failpoint (package failpoint), at which the process ends. It may do so before it serves: then the Endpoint is empty.
func Failing(t testing.TB, dir, failpoint string, args ...string) *Process {
	t.Helper()
	p := launch(t, build(t, "failpoints"), []string{"KEYPLANE_FAILPOINT=" + failpoint}, dir, args...)
	select {
	case a := <-p.addr:
		p.Endpoint = newEndpoint(t, a, filepath.Join(dir, "credentials"))
	case <-p.ended:
	case <-time.After(processStartMax):
		t.Fatalf("keyplane serve neither serves nor ends after %v\n%s", processStartMax, p.out)
	}
	return p
}

func (p *Process) serve(t testing.TB) *Process {
	t.Helper()
	select {
	case a := <-p.addr:
		p.Endpoint = newEndpoint(t, a, filepath.Join(p.Dir, "credentials"))
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
	return launch(t, Binary(t), nil, dir, args...)
}

func launch(t testing.TB, command string, env []string, dir string, args ...string) *Process {
	t.Helper()
	config := filepath.Join(t.TempDir(), "keyplane.yaml")
	if err := os.WriteFile(config, []byte(patient), 0o600); err != nil {
		t.Fatal(err)
	}
	name := "serve"
	if len(args) > 0 && slices.Contains([]string{"xks-proxy", "controlplane", "dataplane"}, args[0]) {
		name, args = args[0], args[1:]
	}
	if name != "controlplane" {
		args = append([]string{"--listen", "127.0.0.1:0"}, args...)
	}
	args = append([]string{name, "--config", config, "--data-dir", dir, "--account", Account}, args...)
	if !slices.Contains(args, "--region") {
		args = append(args, "--region", Region)
	}
	p := &Process{Dir: dir, cmd: exec.Command(command, args...), out: &logTail{}, addr: make(chan string, 1), ended: make(chan struct{})}
	p.cmd.Stderr = p.out
	p.cmd.Env = cleanEnv(env...)
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
