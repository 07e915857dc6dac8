package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/softtoken"
	"github.com/keyplane/keyplane/internal/node"
	"github.com/keyplane/keyplane/internal/planeca"
	"github.com/keyplane/keyplane/internal/planetls"
)

const caUsage = `usage: keyplane ca init  TOKEN --ca FILE [--years N] [--renew]
       keyplane ca issue TOKEN --ca FILE --role ROLE --node ID [--host NAME ...] [--hours N | --days N] --out DIR [--replace]
       keyplane ca renew --dir DIR --control URL [--control URL ...]
       keyplane ca revoke --config FILE {SERIAL | --cert FILE}
       keyplane ca show  FILE ... | --config FILE

TOKEN is --hsm URI, or --soft-token DIR [--pin-file FILE]. ROLE is control, data, etcd or client.

init   makes the CA key in the token where it has none, and its root certificate. A FILE that is there gets the certificate added: each control plane
       may have a CA key of its own in its own token, and all members are given the file with all of them. --renew adds another certificate of a key
       whose certificate is in the file.
issue  makes a key and its certificate: cert.pem, key.pem and ca.pem in DIR. Control planes renew the certificates of members that run; who issues for
       longer than a day does so for what does not renew its certificate itself, an etcd member most of all.
renew  gets the next certificate of what does not do so itself, while the one in DIR is valid.
revoke has all nodes of a cluster refuse a certificate from now on. --config is the file of a control plane; etcd does not ask.
show   prints what certificates say, and with --config the ones that are revoked.
`

// caCommand is `keyplane ca`.
func caCommand(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, caUsage)
		return 2
	}
	var action func(c *caFlags, w io.Writer) error
	c := &caFlags{}
	fs := flag.NewFlagSet("keyplane ca "+args[0], flag.ContinueOnError)
	fs.SetOutput(stderr)
	switch args[0] {
	case "init":
		action = caInit
		c.token(fs)
		fs.IntVar(&c.years, "years", 10, "how long the root certificate is valid")
		fs.BoolVar(&c.renew, "renew", false, "add another root certificate of a key that has one")
	case "issue":
		action = caIssue
		c.token(fs)
		fs.StringVar(&c.member.Role, "role", "", "control, data, etcd or client")
		fs.StringVar(&c.member.Node, "node", "", "node `ID`")
		fs.Var((*list)(&c.member.Hosts), "host", "DNS name or IP address at which the node is reached, may be repeated")
		fs.IntVar(&c.hours, "hours", 0, "how long it is valid (default 24)")
		fs.IntVar(&c.days, "days", 0, "the same in days")
		fs.StringVar(&c.dir, "out", "", "`DIR` for cert.pem, key.pem and ca.pem")
		fs.BoolVar(&c.replace, "replace", false, "put them in the place of those that are there")
	case "renew":
		action = caRenew
		fs.StringVar(&c.dir, "dir", "", "`DIR` with cert.pem, key.pem and ca.pem")
		fs.Var((*list)(&c.control), "control", "`URL` of a control plane, https://host:port, may be repeated")
	case "revoke":
		return node.RevokeMain(args[1:], stdout, stderr)
	case "show":
		if len(args) > 1 && strings.HasPrefix(args[1], "-") {
			return node.RevokedMain(args[1:], stdout, stderr)
		}
		action = caShow
	case "help", "--help", "-h":
		fmt.Fprint(stdout, caUsage)
		return 0
	default:
		fmt.Fprintf(stderr, "keyplane ca: there is no command %q\n%s", args[0], caUsage)
		return 2
	}
	if err := fs.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	c.args = fs.Args()
	if (args[0] == "show") != (len(c.args) > 0) {
		fmt.Fprint(stderr, caUsage)
		return 2
	}
	if err := action(c, stdout); err != nil {
		fmt.Fprintf(stderr, "keyplane ca %s: %v\n", args[0], err)
		if errors.Is(err, errUsage) {
			return 2
		}
		return 1
	}
	return 0
}

var errUsage = errors.New("see keyplane ca --help")

