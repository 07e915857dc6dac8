package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// plan is one run of the program.
type plan struct {
	keyplane string        // the binary
	rounds   int           // alternating rounds over all targets
	each     time.Duration // of one measurement
	conns    int
	surge    time.Duration // of one overload
	keys     int           // of the table of many keys
	ops      []string
	tables   []string
	out      string // folder of results
	check    bool   // a missed promise is an error
	perf     bool   // the profile instead of tables

	ctx      context.Context // ends with a signal, and with it the run
	tmp      string
	self     string // this binary, whose children are the floor and the baseline
	uri      string // of the SoftHSM token
	all      []measurement
	repeated int // measurements thrown away because too many requests failed
	promises []promise
}

// tables are what can be measured, in the order in which it is.
var tables = []struct {
	name string
	run  func(*plan) error
}{
	{"floor", (*plan).floorTable},
	{"conns", (*plan).connsTable},
	{"rounds", (*plan).roundsTable},
	{"payload", (*plan).payloadTable},
	{"tls", (*plan).tlsTable},
	{"keys", (*plan).keysTable},
	{"policies", (*plan).policiesTable},
	{"audit", (*plan).auditTable},
	{"slow", (*plan).slowTable},
	{"overload", (*plan).overloadTable},
	{"quota", (*plan).quotaTable},
	{"quotakeys", (*plan).quotaKeysTable},
	{privateTable, (*plan).privateKeysTable},
	{residentTable, (*plan).residentKeysTable},
	{xksTable, (*plan).xksProxyTable},
}

// roundsStored is the number of rounds that makes a result worth keeping.
const roundsStored = 5

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "echo":
			return runEcho(args[1:])
		case "baseline":
			return runBaseline(args[1:])
		}
	}
	var names []string
	for _, t := range tables {
		names = append(names, t.name)
	}
	var p plan
	fs := flag.NewFlagSet("bench", flag.ExitOnError)
	fs.StringVar(&p.keyplane, "keyplane", "bin/keyplane", "the keyplane `BINARY` to measure")
	fs.IntVar(&p.rounds, "rounds", roundsStored, "alternating rounds over all targets; fewer than 5 are printed and not stored")
	fs.DurationVar(&p.each, "each", 4*time.Second, "length of one measurement, whole seconds")
	fs.IntVar(&p.conns, "conns", 64, "connections, where they are not what is varied")
	fs.DurationVar(&p.surge, "surge", time.Minute, "length of one overload, 2 s or more")
	fs.IntVar(&p.keys, "keys", 100_000, "keys of the table of many keys")
	ops := fs.String("ops", "GenerateDataKey,Decrypt", "operations, with commas")
	chosen := fs.String("tables", strings.Join(names, ","), "tables, with commas")
	fs.StringVar(&p.out, "out", "bench/results", "`DIR` to store results in")
	fs.BoolVar(&p.perf, "profile", false, "no tables, but where the processor time of a request goes; needs perf (Debian package linux-perf)")
	fs.BoolVar(&p.check, "check", false, "end with an error if a promise is missed")
	_ = fs.Parse(args)
	if fs.NArg() > 0 || p.rounds < 1 || p.each < time.Second || p.each%time.Second != 0 || p.surge < 2*time.Second || p.conns < 1 || p.keys < 1 {
		return errors.New("no arguments but flags; rounds, seconds, connections and keys from 1; see -help")
	}
	p.ops, p.tables = strings.Split(*ops, ","), strings.Split(*chosen, ",")
	for _, t := range p.tables {
		if !slices.Contains(names, t) {
			return fmt.Errorf("no table %q; there are %s", t, strings.Join(names, ", "))
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	p.ctx = ctx
	return p.run()
}

// run measures the chosen tables and reports.
func (p *plan) run() error {
	if err := filesMax(); err != nil {
		return err
	}
	var err error
	if p.self, err = os.Executable(); err != nil {
		return err
	}
	if p.tmp, err = os.MkdirTemp("", "keyplane-bench"); err != nil {
		return err
	}
	defer os.RemoveAll(p.tmp)
	if p.uri, err = newSoftHSM(p.keyplane, filepath.Join(p.tmp, "softhsm")); err != nil {
		return err
	}
	if p.perf {
		return p.profileTable()
	}
	fmt.Print(p.heading())
	for _, t := range tables {
		if !slices.Contains(p.tables, t.name) {
			continue
		}
		began := time.Now()
		if err := t.run(p); err != nil {
			return fmt.Errorf("table %s: %w", t.name, err)
		}
		fmt.Println()
		p.print(os.Stdout, t.name)
		fmt.Printf("(%s: %.0f s)\n", t.name, time.Since(began).Seconds())
	}
	fmt.Println()
	missed := p.printPromises(os.Stdout)
	if p.rounds >= roundsStored {
		if err := p.store(); err != nil {
			return err
		}
	}
	if p.check && missed > 0 {
		return fmt.Errorf("%d promises missed", missed)
	}
	return nil
}

// cell is one row of a table: what is measured once in every round.
type cell struct {
	op, in, target string // in is the measurement's Case
	run            func(d time.Duration) (measurement, error)
}

// cell measures one request of t, over and over.
func (p *plan) cell(t *target, op, in string, conns int) cell {
	return cell{op, in, t.name, func(d time.Duration) (measurement, error) { return t.measure(op, conns, d, p.tmp) }}
}

// warmUp is the length of the run before the first round, which is not kept: pools, caches and the runtime's threads fill.
const warmUp = time.Second

// alternate measures every cell in every round, in turn, so that a drift of the machine meets all of them.
func (p *plan) alternate(table string, cells []cell) error {
	for round := -1; round < p.rounds; round++ {
		for _, c := range cells {
			if p.ctx.Err() != nil {
				return errors.New("interrupted")
			}
			d := p.each
			if round < 0 {
				d = warmUp
			}
			m, err := p.undisturbed(c, d)
			if err != nil {
				return fmt.Errorf("%s %s on %s: %w", c.op, c.in, c.target, err)
			}
			if round < 0 {
				continue
			}
			m.Table, m.Op, m.Case, m.Target, m.Round = table, c.op, c.in, c.target, round
			p.all = append(p.all, m)
		}
	}
	return nil
}

// undisturbed measures once, and again if too many requests failed: another process had the processor for longer than requests may wait.
// It says so, and five failures in a row are the server's.
func (p *plan) undisturbed(c cell, d time.Duration) (measurement, error) {
	const attempts = 5
	for attempt := 1; ; attempt++ {
		m, err := c.run(d)
		if !errors.Is(err, errFailures) || attempt == attempts || p.ctx.Err() != nil {
			return m, err
		}
		p.repeated++
		fmt.Printf("%s %s on %s: measured again: %v\n", c.op, c.in, c.target, err)
	}
}

// filesMax raises the limit of open files for us and, because it is set by hand, for our children too.
func filesMax() error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	l.Cur = l.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l)
}
