package lastuse

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/uuid"
)

const (
	account keyid.Account = 111122223333
	home                  = "us-west-2"
)

var (
	t0   = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	ids  = uuid.New()
	user = &authz.Caller{Principal: policy.Principal{Kind: policy.User, Account: account, ARN: "arn:aws:iam::111122223333:user/u"}, UserID: "AIDA", UserName: "u"}
)

func keyOf(n uint64) keyid.ID {
	var b [16]byte
	binary.BigEndian.PutUint64(b[8:], n)
	return keyid.NewID(b, false)
}

func arnOf(id keyid.ID) []byte { return keyid.AppendKeyARN(nil, "aws", home, account, id) }

// record is a record as the planes write them, with all that a client can choose.
func record(operation string, at time.Time, keys ...keyid.ID) *cloudtrail.Record {
	r := &cloudtrail.Record{
		Time: at, Caller: user, AccessKeyID: "AKIA", Source: cloudtrail.KMS, Name: operation, Region: home, UserAgent: []byte(`},"eventTime":"`),
		ReadOnly: true, Recipient: account,
	}
	context := new(blob.Context)
	context.Add([]byte("eventID"), []byte(`","readOnly":true,"resources":[`))
	context.Add([]byte(`x","requestID`), []byte(`}}\`))
	object := cloudtrail.AppendMemberContext([]byte("{"), "encryptionContext", context)
	r.RequestParameters = append(cloudtrail.AppendMember(object, "requestID", []byte(`"`)), '}')
	r.AdditionalEventData = append(cloudtrail.AppendMember([]byte("{"), "keyMaterialId", []byte("{[")), '}')
	var id [uuid.Len]byte
	ids.Fill(&id)
	r.RequestID = id[:]
	ids.Fill(&r.EventID)
	for _, k := range keys {
		r.AddResource(arnOf(k), account)
	}
	return r
}

func open(t testing.TB, path string) *Index {
	t.Helper()
	x, err := Open(path, t0)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func fresh(t testing.TB) *Index { return open(t, filepath.Join(t.TempDir(), "lastuse")) }

// next is Observe of the record that comes next.
func (x *Index) next(line []byte) { x.Observe(x.Position(), line) }

// is checks that the last use of a key is what the record tells, nil for none.
func (x *Index) is(t *testing.T, id keyid.ID, r *cloudtrail.Record) {
	t.Helper()
	u, ok := x.Last(home, account, id)
	if r == nil {
		if ok {
			t.Errorf("%s: %+v, want none", id, u)
		}
		return
	}
	if !ok || u.Operation.String() != r.Name || u.Seconds != r.Time.Unix() || string(uuid.Append(nil, &u.EventID)) != string(r.EventID[:]) ||
		string(uuid.Append(nil, &u.RequestID)) != string(r.RequestID) {
		t.Errorf("%s: %v %+v, want %s at %d", id, ok, u, r.Name, r.Time.Unix())
	}
}

func TestOperations(t *testing.T) {
	x := fresh(t)
	for i := range kmsapi.Operations {
		op := kmsapi.Operations[i].Name
		want := operationOf([]byte(op)) != 0
		if crypto := kmsapi.Operations[i].Plane == kmsapi.DataPlane && op != "GenerateRandom" && op != "GetPublicKey"; want != crypto {
			t.Errorf("%s is a use: %v", op, want)
		}
		r, key := record(op, t0.Add(time.Duration(i)*time.Hour), keyOf(uint64(i))), keyOf(uint64(i))
		x.next(r.Append(nil))
		if !want {
			r = nil
		}
		x.is(t, key, r)
	}
	if n := x.Position(); n != uint64(len(kmsapi.Operations)) {
		t.Errorf("position %d", n)
	}
}

// Use as an external key is use; what else the proxy answers is none, nor is what another source calls by the same name.
func TestXKSProxy(t *testing.T) {
	x, a := fresh(t), keyOf(1)
	for _, c := range []struct {
		source, name string
		is           bool
	}{
		{cloudtrail.XKSProxy, "Encrypt", true}, {cloudtrail.XKSProxy, "Decrypt", true}, {cloudtrail.XKSProxy, "GetKeyMetadata", false},
		{cloudtrail.IAM, "Encrypt", false}, {cloudtrail.XKSProxy + ".x", "Encrypt", false},
	} {
		before, _ := x.Last(home, account, a)
		r := record(c.name, t0.Add(time.Duration(1+x.Position())*time.Minute), a)
		r.Source = c.source
		x.next(r.Append(nil))
		if c.is {
			x.is(t, a, r)
		} else if now, _ := x.Last(home, account, a); now != before {
			t.Errorf("%s of %s is a use", c.name, c.source)
		}
	}
}

func TestObserve(t *testing.T) {
	x := fresh(t)
	a, b, c := keyOf(1), keyOf(2), keyOf(3)
	first := record("Encrypt", t0, a)
	x.next(first.Append(nil))
	x.is(t, a, first)
	second := record("ReEncrypt", t0.Add(time.Second), a, b)
	x.next(second.Append(nil))
	x.is(t, a, second)
	x.is(t, b, second)

	failed := record("Decrypt", t0.Add(time.Hour), a)
	failed.ErrorCode, failed.ErrorMessage = "DryRunOperationException", []byte("x")
	x.next(failed.Append(nil))
	listed := record("DescribeKey", t0.Add(time.Hour), a)
	x.next(listed.Append(nil))
	event := record("Decrypt", t0.Add(time.Hour), a)
	event.Source = cloudtrail.STS
	x.next(event.Append(nil))
	alias := record("Decrypt", t0.Add(time.Hour))
	alias.AddResource([]byte("arn:aws:kms:us-west-2:111122223333:alias/x"), account)
	x.next(alias.Append(nil))
	x.next(record("GenerateMac", t0).Append(nil)) // no resource
	x.is(t, a, second)
	x.is(t, c, nil)

	// What a text says is no use: only its own quotes end it.
	text := record("ListKeys", t0, a)
	text.UserAgent = record("Decrypt", t0.Add(time.Hour), c).Append(nil)
	x.next(text.Append(nil))
	x.is(t, c, nil)
	if got := x.Start(); !got.Equal(t0) {
		t.Errorf("start %v", got)
	}
}

// Every record that is cut or changed in one place is refused or read as what it says, and never a panic.
func TestDamagedRecords(t *testing.T) {
	line := record("Decrypt", t0, keyOf(1)).Append(nil)
	for n := range line {
		scan(line[:n], new(event))
		changed := bytes.Clone(line)
		changed[n] ^= 4
		scan(changed, new(event))
	}
}

func FuzzScan(f *testing.F) {
	f.Add(record("Decrypt", t0, keyOf(1)).Append(nil))
	f.Add(record("ReEncrypt", t0, keyOf(1), keyOf(2)).Append(nil))
	f.Fuzz(func(t *testing.T, line []byte) {
		var e event
		if scan(line, &e) && (e.n == 0 || e.use.Operation == 0) {
			t.Errorf("a use of nothing: %+v", e)
		}
	})
}

// FuzzClient: whatever a client puts into a record, the use is the record's and no other.
func FuzzClient(f *testing.F) {
	f.Add([]byte("agent"), []byte("key"), []byte("value"))
	f.Add([]byte(`},"eventTime":"2026`), []byte(`","requestID":"`), []byte(`"}]},"responseElements":null`))
	f.Fuzz(func(t *testing.T, agent, key, value []byte) {
		r := record("Decrypt", t0, keyOf(1))
		context := new(blob.Context)
		context.Add(key, value)
		r.UserAgent = agent
		r.RequestParameters = append(cloudtrail.AppendMemberContext([]byte("{"), "encryptionContext", context), '}')
		var e event
		if !scan(r.Append(nil), &e) || e.n != 1 || e.keys[0].Account != account || e.keys[0].ID != keyOf(1) || string(e.keys[0].Region) != home || string(uuid.Append(nil, &e.use.EventID)) != string(r.EventID[:]) {
			t.Errorf("%+v of %s", e, r.Append(nil))
		}
	})
}

func TestSeconds(t *testing.T) {
	for at := time.Date(1969, 12, 31, 23, 59, 59, 0, time.UTC); at.Year() < 2110; at = at.Add(31*time.Hour + 7*time.Second) {
		if got, ok := seconds([]byte(at.Format("2006-01-02T15:04:05Z"))); !ok || got != at.Unix() {
			t.Fatalf("%v: %d, want %d", at, got, at.Unix())
		}
	}
	for _, bad := range []string{"2026-11-26T12:00:00z", "2026-11-26 12:00:00Z", "2026-13-26T12:00:00Z", "2026-00-26T12:00:00Z", "2026-11-00T12:00:00Z", "2026-11-26T24:00:00Z", "x026-11-26T12:00:00Z"} {
		if _, ok := seconds([]byte(bad)); ok {
			t.Errorf("%s is no time", bad)
		}
	}
}

// What was saved is there again; what came after it comes again from the log, from Position on.
func TestRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lastuse")
	x := open(t, path)
	var lines [][]byte
	var last [10]*cloudtrail.Record
	for i := range 100 {
		r := record("Encrypt", t0.Add(time.Duration(i)*time.Second), keyOf(uint64(i%10)))
		last[i%10] = r
		lines = append(lines, r.Append(nil))
	}
	for i, line := range lines {
		x.next(line)
		if i == 57 {
			if err := x.Save(); err != nil {
				t.Fatal(err)
			}
		}
	}
	y, err := Open(path, t0.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if y.Position() != 58 || !y.Start().Equal(t0) {
		t.Fatalf("position %d, start %v", y.Position(), y.Start())
	}
	for _, line := range lines[y.Position():] {
		y.next(line)
	}
	for i, r := range last {
		y.is(t, keyOf(uint64(i)), r)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("%v %v", left, err)
	}
	// The log went on without the index, and removed what it wrote.
	gap := record("Encrypt", t0.Add(2*time.Hour), keyOf(77))
	y.Observe(500, gap.Append(nil))
	y.is(t, keyOf(77), gap)
	if y.Position() != 501 || !y.Start().Equal(t0.Add(2*time.Hour)) {
		t.Errorf("position %d, start %v", y.Position(), y.Start())
	}
	before := time.Now().Truncate(time.Second)
	y.Observe(600, []byte("another record"))
	if y.Start().Before(before) {
		t.Errorf("start %v", y.Start())
	}
}

// A multi-Region key has a last use in each Region, also after a restart.
func TestRegions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lastuse")
	x := open(t, path)
	id := keyid.NewID([16]byte{1}, true)
	use := func(region, operation string) []byte {
		r := record(operation, t0)
		r.Region = region
		r.AddResource(keyid.AppendKeyARN(nil, "aws", region, account, id), account)
		return r.Append(nil)
	}
	is := func(x *Index, region, want string) {
		t.Helper()
		u, ok := x.Last(region, account, id)
		if ok != (want != "") || ok && u.Operation.String() != want {
			t.Errorf("%s: %v %s, want %q", region, ok, u.Operation, want)
		}
	}
	x.next(use(home, "Encrypt"))
	is(x, home, "Encrypt")
	is(x, "eu-west-1", "")
	if err := x.Save(); err != nil {
		t.Fatal(err)
	}
	x.next(use("eu-west-1", "Decrypt"))
	x.next(use("eu-north-1", "GenerateDataKey"))
	is(x, home, "Encrypt")
	is(x, "eu-west-1", "Decrypt")
	is(x, "eu-north-1", "GenerateDataKey")
	is(open(t, path), home, "Encrypt")
	is(open(t, path), "eu-west-1", "")
	// What Save would write if the Region had come while it wrote.
	if b := x.shard(&name{account, id, 0}).append(nil, 1); len(b) != entryLen {
		t.Errorf("%d bytes of keys of the first Region", len(b))
	}
	if err := x.Save(); err != nil {
		t.Fatal(err)
	}
	y := open(t, path)
	is(y, home, "Encrypt")
	is(y, "eu-west-1", "Decrypt")
	is(y, "eu-north-1", "GenerateDataKey")
	for i := range 2 * regionsMax {
		y.next(use("r-"+strconv.Itoa(i), "Encrypt"))
	}
	is(y, "r-"+strconv.Itoa(regionsMax-4), "Encrypt")
	is(y, "r-"+strconv.Itoa(regionsMax-3), "")
	is(y, "eu-north-1", "GenerateDataKey")
	if err := y.Save(); err != nil {
		t.Fatal(err)
	}
	is(open(t, path), "r-"+strconv.Itoa(regionsMax-4), "Encrypt")
}

// An index that begins with a log that is there already is complete from the log's first record on.
func TestLateStart(t *testing.T) {
	x, err := Open(filepath.Join(t.TempDir(), "lastuse"), t0.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if !x.Start().Equal(t0.Add(time.Hour)) {
		t.Errorf("start %v", x.Start())
	}
	x.Observe(7, record("ListKeys", t0).Append(nil))
	x.Observe(8, record("ListKeys", t0.Add(time.Minute)).Append(nil))
	if x.Position() != 9 || !x.Start().Equal(t0) {
		t.Errorf("position %d, start %v", x.Position(), x.Start())
	}
}

// A file that is not whole is told of and not believed.
func TestDamagedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lastuse")
	x := open(t, path)
	x.next(record("Encrypt", t0, keyOf(1)).Append(nil))
	if err := x.Save(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		changed := bytes.Clone(whole)
		changed[i] ^= 1
		for _, b := range [][]byte{changed, whole[:i]} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			y, err := Open(path, t0)
			if !errors.Is(err, errDamaged) || y == nil || y.Position() != 0 {
				t.Fatalf("byte %d: %v", i, err)
			}
			y.is(t, keyOf(1), nil)
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if y := open(t, path); y.Position() != 1 {
		t.Error("the whole file was not read")
	}
}

// Over its maximum an index forgets the oldest uses, and says from when on it is complete.
func TestForget(t *testing.T) {
	x := fresh(t)
	x.max = 100
	for i := range 101 {
		x.next(record("Encrypt", t0.Add(time.Duration(i)*time.Second), keyOf(uint64(i))).Append(nil))
	}
	// Of 101 the oldest 11 went: 0 to 10 seconds.
	if !x.Start().Equal(t0.Add(11*time.Second)) || x.size.Load() != 90 {
		t.Errorf("start %v, %d keys", x.Start(), x.size.Load())
	}
	for i := range 101 {
		if _, ok := x.Last(home, account, keyOf(uint64(i))); ok != (i > 10) {
			t.Errorf("key %d is known: %v", i, ok)
		}
	}
}

func TestRun(t *testing.T) {
	x := fresh(t)
	x.next(record("Encrypt", t0, keyOf(1)).Append(nil))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- x.Run(ctx, time.Hour, func(err error) { t.Error(err) })
	}()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if y := open(t, x.path); y.Position() != 1 {
		t.Errorf("position %d", y.Position())
	}
	gone := newIndex(filepath.Join(t.TempDir(), "no", "lastuse"), t0)
	ctx, cancel = context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		ended <- gone.Run(ctx, time.Millisecond, func(err error) {
			select {
			case failed <- err:
			default:
			}
			cancel()
		})
	}()
	gone.next(nil)
	for {
		select {
		case err := <-failed:
			if !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
			<-ended
			return
		case <-time.After(10 * time.Millisecond):
			gone.next(nil)
		}
	}
}

// BenchmarkObserve takes records as they are when they have just been written: in the processor's cache. Their keys are any.
func BenchmarkObserve(b *testing.B) {
	for _, keys := range []uint64{1, 100_000} {
		b.Run("keys="+strconv.FormatUint(keys, 10), func(b *testing.B) {
			x := fresh(b)
			line := record("GenerateDataKey", t0, keyOf(0)).Append(nil)
			at := bytes.Index(line, arnOf(keyOf(0))) + len(arnOf(keyOf(0))) - uuid.Len
			n := uint64(0)
			take := func() {
				keyOf(n).Append(line[at:at])
				x.next(line)
				n = (n + 7919) % keys
			}
			for range keys {
				take()
			}
			if x.size.Load() != int64(keys) {
				b.Fatalf("%d keys", x.size.Load())
			}
			b.ReportAllocs()
			for b.Loop() {
				take()
			}
		})
	}
}

func BenchmarkSave(b *testing.B) {
	x := fresh(b)
	x.regionOf([]byte(home))
	for i := range 100_000 {
		x.put(name{account, keyOf(uint64(i)), 0}, Use{Operation: 1})
	}
	for b.Loop() {
		if err := x.Save(); err != nil {
			b.Fatal(err)
		}
	}
}