type caFlags struct {
	hsm, softToken, pinFile string
	ca                      string
	years, hours, days      int
	renew, replace          bool
	member                  planeca.Member
	dir                     string
	control                 []string
	args                    []string
}

func (c *caFlags) token(fs *flag.FlagSet) {
	fs.StringVar(&c.hsm, "hsm", "", "PKCS#11 `URI` of the token (RFC 7512)")
	fs.StringVar(&c.softToken, "soft-token", "", "`DIR` of a soft token: softtoken in a data directory")
	fs.StringVar(&c.pinFile, "pin-file", "", "`FILE` with the soft token's PIN (default the one in its directory)")
	fs.StringVar(&c.ca, "ca", "", "`FILE` of the root certificates, PEM")
}

func (c *caFlags) soft() softtoken.Config {
	return softtoken.Config{Dir: c.softToken, PINFile: c.pinFile}
}

func (c *caFlags) checkToken() error {
	switch {
	case (c.hsm == "") == (c.softToken == ""):
		return fmt.Errorf("one of --hsm and --soft-token: %w", errUsage)
	case c.pinFile != "" && c.softToken == "":
		return fmt.Errorf("--pin-file is for --soft-token: the PIN of another token is pin-source in its URI: %w", errUsage)
	case c.ca == "":
		return fmt.Errorf("--ca is missing: %w", errUsage)
	}
	return nil
}

func (c *caFlags) open() (hsm.Token, error) {
	if c.softToken != "" {
		return softtoken.Open(c.soft())
	}
	return openHSM(c.hsm)
}

// caInit makes the key, and adds its root certificate to the file.
func caInit(c *caFlags, w io.Writer) error {
	if err := c.checkToken(); err != nil {
		return err
	}
	if c.years < 1 || c.years > 100 {
		return fmt.Errorf("--years: 1 to 100: %w", errUsage)
	}
	var roots []*x509.Certificate
	text, err := os.ReadFile(c.ca)
	if err == nil {
		if roots, err = planetls.ParseCA(text); err != nil {
			return fmt.Errorf("%s: %w", c.ca, err)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	made := false
	if c.softToken != "" {
		made, err = softtoken.InitCA(c.soft())
	} else {
		made, err = initHSMCA(c.hsm)
	}
	if err != nil {
		return err
	}
	token, err := c.open()
	if err != nil {
		return err
	}
	defer token.Close()
	root, err := planeca.NewRoot(token, time.Duration(c.years)*365*24*time.Hour)
	if err != nil {
		return err
	}
	state := "was there"
	if made {
		state = "made"
	}
	fmt.Fprintf(w, "token         %s, serial %s\nCA key        %s: EC P-256, sensitive, never extractable, for signatures\n", token.Info().Label, token.Info().Serial, state)
	block, _ := pem.Decode(root)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	has := slices.ContainsFunc(roots, func(r *x509.Certificate) bool { return slices.Equal(r.SubjectKeyId, cert.SubjectKeyId) })
	if has && !c.renew {
		fmt.Fprintf(w, "root          was there: %s has a certificate of this key; --renew adds another\n", c.ca)
		return nil
	}
	// The newest of a key comes first: it is the one that issues.
	if err := os.WriteFile(c.ca+".new", append(root, text...), 0o644); err != nil {
		return err
	}
	if err := os.Rename(c.ca+".new", c.ca); err != nil {
		return err
	}
	fmt.Fprintf(w, "root          %s\n", c.ca)
	describe(w, cert)
	return nil
}

// lifeOf is what --hours and --days say.
func (c *caFlags) life() (time.Duration, error) {
	switch {
	case c.hours < 0 || c.days < 0 || c.hours > 0 && c.days > 0:
		return 0, fmt.Errorf("one of --hours and --days, above 0: %w", errUsage)
	case c.hours > 0:
		return time.Duration(c.hours) * time.Hour, nil
	case c.days > 0:
		return time.Duration(c.days) * 24 * time.Hour, nil
	}
	return planeca.LifeDefault, nil
}

func filesIn(dir string) planetls.Files {
	return planetls.Files{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), CA: filepath.Join(dir, "ca.pem")}
}

// caIssue makes a member's key here and its certificate.
func caIssue(c *caFlags, w io.Writer) error {
	if err := c.checkToken(); err != nil {
		return err
	}
	life, err := c.life()
	if err != nil {
		return err
	}
	if c.dir == "" {
		return fmt.Errorf("--out is missing: %w", errUsage)
	}
	c.member.Life = life
	files := filesIn(c.dir)
	if !c.replace {
		for _, f := range []string{files.Cert, files.Key, files.CA} {
			if _, err := os.Lstat(f); err == nil {
				return fmt.Errorf("%s is there: --replace puts another in its place", f)
			}
		}
	}
	roots, err := os.ReadFile(c.ca)
	if err != nil {
		return err
	}
	token, err := c.open()
	if err != nil {
		return err
	}
	defer token.Close()
	ca, err := planeca.Open([]hsm.Token{token}, c.ca)
	if err != nil {
		return err
	}
	defer ca.Close()
	key, keyPEM, err := planeca.NewKey()
	if err != nil {
		return err
	}
	defer clear(keyPEM)
	cert, err := ca.Issue(&key.PublicKey, c.member)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	if err := planetls.WriteFile(files.CA, roots); err != nil {
		return err
	}
	if err := files.Store(cert, keyPEM); err != nil {
		return err
	}
	block, _ := pem.Decode(cert)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "files         %s, %s, %s\n", files.Cert, files.Key, files.CA)
	describe(w, leaf)
	return nil
}

