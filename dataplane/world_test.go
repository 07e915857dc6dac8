package dataplane

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/valyala/fasthttp/fasthttputil"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/softtoken"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/internal/snapshot"
	"github.com/keyplane/keyplane/ratelimit"
)

const (
	testRegion   = "us-east-1"      // the home Region
	awayRegion   = "ap-southeast-2" // another one of every world
	ours         = keyid.Account(111122223333)
	others       = keyid.Account(444455556666)
	adminKey     = "AKIAIOSFODNN7EXAMPLE"
	otherKey     = "AKIAI44QH8DHBEXAMPLE"
	expiredKey   = "ASIAIOSFODNN7EXAMPLE" // a session that has ended
	expiredToken = "IQoJb3JpZ2luX2VjEXAMPLE"
	adminSecret  = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
)

// softToken is one soft token for all tests: unsealing it is dear on purpose.
var softToken *softtoken.Token

func TestMain(m *testing.M) { hsmtest.Main(withSoftToken{m}) }

type withSoftToken struct{ m *testing.M }

func (w withSoftToken) Run() int {
	dir, err := os.MkdirTemp("", "keyplane-dataplane-")
	if err != nil {
		log.Print(err)
		return 1
	}
	if softToken, err = softtoken.Open(softtoken.Config{Dir: dir + "/token", Create: true}); err != nil {
		log.Print(err)
		return 1
	}
	code := w.m.Run()
	if err := errors.Join(softToken.Close(), os.RemoveAll(dir)); err != nil {
		log.Print(err)
		code = 1
	}
	return code
}

// tokenKind makes tokens for tests that run on each kind.
type tokenKind struct {
	name string
	open func(t testing.TB) hsm.Token
}

// tokenKinds are the soft token, shared and never closed, and where there is cgo SoftHSM (softhsm_test.go).
var tokenKinds = []tokenKind{{"soft token", func(testing.TB) hsm.Token { return softToken }}}

// world is a data plane with all its real parts but the store, whose place a table takes.
type world struct {
	testing.TB
	*Server
	bare    hsm.Token       // the first token, which makes new keys
	token   *hsmtest.Faulty // around it; nil in a plain world
	records *records
	shards  *hsm.Shards
	batcher *batch.Batcher[hsm.Job]
	stores  *testStores
	ring    *hsm.KeyRing   // nil on tokens other than the soft token, unless a test asks for it
	useErr  func() error   // what a job with a private key gets instead of being done, unless nil or it returns nil; set before requests are sent
	job     func(*hsm.Job) // what happens to a job that was done, unless nil; set before requests are sent
	instead func() error   // what a job gets instead of a round, unless nil; set before requests are sent
	audit   *auditor
	ln      net.Listener
	dial    func() (net.Conn, error)
	signer  map[string]*sigv4.AccessKey

	forwarded *atomic.Int64 // the Region of the request that the control plane got last
}

type worldConfig struct {
	tokens       []hsm.Token                     // nil: the soft token
	plain        bool                            // the tokens themselves, the soft token with its rounds in the caller's goroutine; else a Faulty around the first
	ring         bool                            // private keys also where the token is not the soft token
	ringTokens   []hsm.Token                     // of the ring; nil: the first of tokens
	handlesMax   int                             // of the ring; 0 is its default
	tcp          bool                            // a loopback listener; else one in memory
	wrap         func(net.Listener) net.Listener // around a loopback listener; nil for none
	sessions     int                             // per token; 0: 2
	verifyEvery  int                             // rounds; 0: none
	roundMax     int                             // 0: 64
	roundTimeout time.Duration
	queueTimeMax time.Duration // 0: 5 s
	server       Config
	control      func(r *sigv4.Request, requestID, sourceIP string, tls *cloudtrail.TLSDetails) (int, []byte)
	quota        func(keyid.Account, ratelimit.Pool, time.Time) bool // nil: none
	awayQuota    func(keyid.Account, ratelimit.Pool, time.Time) bool // of awayRegion; nil: quota
}

