package audit

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyplane/keyplane/internal/audit/auditkey"
)

const testOrigin = "keyplane/us-east-1/test"

// testKey signs as an HSM's key does.
type testKey struct{ *ecdsa.PrivateKey }

func (k testKey) Public() *ecdsa.PublicKey { return &k.PublicKey }
func (k testKey) Sign(digest []byte) ([]byte, error) {
	return ecdsa.SignASN1(rand.Reader, k.PrivateKey, digest)
}

// signer is a signer and its verifier.
type signer struct {
	note.Signer
	verifier note.Verifier
	key      *ecdsa.PrivateKey
}

func newSigner(key *ecdsa.PrivateKey) (signer, error) {
	s, err := auditkey.NewSigner(testOrigin, testKey{key})
	if err != nil {
		return signer{}, err
	}
	v, err := auditkey.NewVerifier(testOrigin, &key.PublicKey)
	return signer{s, v, key}, err
}

var testSigner = sync.OnceValue(func() signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	s, err := newSigner(key)
	if err != nil {
		panic(err)
	}
	return s
})

// store keeps the newest checkpoint as etcd does.
type store struct {
	mu     sync.Mutex
	newest []byte
	fail   error
	lose   bool // the answer to the next Publish
}

func (s *store) Newest(context.Context) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newest, nil
}

func (s *store) Publish(_ context.Context, old, new []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	if !bytes.Equal(old, s.newest) {
		return errors.New("compare failed")
	}
	s.newest = bytes.Clone(new)
	if s.lose {
		s.lose = false
		return context.DeadlineExceeded
	}
	return nil
}

func testConfig(dir string) Config {
	s := testSigner()
	return Config{Dir: dir, Durability: Write, Timeout: 10 * time.Second, Origin: testOrigin, Signer: s, Verifier: s.verifier, CheckpointEvery: 20 * time.Millisecond,
		Logger: slog.New(slog.DiscardHandler)}
}

func mustOpen(t testing.TB, cfg Config) *Log {
	t.Helper()
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func mustClose(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// record is a record of the size and shape of GenerateDataKey's.
func record(n int) []byte {
	return fmt.Appendf(nil, `{"eventVersion":"1.11","userIdentity":{"type":"IAMUser","principalId":"AIDAEXAMPLE%04d","arn":"arn:aws:iam::111122223333:user/user-%d","accountId":"111122223333","accessKeyId":"AKIAEXAMPLE%04d","userName":"user-%d"},`+
		`"eventTime":"%s","eventSource":"kms.amazonaws.com","eventName":"GenerateDataKey","awsRegion":"us-east-1","sourceIPAddress":"192.0.2.%d","userAgent":"aws-sdk-go-v2/1.47.7 ua/2.1 os/linux lang/go#1.26.8 api/kms#1.62.4",`+
		`"requestParameters":{"keyId":"alias/orders","keySpec":"AES_256","encryptionContext":{"tenant":"%d"}},"responseElements":null,"requestID":"%08x-2b1c-4a53-9c0f-6d1f2f8f1c11","eventID":"%08x-9c7e-4c3b-8f11-0c9f2e5d7a22","readOnly":true,`+
		`"resources":[{"accountId":"111122223333","type":"AWS::KMS::Key","ARN":"arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-%012d"}],"eventType":"AwsApiCall","managementEvent":true,"recipientAccountId":"111122223333","eventCategory":"Management"}`,
		n%50, n%50, n%50, n%50, time.Unix(1_800_000_000+int64(n), 0).UTC().Format(time.RFC3339), n%250, n, n, n, n%20)
}

func appendN(t testing.TB, l *Log, from, n int) {
	t.Helper()
	for i := from; i < from+n; i++ {
		if err := l.Append(record(i)); err != nil {
			t.Fatal(err)
		}
	}
}

func mustVerify(t testing.TB, dir string, newest []byte) Report {
	t.Helper()
	r, err := Verify(t.Context(), dir, testSigner().verifier, newest)
	if err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(r.Faults, "\n"))
	}
	return r
}

