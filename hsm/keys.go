package hsm

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// KeyRingConfig sizes a KeyRing.
type KeyRingConfig struct {
	Tokens           []Token       // those that are KeyTokens and offer something have sessions for keys
	SessionsPerToken int           // > 0, besides those of rounds of AES blocks
	RoundMax         int           // jobs in one round, 1..64; they run one after the other, and all end with the last
	Timeout          time.Duration // how long one operation may take; 0 means 10 s
	GenerateTimeout  time.Duration // how long the making of a key may take, with the wait for its turn; 0 means 60 s
	HandlesMax       int           // loaded keys per token, and in software; 0 means 4096
	QueueTimeMax     time.Duration // how long a job may wait for its round to start

	// Batch joins callers into rounds: it returns Do of a batch.Batcher with this many shards over run. Do's errors mean that the job was not run.
	Batch func(shards int, run func(shard int, round []*KeyJob)) (do func(shard int, j *KeyJob, deadline time.Time) error, err error)
	// Full is Do's error for a shard whose queue is full. The job then goes to another shard: at most three are asked after the first.
	Full error

	Software SoftwareKeys // for specs that no token offers; nil: there are no keys outside of tokens
	Root     RootID       // that Software seals under
	Logger   *slog.Logger // as in ShardsConfig
}

// KeyRing is the Keys of the tokens: the sessions on which their private and secret keys work, the keys that are loaded, and those in software.
// Methods are safe for concurrent use. A KeyRing does not close its tokens.
//
//	Run ──► an idle shard, or the one with the fewest jobs   pickKey: one hot key uses all sessions
//	          Batch's Do ──► runRound(shard, round)
//	            group the jobs by key                       one look-up of the handle, which loads the key where it must (handles.go)
//	            KeySession.Use for each                     on the lane's memory; classify the CKR, act, retry once (keysrun.go, class.go)
//
// The sessions are Shards of their own: a slot that a slow or failing operation with a key puts into quarantine still serves rounds of AES blocks.
type KeyRing struct {
	cfg      KeyRingConfig
	shards   *Shards // nil where no token offers anything
	do       func(shard int, j *KeyJob, deadline time.Time) error
	software *software // nil: not allowed
	next     atomic.Uint64
	making   chan struct{} // capacity makingMax: keys that are being made

	generated, failed atomic.Uint64
}

// makingMax bounds the keys that are made at the same time: on many tokens making one delays all other work.
const makingMax = 2

