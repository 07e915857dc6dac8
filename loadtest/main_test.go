package loadtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/internal/sigv4"
)

func TestMainText(t *testing.T) {
	k := newFakeKMS(t, nil)
	t.Setenv("AWS_ENDPOINT_URL_KMS", k.url)
	var stdout, stderr bytes.Buffer
	status := Main([]string{"--op", "Encrypt", "--keys", "2", "--key-distribution", "zipf", "--payload", "100", "--concurrency", "2",
		"--duration", "700ms", "--warmup", "100ms", "--timeout", "5m", "--cleanup"}, &stdout, &stderr)
	if status != 0 || stderr.Len() > 0 {
		t.Fatalf("status %d, stderr %q", status, stderr.String())
	}
	for _, want := range []string{
		`^Encrypt at ` + k.url + ` \(` + testRegion + `\)`, `loop +closed, 2 at a time`, `time +0\.7 s after 0\.1 s of warm-up`, `keys +2, zipf`, `payload +100 bytes`,
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
		{[]string{"--duration", "5"}, 2, "invalid value \"5\" for flag -duration: a time has a unit"},
		{[]string{"--rate", "10", "--steps", "3"}, 2, "--steps needs --profile step"},
		{[]string{"--keys", "3", "--key-id", "x"}, 2, "--keys and --key-id exclude each other"},
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

// --help is output, names every flag once, and keeps to its width.
func TestMainHelp(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if status := Main([]string{"--help"}, &stdout, &stderr); status != exitOK || stderr.Len() > 0 || !strings.HasPrefix(stdout.String(), "Usage: keyplane loadtest") {
		t.Fatalf("status %d, stdout %q, stderr %q", status, stdout.String(), stderr.String())
	}
	newFlags(&Config{}, &options{}).VisitAll(func(f *flag.Flag) {
		if n := len(regexp.MustCompile(`(?m)^  --`+f.Name+`( |$)`).FindAllString(stdout.String(), -1)); n != 1 {
			t.Errorf("--%s is listed %d times", f.Name, n)
		}
	})
	for line := range strings.Lines(stdout.String()) {
		if utf8.RuneCountInString(line) > helpWidth+1 {
			t.Errorf("too long: %s", line)
		}
	}
	if !strings.Contains(stdout.String(), "(default GenerateDataKey)") || strings.Contains(stdout.String(), "(default 0") {
		t.Error(stdout.String())
	}
}

// Without a Region anywhere an endpoint is asked in keyplane's default one, by set-up too.
func TestMainDefaultRegion(t *testing.T) {
	k := newFakeKMS(t, nil)
	verifier, err := sigv4.New(sigv4.Config{Regions: []string{"us-east-1"}, Keys: keyOf{testAccessKey: k.key}})
	if err != nil {
		t.Fatal(err)
	}
	k.verifier = verifier
	t.Setenv("AWS_REGION", "")
	if p := k.runUntil(testConfig(k.url), atLeast(20)); p.Requests.Failed > 0 || p.Region != "us-east-1" || k.unsigned.Load() > 0 {
		t.Errorf("Region %s, requests %+v, errors %+v", p.Region, p.Requests, p.Errors)
	}
}

// A run that fails leaves the HTML file as it was, and makes none.
func TestMainKeepsPage(t *testing.T) {
	setAWSEnvironment(t)
	file := filepath.Join(t.TempDir(), "report.html")
	args := []string{"--endpoint", "http://127.0.0.1:1", "--op", "GenerateRandom", "--html", file}
	var out bytes.Buffer
	if status := Main(args, &out, &out); status != exitFailed {
		t.Fatalf("status %d: %s", status, out.String())
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file without a report: %v", err)
	}
	if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	Main(args, &out, &out)
	if old, err := os.ReadFile(file); err != nil || string(old) != "old" {
		t.Errorf("%q, %v", old, err)
	}
	k := newFakeKMS(t, nil)
	args[1] = k.url
	if status := Main(append(args, "--warmup", "0s", "--duration", "500ms"), &out, &out); status != exitOK {
		t.Fatalf("status %d: %s", status, out.String())
	}
	if page, err := os.ReadFile(file); err != nil || !bytes.HasPrefix(page, []byte("<!DOCTYPE html>")) || !bytes.HasSuffix(page, []byte("</html>\n")) {
		t.Errorf("%.20q, %v", page, err)
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
	status := Main([]string{"--endpoint", k.url, "--json", "--duration", "1h", "--warmup", "0s", "--timeout", "5m", "--concurrency", "3", "--cleanup"}, &stdout, &stderr)
	var p Report
	if err := json.Unmarshal(stdout.Bytes(), &p); err != nil || status != 0 || stderr.Len() > 0 {
		t.Fatalf("status %d, %v, stdout %q, stderr %q", status, err, stdout.String(), stderr.String())
	}
	if !p.Interrupted || p.Requests.Succeeded < 197 || p.Requests.Failed > 0 || p.KeysRemoved != 1 || time.Since(start) > 10*time.Minute {
		t.Errorf("report %+v", p)
	}
}

// Wrong answers and no answers at all are a failure of the command, refused requests are figures.
func TestMainStatus(t *testing.T) {
	k := newFakeKMS(t, nil)
	args := []string{"--endpoint", k.url, "--warmup", "0s", "--duration", "500ms", "--op", "GenerateRandom", "--payload", "16"}
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
	p := k.runUntil(cfg, atLeast(30))
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
		return prefix + ".at_seconds " + prefix + ".failed " + latency(prefix+".") + " " + strings.ReplaceAll("P.rate_per_second P.refused P.seconds P.throughput_per_second", "P", prefix)
	}
	errorsOf := func(prefix string) string {
		return strings.ReplaceAll("Perrors.count Perrors.example Perrors.from_server Perrors.type", "P", prefix)
	}
	requests := func(prefix string) string {
		return strings.ReplaceAll("Prequests.failed Prequests.refused Prequests.sent Prequests.succeeded Prequests.unfinished", "P", prefix)
	}
	want := "bytes.received bytes.sent client.arch client.cpus client.cpus_used client.go client.os concurrency connections.opened connections.requests_retried " +
		"distribution.latency_us distribution.percentile endpoints.connections " + errorsOf("endpoints.") + " " + latency("endpoints.") + " " +
		requests("endpoints.") + " endpoints.throughput_per_second endpoints.url " + errorsOf("") + " interrupted key_distribution keys keys_removed " +
		latency("") + " loop notes offered_per_second operation payload_bytes profile rate_per_second rate_to_per_second refused_per_second region " + requests("") +
		" schedule.lag_max_us schedule.late_us.max schedule.late_us.p50 schedule.late_us.p99 schedule.missed schedule.wait_max_us schedule.waited" +
		" schema seconds sent_per_second started_at " + interval("steps") + " throughput_per_second " + interval("timeline") +
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

// lineWriter calls f with each line of progress.
type lineWriter struct {
	bytes.Buffer
	f func(line string)
}

func (w *lineWriter) Write(line []byte) (int, error) {
	w.f(string(line))
	return w.Buffer.Write(line)
}

// One line a second, drawn over the last, and nothing left of it at the end.
func TestProgress(t *testing.T) {
	for _, c := range []struct {
		warmup time.Duration
		line   string
	}{
		{time.Hour, `^warm-up [0-9]+/3600 s  [0-9 ]+/s  p50 [0-9]+ µs  p99 [0-9]+ µs  [01] errors$`},
		{0, `^GenerateDataKey [0-9]+/3600 s  [0-9 ]+/s  p50 [0-9]+ µs  p99 [0-9]+ µs  [01] errors$`},
	} {
		k := newFakeKMS(t, nil)
		k.fault = func(ctx *fasthttp.RequestCtx, _ string, n int64) bool {
			if n == 5 {
				ctx.SetStatusCode(500)
			}
			return n == 5
		}
		cfg := testConfig(k.url)
		cfg.Warmup = c.warmup
		var progress lineWriter
		cfg.Progress = &progress
		untilStopped(t, cfg, func(stop func()) {
			progress.f = func(line string) {
				if strings.Contains(line, " 1 errors") && !strings.Contains(line, "  0/s") {
					stop()
				}
			}
		})
		lines := strings.Split(progress.String(), "\r\x1b[K")
		if len(lines) < 3 || lines[0] != "" || lines[len(lines)-1] != "" {
			t.Fatalf("%q", progress.String())
		}
		for _, line := range lines[1 : len(lines)-1] {
			if !regexp.MustCompile(c.line).MatchString(line) {
				t.Errorf("line %q does not match %s", line, c.line)
			}
		}
	}
	if isTerminal(&bytes.Buffer{}) {
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
