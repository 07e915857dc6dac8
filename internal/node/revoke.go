package node

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/planetls"
)

// loadRevoked reads which certificates are revoked.
func (n *Node) loadRevoked(ctx context.Context) error {
	return n.store.Revocations(ctx, func(r store.Revoked) error {
		n.revoke(r.Serial)
		return nil
	}, func(err error) { n.log.Error("a record of a revoked certificate is damaged", "error", err) })
}

// revoke has this process refuse a certificate from now on.
func (n *Node) revoke(serial string) {
	c := n.split
	if !c.revoked.Add(serial) {
		return
	}
	if leaf := c.source.Leaf(); leaf != nil && planetls.Serial(leaf) == serial {
		n.log.Error("the certificate of this node is revoked: no other process takes it; stop the node, or give it another by keyplane ca issue", "serial", serial)
		return
	}
	n.log.Warn("a certificate is revoked", "serial", serial)
}

// RevokeMain is keyplane ca revoke, and returns the exit status.
func RevokeMain(args []string, stdout, stderr io.Writer) int {
	c := newCommand("keyplane ca revoke", "--config FILE [--cert FILE | SERIAL]", stdout, stderr).store()
	file := c.fs.String("cert", "", "PEM `FILE` of the certificate, instead of its serial number")
	return c.run(args, -1, func(ctx context.Context) error {
		if (*file == "") != (c.fs.NArg() == 1) || c.fs.NArg() > 1 {
			return errArguments
		}
		r := store.Revoked{Serial: strings.TrimLeft(strings.ToLower(strings.ReplaceAll(c.fs.Arg(0), ":", "")), "0"), At: time.Now()}
		if *file != "" {
			cert, err := certIn(*file)
			if err != nil {
				return err
			}
			r.Serial = planetls.Serial(cert)
			if role, id, err := planetls.Name(cert); err == nil {
				r.Of = role + "/" + id
			}
		}
		o, err := c.openCluster(ctx)
		if err != nil {
			return err
		}
		defer o.Close()
		if err := o.Store.Revoke(ctx, r); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "revoked       %s\n", r.Serial)
		return nil
	})
}

// RevokedMain prints the certificates that are revoked: keyplane ca show --config FILE. It returns the exit status.
func RevokedMain(args []string, stdout, stderr io.Writer) int {
	c := newCommand("keyplane ca show", "--config FILE", stdout, stderr).store()
	return c.run(args, 0, func(ctx context.Context) error {
		o, err := c.openCluster(ctx)
		if err != nil {
			return err
		}
		defer o.Close()
		return o.Store.Revocations(ctx, func(r store.Revoked) error {
			at := "at a time that is not known"
			if !r.At.IsZero() {
				at = r.At.UTC().Format(time.RFC3339)
			}
			_, err := fmt.Fprintf(stdout, "revoked       %s %s %s\n", r.Serial, at, r.Of)
			return err
		}, func(err error) { fmt.Fprintln(stderr, err) })
	})
}

// openCluster opens the store of a cluster: the others have no certificates to revoke.
func (c *command) openCluster(ctx context.Context) (*Offline, error) {
	cfg, err := c.config()
	if err != nil {
		return nil, err
	}
	if len(cfg.Etcd.Endpoints) == 0 {
		return nil, errors.New("which cluster? --config FILE of a control plane, or --etcd URL,…")
	}
	return c.open(ctx, &cfg)
}

// certIn is the first certificate in a file.
func certIn(file string) (*x509.Certificate, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s: no certificate in PEM", file)
	}
	return x509.ParseCertificate(block.Bytes)
}
