package auditexport

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var testKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

var t0 = time.Date(2026, 11, 26, 8, 58, 30, 0, time.UTC)

// call is a record of one account's call with keys of accounts.
func call(n int, at time.Time, region, caller string, owners ...string) []byte {
	var resources []string
	for _, o := range owners {
		resources = append(resources, fmt.Sprintf(`{"accountId":"%s","type":"AWS::KMS::Key","ARN":"arn:aws:kms:%s:%s:key/1234abcd-12ab-34cd-56ef-1234567890ab"}`, o, region, o))
	}
	return fmt.Appendf(nil, `{"eventVersion":"1.11","userIdentity":{"type":"AssumedRole","principalId":"AROAEXAMPLE:s","arn":"arn:aws:sts::%s:assumed-role/r/s",`+
		`"accountId":"%s","accessKeyId":"ASIAEXAMPLE","sessionContext":{"attributes":{"creationDate":"2026-11-26T00:00:00Z"}}},"eventTime":"%s",`+
		`"eventSource":"kms.amazonaws.com","eventName":"Decrypt","awsRegion":"%s","sourceIPAddress":"203.0.113.1","userAgent":"a<b>&\u2028",`+
		`"requestParameters":{"encryptionContext":{"n":"%d","z":1.50}},"responseElements":null,"requestID":"r","eventID":"00000000-0000-4000-8000-%012d",`+
		`"readOnly":true,"resources":[%s],"eventType":"AwsApiCall","managementEvent":true,"recipientAccountId":"%s","eventCategory":"Management"}`,
		caller, caller, at.UTC().Format(extended), region, n, n, strings.Join(resources, ","), caller)
}

const (
	alice, bob, carol = "111122223333", "444455556666", "777788889999"
	east, west        = "us-east-1", "eu-west-1"
)

// sample is an hour of calls, three hours of silence, and a quarter of an hour more; some come late.
func sample() (records [][]byte) {
	for i := range 400 {
		at := t0.Add(time.Duration(i) * 10 * time.Second)
		if i >= 300 {
			at = at.Add(3 * time.Hour)
		}
		if i%17 == 0 {
			at = at.Add(-90 * time.Second)
		}
		region := east
		if i%5 == 0 {
			region = west
		}
		switch {
		case i > 320 && i%7 == 0: // only at the end
			records = append(records, call(i, at, region, carol, carol))
		case i%11 == 0:
			records = append(records, call(i, at, region, bob, alice, bob))
		case i%2 == 0:
			records = append(records, call(i, at, region, alice, alice))
		default:
			records = append(records, call(i, at, region, bob))
		}
	}
	return append(records, []byte(`{"note":"the log's own"}`))
}

func source(records [][]byte) Source {
	return func(from uint64) iter.Seq2[[]byte, error] {
		return func(yield func([]byte, error) bool) {
			for _, r := range records[from:] {
				if !yield(append(bytes.Clone(r), '\n'), nil) {
					return
				}
			}
		}
	}
}

func config(dir string, records [][]byte) Config {
	return Config{Dir: dir, Key: testKey(), Records: source(records), Now: func() time.Time { return t0.Add(1000 * time.Hour) }}
}

