//go:build !race && !invariants

package dataplane

import (
	"bytes"
	"encoding/base64"
	"flag"
	"fmt"
	"io"
	"net"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/fence"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/ratelimit"
)

// Per request there is no allocation; what the whole process may allocate meanwhile is the runtime's: threads when a call into a module takes
// long, and queue entries of goroutines that wait, until there are as many as are ever needed; and a dozen buffers of the cache's in all.
const (
	allocsMost    = 400
	allocsASecond = 10 // fasthttp writes the date down
)

// allocRequests are enough for one allocation in fifty requests to fail; `make alloc` sends 100 000.
var allocRequests int

func init() {
	flag.IntVar(&allocRequests, "alloc.requests", 20_000, "requests of each kind whose allocations are counted")
}

// A case's requests go over keep-alive connections at once, so that rounds are shared. On half of them the client sends one request at a
// time, on the others allocBurst of them, and the server finds the next request while the reply before has not left yet.
const (
	allocConns = 8
	allocBurst = 10
)

// TestAlloc counts the allocations of the whole process, server and client, over loopback. The requests are signed beforehand, and the
// client's part is nothing: it writes and reads fixed memory. On SoftHSM each round crosses to the goroutine that watches over its session.
func TestAlloc(t *testing.T) {
	for _, kind := range tokenKinds {
		t.Run(kind.name, func(t *testing.T) {
			quota := newQuota(ratelimit.RateMax)
			w := newWorld(t, worldConfig{tokens: []hsm.Token{kind.open(t)}, plain: true, ring: true, tcp: true, quota: quota.charge})
			cases := allocCases(w)
			throttled := cases[len(cases)-1]
			throttled.name, throttled.raw = "refused/throttled", w.sign(signature{key: otherKey}, kmsapi.TargetPrefix+"GenerateRandom", []byte(`{"NumberOfBytes":32}`))
			for i, c := range append(cases, throttled) {
				if i == len(cases) {
					quota.table.Set(others, new(ratelimit.Rates)) // nothing fits
				}
				t.Run(c.name, func(t *testing.T) { testAlloc(t, w, c) })
			}
		})
	}
}

// TestAllocLease is TestAlloc for a process with a lease, which is asked about every request.
func TestAllocLease(t *testing.T) {
	lease := new(fence.Lease)
	lease.Extend(fence.Now() + time.Hour)
	w := newWorld(t, worldConfig{plain: true, tcp: true, server: Config{Lease: lease}})
	for _, c := range allocCases(w) {
		switch c.name {
		case "GenerateDataKey", "Decrypt", "ReEncrypt", "GenerateRandom", "resident/GenerateDataKey", "policies/grant abroad", "refused/disabled key":
			t.Run(c.name, func(t *testing.T) { testAlloc(t, w, c) })
		}
	}
	// Without a lease each answer ends its connection: there is no steady state.
}

type allocCase struct {
	name     string
	raw      []byte
	status   string
	requests int
	most     uint64 // allocations in all
}

