package replication

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func signer(k *ecdsa.PrivateKey) Sign {
	return func(digest []byte) ([]byte, error) { return ecdsa.SignASN1(rand.Reader, k, digest) }
}

// pair is two ends, of Regions a-a-1 and b-b-1, and what went from the first to the second.
type pair struct {
	a, b    *Endpoint
	ka, kb  *ecdsa.PrivateKey
	now     time.Time
	running time.Duration
	sent    [][]byte
	edit    func([]byte) []byte // of answers
}

func newPair(t testing.TB) *pair {
	t.Helper()
	p := &pair{ka: newKey(t), kb: newKey(t), now: time.UnixMilli(1_800_000_000_000)}
	now, since := func() time.Time { return p.now }, func() time.Duration { return p.running }
	nowhere := func(context.Context, []byte) ([]byte, error) { return nil, errors.New("nowhere") }
	var err error
	if p.b, err = New(Config{Region: "b-b-1", Sign: signer(p.kb), Public: &p.kb.PublicKey, Now: now, Since: since, Peers: []Peer{{Region: "a-a-1", Public: &p.ka.PublicKey, Send: nowhere}}}); err != nil {
		t.Fatal(err)
	}
	send := func(ctx context.Context, b []byte) ([]byte, error) {
		p.sent = append(p.sent, bytes.Clone(b))
		answer, err := p.b.Receive(ctx, b, yes)
		if err == nil && p.edit != nil {
			answer = p.edit(answer)
		}
		return answer, err
	}
	if p.a, err = New(Config{Region: "a-a-1", Sign: signer(p.ka), Public: &p.ka.PublicKey, Now: now, Since: since, Peers: []Peer{{Region: "b-b-1", Public: &p.kb.PublicKey, Send: send}}}); err != nil {
		t.Fatal(err)
	}
	return p
}

func yes(context.Context, *Message) *Answer { return &Answer{Exists: true} }

func (p *pair) call(t testing.TB) (*Answer, error) {
	return p.a.Call(t.Context(), "b-b-1", Message{Kind: State, Account: "111122223333", KeyID: "mrk-1"})
}

