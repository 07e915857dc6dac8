package apitest

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/controlplane/store/storetest"
	"github.com/keyplane/keyplane/internal/node"
)

// stored is a server whose store is tampered with, backed up and restored.
type stored struct {
	*Server
	t     *testing.T
	clock *Clock
	c     *Client
}

func newStored(t *testing.T, opts ...Option) *stored {
	s := &stored{t: t, clock: NewClock(time.Now().UTC())}
	s.Server = Start(t, append(opts, WithClock(s.clock))...)
	s.c = s.Client(t)
	return s
}

// restart starts the server on what is in its data directory now.
func (s *stored) restart() {
	s.t.Helper()
	s.start(s.t)
	s.c = s.Client(s.t)
}

// do runs an operation that has to succeed, and gives a member of its answer.
func (s *stored) do(op string, body map[string]any, path ...string) string {
	s.t.Helper()
	r := s.c.Do(s.t, op, marshal(s.t, body))
	if r.Status != 200 {
		s.t.Fatalf("%s: %s", op, r.Body)
	}
	if len(path) == 0 {
		return ""
	}
	var v any
	if err := json.Unmarshal(r.Body, &v); err != nil {
		s.t.Fatal(err)
	}
	for _, p := range path {
		v = v.(map[string]any)[p]
	}
	text, _ := v.(string)
	return text
}

// fails runs an operation that must fail.
func (s *stored) fails(what, op string, body map[string]any, wantType string) {
	s.t.Helper()
	if r := s.c.Do(s.t, op, marshal(s.t, body)); r.Type != wantType {
		s.t.Errorf("%s: %s gives %d %s, want %s", what, op, r.Status, r.Body, wantType)
	}
}

func (s *stored) create(body map[string]any) string {
	s.t.Helper()
	return s.do("CreateKey", body, "KeyMetadata", "KeyId")
}

// kill lets a key's waiting period pass.
func (s *stored) kill(id string) {
	s.t.Helper()
	s.do("ScheduleKeyDeletion", map[string]any{"KeyId": id, "PendingWindowInDays": 7})
	s.Work(s.t)
	s.clock.Advance(7*24*time.Hour + time.Minute)
	s.Work(s.t)
	s.fails("deleted", "DescribeKey", map[string]any{"KeyId": id}, "NotFoundException")
}

const internalError = "KMSInternalException"