var quiet = slog.New(slog.DiscardHandler)

// keySource is a fixed table of access keys.
type keySource map[string]*sigv4.AccessKey

func (k keySource) AccessKey(id []byte) *sigv4.AccessKey { return k[string(id)] }

func newWorld(t testing.TB, cfg worldConfig) *world {
	t.Helper()
	w := &world{TB: t, audit: &auditor{}, stores: &testStores{}, forwarded: new(atomic.Int64), records: &records{keys: map[keyid.ID]*snapshot.Record{}, away: map[keyid.ID]*snapshot.Record{}, aliases: map[string]keyid.ID{}, grants: map[string][]authz.Grant{}}}
	tokens := append([]hsm.Token(nil), cfg.tokens...)
	if tokens == nil {
		tokens = []hsm.Token{softToken}
	}
	w.bare = tokens[0]
	if !cfg.plain {
		w.token = hsmtest.NewFaulty(tokens[0])
		tokens[0] = w.token
	}
	sessions, roundMax := cmp.Or(cfg.sessions, 2), cmp.Or(cfg.roundMax, 64)
	shards, err := hsm.NewShards(hsm.ShardsConfig{Tokens: tokens, SessionsPerToken: sessions, RoundMax: roundMax, RoundTimeout: cfg.roundTimeout, VerifyEvery: cfg.verifyEvery})
	w.must(err)
	t.Cleanup(shards.Close)
	w.shards = shards
	batcher, err := batch.New(batch.Config{Shards: shards.Len(), RoundMax: roundMax, QueueMax: 256}, shards.Run)
	w.must(err)
	t.Cleanup(batcher.Close)
	w.batcher = batcher
	dispatch := &hsm.Dispatch{Shards: shards, Do: batcher.Do, QueueTimeMax: cmp.Or(cfg.queueTimeMax, 5*time.Second)}

	w.signer = map[string]*sigv4.AccessKey{}
	for id, account := range map[string]keyid.Account{adminKey: ours, otherKey: others} {
		w.signer[id], err = sigv4.NewAccessKey(id, []byte(adminSecret), sigv4.Principal{
			Account: account, ARN: userARN(account, "administrator"), UserName: "administrator", Caller: user(t, account, "administrator", allowAll)})
		w.must(err)
	}
	w.signer[expiredKey], err = sigv4.NewTemporaryKey(expiredKey, []byte(adminSecret), sha256.Sum256([]byte(expiredToken)), time.Now().Add(-time.Minute), sigv4.Principal{})
	w.must(err)
	verifier, err := sigv4.New(sigv4.Config{
		Regions: []string{testRegion, awayRegion}, Keys: keySource(w.signer),
		Others: []sigv4.Service{{Name: "sts", Regions: []string{testRegion}}, {Name: "iam", Regions: []string{testRegion}}, {Name: "servicequotas", Regions: []string{testRegion}}},
	})
	w.must(err)

	c := cfg.server
	c.Regions, c.Logger = []string{testRegion, awayRegion}, quiet
	if c.Ready == nil {
		c.Ready = func() error { return nil }
	}
	if c.KeyCacheBytes == 0 {
		c.KeyCacheBytes, c.AliasCacheBytes = 1<<20, 1<<20
	}
	w.Server, err = New(c)
	w.must(err)
	if cfg.control == nil {
		cfg.control = func(*sigv4.Request, string, string, *cloudtrail.TLSDetails) (int, []byte) {
			return 200, []byte(`{"Control":true}`)
		}
	}
	control := func(region int, r *sigv4.Request, requestID, sourceIP string, tls *cloudtrail.TLSDetails) (int, []byte) {
		w.forwarded.Store(int64(region))
		return cfg.control(r, requestID, sourceIP, tls)
	}
	var quota func(region int, a keyid.Account, p ratelimit.Pool, now time.Time) bool
	if cfg.quota != nil {
		quota = func(region int, a keyid.Account, p ratelimit.Pool, now time.Time) bool {
			if region != 0 && cfg.awayQuota != nil {
				return cfg.awayQuota(a, p, now)
			}
			return cfg.quota(a, p, now)
		}
	}
	var keys hsm.Keys
	ringTokens := cfg.ringTokens
	if ringTokens == nil {
		ringTokens = []hsm.Token{w.bare}
	}
	if cfg.ring || w.bare == softToken {
		w.ring, err = hsm.NewKeyRing(hsm.KeyRingConfig{
			Tokens: ringTokens, HandlesMax: cfg.handlesMax, SessionsPerToken: sessions, RoundMax: min(roundMax, 16), QueueTimeMax: cmp.Or(cfg.queueTimeMax, 5*time.Second), Full: batch.ErrFull,
			Batch: func(shards int, run func(int, []*hsm.KeyJob)) (func(int, *hsm.KeyJob, time.Time) error, error) {
				b, err := batch.New(batch.Config{Shards: shards, RoundMax: min(roundMax, 16), QueueMax: 256}, run)
				if err != nil {
					return nil, err
				}
				t.Cleanup(b.Close)
				return b.Do, nil
			},
		})
		w.must(err)
		t.Cleanup(w.ring.Close)
		keys = worldKeys{w.ring, w}
	}
	run := func(j *hsm.Job, now time.Time) error {
		if w.instead != nil {
			return w.instead()
		}
		err := dispatch.Run(j, now)
		if err == nil && w.job != nil {
			w.job(j)
		}
		return err
	}
	w.must(w.Start(Parts{Verifier: verifier, Records: w.records, Control: control, Run: run, Load: run, Again: dispatch.Again, Audit: w.audit.add, Quota: quota, Keys: keys, KeyStores: w.stores}))
	if cfg.tcp {
		w.ln, err = net.Listen("tcp", "127.0.0.1:0")
		w.must(err)
		if cfg.wrap != nil {
			w.ln = cfg.wrap(w.ln)
		}
		w.dial = func() (net.Conn, error) { return net.Dial("tcp", w.ln.Addr().String()) }
	} else {
		ln := fasthttputil.NewInmemoryListener()
		w.ln, w.dial = ln, ln.Dial
	}
	served := make(chan error, 1)
	go func() { served <- w.Serve(w.ln) }()
	t.Cleanup(func() {
		_ = w.ln.Close() // every reply was read, so nothing is in flight; Shutdown would poll for 100 ms
		<-served
		w.Close()
		if n := w.Panics(); n != 0 {
			t.Errorf("%d requests ended in a panic", n)
		}
	})
	return w
}