// read returns all records of the log.
func read(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	if err := Search(t.Context(), dir, Filter{}, func(record []byte) bool {
		out = append(out, string(record))
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// await waits for what another goroutine is about to do.
func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s", what)
		}
	}
}

func exists(dir, pattern string) bool {
	names, _ := filepath.Glob(filepath.Join(dir, pattern))
	return len(names) > 0
}

func TestAppendAndReopen(t *testing.T) {
	for _, d := range []Durability{Fsync, Write} {
		dir := filepath.Join(t.TempDir(), "audit")
		cfg := testConfig(dir)
		cfg.Durability = d
		var seen []string
		cfg.Observe = func(index uint64, record []byte) {
			if index != uint64(len(seen)) {
				t.Errorf("observed %d, want %d", index, len(seen))
			}
			seen = append(seen, string(record))
		}
		var want []string
		for run := range 4 {
			l := mustOpen(t, cfg)
			for i := range 300 {
				want = append(want, string(record(300*run+i)))
				if err := l.Append(record(300*run + i)); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := Open(t.Context(), cfg); !errors.Is(err, ErrLocked) {
				t.Fatalf("opened twice: %v", err)
			}
			mustClose(t, l)
			if err := l.Append([]byte("{}")); err != ErrClosed {
				t.Fatalf("Append after Close: %v", err)
			}
			if !slices.Equal(read(t, dir), want) || !slices.Equal(seen, want) {
				t.Fatalf("run %d: read %d, observed %d, appended %d", run, len(read(t, dir)), len(seen), len(want))
			}
			if r := mustVerify(t, dir, nil); r.Records != uint64(len(want)) || r.Covered != r.Records || r.Uncovered != 0 || r.Checkpoints == 0 {
				t.Fatalf("report %+v", r)
			}
		}
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Fatalf("directory %v, %v", info.Mode(), err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
				t.Errorf("%s: mode %v, %v", e.Name(), info.Mode(), err)
			}
		}
	}
}

