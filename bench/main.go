package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// plan is one run of the program.
type plan struct {
	keyplane string        // the binary
	rounds   int           // alternating rounds over all targets
	each     time.Duration // of one measurement
	conns    int
	ops      []string
	out      string // folder of results; "" keeps none
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "echo" {
		echo(os.Args[2:])
		return
	}
	var p plan
	var ops string
	flag.StringVar(&p.keyplane, "keyplane", "bin/keyplane", "the keyplane `BINARY` to measure")
	flag.IntVar(&p.rounds, "rounds", 5, "alternating rounds over all targets")
	flag.DurationVar(&p.each, "each", 4*time.Second, "length of one measurement")
	flag.IntVar(&p.conns, "conns", 64, "connections")
	flag.StringVar(&ops, "ops", "GenerateDataKey,Decrypt", "operations, with commas")
	flag.StringVar(&p.out, "out", "", "`DIR` to store results in")
	flag.Parse()
	p.ops = strings.Split(ops, ",")
	if err := p.run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures every operation on every target, in turn, so that a drift of the machine meets all of them.
func (p *plan) run() error {
	tmp, err := os.MkdirTemp("", "keyplane-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	soft, err := startKeyplane("soft token", p.keyplane, filepath.Join(tmp, "soft"), "")
	if err != nil {
		return err
	}
	defer soft.stop()
	uri, err := newSoftHSM(p.keyplane, filepath.Join(tmp, "softhsm"))
	if err != nil {
		return err
	}
	hsm, err := startKeyplane("SoftHSM", p.keyplane, filepath.Join(tmp, "hsm"), uri)
	if err != nil {
		return err
	}
	defer hsm.stop()

	var all []measurement
	for _, op := range p.ops {
		// The floor answers with as many bytes as keyplane does.
		request, response, err := hsm.sample(op)
		if err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		floor, err := startEcho(self, len(response))
		if err != nil {
			return err
		}
		fmt.Printf("%s: request body %d bytes, response body %d bytes, %d connections, %d rounds of %v\n", op, len(request), len(response), p.conns, p.rounds, p.each)
		for round := range p.rounds {
			for _, t := range []*target{floor, soft, hsm} {
				m, err := t.measure(op, p.conns, p.each, tmp)
				if err != nil {
					floor.stop()
					return fmt.Errorf("%s on %s: %w", op, t.name, err)
				}
				m.Op, m.Target, m.Round = op, t.name, round
				all = append(all, m)
			}
		}
		floor.stop()
	}
	table(os.Stdout, all)
	if p.out != "" {
		return store(p.out, all)
	}
	return nil
}
