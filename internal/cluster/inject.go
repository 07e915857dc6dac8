package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Inject makes system calls of a process fail or hang, with strace: calls is a list as strace has it ("fdatasync,fsync"), what is "error=EIO", "error=ENOSPC" or
// "delay_enter=2s". With paths only calls on these files. It needs the right to trace the process, which a process that forbids dumps gives only to root.
func Inject(p *Process, calls, what string, paths ...string) (end func(), err error) {
	pid := p.Pid()
	if pid == 0 {
		return nil, errors.New(p.Name + " does not run")
	}
	args := []string{"-f", "-qq", "-o", "/dev/null", "-e", "trace=" + calls, "-e", "inject=" + calls + ":" + what}
	for _, path := range paths {
		args = append(args, "-P", path)
	}
	cmd := exec.Command("strace", append(args, "-p", strconv.Itoa(pid))...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	end = func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
	}
	// It is in force when the process is traced.
	for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(5 * time.Millisecond) {
		if closed(ended) && p.Pid() != pid {
			return end, nil // the first call that failed was the process's end
		}
		if closed(ended) {
			return nil, fmt.Errorf("strace of %s: %s", p.Name, strings.TrimSpace(said.String()))
		}
		if traced(pid) {
			return end, nil
		}
	}
	end()
	return nil, fmt.Errorf("strace does not attach to %s", p.Name)
}
