package node

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStatsSocket(t *testing.T) {
	cfg := testConfig(t)
	cfg.StatsSocket = filepath.Join(t.TempDir(), "stats")
	// What a process that was killed left there is replaced.
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: cfg.StatsSocket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()

	n, err := Start(t.Context(), cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if info, err := os.Lstat(cfg.StatsSocket); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(cfg.StatsSocket), ".s*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", cfg.StatsSocket)
	}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://keyplane/stats")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var s Stats
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		t.Fatal(err)
	}
	if s.Go.Mallocs == 0 || s.Go.Goroutines == 0 || s.Go.Threads == 0 || s.Batch.Rounds == 0 || len(s.HSM.Shards) != 2 {
		t.Errorf("stats %+v", s)
	}

	n.Close()
	if _, err := os.Lstat(cfg.StatsSocket); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestStatsSocketRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file:                            "is not a socket",
		filepath.Join(dir, "no", "dir"): "no such file",
		filepath.Join(dir, strings.Repeat("d", 120), "s"): "no such file",
	} {
		if ln, err := listenPrivate(path); err == nil {
			ln.Close()
			t.Errorf("%s was accepted", path)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
	taken := filepath.Join(dir, "taken")
	first, err := listenPrivate(taken)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if second, err := listenPrivate(taken); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a socket in use was taken: %v, %v", second, err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file in the way was touched: %q, %v", b, err)
	}
}
