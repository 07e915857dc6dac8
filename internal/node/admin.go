package node

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/keyplane/keyplane/controlplane/iam"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyid"
)

// The environment variables that give the administrator's access key. Both or neither.
const (
	EnvAdminID     = "KEYPLANE_ADMIN_ACCESS_KEY_ID"
	EnvAdminSecret = "KEYPLANE_ADMIN_SECRET_ACCESS_KEY"
)

// CredentialsFile is the name of the AWS shared-credentials file in the data directory.
const CredentialsFile = "credentials"

// ensureAdmin sees to it that the account has an administrator who can sign in. The environment wins: its access key replaces the ones the
// administrator had, so that one that leaked can be taken out of use. Else, if anybody of the account has an access key, all stays as it is,
// but for what a data directory of an older version lacks; else the credentials file is taken, made with a random key if it is not there or
// holds a key that was deleted. A random key's file is written before the key exists, so that a crash in between loses nothing; the environment's after its key was accepted,
// so that a refused one overwrites nothing.
func ensureAdmin(ctx context.Context, t *iam.Table, st *store.Store, a keyid.Account, dir string) error {
	path := filepath.Join(dir, CredentialsFile)
	id, secretKey := os.Getenv(EnvAdminID), os.Getenv(EnvAdminSecret)
	if (id == "") != (secretKey == "") {
		return fmt.Errorf("node: %s and %s are set both or neither", EnvAdminID, EnvAdminSecret)
	}
	if id != "" {
		if err := holdable(id, secretKey); err != nil {
			return err
		}
		b := []byte(secretKey)
		defer clear(b)
		if err := t.ReplaceAdmin(ctx, a, id, b); err != nil {
			return err
		}
		if err := pinKey(ctx, st, id); err != nil {
			return err
		}
		return writeCredentials(path, id, secretKey)
	}
	keys, old := 0, 0
	if err := st.AccessKeys(ctx, func(k *store.AccessKey) error {
		k.Secret.Wipe()
		if k.Account == a {
			keys++
			if k.PrincipalID == "" {
				old++
			}
		}
		return nil
	}); err != nil {
		return err
	}
	if _, err := st.Account(ctx, a); old > 0 || errors.Is(err, store.ErrNotFound) {
		if err := t.EnsureAdministrator(ctx, a); err != nil {
			return err
		}
		if err := t.Load(ctx); err != nil { // access keys of an older version speak for somebody now
			return err
		}
	} else if err != nil {
		return err
	}
	var err error
	id, secretKey, err = readCredentials(path)
	if keys > 0 {
		if err != nil {
			return nil // nobody needs the file any more
		}
		return pinKey(ctx, st, id)
	}
	used := false
	if err == nil {
		if used, err = keyUsed(ctx, st, id); err != nil {
			return err
		}
	}
	if errors.Is(err, os.ErrNotExist) || used {
		id, secretKey = newAccessKey()
		err = writeCredentials(path, id, secretKey)
	}
	if err != nil {
		return err
	}
	if err := pinKey(ctx, st, id); err != nil {
		return err
	}
	b := []byte(secretKey)
	defer clear(b)
	return t.EnsureAdmin(ctx, a, id, b)
}

// adminInEnvironment says whether the environment gives the administrator's access key.
func adminInEnvironment() bool { return os.Getenv(EnvAdminID) != "" || os.Getenv(EnvAdminSecret) != "" }

// pinKey remembers that the access key of the credentials file was made, before it is: if it is gone at a later start, somebody deleted it, and
// it does not come back. keyUsed tells.
func pinKey(ctx context.Context, st *store.Store, id string) error {
	_, err := st.Pin(ctx, "credentials/"+id, "made")
	return err
}

func keyUsed(ctx context.Context, st *store.Store, id string) (bool, error) {
	made, err := st.Pinned(ctx, "credentials/"+id)
	return made != "", err
}

// newAccessKey makes an access key of the form AWS gives: AKIA and 16 base32 digits, and 40 base64 digits.
func newAccessKey() (id, secretKey string) {
	var b [10 + 30]byte
	_, _ = rand.Read(b[:])
	defer clear(b[:])
	return "AKIA" + base32.StdEncoding.EncodeToString(b[:10]), base64.StdEncoding.EncodeToString(b[10:])
}

func writeCredentials(path, id, secretKey string) error {
	if err := holdable(id, secretKey); err != nil {
		return err
	}
	text := "[default]\naws_access_key_id = " + id + "\naws_secret_access_key = " + secretKey + "\n"
	old, err := os.ReadFile(path)
	if err == nil && string(old) == text {
		return os.Chmod(path, 0o600)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), CredentialsFile+".*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(text)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// holdable refuses an access key with bytes that a credentials file cannot hold. The padding of base64 it can, after its first equals sign.
func holdable(id, secretKey string) error {
	if strings.ContainsAny(id, " \t\r\n[]=#;") || strings.ContainsAny(secretKey, " \t\r\n[]#;") {
		return errors.New("node: the administrator's access key has bytes that a credentials file cannot hold")
	}
	return nil
}

func readCredentials(path string) (id, secretKey string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	if err := hsm.CheckPrivate(f); err != nil {
		return "", "", err
	}
	for lines := bufio.NewScanner(io.LimitReader(f, 4096)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), "=")
		switch strings.TrimSpace(name) {
		case "aws_access_key_id":
			id = strings.TrimSpace(value)
		case "aws_secret_access_key":
			secretKey = strings.TrimSpace(value)
		}
	}
	if id == "" || secretKey == "" {
		return "", "", fmt.Errorf("node: %s holds no access key", path)
	}
	return id, secretKey, nil
}
