package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/softtoken"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

var quiet = slog.New(slog.DiscardHandler)

// Two soft tokens for all tests: making one is dear on purpose.
var tokenA, tokenB *softtoken.Token

func TestMain(m *testing.M) { hsmtest.Main(withTokens{m}) }

// withTokens is a hsmtest.Runner.
type withTokens struct{ m *testing.M }

func (w withTokens) Run() int {
	dir, err := os.MkdirTemp("", "keyplane-node-")
	if err != nil {
		log.Fatal(err)
	}
	open := func(name string) *softtoken.Token {
		t, err := softtoken.Open(softtoken.Config{Dir: filepath.Join(dir, name), Create: true})
		if err != nil {
			log.Fatal(err)
		}
		return t
	}
	tokenA, tokenB = open("a"), open("b")
	code := w.m.Run()
	if err := errors.Join(tokenA.Close(), tokenB.Close(), os.RemoveAll(dir)); err != nil {
		log.Print(err)
		code = 1
	}
	return code
}

// sealerOn is a sealer whose jobs run on tokens.
func sealerOn(t testing.TB, tokens ...hsm.Token) *sealer {
	t.Helper()
	shards, err := hsm.NewShards(hsm.ShardsConfig{Tokens: tokens, SessionsPerToken: 1, RoundMax: 8})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(shards.Close)
	batcher, err := batch.New(batch.Config{Shards: shards.Len(), RoundMax: 8, QueueMax: 8}, shards.Run)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(batcher.Close)
	s := &sealer{}
	s.ready((&hsm.Dispatch{Shards: shards, Do: batcher.Do, QueueTimeMax: 5 * time.Second}).Run, shards.Primary())
	return s
}

