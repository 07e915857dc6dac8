package dataplane

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// crossingTimeout is what a call may take in these tests. A busy machine may exceed it; the outcome is one more lane that is given up.
const crossingTimeout = 200 * time.Millisecond

// TestResultsNeverCross: clients with keys, contexts and plaintexts of their own get their own results or a refusal, while other clients go away
// in the middle of requests, calls fail, and calls that hang are given up and end later.
func TestResultsNeverCross(t *testing.T) {
	for _, kind := range tokenKinds {
		t.Run(kind.name, func(t *testing.T) { testCrossing(t, kind.open(t), spoilFaulty) })
	}
}

// spoilFaulty makes calls fail, one after the other, until stop is closed.
func spoilFaulty(w *world, stop <-chan struct{}) {
	for n := 0; ; n++ {
		f := hsmtest.Fault{Op: hsmtest.Round, Delay: 5 * time.Millisecond, Times: 5}
		var release chan struct{}
		switch n % 6 {
		case 1:
			f.CKR = hsm.CKR_SESSION_CLOSED
		case 3:
			f.Times, f.CKR = 1, hsm.CKR_DEVICE_MEMORY
		case 5:
			release = make(chan struct{})
			f.Times, f.Hang = 1, release
			w.token.Clear() // what is left of the others would come first
		}
		w.token.Add(f)
		select {
		case <-stop:
		case <-time.After(40 * time.Millisecond):
		}
		if release != nil {
			// The call ends when it has been given up, or soon after its round was served by others.
			select {
			case <-stop:
			case <-time.After(2 * crossingTimeout):
			}
			close(release)
		}
		select {
		case <-stop:
			return
		default:
		}
	}
}

func testCrossing(t *testing.T, token hsm.Token, spoil func(w *world, stop <-chan struct{})) {
	// The token twice: what fails on the first goes on, and is retried, on the second.
	w := newWorld(t, worldConfig{tokens: []hsm.Token{token, token}, tcp: true, roundMax: 8, roundTimeout: crossingTimeout,
		server: Config{ReadTimeout: clientTimeout}})
	const clients, aborters = 10, 3
	x := &crossing{world: w, seen: map[[32]byte]string{}}
	for i := range clients {
		w.addKey(fmt.Sprint("own", i), kmsapi.StateEnabled, 1)
		w.addKey(fmt.Sprint("next", i), kmsapi.StateEnabled, 1)
	}
	w.addKey("aborter", kmsapi.StateEnabled, 1)

	stop := make(chan struct{})
	var wg, spoiler sync.WaitGroup
	spoiler.Go(func() { spoil(w, stop) })
	for i := range aborters {
		wg.Go(func() { x.abort(uint64(i), stop) })
	}
	each := make([]*crossingClient, clients)
	for i := range each {
		each[i] = &crossingClient{crossing: x, name: fmt.Sprint(i), conn: w.connect(), g: rand.New(rand.NewPCG(uint64(i), 7))}
		wg.Go(func() { each[i].run(stop) })
	}
	enough := func() bool { return w.hangs() > 0 && x.aborted.Load() > 50 && x.good.Load() > 200 }
	for start := time.Now(); time.Since(start) < 3*time.Second || !enough(); time.Sleep(10 * time.Millisecond) {
		if t.Failed() {
			break
		}
		if time.Since(start) > 2*time.Minute {
			t.Errorf("%d hangs, %d requests aborted, %d good: too few for a test", w.hangs(), x.aborted.Load(), x.good.Load())
			break
		}
	}
	close(stop)
	wg.Wait()
	spoiler.Wait()
	w.token.Clear()
	t.Logf("%d results good, %d refused, %d requests aborted, %d calls given up, %.1f jobs/round", x.good.Load(), x.refused.Load(), x.aborted.Load(),
		w.hangs(), float64(w.batcher.Stats().Jobs)/float64(w.batcher.Stats().Rounds))
	// Afterwards everybody is served.
	for _, c := range each {
		before := x.good.Load()
		for deadline := time.Now().Add(time.Minute); x.good.Load() == before && !t.Failed(); time.Sleep(10 * time.Millisecond) {
			c.encrypt()
			if time.Now().After(deadline) {
				t.Fatal("client ", c.name, " is not served again")
			}
		}
	}
}

func (w *world) hangs() (n uint64) {
	for _, s := range w.shards.Stats().Slots {
		n += s.Hangs
	}
	return n
}

// crossing is what all clients share.
type crossing struct {
	*world
	good, refused, aborted atomic.Int64

	mu   sync.Mutex
	seen map[[32]byte]string // guarded by mu: digests of random results, and whose they are
}

// fresh says that nobody has been given this random value before.
func (x *crossing) fresh(value []byte, whose string) {
	sum := sha256.Sum256(value)
	x.mu.Lock()
	defer x.mu.Unlock()
	if first, ok := x.seen[sum]; ok {
		x.Errorf("%s got random that %s got before", whose, first)
	}
	x.seen[sum] = whose
}

// crossingClient has keys of its own. One goroutine uses it.
type crossingClient struct {
	*crossing
	name string
	conn client
	g    *rand.Rand
	n    int // requests made
}

func (c *crossingClient) run(stop <-chan struct{}) {
	ops := []func(){c.encrypt, c.dataKey, c.reEncrypt, c.random}
	for !c.Failed() {
		select {
		case <-stop:
			return
		default:
			ops[c.g.IntN(len(ops))]()
		}
	}
}

type crossingReply struct {
	CiphertextBlob, Plaintext []byte
	KeyId, SourceKeyId        string
}

