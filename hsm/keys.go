package hsm

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// KeyRingConfig sizes a KeyRing.
type KeyRingConfig struct {
	Tokens           []Token       // those that are KeyTokens and offer something have sessions for keys
	SessionsPerToken int           // > 0, besides those of rounds of AES blocks
	RoundMax         int           // jobs in one round, 1..64; they run one after the other but for those of one call (KeyJob.SameCall), and all end with the last
	Timeout          time.Duration // how long one operation may take; 0 means 10 s
	GenerateTimeout  time.Duration // how long the making of a key may take, with the wait for its turn; 0 means 60 s
	HandlesMax       int           // loaded keys per token, and in software; 0 means 4096
	QueueTimeMax     time.Duration // how long a job may wait for its round to start

	// Batch joins callers into rounds: it returns Do of a batch.Batcher with this many shards over run. Do's errors mean that the job was not run.
	Batch func(shards int, run func(shard int, round []*KeyJob)) (do func(shard int, j *KeyJob, deadline time.Time) error, err error)
	// Full is Do's error for a shard whose queue is full, never nil. The job then goes to another shard: at most three are asked after the first.
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
	making   chan struct{} // capacity makingMax: keys that are being made in software
	idle     []*offers     // of tokens that offered nothing at the start, and have no sessions
	asked    sync.WaitGroup

	imports   []atomic.Uint32 // by spec and wrapping: what a token has said that it imports
	importing importQuestion

	generated, failed atomic.Uint64
}

// makingMax bounds the keys that are made at the same time in one token, or in software: on many tokens making one delays all other work.
const makingMax = 2

