package auditexport

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

// Usage is of Main and MainValidate.
const Usage = `usage: keyplane audit export --log DIR|--records FILE --dir DIR --digest-key FILE [--bucket NAME] [--trail NAME]
       keyplane audit validate-export DIR [--public-keys FILE]
`

// Main is keyplane audit export. logs opens what --log names; It returns the exit status.
func Main(args []string, stdout, stderr io.Writer, logs func(ctx context.Context, dir string) (Source, error)) int {
	var cfg Config
	fs := flag.NewFlagSet("keyplane audit export", flag.ContinueOnError)
	fs.SetOutput(stderr)
	records := fs.String("records", "", "`FILE` of records, one line of JSON each, always from the log's first on; - is standard input")
	log := fs.String("log", "", "`DIR` of an audit log")
	fs.StringVar(&cfg.Dir, "dir", "", "`DIR` to export to; a second export goes on where the first ended")
	keyFile := fs.String("digest-key", "", "PEM `FILE` of the RSA key that signs digests, made when it is missing; keep it out of DIR")
	fs.StringVar(&cfg.Bucket, "bucket", "", "`NAME` of the bucket that the files will be in (default keyplane-audit)")
	fs.StringVar(&cfg.Trail, "trail", "", "`NAME` of the trail (default keyplane)")
	if err := fs.Parse(args); err != nil {
		return status(err)
	}
	if fs.NArg() > 0 || (*records == "") == (*log == "") || cfg.Dir == "" || *keyFile == "" {
		fmt.Fprint(stderr, "keyplane audit export: --dir, --digest-key and one source of records are needed\n", Usage)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	report, err := func() (r Report, err error) {
		if cfg.Key, err = DigestKey(*keyFile); err != nil {
			return r, err
		}
		if *log != "" {
			if cfg.Records, err = logs(ctx, *log); err != nil {
				return r, err
			}
		} else {
			in := os.Stdin
			if *records != "-" {
				if in, err = os.Open(*records); err != nil {
					return r, err
				}
				defer in.Close()
			}
			cfg.Records = Lines(in)
		}
		return Export(ctx, cfg)
	}()
	if err != nil {
		fmt.Fprintln(stderr, "keyplane audit export:", err)
		return 1
	}
	fmt.Fprintf(stdout, "%d records exported, %d copies for owners of keys, %d lines left out that are no records of a call\n",
		report.Records-report.Skipped, report.Copies, report.Skipped)
	fmt.Fprintf(stdout, "%d log files, %d digest files; the next export begins with record %d\n", report.Files, report.Digests, report.Next)
	return 0
}

func status(err error) int {
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	return 2
}

// Lines is a Source of JSON lines. The index of a record is the number of lines before it; fewer lines than were exported already are an error.
func Lines(r io.Reader) Source {
	return func(from uint64) iter.Seq2[[]byte, error] {
		return func(yield func([]byte, error) bool) {
			s := bufio.NewScanner(r)
			s.Buffer(make([]byte, 64<<10), recordMax+1)
			n := uint64(0)
			for s.Scan() {
				if n++; n > from && !yield(s.Bytes(), nil) {
					return
				}
			}
			switch {
			case s.Err() != nil:
				yield(nil, fmt.Errorf("auditexport: line %d: %w", n+1, s.Err()))
			case n < from || n == from && from > 0:
				yield(nil, fmt.Errorf("auditexport: there are %d records, and more were exported already: give all of them, from the first on", n))
			}
		}
	}
}

// MainValidate is keyplane audit validate-export.
func MainValidate(args []string, stdout, stderr io.Writer) int {
	var dir string
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' { // the directory may come before the flags
		dir, args = args[0], args[1:]
	}
	fs := flag.NewFlagSet("keyplane audit validate-export", flag.ContinueOnError)
	fs.SetOutput(stderr)
	keyFile := fs.String("public-keys", "", "`FILE` like digest-public-keys.json, kept elsewhere (default DIR/digest-public-keys.json)")
	if err := fs.Parse(args); err != nil {
		return status(err)
	}
	if dir == "" && fs.NArg() == 1 {
		dir = fs.Arg(0)
	} else if dir == "" || fs.NArg() > 0 {
		fmt.Fprint(stderr, Usage)
		return 2
	}
	if *keyFile == "" {
		*keyFile = filepath.Join(dir, keysFile)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	keys, err := ReadPublicKeys(*keyFile)
	var r ValidateReport
	if err == nil {
		r, err = Validate(ctx, dir, keys)
	}
	if err != nil {
		fmt.Fprintln(stderr, "keyplane audit validate-export:", err)
		return 1
	}
	for _, f := range r.Faults {
		fmt.Fprintln(stderr, f)
	}
	if r.More > 0 {
		fmt.Fprintf(stderr, "and %d more\n", r.More)
	}
	fmt.Fprintf(stdout, "%d chains, %d digest files, %d log files with %d records\n", r.Chains, r.Digests, r.Files, r.Records)
	for _, f := range r.Fingerprints {
		fmt.Fprintf(stdout, "signed by the key %s\n", f)
	}
	if len(r.Faults) > 0 {
		fmt.Fprintf(stdout, "NOT VALID: %d faults\n", len(r.Faults)+r.More)
		return 1
	}
	fmt.Fprintln(stdout, "valid")
	return 0
}