func allocCases(w *world) []allocCase {
	w.addKey("k1", kmsapi.StateEnabled, 1)
	w.addKey("k2", kmsapi.StateEnabled, 1)
	w.addKey("off", kmsapi.StateDisabled, 1)
	w.records.aliases["alias/a"] = keyID("k1")
	const context = `"EncryptionContext":{"tenant":"t-1234","purpose":"test"}`
	pairs := map[string]string{"tenant": "t-1234", "purpose": "test"}
	blob := base64.StdEncoding.EncodeToString(w.blob("k1", 1, pairs, make([]byte, 32)))
	w.addKey("gone", kmsapi.StateEnabled, 1)
	gone := base64.StdEncoding.EncodeToString(w.blob("gone", 1, nil, make([]byte, 32)))
	delete(w.records.keys, keyID("gone"))
	w.KeyChanged(ours, keyID("gone"))
	w.addResidentKey("own", kmsapi.StateEnabled, 2)
	ownBlob := base64.StdEncoding.EncodeToString(w.blob("own", 1, pairs, make([]byte, 32)))
	own := keyID("own").String()
	store := w.addCluster(cloudID)
	cloud := w.inStore(w.addKey("cloud", kmsapi.StateEnabled, 1), store).ID.String()
	cloudBlob := base64.StdEncoding.EncodeToString(w.blob("cloud", 1, pairs, make([]byte, 32)))
	proxied := w.addExternalStore(externalID)
	lost := w.inStore(w.addKey("lost", kmsapi.StateEnabled, 1), proxied).ID.String()
	proxied.connected.Store(false)
	w.addPrivateKey("mac", kmsapi.StateEnabled, keyspec.HMAC256, keyspec.GenerateVerifyMAC)
	w.addPrivateKey("ec", kmsapi.StateEnabled, keyspec.P256, keyspec.SignVerify)
	large := base64.StdEncoding.EncodeToString(make([]byte, kmsapi.PlaintextMax))
	k1, k2, off := keyID("k1").String(), keyID("k2").String(), keyID("off").String()
	w.addAway(w.records.keys[keyID("k1")])
	w.records.aliases[awayRegion+"alias/a"] = keyID("k1")
	tampered := w.call("GenerateDataKey", `{"KeyId":"`+k1+`","KeySpec":"AES_256"}`)
	tampered[len(tampered)-3] ^= 1
	return append(authorizeAllocCases(w), []allocCase{
		{"GenerateDataKey", w.call("GenerateDataKey", `{"KeyId":"`+k1+`","KeySpec":"AES_256",`+context+`}`), "200", allocRequests, allocsMost},
		{"GenerateDataKey/alias", w.call("GenerateDataKey", `{"KeyId":"alias/a","NumberOfBytes":64}`), "200", allocRequests, allocsMost},
		{"GenerateDataKeyWithoutPlaintext", w.call("GenerateDataKeyWithoutPlaintext", `{"KeyId":"`+k1+`","KeySpec":"AES_128"}`), "200", allocRequests, allocsMost},
		{"GenerateDataKey/another Region", w.sign(away, kmsapi.TargetPrefix+"GenerateDataKey", []byte(`{"KeyId":"alias/a","KeySpec":"AES_256",`+context+`}`)), "200", allocRequests, allocsMost},
		{"Encrypt", w.call("Encrypt", `{"KeyId":"`+keyARN("k1")+`","Plaintext":"`+large+`",`+context+`}`), "200", allocRequests, allocsMost},
		{"Decrypt", w.call("Decrypt", `{"CiphertextBlob":"`+blob+`",`+context+`}`), "200", allocRequests, allocsMost},
		{"ReEncrypt", w.call("ReEncrypt", `{"CiphertextBlob":"`+blob+`","Source`+context[1:]+`,"DestinationKeyId":"`+k2+`"}`), "200", allocRequests, allocsMost},
		{"GenerateRandom", w.call("GenerateRandom", `{"NumberOfBytes":1024}`), "200", allocRequests, allocsMost},
		{"resident/GenerateDataKey", w.call("GenerateDataKey", `{"KeyId":"`+own+`","KeySpec":"AES_256",`+context+`}`), "200", allocRequests, allocsMost},
		{"resident/Decrypt", w.call("Decrypt", `{"CiphertextBlob":"`+ownBlob+`",`+context+`}`), "200", allocRequests, allocsMost},
		{"resident/ReEncrypt", w.call("ReEncrypt", `{"CiphertextBlob":"`+ownBlob+`","Source`+context[1:]+`,"DestinationKeyId":"`+own+`"}`), "200", allocRequests, allocsMost},
		{"resident/ReEncrypt from a derived key", w.call("ReEncrypt", `{"CiphertextBlob":"`+blob+`","Source`+context[1:]+`,"DestinationKeyId":"`+own+`"}`), "200", allocRequests, allocsMost},
		{"resident/refused/wrong context", w.call("Decrypt", `{"CiphertextBlob":"`+ownBlob+`"}`), "400", allocRequests, allocsMost},
		{"cluster/GenerateDataKey", w.call("GenerateDataKey", `{"KeyId":"`+cloud+`","KeySpec":"AES_256",`+context+`}`), "200", allocRequests, allocsMost},
		{"cluster/Decrypt", w.call("Decrypt", `{"CiphertextBlob":"`+cloudBlob+`",`+context+`}`), "200", allocRequests, allocsMost},
		{"refused/unavailable", w.call("GenerateDataKey", `{"KeyId":"`+lost+`","KeySpec":"AES_256"}`), "400", allocRequests, allocsMost},
		{"GetPublicKey", w.call("GetPublicKey", `{"KeyId":"`+keyARN("ec")+`"}`), "200", allocRequests, allocsMost},
		{"refused/dry run of Sign", w.call("Sign", `{"KeyId":"`+keyARN("ec")+`","Message":"`+large+`","SigningAlgorithm":"ECDSA_SHA_256","DryRun":true}`), "400", allocRequests, allocsMost},
		{"refused/dry run of GenerateMac", w.call("GenerateMac", `{"KeyId":"`+keyARN("mac")+`","Message":"`+large+`","MacAlgorithm":"HMAC_SHA_256","DryRun":true}`), "400", allocRequests, allocsMost},
		{"refused/dry run", w.call("GenerateDataKey", `{"KeyId":"`+k1+`","KeySpec":"AES_256","DryRun":true}`), "400", allocRequests, allocsMost},
		{"refused/disabled key", w.call("GenerateDataKey", `{"KeyId":"`+off+`","KeySpec":"AES_256"}`), "400", allocRequests, allocsMost},
		{"refused/wrong context", w.call("Decrypt", `{"CiphertextBlob":"`+blob+`"}`), "400", allocRequests, allocsMost},
		{"refused/no ciphertext", w.call("Decrypt", `{"CiphertextBlob":"aGVsbG8="}`), "400", allocRequests, allocsMost},
		{"refused/constraint", w.call("Encrypt", `{"KeyId":"`+k1+`","Plaintext":""}`), "400", allocRequests, allocsMost},
		{"refused/signature", tampered, "400", allocRequests, allocsMost},
		{"refused/other key than the ciphertext's", w.call("Decrypt", `{"CiphertextBlob":"`+blob+`","KeyId":"`+k2+`",`+context+`}`), "400", allocRequests, allocsMost},
		{"refused/foreign key", w.call("GenerateDataKey", `{"KeyId":"`+keyARN("foreign")+`","KeySpec":"AES_256"}`), "400", allocRequests, allocsMost},
		{"refused/unknown key", w.call("GenerateDataKey", `{"KeyId":"`+keyID("nobody").String()+`","KeySpec":"AES_256"}`), "400", allocRequests, allocsMost},
		{"refused/key of another Region", w.sign(away, kmsapi.TargetPrefix+"Encrypt", []byte(`{"KeyId":"`+keyARN("k1")+`","Plaintext":"aGVsbG8="}`)), "400", allocRequests, allocsMost},
		{"refused/unknown alias", w.call("GenerateDataKey", `{"KeyId":"alias/nobody","KeySpec":"AES_256"}`), "400", allocRequests, allocsMost},
		{"refused/unknown key of a ciphertext", w.call("Decrypt", `{"CiphertextBlob":"`+gone+`"}`), "400", allocRequests, allocsMost},
	}...)
}

