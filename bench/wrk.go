package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// measurement is one wrk run against one target.
type measurement struct {
	Table     string // which table it belongs to
	Op        string
	Case      string `json:",omitempty"` // what is varied within the table: "64 connections", "1024 B"; each has a floor of its own
	Target    string
	Round     int
	Conns     int
	PerSecond float64 // completed requests per second
	CPUMicros float64 // user + system time of the server process per request, in microseconds
	P50, P99  float64 // latency in microseconds
	P999      float64
	Latencies []float64     // microseconds, at the percentiles of percentiles
	Errors    int           // replies that were not 200, and socket errors: at most one in a thousand
	Server    *serverCounts `json:",omitempty"` // nil for what has no counters
	Surge     *surge        `json:",omitempty"` // of the table of overload only
	Quota     *quotaRun     `json:",omitempty"` // of the table of quotas only
	Keys      *keysRun      `json:",omitempty"` // of the table of as many keys as an account may have only
}

// percentiles are what Latencies holds.
var percentiles = []float64{50, 75, 90, 95, 99, 99.5, 99.9, 99.99}

// errorsMax is the part of requests that may fail.
const errorsMax = 0.001

var errFailures = errors.New("requests failed: a benchmark of refusals is worth nothing")

// summary prints the result as a line of JSON.
const summary = `
function done(s, l, r)
  local at = {}
  for i, p in ipairs({50, 75, 90, 95, 99, 99.5, 99.9, 99.99}) do at[i] = string.format("%d", l:percentile(p)) end
  local e = s.errors
  io.write(string.format('{"requests":%d,"micros":%d,"latencies":[%s],"errors":%d}\n', s.requests, s.duration, table.concat(at, ","),
    e.connect + e.read + e.write + e.status + e.timeout))
end
`

// one is a script that sends one request over and over: body and headers.
const one = `wrk.method = "POST"
wrk.body = %q
%s`

// many is a script that sends the requests of a file, each thread in a random order of its own. The file has for each request a line with
// its length, and then the request as it goes out. The strings are made before the run, so that what a request costs wrk is a call of Lua
// and a copy, the same for every file of as many requests. (A thread sends while the next one reads the file, a tenth of a second that
// wrk does not count; that is the same for all, too.)
const many = `
local threads, requests, order, at = 0, {}, {}, 0
function setup(thread) thread:set("number", threads); threads = threads + 1 end
function init(args)
  collectgarbage("stop")
  local file = assert(io.open(%q, "rb"))
  for line in file:lines() do requests[#requests + 1] = file:read(tonumber(line)) end
  file:close()
  math.randomseed(4599 + number)
  for i = 1, #requests do
    local j = math.random(i)
    order[i] = order[j]
    order[j] = i
  end
end
function request() at = at %% #order + 1; return requests[order[at]] end
`

// measure runs wrk once with one request. It is signed now, which holds for five minutes.
func (t *target) measure(op string, conns int, d time.Duration, tmp string) (measurement, error) {
	body, ok := t.bodies[op]
	if !ok {
		return measurement{}, fmt.Errorf("this benchmark has no %s", op)
	}
	headers, err := t.headers(op, body)
	if err != nil {
		return measurement{}, err
	}
	return t.wrk(wrkScript(body, headers), conns, d, tmp)
}

// wrkScript is one for a request.
func wrkScript(body string, headers [][2]string) string {
	var lines strings.Builder
	for _, kv := range headers {
		if kv[0] == "host" {
			kv[0] = "Host" // as wrk spells it; else it adds a second one
		}
		fmt.Fprintf(&lines, "wrk.headers[%q] = %q\n", kv[0], kv[1])
	}
	return fmt.Sprintf(one, body, lines.String())
}

// measureMany runs wrk once with n requests of bodies of their own. Each has an SDK's invocation ID, so that they are as many strings for
// wrk even where the bodies are the same.
func (t *target) measureMany(op string, bodies func(i int) string, n, conns int, d time.Duration, tmp string) (measurement, error) {
	file := filepath.Join(tmp, "requests")
	f, err := os.Create(file)
	if err != nil {
		return measurement{}, err
	}
	defer os.Remove(file)
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	var b []byte
	for i := range n {
		body := bodies(i)
		headers, err := t.headers(op, body)
		if err != nil {
			return measurement{}, err
		}
		b = append(b[:0], "POST / HTTP/1.1\r\n"...)
		for _, kv := range headers {
			b = append(append(append(append(b, kv[0]...), ": "...), kv[1]...), "\r\n"...)
		}
		b = fmt.Appendf(b, "amz-sdk-invocation-id: %036d\r\ncontent-length: %d\r\n\r\n%s", i, len(body), body)
		fmt.Fprintf(w, "%d\n", len(b))
		if _, err := w.Write(b); err != nil {
			return measurement{}, err
		}
	}
	if err := w.Flush(); err != nil {
		return measurement{}, err
	}
	return t.wrk(fmt.Sprintf(many, file), conns, d, tmp)
}

// wrk runs a script and reads the server's counters before and after.
func (t *target) wrk(script string, conns int, d time.Duration, tmp string) (measurement, error) {
	file := filepath.Join(tmp, "request.lua")
	if err := os.WriteFile(file, []byte(script+summary), 0o600); err != nil {
		return measurement{}, err
	}
	before, err := t.counters()
	if err != nil {
		return measurement{}, err
	}
	cmd := exec.Command("wrk", "-t", strconv.Itoa(min(2, conns)), "-c", strconv.Itoa(conns), "-d", strconv.Itoa(max(1, int(d.Seconds())))+"s", "-s", file, t.url+"/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return measurement{}, fmt.Errorf("wrk: %w: %s", err, out)
	}
	after, err := t.counters()
	if err != nil {
		return measurement{}, err
	}
	var s struct {
		Requests, Micros, Errors float64
		Latencies                []float64
	}
	text := string(out)
	i := strings.LastIndex(text, "{")
	if i < 0 {
		return measurement{}, fmt.Errorf("wrk printed no summary: %s", out)
	}
	if err := json.Unmarshal([]byte(strings.TrimSpace(text[i:])), &s); err != nil {
		return measurement{}, fmt.Errorf("wrk's summary: %w: %s", err, out)
	}
	if s.Requests == 0 || len(s.Latencies) != len(percentiles) {
		return measurement{}, fmt.Errorf("wrk's summary is of no request: %s", out)
	}
	if s.Errors > s.Requests*errorsMax {
		return measurement{}, fmt.Errorf("%.0f of %.0f %w", s.Errors, s.Requests, errFailures)
	}
	return measurement{
		Conns: conns, PerSecond: s.Requests / (s.Micros / 1e6), CPUMicros: float64((after.cpu - before.cpu).Microseconds()) / s.Requests,
		P50: s.Latencies[0], P99: s.Latencies[4], P999: s.Latencies[6], Latencies: s.Latencies, Errors: int(s.Errors),
		Server: after.since(before, s.Requests),
	}, nil
}
