// Package auditcli is `keyplane audit`: it reads the files of an audit log, and needs neither a running keyplane nor an HSM.
package auditcli

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyplane/keyplane/internal/audit"
	"github.com/keyplane/keyplane/internal/audit/auditkey"
)

// Usage is the help of Main's commands.
const Usage = `usage: keyplane audit verify|search|tiles --dir DIR [FLAGS]

Reads an audit log's directory. The server may be running.

  verify --dir DIR --public-key FILE|KEY [--newest FILE]
      compares every record, hash and checkpoint with what was signed: exit status 0 if all is as it was, 3 if not, 1 if it could not be read.
      The key is a verifier key (NAME+HASH+KEY) or a PEM file. With the newest published checkpoint a complete older copy is found as well.
  search --dir DIR [--from TIME] [--to TIME] [--principal P] [--key K] [--region R] [--event-name N] [--error-code C]
         [--limit N]
      prints the records that match as JSON lines, oldest first. TIME is RFC 3339, a date, or a duration before now (90m); P is an ARN, a principal
      ID or an access key ID; K a key ARN or key ID.
  tiles --dir DIR --out DIR
      writes the log as of its newest checkpoint in the layout of c2sp.org/tlog-tiles
`

// Exit statuses.
const (
	good     = 0
	failed   = 1
	misused  = 2
	tampered = 3
)

// Main returns the exit status: 0 success, 1 failure, 2 usage, 3 the log is not what was signed.
func Main(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, Usage)
		return misused
	}
	var command func(ctx context.Context, args []string, stdout, stderr io.Writer) (int, error)
	switch args[0] {
	case "verify":
		command = verify
	case "search":
		command = search
	case "tiles":
		command = tiles
	case "help", "--help", "-h":
		fmt.Fprint(stdout, Usage)
		return good
	default:
		fmt.Fprintf(stderr, "keyplane audit: there is no command %q\n%s", args[0], Usage)
		return misused
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	status, err := command(ctx, args[1:], stdout, stderr)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, Usage)
		return good
	}
	if err != nil {
		fmt.Fprintf(stderr, "keyplane audit %s: %v\n", args[0], err)
	}
	return status
}

// parse reads the flags. Those of required must be there; no arguments may follow.
func parse(fs *flag.FlagSet, args []string, required ...string) error {
	fs.SetOutput(io.Discard)
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	for _, name := range required {
		if fs.Lookup(name).Value.String() == "" {
			return fmt.Errorf("--%s is missing", name)
		}
	}
	return nil
}

func verify(ctx context.Context, args []string, stdout, _ io.Writer) (int, error) {
	fs := flag.NewFlagSet("verify", flag.ContinueOnError)
	dir, key, newestFile := fs.String("dir", "", ""), fs.String("public-key", "", ""), fs.String("newest", "", "")
	if err := parse(fs, args, "dir", "public-key"); err != nil {
		return misused, err
	}
	var newest []byte
	if *newestFile != "" {
		var err error
		if newest, err = os.ReadFile(*newestFile); err != nil {
			return failed, err
		}
	}
	v, err := publicKey(*dir, *key, newest)
	if err != nil {
		return failed, err
	}
	r, err := audit.Verify(ctx, *dir, v, newest)
	if err != nil && !errors.Is(err, audit.ErrTampered) {
		return failed, err
	}
	for _, fault := range r.Faults {
		fmt.Fprintln(stdout, "FAULT", fault)
	}
	for _, leftover := range r.Leftovers {
		fmt.Fprintln(stdout, "after a crash", leftover)
	}
	if r.Origin != "" {
		fmt.Fprintln(stdout, "log          ", r.Origin)
	}
	fmt.Fprintf(stdout, "records       %d, from index %d, in %d segments\n", r.Records, r.First, r.Segments)
	fmt.Fprintf(stdout, "covered       up to index %d, by %d checkpoints\n", r.Covered, r.Checkpoints)
	if r.Uncovered > 0 {
		fmt.Fprintf(stdout, "not yet       %d records after the newest checkpoint: nothing can be said about them\n", r.Uncovered)
	}
	if r.Incomplete > 0 {
		fmt.Fprintf(stdout, "incomplete    %d bytes at the end: a record that is being written, or was when the server stopped\n", r.Incomplete)
	}
	if len(r.Leftovers) > 0 {
		fmt.Fprintln(stdout, "repair        the next start of the server does what the crash left undone")
	}
	if newest == nil {
		fmt.Fprintln(stdout, "rollback      not checked: --newest was not given")
	}
	fmt.Fprintf(stdout, "speed         %.0f records a minute\n", float64(r.Records)/max(r.Took.Minutes(), 1e-9))
	if err != nil {
		fmt.Fprintln(stdout, "The log is NOT what was signed.")
		return tampered, nil
	}
	if r.Checkpoints == 0 {
		fmt.Fprintln(stdout, "Nothing is covered yet: there is no checkpoint.")
		return good, nil
	}
	fmt.Fprintln(stdout, "All that is covered is what was signed.")
	return good, nil
}

