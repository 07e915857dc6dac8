package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// BuildKeyplane builds the keyplane command, with build tags, and returns its path. It is called in the module's folder, or one below it.
func BuildKeyplane(dir string, tags ...string) (string, error) {
	path := filepath.Join(dir, "keyplane"+strings.Join(append([]string{""}, tags...), "-"))
	return path, goBuild("", "-trimpath", "-tags", strings.Join(tags, ","), "-o", path, "github.com/keyplane/keyplane/cmd/keyplane")
}

// etcdModule is the etcd server, a program of its own. Its dependencies are not all this module's: it is built in a module of its own, of the same version.
const etcdModule = "go.etcd.io/etcd/server/v3"

// BuildEtcd builds the etcd server from the module proxy, in the version that this module has embedded, and returns its path. What is there already is not built again.
func BuildEtcd(dir string) (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Version}}", etcdModule).Output()
	if err != nil {
		return "", fmt.Errorf("go list: %w", err)
	}
	version := strings.TrimSpace(string(out))
	path, err := filepath.Abs(filepath.Join(dir, "etcd-"+version))
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	tmp, err := os.MkdirTemp("", "keyplane-etcd")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	mod := "module etcdserver\n\ngo 1.26\n\nrequire " + etcdModule + " " + version + "\n"
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(tmp, "go.mod"), []byte(mod), 0o600)); err != nil {
		return "", err
	}
	return path, goBuild(tmp, "-mod=mod", "-trimpath", "-o", path, etcdModule)
}

func goBuild(dir string, args ...string) error {
	cmd := exec.Command("go", append([]string{"build"}, args...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %v: %w\n%s", args, err, out)
	}
	return nil
}