func testConfig(t *testing.T) Config {
	t.Helper()
	t.Setenv(EnvAdminID, "AKIAIOSFODNN7EXAMPLE")
	t.Setenv(EnvAdminSecret, "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
	cfg := Config{Listen: "127.0.0.1:0", DataDir: filepath.Join(t.TempDir(), "data"), Region: "us-east-1", KeyCacheBytes: 1 << 20, Audit: AuditConfig{Timeout: 10 * time.Second, Durability: "write"}}
	cfg.Defaults()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func get(t *testing.T, addr, path string) (int, string) {
	t.Helper()
	resp, err := http.Get("http://" + addr + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestStart(t *testing.T) {
	cfg := testConfig(t)
	n, err := Start(t.Context(), cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if status, body := get(t, n.Addr(), "/healthz"); status != 200 || body != "ok\n" {
		t.Errorf("/healthz: %d %q", status, body)
	}
	if status, body := get(t, n.Addr(), "/readyz"); status != 200 || body != "ready\n" {
		t.Errorf("/readyz: %d %q", status, body)
	}
	if infos := n.Tokens(); len(infos) != 1 || !infos[0].Software {
		t.Errorf("tokens %+v", infos)
	}
	if info, err := os.Stat(n.CredentialsPath()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("credentials: %v, %v", info, err)
	}
	if info, err := os.Stat(cfg.DataDir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("data directory: %v, %v", info, err)
	}
	if s := n.Stats(); s.Panics != 0 || s.Batch.Jobs == 0 {
		t.Errorf("stats %+v", s)
	}
	// What is not ready says why.
	n.phase("starting: a test")
	if status, body := get(t, n.Addr(), "/readyz"); status != 503 || body != "starting: a test\n" {
		t.Errorf("/readyz: %d %q", status, body)
	}
	n.state.Store(nil)

	// A second process on the same directory is refused, and the first goes on.
	second, err := Start(t.Context(), cfg, quiet)
	if err == nil {
		second.Close()
		t.Fatal("two nodes have one data directory")
	}
	if !strings.Contains(err.Error(), cfg.DataDir) {
		t.Errorf("the refusal does not name the directory: %v", err)
	}
	if status, _ := get(t, n.Addr(), "/readyz"); status != 200 {
		t.Errorf("after a second start: %d", status)
	}

	n.Close()
	n.Close()
	if err := n.Wait(); err != nil {
		t.Error("Wait:", err)
	}
	if c, err := net.Dial("tcp", n.Addr()); err == nil {
		c.Close()
		t.Error("it still listens")
	}
	// The directory is free again, and the access key is there without the environment.
	t.Setenv(EnvAdminID, "")
	t.Setenv(EnvAdminSecret, "")
	n, err = Start(t.Context(), cfg, quiet)
	if err != nil {
		t.Fatal("after Close:", err)
	}
	n.Close()
}

// A data directory is made private; one that was there and that others can write is warned of.
func TestDataDirMode(t *testing.T) {
	cfg := testConfig(t)
	for _, mode := range []os.FileMode{0, 0o755, 0o770} {
		if mode != 0 {
			if err := os.Chmod(cfg.DataDir, mode); err != nil {
				t.Fatal(err)
			}
		}
		var log bytes.Buffer
		n, err := Start(t.Context(), cfg, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn})))
		if err != nil {
			t.Fatal(err)
		}
		n.Close()
		if warned := strings.Contains(log.String(), "others can write the data directory"); warned != (mode&0o022 != 0) {
			t.Errorf("mode %o: warned %v: %s", mode, warned, &log)
		}
		if info, err := os.Stat(cfg.DataDir); mode == 0 && (err != nil || info.Mode().Perm()&0o077 != 0) {
			t.Errorf("made with mode %v, %v", info.Mode(), err)
		}
	}
}

// A start that fails leaves nothing behind that would stop the next one.
func TestStartFails(t *testing.T) {
	cfg := testConfig(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	bad := cfg
	bad.Listen = taken.Addr().String()
	if n, err := Start(t.Context(), bad, quiet); err == nil {
		n.Close()
		t.Error("an address that is taken")
	}
	bad = cfg
	bad.DataDir = filepath.Join(os.DevNull, "x")
	if n, err := Start(t.Context(), bad, quiet); err == nil {
		n.Close()
		t.Error("a data directory that cannot be")
	}
	bad = cfg
	bad.HSM = []string{"pkcs11:token=none?module-path=/nowhere/libnone.so"}
	if n, err := Start(t.Context(), bad, quiet); err == nil {
		n.Close()
		t.Error("a module that is not there")
	}
	t.Setenv(EnvAdminSecret, "")
	if n, err := Start(t.Context(), cfg, quiet); err == nil {
		n.Close()
		t.Error("half of the administrator's credentials")
	}
	t.Setenv(EnvAdminSecret, "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
	n, err := Start(t.Context(), cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	n.Close()
}

// A fault of the HSM is the same exception on CreateKey as on the data plane's operations.
func TestRandomFaults(t *testing.T) {
	for want, err := range map[kmsapi.Code]error{
		kmsapi.Throttling: batch.ErrDeadline, kmsapi.ServiceUnavailable: batch.ErrClosed, kmsapi.DependencyTimeout: hsm.ErrTimeout,
		kmsapi.KeyUnavailable: hsm.ErrUnavailable, kmsapi.KMSInternal: hsm.ErrWrong,
	} {
		got := random(func(*hsm.Job, time.Time) error { return err })(make([]byte, 8))
		if !errors.Is(got, err) || kmsapi.AsError(got).Code != want {
			t.Errorf("%v: %v, want %s", err, got, want)
		}
	}
	b := make([]byte, 8)
	if err := random(func(j *hsm.Job, _ time.Time) error { j.Random[7] = 1; return nil })(b); err != nil || b[7] != 1 {
		t.Errorf("%v, %v", b, err)
	}
}

func TestNewLogger(t *testing.T) {
	for level, want := range map[string]slog.Level{"debug": slog.LevelDebug, "error": slog.LevelError, "nonsense": slog.LevelInfo} {
		l := NewLogger(level)
		if !l.Enabled(context.Background(), want) || l.Enabled(context.Background(), want-1) {
			t.Errorf("%s does not log from %v on", level, want)
		}
	}
}

// TestPins: a data directory stays with the account, Region and token of its first start. What is refused changes and makes nothing.
func TestPins(t *testing.T) {
	cfg := testConfig(t)
	n, err := Start(t.Context(), cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	n.Close()
	refused := func(what, want string, change func(*Config)) {
		t.Helper()
		other := cfg
		change(&other)
		n, err := Start(t.Context(), other, quiet)
		if err == nil {
			n.Close()
			t.Errorf("%s is accepted", what)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("another account", "belongs to account "+cfg.Account+", not 222233334444", func(c *Config) { c.Account = "222233334444" })
	refused("another Region", "start it with --region us-east-1, not eu-west-1", func(c *Config) { c.Region = "eu-west-1" })
	// As if the first start had used an HSM: no soft token is made in its place.
	soft := filepath.Join(cfg.DataDir, "softtoken")
	if err := os.Rename(soft, soft+".away"); err != nil {
		t.Fatal(err)
	}
	refused("no --hsm", "give its URI with --hsm", func(*Config) {})
	if _, err := os.Stat(soft); !os.IsNotExist(err) {
		t.Error("a soft token was made:", err)
	}
	// Another soft token is not the one either.
	if err := os.Mkdir(soft, 0o700); err != nil {
		t.Fatal(err)
	}
	other, err := softtoken.Open(softtoken.Config{Dir: soft, Create: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	refused("another token", "no token given holds it", func(*Config) {})
	if err := errors.Join(os.RemoveAll(soft), os.Rename(soft+".away", soft)); err != nil {
		t.Fatal(err)
	}
	if n, err = Start(t.Context(), cfg, quiet); err != nil {
		t.Fatal("the first configuration:", err)
	}
	n.Close()
}
