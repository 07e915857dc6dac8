//go:build cgo

package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/keyplane/keyplane/hsm/p11"
	"github.com/keyplane/keyplane/internal/aesgcm"
)

const hsmUsage = `usage: keyplane hsm init  --hsm URI [--hsm URI ...]
       keyplane hsm probe --hsm URI [--hsm URI ...] [--json]
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
	asJSON := new(bool)
	if args[0] == "probe" {
		fs.BoolVar(asJSON, "json", false, "print a line of JSON for each token")
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
func hsmInit(uri string, w io.Writer) error {
	report, err := p11.InitRoots(uri)
	if err != nil {
		return err
	}
	_, err = report.WriteTo(w)
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