// authorizeAllocCases are decisions that take every kind of policy, variables, grants that are many and constrained, and refusals of each.
func authorizeAllocCases(w *world) []allocCase {
	a := access{w}
	w.addKey("rich", kmsapi.StateEnabled, 1)
	var statements []string
	for i := range 19 {
		statements = append(statements, fmt.Sprintf(`{"Effect":%q,"Principal":"*","Action":["kms:GenerateDataKey*","kms:Encrypt"],"Resource":"*","Condition":{%s}}`,
			[]string{"Allow", "Deny"}[i%2], []string{
				fmt.Sprintf(`"StringEquals":{"kms:EncryptionContext:tenant":["nobody-%d","no-one"]}`, i),
				`"NotIpAddress":{"aws:SourceIp":["127.0.0.0/8","::1/128"]},"Bool":{"aws:SecureTransport":"true"}`,
				`"StringLike":{"kms:EncryptionContext:purpose":"${aws:username}-*","aws:PrincipalTag/team":"?${aws:PrincipalTag/team}*"}`,
				`"DateLessThan":{"aws:CurrentTime":"2020-01-01T00:00:00Z"},"NumericGreaterThan":{"aws:EpochTime":"5"}`,
				`"ForAnyValue:StringLike":{"kms:EncryptionContextKeys":["x-*"]},"ArnLike":{"aws:PrincipalArn":"arn:aws:iam::*:user/other-*"}`,
			}[i%5]))
	}
	statements = append(statements, `{"Effect":"Allow","Principal":{"AWS":"`+ours.String()+`"},"Action":"kms:*","Resource":"*"}`)
	a.put("rich", `{"Version":"2012-10-17","Statement":[`+strings.Join(statements, ",")+`]}`)
	var identity []string
	for i := range 5 {
		identity = append(identity, fmt.Sprintf(`{"Effect":"Allow","Action":"kms:GenerateDataKey","Resource":"arn:aws:kms:*:${aws:PrincipalAccount}:key/*","Condition":{"StringEquals":{"kms:EncryptionContext:tenant":"t-%d"}}}`, i))
	}
	many := user(w, ours, "many", `{"Version":"2012-10-17","Statement":[`+strings.Join(identity, ",")+`]}`)
	worker := session(w, ours, "worker", "s1", allowAll)
	worker.Session = parse(w, policy.IdentityPolicy, `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"kms:Generate*","Resource":"*"}}`)
	guest := user(w, others, "guest")
	var grants []authz.Grant
	for i := range 1000 {
		grants = append(grants, authz.Grant{ID: fmt.Sprint(i), Operations: authz.OpGenerateDataKey, HasSubset: true,
			Subset: []authz.Pair{{Key: []byte("tenant"), Value: fmt.Appendf(nil, "t-%d", i)}}})
	}
	a.grant("rich", "AIDAmany", grants...)
	a.grant("rich", "AIDAguest", grants...)
	asMany, asGuest := w.as("AKIAMANY", many), w.as("AKIAGUEST", guest)
	asWorker := w.asSession("ASIAWORKER", "a token of the session", worker)
	body := func(key, tenant string) []byte {
		return []byte(`{"KeyId":"` + keyARN(key) + `","KeySpec":"AES_256","EncryptionContext":{"tenant":"` + tenant + `","purpose":"test"}}`)
	}
	const op = kmsapi.TargetPrefix + "GenerateDataKey"
	return []allocCase{
		{"policies", w.sign(asMany, op, body("rich", "t-4")), "200", allocRequests, allocsMost},
		{"policies/session", w.sign(asWorker, op, body("rich", "t-4")), "200", allocRequests, allocsMost},
		{"policies/last of 1000 grants", w.sign(asMany, op, body("rich", "t-999")), "200", allocRequests / 4, allocsMost},
		{"policies/grant abroad", w.sign(asGuest, op, body("rich", "t-17")), "200", allocRequests, allocsMost},
		{"refused/policies", w.sign(asMany, op, body("rich", "t-1000")), "400", allocRequests / 4, allocsMost},
		{"refused/policies, abroad", w.sign(asGuest, op, body("rich", "t-1000")), "400", allocRequests / 4, allocsMost},
		{"refused/another session's token", w.sign(signature{key: "ASIAWORKER", token: "another token"}, op, body("rich", "t-4")), "400", allocRequests, allocsMost},
	}
}