// caRenew gets the next certificate from a control plane.
func caRenew(c *caFlags, w io.Writer) error {
	if c.dir == "" || len(c.control) == 0 {
		return fmt.Errorf("--dir and --control: %w", errUsage)
	}
	source, err := planetls.Open(filesIn(c.dir), nil)
	if err != nil {
		return err
	}
	client, err := source.Client(planetls.RoleControl)
	if err != nil {
		return err
	}
	remote := planeca.Remote{Client: &http.Client{Transport: &http.Transport{TLSClientConfig: client, ForceAttemptHTTP2: true}}}
	for _, u := range c.control {
		remote.URLs = append(remote.URLs, strings.TrimSuffix(u, "/"))
	}
	if err := planeca.Next(context.Background(), source, remote); err != nil {
		return err
	}
	describe(w, source.Leaf())
	return nil
}

// caShow prints what the certificates of files say.
func caShow(c *caFlags, w io.Writer) error {
	for i, file := range c.args {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "file          %s\n", file)
		n := 0
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			if block.Type != "CERTIFICATE" {
				continue // a key, of which nothing is said
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			if n++; n > 1 {
				fmt.Fprintln(w)
			}
			describe(w, cert)
		}
		if n == 0 {
			return fmt.Errorf("%s: no certificate in PEM", file)
		}
	}
	return nil
}

func describe(w io.Writer, c *x509.Certificate) {
	fmt.Fprintf(w, "subject       %s\n", c.Subject)
	if role, node, err := planetls.Name(c); err == nil {
		fmt.Fprintf(w, "name          keyplane://%s/%s\n", role, node)
	}
	var hosts []string
	hosts = append(hosts, c.DNSNames...)
	for _, ip := range c.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	if len(hosts) > 0 {
		fmt.Fprintf(w, "hosts         %s\n", strings.Join(hosts, ", "))
	}
	if c.IsCA {
		fmt.Fprintln(w, "use           CA: issues certificates")
	}
	state := ""
	if now := time.Now(); now.After(c.NotAfter) {
		state = " (expired)"
	} else if now.Before(c.NotBefore) {
		state = " (not yet valid)"
	}
	fmt.Fprintf(w, "valid         %s to %s%s\n", c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339), state)
	fmt.Fprintf(w, "serial        %x\nSHA-256       %x\n", c.SerialNumber, sha256.Sum256(c.Raw))
}
