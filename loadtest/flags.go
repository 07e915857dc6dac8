package loadtest

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Where --duration and --warmup are not given, a probe of a search is shorter than a run.
const (
	probeDuration = 2 * time.Second
	probeWarmup   = 500 * time.Millisecond
)

// options are the flags that are not of the run itself.
type options struct {
	asJSON    bool
	html      string // file; "" is none
	searching bool
	search    time.Duration // bound of p99
}

// parseFlags returns a validated configuration, or every fault it found. --help writes to help and returns flag.ErrHelp.
func parseFlags(args []string, help io.Writer) (cfg Config, opt options, err error) {
	cfg = DefaultConfig()
	f := newFlags(&cfg, &opt)
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			writeHelp(help, f)
		}
		return cfg, opt, err
	}
	if f.NArg() > 0 {
		return cfg, opt, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	given := make(map[string]bool)
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	opt.searching = given["search-p99"]
	if opt.searching && !given["duration"] {
		cfg.Duration = probeDuration
	}
	if opt.searching && !given["warmup"] {
		cfg.Warmup = probeWarmup
	}
	// What would be ignored is a mistake.
	if given["steps"] && cfg.Profile != Step {
		err = errors.Join(err, fmt.Errorf("--steps needs --profile %s", Step))
	}
	if given["keys"] && given["key-id"] {
		err = errors.Join(err, errors.New("--keys and --key-id exclude each other"))
	}
	if opt.searching {
		return cfg, opt, errors.Join(err, validateSearch(&cfg, opt.search))
	}
	return cfg, opt, errors.Join(err, cfg.validate())
}

func newFlags(cfg *Config, opt *options) *flag.FlagSet {
	f := flag.NewFlagSet("keyplane loadtest", flag.ContinueOnError)
	f.SetOutput(io.Discard) // Main prints the error, once
	f.Usage = func() {}
	span := func(p *time.Duration, name, usage string) { f.Var((*span)(p), name, usage) }

	f.Func("endpoint", "`URL` of the KMS endpoint (default $AWS_ENDPOINT_URL_KMS, $AWS_ENDPOINT_URL, then the Region's AWS endpoint); may be repeated for nodes with the same keys, connections go to them in turn", func(url string) error {
		cfg.Endpoints = append(cfg.Endpoints, url)
		return nil
	})
	f.StringVar(&cfg.Region, "region", cfg.Region, "`name` of the Region to sign for (default the AWS configuration's; with an endpoint and none configured us-east-1)")
	f.StringVar(&cfg.CAFile, "ca-file", cfg.CAFile, "PEM `file` of the roots to trust for https (default $AWS_CA_BUNDLE, then the system's)")
	span(&cfg.Timeout, "timeout", "`time` for one request, and for a connection attempt")

	f.StringVar(&cfg.Operation, "op", cfg.Operation, "`operation` to send: "+strings.Join(Operations(), ", "))
	f.IntVar(&cfg.Payload, "payload", cfg.Payload, "`bytes` of plaintext, data key or random data")
	f.IntVar(&cfg.Keys, "keys", cfg.Keys, "`number` of KMS keys to use; those missing are created, as "+AliasPrefix+"<i>")
	f.Func("key-id", "KMS key to use instead: `ID`, ARN or alias; may be repeated", func(id string) error {
		cfg.KeyIDs = append(cfg.KeyIDs, id)
		return nil
	})
	f.StringVar(&cfg.KeyDistribution, "key-distribution", cfg.KeyDistribution, "`how` requests spread over the keys: uniform or zipf")
	f.BoolVar(&cfg.Verify, "verify", cfg.Verify, "compare plaintexts, lengths and key ARNs in replies")
	f.BoolVar(&cfg.Cleanup, "cleanup", cfg.Cleanup, "at the end schedule the deletion of the keys this run created")

	f.IntVar(&cfg.Concurrency, "concurrency", cfg.Concurrency, "`number` of connections, each with one request at a time")
	span(&cfg.Duration, "duration", "`time` to measure")
	span(&cfg.Warmup, "warmup", "`time` to send before measuring")
	f.Float64Var(&cfg.Rate, "rate", cfg.Rate, "`requests/s` in all, sent when due and not when there is an answer (open loop), latency counted from then; 0 sends as fast as answers come (closed loop)")
	f.StringVar(&cfg.Profile, "profile", cfg.Profile, "`how` the rate moves while measuring: constant, ramp (evenly to --rate-to) or step (to --rate-to in --steps of equal length)")
	f.Float64Var(&cfg.RateTo, "rate-to", cfg.RateTo, "`requests/s` to end with, in a ramp or in steps")
	f.IntVar(&cfg.Steps, "steps", cfg.Steps, "`number` of steps, the first at --rate, the last at --rate-to")

	span(&opt.search, "search-p99", "search for the highest rate at which p99 stays within this `time`, refused and failed requests counted as slower; probes take --duration ("+
		probeDuration.String()+" by default, after "+probeWarmup.String()+" of warm-up) and begin at --rate ("+strconv.Itoa(int(searchStart))+"); what --concurrency allows bounds the result too")

	f.BoolVar(&opt.asJSON, "json", false, "print the report as one JSON document")
	f.StringVar(&opt.html, "html", "", "write the report with plots to this `file` too")
	return f
}

