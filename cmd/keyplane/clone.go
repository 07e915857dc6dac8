package main

import (
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/keyplane/keyplane/hsm/softtoken"
)

const cloneUsage = `usage: keyplane hsm clone --from URI --so-pin-file FILE --to URI [--to URI ...]
       keyplane hsm clone --from-soft-token DIR [--from-pin-file FILE] --to-soft-token DIR [--to-pin-file FILE]

copies the roots of a token to others, so that each control plane and data plane has an HSM of its own with the same keys. The source was set up by
keyplane hsm init --clonable. FILE holds the PIN of its Security Officer, who marks the target's key as trusted for it; the user's PINs are pin-source in
the URIs. The roots are wrapped by the source and unwrapped by the target, and are in clear in neither's host. A target that has them already is left as
it is, one with another root is refused. Audit keys and CA keys are not copied: each token has its own.

Soft tokens are files that a PIN seals. The target's is made, with a PIN of its own in its directory unless --to-pin-file names one.
`

// cloneCommand is `keyplane hsm clone`. between copies between tokens of PKCS#11 modules.
func cloneCommand(args []string, stdout, stderr io.Writer, between func(from string, to []string, officerFile string, w io.Writer) error) int {
	fs := flag.NewFlagSet("keyplane hsm clone", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() { fmt.Fprint(stderr, cloneUsage) }
	var from, officer string
	var to list
	var softFrom, softTo softtoken.Config
	fs.StringVar(&from, "from", "", "")
	fs.Var(&to, "to", "")
	fs.StringVar(&officer, "so-pin-file", "", "")
	fs.StringVar(&softFrom.Dir, "from-soft-token", "", "")
	fs.StringVar(&softFrom.PINFile, "from-pin-file", "", "")
	fs.StringVar(&softTo.Dir, "to-soft-token", "", "")
	fs.StringVar(&softTo.PINFile, "to-pin-file", "", "")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	hard := from != "" && len(to) > 0 && officer != ""
	soft := softFrom.Dir != "" && softTo.Dir != ""
	anyHard, anySoft := from != "" || len(to) > 0 || officer != "", softFrom != softtoken.Config{} || softTo != softtoken.Config{}
	if fs.NArg() > 0 || hard == soft || hard && anySoft || soft && anyHard {
		fmt.Fprint(stderr, cloneUsage)
		return 2
	}
	var err error
	if hard {
		err = between(from, to, officer, stdout)
	} else {
		err = cloneSoft(softFrom, softTo, stdout)
	}
	if err != nil {
		fmt.Fprintln(stderr, "keyplane hsm clone:", err)
		return 1
	}
	return 0
}

func cloneSoft(from, to softtoken.Config, w io.Writer) error {
	root, copied, err := softtoken.Clone(from, to)
	if err != nil {
		return err
	}
	state := "was there"
	if copied {
		state = "copied"
	}
	fmt.Fprintf(w, "from          %s\nto            %s\nroots         %s\nroot ID       %x, the same as the source's\n", from.Dir, to.Dir, state, root[:])
	return nil
}
