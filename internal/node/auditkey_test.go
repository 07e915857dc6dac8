package node

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/controlplane/store/storetest"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/audit/auditkey"
)

// keyless is a token without an audit key.
type keyless struct{ hsm.Token }

func (keyless) OpenAuditSession() (hsm.AuditSession, error) { return nil, hsm.ErrNoAuditKey }

// The first start takes the first token's audit key; later ones find that key wherever it is in the list, and take no other.
func TestOpenAuditKey(t *testing.T) {
	st, err := store.OpenEmbedded(t.Context(), store.EmbeddedConfig{Dir: t.TempDir(), Logger: quiet, Sealer: storetest.NewSealer()})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	cfg := Config{DataDir: "data"}
	cfg.Defaults()
	cfg.Region = "eu-west-1"
	open := func(tokens ...hsm.Token) (*Node, error) {
		n := &Node{cfg: cfg, log: quiet, store: st, tokens: tokens}
		err := n.openAuditKey(t.Context())
		t.Cleanup(func() {
			for _, f := range n.undo {
				f()
			}
		})
		return n, err
	}
	if _, err := open(keyless{tokenA}); !errors.Is(err, hsm.ErrNoAuditKey) || !strings.Contains(err.Error(), "keyplane hsm init") {
		t.Errorf("no token can sign: %v", err)
	}
	first, err := open(keyless{tokenB}, tokenA)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := st.Pinned(t.Context(), "audit-key")
	name, public, perr := auditkey.ParseVerifierKey(kept)
	if err != nil || perr != nil || name != "keyplane/eu-west-1/111122223333" || !public.Equal(first.audit.Public()) {
		t.Errorf("kept %q: %v, %v", kept, err, perr)
	}
	later, err := open(tokenB, tokenA)
	if err != nil || !later.audit.Public().Equal(public) {
		t.Errorf("another key is taken: %v", err)
	}
	if _, err := open(tokenB); err == nil || !strings.Contains(err.Error(), kept+", and no token given holds it") {
		t.Errorf("without the token: %v", err)
	}
}

func TestPublicKeyMain(t *testing.T) {
	cfg := testConfig(t)
	run := func(status int, want string, args ...string) string {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if got := PublicKeyMain(args, &stdout, &stderr); got != status || !strings.Contains(stdout.String()+stderr.String(), want) {
			t.Errorf("%v: status %d, want %d and %q\n%s%s", args, got, status, want, &stdout, &stderr)
		}
		return stdout.String()
	}
	run(1, "no such file", "--data-dir", cfg.DataDir)
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "softtoken")); err == nil {
		t.Error("a soft token was made")
	}
	n, err := Start(t.Context(), cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	// While the server runs, it is the server's key.
	text := run(0, "-----BEGIN PUBLIC KEY-----", "--data-dir", cfg.DataDir, "--region", cfg.Region, "--account", cfg.Account)
	line, block, _ := strings.Cut(text, "\n")
	name, public, err := auditkey.ParseVerifierKey(line)
	if err != nil || name != AuditKeyName(&cfg) || !public.Equal(n.audit.Public()) {
		t.Errorf("%s: %v", line, err)
	}
	if p, err := auditkey.PEM(public); err != nil || string(p) != block {
		t.Errorf("PEM:\n%s%v", block, err)
	}
	run(2, "unexpected argument", "x")
	run(2, "not defined", "--x")
	run(0, "-data-dir", "--help")
	run(1, "does not have 12 digits", "--account", "1")
	run(1, "no such file", "--config", "nowhere.yaml")
}
