package apitest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/node"
)

// failpoints are the names of all failpoints in the tree.
func failpoints(t *testing.T) (names []string) {
	t.Helper()
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			if x, isName := ast.Unparen(selected(f)).(*ast.Ident); !ok || !isName || x.Name != "failpoint" || f.Sel.Name != "Here" {
				return true
			}
			literal, ok := call.Args[0].(*ast.BasicLit)
			if !ok {
				t.Errorf("%s: the name of a failpoint is no literal", path)
				return true
			}
			name, err := strconv.Unquote(literal.Value)
			if err != nil {
				t.Error(err)
			}
			names = append(names, name)
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func selected(f *ast.SelectorExpr) ast.Expr {
	if f == nil {
		return nil
	}
	return f.X
}

// replicating are failpoints that a server passes only with related keys: TestReplicationFailpoints stops there.
var replicating = []string{"replicate.", "sync.", "promote."}

func isReplicating(name string) bool {
	return slices.ContainsFunc(replicating, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// failing is a data directory in which something is due of every kind, and what has to come of it.
type failing struct {
	dir string

	rotates, deleted, early, expires, empty, full string // IDs of keys: see prepareFailing
	material                                      [3][]byte
	blobs                                         map[string]string // a ciphertext of each key that had material, by its ID
}

// prepareFailing makes the directory with a server whose date is some weeks back: for the process that starts on it, by this machine's clock,
//
//	rotates  is to be rotated, once, since ten days ago
//	deleted  is to be deleted: its date is past, and its waiting period has passed
//	early    has the same date, but its waiting period has not passed: the clock was set forward
//	expires  has material that has expired
//	empty    has never had material
//	full     has material that does not expire
func prepareFailing(t *testing.T) *failing {
	t.Helper()
	now := time.Now()
	clock := NewClock(now.Add(-100 * days).Truncate(time.Millisecond))
	s := Start(t, WithClock(clock), func(c *node.Config) { c.Quotas = "off" })
	f := &failing{dir: s.cfg.DataDir, blobs: map[string]string{}}
	create := func(body string) string {
		var made struct{ KeyMetadata struct{ KeyId string } }
		s.Do(t, "CreateKey", body).Members(t, &made)
		return made.KeyMetadata.KeyId
	}
	do := func(op string, members map[string]any) {
		t.Helper()
		if r := s.Do(t, op, marshal(t, members)); r.Status != 200 {
			t.Fatalf("%s: %s", op, r.Body)
		}
	}
	encrypt := func(id string) {
		t.Helper()
		var out struct{ CiphertextBlob string }
		s.Do(t, "Encrypt", marshal(t, map[string]any{"KeyId": id, "Plaintext": encode([]byte(id))})).Members(t, &out)
		f.blobs[id] = out.CiphertextBlob
	}
	f.rotates, f.deleted, f.early = create("{}"), create("{}"), create("{}")
	external := `{"Origin":"EXTERNAL"}`
	f.expires, f.empty, f.full = create(external), create(external), create(external)
	for i := range f.material {
		f.material[i] = make([]byte, 32)
		_, _ = rand.Read(f.material[i])
	}
	do("EnableKeyRotation", map[string]any{"KeyId": f.rotates, "RotationPeriodInDays": 90})
	do("CreateAlias", map[string]any{"AliasName": "alias/deleted", "TargetKeyId": f.deleted})
	clock.Advance(50 * days)
	do("ScheduleKeyDeletion", map[string]any{"KeyId": f.deleted, "PendingWindowInDays": 7})
	s.Work(t)
	clock.Advance(8 * days)
	clock.Jump(-8 * days)
	s.Work(t) // the waiting period has passed, the date has not come
	do("ScheduleKeyDeletion", map[string]any{"KeyId": f.early, "PendingWindowInDays": 7})
	s.Work(t)
	if r := importTo(t, &s.Endpoint, f.expires, f.material[0], now.Add(-40*days)); r.Status != 200 {
		t.Fatalf("%s", r.Body)
	}
	if r := importTo(t, &s.Endpoint, f.full, f.material[2], time.Time{}); r.Status != 200 {
		t.Fatalf("%s", r.Body)
	}
	for _, id := range []string{f.rotates, f.expires, f.full} {
		encrypt(id)
	}
	s.Work(t)
	s.Close()
	return f
}

// importTo imports material, new or the same again, that expires at a date, or never. The reply is nil if the server died of it.
func importTo(t *testing.T, e *Endpoint, id string, material []byte, expires time.Time) *Reply {
	t.Helper()
	var p struct{ ImportToken, PublicKey []byte }
	e.Do(t, "GetParametersForImport", marshal(t, map[string]any{"KeyId": id, "WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"})).Members(t, &p)
	public := must(x509.ParsePKIXPublicKey(p.PublicKey))(t).(*rsa.PublicKey)
	members := map[string]any{
		"KeyId": id, "ImportToken": p.ImportToken, "EncryptedKeyMaterial": must(rsa.EncryptOAEP(sha256.New(), rand.Reader, public, material, nil))(t),
		"ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE",
	}
	if !expires.IsZero() {
		members["ExpirationModel"], members["ValidTo"] = "KEY_MATERIAL_EXPIRES", expires.Unix()
	}
	c := &Client{e: *e}
	defer c.close()
	r, err := c.Try("ImportKeyMaterial", marshal(t, members))
	if err != nil && r != nil {
		t.Fatal(err)
	}
	return r
}

// TestFailpoints kills keyplane with SIGKILL at every failpoint in the tree, each time on a copy of one data directory in which everything is due, and looks at what the
// next process makes of it: what was due is done, once; nothing is destroyed early; material is there as a whole or not at all; and what the client asked for, who had no
// answer, can be asked for again.
func TestFailpoints(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds the command once more")
	}
	t.Parallel()
	began := time.Now()
	program := build(t, "failpoints")
	f := prepareFailing(t)
	names := failpoints(t)
	if len(names) < 10 {
		t.Fatalf("only %d failpoints are found: %v", len(names), names)
	}
	tried := 0
	t.Run("at", func(t *testing.T) {
		for _, name := range names {
			if isReplicating(name) || strings.HasPrefix(name, "keystore.") {
				continue
			}
			tried++
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				f.try(t, program, name)
			})
		}
	})
	t.Logf("life: killed at %d failpoints, of %d in the tree: nothing early, nothing twice, nothing half; %.1f s", tried, len(names), time.Since(began).Seconds())
}