// TestKeyAlloc counts what the plane allocates with private keys: their operations give fixed results here, since libraries allocate as they like.
func TestKeyAlloc(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true, tcp: true})
	fixed := fixedKeys{w.parts.Keys, map[[32]byte]*fixedResult{}}
	w.parts.Keys = fixed
	w.Server.provedEvery = 0
	var cases []allocCase
	add := func(spec keyspec.Spec, usage keyspec.Usage, op, rest string) {
		k := w.addPrivateKey("k-"+spec.String(), kmsapi.StateEnabled, spec, usage)
		fixed.results[k.Private.ID] = new(fixedResult)
		id := k.ID.String()
		cases = append(cases, allocCase{op + "/" + spec.String(), w.call(op, `{"KeyId":"`+id+`",`+rest+`}`), "200", allocRequests, allocsMost})
	}
	large := base64.StdEncoding.EncodeToString(make([]byte, kmsapi.PlaintextMax))
	add(keyspec.HMAC512, keyspec.GenerateVerifyMAC, "GenerateMac", `"Message":"`+large+`","MacAlgorithm":"HMAC_SHA_512"`)
	add(keyspec.P256, keyspec.SignVerify, "Sign", `"Message":"`+large+`","SigningAlgorithm":"ECDSA_SHA_256"`)
	add(keyspec.Ed25519, keyspec.SignVerify, "Sign", `"Message":"`+large+`","SigningAlgorithm":"ED25519_SHA_512"`)
	add(keyspec.RSA2048, keyspec.SignVerify, "Sign", `"Message":"`+large+`","SigningAlgorithm":"RSASSA_PSS_SHA_256"`)
	add(keyspec.MLKEM768, keyspec.EncapsulateDecapsulate, "Decapsulate", `"EncapsulationAlgorithm":"ML_KEM","SharedSecretCiphertextBlob":"`+base64.StdEncoding.EncodeToString(make([]byte, 1088))+`"`)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { testAlloc(t, w, c) })
	}
}

