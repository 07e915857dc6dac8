package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// What a measurement is asked for. mallocs and round are NaN for a server without counters.
func perSecond(m *measurement) float64 { return m.PerSecond }
func cpuMicros(m *measurement) float64 { return m.CPUMicros }
func p50(m *measurement) float64       { return m.P50 }
func p99(m *measurement) float64       { return m.P99 }
func p999(m *measurement) float64      { return m.P999 }
func failures(m *measurement) float64  { return float64(m.Errors) }

func mallocs(m *measurement) float64 {
	if m.Server == nil {
		return math.NaN()
	}
	return m.Server.Mallocs
}

func roundMean(m *measurement) float64 {
	if m.Server == nil {
		return math.NaN()
	}
	return m.Server.MeanRound
}

// of returns the measurements of one row, by round.
func (p *plan) of(table, op, in, target string) []*measurement {
	var v []*measurement
	for i := range p.all {
		if m := &p.all[i]; m.Table == table && m.Op == op && m.Case == in && m.Target == target {
			v = append(v, m)
		}
	}
	return v
}

// median of a row over its rounds, NaN without measurements.
func (p *plan) median(table, op, in, target string, pick func(*measurement) float64) float64 {
	var v []float64
	for _, m := range p.of(table, op, in, target) {
		v = append(v, pick(m))
	}
	return middle(v)
}

// ratio is the median of what the rows have to each other within each round, where both met the same state of the machine.
func (p *plan) ratio(table, op, in, target, to string, pick func(*measurement) float64) float64 {
	a, b := p.of(table, op, in, target), p.of(table, op, in, to)
	var v []float64
	for i := range min(len(a), len(b)) {
		v = append(v, pick(a[i])/pick(b[i]))
	}
	return middle(v)
}