// asked are the failpoints that a client's request comes by; the workers come by the others as soon as the process has started.
var asked = map[string]func(*failing, *testing.T, *Process) *Reply{
	"import.unwrapped": (*failing).fill, "import.written": (*failing).fill, "import.deleted": (*failing).drain,
}

// fill imports into the empty key, drain takes the full key's material away.
func (f *failing) fill(t *testing.T, p *Process) *Reply {
	return importTo(t, &p.Endpoint, f.empty, f.material[1], time.Time{})
}

func (f *failing) drain(t *testing.T, p *Process) *Reply {
	c := &Client{e: p.Endpoint}
	defer c.close()
	r, _ := c.Try("DeleteImportedKeyMaterial", marshal(t, map[string]any{"KeyId": f.full}))
	return r
}

func (f *failing) try(t *testing.T, program, name string) {
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.CopyFS(dir, os.DirFS(f.dir)); err != nil {
		t.Fatal(err)
	}
	private(t, dir)
	p := launch(t, program, []string{"KEYPLANE_FAILPOINT=" + name}, dir)
	if act := asked[name]; act != nil {
		p.serve(t)
		if r := act(f, t, p); r != nil {
			t.Errorf("the request was answered: %d %s", r.Status, r.Body)
		}
	}
	p.killed(t)
	for restart := range 2 { // the second one finds nothing to do
		p = launch(t, program, nil, dir)
		p.serve(t)
		f.check(t, p, name, restart)
		p.Kill(t)
	}
}

// killed waits for the process to be killed at its failpoint.
func (p *Process) killed(t *testing.T) {
	t.Helper()
	p.Wait(t) // fails the test where the process does not come by
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the process ended with %v", p.cmd.ProcessState)
	}
}

