package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sampled is a plan with three rounds of one operation, of which the machine was busy in the second.
func sampled() *plan {
	p := &plan{rounds: 3, conns: 64, ops: []string{"Decrypt"}, tables: []string{"floor", "rounds"}}
	for round, speed := range []float64{1, 0.1, 2} {
		for _, m := range []measurement{
			{Target: echoName, PerSecond: 1000 * speed, CPUMicros: 10},
			{Target: hsmName, PerSecond: 900 * speed, CPUMicros: 12, Server: &serverCounts{Mallocs: 0.01, MeanRound: 4, Sizes: []uint64{3, 0, 1}}},
		} {
			m.Op, m.Round, m.Conns, m.P50, m.Latencies = "Decrypt", round, 64, 100/speed, []float64{1, 2, 3, 4, 5, 6, 7, 8}
			for _, m.Table = range p.tables {
				p.all = append(p.all, m)
			}
		}
	}
	return p
}

func TestMediansAndRatios(t *testing.T) {
	p := sampled()
	for _, c := range []struct {
		name      string
		got, want float64
	}{
		{"median", p.median("floor", "Decrypt", "", echoName, perSecond), 1000},
		{"ratio within a round", p.ratio("floor", "Decrypt", "", hsmName, echoName, perSecond), 0.9},
		{"CPU", p.ratio("floor", "Decrypt", "", hsmName, echoName, cpuMicros), 1.2},
		{"allocations", p.median("floor", "Decrypt", "", hsmName, mallocs), 0.01},
		{"even number", middle([]float64{4, 1, 2, 3}), 2.5},
	} {
		if math.Abs(c.got-c.want) > 1e-9 {
			t.Errorf("%s: %v, want %v", c.name, c.got, c.want)
		}
	}
	for name, v := range map[string]float64{
		"an echo's allocations":     p.median("floor", "Decrypt", "", echoName, mallocs),
		"an operation not measured": p.median("floor", "Encrypt", "", echoName, perSecond),
		"a target not measured":     p.ratio("floor", "Decrypt", "", baselineName, echoName, perSecond),
	} {
		if !math.IsNaN(v) {
			t.Errorf("%s: %v, want none", name, v)
		}
	}
	if parts := p.roundSizes("floor", row{"Decrypt", "", hsmName}); parts[0] != 0.75 || parts[2] != 0.25 {
		t.Errorf("parts of rounds %v", parts)
	}
}

// A promise of which nothing was measured is missed, whichever way it is bounded.
func TestPromises(t *testing.T) {
	p := &plan{}
	p.promise("kept at the bound", 0.85, atLeast, 0.85)
	p.promise("kept at the other bound", 1.3, atMost, 1.3)
	p.promise("too slow", 0.849, atLeast, 0.85)
	p.promise("too much", 701, atMost, 700)
	p.promise("not measured", math.NaN(), atLeast, 0)
	p.promise("not measured", math.NaN(), atMost, 1)
	var out bytes.Buffer
	if missed := p.printPromises(&out); missed != 4 || strings.Count(out.String(), "MISSED") != 4 || strings.Count(out.String(), "kept  ") != 2 {
		t.Errorf("%d missed:\n%s", missed, out.String())
	}
}

// What is stored can be read again, and the figures are XML.
func TestStore(t *testing.T) {
	p := sampled()
	p.out = filepath.Join(t.TempDir(), "results")
	if err := p.store(); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(p.out)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(p.out, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		kinds[filepath.Ext(f.Name())]++
		switch filepath.Ext(f.Name()) {
		case ".json":
			var back struct {
				Machine, Commit, Go string
				Percentiles         []float64
				Measurements        []measurement
			}
			if err := json.Unmarshal(b, &back); err != nil || len(back.Measurements) != len(p.all) || back.Machine == "" || back.Commit == "" {
				t.Errorf("%v: %s", err, b)
			}
			if m := back.Measurements[2]; m.Server == nil || m.Server.Mallocs != 0.01 || m.Server.MeanRound != 4 || m.Latencies[7] != 8 {
				t.Errorf("%+v", m)
			}
		case ".txt":
			if !strings.Contains(string(b), hsmName) || !strings.Contains(string(b), "0.90") {
				t.Errorf("%s", b)
			}
		case ".svg":
			for d := xml.NewDecoder(bytes.NewReader(b)); ; {
				if _, err := d.Token(); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatalf("%s: %v", f.Name(), err)
				}
			}
		}
	}
	// The only operation is in the title where there is no legend.
	if b, err := os.ReadFile(filepath.Join(p.out, "rounds.svg")); err != nil || !strings.Contains(string(b), ">Sizes of rounds, Decrypt</text>") {
		t.Errorf("%v: %s", err, b)
	}
	if kinds[".json"] != 1 || kinds[".txt"] != 1 || kinds[".svg"] != 5 {
		t.Errorf("%v", kinds)
	}
}