// fixedKeys asks for each result once: each key is used for one message.
type fixedKeys struct {
	hsm.Keys
	results map[[32]byte]*fixedResult
}

func (fixedKeys) Forget([32]byte) {}

func (f fixedKeys) Run(j *hsm.KeyJob, now time.Time) error {
	r := f.results[j.Key.ID]
	r.once.Do(func() {
		r.err = f.Keys.Run(j, now)
		r.result = append(r.result, j.Out[:j.N]...)
	})
	j.N = copy(j.Out, r.result)
	return r.err
}

type fixedResult struct {
	once   sync.Once
	result []byte
	err    error
}

func testAlloc(t *testing.T, w *world, c allocCase) {
	clients := make([]*allocClient, allocConns)
	for i := range clients {
		clients[i] = newAllocClient(t, w, c, []int{1, allocBurst}[i%2])
	}
	// The goroutines live through both phases: starting them would count.
	var done sync.WaitGroup
	start := make(chan *atomic.Int64)
	for _, k := range clients {
		go func() {
			for left := range start {
				k.send(left)
				done.Done()
			}
		}()
	}
	defer close(start)
	left := new(atomic.Int64)
	run := func(n int) {
		left.Store(int64(n))
		done.Add(len(clients))
		for range clients {
			start <- left
		}
		done.Wait()
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	run(c.requests / 10)
	alone(t)
	rounds := w.batcher.Stats()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	run(c.requests)
	took := time.Since(began)
	runtime.ReadMemStats(&after)
	for _, k := range clients {
		if k.err != nil {
			t.Fatal(k.err)
		}
	}
	shared := ""
	if s := w.batcher.Stats(); s.Rounds > rounds.Rounds {
		shared = fmt.Sprintf(", %.1f jobs/round", float64(s.Jobs-rounds.Jobs)/float64(s.Rounds-rounds.Rounds))
	}
	n := after.Mallocs - before.Mallocs
	t.Logf("%s: %d allocations in %d requests%s, %.1fs", t.Name(), n, c.requests, shared, took.Seconds())
	if most := c.most + allocsASecond*uint64(1+took/time.Second); n > most {
		t.Errorf("%d allocations in %d requests, at most %d are allowed", n, c.requests, most)
	}
}

// alone waits until nothing else of the process allocates: HSMs of a cluster, which get ready behind their connection. What requests allocate goes on as long as they come.
func alone(t *testing.T) {
	t.Helper()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	for end := time.Now().Add(time.Minute); ; {
		before := m.Mallocs
		time.Sleep(20 * time.Millisecond)
		runtime.ReadMemStats(&m)
		if m.Mallocs-before < 20 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("something else allocates all the time")
		}
	}
}

// allocClient sends one request again and again. The goroutine that calls send owns it.
type allocClient struct {
	conn net.Conn
	raw  []byte // as often as it is written at once
	want []byte // how every reply begins
	size int    // of one reply
	each int64  // requests in raw
	buf  []byte
	err  error // of the first request that failed
}

func newAllocClient(t *testing.T, w *world, c allocCase, each int) *allocClient {
	t.Helper()
	conn, err := w.dial()
	w.must(err)
	t.Cleanup(func() { conn.Close() })
	w.must(conn.SetDeadline(time.Now().Add(5 * time.Minute)))
	k := &allocClient{conn: conn, each: int64(each), raw: bytes.Repeat(c.raw, each), want: []byte("HTTP/1.1 " + c.status), buf: make([]byte, 16<<10)}
	k.size = firstReply(t, conn, c.raw, k.buf)
	k.buf = make([]byte, k.size)
	return k
}

// send sends requests while some of the case's are left.
func (k *allocClient) send(left *atomic.Int64) {
	for k.err == nil && left.Add(-k.each) > -k.each {
		if _, k.err = k.conn.Write(k.raw); k.err != nil {
			return
		}
		for range k.each {
			if _, k.err = io.ReadFull(k.conn, k.buf); k.err != nil {
				return
			}
			if !bytes.HasPrefix(k.buf, k.want) {
				k.err = fmt.Errorf("got %s", k.buf)
				return
			}
		}
	}
}