// NewKeyRing asks every token what it offers, which can take seconds, and opens sessions on those that offer something.
func NewKeyRing(cfg KeyRingConfig) (*KeyRing, error) {
	dflt(&cfg.Timeout, 10*time.Second)
	dflt(&cfg.GenerateTimeout, 60*time.Second)
	dflt(&cfg.HandlesMax, 4096)
	if cfg.SessionsPerToken < 1 || cfg.RoundMax < 1 || cfg.RoundMax > 64 || cfg.HandlesMax < 1 || cfg.Timeout < 0 || cfg.GenerateTimeout < 0 ||
		cfg.QueueTimeMax < 0 || cfg.Batch == nil {
		return nil, fmt.Errorf("hsm: config out of range: %d sessions, rounds of %d, %d handles, timeouts %v, %v and %v",
			cfg.SessionsPerToken, cfg.RoundMax, cfg.HandlesMax, cfg.Timeout, cfg.GenerateTimeout, cfg.QueueTimeMax)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := &KeyRing{cfg: cfg, making: make(chan struct{}, makingMax)}
	if cfg.Software != nil {
		r.software = newSoftware(&cfg)
	}
	keys := &keyConfig{handlesMax: cfg.HandlesMax}
	var tokens []Token
	for _, t := range cfg.Tokens {
		offers, err := offersOf(t, cfg.GenerateTimeout)
		if err != nil {
			return nil, err
		}
		if offers != nil {
			tokens, keys.offers = append(tokens, t), append(keys.offers, offers)
		}
	}
	if len(tokens) == 0 {
		return r, nil
	}
	var err error
	if r.shards, err = newShards(ShardsConfig{
		Tokens: tokens, SessionsPerToken: cfg.SessionsPerToken, RoundMax: cfg.RoundMax, RoundTimeout: cfg.Timeout, Logger: cfg.Logger.With("sessions", "keys"),
	}, keys); err != nil {
		return nil, fmt.Errorf("sessions for keys: %w", err)
	}
	if r.do, err = cfg.Batch(r.shards.Len(), r.shards.runKeys); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func dflt[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// offersOf asks a token what it can do with keys of each spec; nil if nothing.
func offersOf(t Token, timeout time.Duration) ([]Mechanisms, error) {
	token, ok := t.(KeyToken)
	if !ok {
		return nil, nil
	}
	answer := make(chan []Mechanisms, 1)
	go func() { // a module may hang
		all := keyspec.All()
		offers, some := make([]Mechanisms, len(all)+1), false
		for _, s := range all {
			offers[s] = token.Keys(s) & MechanismsOf(s)
			some = some || offers[s] != 0
		}
		if !some {
			offers = nil
		}
		answer <- offers
	}()
	select {
	case offers := <-answer:
		return offers, nil
	case <-time.After(timeout):
		i := t.Info()
		return nil, fmt.Errorf("hsm: token %q serial %q: what keys it makes: %w", i.Label, i.Serial, ErrTimeout)
	}
}

// Run runs j, which the caller owns again when it returns. The error is j.Err: nil, Batch's Do's, ErrReused, when the job is not the caller's, or
// one for which Final has a Result. ErrNotOffered is one that the token of the key does not do this with keys of its spec.
func (r *KeyRing) Run(j *KeyJob, now time.Time) error {
	ticket, ok := j.handIn()
	if !ok {
		return ErrReused
	}
	defer j.ticket.CompareAndSwap(ticket, 0) // also after a panic: the round is over then
	j.N, j.Attempt = 0, 0
	err := j.check()
	if err == nil {
		if j.Key.Software {
			err = r.software.run(j, now)
		} else {
			err = r.run(j, now)
		}
	}
	if j.ticket.Load() != ticket {
		return ErrReused
	}
	if j.Err = err; err != nil {
		j.N = 0
	}
	return err
}

func (r *KeyRing) run(j *KeyJob, now time.Time) error {
	if r.shards == nil {
		return ErrNotOffered
	}
	ticket := j.ticket.Load()
	not := -1
	for deadline := now.Add(r.cfg.QueueTimeMax + r.cfg.Timeout); ; deadline = time.Now().Add(r.cfg.QueueTimeMax + r.cfg.Timeout) {
		j.Err = ErrUnavailable // stays where the round gave no outcome
		shard, err := r.hand(j, not, deadline)
		if err != nil {
			return err
		}
		if j.ticket.Load() != ticket {
			return ErrReused
		}
		if j.Err == nil || j.Attempt == 1 || !Retryable(j.Err) {
			return j.Err
		}
		j.Attempt, not = 1, shard
	}
}

// hand gives j to a shard or, where its queue is full, to one of the next. It returns the shard.
func (r *KeyRing) hand(j *KeyJob, not int, deadline time.Time) (shard int, err error) {
	full := -1
	for range 1 + othersMax {
		var pickErr error
		if shard, pickErr = r.shards.pickKey(j.Key, j.Mechanism, not, full, r.next.Add(1)); pickErr != nil {
			return 0, pickErr
		}
		if err = r.doCounted(shard, j, deadline); err == nil || err != r.cfg.Full {
			break
		}
		full = shard
	}
	return shard, err
}

func (r *KeyRing) doCounted(shard int, j *KeyJob, deadline time.Time) error {
	defer r.shards.shards[shard].waiting.Add(-1) // also after a panic
	return r.do(shard, j, deadline)
}

// Generate makes a key in the first token that offers the spec and serves, or in software where none offers it and that is allowed.
func (r *KeyRing) Generate(s keyspec.Spec) (k *Key, public []byte, err error) {
	if k, public, err = r.generate(s); err != nil {
		r.failed.Add(1)
		return nil, nil, err
	}
	r.generated.Add(1)
	return k, public, nil
}

func (r *KeyRing) generate(s keyspec.Spec) (*Key, []byte, error) {
	m, inSoftware := r.Offers(s)
	if m == 0 {
		return nil, nil, ErrNotOffered
	}
	timer := time.NewTimer(r.cfg.GenerateTimeout)
	defer timer.Stop()
	if inSoftware {
		if !r.seat(timer) {
			return nil, nil, errGenerateTimeout
		}
		defer r.unseat()
		sealed, public, err := r.cfg.Software.GenerateKey(s)
		if err != nil {
			return nil, nil, err
		}
		return &Key{Spec: s, Root: r.cfg.Root, Software: true, Wrapped: sealed}, public, nil
	}
	err := ErrUnavailable
	for _, sl := range r.shards.slots {
		if sl.offers[s] == 0 || sl.state.Load() != serving {
			continue
		}
		if !r.seat(timer) {
			return nil, nil, errGenerateTimeout
		}
		var wrapped, public []byte
		if wrapped, public, err = r.shards.generateOn(sl, s, timer.C, r.unseat); err == nil {
			return &Key{Spec: s, Root: sl.root, Wrapped: wrapped}, public, nil
		}
		if errors.Is(err, ErrTimeout) || !classOf(err).Has(actElsewhere) {
			break
		}
	}
	return nil, nil, err
}

// seat waits for one's turn to make a key, false if that does not come in time.
func (r *KeyRing) seat(timer *time.Timer) bool {
	select {
	case r.making <- struct{}{}:
		return true
	case <-timer.C:
		return false
	}
}

func (r *KeyRing) unseat() { <-r.making }

// Offers says what is done with keys of the spec that Generate makes now, and whether in software.
func (r *KeyRing) Offers(s keyspec.Spec) (m Mechanisms, software bool) {
	if s.Info().Family == 0 {
		return 0, false
	}
	if r.shards != nil {
		for _, sl := range r.shards.slots {
			if sl.offers[s] != 0 {
				return sl.offers[s], false
			}
		}
	}
	if r.software != nil {
		return MechanismsOf(s), true
	}
	return 0, false
}

// Forget unloads a key everywhere. One that is in use is unloaded afterwards.
func (r *KeyRing) Forget(id [32]byte) {
	if r.software != nil {
		r.software.handles.forget(id)
	}
	if r.shards != nil {
		for _, sl := range r.shards.slots {
			sl.handles.forget(id)
		}
	}
}

// Healthy is nil if every token that offers keys has a serving session for them, else says which has none and why.
func (r *KeyRing) Healthy() error {
	if r.shards == nil {
		return nil
	}
	return r.shards.Healthy()
}

// Close closes the sessions. Keys in this process's memory are unloaded; the others go with their token's sessions. Run and Generate must not be called afterwards, nor be under way; a call that hangs in a
// module is left behind.
func (r *KeyRing) Close() {
	if r.software != nil {
		r.software.handles.clear()
	}
	if r.shards != nil && !r.shards.closed.Load() {
		for _, sl := range r.shards.slots {
			if !sl.watched {
				sl.handles.clear()
			}
		}
		r.shards.Close()
	}
}

// KeyStats counts since NewKeyRing.
type KeyStats struct {
	Stats     `json:"sessions"` // rounds and jobs are those with keys; Blocks and Random stay 0
	Handles   []HandleStats     `json:"handles"`  // by slot
	Software  HandleStats       `json:"software"` // keys of the process
	Generated uint64            `json:"generated"`
	Failed    uint64            `json:"failed"` // calls of Generate
	Offers    map[string]string `json:"offers"` // by spec: "hsm", "software" or "none"
}

// Stats reads the counters; the numbers are each exact but not of one instant.
func (r *KeyRing) Stats() KeyStats {
	t := KeyStats{Generated: r.generated.Load(), Failed: r.failed.Load(), Offers: map[string]string{}}
	if r.shards != nil {
		t.Stats = r.shards.Stats()
		for _, sl := range r.shards.slots {
			t.Handles = append(t.Handles, sl.handles.stats())
		}
	}
	if r.software != nil {
		t.Software = r.software.handles.stats()
	}
	for _, s := range keyspec.All() {
		switch m, software := r.Offers(s); {
		case software:
			t.Offers[s.String()] = "software"
		case m != 0:
			t.Offers[s.String()] = "hsm"
		default:
			t.Offers[s.String()] = "none"
		}
	}
	return t
}

// software runs jobs with keys outside of the tokens: on the callers' goroutines, as many as there are processors at the same time.
type software struct {
	keys         SoftwareKeys
	log          *slog.Logger
	handles      *handles
	seats        chan struct{}
	queueTimeMax time.Duration
	full         error
}

// errSoftware is the error of a key from a time when such keys were allowed.
var errSoftware = &unusable{errors.New("it was made in software, and software keys are not allowed now")}

func newSoftware(cfg *KeyRingConfig) *software {
	return &software{
		keys: cfg.Software, log: cfg.Logger, seats: make(chan struct{}, runtime.GOMAXPROCS(0)), queueTimeMax: cfg.QueueTimeMax, full: cfg.Full,
		handles: newHandles(cfg.HandlesMax,
			func(k *Key) (LoadedKey, error) { return cfg.Software.LoadKey(k.Spec, k.Wrapped) },
			func(k LoadedKey) { _ = cfg.Software.UnloadKey(k) }, // it wipes memory and does not fail
			func() uint64 { return 0 }),
	}
}

// run runs j when there is a processor for it.
func (w *software) run(j *KeyJob, now time.Time) error {
	if w == nil {
		return errSoftware
	}
	if !w.wait(now) {
		return w.full
	}
	defer func() { <-w.seats }()
	h, err := w.handles.acquire(j.Key)
	if err != nil {
		if classOf(err).Has(actD) {
			w.log.Error("a stored software key does not unseal", "err", err)
			err = &unusable{err}
		}
		return err
	}
	defer w.handles.release(h)
	j.N, err = w.keys.Use(h.key, j.Key.Spec, j.Mechanism, j.In, j.Out)
	return err
}

// wait takes a seat, false if there is none in time.
func (w *software) wait(now time.Time) bool {
	select {
	case w.seats <- struct{}{}:
		return true
	default:
	}
	timer := time.NewTimer(time.Until(now.Add(w.queueTimeMax)))
	defer timer.Stop()
	select {
	case w.seats <- struct{}{}:
		return true
	case <-timer.C:
		return false
	}
}
