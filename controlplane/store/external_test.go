package store

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc/metadata"
)

func TestSupportedVersion(t *testing.T) {
	for version, want := range map[string]bool{
		"3.5.27": false, "3.5.28": true, "3.5.29": true, "3.5.100": true, "3.5.28-rc.1": false, "3.5.29-rc.1": true,
		"3.6.0": false, "3.6.8": false, "3.6.9": true, "3.6.10": true, "3.6.9+git.abc": true, "3.6.9-": false,
		"3.7.0-rc.0": false, "3.7.0-alpha.0": false, "3.7.0": true, "3.7.3": true, "3.8.0-alpha": false, "3.8.0": true, "3.10.0": true,
		"3.4.40": false, "3.0.0": false, "2.3.8": false, "4.0.0": false, "0.0.0": false,
		"": false, "3": false, "3.7": false, "3.7.0.0": false, "v3.7.0": false, "3.7.x": false, "3.07.0": false, "3.7.-1": false, "3.7.99999": false, " 3.7.0": false,
	} {
		if got := supportedVersion(version); got != want {
			t.Errorf("supportedVersion(%q) = %v", version, got)
		}
	}
}

// An etcd that listens, here on a Unix socket, is used like any cluster.
func TestOpenExternal(t *testing.T) {
	dir, err := os.MkdirTemp("", "kp") // short: the path of a socket has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ec, err := etcdConfig(filepath.Join(dir, "etcd"), quiet)
	if err != nil {
		t.Fatal(err)
	}
	socket := url.URL{Scheme: "unix", Path: filepath.Join(dir, "sock")}
	ec.ListenClientUrls, ec.AdvertiseClientUrls = []url.URL{socket}, []url.URL{socket}
	etcd, err := embed.StartEtcd(ec)
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	<-etcd.Server.ReadyNotify()
	cfg := ExternalConfig{Endpoints: []string{"unix://" + socket.Path}, Logger: quiet, Sealer: xorSealer{}}
	a, err := OpenExternal(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	b, err := OpenExternal(t.Context(), cfg) // two processes may share a cluster
	if err != nil {
		t.Fatal(err)
	}
	k := mustCreate(t, a, "external")
	if got, err := b.Key(t.Context(), k.KeyName); err != nil || got.ID != k.ID {
		t.Errorf("%v %v", got, err)
	}
	if err := b.CreateKey(t.Context(), k, 1000); !errors.Is(err, ErrExists) {
		t.Errorf("got %v", err)
	}
	// A stream that a question for progress began, when that of the watch had ended, ends with the watch.
	streams := func() int {
		var b bytes.Buffer
		if err := pprof.Lookup("goroutine").WriteTo(&b, 2); err != nil {
			t.Fatal(err)
		}
		return strings.Count(b.String(), "created by go.etcd.io/etcd/client/v3.(*watcher).newWatcherGRPCStream")
	}
	before := streams()
	w, end := b.watcher()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "keyplane-follow", "leak")
	watching, stop := context.WithCancel(ctx)
	answers := w.Watch(watching, root)
	stop()
	for range answers {
	}
	if err := w.RequestProgress(ctx); err != nil || streams() <= before {
		t.Error("there is no stream to be left:", err)
	}
	end()
	if n := streams(); n > before {
		t.Errorf("%d streams are left", n-before)
	}
	if err := errors.Join(a.Close(), b.Close()); err != nil {
		t.Error(err)
	}

	// A process that was killed is a member still. The next one with its directory ends that, and nobody else's membership.
	join := func(s *Store) string {
		t.Helper()
		m, err := s.Join(t.Context(), Member{ID: "node", Role: DataMember})
		if err != nil {
			t.Fatal(err)
		}
		return m.Incarnation
	}
	open := func(dir string) *Store {
		t.Helper()
		cfg := cfg
		cfg.Dir = dir
		s, err := OpenExternal(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	own := t.TempDir()
	other, killed := open(t.TempDir()), open(own)
	defer other.Close()
	bystander := join(other)
	join(killed)
	former := join(killed) // it had lost its membership, and joined again
	if err := killed.Close(); err != nil {
		t.Fatal(err)
	}
	next := open(own)
	defer next.Close()
	now := join(next)
	list, _, err := next.Members(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var are []string
	for _, m := range list {
		are = append(are, m.Incarnation)
	}
	if slices.Contains(are, former) || !slices.Contains(are, bystander) || !slices.Contains(are, now) {
		t.Errorf("the members are %v: %s was killed, %s not, %s is new", are, former, bystander, now)
	}
	if again := join(next); again == now {
		t.Error("an incarnation comes back")
	}
	if list, _, err := next.Members(t.Context()); err != nil || !slices.ContainsFunc(list, func(m Member) bool { return m.Incarnation == now }) {
		t.Errorf("%v: who joins again ends no membership but by Leave", err)
	}

	if _, err := OpenExternal(t.Context(), ExternalConfig{}); err == nil {
		t.Error("no endpoints: accepted")
	}
}

// etcd's log reaches slog at the levels that matter, and what we chose ourselves is not a warning.
func TestZapToSlog(t *testing.T) {
	var out bytes.Buffer
	z := zapToSlog(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo}))).With(zap.String("with", "w"))
	z.Info("info")
	z.Warn("warning", zap.Int("n", 7), zap.Strings("list", []string{"a", "b"}))
	z.Error("error", zap.Error(errors.New("cause")))
	z.Warn("Running http and grpc server on single port. This is not recommended for production.")
	if err := z.Sync(); err != nil {
		t.Error(err)
	}
	log := out.String()
	for _, want := range []string{"level=WARN msg=warning component=etcd with=w n=7", "level=ERROR msg=error", "error=cause"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in %s", want, log)
		}
	}
	if lines := strings.Count(log, "\n"); lines != 2 {
		t.Errorf("%d lines: %s", lines, log)
	}
	// A first start, a later one and their ends say nothing at all.
	out.Reset()
	dir := t.TempDir()
	for range 2 {
		s, err := OpenEmbedded(t.Context(), EmbeddedConfig{Dir: dir, Logger: slog.New(slog.NewTextHandler(&out, nil))})
		if err != nil {
			t.Fatal(err)
		}
		mustCreate(t, s, "r")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if out.Len() > 0 {
		t.Errorf("etcd said: %s", out.String())
	}
}