// worldKeys is the ring of a world that may fail on demand.
type worldKeys struct {
	*hsm.KeyRing
	w *world
}

func (k worldKeys) Run(j *hsm.KeyJob, now time.Time) error {
	if k.w.useErr != nil {
		if err := k.w.useErr(); err != nil {
			return err
		}
	}
	return k.KeyRing.Run(j, now)
}

// What the control plane tells of changes in the home Region.
func (w *world) KeyChanged(a keyid.Account, id keyid.ID) { w.Server.KeyChanged(testRegion, a, id) }
func (w *world) AliasChanged(a keyid.Account, name string) {
	w.Server.AliasChanged(testRegion, a, name)
}
func (w *world) GrantsChanged(a keyid.Account, id keyid.ID, grantee string) {
	w.Server.GrantsChanged(testRegion, a, id, grantee)
}
func (w *world) GrantMade(a keyid.Account, id keyid.ID, grantee string, g *authz.Grant) {
	w.Server.GrantMade(testRegion, a, id, grantee, g)
}
func (w *world) GrantRemoved(a keyid.Account, id keyid.ID, grantee, grant string) {
	w.Server.GrantRemoved(testRegion, a, id, grantee, grant)
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// auditor is the audit log's place. It keeps records once told to, and counts them always.
type auditor struct {
	count atomic.Int64
	mu    sync.Mutex
	keeps bool
	lines []string
	err   error  // of every record, unless nil
	hook  func() // called with every record, unless nil; set before requests are sent
}

func (a *auditor) add(record []byte) error {
	a.count.Add(1)
	if a.hook != nil {
		a.hook()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.keeps {
		a.lines = append(a.lines, string(record))
	}
	return a.err
}

// taken are the records since it was called last; from the first call on they are kept.
func (a *auditor) taken() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	lines := a.lines
	a.keeps, a.lines = true, nil
	return lines
}

func (a *auditor) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.err = err
}

