package apitest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/hsm/softtoken"
)

// TestSplitBackup: the commands go by the configuration of a control plane, and a backup is restored where the token that signed it is lost.
func TestSplitBackup(t *testing.T) {
	s := StartSplit(t, 1, 1)
	newKey(t, s.Datas[0].KMS(t))
	control := s.Controls[0].cfg
	tmp := t.TempDir()
	config, file := filepath.Join(tmp, "control.yaml"), filepath.Join(tmp, "backup")
	text := "data_dir: " + control.DataDir + "\netcd:\n  endpoints: [" + strings.Join(control.Etcd.Endpoints, ", ") + "]\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, out, errs := run(t, backupMain, "--config", config, "--out", file); status != 0 {
		t.Fatalf("backup: %s%s", out, errs)
	}
	// The store of the cluster is not empty; and nothing is restored to where nobody would look for it.
	if status, out, errs := run(t, restoreMain, "--config", config, file); status != 1 {
		t.Errorf("restored where something is: %s%s", out, errs)
	}
	if _, err := os.Stat(filepath.Join(control.DataDir, "etcd")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a store was made beside that of the cluster:", err)
	}
	_, key := auditCLI(t, "public-key", "--data-dir", control.DataDir, "--region", Region, "--account", Account)
	key, _, _ = strings.Cut(key, "\n")
	s.Datas[0].Close()
	s.Controls[0].Close()

	far := filepath.Join(tmp, "far")
	if err := os.MkdirAll(far, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := softtoken.Clone(softtoken.Config{Dir: filepath.Join(control.DataDir, "softtoken")}, softtoken.Config{Dir: filepath.Join(far, "softtoken")}); err != nil {
		t.Fatal(err)
	}
	_, other := auditCLI(t, "public-key", "--data-dir", far, "--region", Region, "--account", Account)
	other, _, _ = strings.Cut(other, "\n")
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "is not signed by a token given"},
		{[]string{"--key", other}, "its signature"},
		{[]string{"--key", "nonsense"}, "restore"},
		{[]string{"--key", key}, ""},
	} {
		status, out, errs := run(t, restoreMain, append(append([]string{"--data-dir", far}, c.args...), file)...)
		if ok := status == 0; ok != (c.want == "") || !strings.Contains(errs, c.want) {
			t.Fatalf("restore %q: %d %s%s, want %q", c.args, status, out, errs, c.want)
		}
	}
}
