package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// median of what pick gives for the measurements of one operation and target.
func median(all []measurement, op, target string, pick func(measurement) float64) float64 {
	var v []float64
	for _, m := range all {
		if m.Op == op && m.Target == target {
			v = append(v, pick(m))
		}
	}
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[len(v)/2]
}

// table prints medians and their ratios to the floor.
func table(w io.Writer, all []measurement) {
	var ops, targets []string
	for _, m := range all {
		if !slices.Contains(ops, m.Op) {
			ops = append(ops, m.Op)
		}
		if !slices.Contains(targets, m.Target) {
			targets = append(targets, m.Target)
		}
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "operation\ttarget\trequests/s\tof the floor\tserver CPU µs\tof the floor\tp50 µs\tp99 µs\tp99.9 µs\terrors\t")
	for _, op := range ops {
		rate := func(t string) float64 { return median(all, op, t, func(m measurement) float64 { return m.PerSecond }) }
		cpu := func(t string) float64 { return median(all, op, t, func(m measurement) float64 { return m.CPUMicros }) }
		for _, t := range targets {
			fmt.Fprintf(tw, "%s\t%s\t%.0f\t%.2f\t%.1f\t%.2f\t%.0f\t%.0f\t%.0f\t%.0f\t\n", op, t, rate(t), rate(t)/rate("echo"), cpu(t), cpu(t)/cpu("echo"),
				median(all, op, t, func(m measurement) float64 { return m.P50 }),
				median(all, op, t, func(m measurement) float64 { return m.P99 }),
				median(all, op, t, func(m measurement) float64 { return m.P999 }),
				median(all, op, t, func(m measurement) float64 { return float64(m.Errors) }))
		}
	}
	_ = tw.Flush()
}

// store keeps the measurements with machine and commit under dir.
func store(dir string, all []measurement) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	name := filepath.Join(dir, "floor-"+time.Now().UTC().Format("20060102T150405Z"))
	b, err := json.MarshalIndent(struct {
		Machine, Commit, Go string
		Measurements        []measurement
	}{machine(), commit(), runtime.Version(), all}, "", " ")
	if err != nil {
		return err
	}
	var text strings.Builder
	fmt.Fprintf(&text, "machine: %s\ncommit: %s\n%s\n", machine(), commit(), runtime.Version())
	table(&text, all)
	if err := os.WriteFile(name+".json", b, 0o644); err != nil {
		return err
	}
	return os.WriteFile(name+".txt", []byte(text.String()), 0o644)
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

func commit() string {
	out, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}
