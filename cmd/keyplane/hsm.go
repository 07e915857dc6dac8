//go:build cgo

package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/p11"
	"github.com/keyplane/keyplane/internal/aesgcm"
)

const hsmUsage = `usage: keyplane hsm init  --hsm URI [--hsm URI ...] [--clonable]
       keyplane hsm probe --hsm URI [--hsm URI ...] [--json]
       keyplane hsm clone --from URI --so-pin-file FILE --to URI [--to URI ...]
       keyplane hsm clone --from-soft-token DIR --to-soft-token DIR

--clonable makes roots that keyplane hsm clone can copy to other tokens, under a key that the token's Security Officer marks as trusted; without it they
never leave the token.
`

// hsmCommand is `keyplane hsm`.
func hsmCommand(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, hsmUsage)
		return 2
	}
	var action func(uri string, w io.Writer) error
	switch args[0] {
	case "init":
		action = hsmInit
	case "probe":
		action = hsmProbe
	case "clone":
		return cloneCommand(args[1:], stdout, stderr, hsmClone)
	case "help", "--help", "-h":
		fmt.Fprint(stdout, hsmUsage)
		return 0
	default:
		fmt.Fprintf(stderr, "keyplane hsm: there is no command %q\n%s", args[0], hsmUsage)
		return 2
	}
	var uris list
	fs := flag.NewFlagSet("keyplane hsm "+args[0], flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Var(&uris, "hsm", "PKCS#11 `URI` of a token (RFC 7512), may be repeated")
	portable := fs.Bool("portable-crypto", false, "as for keyplane serve")
	asJSON, clonable := new(bool), new(bool)
	if args[0] == "probe" {
		fs.BoolVar(asJSON, "json", false, "print a line of JSON for each token")
	}
	if args[0] == "init" {
		fs.BoolVar(clonable, "clonable", false, "make roots that keyplane hsm clone can copy")
	}
	if err := fs.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if len(uris) == 0 || fs.NArg() > 0 {
		fmt.Fprint(stderr, hsmUsage)
		return 2
	}
	if err := aesgcm.Configure(aesgcm.Options{Portable: *portable}); err != nil {
		fmt.Fprintln(stderr, "keyplane hsm:", err)
		return 1
	}
	if *asJSON {
		action = hsmProbeJSON
	}
	if *clonable {
		action = hsmInitClonable
	}
	status := 0
	for _, uri := range uris {
		if err := action(uri, stdout); err != nil {
			fmt.Fprintln(stderr, "keyplane hsm "+args[0]+":", err)
			status = 1
		}
	}
	return status
}

// hsmInit makes what is missing of the two roots and the audit key and checks all.
func hsmInit(uri string, w io.Writer) error { return initWith(p11.InitRoots, uri, w) }

// hsmInitClonable is hsmInit with roots that can be cloned.
func hsmInitClonable(uri string, w io.Writer) error { return initWith(p11.InitClonable, uri, w) }

func initWith(make func(string) (p11.InitReport, error), uri string, w io.Writer) error {
	report, err := make(uri)
	if err != nil {
		return err
	}
	_, err = report.WriteTo(w)
	return err
}

// hsmClone copies roots. What was done before an error is told.
func hsmClone(from string, to []string, officerFile string, w io.Writer) error {
	pin, err := hsm.ReadPIN(officerFile)
	if err != nil {
		return err
	}
	defer pin.Wipe()
	reports, err := p11.Clone(from, to, pin)
	for i, r := range reports {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if _, werr := r.WriteTo(w); werr != nil {
			return errors.Join(err, werr)
		}
	}
	return err
}

func hsmProbe(uri string, w io.Writer) error {
	report, err := p11.Probe(uri)
	if err != nil {
		return err
	}
	if _, err := report.WriteTo(w); err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "AES-GCM of envelope data on this host: %s\n", aesgcm.Path())
	return err
}

// hsmProbeJSON is the report as one line of JSON, with the host's AES-GCM beside it.
func hsmProbeJSON(uri string, w io.Writer) error {
	report, err := p11.Probe(uri)
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(struct {
		p11.Report
		AESGCM string `json:"host_aes_gcm"`
	}{report, aesgcm.Path()})
}
