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
)

// Exit statuses of Main.
const (
	exitOK     = 0
	exitFailed = 1 // nothing could be measured, nothing succeeded, or a reply was wrong
	exitUsage  = 2
)

// Main is `keyplane loadtest`: it reads flags, runs until done or interrupted and prints the report on stdout.
// Progress goes to stderr if that is a terminal. It returns the exit status.
func Main(args []string, stdout, stderr io.Writer) int {
	cfg, asJSON, err := parseFlags(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err == nil {
		err = cfg.validate()
	}
	if err != nil {
		fmt.Fprintln(stderr, "keyplane loadtest:", strings.ReplaceAll(err.Error(), "\n", "\nkeyplane loadtest: "))
		return exitUsage
	}
	if isTerminal(stderr) {
		cfg.Progress = stderr
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second interrupt ends the process
	report, err := Run(ctx, cfg)
	if err != nil && ctx.Err() != nil {
		fmt.Fprintln(stderr, "keyplane loadtest: interrupted before anything was measured")
		return exitFailed
	}
	if err != nil {
		fmt.Fprintln(stderr, "keyplane loadtest:", err)
		return exitFailed
	}
	write := report.WriteText
	if asJSON {
		write = report.WriteJSON
	}
	if err := write(stdout); err != nil {
		fmt.Fprintln(stderr, "keyplane loadtest:", err)
		return exitFailed
	}
	if report.Requests.Succeeded == 0 || report.count(kindVerifyMismatch) > 0 {
		return exitFailed
	}
	return exitOK
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

func parseFlags(args []string, stderr io.Writer) (cfg Config, asJSON bool, err error) {
	cfg = DefaultConfig()
	f := flag.NewFlagSet("keyplane loadtest", flag.ContinueOnError)
	f.SetOutput(io.Discard) // Main prints the error, once
	f.Usage = func() {
		f.SetOutput(stderr)
		fmt.Fprint(stderr, "Usage: keyplane loadtest [flags]\n\nSends signed KMS requests to one endpoint and reports throughput, latency and errors.\n\n")
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
	f.BoolVar(&asJSON, "json", false, "print the report as one JSON document")
	if err := f.Parse(args); err != nil {
		return cfg, false, err
	}
	if f.NArg() > 0 {
		return cfg, false, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	return cfg, asJSON, nil
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
