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

	"github.com/keyplane/keyplane/controlplane"
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

// ensureAdmin sees to it that the account has an administrator who can sign in. The environment wins; else an access key that is there
// stays; else the credentials file is taken, made with a random key if it is not there. The file is written before the key exists, so that
// a crash in between loses nothing.
func ensureAdmin(ctx context.Context, c *controlplane.Credentials, st *store.Store, a keyid.Account, dir string) error {
	path := filepath.Join(dir, CredentialsFile)
	id, secretKey := os.Getenv(EnvAdminID), os.Getenv(EnvAdminSecret)
	if (id == "") != (secretKey == "") {
		return fmt.Errorf("node: %s and %s are set both or neither", EnvAdminID, EnvAdminSecret)
	}
	if id != "" {
		if err := writeCredentials(path, id, secretKey); err != nil {
			return err
		}
		return c.EnsureAdmin(ctx, a, id, []byte(secretKey))
	}
	var ours, others int
	err := st.AccessKeys(ctx, func(k *store.AccessKey) error {
		k.Secret.Wipe()
		if k.Account == a {
			ours++
		} else {
			others++
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case ours > 0:
		return nil
	case others > 0:
		return fmt.Errorf("node: the data directory %s belongs to another account than %s", dir, a)
	}
	id, secretKey, err = readCredentials(path)
	if errors.Is(err, os.ErrNotExist) {
		id, secretKey = newAccessKey()
		err = writeCredentials(path, id, secretKey)
	}
	if err != nil {
		return err
	}
	return c.EnsureAdmin(ctx, a, id, []byte(secretKey))
}

// newAccessKey makes an access key of the form AWS gives: AKIA and 16 base32 digits, and 40 base64 digits.
func newAccessKey() (id, secretKey string) {
	var b [10 + 30]byte
	_, _ = rand.Read(b[:])
	defer clear(b[:])
	return "AKIA" + base32.StdEncoding.EncodeToString(b[:10]), base64.StdEncoding.EncodeToString(b[10:])
}

func writeCredentials(path, id, secretKey string) error {
	if strings.ContainsAny(id+secretKey, " \t\r\n[]=#;") && !isBase64Secret(id, secretKey) {
		return errors.New("node: the administrator's access key has bytes that a credentials file cannot hold")
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

// isBase64Secret lets the padding of base64 through, which a credentials file holds after its first equals sign.
func isBase64Secret(id, secretKey string) bool {
	return !strings.ContainsAny(id, " \t\r\n[]=#;") && !strings.ContainsAny(secretKey, " \t\r\n[]#;")
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