// Whoever can write to etcd, and knows all that ever was in it, makes no key usable that is not, and changes nobody's policy.
func TestForgedStore(t *testing.T) {
	s := newStored(t)
	disabled, policy, edited, sane := s.create(nil), s.create(nil), s.create(nil), s.create(nil)
	s.do("DisableKey", map[string]any{"KeyId": disabled})
	open := s.do("GetKeyPolicy", map[string]any{"KeyId": policy}, "Policy")
	s.do("PutKeyPolicy", map[string]any{"KeyId": policy, "Policy": strings.Replace(open, `"kms:*"`, `["kms:*"]`, 1)})
	s.do("CreateAlias", map[string]any{"AliasName": "alias/a", "TargetKeyId": sane})
	s.do("CreateAlias", map[string]any{"AliasName": "alias/b", "TargetKeyId": edited})
	grant := s.do("CreateGrant", map[string]any{"KeyId": sane, "GranteePrincipal": "arn:aws:iam::" + Account + ":root", "Operations": []string{"Decrypt"}}, "GrantId")
	s.do("RevokeGrant", map[string]any{"KeyId": sane, "GrantId": grant})
	blob := s.do("Encrypt", map[string]any{"KeyId": sane, "Plaintext": encode([]byte("sane"))}, "CiphertextBlob")
	s.Close()

	const prefix = "/keyplane/1/"
	at := func(kind, id string) string { return prefix + kind + "/" + Region + "/" + Account + "/" + id }
	storetest.Tamper(t, s.cfg.DataDir, func(kv clientv3.KV) {
		get := func(key string, opts ...clientv3.OpOption) *clientv3.GetResponse {
			t.Helper()
			resp, err := kv.Get(t.Context(), key, opts...)
			if err != nil || len(resp.Kvs) == 0 {
				t.Fatalf("%s: %v %v", key, resp, err)
			}
			return resp
		}
		put := func(key string, value []byte) {
			t.Helper()
			if _, err := kv.Put(t.Context(), key, string(value)); err != nil {
				t.Fatal(err)
			}
		}
		before := func(key string) []byte {
			t.Helper()
			return get(key, clientv3.WithRev(get(key).Kvs[0].ModRevision-1)).Kvs[0].Value
		}
		put(at("key", disabled), before(at("key", disabled)))
		put(at("policy", policy), before(at("policy", policy)))
		put(at("key", edited), bytes.Replace(get(at("key", edited)).Kvs[0].Value, []byte(`"description":`), []byte(`"Description":`), 1))
		put(at("key", edited), bytes.Replace(get(at("key", edited)).Kvs[0].Value, []byte(`Enabled`), []byte(`Disabled`), 1))
		put(at("alias", "a"), bytes.Replace(get(at("alias", "b")).Kvs[0].Value, []byte("alias/b"), []byte("alias/a"), 1))
		// What was revoked, with its index, some hundred revisions later.
		for rev := get(prefix + "meta/format").Header.Revision; ; rev-- {
			old, err := kv.Get(t.Context(), at("grant", sane+"/"+grant), clientv3.WithRev(rev))
			if err != nil {
				t.Fatal(err)
			}
			if len(old.Kvs) == 0 {
				continue
			}
			index, err := kv.Get(t.Context(), at("grantee", sane), clientv3.WithPrefix(), clientv3.WithRev(rev))
			if err != nil || len(index.Kvs) != 1 {
				t.Fatal(index, err)
			}
			for range 600 {
				put(prefix+"meta/barrier", nil)
			}
			put(string(old.Kvs[0].Key), old.Kvs[0].Value)
			put(string(index.Kvs[0].Key), index.Kvs[0].Value)
			break
		}
	})
	s.restart()
	for id, what := range map[string]string{disabled: "an older state", policy: "an older policy", edited: "an edited state"} {
		s.fails(what, "Encrypt", map[string]any{"KeyId": id, "Plaintext": "YQ=="}, internalError)
		s.fails(what, "DescribeKey", map[string]any{"KeyId": id}, internalError)
		s.fails(what, "EnableKey", map[string]any{"KeyId": id}, internalError)
	}
	s.fails("another alias's target", "Encrypt", map[string]any{"KeyId": "alias/a", "Plaintext": "YQ=="}, internalError)
	s.fails("a revoked grant", "ListGrants", map[string]any{"KeyId": sane}, internalError)
	equal(t, "what was not touched", s.do("Decrypt", map[string]any{"CiphertextBlob": blob}, "Plaintext"), encode([]byte("sane")))
	if r := s.c.Do(t, "ListKeys", "{}"); r.Status != 200 || bytes.Count(r.Body, []byte(`"KeyId"`)) != 4 {
		t.Errorf("the list of keys: %s", r.Body)
	}
}

// run runs a command.
func run(t *testing.T, main func([]string, *bytes.Buffer, *bytes.Buffer) int, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	status = main(args, &out, &errs)
	return status, out.String(), errs.String()
}

func backupMain(args []string, stdout, stderr *bytes.Buffer) int {
	return node.BackupMain(args, stdout, stderr)
}

func restoreMain(args []string, stdout, stderr *bytes.Buffer) int {
	return node.RestoreMain(args, stdout, stderr)
}

