package node

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// The command works on the data directory of a server that is not running, and on none that it would have to make; what it does to keys is package controlplane's.
func TestReplicationForgetMain(t *testing.T) {
	cfg := testConfig(t)
	cfg.Regions = []string{cfg.Region, "us-west-2"}
	run := func(status int, want string, args ...string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if got := ReplicationForgetMain(append([]string{"--data-dir", cfg.DataDir}, args...), &stdout, &stderr); got != status || !strings.Contains(stderr.String(), want) || stdout.Len() > 0 {
			t.Errorf("%v: status %d, want %d and %q\n%s%s", args, got, status, want, &stdout, &stderr)
		}
	}
	run(1, "there is no data of keyplane serve in "+cfg.DataDir, "eu-west-3")
	if _, err := os.Stat(cfg.DataDir); err == nil {
		t.Error("the data directory was made")
	}
	n, err := Start(t.Context(), cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	run(1, "in use", "eu-west-3")
	n.Close()
	run(0, "0 keys had to do with Region eu-west-3", "eu-west-3")
	run(1, cfg.Region+" is a Region of this server", cfg.Region)
	run(2, "which Region is lost?")
	run(2, "which Region is lost?", "Nowhere")
	if n, err = Start(t.Context(), cfg, quiet); err != nil {
		t.Fatal("the server does not start afterwards:", err)
	}
	n.Close()
}