// TestRefusals: what is forged, repeated, late, early, for somebody else, or signed with another key gets no answer.
func TestRefusals(t *testing.T) {
	p := newPair(t)
	if a, err := p.call(t); err != nil || !a.Exists {
		t.Fatal(a, err)
	}
	good := p.sent[0]
	refused := func(what string, envelope []byte) {
		t.Helper()
		if a, err := p.b.Receive(t.Context(), envelope, yes); err == nil {
			t.Errorf("%s: answered with %q", what, a)
		}
	}
	refused("again", good)
	for i := range good {
		forged := bytes.Clone(good)
		forged[i] ^= 1
		refused("a bit flipped", forged)
	}
	refused("cut off", good[:len(good)-1])
	refused("with more at the end", append(bytes.Clone(good), 0))
	message := func(edit func(*Message), by *ecdsa.PrivateKey) []byte {
		m := Message{Kind: State, Account: "111122223333", KeyID: "mrk-1"}
		p.a.stamp(&m, "b-b-1")
		edit(&m)
		b, err := seal(&m, signer(by))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	nothing := func(*Message) {}
	refused("another key", message(nothing, newKey(t)))
	refused("the receiver's own key", message(nothing, p.kb))
	refused("another receiver", message(func(m *Message) { m.To = "c-c-1" }, p.ka))
	refused("another sender", message(func(m *Message) { m.From = "c-c-1" }, p.ka))
	refused("a handover", message(func(m *Message) { m.Kind, m.Shared = Handover, &Shared{Primary: "b-b-1", Epoch: 1, Revision: 1} }, p.ka))
	refused("an answer", message(func(m *Message) { m.Answers, m.Answer = m.Nonce, &Answer{} }, p.ka))
	refused("another kind", message(func(m *Message) { m.Kind = "export" }, p.ka))
	refused("parts of another kind", message(func(m *Message) { m.Token = []byte{1} }, p.ka))
	for _, d := range []time.Duration{-skewMax - time.Second, skewMax + time.Second} {
		refused("of another time", message(func(m *Message) { m.Time += d.Milliseconds() }, p.ka))
	}
	if _, err := p.b.Receive(t.Context(), message(nothing, p.ka), yes); err != nil {
		t.Errorf("a good one: %v", err)
	}
	// A start forgets what was received, and therefore refuses what was sent before it.
	fresh := message(nothing, p.ka)
	p.now = p.now.Add(time.Second)
	cfg := p.b.cfg
	var err error
	if p.b, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	refused("of before the start", fresh)
}

// TestAnswers: only the answer to this very request counts.
func TestAnswers(t *testing.T) {
	p := newPair(t)
	var other []byte
	p.edit = func(b []byte) []byte { other = bytes.Clone(b); return b }
	if _, err := p.call(t); err != nil {
		t.Fatal(err)
	}
	for what, edit := range map[string]func([]byte) []byte{
		"another request's answer": func([]byte) []byte { return other },
		"its own request":          func([]byte) []byte { return p.sent[len(p.sent)-1] },
		"nothing":                  func([]byte) []byte { return nil },
		"another text":             func(b []byte) []byte { return bytes.Replace(b, []byte(`"exists":true`), []byte(`"exists":null`), 1) },
	} {
		p.edit = edit
		if a, err := p.call(t); err == nil {
			t.Errorf("%s counts as the answer %+v", what, a)
		}
	}
}

// TestStrangersCostNothing: what is not signed by a peer is not decoded, however long it is.
func TestStrangersCostNothing(t *testing.T) {
	p := newPair(t)
	message := `{"nonce":"00000000000000000000000000000000","kind":"sync","shared":{},"material":[`
	message += strings.Repeat("{},", (EnvelopeMax-len(message)-200)/3) + `{}]}`
	body := "a-a-1 b-b-1\n" + message
	b := append(binary.BigEndian.AppendUint32([]byte(magic), uint32(len(body))), body...)
	b = append(b, make([]byte, 100)...)
	if To(b) != "b-b-1" {
		t.Fatal("it is for nobody")
	}
	if n := testing.AllocsPerRun(1, func() {
		if _, err := p.b.Receive(t.Context(), b, yes); err == nil {
			t.Error("a stranger's message was answered")
		}
	}); n > 200 {
		t.Errorf("%v allocations", n)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 10 {
		_, _ = p.b.Receive(t.Context(), b, yes)
	}
	runtime.ReadMemStats(&after)
	if n := (after.TotalAlloc - before.TotalAlloc) / 10; n > 64<<10 {
		t.Errorf("%d bytes for a message of %d", n, len(b))
	}
}

// TestClockSetBack: a clock that was ahead at the start, and is set right, does not shut peers out.
func TestClockSetBack(t *testing.T) {
	p := newPair(t)
	right := p.now
	p.now = p.now.Add(365 * 24 * time.Hour)
	var err error
	if p.b, err = New(p.b.cfg); err != nil {
		t.Fatal(err)
	}
	p.now = right
	if _, err := p.call(t); err != nil {
		t.Fatal(err)
	}
	// What is remembered goes by running time, whatever the clock says.
	again := p.sent[len(p.sent)-1]
	p.now, p.running = p.now.Add(time.Hour), p.running+skewMax+time.Second
	if _, err := p.call(t); err != nil {
		t.Fatal(err)
	}
	p.now = right
	if _, err := p.b.Receive(t.Context(), again, yes); !errors.Is(err, errReplay) {
		t.Errorf("a message that was received before: %v", err)
	}
	p.running += 2*skewMax + time.Second
	if _, err := p.call(t); err != nil {
		t.Fatal(err)
	}
	if n := len(p.b.seen["a-a-1"]); n != 1 {
		t.Errorf("%d requests are remembered for ever", n)
	}
}

// TestSeenPerPeer: one peer that sends too much keeps only itself out.
func TestSeenPerPeer(t *testing.T) {
	p := newPair(t)
	for i := range seenMax + 1 {
		m := &Message{From: "a-a-1", Nonce: strconv.Itoa(i), Time: p.now.UnixMilli()}
		if err := p.b.fresh(m); (err != nil) != (i == seenMax) {
			t.Fatal(i, err)
		}
	}
	if err := p.b.fresh(&Message{From: "c-c-1", Nonce: "1", Time: p.now.UnixMilli()}); err != nil {
		t.Errorf("another peer: %v", err)
	}
}

// TestHandover: it proves who made whom the primary of which key when, and nothing else proves it.
func TestHandover(t *testing.T) {
	p := newPair(t)
	step := Step{"a-a-1", "b-b-1", 3, 4}
	b, err := p.a.Handover("111122223333", "mrk-1", step)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []*Endpoint{p.a, p.b} {
		if got, err := e.ProvenStep(b, "111122223333", "mrk-1"); err != nil || got != step {
			t.Errorf("%s: %+v %v", e.cfg.Region, got, err)
		}
	}
	if _, err := p.b.ProvenStep(b, "111122223333", "mrk-2"); err == nil {
		t.Error("it proves another key's")
	}
	if _, err := p.b.ProvenStep(b, "111122224444", "mrk-1"); err == nil {
		t.Error("it proves another account's")
	}
	if _, err := p.call(t); err != nil {
		t.Fatal(err)
	}
	if _, err := p.b.ProvenStep(p.sent[0], "111122223333", "mrk-1"); err == nil {
		t.Error("a request is a proof")
	}
	p.a.cfg.Sign = signer(newKey(t))
	forged, err := p.a.Handover("111122223333", "mrk-1", step)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.b.ProvenStep(forged, "111122223333", "mrk-1"); err == nil {
		t.Error("another key's signature is a proof")
	}
}

// FuzzOpen: whatever comes, nothing but what a peer signed is read, and nothing panics.
func FuzzOpen(f *testing.F) {
	p := newPair(f)
	if _, err := p.call(f); err != nil {
		f.Fatal(err)
	}
	f.Add(p.sent[0])
	f.Add([]byte(magic + "\xff\xff\xff\xff"))
	f.Add([]byte(magic + "\x00\x00\x00\x06a b\n{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		To(b)
		if body, _, err := split(b); err == nil {
			_, _, message, err := header(body)
			if err != nil {
				return
			}
			if m, err := decode(message); err == nil && len(m.Nonce) != 2*nonceLen {
				t.Errorf("a message without a nonce: %q", body)
			}
		}
		if m, err := open(b, "b-b-1", p.b.publicKey); err == nil && !strings.Contains(string(p.sent[0]), m.Nonce) {
			t.Errorf("nobody signed %q", b)
		}
	})
}
