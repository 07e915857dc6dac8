package planeca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"time"

	"github.com/keyplane/keyplane/internal/planetls"
)

func hexID(id []byte) string { return hex.EncodeToString(id[:8]) }

// ErrNotHere is that a control plane has no CA key.
var ErrNotHere = errors.New("planeca: no control plane that answers has the CA key in a token")

// A Renewer gets the next certificate, in PEM, for a key; csr is signed by it, in DER.
type Renewer interface {
	Renew(ctx context.Context, key *ecdsa.PublicKey, csr []byte) ([]byte, error)
}

// Own renews certificates of the process that has the CA: a control plane's own.
type Own struct {
	CA     *CA
	Source *planetls.Source
}

func (o Own) Renew(_ context.Context, key *ecdsa.PublicKey, _ []byte) ([]byte, error) {
	leaf := o.Source.Leaf()
	if o.Source.Revoked().Has(leaf) {
		return nil, planetls.ErrRevoked
	}
	return o.CA.Renew(key, leaf)
}

// Remote renews at control planes: the first that answers with a certificate. The client has a planetls config.
type Remote struct {
	Client *http.Client
	URLs   []string // https://host:port
}

func (c Remote) Renew(ctx context.Context, _ *ecdsa.PublicKey, csr []byte) ([]byte, error) {
	var errs []error
	without := 0
	for _, u := range c.URLs {
		cert, err := c.post(ctx, u+RenewPath, csr)
		if err == nil {
			return cert, nil
		}
		if errors.Is(err, ErrNotHere) {
			without++
		}
		errs = append(errs, fmt.Errorf("%s: %w", u, err))
	}
	if without > 0 && without == len(errs) {
		return nil, ErrNotHere
	}
	return nil, errors.Join(errs...)
}

func (c Remote) post(ctx context.Context, url string, csr []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*signTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(csr))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/pkcs10")
	resp, err := c.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, certMax+1))
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode == http.StatusNotImplemented, resp.StatusCode == http.StatusNotFound:
		return nil, ErrNotHere
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("planeca: %s: %q", resp.Status, bytes.TrimSpace(body[:min(len(body), 200)]))
	case len(body) > certMax:
		return nil, errors.New("planeca: the answer is too large")
	}
	return body, nil
}

// Next gets the next certificate of a source's files, checks it, and puts it with its new key in their place; the source then has it.
func Next(ctx context.Context, source *planetls.Source, r Renewer) error {
	files, old := source.Files(), source.Leaf()
	if old == nil {
		return errors.New("planeca: there is no certificate to renew")
	}
	role, id := source.Name()
	if role == "" {
		return errors.New("planeca: the certificate names no role and node: it is of another CA's making")
	}
	key, keyPEM, err := NewKey()
	if err != nil {
		return err
	}
	defer clear(keyPEM)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	cert, err := r.Renew(ctx, &key.PublicKey, csr)
	if err != nil {
		return err
	}
	if err := checkNext(cert, &key.PublicKey, role, id, files.CA); err != nil {
		return fmt.Errorf("planeca: the certificate that came is not taken: %w", err)
	}
	if err := files.Store(cert, keyPEM); err != nil {
		return fmt.Errorf("planeca: %w", err)
	}
	return source.Reload()
}

// checkNext refuses what the process's peers would refuse, before it takes the place of what works.
func checkNext(text []byte, public *ecdsa.PublicKey, role, id, caFile string) error {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return errors.New("it is not one certificate in PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return err
	}
	if !public.Equal(cert.PublicKey) {
		return errors.New("it is for another key")
	}
	if r, i, err := planetls.Name(cert); err != nil || r != role || i != id {
		return fmt.Errorf("it is for %s %q: %v", r, i, err)
	}
	roots, err := readRoots(caFile)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	_, err = cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

const (
	// retryMin is how long Keep waits after a failure, at least; and at least a 30th of the certificate's life.
	retryMin = 10 * time.Second
	// idle is how long Keep sleeps at most: files that an operator replaces meanwhile change the plan.
	idle = time.Minute
)

// lifeOf is when a certificate of ours begins to count, and how long it is valid from then.
func lifeOf(leaf *x509.Certificate) (from time.Time, life time.Duration) {
	from = leaf.NotBefore.Add(skew)
	return from, leaf.NotAfter.Sub(from)
}

// due is when a certificate has to be renewed: after two thirds of its life, and a part of a twentieth more, so that not all members come at once; and after a failure
// not before a 30th of its life is over.
func due(leaf *x509.Certificate, jitter float64, failed time.Time) time.Time {
	from, life := lifeOf(leaf)
	at := from.Add(life*2/3 + time.Duration(jitter*float64(life/20)))
	if again := failed.Add(max(retryMin, life/30)); !failed.IsZero() && again.After(at) {
		return again
	}
	return at
}

// Keep renews a source's certificate when two thirds of its life are over, until ctx ends. What fails is tried again and logged; a process whose certificate has ended
// goes on with the connections it has, and makes no new ones.
func Keep(ctx context.Context, source *planetls.Source, r Renewer, log *slog.Logger) {
	jitter := fraction()
	var failed time.Time // the last failure; zero: none since the last success
	for wait := time.Duration(0); ; {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		wait = idle
		_ = source.Reload() // it logs
		leaf := source.Leaf()
		if leaf == nil {
			continue
		}
		if until := time.Until(due(leaf, jitter, failed)); until > 0 {
			wait = min(idle, until)
			continue
		}
		wait = time.Second
		err := Next(ctx, source, r)
		if failed, jitter = (time.Time{}), fraction(); err == nil || ctx.Err() != nil {
			continue
		}
		failed = time.Now()
		level := slog.LevelWarn
		if _, life := lifeOf(leaf); failed.Add(life / 10).After(leaf.NotAfter) {
			level = slog.LevelError
		}
		log.Log(ctx, level, "the certificate of this node is not renewed; whoever operates it can issue one by keyplane ca issue", "until", leaf.NotAfter, "error", err)
	}
}

// fraction draws from 0 to 1.
func fraction() float64 {
	n, err := rand.Int(rand.Reader, big.NewInt(1<<20))
	if err != nil {
		return 0
	}
	return float64(n.Int64()) / (1 << 20)
}