// call makes one request. It reports false for a refusal that a failing token explains; others fail the test.
func (c *crossingClient) call(op, key, format string, args ...any) (r crossingReply, ok bool) {
	answer, err := c.conn.do(c.sign(signature{}, kmsapi.TargetPrefix+op, fmt.Appendf(nil, format, args...)))
	if err != nil {
		c.Errorf("client %s: %v", c.name, err)
		return r, false
	}
	if answer.status != 200 {
		c.refused.Add(1)
		if e := answer.exception(); !slices.Contains([]string{"DependencyTimeoutException", "KMSInternalException", "KeyUnavailableException", "ThrottlingException"}, e) {
			c.Errorf("client %s: %s answered %d %s", c.name, op, answer.status, answer.body)
		}
		return r, false
	}
	if err := json.Unmarshal(answer.body, &r); err != nil {
		c.Errorf("client %s: %v", c.name, err)
		return r, false
	}
	if key != "" && r.KeyId != keyARN(key) {
		c.Errorf("client %s: %s under %s answered with %s", c.name, op, keyARN(key), r.KeyId)
	}
	c.good.Add(1)
	return r, true
}

// canary is a plaintext that no other client and no other request has.
func (c *crossingClient) canary() []byte {
	c.n++
	text := fmt.Sprintf("client %s request %d ", c.name, c.n)
	return []byte(strings.Repeat(text, 1+c.g.IntN(20)))
}

// opens checks that blob opens, with the context of request n, to want.
func (c *crossingClient) opens(key string, blob []byte, n int, want []byte) {
	r, ok := c.call("Decrypt", key, `{"CiphertextBlob":"%s","EncryptionContext":{"client":"%s","n":"%d"}}`, base64.StdEncoding.EncodeToString(blob), c.name, n)
	if ok && !bytes.Equal(r.Plaintext, want) {
		c.Errorf("client %s: decrypted %q, want %q", c.name, r.Plaintext, want)
	}
}

func (c *crossingClient) encrypt() {
	own, text := "own"+c.name, c.canary()
	r, ok := c.call("Encrypt", own, `{"KeyId":"%s","Plaintext":"%s","EncryptionContext":{"client":"%s","n":"%d"}}`,
		keyID(own), base64.StdEncoding.EncodeToString(text), c.name, c.n)
	if ok {
		c.opens(own, r.CiphertextBlob, c.n, text)
	}
}

func (c *crossingClient) dataKey() {
	own := "own" + c.name
	c.n++
	size := 24 + c.g.IntN(100)
	r, ok := c.call("GenerateDataKey", own, `{"KeyId":"%s","NumberOfBytes":%d,"EncryptionContext":{"client":"%s","n":"%d"}}`, keyID(own), size, c.name, c.n)
	if !ok {
		return
	}
	if len(r.Plaintext) != size {
		c.Errorf("client %s: a data key of %d bytes, want %d", c.name, len(r.Plaintext), size)
	}
	c.fresh(r.Plaintext[:24], "client "+c.name)
	c.opens(own, r.CiphertextBlob, c.n, r.Plaintext)
}

func (c *crossingClient) reEncrypt() {
	own, next, text := "own"+c.name, "next"+c.name, c.canary()
	r, ok := c.call("Encrypt", own, `{"KeyId":"%s","Plaintext":"%s"}`, keyID(own), base64.StdEncoding.EncodeToString(text))
	if !ok {
		return
	}
	r, ok = c.call("ReEncrypt", next, `{"CiphertextBlob":"%s","DestinationKeyId":"%s","DestinationEncryptionContext":{"client":"%s","n":"%d"}}`,
		base64.StdEncoding.EncodeToString(r.CiphertextBlob), keyID(next), c.name, c.n)
	if !ok {
		return
	}
	if r.SourceKeyId != keyARN(own) {
		c.Errorf("client %s: re-encrypted from %s", c.name, r.SourceKeyId)
	}
	c.opens(next, r.CiphertextBlob, c.n, text)
}

func (c *crossingClient) random() {
	size := 24 + c.g.IntN(1000)
	if r, ok := c.call("GenerateRandom", "", `{"NumberOfBytes":%d}`, size); ok {
		if len(r.Plaintext) != size {
			c.Errorf("client %s: %d random bytes, want %d", c.name, len(r.Plaintext), size)
		}
		c.fresh(r.Plaintext[:24], "client "+c.name)
	}
}

// abort makes requests and goes away: in the middle of the request, before the reply, in the middle of the reply, with more requests behind.
func (x *crossing) abort(seed uint64, stop <-chan struct{}) {
	g := rand.New(rand.NewPCG(seed, 8))
	requests := [][]byte{
		x.call("GenerateDataKey", `{"KeyId":"`+keyID("aborter").String()+`","KeySpec":"AES_256"}`),
		x.call("Encrypt", `{"KeyId":"`+keyID("aborter").String()+`","Plaintext":"`+base64.StdEncoding.EncodeToString([]byte(strings.Repeat("aborter", 100)))+`"}`),
		x.call("GenerateRandom", `{"NumberOfBytes":1024}`),
	}
	for {
		select {
		case <-stop:
			return
		default:
		}
		c, err := x.dial()
		if err != nil {
			x.Error(err)
			return
		}
		raw := requests[g.IntN(len(requests))]
		switch g.IntN(4) {
		case 0:
			raw = raw[:g.IntN(len(raw))]
		case 1:
			raw = bytes.Repeat(raw, 3)
		}
		_, _ = c.Write(raw)
		if g.IntN(3) == 0 && len(raw) > 1000 {
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
			_, _ = c.Read(make([]byte, 1+g.IntN(300)))
		}
		if g.IntN(2) == 0 {
			_ = c.(*net.TCPConn).SetLinger(0) // a reset
		}
		_ = c.Close()
		x.aborted.Add(1)
	}
}