// A backup of a running server, restored: every key decrypts what it encrypted, what was deleted is not back, whether before the backup or after it, and what was put back by hand is refused.
func TestBackupAndRestore(t *testing.T) {
	tmp := t.TempDir()
	socket := filepath.Join(tmp, "s")
	s := newStored(t, func(c *node.Config) { c.StatsSocket = socket })
	kinds := []map[string]any{{}, {"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"}, {"MultiRegion": true}}
	type made struct{ id, blob, algorithm string }
	var keys []made
	for _, k := range kinds {
		m := made{id: s.create(k), algorithm: "SYMMETRIC_DEFAULT"}
		if k["KeySpec"] != nil {
			m.algorithm = "RSAES_OAEP_SHA_256"
		}
		m.blob = s.do("Encrypt", map[string]any{"KeyId": m.id, "Plaintext": encode([]byte(m.id)), "EncryptionAlgorithm": m.algorithm}, "CiphertextBlob")
		keys = append(keys, m)
	}
	s.do("RotateKeyOnDemand", map[string]any{"KeyId": keys[0].id})
	s.Work(t)
	s.do("CreateAlias", map[string]any{"AliasName": "alias/kept", "TargetKeyId": keys[0].id})
	s.do("CreateGrant", map[string]any{"KeyId": keys[0].id, "GranteePrincipal": "arn:aws:iam::" + Account + ":root", "Operations": []string{"Decrypt"}})
	early, late := s.create(nil), s.create(nil)
	earlyBlob := s.do("Encrypt", map[string]any{"KeyId": early, "Plaintext": "YQ=="}, "CiphertextBlob")
	lateBlob := s.do("Encrypt", map[string]any{"KeyId": late, "Plaintext": "YQ=="}, "CiphertextBlob")
	s.kill(early)

	file := filepath.Join(tmp, "backup")
	if status, out, errs := run(t, backupMain, "--out", file, "--socket", socket); status != 0 || !strings.Contains(out, ", 1 deleted keys") {
		t.Fatalf("backup: %d %s%s", status, out, errs)
	}
	if status, _, errs := run(t, backupMain, "--out", file, "--socket", socket); status != 1 || !strings.Contains(errs, "exists") {
		t.Errorf("over another file: %d %s", status, errs)
	}
	secrets, err := os.ReadFile(s.node.CredentialsPath())
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil || bytes.Contains(text, bytes.TrimSpace(secrets[bytes.LastIndexByte(secrets, ' '):])) {
		t.Error("the administrator's secret is in the backup, or it is not there:", err)
	}
	after := s.create(nil)
	s.kill(late)
	check := func(what string) {
		t.Helper()
		for _, k := range keys {
			equal(t, what+": the plaintext", s.do("Decrypt", map[string]any{"KeyId": k.id, "CiphertextBlob": k.blob, "EncryptionAlgorithm": k.algorithm}, "Plaintext"), encode([]byte(k.id)))
		}
		equal(t, what+": the alias", s.do("DescribeKey", map[string]any{"KeyId": "alias/kept"}, "KeyMetadata", "KeyId"), keys[0].id)
		if r := s.c.Do(t, "ListGrants", marshal(t, map[string]any{"KeyId": keys[0].id})); bytes.Count(r.Body, []byte(`"GrantId"`)) != 1 {
			t.Errorf("%s: the grants: %s", what, r.Body)
		}
		for id, blob := range map[string]string{early: earlyBlob, late: lateBlob} {
			s.fails(what, "DescribeKey", map[string]any{"KeyId": id}, "NotFoundException")
			if r := s.c.Do(t, "Decrypt", marshal(t, map[string]any{"CiphertextBlob": blob})); r.Status == 200 {
				t.Errorf("%s: a deleted key decrypts", what)
			}
		}
	}
	check("before")
	s.Close()
	dir := s.cfg.DataDir
	etcd, old := filepath.Join(dir, "etcd"), filepath.Join(tmp, "old")
	copyOver := func(to, from string) {
		t.Helper()
		err := errors.Join(os.RemoveAll(to), os.CopyFS(to, os.DirFS(from)), filepath.WalkDir(to, func(path string, e os.DirEntry, err error) error {
			if mode := os.FileMode(0o600); err == nil {
				if e.IsDir() {
					mode = 0o700
				}
				err = os.Chmod(path, mode)
			}
			return err
		}))
		if err != nil {
			t.Fatal(err)
		}
	}
	copyOver(old, etcd)

	restore := func(want string, args ...string) {
		t.Helper()
		status, out, errs := run(t, restoreMain, append(append([]string{"--data-dir", dir}, args...), file)...)
		if ok := status == 0; ok != (want == "") || !strings.Contains(errs, want) {
			t.Fatalf("restore %q: %d %s%s, want %q", args, status, out, errs, want)
		}
	}
	// It is older than what was seen, and goes into nothing that is not empty.
	restore("is not the store that this process had before, or is older than it was")
	_, _, errs := run(t, restoreMain, "--data-dir", dir, file)
	_, accept, _ := strings.Cut(strings.TrimSpace(errs), `--accept-older "`)
	accept = strings.TrimSuffix(accept, `"`)
	restore("move "+etcd+" away", "--accept-older", accept)
	if err := os.RemoveAll(etcd); err != nil {
		t.Fatal(err)
	}
	restore("is older than it was", "--accept-older", "yes")
	// Not a byte of it can be another: regions of the file, and each end.
	good := text
	for _, bad := range [][]byte{good[:len(good)-1], good[:len(good)/2], append(bytes.Clone(good), 0), flippedAt(good, 20), flippedAt(good, len(good)/2), flippedAt(good, len(good)-200), nil} {
		if err := os.WriteFile(file, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		restore("not a backup as it was written", "--accept-older", accept)
		if status, _, _ := run(t, backupMain, "verify", file); status == 0 {
			t.Error("a damaged backup verifies")
		}
	}
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if status, out, errs := run(t, backupMain, "verify", file); status != 0 || !strings.Contains(errs, "who signed it was not checked") {
		t.Errorf("verify: %d %s%s", status, out, errs)
	}
	restore("", "--accept-older", accept)
	s.restart()
	check("restored")
	s.fails("made after the backup", "DescribeKey", map[string]any{"KeyId": after}, "NotFoundException")
	s.create(nil)
	s.Close()

	// The store from before is another epoch's.
	copyOver(filepath.Join(tmp, "new"), etcd)
	copyOver(etcd, old)
	if _, err := node.Start(t.Context(), s.cfg, storetest.Quiet); err == nil || !strings.Contains(err.Error(), "older than it was") {
		t.Error("an older epoch is served:", err)
	}
	copyOver(etcd, filepath.Join(tmp, "new"))
	s.restart()
	check("again")
	s.Close()

	// On another machine that has the token, and of the deleted keys only a copy of the file.
	far := filepath.Join(tmp, "far")
	copyOver(filepath.Join(far, "softtoken"), filepath.Join(dir, "softtoken"))
	if err := os.WriteFile(filepath.Join(far, node.CredentialsFile), secrets, 0o600); err != nil {
		t.Fatal(err)
	}
	deleted := filepath.Join(dir, "deleted-keys")
	dir = far
	restore("", "--deleted-keys", deleted)
	s.cfg.DataDir, s.cfg.Audit.Dir, s.cfg.SoftTokenPINFile = far, filepath.Join(far, "audit"), ""
	s.cfg.Audit.AcceptRollback = true // the log was not restored
	s.restart()
	check("elsewhere")
	s.Close()

	// And where there is another token.
	other := Start(t)
	other.Close()
	dir = other.cfg.DataDir
	if err := errors.Join(os.RemoveAll(filepath.Join(dir, "etcd")), os.Remove(filepath.Join(dir, "store-seen"))); err != nil {
		t.Fatal(err)
	}
	restore("the backup is not signed by a token given")
}

func flippedAt(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[i] ^= 1
	return b
}

// The offline command makes the same backup of a server that is down.
func TestBackupOffline(t *testing.T) {
	s := newStored(t)
	s.create(nil)
	file := filepath.Join(t.TempDir(), "backup")
	if status, _, errs := run(t, backupMain, "--out", file, "--data-dir", s.cfg.DataDir); status != 1 || !strings.Contains(errs, "in use by another keyplane") {
		t.Errorf("of a server that runs: %d %s", status, errs)
	}
	s.Close()
	if status, out, errs := run(t, backupMain, "--out", file, "--data-dir", s.cfg.DataDir); status != 0 || !strings.Contains(out, ", 0 deleted keys") {
		t.Errorf("backup: %d %s%s", status, out, errs)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
	s.restart()
	if r, err := http.Get("http://" + s.node.Addr() + "/backup"); err == nil {
		if r.StatusCode == 200 {
			t.Error("the client endpoint gives backups")
		}
		_ = r.Body.Close()
	}
}
