package node

import (
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/softtoken"
	"github.com/keyplane/keyplane/internal/audit/auditkey"
)

// PublicKeyMain is keyplane audit public-key: the public half of the key that signs the audit log, as a verifier key and in PEM. It returns the
// exit status. A server may be running; nothing is made.
func PublicKeyMain(args []string, stdout, stderr io.Writer) int {
	var cfg Config
	fs := flag.NewFlagSet("keyplane audit public-key", flag.ContinueOnError)
	fs.SetOutput(stderr)
	file := fs.String("config", "", "YAML `FILE` of keyplane serve; flags win over it")
	dir := fs.String("data-dir", "", "`DIR` of all state (default ./keyplane-data)")
	var regions []string
	fs.Func("region", "AWS `REGION` of the server, of several the first (default AWS_REGION, else us-east-1)", func(r string) error { regions = append(regions, r); return nil })
	account := fs.String("account", "", "12-digit `ACCOUNT` of the server (default 111122223333)")
	pinFile := fs.String("soft-token-pin-file", "", "`FILE` that unseals the soft token (default DATA-DIR/softtoken/pin)")
	var uris []string
	fs.Func("hsm", "PKCS#11 `URI` of a token (RFC 7512), may be repeated", func(uri string) error { uris = append(uris, uri); return nil })
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(stderr, "keyplane audit public-key: unexpected argument %q\n", fs.Arg(0))
		return 2
	}
	err := func() (err error) {
		if *file != "" {
			if cfg, err = ReadConfig(*file); err != nil {
				return fmt.Errorf("%s: %w", *file, err)
			}
		}
		for _, f := range []struct{ from, to *string }{{dir, &cfg.DataDir}, {account, &cfg.Account}, {pinFile, &cfg.SoftTokenPINFile}} {
			if *f.from != "" {
				*f.to = *f.from
			}
		}
		if len(regions) > 0 {
			cfg.Region, cfg.Regions = regions[0], regions
		}
		if len(uris) > 0 {
			cfg.HSM = uris
		}
		cfg.Defaults()
		if err := cfg.Validate(); err != nil {
			return err
		}
		return printPublicKeys(&cfg, stdout)
	}()
	if err != nil {
		fmt.Fprintln(stderr, "keyplane audit public-key:", err)
		return 1
	}
	return 0
}

// printPublicKeys prints the key of every token that has one: which of several signs is in the server's store.
func printPublicKeys(cfg *Config, w io.Writer) error {
	var tokens []hsm.Token
	var err error
	if len(cfg.HSM) > 0 {
		tokens, err = openTokens(cfg)
	} else {
		var t hsm.Token
		t, err = softtoken.Open(softtoken.Config{Dir: softTokenDir(cfg), PINFile: cfg.SoftTokenPINFile})
		tokens = []hsm.Token{t}
	}
	if err != nil {
		return err
	}
	printed := 0
	for _, t := range tokens {
		var key *hsm.AuditKey
		if key, err = hsm.OpenAuditKey([]hsm.Token{t}, nil, auditTimeout); errors.Is(err, hsm.ErrNoAuditKey) {
			err = nil
			continue
		}
		if err == nil {
			err = printPublicKey(cfg, key, len(tokens) > 1, w)
			err = errors.Join(err, key.Close())
		}
		if err != nil {
			break
		}
		printed++
	}
	if err == nil && printed == 0 {
		err = hsm.ErrNoAuditKey
	}
	return errors.Join(err, closeTokens(tokens))
}

func printPublicKey(cfg *Config, key *hsm.AuditKey, named bool, w io.Writer) error {
	text, err := auditkey.VerifierKey(AuditKeyName(cfg), key.Public())
	if err != nil {
		return err
	}
	block, err := auditkey.PEM(key.Public())
	if err != nil {
		return err
	}
	if named {
		if _, err := fmt.Fprintf(w, "token %q, serial %s\n", key.Token().Label, key.Token().Serial); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(w, "%s\n%s", text, block)
	return err
}
