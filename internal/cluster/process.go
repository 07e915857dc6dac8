package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// respawnAfter is how long a process that ended by itself stays down.
const respawnAfter = 200 * time.Millisecond

// Process is a program that runs as a process of its own. Its output goes to a file. Methods are safe for concurrent use.
type Process struct {
	Name string
	Role string // "serve", "data", "control", "etcd"
	Dir  string // data directory
	Log  string // what it printed, of all its lives

	command   string
	args, env []string

	mu     sync.Mutex
	cmd    *exec.Cmd
	ended  chan struct{} // closed when cmd has ended
	want   bool          // that it runs: who ends by himself is started again
	frozen bool
	first  []string // environment besides env, until it is ready for the first time
	exits  []Exit
}

// Exit is an end of a process that nobody had asked for.
type Exit struct {
	Time   time.Time
	Status string
}

// Start starts the process, if it does not run.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.want = true
	return p.start()
}

// introduce sets what the environment has besides, of the lives that begin from now on.
func (p *Process) introduce(env ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.first = env
}

func (p *Process) start() error {
	if p.ended != nil && !closed(p.ended) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(p.Log), 0o700); err != nil {
		return err
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	fmt.Fprintf(log, "--- %s start %v\n", time.Now().Format(time.RFC3339Nano), p.args)
	cmd := exec.Command(p.command, p.args...)
	cmd.Stdout, cmd.Stderr, cmd.Env = log, log, append(slices.Clone(p.env), p.first...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt typed at the terminal is for the parent, which ends its children in order
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	ended := make(chan struct{})
	p.cmd, p.ended, p.frozen = cmd, ended, false
	go func() {
		_ = cmd.Wait()
		close(ended)
		p.respawn(cmd)
	}()
	return nil
}

// respawn starts a process again that ended by itself.
func (p *Process) respawn(was *exec.Cmd) {
	p.mu.Lock()
	if !p.want || p.cmd != was {
		p.mu.Unlock()
		return
	}
	p.exits = append(p.exits, Exit{time.Now(), was.ProcessState.String()})
	p.mu.Unlock()
	time.Sleep(respawnAfter)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.want && p.cmd == was {
		_ = p.start() // an error is a program that is not there any more: nothing runs then, which everybody sees
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Pid is the process's ID, 0 if it does not run.
func (p *Process) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended == nil || closed(p.ended) {
		return 0
	}
	return p.cmd.Process.Pid
}

// Running reports whether the process runs, frozen or not.
func (p *Process) Running() bool { return p.Pid() != 0 }

// Exits are the ends that nobody had asked for, so far.
func (p *Process) Exits() []Exit {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Exit(nil), p.exits...)
}

// end sends a signal, after which the process is not started again by itself, and waits for its end; after a while it is killed.
func (p *Process) end(signal syscall.Signal, patience time.Duration) {
	p.mu.Lock()
	p.want = false
	cmd, ended := p.cmd, p.ended
	frozen := p.frozen
	p.mu.Unlock()
	if ended == nil {
		return
	}
	if !closed(ended) {
		_ = cmd.Process.Signal(signal)
		if frozen {
			_ = cmd.Process.Signal(syscall.SIGCONT)
		}
	}
	select {
	case <-ended:
	case <-time.After(patience):
		_ = cmd.Process.Kill()
		<-ended
	}
}

// Kill ends the process with SIGKILL.
func (p *Process) Kill() { p.end(syscall.SIGKILL, time.Minute) }

// Terminate ends the process with SIGTERM, in good order.
func (p *Process) Terminate() { p.end(syscall.SIGTERM, 30*time.Second) }

// Freeze stops the process with SIGSTOP.
func (p *Process) Freeze() error { return p.signal(syscall.SIGSTOP, true) }

// Thaw lets a frozen process go on.
func (p *Process) Thaw() error { return p.signal(syscall.SIGCONT, false) }

func (p *Process) signal(s syscall.Signal, frozen bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended == nil || closed(p.ended) {
		return errors.New(p.Name + " does not run")
	}
	p.frozen = frozen
	return p.cmd.Process.Signal(s)
}

// CPU is the processor time that the process has used, of this life.
func (p *Process) CPU() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
	if err != nil {
		return 0
	}
	return cpuOf(b)
}

// Tail is the end of what the process printed.
func (p *Process) Tail(n int) string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return ""
	}
	return string(b[max(0, len(b)-n):])
}

// Command is another program with the environment of this process.
func (p *Process) Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = p.env
	return cmd
}