// span is a flag of a time that says what is wrong with its value.
type span time.Duration

func (s *span) String() string { return time.Duration(*s).String() }

func (s *span) Set(text string) error {
	d, err := time.ParseDuration(text)
	if err != nil {
		return errors.New("a time has a unit, such as 500ms, 10s or 5m")
	}
	*s = span(d)
	return nil
}

// helpGroups is the order in which --help lists the flags.
var helpGroups = []struct {
	title string
	flags []string
}{
	{"Where", []string{"endpoint", "region", "ca-file", "timeout"}},
	{"What", []string{"op", "payload", "keys", "key-id", "key-distribution", "verify", "cleanup"}},
	{"How much", []string{"concurrency", "duration", "warmup", "rate", "profile", "rate-to", "steps"}},
	{"Search", []string{"search-p99"}},
	{"Report", []string{"json", "html"}},
}

const helpHead = `Usage: keyplane loadtest [flags]

Sends signed KMS requests to any KMS endpoint and reports throughput, latency and errors. Credentials come from the
usual AWS chain: environment, shared files, roles.

  Highest throughput of 64 connections:
    keyplane loadtest --endpoint http://127.0.0.1:4599 --op Decrypt
  Latency at a given load, with plots:
    keyplane loadtest --endpoint http://127.0.0.1:4599 --rate 2000 --duration 60s --html report.html
  Overload, more offered than can be served; enough connections that none is waited for:
    keyplane loadtest --endpoint http://127.0.0.1:4599 --rate 50000 --concurrency 900
  The highest rate that keeps p99 within 5 ms:
    keyplane loadtest --endpoint http://127.0.0.1:4599 --search-p99 5ms
`

const helpFoot = `
Exit status: 0 after a report; 1 if nothing could be measured, nothing succeeded or a reply was wrong, or if a search
found no rate; 2 for a wrong command line. An interrupt ends the run with a report of what was measured.
`

const (
	helpIndent = 28 // columns before the text of a flag
	helpWidth  = 120
)

// writeHelp lists the flags by group, with two dashes as everybody types them.
func writeHelp(w io.Writer, f *flag.FlagSet) {
	fmt.Fprint(w, helpHead)
	for _, g := range helpGroups {
		fmt.Fprintf(w, "\n%s:\n", g.title)
		for _, name := range g.flags {
			one := f.Lookup(name)
			value, usage := flag.UnquoteUsage(one)
			if !slices.Contains([]string{"", "0", "0s", "false"}, one.DefValue) {
				usage += " (default " + one.DefValue + ")"
			}
			line := "  --" + strings.TrimSpace(name+" "+value)
			for _, word := range strings.Fields(usage) {
				if len(line) < helpIndent {
					line += strings.Repeat(" ", helpIndent-len(line)-1)
				}
				if len(line)+1+len(word) > helpWidth {
					fmt.Fprintln(w, line)
					line = strings.Repeat(" ", helpIndent-1)
				}
				line += " " + word
			}
			fmt.Fprintln(w, line)
		}
	}
	fmt.Fprint(w, helpFoot)
}
