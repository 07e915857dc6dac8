package main

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"

	"github.com/keyplane/keyplane/internal/node"
	"github.com/keyplane/keyplane/internal/xks"
)

const xksProxyUsage = `usage: keyplane xks-proxy --config FILE [FLAG ...]
       keyplane xks-proxy credential --secret-file FILE [--console-file FILE [--path PREFIX]]

keyplane xks-proxy  serves the external key stores in the configuration's xks_proxy to AWS KMS (docs/xks-proxy.md). The KMS API, with which their keys
            are made, listens on a loopback address only; else this is keyplane serve, and takes its flags. SIGHUP: read prefixes, credentials and
            keys again.

credential  make what AWS KMS signs its requests with: write the secret to FILE, which the configuration names as secret_file, and print the access key
            ID. --console-file has both, as the AWS KMS console reads them from a file.
`

// xksProxyCommand is `keyplane xks-proxy`.
func xksProxyCommand(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "credential" {
		return xksCredential(args[1:], stdout, stderr)
	}
	if len(args) > 0 && args[0] == "help" {
		fmt.Fprint(stdout, xksProxyUsage)
		return 0
	}
	s := wholeServer("xks-proxy")
	s.validate = func(cfg *node.Config) error {
		if err := cfg.Validate(); err != nil {
			return err
		}
		if cfg.XKSProxy.Listen == "" {
			return errors.New("xks_proxy.listen: missing in the configuration")
		}
		host, _, err := net.SplitHostPort(cfg.Listen)
		if err != nil {
			return err
		}
		if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
			return fmt.Errorf("listen: %q is not a loopback address; keyplane serve offers the KMS API to others too", cfg.Listen)
		}
		return nil
	}
	return s.main(args, stdout, stderr)
}

// xksCredential is `keyplane xks-proxy credential`.
func xksCredential(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("keyplane xks-proxy credential", flag.ContinueOnError)
	fs.SetOutput(stderr)
	secretFile := fs.String("secret-file", "", "`FILE` that is made, with mode 0600, for the secret")
	consoleFile := fs.String("console-file", "", "`FILE` that is made, with mode 0600, for the AWS KMS console")
	path := fs.String("path", "", "`PREFIX` of the external key store, as path in the configuration")
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	var err error
	switch {
	case fs.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case *secretFile == "":
		err = errors.New("--secret-file is missing")
	case !xks.ValidPath(*path + xks.BasePath):
		err = fmt.Errorf("--path: %q is not empty, and not a slash before letters, digits, slashes, - and _", *path)
	}
	if err != nil {
		fmt.Fprintln(stderr, "keyplane xks-proxy credential:", err)
		return 2
	}
	id, err := makeXKSCredential(*secretFile, *consoleFile, *path)
	if err != nil {
		fmt.Fprintln(stderr, "keyplane xks-proxy credential:", err)
		return 1
	}
	fmt.Fprintln(stdout, id)
	return 0
}

// makeXKSCredential makes the files, which must not exist, and returns the access key ID: 26 digits of base32, 130 random bits. The secret has 256.
func makeXKSCredential(secretFile, consoleFile, path string) (id string, err error) {
	var random [17]byte
	var key [32]byte
	_, _ = rand.Read(random[:])
	_, _ = rand.Read(key[:])
	defer clear(key[:])
	id = base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(random[:])[:26]
	secret := base64.StdEncoding.AppendEncode(nil, key[:])
	defer clear(secret)
	if err := writeNew(secretFile, secret); err != nil {
		return "", err
	}
	if consoleFile == "" {
		return id, nil
	}
	type credential struct{ AccessKeyId, RawSecretAccessKey string }
	text, err := json.MarshalIndent(struct {
		XksProxyUriPath                  string
		XksProxyAuthenticationCredential credential
	}{path + xks.BasePath, credential{id, string(secret)}}, "", "  ")
	if err != nil {
		return "", err
	}
	defer clear(text)
	if err := writeNew(consoleFile, text); err != nil {
		return "", errors.Join(err, os.Remove(secretFile)) // nobody has been told the ID that it belongs to
	}
	return id, nil
}

// writeNew writes a line to a file of its own that only this user can read. Where it returns an error, it has left no file.
func writeNew(path string, line []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