func mustExport(t testing.TB, cfg Config) Report {
	t.Helper()
	r, err := Export(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// tree is every file of an export by name.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || name == ".lock" {
			return err
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		files[name] = fmt.Sprintf("%x", sha256.Sum256(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func sameTree(t testing.TB, got, want map[string]string) {
	t.Helper()
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s differs, or is missing", name)
		}
	}
	for name := range got {
		if want[name] == "" {
			t.Errorf("%s should not be there", name)
		}
	}
}

func mustValidate(t testing.TB, dir string) ValidateReport {
	t.Helper()
	keys, err := ReadPublicKeys(filepath.Join(dir, keysFile))
	if err != nil {
		t.Fatal(err)
	}
	r, err := Validate(t.Context(), dir, keys)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Faults) > 0 {
		t.Fatalf("%q", r.Faults)
	}
	return r
}

func TestExport(t *testing.T) {
	dir := t.TempDir()
	records := sample()
	r := mustExport(t, config(dir, records))
	if r.Records != 401 || r.Skipped != 1 || r.Next != 401 || r.Copies == 0 {
		t.Errorf("%+v", r)
	}
	v := mustValidate(t, dir)
	if v.Records != r.Records-r.Skipped+r.Copies || v.Files != r.Files || v.Digests != r.Digests || v.Chains != 6 {
		t.Errorf("exported %+v, found %+v", r, v)
	}
	independent(t, dir, records)
	if left, _ := os.ReadDir(filepath.Join(dir, partialDir)); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	for name := range tree(t, dir) {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

// Files are cut at their size, and what does not fit into memory waits on the disk: with the same records in the end.
func TestExportSizes(t *testing.T) {
	records := sample()
	dir := t.TempDir()
	whole := mustExport(t, config(dir, records))
	spilled := t.TempDir()
	cfg := config(spilled, records)
	cfg.buffer = 2000
	mustExport(t, cfg)
	sameTree(t, tree(t, spilled), tree(t, dir))

	small := t.TempDir()
	cfg = config(small, records)
	cfg.FileBytes, cfg.buffer = 3000, 5000
	r := mustExport(t, cfg)
	if r.Files <= whole.Files || r.Digests != whole.Digests {
		t.Errorf("%+v, with large files %+v", r, whole)
	}
	mustValidate(t, small)
	independent(t, small, records)
}

// An export in steps has the same records in one chain; a run without new records changes nothing.
func TestExportContinues(t *testing.T) {
	records := sample()
	dir := t.TempDir()
	files, digests := 0, 0
	for _, upto := range []int{1, 2, 90, 91, 250, 250, 320, len(records)} {
		before := tree(t, dir)
		r := mustExport(t, config(dir, records[:upto]))
		if r.Next != uint64(upto) {
			t.Fatalf("%+v", r)
		}
		files, digests = files+r.Files, digests+r.Digests
		v := mustValidate(t, dir)
		if v.Files != files || v.Digests != digests {
			t.Errorf("up to %d: %+v, %d files and %d digests exported", upto, v, files, digests)
		}
		after := tree(t, dir)
		if r.Records == 0 {
			sameTree(t, after, before)
		}
		for name, sum := range before { // what was delivered stays as it is
			if strings.HasPrefix(name, "AWSLogs/") && after[name] != sum {
				t.Errorf("%s was changed", name)
			}
		}
	}
	independent(t, dir, records)
	// Another key goes on with the chain, and both are published.
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	more := append(records, call(1000, t0.Add(9*time.Hour), east, alice, alice))
	cfg := config(dir, more)
	cfg.Key = other
	mustExport(t, cfg)
	if v := mustValidate(t, dir); len(v.Fingerprints) != 2 {
		t.Errorf("%+v", v)
	}
	independent(t, dir, more)
	for what, change := range map[string]func(*Config){
		"another bucket": func(c *Config) { c.Bucket = "another-bucket" }, "another trail": func(c *Config) { c.Trail = "another" },
	} {
		cfg := config(dir, more)
		change(&cfg)
		if _, err := Export(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "give the same") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A log that does not have what was exported, where it was, is another one, or an older copy: nothing is exported.
func TestExportOtherLog(t *testing.T) {
	records := sample()
	dir := t.TempDir()
	mustExport(t, config(dir, records[:50]))
	before := tree(t, dir)
	for what, other := range map[string][][]byte{
		"the oldest is gone": records[1:], "cut": records[:49], "none": nil, "another record": append(slices.Clone(records[:49]), records[60:]...),
	} {
		cfg := config(dir, other)
		cfg.Records = Lines(bytes.NewReader(bytes.Join(other, []byte("\n"))))
		if _, err := Export(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "exported") {
			t.Errorf("%s: %v", what, err)
		}
		sameTree(t, tree(t, dir), before)
	}
	cfg := config(dir, nil)
	cfg.Records = func(uint64) iter.Seq2[[]byte, error] { return func(func([]byte, error) bool) {} }
	if _, err := Export(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "exported") {
		t.Errorf("a source without a word: %v", err)
	}
	mustExport(t, config(dir, records))
	independent(t, dir, records)
}

// A run that fails on the way and is repeated ends with the same bytes as one that did not.
func TestExportInterrupted(t *testing.T) {
	records := sample()
	want := t.TempDir()
	mustExport(t, config(want, records))
	broken := errors.New("broken")
	step := 97
	if testing.Short() {
		step = 291
	}
	for at := 0; at < len(records); at += step {
		dir := t.TempDir()
		cfg := config(dir, records)
		good := cfg.Records
		cfg.Records = func(from uint64) iter.Seq2[[]byte, error] {
			return func(yield func([]byte, error) bool) {
				n := int(from)
				for r := range good(from) {
					if n == at {
						yield(nil, broken)
						return
					}
					if n++; !yield(r, nil) {
						return
					}
				}
			}
		}
		if _, err := Export(t.Context(), cfg); !errors.Is(err, broken) {
			t.Fatal(err)
		}
		cfg.Records = good
		mustExport(t, cfg)
		sameTree(t, tree(t, dir), tree(t, want))
	}
}

// A run that dies while it puts files in their place, before the state, is undone by the next one.
func TestExportKilled(t *testing.T) {
	records := sample()
	dir := t.TempDir()
	mustExport(t, config(dir, records[:200]))
	before := tree(t, dir)
	saved, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		t.Fatal(err)
	}
	mustExport(t, config(dir, records))
	want := tree(t, dir)
	var p pending
	p.Next = uint64(len(records))
	for name := range want {
		if before[name] == "" {
			p.Files = append(p.Files, pendingFile{Name: name})
		}
	}
	p.Files = append(p.Files, pendingFile{Name: "AWSLogs/not/put/yet"})
	list, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{stateFile: saved, pendingName: list, partialDir + "/7": []byte("half")} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Without new records the delivery that did not end is gone; with them it is made again.
	mustExport(t, config(dir, records[:200]))
	got := tree(t, dir)
	delete(got, keysFile) // its validity was written ahead
	delete(before, keysFile)
	sameTree(t, got, before)
	mustExport(t, config(dir, records))
	sameTree(t, tree(t, dir), want)
	if err := os.WriteFile(filepath.Join(dir, pendingName), []byte(`{"next":1,"since":1,"files":[{"name":"../../etc/passwd"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Export(t.Context(), config(dir, records)); err == nil || !strings.Contains(err.Error(), "elsewhere") {
		t.Errorf("a list that leads out of the directory: %v", err)
	}
}

func TestTwoExports(t *testing.T) {
	dir := t.TempDir()
	cfg := config(dir, sample())
	good := cfg.Records
	cfg.Records = func(from uint64) iter.Seq2[[]byte, error] {
		if _, err := Export(t.Context(), config(dir, nil)); err == nil || !strings.Contains(err.Error(), "another export is running") {
			t.Errorf("a second export at the same time: %v", err)
		}
		return good(from)
	}
	mustExport(t, cfg)
}

// A record from the future moves nothing; it is delivered now.
func TestFuture(t *testing.T) {
	dir := t.TempDir()
	records := [][]byte{call(1, t0, east, alice), call(2, t0.Add(50*365*24*time.Hour), east, alice), call(3, t0.Add(time.Minute), east, alice)}
	cfg := config(dir, records)
	cfg.Now = func() time.Time { return t0.Add(2 * time.Hour) }
	if r := mustExport(t, cfg); r.Digests > 3 {
		t.Errorf("%+v", r)
	}
	mustValidate(t, dir)
	independent(t, dir, records)
}

func TestSkipped(t *testing.T) {
	dir := t.TempDir()
	good := string(call(1, t0, east, alice))
	var records [][]byte
	for _, line := range []string{
		"", "{}", "[]", "null", good[1:], strings.Replace(good, `"recipientAccountId":"111122223333"`, `"recipientAccountId":"../../../tmp/x"`, 1),
		strings.Replace(good, east, "../..", 1), strings.Replace(good, `"recipientAccountId":"111122223333"`, `"recipientAccountId":"11112222333"`, 1),
		strings.Replace(good, t0.Format(extended), "yesterday", 1), strings.Replace(good, `"eventID"`, `"eventId2"`, 1),
	} {
		records = append(records, []byte(line))
	}
	if r := mustExport(t, config(dir, records)); r.Skipped != int64(len(records)) || r.Files != 0 || r.Digests != 0 || r.Next != uint64(len(records)) {
		t.Errorf("%+v", r)
	}
	if _, err := Export(t.Context(), config(t.TempDir(), [][]byte{bytes.Repeat([]byte{' '}, recordMax+1)})); err == nil {
		t.Error("a record over the limit")
	}
}

func TestShare(t *testing.T) {
	record := call(7, t0, east, bob, alice, bob, alice, carol)
	e, ok := parse(record)
	if !ok {
		t.Fatal("not a record")
	}
	owners := e.owners()
	if !slices.Equal(owners, []string{alice, carol}) {
		t.Fatalf("%q", owners)
	}
	original, copies, err := share(record, &e, owners)
	if err != nil || len(copies) != 2 {
		t.Fatal(err)
	}
	decode := func(b []byte) map[string]any {
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	was, now := decode(record), decode(original)
	shared := now["sharedEventID"]
	delete(now, "sharedEventID")
	if fmt.Sprint(was) != fmt.Sprint(now) || shared == nil {
		t.Errorf("the caller's record was changed: %s", original)
	}
	// The caller's bytes stay as they were, but for the new member.
	if got := strings.Replace(string(original), fmt.Sprintf(`"sharedEventID":"%s",`, shared), "", 1); got != string(record) {
		t.Errorf("got  %s\nwant %s", got, record)
	}
	ids := map[any]bool{was["eventID"]: true, shared: true}
	for i, c := range copies {
		m := decode(c)
		if m["recipientAccountId"] != owners[i] || m["sharedEventID"] != shared || ids[m["eventID"]] || len(m["eventID"].(string)) != 36 {
			t.Errorf("copy: %s", c)
		}
		ids[m["eventID"]] = true
		if id := fmt.Sprint(m["userIdentity"]); id != fmt.Sprint(map[string]any{"type": "AWSAccount", "principalId": "AROAEXAMPLE:s", "accountId": bob}) {
			t.Errorf("identity in the owner's copy: %s", id)
		}
		for _, secret := range []string{"ASIAEXAMPLE", "assumed-role"} {
			if bytes.Contains(c, []byte(secret)) {
				t.Errorf("the copy tells %s", secret)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(was)) {
			if name != "userIdentity" && name != "eventID" && name != "recipientAccountId" && fmt.Sprint(m[name]) != fmt.Sprint(was[name]) {
				t.Errorf("%s: %v, was %v", name, m[name], was[name])
			}
		}
	}
	// A shared ID that is there is kept; a call for a key that does not exist, or that is one's own, is nobody else's.
	withID := bytes.Replace(record, []byte(`"eventCategory"`), []byte(`"sharedEventID":"s","eventCategory"`), 1)
	e, _ = parse(withID)
	original, copies, err = share(withID, &e, e.owners())
	if err != nil || !bytes.Equal(original, withID) || decode(copies[0])["sharedEventID"] != "s" {
		t.Errorf("%s, %v", original, err)
	}
	for what, r := range map[string][]byte{
		"own key": call(1, t0, east, bob, bob), "no key": call(1, t0, east, bob), "bad account": call(1, t0, east, bob, "../x"),
		"refused": bytes.Replace(record, []byte(`"requestID"`), []byte(`"errorCode":"AccessDenied","requestID"`), 1),
	} {
		if e, ok := parse(r); !ok || len(e.owners()) != 0 {
			t.Errorf("%s: %v, %q", what, ok, e.owners())
		}
	}
	refused := bytes.Replace(withID, []byte(`"requestID"`), []byte(`"errorCode":"DisabledException","requestID"`), 1)
	if e, ok := parse(refused); !ok || len(e.owners()) != 2 {
		t.Errorf("refused, and shared: %v, %q", ok, e.owners())
	}
	service := bytes.Replace(record, record[bytes.Index(record, []byte(`{"type":"AssumedRole"`)):bytes.Index(record, []byte(`,"eventTime"`))],
		[]byte(`{"type":"AWSService","invokedBy":"s3.amazonaws.com"}`), 1)
	e, _ = parse(service)
	if _, copies, err = share(service, &e, e.owners()); err != nil || !bytes.Contains(copies[0], []byte(`"userIdentity":{"invokedBy":"s3.amazonaws.com","type":"AWSService"}`)) {
		t.Errorf("a service's call: %s, %v", copies, err)
	}
}

func TestConfigRefused(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Config){
		"no directory": func(c *Config) { c.Dir = "" }, "no key": func(c *Config) { c.Key = nil }, "a small key": func(c *Config) { c.Key = small },
		"no records": func(c *Config) { c.Records = nil }, "bucket": func(c *Config) { c.Bucket = "a/b" }, "bucket in capitals": func(c *Config) { c.Bucket = "ABC" },
		"trail": func(c *Config) { c.Trail = "a_b" }, "trail outside": func(c *Config) { c.Trail = "../../x" }, "size": func(c *Config) { c.FileBytes = -1 },
		"a large size": func(c *Config) { c.FileBytes = fileMax + 1 },
	} {
		cfg := config(t.TempDir(), nil)
		change(&cfg)
		if _, err := Export(t.Context(), cfg); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}
