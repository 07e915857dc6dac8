package controlplane

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keyplane/keyplane/controlplane/iam"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/controlplane/store/storetest"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/lastuse"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// shared is one embedded etcd for the whole package; tests keep apart by account or Region.
var shared *store.Store

func TestMain(m *testing.M) {
	code := storetest.Run(m, func(s *store.Store) { shared = s })
	closeHSM()
	os.Exit(code)
}

var quiet = storetest.Quiet

// recorder is a Publisher that keeps what it was told.
type recorder struct {
	mu      sync.Mutex
	keys    []keyid.ID
	aliases []string
	ids     []string
	grants  []string
}

func (r *recorder) grant(id keyid.ID, rest string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.grants = append(r.grants, id.String()+" "+rest)
}

func (r *recorder) GrantsChanged(_ keyid.Account, id keyid.ID, grantee string) { r.grant(id, grantee) }

func (r *recorder) GrantMade(_ keyid.Account, id keyid.ID, grantee string, g *authz.Grant) {
	r.grant(id, grantee+" has "+g.ID)
}

func (r *recorder) Spread() {}

func (r *recorder) GrantRemoved(_ keyid.Account, id keyid.ID, grantee, grant string) {
	r.grant(id, grantee+" has no more "+grant)
}

func (r *recorder) KeyChanged(_ keyid.Account, id keyid.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys = append(r.keys, id)
}

func (r *recorder) AliasChanged(_ keyid.Account, alias string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.aliases = append(r.aliases, alias)
}

func (r *recorder) AccessKeyChanged(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ids = append(r.ids, id)
}

// take returns what was published since the last take, as text.
func (r *recorder) take() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for _, id := range r.keys {
		fmt.Fprintf(&b, "key %s\n", id)
	}
	for _, a := range r.aliases {
		fmt.Fprintf(&b, "alias %s\n", a)
	}
	for _, id := range r.ids {
		fmt.Fprintf(&b, "access key %s\n", id)
	}
	for _, g := range r.grants {
		fmt.Fprintf(&b, "grant %s\n", g)
	}
	r.keys, r.aliases, r.ids, r.grants = nil, nil, nil, nil
	return b.String()
}

// sink is the audit log of a test: every record must be strict JSON.
type sink struct {
	testing.TB
	mu      sync.Mutex
	err     error // refuses records
	records []map[string]any
	lines   []string
}

func (s *sink) append(line []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	var v map[string]any
	if err := json.Unmarshal(line, &v); err != nil {
		s.Errorf("%v in record %s", err, line)
	}
	s.records, s.lines = append(s.records, v), append(s.lines, string(line))
	return nil
}

func (s *sink) refuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// take is the records since the last take.
func (s *sink) take() []map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	records := s.records
	s.records, s.lines = nil, nil
	return records
}

// clock is a settable time, and the time for which it was running; or where live is set the time itself, which is that of a testing/synctest bubble.
type clock struct {
	mu   sync.Mutex
	t    time.Time
	ran  time.Duration
	live time.Time // when it began
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.live.IsZero() {
		return time.Now()
	}
	return c.t
}

func (c *clock) running() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.live.IsZero() {
		return time.Since(c.live)
	}
	return c.ran
}

// set lets time pass until t.
func (c *clock) set(t time.Time) { c.add(t.Sub(c.now())) }

// add lets time pass.
func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t, c.ran = c.t.Add(d), c.ran+d
}