// NewKeyRing asks every token what it offers, which can take seconds, and opens sessions on those that offer something.
func NewKeyRing(cfg KeyRingConfig) (*KeyRing, error) {
	dflt(&cfg.Timeout, 10*time.Second)
	dflt(&cfg.GenerateTimeout, 60*time.Second)
	dflt(&cfg.HandlesMax, 4096)
	if cfg.SessionsPerToken < 1 || cfg.RoundMax < 1 || cfg.RoundMax > 64 || cfg.HandlesMax < 1 || cfg.Timeout < 0 || cfg.GenerateTimeout < 0 ||
		cfg.QueueTimeMax < 0 || cfg.Batch == nil || cfg.Full == nil {
		return nil, fmt.Errorf("hsm: config out of range: %d sessions, rounds of %d, %d handles, timeouts %v, %v and %v, or no Batch or Full",
			cfg.SessionsPerToken, cfg.RoundMax, cfg.HandlesMax, cfg.Timeout, cfg.GenerateTimeout, cfg.QueueTimeMax)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := &KeyRing{cfg: cfg, making: make(chan struct{}, makingMax), imports: make([]atomic.Uint32, (int(keyspec.AES256)+1)*wrappings)}
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
		if offers == nil {
			continue
		}
		o := newOffers(t.(KeyToken), offers, &r.asked)
		if some(offers) {
			tokens, keys.offers = append(tokens, t), append(keys.offers, o)
		} else {
			r.idle = append(r.idle, o)
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

// offersOf asks a token what it can do with keys of each spec; nil if it is no KeyToken.
func offersOf(t Token, timeout time.Duration) ([]Mechanisms, error) {
	token, ok := t.(KeyToken)
	if !ok {
		return nil, nil
	}
	answer := make(chan []Mechanisms, 1)
	go func() { // a module may hang
		all := keyspec.Backing()
		offers := make([]Mechanisms, len(all)+1)
		for _, s := range all {
			offers[s] = token.Keys(s) & MechanismsOf(s)
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

func some(offers []Mechanisms) bool {
	for _, m := range offers {
		if m != 0 {
			return true
		}
	}
	return false
}

// Run runs j, which the caller owns again when it returns. The error is j.Err: nil, Batch's Do's, ErrReused, when the job is not the caller's, or
// one for which Final has a Result. ErrNotOffered is one that the token of the key does not do this with keys of its spec, of which it
// does other things; where it seems to do nothing at all with them any more, the key is unavailable.
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
		return ErrUnavailable // a token has made it that is not here, or cannot tell what it offers
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
	if s.Info().Family == 0 {
		return nil, nil, ErrNotOffered
	}
	timer := time.NewTimer(r.cfg.GenerateTimeout)
	defer timer.Stop()
	m := r.known(s)
	if m == 0 { // ask again before a key is made in software, or refused
		if !r.ask(s, timer.C) {
			return nil, nil, errGenerateTimeout
		}
		m = r.known(s)
	}
	switch {
	case m != 0:
		k, sl, err := r.inToken(s, timer, func(*slot) bool { return true }, func(t KeyToken) (m made, err error) {
			m.wrapped, m.public, err = t.GenerateKey(s)
			return m, err
		})
		if err != nil {
			return nil, nil, err
		}
		return &Key{Spec: s, Root: sl.root, Wrapped: k.wrapped}, k.public, nil
	case r.anyIdle(s): // and it has no sessions
		return nil, nil, ErrUnavailable
	case r.software == nil:
		return nil, nil, ErrNotOffered
	}
	soft, err := r.inSoftware(timer, func() (m made, err error) {
		m.wrapped, m.public, err = r.cfg.Software.GenerateKey(s)
		return m, err
	})
	if err != nil {
		return nil, nil, err
	}
	return &Key{Spec: s, Root: r.cfg.Root, Software: true, Wrapped: soft.wrapped}, soft.public, nil
}

// inSoftware has a key made in software when there is a seat for it.
func (r *KeyRing) inSoftware(timer *time.Timer, call func() (made, error)) (made, error) {
	select {
	case r.making <- struct{}{}:
	case <-timer.C:
		return made{}, errGenerateTimeout
	}
	defer func() { <-r.making }()
	return call()
}

// seatEvery is how often somebody who waits for his turn to make a key looks for it. Most keys take longer.
const seatEvery = 5 * time.Millisecond

// inToken has a key made in the first token that may make it, offers its spec, serves and has a free seat. Seats are the token's own: calls that hang in
// one do not keep the others from making keys.
func (r *KeyRing) inToken(s keyspec.Spec, timer *time.Timer, may func(*slot) bool, call making) (made, *slot, error) {
	tried := make([]bool, len(r.shards.slots))
	for err := error(ErrUnavailable); ; {
		busy := false
		for i, sl := range r.shards.slots {
			if tried[i] || !may(sl) || sl.offers.of(s) == 0 || sl.state.Load() != serving {
				continue
			}
			select {
			case sl.making <- struct{}{}:
			default:
				busy = true
				continue
			}
			tried[i] = true
			var m made
			m, err = r.shards.makeOn(sl, s, call, timer.C, r.cfg.GenerateTimeout)
			_, doubtful := errors.AsType[*MaterialFault](err)
			switch {
			case errors.Is(err, ErrMaterial) && r.shards.distrusted(sl):
				err = ErrUnavailable
			case doubtful, errors.Is(err, ErrUnavailable): // the next replica may know better
			case err == nil || answers(err):
				return m, sl, err
			case errors.Is(err, ErrTimeout) || !classOf(err).Has(actElsewhere):
				return made{}, sl, err
			}
		}
		if !busy {
			return made{}, nil, err
		}
		select {
		case <-timer.C:
			return made{}, nil, errGenerateTimeout
		case <-time.After(seatEvery):
		}
	}
}

// Offers says what is done with keys of the spec that Generate makes now, and whether in software. Where no token is known to offer the spec they are
// asked again, at most once a second. It does not wait for their answers: those are the next call's. Generate waits.
func (r *KeyRing) Offers(s keyspec.Spec) (m Mechanisms, software bool) {
	if s.Info().Family == 0 {
		return 0, false
	}
	if r.known(s) == 0 {
		for _, o := range r.all() {
			o.askSoon(s)
		}
	}
	return r.offered(s)
}

// offered is Offers without a question.
func (r *KeyRing) offered(s keyspec.Spec) (m Mechanisms, software bool) {
	if m = r.known(s); m == 0 && r.software != nil {
		return MechanismsOf(s), true
	}
	return m, false
}

// known is what the first slot that is known to offer something with keys of the spec does.
func (r *KeyRing) known(s keyspec.Spec) Mechanisms {
	if r.shards != nil {
		for _, sl := range r.shards.slots {
			if m := sl.offers.of(s); m != 0 {
				return m
			}
		}
	}
	return 0
}

// all are the offers of all tokens.
func (r *KeyRing) all() []*offers {
	all := append([]*offers(nil), r.idle...)
	if r.shards != nil {
		for _, sl := range r.shards.slots {
			all = append(all, sl.offers)
		}
	}
	return all
}

// ask asks all tokens for the spec, false if one does not answer in time.
func (r *KeyRing) ask(s keyspec.Spec, late <-chan time.Time) bool {
	for _, o := range r.all() {
		if !o.ask(s, late) {
			return false
		}
	}
	return true
}

func (r *KeyRing) anyIdle(s keyspec.Spec) bool {
	return slices.ContainsFunc(r.idle, func(o *offers) bool { return o.of(s) != 0 })
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

// Close closes the sessions. Keys in this process's memory are unloaded; the others go with their token's sessions. Run and Generate must not be called
// afterwards, nor be under way; a call that hangs in a module is left behind.
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
	answered := make(chan struct{})
	go func() {
		r.asked.Wait()
		close(answered)
	}()
	select {
	case <-answered:
	case <-time.After(r.cfg.Timeout):
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
	for _, s := range keyspec.Backing() {
		switch m, software := r.offered(s); {
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

	loading, waiting atomic.Int32 // jobs whose key is unsealed, and that have no seat yet
}

// softwareMax bounds the jobs that wait for keys to be unsealed, and those that wait for a seat.
const softwareMax = 1024

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

// run runs j when there is a processor for it. The key is loaded before that: unsealing waits for an HSM, and must not keep others from the processor.
func (w *software) run(j *KeyJob, now time.Time) error {
	if w == nil {
		return errSoftware
	}
	h, err := w.load(j.Key)
	if err != nil {
		if classOf(err).Has(actD) {
			w.log.Error("a stored software key does not unseal", "err", err)
			err = &unusable{err}
		}
		return err
	}
	defer w.handles.release(h)
	if !w.wait(now) {
		return w.full
	}
	defer func() { <-w.seats }()
	j.N, err = w.keys.Use(h.key, j.Key.Spec, j.Mechanism, j.In, j.Out)
	return err
}

// load lends the key, at most softwareMax at the same time wait for one to be unsealed.
func (w *software) load(k *Key) (*handle, error) {
	if w.handles.has(k) {
		return w.handles.acquire(k)
	}
	defer w.loading.Add(-1)
	if w.loading.Add(1) > softwareMax {
		return nil, w.full
	}
	return w.handles.acquire(k)
}

// wait takes a seat, false if there is none in time or too many wait.
func (w *software) wait(now time.Time) bool {
	select {
	case w.seats <- struct{}{}:
		return true
	default:
	}
	defer w.waiting.Add(-1)
	if w.waiting.Add(1) > softwareMax {
		return false
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