func middle(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// row names the measurements that a line of a table sums up.
type row struct{ op, in, target string }

// rows of a table: by operation, then by case, then by target, each in the order in which they were measured first.
func (p *plan) rows(table string) []row {
	var all []row
	for i := range p.all {
		m := &p.all[i]
		if r := (row{m.Op, m.Case, m.Target}); m.Table == table && !slices.Contains(all, r) {
			all = append(all, r)
		}
	}
	return all
}

// print writes one table: medians, ratios to the floor of the same operation and case, and the histogram of rounds.
func (p *plan) print(w io.Writer, table string) {
	switch table {
	case "overload":
		p.printOverload(w)
		return
	case "quota":
		p.printQuota(w)
		return
	case "quotakeys":
		p.printQuotaKeys(w)
		return
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "operation\tcase\ttarget\trequests/s\tof the echo\tserver CPU µs\tof the echo\tp50 µs\tof the echo\tp99 µs\tp99.9 µs\terrors\tmallocs/request\tmean round\t")
	for _, r := range p.rows(table) {
		med := func(pick func(*measurement) float64) float64 { return p.median(table, r.op, r.in, r.target, pick) }
		of := func(pick func(*measurement) float64) string { // not every table has an echo
			return known("%.2f", p.ratio(table, r.op, r.in, r.target, echoName, pick))
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%.0f\t%s\t%.1f\t%s\t%.0f\t%s\t%.0f\t%.0f\t%.0f\t%s\t%s\t\n", r.op, r.in, r.target,
			med(perSecond), of(perSecond), med(cpuMicros), of(cpuMicros), med(p50), of(p50), med(p99), med(p999), med(failures),
			known("%.3f", med(mallocs)), known("%.1f", med(roundMean)))
	}
	_ = tw.Flush()
	p.printRounds(w, table)
}

// known formats a value that not every target has.
func known(format string, v float64) string {
	if math.IsNaN(v) {
		return "-"
	}
	return fmt.Sprintf(format, v)
}

// printRounds writes how large the rounds were, in parts of all rounds of a row.
func (p *plan) printRounds(w io.Writer, table string) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for i, r := range p.rows(table) {
		sizes := p.roundSizes(table, r)
		if i == 0 {
			fmt.Fprintln(tw, "\nrounds, % of\t\tjobs:\t"+strings.Join(roundLabels, "\t")+"\t")
		}
		if sizes == nil {
			continue
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t", r.op, r.in, r.target)
		for _, part := range sizes {
			fmt.Fprintf(tw, "%.1f\t", part*100)
		}
		fmt.Fprintln(tw)
	}
	_ = tw.Flush()
}

// roundLabels are the classes of round sizes that keyplane counts.
var roundLabels = []string{"1", "2", "3-4", "5-8", "9-16", "17-32", "33-64", "65-128", "129-256", "257-512", "513-1024"}

// roundSizes is the part of a row's rounds in each class, nil if it ran none.
func (p *plan) roundSizes(table string, r row) []float64 {
	parts := make([]float64, len(roundLabels))
	var total float64
	for _, m := range p.of(table, r.op, r.in, r.target) {
		if m.Server == nil {
			continue
		}
		for i, n := range m.Server.Sizes {
			parts[i] += float64(n)
			total += float64(n)
		}
	}
	if total == 0 {
		return nil
	}
	for i := range parts {
		parts[i] /= total
	}
	return parts
}

// heading says what was measured, with what and where.
func (p *plan) heading() string {
	return fmt.Sprintf("machine: %s\ncommit: %s, %s\nclient: wrk on the same cores as the server, pre-signed requests over keep-alive connections, %d unless said otherwise\n"+
		"%d rounds of %v, targets in turn; medians, and medians of the ratios within a round\n"+
		"mallocs/request: all heap objects the process made meanwhile, the run's connections and etcd included, by the runtime's counter\n\n", machine(), commit(), runtime.Version(), p.conns, p.rounds, p.each)
}

// store keeps measurements, tables and promises under a name with the date, and figures under names that do not change.
func (p *plan) store() error {
	if err := os.MkdirAll(p.out, 0o755); err != nil {
		return err
	}
	var lines [][]byte
	for i := range p.all {
		b, err := json.Marshal(&p.all[i])
		if err != nil {
			return err
		}
		lines = append(lines, b)
	}
	head, err := json.Marshal(struct {
		Machine, Commit, Go string
		Percentiles         []float64
	}{machine(), commit(), runtime.Version(), percentiles})
	if err != nil {
		return err
	}
	text := bytes.NewBufferString(p.heading())
	for _, t := range p.tables {
		fmt.Fprintf(text, "== %s\n", t)
		p.print(text, t)
		fmt.Fprintln(text)
	}
	fmt.Fprintf(text, "measurements repeated because too many requests failed: %d\n", p.repeated)
	p.printPromises(text)
	name := filepath.Join(p.out, "bench-"+time.Now().UTC().Format("20060102T150405Z"))
	data := slices.Concat(head[:len(head)-1], []byte(",\"Measurements\":[\n"), bytes.Join(lines, []byte(",\n")), []byte("\n]}\n"))
	if err := os.WriteFile(name+".json", data, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(name+".txt", text.Bytes(), 0o644); err != nil {
		return err
	}
	return p.draw()
}

// machine describes the processor: its model and how many of it.
func machine() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
			return fmt.Sprintf("%s, %d cores", strings.TrimSpace(v), runtime.NumCPU())
		}
	}
	return fmt.Sprintf("%s, %d cores", runtime.GOARCH, runtime.NumCPU())
}

// commit is what was measured; results that are not committed yet do not make it dirty.
func commit() string {
	out, err := exec.Command("git", "describe", "--always").Output()
	if err != nil {
		return "unknown"
	}
	name := strings.TrimSpace(string(out))
	if changed, err := exec.Command("git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results").Output(); err != nil || len(changed) > 0 {
		name += "-dirty"
	}
	return name
}