// publicKey is the key in a file, or the verifier key that text is itself. A PEM file names no signer: it is taken for that of the log in dir, or of
// newest if that has no checkpoint yet.
func publicKey(dir, text string, newest []byte) (note.Verifier, error) {
	content, err := os.ReadFile(text)
	if err == nil {
		text = strings.TrimSpace(string(content))
	} else if !strings.Contains(text, "+") {
		return nil, err
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		name, key, err := auditkey.ParseVerifierKey(text)
		if err != nil {
			return nil, err
		}
		return auditkey.NewVerifier(name, key)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("a public key of type %T signs no checkpoints", parsed)
	}
	signer := newest
	for _, file := range []string{"checkpoint", "checkpoints"} { // the first checkpoint of a log is in the second file first
		content, err := os.ReadFile(filepath.Join(dir, file))
		if err == nil {
			signer = content
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	_, signature, signed := strings.Cut(string(signer), "\n\n— ") // c2sp.org/signed-note
	name, _, _ := strings.Cut(signature, " ")
	if !signed {
		name = "none" // and nothing is signed
	}
	return auditkey.NewVerifier(name, key)
}

func search(ctx context.Context, args []string, stdout, _ io.Writer) (int, error) {
	fs := flag.NewFlagSet("search", flag.ContinueOnError)
	var f audit.Filter
	dir := fs.String("dir", "", "")
	now := time.Now()
	fs.Func("from", "", func(s string) (err error) { f.From, err = instant(s, now); return err })
	fs.Func("to", "", func(s string) (err error) { f.To, err = instant(s, now); return err })
	fs.StringVar(&f.Principal, "principal", "", "")
	fs.StringVar(&f.Key, "key", "", "")
	fs.StringVar(&f.Region, "region", "", "")
	fs.StringVar(&f.EventName, "event-name", "", "")
	fs.StringVar(&f.ErrorCode, "error-code", "", "")
	fs.IntVar(&f.Limit, "limit", 0, "")
	if err := parse(fs, args, "dir"); err != nil {
		return misused, err
	}
	if f.Limit < 0 {
		return misused, errors.New("--limit is negative")
	}
	w := bufio.NewWriterSize(stdout, 64<<10)
	var writeErr error
	err := audit.Search(ctx, *dir, f, func(record []byte) bool {
		w.Write(record)
		writeErr = w.WriteByte('\n') // a bufio.Writer keeps its first error
		return writeErr == nil
	})
	if err = errors.Join(err, writeErr, w.Flush()); err != nil {
		return failed, err
	}
	return good, nil
}

// instant reads a time: RFC 3339, a date in UTC, or how long before now.
func instant(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if t, err := time.Parse(time.DateOnly, s); err == nil {
		return t, nil
	}
	return time.Parse(time.RFC3339, s)
}

func tiles(ctx context.Context, args []string, _, _ io.Writer) (int, error) {
	fs := flag.NewFlagSet("tiles", flag.ContinueOnError)
	dir, out := fs.String("dir", "", ""), fs.String("out", "", "")
	if err := parse(fs, args, "dir", "out"); err != nil {
		return misused, err
	}
	if err := audit.ExportTiles(ctx, *dir, *out); err != nil {
		return failed, err
	}
	return good, nil
}
