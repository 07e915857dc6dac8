package loadtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// wrkRounds and wrkRound are how BenchmarkAgainstWrk measures: in turn, so that a drift of the machine meets both.
const (
	wrkRounds = 5
	wrkRound  = 2 * time.Second
)

// BenchmarkAgainstWrk drives one fasthttp echo server, a process of its own, with wrk and with the load test in alternating rounds, the same
// signed request and the same number of connections, and reports the load test's rate as a share of wrk's (medians). wrk only counts bytes;
// the load test also checks each reply.
//
//	go test -run '^$' -bench AgainstWrk -benchtime 1x ./loadtest
func BenchmarkAgainstWrk(b *testing.B) {
	wrk, err := exec.LookPath("wrk")
	if err != nil {
		b.Fatal("nothing to compare with: ", err)
	}
	setAWSEnvironment(b)
	url := startEcho(b)
	for _, conns := range []int{16, 64, 256} {
		b.Run("conns="+strconv.Itoa(conns), func(b *testing.B) {
			cfg := testConfig(url)
			cfg.Operation, cfg.Payload, cfg.Concurrency = "GenerateRandom", echoPayload, conns
			cfg.Warmup, cfg.Duration = 100*time.Millisecond, wrkRound
			script := wrkScript(b, url)
			for b.Loop() {
				var theirs, ours, theirCPU, ourCPU []float64
				for range wrkRounds {
					rate, cpu := wrkRate(b, wrk, script, url, conns)
					theirs, theirCPU = append(theirs, rate), append(theirCPU, cpu)
					before := selfCPU(b)
					p := mustRun(b, cfg)
					if p.Requests.Failed > 0 || p.Requests.Unfinished > 0 {
						b.Fatalf("requests %+v, errors %+v", p.Requests, p.Errors)
					}
					ours = append(ours, p.Throughput)
					ourCPU = append(ourCPU, (selfCPU(b)-before).Seconds()*1e6/float64(p.Requests.Sent))
				}
				b.ReportMetric(middle(theirs), "wrk/s")
				b.ReportMetric(middle(ours), "loadtest/s")
				b.ReportMetric(middle(ours)/middle(theirs), "ratio")
				b.ReportMetric(middle(theirCPU), "wrk-cpu-µs")
				b.ReportMetric(middle(ourCPU), "loadtest-cpu-µs")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// wrkScript writes the request that the load test sends as a wrk script.
func wrkScript(b *testing.B, url string) string {
	b.Helper()
	s := testSigner(b)
	s.hosts[0], s.operation = strings.TrimPrefix(url, "http://"), "GenerateRandom"
	one := &target{body: findOperation("GenerateRandom").appendBody(nil, "", nil, echoPayload)}
	if _, err := s.signAll(b.Context(), []*target{one}); err != nil {
		b.Fatal(err)
	}
	head, body, _ := strings.Cut(string(*one.signed[0].Load()), "\r\n\r\n")
	var script strings.Builder
	fmt.Fprintf(&script, "wrk.method = \"POST\"\nwrk.body = %q\n", body)
	for _, line := range strings.Split(head, "\r\n")[1:] {
		name, value, _ := strings.Cut(line, ": ")
		if name == "host" {
			name = "Host" // as wrk spells it; else it adds a second one
		}
		if name != "content-length" { // wrk adds it
			fmt.Fprintf(&script, "wrk.headers[%q] = %q\n", name, value)
		}
	}
	file := filepath.Join(b.TempDir(), "request.lua")
	if err := os.WriteFile(file, []byte(script.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	return file
}

var wrkRateLine = regexp.MustCompile(`Requests/sec: +([0-9.]+)`)

// wrkRate runs wrk once and returns its requests per second and its processor time per request in microseconds.
func wrkRate(b *testing.B, wrk, script, url string, conns int) (rate, cpu float64) {
	b.Helper()
	cmd := exec.Command(wrk, "-t", "2", "-c", strconv.Itoa(conns), "-d", wrkRound.String(), "-s", script, url+"/")
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.Fatalf("wrk: %v: %s", err, out)
	}
	m := wrkRateLine.FindSubmatch(out)
	if m == nil || strings.Contains(string(out), "Non-2xx") {
		b.Fatalf("wrk printed %s", out)
	}
	if rate, err = strconv.ParseFloat(string(m[1]), 64); err != nil {
		b.Fatal(err)
	}
	return rate, (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds() * 1e6 / (rate * wrkRound.Seconds())
}

func middle(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// selfCPU is the processor time this process has used.
func selfCPU(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