// jump sets the clock by d, without time passing.
func (c *clock) jump(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// env is a server of its own with an account and a Region that no other test uses.
type env struct {
	testing.TB
	*Server
	account   keyid.Account
	creds     *iam.Table
	cast      *cast
	published *recorder
	trail     *sink
	uses      *lastuse.Index
	clock     *clock
	keyID     string        // access key of the account's administrator
	who       *authz.Caller // whose access key it is, where that is one of cast's
	secret    string
	made      []keyspec.Spec // what makeKey made
	stores    *fakeKeyStores
	shelf     string // ID of oneKeyStore's
}

var (
	envMu sync.Mutex
	envs  uint64
)

func newEnv(t testing.TB) *env { return newEnvIn(t, shared, "us-east-1") }

func newEnvIn(t testing.TB, st *store.Store, region string) *env {
	t.Helper()
	envMu.Lock()
	envs++
	account := keyid.Account(500_000_000_000 + envs)
	envMu.Unlock()
	return newEnvOf(t, st, region, account, newClock())
}

func newClock() *clock { return &clock{t: time.Date(2026, 11, 23, 12, 0, 0, 123_000_000, time.UTC)} }

// newEnvOf is a server in a Region for an account that may have others, by a clock that may be others' too.
func newEnvOf(t testing.TB, st *store.Store, region string, account keyid.Account, clock *clock) *env {
	t.Helper()
	e := &env{
		TB: t, account: account, published: &recorder{}, trail: &sink{TB: t}, clock: clock,
		keyID: "AKIA" + account.String(), secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
	}
	e.stores = newFakeKeyStores()
	var err error
	e.creds, err = iam.NewTable(iam.TableConfig{Store: st, Region: region, Changed: e.published.AccessKeyChanged})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.creds.EnsureAdmin(t.Context(), account, e.keyID, []byte(e.secret)); err != nil {
		t.Fatal(err)
	}
	e.cast = &cast{table: e.creds, keys: map[string]*sigv4.AccessKey{}, ids: map[string]string{}, services: map[string]bool{}}
	verifier, err := sigv4.New(sigv4.Config{Regions: []string{region}, Keys: e.cast})
	if err != nil {
		t.Fatal(err)
	}
	if e.uses, err = lastuse.Open(filepath.Join(t.TempDir(), "lastuse"), e.clock.now()); err != nil {
		t.Fatal(err)
	}
	e.Server, err = New(Config{
		Region: region, Store: st, Verifier: verifier, Publisher: e.published, Audit: e.trail.append, LastUses: e.uses, Principals: e.cast, Now: e.clock.now, Running: e.clock.running, Logger: quiet,
		Random: func(b []byte) error { _, err := rand.Read(b); return err },
		Root:   func() [8]byte { return [8]byte{'t', 'e', 's', 't', 'r', 'o', 'o', 't'} },
		Keys:   fakeKeys{make: e.makeKey}, Sealer: storetest.NewSealer(), KeyStores: e.stores,
	})
	if err != nil {
		t.Fatal(err)
	}
	e.published.take()
	return e
}

// work does what is due now.
func (e *env) work() {
	e.Helper()
	if err := e.Work(e.Context()); err != nil {
		e.Fatal(err)
	}
}

// fakeKeys make keys with a function. What is imported is not wrapped: a key whose material begins with "bad" does not unwrap, others are made of it.
type fakeKeys struct {
	Keys
	make func(keyspec.Spec) (*snapshot.PrivateKey, error)
}

func (k fakeKeys) New(s keyspec.Spec) (*snapshot.PrivateKey, error) { return k.make(s) }

func (k fakeKeys) Imports(keyspec.Spec, keyspec.Wrapping) (bool, error) { return true, nil }

func (k fakeKeys) Import(s, _ keyspec.Spec, _ *snapshot.PrivateKey, _ keyspec.Wrapping, material []byte) (*snapshot.PrivateKey, error) {
	if bytes.HasPrefix(material, []byte("bad")) {
		return nil, hsm.ErrMaterial
	}
	p := &snapshot.PrivateKey{Root: [8]byte{'t', 'o', 'k', 'e', 'n'}, Wrapped: bytes.Clone(material)}
	if n := s.Info().Public; n > 0 {
		p.Public = append(make([]byte, n), material...)
	}
	return p, nil
}

func (k fakeKeys) Images(_ keyspec.Spec, p *snapshot.PrivateKey) (*[32]byte, error) {
	sum := sha256.Sum256(p.Wrapped)
	return &sum, nil
}

// makeKey stands for the HSM: bytes that are no key, of which the control plane knows as little as of real ones. ML-DSA keys are software keys.
func (e *env) makeKey(s keyspec.Spec) (*snapshot.PrivateKey, error) {
	e.made = append(e.made, s)
	k := &snapshot.PrivateKey{Root: [8]byte{'t', 'o', 'k', 'e', 'n'}, Software: s.Info().Family == keyspec.MLDSA, Wrapped: make([]byte, 40)}
	rand.Read(k.Wrapped)
	if n := s.Info().Public; n > 0 {
		k.Public = make([]byte, n)
		rand.Read(k.Public)
	}
	return k, nil
}

// sign makes a signed request.
func (e *env) sign(operation string, body []byte, header ...sigv4.Header) *sigv4.Request {
	e.Helper()
	date := sigv4.AppendDate(nil, e.clock.now())
	r := &sigv4.Request{
		Method: []byte("POST"), Path: []byte("/"), Body: body,
		Headers: []sigv4.Header{
			{Name: []byte("content-type"), Value: []byte(kmsapi.ContentType)},
			{Name: []byte("host"), Value: []byte("localhost:4599")},
			{Name: []byte("x-amz-date"), Value: date},
			{Name: []byte("x-amz-target"), Value: []byte(kmsapi.TargetPrefix + operation)},
		},
	}
	r.Headers = append(r.Headers, header...)
	key, err := sigv4.NewAccessKey(e.keyID, []byte(e.secret), sigv4.Principal{})
	if err != nil {
		e.Fatal(err)
	}
	var scratch sigv4.Scratch
	authorization, err := sigv4.AppendAuthorization(nil, key, e.region, kmsapi.SigningName, r, &scratch)
	if err != nil {
		e.Fatal(err)
	}
	r.Headers = append(r.Headers, sigv4.Header{Name: []byte("authorization"), Value: authorization})
	return r
}

// call runs an operation on a JSON body and returns the response.
func (e *env) call(operation, body string) Response {
	e.Helper()
	return e.Serve(context.Background(), &Request{Signed: e.sign(operation, []byte(body)), RequestID: "test", SourceIP: "127.0.0.1"})
}

// ok runs an operation that must succeed and decodes its reply into out, which may be nil where the reply has no body.
func (e *env) ok(operation, body string, out any) {
	e.Helper()
	resp := e.call(operation, body)
	if resp.Code != kmsapi.OK || resp.Status != 200 {
		e.Fatalf("%s %s: %s", operation, short(body), resp.Body)
	}
	if out == nil {
		if len(resp.Body) != 0 {
			e.Fatalf("%s: unexpected body %s", operation, resp.Body)
		}
		return
	}
	if err := json.Unmarshal(resp.Body, out, json.RejectUnknownMembers(true)); err != nil {
		e.Fatalf("%s: %v in %s", operation, err, resp.Body)
	}
}

// fails runs an operation that must be refused with code, and with exactly that message unless it is "*".
func (e *env) fails(operation, body string, code kmsapi.Code, message string) {
	e.Helper()
	resp := e.call(operation, body)
	if resp.Code != code || resp.Status != code.Status() {
		e.Errorf("%s %s: got %s %s, want %s", operation, short(body), resp.Code, resp.Body, code)
		return
	}
	if message == "*" {
		return
	}
	if want := kmsapi.AppendErrorBody(nil, code, []byte(message)); !bytes.Equal(resp.Body, want) {
		e.Errorf("%s %s:\n got %s\nwant %s", operation, short(body), resp.Body, want)
	}
}

func short(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// wire is KeyMetadata as a client reads it.
type wire struct {
	AWSAccountId, KeyId, Arn, Description, KeyUsage, KeyState, Origin, KeyManager, CustomerMasterKeySpec, KeySpec, CurrentKeyMaterialId string

	ExpirationModel string

	CreationDate, DeletionDate, ValidTo float64
	Enabled, MultiRegion                bool

	EncryptionAlgorithms, SigningAlgorithms, MacAlgorithms, KeyAgreementAlgorithms, EncapsulationAlgorithms []string

	KeyplaneProtection string

	CustomKeyStoreId, CloudHsmClusterId string
	XksKeyConfiguration                 *struct{ Id string }

	MultiRegionConfiguration    *relatedKeys
	PendingDeletionWindowInDays int
}

type relatedKeys struct {
	MultiRegionKeyType string
	PrimaryKey         relatedKey
	ReplicaKeys        []relatedKey
}

type relatedKey struct{ Arn, Region string }

type metadataReply struct{ KeyMetadata wire }

func (e *env) create(body string) wire {
	e.Helper()
	var out metadataReply
	e.ok("CreateKey", body, &out)
	return out.KeyMetadata
}

func (e *env) describe(key string) wire {
	e.Helper()
	var out metadataReply
	e.ok("DescribeKey", obj("KeyId", key), &out)
	return out.KeyMetadata
}

// name is the store's name of a key of this environment.
func (e *env) name(keyID string) store.KeyName {
	e.Helper()
	id, ok := keyid.ParseID([]byte(keyID))
	if !ok {
		e.Fatalf("not a key ID: %s", keyID)
	}
	return store.KeyName{Region: e.region, Account: e.account, ID: id}
}

// obj is a JSON object of the pairs name, value. Values of type raw are JSON already.
func obj(pairs ...any) string {
	var b bytes.Buffer
	b.WriteByte('{')
	for i := 0; i < len(pairs); i += 2 {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:", pairs[i])
		if r, ok := pairs[i+1].(raw); ok {
			b.WriteString(string(r))
			continue
		}
		v, err := json.Marshal(pairs[i+1])
		if err != nil {
			panic(err)
		}
		b.Write(v)
	}
	b.WriteByte('}')
	return b.String()
}

type raw string

type tag struct{ TagKey, TagValue string }

func tags(pairs ...string) []tag {
	list := []tag{}
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, tag{pairs[i], pairs[i+1]})
	}
	return list
}
