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
	cfg, opt, err := parseFlags(args, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		complain(err)
		fmt.Fprintln(stderr, "keyplane loadtest: see keyplane loadtest --help")
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
	if !o.searching {
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
type pageFile struct {
	file *os.File
	made bool // the file was not there before
}

// createPage opens the file before the run, so that a path that cannot be written is not found out after it. What is in it stays until write.
func createPage(name string) (*pageFile, error) {
	if name == "" {
		return nil, nil
	}
	_, err := os.Stat(name)
	made := errors.Is(err, os.ErrNotExist)
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o666)
	if err != nil {
		return nil, err
	}
	return &pageFile{file, made}, nil
}

func (p *pageFile) write(report outcome) error {
	if p == nil {
		return nil
	}
	if info, err := p.file.Stat(); err == nil && info.Mode().IsRegular() { // not a terminal or a pipe
		if err := p.file.Truncate(0); err != nil {
			return errors.Join(err, p.file.Close())
		}
	}
	return errors.Join(report.WriteHTML(p.file), p.file.Close())
}

// discard leaves no empty file behind.
func (p *pageFile) discard() {
	if p == nil {
		return
	}
	p.file.Close()
	if p.made {
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

// isTerminal reports whether w is a character device.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
