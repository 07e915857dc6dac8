package loadtest

import (
	"bytes"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

func TestMainText(t *testing.T) {
	k := newFakeKMS(t, nil)
	t.Setenv("AWS_ENDPOINT_URL_KMS", k.url)
	var stdout, stderr bytes.Buffer
	status := Main([]string{"--op", "Encrypt", "--keys", "2", "--key-distribution", "zipf", "--payload", "100", "--concurrency", "2",
		"--duration", "200ms", "--warmup", "50ms", "--cleanup"}, &stdout, &stderr)
	if status != 0 || stderr.Len() > 0 {
		t.Fatalf("status %d, stderr %q", status, stderr.String())
	}
	for _, want := range []string{
		`^Encrypt at ` + k.url + ` \(` + testRegion + `\)`, `loop +closed, 2 at a time`, `time +0\.2 s after 0\.1 s of warm-up`, `keys +2, zipf`, `payload +100 bytes`,
		`throughput +[0-9 ]+ requests/s`, `latency µs +p50 [0-9.]+ +p90 [0-9.]+ +p99 [0-9.]+ +p99\.9 [0-9.]+ +max [0-9.]+`,
		`requests +[0-9 ]+ sent, [0-9 ]+ succeeded, 0 failed, 0 unfinished`, `errors +none`, `clean-up +2 keys`, `note +closed loop: `,
	} {
		if !regexp.MustCompile(`(?m)` + want).Match(stdout.Bytes()) {
			t.Errorf("no %q in\n%s", want, stdout.String())
		}
	}
}

func TestMainUsage(t *testing.T) {
	setAWSEnvironment(t)
	for _, c := range []struct {
		args   []string
		status int
		stderr string
	}{
		{[]string{"--concurrency", "x"}, 2, "invalid value \"x\""},
		{[]string{"--no-such-flag"}, 2, "not defined: -no-such-flag"},
		{[]string{"extra"}, 2, "unexpected argument \"extra\""},
		{[]string{"--op", "Sign", "--keys", "0"}, 2, "keys must be"},
		{[]string{"--help"}, 0, "Usage: keyplane loadtest"},
		{[]string{"--endpoint", "http://127.0.0.1:1", "--op", "GenerateRandom"}, 1, "cannot connect to http://127.0.0.1:1: "},
	} {
		var stdout, stderr bytes.Buffer
		if status := Main(c.args, &stdout, &stderr); status != c.status || !strings.Contains(stderr.String(), c.stderr) || stdout.Len() > 0 {
			t.Errorf("%q: status %d, want %d; stderr %q", c.args, status, c.status, stderr.String())
		}
		if n := strings.Count(stderr.String(), c.stderr); n > 1 {
			t.Errorf("%q: %q is said %d times", c.args, c.stderr, n)
		}
	}
}

// An interrupt ends the run with a report of what was measured, as JSON if that was asked for.
func TestMainInterrupt(t *testing.T) {
	k := newFakeKMS(t, nil)
	k.fault = func(_ *fasthttp.RequestCtx, _ string, n int64) bool {
		if n == 200 {
			syscall.Kill(os.Getpid(), syscall.SIGINT)
		}
		return false
	}
	var stdout, stderr bytes.Buffer
	start := time.Now()
	status := Main([]string{"--endpoint", k.url, "--json", "--duration", "1h", "--warmup", "0s", "--concurrency", "3", "--cleanup"}, &stdout, &stderr)
	var p Report
	if err := json.Unmarshal(stdout.Bytes(), &p); err != nil || status != 0 || stderr.Len() > 0 {
		t.Fatalf("status %d, %v, stdout %q, stderr %q", status, err, stdout.String(), stderr.String())
	}
	if !p.Interrupted || p.Requests.Succeeded < 200 || p.Requests.Failed > 0 || p.KeysRemoved != 1 || time.Since(start) > time.Minute {
		t.Errorf("report %+v", p)
	}
}

// Wrong answers and no answers at all are a failure of the command, refused requests are figures.
func TestMainStatus(t *testing.T) {
	k := newFakeKMS(t, nil)
	args := []string{"--endpoint", k.url, "--warmup", "0s", "--duration", "50ms", "--op", "GenerateRandom", "--payload", "16"}
	for _, c := range []struct {
		body   string
		every  int64
		status int
	}{
		{`{"__type":"ThrottlingException"}`, 1, 1}, {`{"__type":"ThrottlingException"}`, 2, 0}, {`{"Plaintext":"AAAA"}`, 10, 1},
	} {
		k.fault = func(ctx *fasthttp.RequestCtx, _ string, n int64) bool {
			if n%c.every != 0 {
				return false
			}
			if strings.Contains(c.body, "__type") {
				ctx.SetStatusCode(400)
			}
			ctx.SetBodyString(c.body)
			return true
		}
		var stdout, stderr bytes.Buffer
		if status := Main(args, &stdout, &stderr); status != c.status {
			t.Errorf("%s every %d: status %d, want %d\n%s", c.body, c.every, status, c.status, stdout.String())
		}
	}
}

// The JSON document reads back as the same report, and has exactly the members its readers rely on.
func TestReportJSON(t *testing.T) {
	k := newFakeKMS(t, nil)
	cfg := testConfig(k.url)
	cfg.Rate, cfg.Profile, cfg.RateTo, cfg.Steps = 300, Step, 700, 2
	k.fault = func(ctx *fasthttp.RequestCtx, _ string, n int64) bool {
		if n%3 == 0 {
			ctx.SetStatusCode(400)
			ctx.SetBodyString(`{"__type":"ThrottlingException","message":"<\u0001>"}`)
		}
		return n%3 == 0
	}
	p := mustRun(t, cfg)
	var doc bytes.Buffer
	if err := p.WriteJSON(&doc); err != nil {
		t.Fatal(err)
	}
	var back Report
	decoder := json.NewDecoder(bytes.NewReader(doc.Bytes()))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&back); err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := back.WriteJSON(&again); err != nil || !bytes.Equal(doc.Bytes(), again.Bytes()) {
		t.Errorf("%v\n%s\n%s", err, doc.String(), again.String())
	}
	if len(p.Errors) != 1 || p.Errors[0].Example != "< >" {
		t.Errorf("errors %+v", p.Errors)
	}

	var object map[string]any
	json.Unmarshal(doc.Bytes(), &object)
	latency := func(prefix string) string {
		return strings.ReplaceAll("Pmax Pmean Pmin Pp50 Pp90 Pp99 Pp99.9", "P", prefix+"latency_us.")
	}
	interval := func(prefix string) string {
		return prefix + ".at_seconds " + prefix + ".failed " + latency(prefix+".") + " " + strings.ReplaceAll("P.rate_per_second P.seconds P.throughput_per_second", "P", prefix)
	}
	errors := func(prefix string) string {
		return strings.ReplaceAll("Perrors.count Perrors.example Perrors.from_server Perrors.type", "P", prefix)
	}
	requests := func(prefix string) string {
		return strings.ReplaceAll("Prequests.failed Prequests.sent Prequests.succeeded Prequests.unfinished", "P", prefix)
	}
	want := "bytes.received bytes.sent client.arch client.cpus client.go client.os concurrency connections.opened connections.requests_retried " +
		"distribution.latency_us distribution.percentile endpoints.connections " + errors("endpoints.") + " " + latency("endpoints.") + " " +
		requests("endpoints.") + " endpoints.throughput_per_second endpoints.url " + errors("") + " interrupted key_distribution keys keys_removed " +
		latency("") + " loop notes operation payload_bytes profile rate_per_second rate_to_per_second region " + requests("") +
		" schedule.lag_max_us schedule.missed schema seconds started_at " + interval("steps") + " throughput_per_second " + interval("timeline") +
		" verified warmup_seconds"
	if got := strings.Join(paths("", object), " "); got != want {
		t.Errorf("members\n%s\nwant\n%s", got, want)
	}
	if object["schema"] != ReportSchema || object["loop"] != OpenLoop {
		t.Errorf("schema %v, loop %v", object["schema"], object["loop"])
	}
}

