package replication

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// skewMax is how far the clocks of two Regions may be apart, with the way of a message.
	skewMax = 5 * time.Minute
	// seenMax bounds what is remembered of one peer's requests in twice that time. More are refused: no peer sends as many.
	seenMax = 1 << 16
)

// handoverMax bounds the envelope of a Handover, in bytes: more than two long names of Regions make it.
const handoverMax = 1 << 10

// Peer is another Region.
type Peer struct {
	Region string
	Public *ecdsa.PublicKey // configured, never learned from a message
	// Send takes an envelope to the peer and brings back its answer, which is not verified yet. It is called concurrently.
	Send func(ctx context.Context, envelope []byte) ([]byte, error)
	// Local says that the peer is a Region of this process: it has the same principals.
	Local bool
}

// Config is what an Endpoint is made of. Every field is required.
type Config struct {
	Region string
	Sign   Sign
	Public *ecdsa.PublicKey // of what Sign signs
	Peers  []Peer
	Now    func() time.Time     // wall clock
	Since  func() time.Duration // running time, which nobody sets
}

// Endpoint is one Region's end. Safe for concurrent use.
type Endpoint struct {
	cfg Config

	mu    sync.Mutex
	began time.Time
	seen  map[string]map[string]time.Duration // when requests came, by sender and nonce; those of the last 2 × skewMax
	swept time.Duration
}

// New checks the configuration.
func New(cfg Config) (*Endpoint, error) {
	if cfg.Region == "" || cfg.Sign == nil || cfg.Public == nil || cfg.Now == nil || cfg.Since == nil {
		return nil, errors.New("replication: a part of the configuration is missing")
	}
	names := map[string]bool{cfg.Region: true}
	for _, p := range cfg.Peers {
		if p.Public == nil || p.Send == nil || p.Region == "" {
			return nil, fmt.Errorf("replication: peer %q has no public key, or no way to it", p.Region)
		}
		if slices.ContainsFunc(cfg.Peers, func(o Peer) bool { return o.Region != p.Region && o.Public != nil && o.Public.Equal(p.Public) }) {
			return nil, fmt.Errorf("replication: another Region has the public key of Region %s", p.Region)
		}
		if names[p.Region] {
			return nil, fmt.Errorf("replication: Region %s is configured twice", p.Region)
		}
		names[p.Region] = true
	}
	return &Endpoint{cfg: cfg, began: cfg.Now(), swept: cfg.Since(), seen: map[string]map[string]time.Duration{}}, nil
}

// Peer is the peer of a Region, nil if there is none.
func (e *Endpoint) Peer(region string) *Peer {
	i := slices.IndexFunc(e.cfg.Peers, func(p Peer) bool { return p.Region == region })
	if i < 0 {
		return nil
	}
	return &e.cfg.Peers[i]
}

// Regions are the peers' names, ascending.
func (e *Endpoint) Regions() (names []string) {
	for _, p := range e.cfg.Peers {
		names = append(names, p.Region)
	}
	slices.Sort(names)
	return names
}

func (e *Endpoint) publicKey(region string) *ecdsa.PublicKey {
	if p := e.Peer(region); p != nil {
		return p.Public
	}
	return nil
}

// Call sends a request and returns its verified answer. It fills in who, to whom, when and the nonce. After an error the request may have been
// received all the same.
func (e *Endpoint) Call(ctx context.Context, to string, m Message) (*Answer, error) {
	p := e.Peer(to)
	if p == nil {
		return nil, fmt.Errorf("replication: Region %s is no peer", to)
	}
	e.stamp(&m, to)
	envelope, err := seal(&m, e.cfg.Sign)
	if err != nil {
		return nil, err
	}
	b, err := p.Send(ctx, envelope)
	if err != nil {
		return nil, fmt.Errorf("replication: Region %s: %w", to, err)
	}
	a, err := open(b, e.cfg.Region, e.publicKey)
	if err != nil {
		return nil, err
	}
	if a.From != to || a.Kind != m.Kind || a.Answers != m.Nonce || a.Account != m.Account || a.KeyID != m.KeyID {
		return nil, fmt.Errorf("replication: what Region %s sent answers another request", to)
	}
	return a.Answer, nil
}