// records is the store's place: KMS keys by ID, aliases by name.
type records struct {
	mu      sync.Mutex
	keys    map[keyid.ID]*snapshot.Record
	away    map[keyid.ID]*snapshot.Record // in awayRegion
	aliases map[string]keyid.ID           // those in awayRegion with its name in front
	grants  map[string][]authz.Grant      // by Region, account, key ID and grantee, one behind the other
	err     error                         // of every read, unless nil
	reads   int
	read    func() // called as a key is read, unless nil
}

func (r *records) Grants(_ context.Context, region string, a keyid.Account, id keyid.ID, grantee string) ([]authz.Grant, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads++
	return slices.Clone(r.grants[region+a.String()+id.String()+grantee]), r.err
}

func (r *records) KeyRecord(_ context.Context, region string, a keyid.Account, id keyid.ID) (*snapshot.Record, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads++
	if r.read != nil {
		r.read()
	}
	if r.err != nil {
		return nil, r.err
	}
	keys := r.keys
	if region == awayRegion {
		keys = r.away
	}
	k, ok := keys[id]
	if !ok || k.Region != region || k.Account != a {
		return nil, snapshot.ErrNotFound
	}
	c := *k
	c.Versions = append([]snapshot.VersionRecord(nil), k.Versions...)
	return &c, nil
}

func (r *records) AliasTarget(_ context.Context, region string, a keyid.Account, alias string) (keyid.ID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads++
	if r.err != nil {
		return keyid.ID{}, r.err
	}
	if region == awayRegion {
		alias = awayRegion + alias
	}
	id, ok := r.aliases[alias]
	if !ok || a != ours {
		return keyid.ID{}, snapshot.ErrNotFound
	}
	return id, nil
}

// keyID is the ID of the key that tests call name; names that begin with mrk are multi-Region keys.
func keyID(name string) keyid.ID {
	sum := sha256.Sum256([]byte("key " + name))
	return keyid.NewID([16]byte(sum[:16]), strings.HasPrefix(name, "mrk"))
}

func keyARN(name string) string {
	account := ours
	if strings.HasPrefix(name, "foreign") {
		account = others
	}
	return string(keyid.AppendKeyARN(nil, "aws", testRegion, account, keyID(name)))
}

// addKey puts a symmetric key into the table; tests change the record it returns before they use the key.
func (w *world) addKey(name string, state kmsapi.KeyState, versions int) *snapshot.Record {
	w.Helper()
	root := w.shards.Primary()
	k := &snapshot.Record{ID: keyID(name), Account: ours, Region: testRegion, State: state, Spec: kmsapi.SymmetricDefault,
		Usage: kmsapi.EncryptDecrypt, Origin: "AWS_KMS", Revision: 1, Current: versions - 1}
	if strings.HasPrefix(name, "foreign") {
		k.Account = others
	}
	for n := uint32(1); n <= uint32(versions); n++ {
		v := snapshot.VersionRecord{Number: n, Root: root, Salt: sha256.Sum256(fmt.Append(nil, name, n))}
		v.MaterialID = snapshot.MaterialID(k.Account, k.ID, n, &v.Salt)
		k.Versions = append(k.Versions, v)
	}
	k.Policy = []byte(delegating(k.Account))
	k.Facts = authz.KeyFacts{Account: k.Account, Spec: k.Spec, Usage: k.Usage, Origin: k.Origin, MultiRegion: k.ID.MultiRegion}
	w.must(k.Check())
	w.records.mu.Lock()
	defer w.records.mu.Unlock()
	w.records.keys[k.ID] = k
	return k
}

