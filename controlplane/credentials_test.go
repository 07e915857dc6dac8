package controlplane

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/keyplane/keyplane/internal/sigv4"
)

var _ sigv4.KeySource = (*Credentials)(nil)

// accountsStore has a store of its own: these tests look at all access keys there are.
func accountsStore(t *testing.T) *store.Store {
	t.Helper()
	st, err := store.OpenEmbedded(t.Context(), store.EmbeddedConfig{Dir: t.TempDir(), Logger: quiet, Sealer: newSealer()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return st
}

func TestEnsureAdmin(t *testing.T) {
	st := accountsStore(t)
	var changed []string
	now := time.Date(2026, 1, 2, 3, 4, 5, 6_789_000, time.UTC)
	creds, err := NewCredentials(CredentialsConfig{
		Store: st, Region: "cn-north-1", Changed: func(id string) { changed = append(changed, id) }, Now: func() time.Time { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	const account, id = keyid.Account(111122223333), "AKIAADMIN00000000001"
	first, second := []byte("the first secret access key"), []byte("the second secret access key")
	if err := creds.EnsureAdmin(t.Context(), account, id, first); err != nil {
		t.Fatal(err)
	}
	if got := creds.AccessKey([]byte(id)); got == nil || *got.Principal() != (sigv4.Principal{
		Account: account, ARN: "arn:aws-cn:iam::111122223333:user/administrator", UserName: "administrator",
	}) {
		t.Fatalf("access key %v", got)
	}
	record, err := st.AccessKey(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if !record.Active || !record.Secret.Equal(first) || !record.Created.Equal(now.Truncate(time.Millisecond)) {
		t.Errorf("record %+v", record)
	}
	// Again: nothing is written.
	if err := creds.EnsureAdmin(t.Context(), account, id, first); err != nil {
		t.Fatal(err)
	}
	if again, err := st.AccessKey(t.Context(), id); err != nil || again.Revision != record.Revision {
		t.Errorf("revision %d became %d, %v", record.Revision, again.Revision, err)
	}
	if fmt.Sprint(changed) != fmt.Sprint([]string{id}) {
		t.Errorf("changed %v", changed)
	}
	// Another secret replaces the first and keeps the creation date; the old one is dead at once.
	old := creds.AccessKey([]byte(id))
	now = now.Add(time.Hour)
	if err := creds.EnsureAdmin(t.Context(), account, id, second); err != nil {
		t.Fatal(err)
	}
	if creds.AccessKey([]byte(id)) == old {
		t.Error("the old secret is still in use")
	}
	replaced, err := st.AccessKey(t.Context(), id)
	if err != nil || !replaced.Secret.Equal(second) || !replaced.Created.Equal(record.Created) {
		t.Errorf("record %+v %v", replaced, err)
	}
	// An access key that was made inactive comes back.
	replaced.Active = false
	if err := st.PutAccessKey(t.Context(), replaced); err != nil {
		t.Fatal(err)
	}
	if err := creds.Reload(t.Context(), id); err != nil || creds.AccessKey([]byte(id)) != nil {
		t.Errorf("an inactive access key is in use: %v", err)
	}
	if err := creds.EnsureAdmin(t.Context(), account, id, second); err != nil || creds.AccessKey([]byte(id)) == nil {
		t.Errorf("EnsureAdmin left it inactive: %v", err)
	}

	for name, f := range map[string]func() error{
		"short secret":    func() error { return creds.EnsureAdmin(t.Context(), account, "AKIA2", make([]byte, adminSecretMin-1)) },
		"long secret":     func() error { return creds.EnsureAdmin(t.Context(), account, "AKIA2", make([]byte, 129)) },
		"no ID":           func() error { return creds.EnsureAdmin(t.Context(), account, "", first) },
		"ID with slash":   func() error { return creds.EnsureAdmin(t.Context(), account, "a/b", first) },
		"long ID":         func() error { return creds.EnsureAdmin(t.Context(), account, strings.Repeat("A", 129), first) },
		"account":         func() error { return creds.EnsureAdmin(t.Context(), keyid.AccountMax+1, "AKIA2", first) },
		"another account": func() error { return creds.EnsureAdmin(t.Context(), account+1, id, first) },
	} {
		if err := f(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if record, err := st.AccessKey(t.Context(), id); err != nil || record.Account != account || !record.Secret.Equal(second) {
		t.Errorf("record %+v %v", record, err)
	}
	if err := creds.EnsureAdmin(t.Context(), account, "AKIA2", make([]byte, adminSecretMin)); err != nil {
		t.Errorf("secret of the least length: %v", err)
	}
	if err := creds.EnsureAdmin(t.Context(), account, strings.Repeat("A", 128), bytes.Repeat([]byte("s"), 128)); err != nil {
		t.Errorf("longest ID and secret: %v", err)
	}
}

func TestCredentialsLoad(t *testing.T) {
	st := accountsStore(t)
	for i := range 3 {
		k := &store.AccessKey{
			ID: fmt.Sprintf("AKIA%d", i), Account: 111122223333, PrincipalARN: fmt.Sprintf("arn:aws:iam::111122223333:user/u%d", i), UserName: fmt.Sprintf("u%d", i),
			Active: i != 1, Created: time.UnixMilli(1), Secret: secret.New([]byte("secret of some length")),
		}
		if err := st.PutAccessKey(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	creds, err := NewCredentials(CredentialsConfig{Store: st, Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	if creds.AccessKey([]byte("AKIA0")) != nil {
		t.Error("a key before Load")
	}
	for range 2 {
		if err := creds.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			k := creds.AccessKey(fmt.Appendf(nil, "AKIA%d", i))
			if (k != nil) != (i != 1) || k != nil && k.Principal().UserName != fmt.Sprintf("u%d", i) {
				t.Errorf("AKIA%d: %v", i, k)
			}
		}
	}
	if err := st.DeleteAccessKey(t.Context(), "AKIA0"); err != nil {
		t.Fatal(err)
	}
	if err := creds.Reload(t.Context(), "AKIA0"); err != nil || creds.AccessKey([]byte("AKIA0")) != nil {
		t.Errorf("a deleted access key is in use: %v", err)
	}
	if err := creds.Reload(t.Context(), "not an ID"); err != nil {
		t.Error(err)
	}
	for _, cfg := range []CredentialsConfig{{Region: "us-east-1"}, {Store: st}, {Store: st, Region: "Region"}} {
		if _, err := NewCredentials(cfg); err == nil {
			t.Errorf("accepted %+v", cfg)
		}
	}
}

// A secret sealed for another principal, or under another key, does not load, and the table stays as it was.
func TestCredentialsDoNotOpen(t *testing.T) {
	dir := t.TempDir()
	open := func(sealer store.Sealer) *store.Store {
		st, err := store.OpenEmbedded(t.Context(), store.EmbeddedConfig{Dir: dir, Logger: quiet, Sealer: sealer})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	st := open(newSealer())
	creds, err := NewCredentials(CredentialsConfig{Store: st, Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := creds.EnsureAdmin(t.Context(), 111122223333, "AKIA1", []byte("secret of some length")); err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	for _, sealer := range []store.Sealer{newSealer(), nil} {
		st = open(sealer)
		creds, err = NewCredentials(CredentialsConfig{Store: st, Region: "us-east-1"})
		if err != nil {
			t.Fatal(err)
		}
		want := store.ErrDamaged
		if sealer == nil {
			want = store.ErrNoSealer
		}
		if err := creds.Load(t.Context()); !errors.Is(err, want) {
			t.Errorf("Load: %v", err)
		}
		if err := creds.Reload(t.Context(), "AKIA1"); !errors.Is(err, want) {
			t.Errorf("Reload: %v", err)
		}
		if err := creds.EnsureAdmin(t.Context(), 111122223333, "AKIA1", []byte("secret of some length")); !errors.Is(err, want) {
			t.Errorf("EnsureAdmin: %v", err)
		}
		if creds.AccessKey([]byte("AKIA1")) != nil {
			t.Error("an access key that does not open is in use")
		}
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Lookups go on while keys change; a request signed with a key that stays is never refused.
func TestCredentialsConcurrent(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if resp := e.call("DescribeKey", obj("KeyId", m.KeyId)); resp.Code != kmsapi.OK {
					t.Errorf("%s", resp.Body)
					return
				}
			}
		})
	}
	for i := range 50 {
		if err := e.creds.EnsureAdmin(t.Context(), e.account, e.keyID+"X", fmt.Appendf(nil, "secret access key number %d", i)); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
}
