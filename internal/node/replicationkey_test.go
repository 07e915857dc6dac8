package node

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// While a server runs, what the command prints is accepted as the public keys of peers; it prints the Regions asked for and makes nothing.
func TestReplicationPublicKeyMain(t *testing.T) {
	cfg := testConfig(t)
	cfg.Regions = []string{cfg.Region, "us-west-2"}
	run := func(status int, want string, args ...string) string {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if got := ReplicationPublicKeyMain(args, &stdout, &stderr); got != status || !strings.Contains(stdout.String()+stderr.String(), want) {
			t.Errorf("%v: status %d, want %d and %q\n%s%s", args, got, status, want, &stdout, &stderr)
		}
		return stdout.String()
	}
	run(1, "keyplane serve writes it at a start with replication.listen", "--data-dir", cfg.DataDir)
	if _, err := os.Stat(cfg.DataDir); err == nil {
		t.Error("the data directory was made")
	}
	n, err := Start(t.Context(), cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	all := run(0, "", "--data-dir", cfg.DataDir)
	lines := strings.SplitAfter(all, "\n")
	if len(lines) != 3 || lines[2] != "" {
		t.Fatalf("it prints %q", all)
	}
	other := Config{Region: "eu-west-3"} // of another process, with these two for its peers
	for i, name := range cfg.Regions {
		region, key, _ := strings.Cut(strings.TrimSpace(lines[i]), " ")
		if region != name {
			t.Errorf("line %d is of %q", i, region)
		}
		other.Replication.Peers = append(other.Replication.Peers, ReplicationPeer{Region: region, URL: "http://peer.example", PublicKey: key})
		if got := run(0, "", "--region", name, "--data-dir", cfg.DataDir); got != lines[i] {
			t.Errorf("--region %s prints %q", name, got)
		}
	}
	if lines[0][len(cfg.Region):] == lines[1][len("us-west-2"):] {
		t.Error("two Regions have one key")
	}
	other.Defaults()
	if err := other.Validate(); err != nil {
		t.Error(err)
	}
	run(0, lines[1]+lines[0], "--region", "us-west-2", "--region", cfg.Region, "--data-dir", cfg.DataDir)
	run(1, `has no key of Region "eu-north-1"`, "--region", "eu-north-1", "--data-dir", cfg.DataDir)

	// A configuration whose peers are not filled in yet.
	file := filepath.Join(t.TempDir(), "keyplane.yaml")
	if err := os.WriteFile(file, []byte("data_dir: "+cfg.DataDir+"\nreplication: {peers: [{region: us-west-1}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := run(0, "", "--config", file); got != all {
		t.Errorf("with a file it prints %q", got)
	}
	run(1, "/nowhere", "--config", file, "--data-dir", "/nowhere")
	run(1, "no such file", "--config", "nowhere.yaml")
	run(2, "unexpected argument", "x")
	run(2, "not defined", "--x")
	run(0, "-data-dir", "--help")

	path := filepath.Join(cfg.DataDir, ReplicationKeysFile)
	for _, damaged := range []string{all[:len(all)-10], "us-east-1\n", "\n", strings.Replace(all, " ", "  ", 1), strings.ToUpper(all)} {
		if err := os.WriteFile(path, []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		run(1, "is damaged", "--data-dir", cfg.DataDir)
	}
}