// private takes from the copies of files what others could do with them, which keyplane does not have.
func private(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return os.Chmod(path, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// state is a key's state, "" if there is no such key.
func (p *Process) state(t *testing.T, id string) string {
	t.Helper()
	r := p.Do(t, "DescribeKey", marshal(t, map[string]any{"KeyId": id}))
	if r.Type == isNotFound {
		return gone
	}
	var m struct{ KeyMetadata struct{ KeyState string } }
	r.Members(t, &m)
	return m.KeyMetadata.KeyState
}

// opens decrypts the ciphertext that a key made before.
func (f *failing) opens(t *testing.T, p *Process, id string) {
	t.Helper()
	var out struct{ Plaintext string }
	p.Do(t, "Decrypt", marshal(t, map[string]any{"CiphertextBlob": f.blobs[id]})).Members(t, &out)
	equal(t, "the old plaintext", out.Plaintext, encode([]byte(id)))
}

// check looks at all keys after a restart, the first or the second.
func (f *failing) check(t *testing.T, p *Process, name string, restart int) {
	t.Helper()
	type seen struct {
		Rotations int
		Deleted   string
		Expires   string
	}
	look := func() (s seen) {
		var list struct{ Rotations []any }
		p.Do(t, "ListKeyRotations", marshal(t, map[string]any{"KeyId": f.rotates})).Members(t, &list)
		s.Rotations, s.Deleted, s.Expires = len(list.Rotations), p.state(t, f.deleted), p.state(t, f.expires)
		return s
	}
	want := seen{1, gone, pendingImport}
	if restart > 0 {
		want.Expires = enabled
	}
	got := look()
	for end := time.Now().Add(processStartMax); got != want && time.Now().Before(end); time.Sleep(10 * time.Millisecond) { // until the workers have been there
		got = look()
	}
	equal(t, "what the workers did", got, want)
	var status struct {
		KeyRotationEnabled bool
		NextRotationDate   float64
	}
	p.Do(t, "GetKeyRotationStatus", marshal(t, map[string]any{"KeyId": f.rotates})).Members(t, &status)
	next := time.Unix(int64(status.NextRotationDate), 0)
	if left := time.Until(next); !status.KeyRotationEnabled || left < 78*days || left > 81*days {
		t.Errorf("the next rotation is at %v", next)
	}
	f.opens(t, p, f.rotates)
	if r := p.Do(t, "DescribeKey", `{"KeyId":"alias/deleted"}`); r.Type != isNotFound {
		t.Errorf("the alias of the deleted key: %s", r.Body)
	}
	equal(t, "the key whose time has not come", p.state(t, f.early), pendingDeletion)

	empty, full := pendingImport, enabled
	switch {
	case restart > 0 && asked[name] != nil, name == "import.written":
		empty = map[bool]string{true: enabled, false: pendingImport}[strings.HasPrefix(name, "import.") && name != "import.deleted"]
	case name == "import.deleted":
		full = pendingImport
	}
	equal(t, "the key that had no material", p.state(t, f.empty), empty)
	equal(t, "the key that had material", p.state(t, f.full), full)
	if restart > 0 {
		f.opens(t, p, f.expires)
		f.opens(t, p, f.full)
		return
	}
	// The client asks again, and whose material has gone brings it again.
	switch name {
	case "import.unwrapped", "import.written":
		if r := f.fill(t, p); r == nil || r.Status != 200 {
			t.Errorf("importing again: %+v", r)
		}
	case "import.deleted":
		if r := f.drain(t, p); r == nil || r.Status != 200 {
			t.Errorf("deleting again: %+v", r)
		}
		if r := importTo(t, &p.Endpoint, f.full, f.material[2], time.Time{}); r == nil || r.Status != 200 {
			t.Errorf("importing what was deleted: %+v", r)
		}
	}
	if r := importTo(t, &p.Endpoint, f.expires, f.material[0], time.Now().Add(days)); r == nil || r.Status != 200 {
		t.Errorf("importing what has expired: %s", fmt.Sprint(r))
	}
	f.opens(t, p, f.expires)
	f.opens(t, p, f.full)
}