func TestRecordLimits(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, testConfig(dir))
	for _, n := range []int{1, RecordMax - 1, RecordMax} {
		if err := l.Append(bytes.Repeat([]byte("x"), n)); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	for _, bad := range [][]byte{nil, {}, bytes.Repeat([]byte("x"), RecordMax+1), []byte("{\n}")} {
		if err := l.Append(bad); err != ErrRecord {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
	mustClose(t, l)
	if r := mustVerify(t, dir, nil); r.Records != 3 {
		t.Errorf("report %+v", r)
	}
}

func TestConfigRange(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"dir": func(c *Config) { c.Dir = "" }, "durability": func(c *Config) { c.Durability = 2 }, "signer": func(c *Config) { c.Signer = nil },
		"origin": func(c *Config) { c.Origin = "a\nb" }, "no origin": func(c *Config) { c.Origin = "" }, "timeout": func(c *Config) { c.Timeout = 1 },
		"size": func(c *Config) { c.SegmentBytes = -1 }, "retention": func(c *Config) { c.RetainAge = -1 },
		"verifier": func(c *Config) {
			_, vkey, _ := note.GenerateKey(rand.Reader, "other")
			c.Verifier, _ = note.NewVerifier(vkey)
		},
	} {
		cfg := testConfig(t.TempDir())
		change(&cfg)
		if l, err := Open(t.Context(), cfg); err == nil {
			l.Close()
			t.Errorf("%s accepted", name)
		}
	}
}

// TestOpenClose: Close comes to its end whatever the writer is about to do.
func TestOpenClose(t *testing.T) {
	n := 300
	if testing.Short() {
		n = 30
	}
	cfg := testConfig(t.TempDir())
	for i := range n {
		l := mustOpen(t, cfg)
		if i%2 == 0 {
			appendN(t, l, i, 1)
		}
		mustClose(t, l)
	}
}

// TestConcurrent: every record whose Append succeeded is in the log, once, whoever shared a commit.
func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	cfg := testConfig(dir)
	cfg.SegmentBytes = 200_000
	l := mustOpen(t, cfg)
	const callers, each = 64, 200
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := range each {
				if err := l.Append(record(c*each + i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s := l.Stats()
	if s.Records != callers*each || s.Next != s.Records || s.Failed != 0 || s.Refused != 0 || s.Commits == 0 {
		t.Errorf("stats %+v", s)
	}
	mustClose(t, l)
	got := read(t, dir)
	slices.Sort(got)
	var want []string
	for i := range callers * each {
		want = append(want, string(record(i)))
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%d records, want %d", len(got), len(want))
	}
	if r := mustVerify(t, dir, nil); r.Segments < 10 {
		t.Errorf("report %+v", r)
	}
}

// TestRotation: segments are sealed by size and by age, compressed, and verify with what is published.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	cfg := testConfig(dir)
	cfg.SegmentBytes = 20_000
	s := &store{}
	cfg.Newest, cfg.Publish = s.Newest, s.Publish
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 1000)
	await(t, "compression", func() bool { f, _ := list(dir); return len(f.plain) == 1 && len(f.packed) > 10 })
	mustVerify(t, dir, nil)
	mustClose(t, l)
	if r := mustVerify(t, dir, s.newest); r.Covered != 1000 {
		t.Errorf("report %+v", r)
	}
	if len(read(t, dir)) != 1000 {
		t.Error("records are missing")
	}
	cfg.SegmentAge = 50 * time.Millisecond
	l = mustOpen(t, cfg)
	before := l.Stats().Segments
	appendN(t, l, 1000, 1)
	await(t, "rotation by age", func() bool { return l.Stats().Segments > before })
	mustClose(t, l)
	mustVerify(t, dir, s.newest)
}

func TestRetention(t *testing.T) {
	dir := t.TempDir()
	cfg := testConfig(dir)
	cfg.SegmentBytes, cfg.RetainBytes = 20_000, 20_000
	s := &store{}
	cfg.Newest, cfg.Publish = s.Newest, s.Publish
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 3000)
	await(t, "removal", func() bool { return !exists(dir, segmentName(0, ".log*")) })
	appendN(t, l, 3000, 500)
	mustClose(t, l)
	r := mustVerify(t, dir, s.newest)
	if r.First == 0 || r.Covered < 3500 {
		t.Errorf("report %+v", r)
	}
	for range 2 { // and again after a start
		l = mustOpen(t, cfg)
		appendN(t, l, 3500, 700)
		await(t, "retention", func() bool { // Close does not wait for what is due
			files, err := list(dir)
			return err == nil && len(files.hashes) <= len(files.segments())+1 && exists(dir, segmentName(files.segments()[0], packedSuffix))
		})
		mustClose(t, l)
		r = mustVerify(t, dir, s.newest)
	}
	files, err := list(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(files.hashes) > len(files.segments())+1 {
		t.Errorf("%d files of hashes for %d segments", len(files.hashes), len(files.segments()))
	}
	// What retention gave up is no licence to remove more.
	if err := os.Remove(filepath.Join(dir, segmentName(files.segments()[0], packedSuffix))); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(t.Context(), dir, testSigner().verifier, nil); !errors.Is(err, ErrTampered) {
		t.Errorf("a removed segment: %v", err)
	}

	aged := testConfig(t.TempDir())
	aged.SegmentBytes, aged.RetainAge = 20_000, 100*time.Millisecond
	l = mustOpen(t, aged)
	appendN(t, l, 0, 100)
	await(t, "removal by age", func() bool { return !exists(aged.Dir, segmentName(0, ".log*")) })
	mustClose(t, l)
	mustVerify(t, aged.Dir, nil)
}
