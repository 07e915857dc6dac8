package planes

import (
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/planetls"
	"github.com/keyplane/keyplane/internal/planetls/planetlstest"
)

// A stream ends when its certificate does, and soon after that was revoked; a request on the same connection is refused then.
func TestStreamsEndWithCertificates(t *testing.T) {
	w := newWorld(t)
	c1 := w.control("c1", "")
	open := func(change func(*x509.Certificate)) (c *http.Client, leaf *x509.Certificate, ended <-chan error) {
		files := w.ca.Files(t, planetls.RoleData, "d1")
		cert, key := w.ca.Issue(t, planetls.RoleData, "d1", change)
		planetlstest.Write(t, files.Cert, cert)
		planetlstest.Write(t, files.Key, key)
		source, err := planetls.Open(files, quiet)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := source.Client(planetls.RoleControl, "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		protocols := new(http.Protocols)
		protocols.SetHTTP2(true)
		transport := &http.Transport{TLSClientConfig: cfg, Protocols: protocols}
		t.Cleanup(transport.CloseIdleConnections)
		c = &http.Client{Transport: transport}
		out, in := io.Pipe()
		t.Cleanup(func() { in.Close() })
		const incarnation = "of data d1"
		go func() { _, _ = in.Write(append([]byte{byte(len(incarnation))}, incarnation...)) }()
		resp, err := c.Post("https://"+c1.addr+pathApplied, "application/octet-stream", out)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
		done := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			done <- err
		}()
		return c, source.Leaf(), done
	}
	wait := func(what string, ended <-chan error) {
		t.Helper()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Fatalf("the stream of a certificate that %s goes on", what)
		}
	}

	c, leaf, ended := open(nil)
	_, _, others := open(nil)
	until := time.Now().Add(3 * time.Second)
	_, expiring, expired := open(func(c *x509.Certificate) { c.NotAfter = until })
	w.revoked.Add(planetls.Serial(leaf))
	wait("was revoked", ended)
	if resp, err := c.Post("https://"+c1.addr+pathUses, "application/octet-stream", http.NoBody); err == nil {
		_ = resp.Body.Close()
		if why := resp.Header.Get(headerRefused); why != "the certificate was revoked" {
			t.Errorf("a request on the connection: %s, %q", resp.Status, why)
		}
	}
	wait("has expired", expired)
	if time.Now().Before(expiring.NotAfter) {
		t.Error("the stream ended before its certificate")
	}
	select {
	case err := <-others:
		t.Error("the stream of another ended:", err)
	default:
	}
}

// The connections to a control plane whose certificate is revoked are cut.
func TestRevokedControlPlane(t *testing.T) {
	w := newWorld(t)
	c1, c2 := w.control("c1", ""), w.control("c2", "")
	c := w.client(planetls.RoleData, "d1", c1.addr, c2.addr)
	eventually(t, "both answer", func() bool { return c.Up() == 2 })
	w.revoked.Add(planetls.Serial(c1.leaf))
	eventually(t, "one is left", func() bool { return c.Up() == 1 && c.targets[1].up.Load() })
	for range 20 {
		if _, body, err := c.Request(t.Context(), testRequest(), true); err != nil || string(body[:2]) != "c2" {
			t.Fatal(string(body), err)
		}
	}
	w.revoked.Add(planetls.Serial(c2.leaf))
	eventually(t, "none is left", func() bool { return c.Up() == 0 })
	if _, _, err := c.Request(t.Context(), testRequest(), true); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
}
