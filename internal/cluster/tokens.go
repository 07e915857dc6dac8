package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
)

const (
	softHSM    = "/usr/lib/softhsm/libsofthsm2.so"
	tokenPIN   = "8501"
	officerPIN = "7410"
)

// makeTokens gives each node a SoftHSM token of its own, and data nodes as many as are configured. The first has new roots, which are cloned to the others. SoftHSM shows a
// process the tokens of one folder, so that all are made in one, and then each is moved to where only its node finds it.
func (c *Cluster) makeTokens(nodes []*Node) error {
	nursery := filepath.Join(c.cfg.Dir, "hsm", "nursery")
	env, officer, err := tokenFolder(nursery)
	if err != nil {
		return err
	}
	var names []string
	owners := map[string]*Node{}
	for _, n := range nodes {
		for i := range c.tokensOf(n) {
			name := tokenName(n, i)
			names, owners[name] = append(names, name), n
		}
	}
	made := map[string]bool{}
	folders := map[string]string{}
	clone := []string{"hsm", "clone", "--from", tokenURI(names[0], nursery), "--so-pin-file", officer}
	for i, name := range names {
		if err := c.run(env, "softhsm2-util", "--init-token", "--free", "--label", name, "--so-pin", officerPIN, "--pin", tokenPIN); err != nil {
			return err
		}
		all, err := os.ReadDir(filepath.Join(nursery, "tokens"))
		if err != nil {
			return err
		}
		for _, d := range all {
			if !made[d.Name()] {
				made[d.Name()], folders[name] = true, d.Name()
			}
		}
		if i > 0 {
			clone = append(clone, "--to", tokenURI(name, nursery))
		}
	}
	if err := c.run(env, c.cfg.Keyplane, "hsm", "init", "--clonable", "--hsm", tokenURI(names[0], nursery)); err != nil {
		return err
	}
	if len(names) > 1 {
		if err := c.run(env, c.cfg.Keyplane, clone...); err != nil {
			return err
		}
	}
	for i, name := range names {
		n := owners[name]
		first := name == tokenName(n, 0)
		if i > 0 && first { // the audit key, which is not cloned
			if err := c.run(env, c.cfg.Keyplane, "hsm", "init", "--hsm", tokenURI(name, nursery)); err != nil {
				return err
			}
		}
		dir := filepath.Join(c.cfg.Dir, "hsm", n.Name)
		own, _, err := tokenFolder(dir)
		if err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(nursery, "tokens", folders[name]), filepath.Join(dir, "tokens", folders[name])); err != nil {
			return err
		}
		uri := tokenURI(name, dir)
		switch {
		case first:
			n.TokenDir, n.URI, n.direct, n.env = filepath.Join(dir, "tokens"), uri, uri, append(n.env, own...)
		case c.cfg.FaultyHSM: // past the module with faults, which initialises the real one: a module is initialised once in a process, and a copy is another module
			if uri, err = throughCopy(uri, dir); err != nil {
				return err
			}
			fallthrough
		default:
			n.others = append(n.others, uri)
			continue
		}
		if c.cfg.FaultyHSM {
			if n.HSM, err = slowhsm.New(dir, n.URI, slowhsm.Settings{}); err != nil {
				return err
			}
			n.URI, n.env = n.HSM.URI(), append(n.env, n.HSM.Env()...)
		}
	}
	return nil
}

func (c *Cluster) tokensOf(n *Node) int {
	if n.Role == "control" {
		return 1
	}
	return c.cfg.Tokens
}

// throughCopy is the URI of a token of the node with that folder, through a copy of SoftHSM.
func throughCopy(uri, dir string) (string, error) {
	b, err := os.ReadFile(softHSM)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, filepath.Base(softHSM))
	return strings.Replace(uri, softHSM, path, 1), os.WriteFile(path, b, 0o700)
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

// tokenName is the label of a node's i-th token.
func tokenName(n *Node, i int) string {
	if i == 0 {
		return "keyplane-" + n.Name
	}
	return fmt.Sprint("keyplane-", n.Name, "-", i+1)
}

func tokenURI(name, dir string) string {
	return "pkcs11:token=" + name + "?module-path=" + softHSM + "&pin-source=file:" + filepath.Join(dir, "pin")
}

func (c *Cluster) run(env []string, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w\n%s", name, args, err, out)
	}
	return nil
}
