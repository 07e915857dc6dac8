package node

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/iam"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/secret"
)

const (
	testAccount = keyid.Account(111122223333)
	testKeyID   = "AKIAIOSFODNN7EXAMPLE"
	testSecret  = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
)

// admins is a store with its credentials and a data directory.
type admins struct {
	*testing.T
	store *store.Store
	creds *iam.Table
	dir   string
}

func newAdmins(t *testing.T) *admins {
	t.Helper()
	t.Setenv(EnvAdminID, "")
	t.Setenv(EnvAdminSecret, "")
	dir := t.TempDir()
	st, err := store.OpenEmbedded(t.Context(), store.EmbeddedConfig{Dir: dir, Logger: quiet, Sealer: sealerOn(t, tokenA)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	creds, err := iam.NewTable(iam.TableConfig{Store: st, Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	return &admins{t, st, creds, dir}
}

func (a *admins) path() string { return filepath.Join(a.dir, CredentialsFile) }

func (a *admins) ensure(account keyid.Account) error {
	return ensureAdmin(a.Context(), a.creds, a.store, account, a.dir)
}

// file is what the credentials file holds.
func (a *admins) file() (id, secretKey string) {
	a.Helper()
	id, secretKey, err := readCredentials(a.path())
	if err != nil {
		a.Fatal(err)
	}
	return id, secretKey
}

// holds checks that id with the secret is the administrator's and the only access key.
func (a *admins) holds(id, secretKey string) {
	a.Helper()
	n := 0
	err := a.store.AccessKeys(a.Context(), func(k *store.AccessKey) error {
		defer k.Secret.Wipe()
		if n++; k.ID != id || !k.Active || k.Account != testAccount || !k.Secret.Equal([]byte(secretKey)) {
			a.Errorf("the store holds %s of %s", k.ID, k.Account)
		}
		return nil
	})
	if err != nil || n != 1 {
		a.Errorf("%d access keys, %v", n, err)
	}
}

func TestAdminRandom(t *testing.T) {
	a := newAdmins(t)
	if err := a.ensure(testAccount); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(a.path())
	if err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile(`^\[default\]\naws_access_key_id = AKIA[A-Z2-7]{16}\naws_secret_access_key = [A-Za-z0-9+/]{40}\n$`)
	if !form.Match(text) {
		t.Error("not an AWS shared-credentials file of the form of AWS's keys")
	}
	if info, err := os.Stat(a.path()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	id, secretKey := a.file()
	a.holds(id, secretKey)
	if a.creds.AccessKey([]byte(id)) == nil {
		t.Error("the key is not loaded")
	}
	// The next starts change nothing, with or without the file.
	for range 2 {
		if err := a.ensure(testAccount); err != nil {
			t.Fatal(err)
		}
		a.holds(id, secretKey)
		if now, err := os.ReadFile(a.path()); err == nil && !bytes.Equal(now, text) {
			t.Error("the file changed")
		}
		_ = os.Remove(a.path())
	}
	if _, err := os.Stat(a.path()); !os.IsNotExist(err) {
		t.Error("a file was made although the account has a key:", err)
	}
	if left, _ := filepath.Glob(a.path() + "*"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestAdminKeysDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id, secretKey := newAccessKey()
		seen[id], seen[secretKey] = true, true
	}
	if len(seen) != 2000 {
		t.Errorf("%d different values", len(seen))
	}
}

// The process ended between the file and the key: the next start takes the file's key.
func TestAdminCrashBetween(t *testing.T) {
	a := newAdmins(t)
	if err := writeCredentials(a.path(), testKeyID, testSecret); err != nil {
		t.Fatal(err)
	}
	if err := a.ensure(testAccount); err != nil {
		t.Fatal(err)
	}
	a.holds(testKeyID, testSecret)
}

func TestAdminFromEnvironment(t *testing.T) {
	a := newAdmins(t)
	for name, set := range map[string][2]string{"only the ID": {testKeyID, ""}, "only the secret": {"", testSecret}} {
		t.Setenv(EnvAdminID, set[0])
		t.Setenv(EnvAdminSecret, set[1])
		if err := a.ensure(testAccount); err == nil || !strings.Contains(err.Error(), "both or neither") || strings.Contains(err.Error(), testSecret) {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Setenv(EnvAdminID, testKeyID)
	for _, secretKey := range []string{testSecret, testSecret, "rotated/secret+access+key=="} { // made, kept, changed
		t.Setenv(EnvAdminSecret, secretKey)
		if err := a.ensure(testAccount); err != nil {
			t.Fatal(err)
		}
		a.holds(testKeyID, secretKey)
		if id, in := a.file(); id != testKeyID || in != secretKey {
			t.Errorf("the file has %s", id)
		}
	}
	for _, refused := range []string{"a secret with blanks", "short"} {
		t.Setenv(EnvAdminSecret, refused)
		if err := a.ensure(testAccount); err == nil {
			t.Errorf("the secret %q is accepted", refused)
		}
		a.holds(testKeyID, "rotated/secret+access+key==")
		if id, in := a.file(); id != testKeyID || in != "rotated/secret+access+key==" {
			t.Error("a refused key took the place of the good one in the file")
		}
	}
	// Another key from the environment replaces the one before: it may have leaked.
	const other = "AKIAOTHERKEY00000000"
	t.Setenv(EnvAdminID, other)
	t.Setenv(EnvAdminSecret, testSecret)
	if err := a.ensure(testAccount); err != nil {
		t.Fatal(err)
	}
	a.holds(other, testSecret)
	if a.creds.AccessKey([]byte(testKeyID)) != nil {
		t.Error("the replaced key still signs in")
	}
	if a.creds.AccessKey([]byte(other)) == nil {
		t.Error("the new key does not sign in")
	}
}

func TestAdminBadFile(t *testing.T) {
	a := newAdmins(t)
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
	}{
		"open to others": {"[default]\naws_access_key_id = " + testKeyID + "\naws_secret_access_key = " + testSecret + "\n", 0o644},
		"no secret":      {"[default]\naws_access_key_id = " + testKeyID + "\n", 0o600},
		"empty":          {"", 0o600},
		"too weak":       {"[default]\naws_access_key_id = " + testKeyID + "\naws_secret_access_key = short\n", 0o600},
	} {
		if err := os.WriteFile(a.path(), []byte(c.text), c.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(a.path(), c.mode); err != nil {
			t.Fatal(err)
		}
		if err := a.ensure(testAccount); err == nil || strings.Contains(err.Error(), testSecret) || err.Error() == "EOF" {
			t.Errorf("%s: %v", name, err)
		}
		_ = os.Remove(a.path())
	}
	if err := a.store.AccessKeys(t.Context(), func(k *store.AccessKey) error { t.Errorf("%s was made", k.ID); return nil }); err != nil {
		t.Error(err)
	}
}

func TestWriteCredentials(t *testing.T) {
	path := filepath.Join(t.TempDir(), CredentialsFile)
	for _, bad := range [][2]string{{"A\nB", testSecret}, {testKeyID, "a\nb"}, {"A=B", testSecret}, {testKeyID, "a b"}, {testKeyID, "a#b"}, {"[A]", testSecret}} {
		if err := writeCredentials(path, bad[0], bad[1]); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Error("a refused key left a file:", err)
	}
	// A file that is there already becomes private; another key replaces it whole.
	for _, secretKey := range []string{testSecret, testSecret, "padded+secret/=="} {
		if err := writeCredentials(path, testKeyID, secretKey); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		if id, got, err := readCredentials(path); err != nil || id != testKeyID || got != secretKey {
			t.Errorf("read back: %s, %v", id, err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// A data directory of an older version has an access key and no user: the administrator is made for it and the key stays as it is.
func TestAdminOfOlderVersion(t *testing.T) {
	a := newAdmins(t)
	old := &store.AccessKey{
		ID: testKeyID, Account: testAccount, PrincipalARN: "arn:aws:iam::111122223333:user/administrator", UserName: "administrator", Active: true,
		Created: time.UnixMilli(1), Secret: secret.New([]byte(testSecret)),
	}
	if err := a.store.PutAccessKey(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := a.creds.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := a.ensure(testAccount); err != nil {
			t.Fatal(err)
		}
		a.holds(testKeyID, testSecret)
		k := a.creds.AccessKey([]byte(testKeyID))
		if k == nil || len(k.Principal().Caller.Holder.Subject().Identity) != 1 {
			t.Fatalf("the administrator's key: %v", k)
		}
	}
	if _, err := os.Stat(a.path()); !os.IsNotExist(err) {
		t.Error("a credentials file was made:", err)
	}
	// The environment's key still replaces it.
	t.Setenv(EnvAdminID, "AKIAOTHERKEY00000000")
	t.Setenv(EnvAdminSecret, testSecret)
	if err := a.ensure(testAccount); err != nil {
		t.Fatal(err)
	}
	a.holds("AKIAOTHERKEY00000000", testSecret)
	if a.creds.AccessKey([]byte(testKeyID)) != nil {
		t.Error("the replaced key still signs in")
	}
}

// An access key that was deleted does not come back from the credentials file: the next start makes another.
func TestDeletedKeyStaysDead(t *testing.T) {
	a := newAdmins(t)
	for range 2 {
		if err := a.ensure(testAccount); err != nil {
			t.Fatal(err)
		}
		id, _ := a.file()
		if a.creds.AccessKey([]byte(id)) == nil {
			t.Fatal("the credentials file's access key does not sign in")
		}
		if err := a.store.RemoveAccessKey(t.Context(), store.Owner{Account: testAccount, User: "administrator"}, id); err != nil {
			t.Fatal(err)
		}
		if err := a.creds.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := a.ensure(testAccount); err != nil {
			t.Fatal(err)
		}
		if a.creds.AccessKey([]byte(id)) != nil {
			t.Error("the deleted access key signs in again")
		}
		next, _ := a.file()
		if next == id || a.creds.AccessKey([]byte(next)) == nil {
			t.Errorf("the credentials file holds %s, which does not sign in", next)
		}
	}
}
