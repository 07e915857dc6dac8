package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// measurement is one wrk run against one target.
type measurement struct {
	Op, Target string
	Round      int
	Conns      int
	PerSecond  float64 // completed requests per second
	CPUMicros  float64 // user + system time of the server process per request, in microseconds
	P50, P99   float64 // latency in microseconds
	P999       float64
	Errors     int // replies that were not 200, and socket errors: at most one in a thousand
}

// script sends one request over and over and prints the summary as a line of JSON.
const script = `wrk.method = "POST"
wrk.body = %q
%s
function done(s, l, r)
  local e = s.errors
  io.write(string.format('{"requests":%%d,"micros":%%d,"p50":%%d,"p99":%%d,"p999":%%d,"errors":%%d}\n', s.requests, s.duration,
    l:percentile(50), l:percentile(99), l:percentile(99.9), e.connect + e.read + e.write + e.status + e.timeout))
end
`

// measure runs wrk once. The request is signed now, which holds for five minutes.
func (t *target) measure(op string, conns int, d time.Duration, tmp string) (measurement, error) {
	body, ok := t.bodies[op]
	if !ok {
		body = strings.Repeat("a", 73)
	}
	headers, err := t.headers(op, body)
	if err != nil {
		return measurement{}, err
	}
	var lines strings.Builder
	for _, kv := range headers {
		if kv[0] == "host" {
			kv[0] = "Host" // as wrk spells it; else it adds a second one
		}
		fmt.Fprintf(&lines, "wrk.headers[%q] = %q\n", kv[0], kv[1])
	}
	file := filepath.Join(tmp, "request.lua")
	if err := os.WriteFile(file, fmt.Appendf(nil, script, body, lines.String()), 0o600); err != nil {
		return measurement{}, err
	}
	before, err := cpuTime(t.cmd.Process.Pid)
	if err != nil {
		return measurement{}, err
	}
	threads := min(2, conns)
	out, err := exec.Command("wrk", "-t", strconv.Itoa(threads), "-c", strconv.Itoa(conns), "-d", strconv.Itoa(max(1, int(d.Seconds())))+"s", "-s", file, t.url+"/").CombinedOutput()
	if err != nil {
		return measurement{}, fmt.Errorf("wrk: %w: %s", err, out)
	}
	after, err := cpuTime(t.cmd.Process.Pid)
	if err != nil {
		return measurement{}, err
	}
	var s struct{ Requests, Micros, P50, P99, P999, Errors float64 }
	text := string(out)
	i := strings.LastIndex(text, "{")
	if i < 0 {
		return measurement{}, fmt.Errorf("wrk printed no summary: %s", out)
	}
	if err := json.Unmarshal([]byte(strings.TrimSpace(text[i:])), &s); err != nil || s.Requests == 0 {
		return measurement{}, fmt.Errorf("wrk's summary: %w: %s", err, out)
	}
	if s.Errors*1000 > s.Requests {
		return measurement{}, fmt.Errorf("%.0f of %.0f requests failed: a benchmark of refusals is worth nothing", s.Errors, s.Requests)
	}
	return measurement{
		Conns: conns, PerSecond: s.Requests / (s.Micros / 1e6), CPUMicros: float64((after - before).Microseconds()) / s.Requests,
		P50: s.P50, P99: s.P99, P999: s.P999, Errors: int(s.Errors),
	}, nil
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