// addResidentKey does the same with versions that are keys of their own. They are new ones.
func (w *world) addResidentKey(name string, state kmsapi.KeyState, versions int) *snapshot.Record {
	w.Helper()
	k := w.addKey(name, state, versions)
	w.records.mu.Lock()
	defer w.records.mu.Unlock()
	for i := range k.Versions {
		wrapped, _, err := w.bare.(hsm.KeyToken).GenerateKey(keyspec.AES256)
		w.must(err)
		w.setResident(k, i, wrapped)
	}
	k.Facts.Origin, k.Origin = "EXTERNAL", "EXTERNAL"
	w.must(k.Check())
	return k
}

// setResident gives a version of k, by index, a key of its own.
func (w *world) setResident(k *snapshot.Record, i int, wrapped []byte) {
	w.Helper()
	v := &k.Versions[i]
	p := &snapshot.PrivateKey{Root: w.shards.Primary(), Wrapped: wrapped}
	p.ID = snapshot.PrivateKeyID(k.Account, k.ID, k.Spec, k.Usage, p)
	*v = snapshot.VersionRecord{Number: v.Number, Resident: p, MaterialID: w.residentMaterial(k, p)}
}

// residentMaterial is the material ID of a resident version, as docs/ciphertext.md §4 has it.
func (w *world) residentMaterial(k *snapshot.Record, p *snapshot.PrivateKey) (id [64]byte) {
	w.Helper()
	account := binary.BigEndian.AppendUint64(nil, uint64(k.Account))
	form := byte(0)
	if k.ID.MultiRegion {
		form = 1
	}
	one, two := w.ecb(p, [16]byte([]byte("keyplane residen"))), w.ecb(p, [16]byte([]byte("t material id v1")))
	sum := sha256.Sum256(slices.Concat([]byte("keyplane resident key material v1"), account[2:], []byte{form}, k.ID.UUID[:], one[:], two[:]))
	hex.Encode(id[:], sum[:])
	return id
}

// madeKeys are private keys of the soft token by spec, made once for all tests: RSA takes seconds.
var madeKeys = struct {
	mu     sync.Mutex
	bySpec map[string]*snapshot.PrivateKey
}{bySpec: map[string]*snapshot.PrivateKey{}}

// privateKey makes a key of a spec, or gives the first that was made under the name.
func privateKey(t testing.TB, name string, s keyspec.Spec) *snapshot.PrivateKey {
	t.Helper()
	madeKeys.mu.Lock()
	defer madeKeys.mu.Unlock()
	p := madeKeys.bySpec[name+s.String()]
	if p == nil {
		wrapped, public, err := softToken.GenerateKey(s)
		if err != nil {
			t.Fatal(err)
		}
		p = &snapshot.PrivateKey{Wrapped: wrapped, Public: public}
		madeKeys.bySpec[name+s.String()] = p
	}
	return p
}

// addPrivateKey puts a key that is not SYMMETRIC_DEFAULT into the table. Keys of one spec have the same private key, but those whose names begin with "other".
func (w *world) addPrivateKey(name string, state kmsapi.KeyState, spec keyspec.Spec, usage keyspec.Usage) *snapshot.Record {
	w.Helper()
	k := &snapshot.Record{ID: keyID(name), Account: ours, Region: testRegion, State: state, Spec: spec.String(), Usage: usage.String(), Origin: "AWS_KMS", Revision: 1, Current: -1}
	if strings.HasPrefix(name, "foreign") {
		k.Account = others
	}
	which := ""
	if strings.HasPrefix(name, "other") {
		which = "other"
	}
	p := *privateKey(w, which, spec)
	p.Root = w.shards.Primary()
	p.ID = snapshot.PrivateKeyID(k.Account, k.ID, k.Spec, k.Usage, &p)
	k.Private = &p
	k.Policy = []byte(delegating(k.Account))
	k.Facts = authz.KeyFacts{Account: k.Account, Spec: k.Spec, Usage: k.Usage, Origin: k.Origin, MultiRegion: k.ID.MultiRegion}
	w.must(k.Check())
	w.records.mu.Lock()
	defer w.records.mu.Unlock()
	w.records.keys[k.ID] = k
	return k
}

