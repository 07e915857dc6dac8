package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// shares are the parts of a request's processor time, in the order in which a sample is tried: it counts for the first whose mark is in its stack.
// A stack that goes through a C library ends there, so the library's name has to do.
var shares = []struct {
	name  string
	marks []string
}{
	{"audit: the record, its commit, the tree of hashes", []string{"/internal/audit.", "/internal/cloudtrail.", "(*Server).audit"}},
	{"write: TCP, loopback, waking the client", []string{"ksys_write", "syscall.write", "syscall.Write"}},
	{"read", []string{"ksys_read", "syscall.read", "syscall.Read"}},
	{"SigV4", []string{"/internal/sigv4."}},
	{"AES-256-GCM, SoftHSM: libcrypto and the crossings into C", []string{"libcrypto", "libsofthsm", "libstdc++", "libc.so", "/internal/aesgcm.", "kp_round", "runtime.cgocall"}},
	{"rounds: batcher, blocks, the watched session", []string{"/batch.", "/hsm.", "/hsm/p11."}},
	{"header block, JSON, key, reply, wiping", []string{"/dataplane.(*Server)", "/dataplane.(*request", "/internal/awsjson.", "/internal/blob.", "/cache."}},
	{"fasthttp", []string{"fasthttp."}},
	{"runtime: goroutines and threads, parking and waking", []string{"runtime.mcall", "runtime.schedule", "futex", "runtime.goready", "runtime.mstart", "epoll", "runtime.sysmon"}},
}

const restShare = "the rest"

// profileTable shows where the processor time of GenerateDataKey and Decrypt goes, in keyplane on SoftHSM and in the echo. perf slows what it looks at.
func (p *plan) profileTable() error {
	if _, err := exec.LookPath("perf"); err != nil {
		return errors.New("perf is needed: Debian package linux-perf")
	}
	hsm, err := p.startSoftHSM("profile")
	if err != nil {
		return err
	}
	defer hsm.stop()
	tw := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "server CPU µs per request while perf looks on\toperation\techo\tSoftHSM\t")
	for _, op := range p.ops {
		floor, _, err := p.startFloor(hsm, op)
		if err != nil {
			return err
		}
		defer floor.stop()
		var parts [2]map[string]float64
		for i, t := range []*target{floor, hsm} {
			if parts[i], err = p.profile(t, op); err != nil {
				return fmt.Errorf("%s, %s: %w", op, t.name, err)
			}
		}
		total := [2]float64{}
		row := func(name string) {
			fmt.Fprintf(tw, "%s\t%s\t%.1f\t%.1f\t\n", name, op, parts[0][name], parts[1][name])
			total[0], total[1] = total[0]+parts[0][name], total[1]+parts[1][name]
		}
		for _, s := range shares {
			row(s.name)
		}
		row(restShare)
		fmt.Fprintf(tw, "all\t%s\t%.1f\t%.1f\t\n", op, total[0], total[1])
	}
	return tw.Flush()
}

// profile runs the load with perf beside it and returns the microseconds of each share.
func (p *plan) profile(t *target, op string) (map[string]float64, error) {
	if _, err := t.measure(op, p.conns, warmUp, p.tmp); err != nil {
		return nil, err
	}
	file := filepath.Join(p.tmp, "perf.data")
	record := exec.CommandContext(p.ctx, "perf", "record", "-q", "-e", "cpu-clock", "-F", "1999", "-g", "-o", file,
		"-p", strconv.Itoa(t.cmd.Process.Pid), "--", "sleep", fmt.Sprint((p.each + time.Second).Seconds()))
	record.Stderr = os.Stderr
	if err := record.Start(); err != nil {
		return nil, err
	}
	m, err := t.measure(op, p.conns, p.each, p.tmp)
	if err := errors.Join(err, record.Wait()); err != nil {
		return nil, err
	}
	script := exec.CommandContext(p.ctx, "perf", "script", "-i", file, "-F", "ip,sym,dso")
	out, err := script.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := script.Start(); err != nil {
		return nil, err
	}
	counts, all, err := countShares(out)
	if err := errors.Join(err, script.Wait()); err != nil {
		return nil, err
	}
	if all == 0 {
		return nil, errors.New("perf has no samples")
	}
	micros := make(map[string]float64)
	for name, n := range counts {
		micros[name] = m.CPUMicros * float64(n) / float64(all)
	}
	return micros, nil
}

// countShares reads stacks as perf script prints them, a frame a line and an empty line after each.
func countShares(r io.Reader) (counts map[string]int, all int, err error) {
	counts = make(map[string]int)
	var stack strings.Builder
	count := func() {
		if stack.Len() == 0 {
			return
		}
		counts[shareOf(stack.String())]++
		all++
		stack.Reset()
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if strings.TrimSpace(lines.Text()) == "" {
			count()
			continue
		}
		stack.WriteString(lines.Text())
		stack.WriteByte('\n')
	}
	count()
	return counts, all, lines.Err()
}

func shareOf(stack string) string {
	for _, s := range shares {
		for _, mark := range s.marks {
			if strings.Contains(stack, mark) {
				return s.name
			}
		}
	}
	return restShare
}