// Receive verifies an envelope, has it answered, and signs the answer. An error is for whoever is not known to be a peer: it gets no answer.
func (e *Endpoint) Receive(ctx context.Context, envelope []byte, answer func(context.Context, *Message) *Answer) ([]byte, error) {
	m, err := open(envelope, e.cfg.Region, e.publicKey)
	if err != nil {
		return nil, err
	}
	if m.Answer != nil || m.Kind == Handover {
		return nil, errors.New("replication: the message is no request")
	}
	if err := e.fresh(m); err != nil {
		return nil, err
	}
	a := Message{Kind: m.Kind, Answers: m.Nonce, Account: m.Account, KeyID: m.KeyID, Answer: answer(ctx, m)}
	e.stamp(&a, m.From)
	return seal(&a, e.cfg.Sign)
}

func (e *Endpoint) stamp(m *Message, to string) {
	var nonce [nonceLen]byte
	rand.Read(nonce[:])
	m.From, m.To, m.Nonce, m.Time = e.cfg.Region, to, hex.EncodeToString(nonce[:]), e.cfg.Now().UnixMilli()
}

var (
	errSkew   = errors.New("replication: the message is from another time")
	errReplay = errors.New("replication: the message was received before")
)

// fresh lets a request in once, within skewMax of the time that it says it was sent at. What was sent before this Endpoint began is refused, because
// it cannot know any more whether it had it.
func (e *Endpoint) fresh(m *Message) error {
	now, running, sent := e.cfg.Now(), e.cfg.Since(), time.UnixMilli(m.Time)
	e.mu.Lock()
	defer e.mu.Unlock()
	if now.Before(e.began) {
		e.began = now // the clock was ahead then, and has been set right: what was received since is in seen
	}
	if d := now.Sub(sent); d > skewMax || d < -skewMax || sent.Before(e.began.Truncate(time.Millisecond)) {
		return errSkew
	}
	if running-e.swept > skewMax {
		for _, of := range e.seen {
			maps.DeleteFunc(of, func(_ string, came time.Duration) bool { return running-came > 2*skewMax })
		}
		e.swept = running
	}
	of := e.seen[m.From]
	if of == nil {
		of = map[string]time.Duration{}
		e.seen[m.From] = of
	}
	if _, again := of[m.Nonce]; again || len(of) >= seenMax {
		return errReplay
	}
	of[m.Nonce] = running
	return nil
}

// Step is a change of a key's primary from one Region to the next, at a moment of the former's.
type Step struct {
	From, To        string
	Epoch, Revision uint64
}

// Handover signs that this Region makes the one that s names the primary of a key. Whoever has the envelope can show it to others, at any time.
func (e *Endpoint) Handover(account, keyID string, s Step) ([]byte, error) {
	m := Message{Kind: Handover, Account: account, KeyID: keyID, Shared: &Shared{Primary: s.To, Epoch: s.Epoch, Revision: s.Revision}}
	e.stamp(&m, s.To)
	return seal(&m, e.cfg.Sign)
}

// ProvenStep reads what Handover signed in any of the Regions that are configured, this one among them.
func (e *Endpoint) ProvenStep(envelope []byte, account, keyID string) (s Step, err error) {
	if len(envelope) > handoverMax {
		return s, errEnvelope
	}
	m, err := open(envelope, To(envelope), func(region string) *ecdsa.PublicKey {
		if region == e.cfg.Region {
			return e.cfg.Public
		}
		return e.publicKey(region)
	})
	if err != nil {
		return s, err
	}
	if m.Kind != Handover || m.Answer != nil || m.Account != account || m.KeyID != keyID || m.Shared.Primary != m.To {
		return s, errMessage
	}
	return Step{m.From, m.To, m.Shared.Epoch, m.Shared.Revision}, nil
}