// signature says how a request is signed; the zero value signs as our account's administrator, now.
type signature struct {
	key     string // access key ID
	secret  string
	at      time.Time
	region  string
	service string // kms where empty
	token   string // session token; "" for none
	none    bool
}

type signedRequest = sigv4.Request

// sign makes the bytes of a request. header is lines without their ends, signed all of them.
func (w *world) sign(sig signature, target string, body []byte, header ...string) []byte {
	w.Helper()
	key := w.signer[adminKey]
	if sig.key != "" || sig.secret != "" {
		id, secret := adminKey, adminSecret
		if sig.key != "" {
			id = sig.key
		}
		if sig.secret != "" {
			secret = sig.secret
		}
		var err error
		key, err = sigv4.NewAccessKey(id, []byte(secret), sigv4.Principal{})
		w.must(err)
	}
	at, region := time.Now(), testRegion
	if !sig.at.IsZero() {
		at = sig.at
	}
	if sig.region != "" {
		region = sig.region
	}
	lines := append([]string{"host: kms.test", "content-type: application/x-amz-json-1.1", "x-amz-date: " + string(sigv4.AppendDate(nil, at))}, header...)
	if sig.token != "" {
		lines = append(lines, "x-amz-security-token: "+sig.token)
	}
	if target != "" {
		lines = append(lines, "x-amz-target: "+target)
	}
	r := &sigv4.Request{Method: []byte("POST"), Path: []byte("/"), Body: body}
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ":")
		r.Headers = append(r.Headers, sigv4.Header{Name: []byte(name), Value: []byte(strings.TrimSpace(value))})
	}
	raw := []byte("POST / HTTP/1.1\r\n")
	for _, l := range lines {
		raw = append(append(raw, l...), "\r\n"...)
	}
	if !sig.none {
		var scratch sigv4.Scratch
		raw = append(raw, "authorization: "...)
		var err error
		raw, err = sigv4.AppendAuthorization(raw, key, region, cmp.Or(sig.service, kmsapi.SigningName), r, &scratch)
		w.must(err)
		raw = append(raw, "\r\n"...)
	}
	raw = fmt.Appendf(raw, "content-length: %d\r\n\r\n", len(body))
	return append(raw, body...)
}

// call makes the bytes of a request of our administrator's.
func (w *world) call(operation, body string) []byte {
	w.Helper()
	return w.sign(signature{}, kmsapi.TargetPrefix+operation, []byte(body))
}

// reply is an answer as it was read.
type reply struct {
	status int
	header http.Header
	close  bool
	body   []byte
}

// do sends raw on a connection of its own and reads the answer.
func (w *world) do(raw []byte) reply {
	w.Helper()
	c, err := w.dial()
	w.must(err)
	defer c.Close()
	w.must(c.SetDeadline(time.Now().Add(20 * time.Second)))
	go func() { _, _ = c.Write(raw) }() // the server may answer, and close, before it has read everything
	r, err := readReply(bufio.NewReader(c))
	w.must(err)
	return r
}

func readReply(br *bufio.Reader) (reply, error) {
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, resp.Close, body}, err
}

// exception is the error type in a reply's body, "" for none.
func (r reply) exception() string {
	_, rest, ok := bytes.Cut(r.body, []byte(`{"__type":"`))
	if !ok {
		return ""
	}
	name, _, _ := bytes.Cut(rest, []byte(`"`))
	return string(name)
}
