package softtoken

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/secret"
)

// ErrOtherRoot is a target that holds another root.
var ErrOtherRoot = errors.New("softtoken: the token holds another root already: it is left as it is")

// Clone makes a token with the roots of another, under a PIN of its own (made where to.PINFile is empty), with an audit key of its own and no CA key. A target that has the roots is left as it is
// (copied is false), and one with others is refused. A soft token's keys are in this process while it works, as whenever it is open.
func Clone(from, to Config) (root hsm.RootID, copied bool, err error) {
	return cloneAt(from, to, iterations)
}

func cloneAt(from, to Config, cost int) (root hsm.RootID, copied bool, err error) {
	keys, err := keysOf(from, cost)
	if err != nil {
		return root, false, fmt.Errorf("softtoken: the source: %w", err)
	}
	defer secret.Wipe(keys)
	label := to.Label
	if label == "" {
		label = "keyplane soft token"
	}
	if len(label) > labelMax {
		return root, false, fmt.Errorf("softtoken: label longer than %d bytes", labelMax)
	}
	had := true
	if _, err := os.Lstat(filepath.Join(to.Dir, fileName)); errors.Is(err, os.ErrNotExist) {
		err := create(to.Dir, to.PINFile, label, keys[:2*rootLen], cost)
		if err != nil && !errors.Is(err, os.ErrExist) { // another process may have been faster: what it made is compared
			return root, false, fmt.Errorf("softtoken: %w", err)
		}
		had = err != nil
	}
	theirs, err := keysOf(to, cost)
	if err != nil {
		return root, false, fmt.Errorf("softtoken: the target: %w", err)
	}
	defer secret.Wipe(theirs)
	if subtle.ConstantTimeCompare(theirs[:2*rootLen], keys[:2*rootLen]) != 1 {
		return root, false, ErrOtherRoot
	}
	t, err := open(to, cost)
	if err != nil {
		return root, false, err
	}
	defer t.Close()
	return t.id, !had, nil
}

// keysOf unseals the keys of a token.
func keysOf(cfg Config, cost int) ([]byte, error) {
	f, err := read(cfg.Dir, cost)
	if err != nil {
		return nil, err
	}
	pinFile := cfg.PINFile
	if pinFile == "" {
		pinFile = filepath.Join(cfg.Dir, pinName)
	}
	pin, err := hsm.ReadPIN(pinFile)
	if err != nil {
		return nil, err
	}
	defer pin.Wipe()
	return f.open(pin)
}
