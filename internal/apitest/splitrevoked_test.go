package apitest

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keyplane/keyplane/internal/node"
	"github.com/keyplane/keyplane/internal/planeca"
	"github.com/keyplane/keyplane/internal/planetls"
)

// TestSplitRevoked: a data node whose certificate is revoked is refused by the control planes, on the connections that it has and by new ones; the others are not.
func TestSplitRevoked(t *testing.T) {
	t.Parallel()
	s := StartSplit(t, 1, 2)
	ctx := t.Context()
	a, b := s.Datas[0].KMS(t), s.Datas[1].KMS(t)
	key := newKey(t, a)
	describe := func(c *kms.Client) error {
		_, err := c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId})
		return err
	}
	// Whoever has the node's certificate and key, on a connection that is kept.
	p := s.Datas[0].cfg.Planes
	source, err := planetls.Open(planetls.Files{Cert: p.Cert, Key: p.Key, CA: p.CA}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	client := func() *http.Client {
		cfg, err := source.Client(planetls.RoleControl, "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport}
	}
	renew := func(c *http.Client) (int, error) {
		resp, err := c.Post(p.Control[0]+planeca.RenewPath, "application/pkcs10", strings.NewReader("x"))
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, err
	}
	thief := client()
	if status, err := renew(thief); status != http.StatusNotImplemented { // this CA's key is in no token
		t.Fatal(status, err)
	}
	if err := describe(a); err != nil {
		t.Fatal(err)
	}

	control := s.Controls[0].cfg
	config := filepath.Join(t.TempDir(), "control.yaml")
	text := "data_dir: " + control.DataDir + "\netcd:\n  endpoints: [" + strings.Join(control.Etcd.Endpoints, ", ") + "]\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, out, errs := run(t, revokeMain, "--config", config, "--cert", p.Cert); status != 0 {
		t.Fatalf("revoke: %s%s", out, errs)
	}
	if status, out, errs := run(t, revokedMain, "--config", config); status != 0 || !strings.Contains(out, planetls.Serial(source.Leaf())+" ") || !strings.Contains(out, "data/data-0") {
		t.Fatalf("show: %d %s%s", status, out, errs)
	}
	if status, _, errs := run(t, revokeMain, "--config", config, "no serial"); status != 1 || !strings.Contains(errs, "hexadecimal") {
		t.Errorf("nonsense: %d %s", status, errs)
	}

	waitFor(t, "the node is refused", func() bool { return describe(a) != nil })
	if status, err := renew(thief); err == nil && status != http.StatusForbidden {
		t.Errorf("on the connection from before it is answered %d", status)
	}
	if status, err := renew(client()); err == nil {
		t.Errorf("on a new connection it is answered %d", status)
	}
	if err := describe(b); err != nil {
		t.Error("the other node:", err)
	}

	// It stays revoked, also to a control plane that starts later.
	s.Controls[0].Close()
	s.Controls[0].Start(t)
	waitFor(t, "the other node is served", func() bool { return describe(b) == nil })
	if status, err := renew(client()); err == nil {
		t.Errorf("after the start it is answered %d", status)
	}
	if describe(a) == nil {
		t.Error("after the start the node is served")
	}
}

func revokeMain(args []string, stdout, stderr *bytes.Buffer) int {
	return node.RevokeMain(args, stdout, stderr)
}

func revokedMain(args []string, stdout, stderr *bytes.Buffer) int {
	return node.RevokedMain(args, stdout, stderr)
}
