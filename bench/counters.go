package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/keyplane/keyplane/batch"
)

// counters are what a server process has used and done so far.
type counters struct {
	cpu   time.Duration // user + system
	stats *serverStats  // nil for a server that has none
}

// serverStats is what we read of keyplane's GET /stats.
type serverStats struct {
	Go struct {
		Mallocs uint64 `json:"mallocs"`
	} `json:"go"`
	Batch  batch.Stats `json:"batch"`
	Panics uint64      `json:"panics"`
}

// serverCounts is what keyplane's own counters say about one measurement.
type serverCounts struct {
	Mallocs   float64  // heap objects per request, everything in the process included: connections, etcd's clock, reading the counters
	MeanRound float64  // mean jobs of a round
	Sizes     []uint64 // rounds of 1, 2, ≤4, ≤8, … ≤1024 jobs
}

// counters reads a server's counters.
func (t *target) counters() (counters, error) {
	c := counters{}
	if t.stats != "" {
		s, err := readStats(t.stats)
		if err != nil {
			return c, fmt.Errorf("the server's counters: %w", err)
		}
		if s.Panics > 0 {
			return c, fmt.Errorf("the server has recovered %d panics", s.Panics)
		}
		c.stats = s
	}
	var err error
	c.cpu, err = cpuTime(t.cmd.Process.Pid)
	return c, err
}

// since gives what happened between two readings, nil without stats.
func (c counters) since(before counters, requests float64) *serverCounts {
	if c.stats == nil || before.stats == nil {
		return nil
	}
	now, then := &c.stats.Batch, &before.stats.Batch
	s := &serverCounts{Mallocs: float64(c.stats.Go.Mallocs-before.stats.Go.Mallocs) / requests}
	if rounds := now.Rounds - then.Rounds; rounds > 0 {
		s.MeanRound = float64(now.Jobs-then.Jobs) / float64(rounds)
	}
	for i := range now.Sizes {
		s.Sizes = append(s.Sizes, now.Sizes[i]-then.Sizes[i])
	}
	return s
}

// readStats asks the stats socket. The connection is closed again: nothing of it runs while we measure.
func readStats(socket string) (*serverStats, error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	resp, err := client.Get("http://keyplane/stats")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET /stats: %s", resp.Status)
	}
	s := new(serverStats)
	return s, json.NewDecoder(resp.Body).Decode(s)
}

// cpuTime is what the process has used so far, from /proc: utime and stime in ticks of 10 ms (sysconf(_SC_CLK_TCK) is 100 on Linux).
func cpuTime(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the command in parentheses and may hold blanks.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	var ticks int
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// residentBytes is the process's resident memory (VmRSS).
func residentBytes(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no VmRSS", pid)
}