// A report without errors and notes has empty lists, not null.
func TestReportJSONEmpty(t *testing.T) {
	k := newFakeKMS(t, nil)
	cfg := testConfig(k.url)
	cfg.Rate = 100
	var doc bytes.Buffer
	mustRun(t, cfg).WriteJSON(&doc)
	// A slow machine may have a note to make.
	if !strings.Contains(doc.String(), `"errors": [],`) || !strings.Contains(doc.String(), `"notes": [`) {
		t.Error(doc.String())
	}
}

// paths lists the members of a JSON value, sorted; of a list those of its first element.
func paths(prefix string, v any) (all []string) {
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			all = append(all, paths(strings.TrimPrefix(prefix+"."+name, "."), member)...)
		}
		slices.Sort(all)
	case []any:
		if len(v) > 0 {
			if _, object := v[0].(map[string]any); object {
				return paths(prefix, v[0])
			}
		}
		return []string{prefix}
	default:
		return []string{prefix}
	}
	return all
}

// One line a second, drawn over the last, and nothing left of it at the end.
func TestProgress(t *testing.T) {
	k := newFakeKMS(t, nil)
	var progress bytes.Buffer
	cfg := testConfig(k.url)
	cfg.Progress, cfg.Warmup, cfg.Duration = &progress, 1500*time.Millisecond, time.Second
	k.fault = func(ctx *fasthttp.RequestCtx, _ string, n int64) bool {
		if n == 5 {
			ctx.SetStatusCode(500)
		}
		return n == 5
	}
	mustRun(t, cfg)
	lines := strings.Split(progress.String(), "\r\x1b[K")
	if len(lines) != 4 || lines[0] != "" || lines[3] != "" {
		t.Fatalf("%q", progress.String())
	}
	for i, want := range []string{`^warm-up 1/2 s  [0-9 ]+/s  p50 [0-9]+ µs  p99 [0-9]+ µs  1 errors$`, `^GenerateDataKey [01]/1 s  [0-9 ]+/s  .* 1 errors$`} {
		if !regexp.MustCompile(want).MatchString(lines[1+i]) || strings.Contains(lines[1+i], "  0/s") {
			t.Errorf("line %q does not match %s", lines[1+i], want)
		}
	}
	if isTerminal(&progress) {
		t.Error("a buffer is no terminal")
	}
	file, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if isTerminal(file) {
		t.Error("a file is no terminal")
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1 000", 123456: "123 456", 1234567: "1 234 567"} {
		if got := count(n); got != want {
			t.Errorf("%d is written %q, want %q", n, got, want)
		}
	}
}
