package loadtest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// Exit statuses of Main.
const (
	exitOK     = 0
	exitFailed = 1 // nothing could be measured, nothing succeeded, or a reply was wrong
	exitUsage  = 2
)

// Where --duration and --warmup are not given, a probe of a search is shorter than a run.
const (
	probeDuration = 2 * time.Second
	probeWarmup   = 500 * time.Millisecond
)

// options are the flags that are not of the run itself.
type options struct {
	asJSON bool
	html   string        // file; "" is none
	search time.Duration // bound of p99; 0 is a plain run
}

// outcome is what can be printed: *Report or *SearchReport.
type outcome interface {
	WriteText(io.Writer) error
	WriteJSON(io.Writer) error
	WriteHTML(io.Writer) error
}

// Main is `keyplane loadtest`: it reads flags, runs until done or interrupted and prints the report on stdout.
// Progress goes to stderr if that is a terminal; the probes of a search to stdout, with --json to stderr. It returns the exit status.
func Main(args []string, stdout, stderr io.Writer) int {
	complain := func(err error) {
		fmt.Fprintln(stderr, "keyplane loadtest:", strings.ReplaceAll(err.Error(), "\n", "\nkeyplane loadtest: "))
	}
	cfg, opt, err := parseFlags(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err == nil && opt.search != 0 {
		err = validateSearch(&cfg, opt.search)
	} else if err == nil {
		err = cfg.validate()
	}
	if err != nil {
		complain(err)
		return exitUsage
	}
	page, err := createPage(opt.html)
	if err != nil {
		complain(err)
		return exitUsage
	}
	if isTerminal(stderr) {
		cfg.Progress = stderr
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second interrupt ends the process
	report, good, err := opt.run(ctx, cfg, stdout, stderr)
	if err != nil {
		page.discard()
		if ctx.Err() != nil {
			err = errors.New("interrupted before anything was measured")
		}
		complain(err)
		return exitFailed
	}
	write := report.WriteText
	if opt.asJSON {
		write = report.WriteJSON
	}
	if err := errors.Join(write(stdout), page.write(report)); err != nil {
		complain(err)
		return exitFailed
	}
	if !good {
		return exitFailed
	}
	return exitOK
}

// run is a load test or a search; good is whether it found what it was to find.
func (o *options) run(ctx context.Context, cfg Config, stdout, stderr io.Writer) (report outcome, good bool, err error) {
	if o.search == 0 {
		p, err := Run(ctx, cfg)
		return p, err == nil && p.Requests.Succeeded > 0 && p.count(kindVerifyMismatch) == 0, err
	}
	lines := stdout
	if o.asJSON {
		lines = stderr
	}
	f, err := Search(ctx, cfg, o.search, func(p Probe) { fmt.Fprintln(lines, p) })
	return f, err == nil && f.Best != nil && f.Best.count(kindVerifyMismatch) == 0, err
}

// pageFile is where the HTML goes; nil is nowhere.
type pageFile struct{ file *os.File }

// createPage creates the file before the run, so that a path that cannot be written is not found out after it.
func createPage(name string) (*pageFile, error) {
	if name == "" {
		return nil, nil
	}
	file, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	return &pageFile{file}, nil
}

func (p *pageFile) write(report outcome) error {
	if p == nil {
		return nil
	}
	return errors.Join(report.WriteHTML(p.file), p.file.Close())
}

// discard removes the file that stayed empty.
func (p *pageFile) discard() {
	if p != nil {
		p.file.Close()
		os.Remove(p.file.Name())
	}
}

// count is the number of errors of one kind.
func (p *Report) count(k kind) uint64 {
	for _, e := range p.Errors {
		if e.Type == k.String() {
			return e.Count
		}
	}
	return 0
}

func parseFlags(args []string, stderr io.Writer) (cfg Config, opt options, err error) {
	cfg = DefaultConfig()
	f := flag.NewFlagSet("keyplane loadtest", flag.ContinueOnError)
	f.SetOutput(io.Discard) // Main prints the error, once
	f.Usage = func() {
		f.SetOutput(stderr)
		fmt.Fprint(stderr, "Usage: keyplane loadtest [flags]\n\nSends signed KMS requests and reports throughput, latency and errors.\n\n")
		f.PrintDefaults()
	}
	f.Func("endpoint", "`URL` of the KMS endpoint (default $AWS_ENDPOINT_URL_KMS, $AWS_ENDPOINT_URL, then the Region's AWS endpoint); may be repeated for nodes with the same keys, connections go to them in turn", func(url string) error {
		cfg.Endpoints = append(cfg.Endpoints, url)
		return nil
	})
	f.StringVar(&cfg.Region, "region", cfg.Region, "Region to sign for (default the AWS configuration's, with an endpoint us-east-1)")
	f.StringVar(&cfg.CAFile, "ca-file", cfg.CAFile, "PEM `file` of the roots to trust for https (default $AWS_CA_BUNDLE, then the system's)")
	f.StringVar(&cfg.Operation, "op", cfg.Operation, "operation: "+strings.Join(Operations(), ", "))
	f.IntVar(&cfg.Concurrency, "concurrency", cfg.Concurrency, "connections, each with one request at a time")
	f.DurationVar(&cfg.Duration, "duration", cfg.Duration, "how long to measure")
	f.DurationVar(&cfg.Warmup, "warmup", cfg.Warmup, "how long to send before measuring")
	f.DurationVar(&cfg.Timeout, "timeout", cfg.Timeout, "of one request")
	f.Float64Var(&cfg.Rate, "rate", cfg.Rate, "requests per second, latency counted from the intended start; 0 sends as fast as answers come (closed loop)")
	f.StringVar(&cfg.Profile, "profile", cfg.Profile, "how the rate moves while measuring: constant, ramp (evenly to --rate-to) or step (to --rate-to in --steps of equal length)")
	f.Float64Var(&cfg.RateTo, "rate-to", cfg.RateTo, "requests per second at the end of a ramp or step")
	f.IntVar(&cfg.Steps, "steps", cfg.Steps, "steps of the profile step, the first at --rate, the last at --rate-to")
	f.IntVar(&cfg.Keys, "keys", cfg.Keys, "KMS keys to use; those missing are created, as "+AliasPrefix+"<i>")
	f.Func("key-id", "KMS key to use instead: `ID`, ARN or alias; may be repeated", func(id string) error {
		cfg.KeyIDs = append(cfg.KeyIDs, id)
		return nil
	})
	f.StringVar(&cfg.KeyDistribution, "key-distribution", cfg.KeyDistribution, "how requests spread over the keys: uniform or zipf")
	f.IntVar(&cfg.Payload, "payload", cfg.Payload, "`bytes` of plaintext, data key or random data")
	f.BoolVar(&cfg.Verify, "verify", cfg.Verify, "compare plaintexts, lengths and key ARNs in replies")
	f.BoolVar(&cfg.Cleanup, "cleanup", cfg.Cleanup, "at the end schedule the deletion of the keys this run created")
	f.DurationVar(&opt.search, "search-p99", 0, "search for the highest rate that keeps p99 within this `duration`, in probes of --duration each (default 2s after 500ms of warm-up) from --rate on (default 500); --concurrency bounds it too")
	f.BoolVar(&opt.asJSON, "json", false, "print the report as one JSON document")
	f.StringVar(&opt.html, "html", "", "write the report with plots to this `file` too")
	if err := f.Parse(args); err != nil {
		return cfg, opt, err
	}
	if f.NArg() > 0 {
		return cfg, opt, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if opt.search != 0 {
		given := make(map[string]bool)
		f.Visit(func(f *flag.Flag) { given[f.Name] = true })
		if !given["duration"] {
			cfg.Duration = probeDuration
		}
		if !given["warmup"] {
			cfg.Warmup = probeWarmup
		}
	}
	return cfg, opt, nil
}

// isTerminal reports whether w is a character device.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
