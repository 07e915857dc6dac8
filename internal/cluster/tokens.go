package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
)

const (
	softHSM    = "/usr/lib/softhsm/libsofthsm2.so"
	tokenPIN   = "8501"
	officerPIN = "7410"
)

// makeTokens gives each node a SoftHSM token of its own. The first has new roots, which are cloned to the others. SoftHSM shows a process the tokens of one folder, so
// that all are made in one, and then each is moved to where only its node finds it.
func (c *Cluster) makeTokens(nodes []*Node) error {
	nursery := filepath.Join(c.cfg.Dir, "hsm", "nursery")
	env, officer, err := tokenFolder(nursery)
	if err != nil {
		return err
	}
	made := map[string]bool{}
	folders := make([]string, len(nodes))
	clone := []string{"hsm", "clone", "--from", tokenURI(nodes[0], nursery), "--so-pin-file", officer}
	for i, n := range nodes {
		if err := c.run(env, "softhsm2-util", "--init-token", "--free", "--label", "keyplane-"+n.Name, "--so-pin", officerPIN, "--pin", tokenPIN); err != nil {
			return err
		}
		all, err := os.ReadDir(filepath.Join(nursery, "tokens"))
		if err != nil {
			return err
		}
		for _, d := range all {
			if !made[d.Name()] {
				made[d.Name()], folders[i] = true, d.Name()
			}
		}
		if i > 0 {
			clone = append(clone, "--to", tokenURI(n, nursery))
		}
	}
	if err := c.run(env, c.cfg.Keyplane, "hsm", "init", "--clonable", "--hsm", tokenURI(nodes[0], nursery)); err != nil {
		return err
	}
	if len(nodes) > 1 {
		if err := c.run(env, c.cfg.Keyplane, clone...); err != nil {
			return err
		}
	}
	for i, n := range nodes {
		if i > 0 { // the audit key, which is not cloned
			if err := c.run(env, c.cfg.Keyplane, "hsm", "init", "--hsm", tokenURI(n, nursery)); err != nil {
				return err
			}
		}
		dir := filepath.Join(c.cfg.Dir, "hsm", n.Name)
		own, _, err := tokenFolder(dir)
		if err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(nursery, "tokens", folders[i]), filepath.Join(dir, "tokens", folders[i])); err != nil {
			return err
		}
		n.TokenDir, n.URI, n.env = filepath.Join(dir, "tokens"), tokenURI(n, dir), append(n.env, own...)
		n.direct = n.URI
		if c.cfg.FaultyHSM {
			if n.HSM, err = slowhsm.New(dir, n.URI, slowhsm.Settings{}); err != nil {
				return err
			}
			n.URI, n.env = n.HSM.URI(), append(n.env, n.HSM.Env()...)
		}
	}
	return nil
}

// tokenFolder makes a folder for tokens, and returns the environment with which SoftHSM finds them and the file with the Security Officer's PIN.
func tokenFolder(dir string) (env []string, officer string, err error) {
	conf, officer := filepath.Join(dir, "softhsm2.conf"), filepath.Join(dir, "so-pin")
	return []string{"SOFTHSM2_CONF=" + conf}, officer, errors.Join(
		os.MkdirAll(filepath.Join(dir, "tokens"), 0o700),
		os.WriteFile(conf, []byte("directories.tokendir = "+filepath.Join(dir, "tokens")+"\nlog.level = ERROR\n"), 0o600),
		os.WriteFile(filepath.Join(dir, "pin"), []byte(tokenPIN), 0o600),
		os.WriteFile(officer, []byte(officerPIN), 0o600),
	)
}

func tokenURI(n *Node, dir string) string {
	return "pkcs11:token=keyplane-" + n.Name + "?module-path=" + softHSM + "&pin-source=file:" + filepath.Join(dir, "pin")
}

func (c *Cluster) run(env []string, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w\n%s", name, args, err, out)
	}
	return nil
}
