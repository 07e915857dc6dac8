package hsm

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// State is what a slot is doing.
type State int32

const (
	serving     State = iota
	quarantined       // probed with back-off by the supervisor; comes back by itself
	stopped           // an operator has to look; a restart is the way back
)

func (s State) String() string { return [...]string{"serving", "quarantined", "stopped"}[s] }

// MarshalText and UnmarshalText make State its name in JSON.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
func (s *State) UnmarshalText(text []byte) error {
	for i := serving; i <= stopped; i++ {
		if i.String() == string(text) {
			*s = i
			return nil
		}
	}
	return fmt.Errorf("hsm: no state is called %q", text)
}

const (
	backoffMin   = 100 * time.Millisecond
	backoffMax   = 2 * time.Second        // so that service is back within five seconds of the end of any fault
	goodCanaries = 3                      // in a row, before a quarantined slot serves again
	verdictAge   = 100 * time.Millisecond // how long a canary's verdict is good for
	canaryEvery  = 200 * time.Millisecond // at most five canaries a second
	faultWindow  = 10 * time.Second
	faultsMax    = 3 // errors that leave it open who is at fault, within faultWindow
	hangsMax     = 2 // calls without an answer, within faultWindow
	alarmEvery   = time.Second
)

// slot is one token as the shards see it.
type slot struct {
	token   Token
	info    TokenInfo
	root    RootID
	watched bool
	log     *slog.Logger
	shards  []*shard // set before anything runs

	offers  *offers        // nil where rounds are of Jobs
	handles *handles       // the same
	making  chan struct{}  // the same; capacity makingMax: keys that are being made
	unloads chan LoadedKey // the same; capacity unloadsMax: keys that the unloader has to unload

	state atomicState
	stuck atomic.Int32  // calls that have not come back
	wake  chan struct{} // capacity 1: the supervisor has work

	canaries, quarantines, resets, hangs, alarms atomic.Uint64
	verified, unverified, lies                   atomic.Uint64

	known  bool // answer is set; both are written while the slot has one lane only
	answer [blockLen]byte
	images [knownPairs][blockLen]byte // of the known blocks; written before anything runs
	pair   atomic.Uint32              // of the next known block

	witnesses []*witness   // set before anything runs
	doubt     atomic.Int32 // rounds still to come that are all done again elsewhere

	resetMu sync.Mutex // single flight of Token.Reset

	canaryMu   sync.Mutex // single flight of canaries
	verdict    error      // guarded by canaryMu
	verdictAt  time.Time  // guarded by canaryMu: when the verdict was reached
	canaryFrom time.Time  // guarded by canaryMu: when the last canary began

	mu         sync.Mutex // guards the rest
	cause      error      // why the slot does not serve, or why its last shard went down
	faultAt    [faultsMax]time.Time
	hangAt     [hangsMax]time.Time
	alarmAt    time.Time
	suppressed int
}

type atomicState struct{ v atomic.Int32 }

func (a *atomicState) Load() State        { return State(a.v.Load()) }
func (a *atomicState) Swap(s State) State { return State(a.v.Swap(int32(s))) }
func (a *atomicState) CAS(from, to State) bool {
	return a.v.CompareAndSwap(int32(from), int32(to))
}

func newSlot(token Token, log *slog.Logger) *slot {
	info := token.Info()
	return &slot{
		token:   token,
		info:    info,
		watched: !info.InProcess,
		log:     log.With("token", info.Label, "serial", info.Serial),
		wake:    make(chan struct{}, 1),
	}
}

// confirm compares a block with the known answer. The first block ever becomes the known answer.
func (sl *slot) confirm(block []byte) bool {
	if !sl.known {
		sl.answer = [blockLen]byte(block)
		sl.known = true
	}
	return sl.answer == [blockLen]byte(block)
}

func (sl *slot) nextPair() uint8 { return uint8(sl.pair.Add(1)) }

func (sl *slot) holds(root RootID) bool { return root == RootID{} || root == sl.root }

func (sl *slot) anyServing() bool {
	for _, sh := range sl.shards {
		if sh.serving() {
			return true
		}
	}
	return false
}

func (sl *slot) status() (State, error) {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	cause := sl.cause
	if cause == nil {
		cause = ErrUnavailable
	}
	return sl.state.Load(), cause
}

func (sl *slot) setCause(err error) {
	sl.mu.Lock()
	sl.cause = err
	sl.mu.Unlock()
}

// kick tells the supervisor to look.
func (sl *slot) kick() {
	select {
	case sl.wake <- struct{}{}:
	default:
	}
}

// quarantine takes the slot out until the supervisor has seen it answer well.
func (sl *slot) quarantine(cause error) {
	sl.setCause(cause)
	if sl.state.CAS(serving, quarantined) {
		sl.quarantines.Add(1)
		sl.alarm("slot quarantined", cause)
	}
	sl.kick()
}

// halt takes the slot out for good.
func (sl *slot) halt(cause error) {
	sl.setCause(cause)
	if sl.state.Swap(stopped) != stopped {
		sl.alarm("slot stopped: an operator has to look", cause)
	}
}

// fault records an error that leaves it open who is at fault and reports whether there were too many in the window. hung does the same for
// calls without an answer.
func (sl *slot) fault(now time.Time) bool { return sl.tooMany(sl.faultAt[:], now) }
func (sl *slot) hung(now time.Time) bool {
	sl.hangs.Add(1)
	return sl.tooMany(sl.hangAt[:], now)
}

func (sl *slot) tooMany(at []time.Time, now time.Time) bool {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	copy(at, at[1:])
	at[len(at)-1] = now
	return !at[0].IsZero() && now.Sub(at[0]) <= faultWindow
}

// alarm logs at error level, at most once a second for the slot; what it leaves out it counts.
func (sl *slot) alarm(msg string, err error, args ...any) {
	sl.alarms.Add(1)
	sl.mu.Lock()
	now := time.Now()
	quiet := now.Sub(sl.alarmAt) < alarmEvery
	left := sl.suppressed
	if quiet {
		sl.suppressed++
	} else {
		sl.alarmAt, sl.suppressed = now, 0
	}
	sl.mu.Unlock()
	if !quiet {
		sl.log.Error(msg, append(args, "err", err, "suppressed", left)...)
	}
}

// reset re-establishes the login unless somebody has since gen. Single flight.
func (s *Shards) reset(sl *slot, gen uint64) error {
	sl.resetMu.Lock()
	defer sl.resetMu.Unlock()
	if sl.token.Generation() != gen {
		return nil
	}
	sl.resets.Add(1)
	return s.bounded(sl, sl.token.Reset)
}

// bounded runs f, which may hang in the module, and waits for it at most RoundTimeout.
func (s *Shards) bounded(sl *slot, f func() error) error {
	if !sl.watched {
		return f()
	}
	if sl.stuck.Load() >= stuckMax {
		return ErrTimeout
	}
	done := make(chan error, 1)
	var late atomic.Bool
	s.workers.Add(1)
	go func() {
		defer s.workers.Done()
		err := f()
		if late.Swap(true) {
			sl.stuck.Add(-1)
		}
		done <- err
	}()
	timer := time.NewTimer(s.cfg.RoundTimeout)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		sl.stuck.Add(1)
		if late.Swap(true) { // it ended between the timer and here
			sl.stuck.Add(-1)
			return <-done
		}
		return ErrTimeout
	}
}

// openLane is newLane with one re-login if the login turns out to be lost.
func (s *Shards) openLane(sl *slot, roundMax int) (*lane, error) {
	gen := sl.token.Generation()
	l, err := s.newLane(sl, roundMax)
	if err == nil || !classOf(err).Has(actL) || classOf(err).Has(actQ) {
		return l, err
	}
	if err := s.reset(sl, gen); err != nil {
		return nil, err
	}
	return s.newLane(sl, roundMax)
}

// canary asks whether the token still gives the known answer, on a session of its own: nil if it does.
// Single flight, at most five a second; a verdict is shared for 100 ms.
func (s *Shards) canary(sl *slot) error { return s.canaryWithin(sl, verdictAge) }

// noVerdict says that a canary did not get as far as an answer: the token has no room for its session, which says nothing of those it has.
func noVerdict(bad error) bool { return Final(bad) == Throttled }

// canaryWithin is canary where a verdict of another age is good enough. From canaryEvery on nobody waits for his turn.
func (s *Shards) canaryWithin(sl *slot, age time.Duration) error {
	sl.canaryMu.Lock()
	defer sl.canaryMu.Unlock()
	if !sl.verdictAt.IsZero() && time.Since(sl.verdictAt) < age {
		return sl.verdict
	}
	if wait := canaryEvery - time.Since(sl.canaryFrom); wait > 0 {
		time.Sleep(wait)
	}
	sl.canaryFrom = time.Now()
	sl.canaries.Add(1)
	l, err := s.openLane(sl, 0)
	if err == nil {
		l.close()
	}
	sl.verdict, sl.verdictAt = err, time.Now()
	return err
}

// supervise brings the slot's sessions back: reopens shards that are down, and probes the slot while it is quarantined. One goroutine per
// slot, from NewShards to Close.
func (s *Shards) supervise(sl *slot) {
	defer s.wg.Done()
	delay, good := backoffMin, 0
	timer := time.NewTimer(0)
	<-timer.C
	for {
		var retry <-chan time.Time
		if sl.state.Load() == quarantined || sl.state.Load() == serving && sl.anyDown() {
			timer.Reset(delay)
			retry = timer.C
		}
		select {
		case <-s.stop:
			timer.Stop()
			return
		case <-sl.wake:
			continue // look at the state again, then wait out the delay
		case <-retry:
		}
		var err error
		switch sl.state.Load() {
		case quarantined:
			if err = s.probe(sl); err == nil {
				good++
			} else {
				good = 0
			}
			if err == nil && good >= goodCanaries {
				good = 0
				if err = s.reopen(sl); err == nil && sl.state.CAS(quarantined, serving) {
					sl.setCause(nil)
					sl.log.Warn("slot serves again")
				}
			}
		case serving:
			err = s.reopen(sl)
		}
		s.judge(sl, err)
		if err == nil {
			delay = backoffMin
		} else {
			delay = min(2*delay, backoffMax)
		}
	}
}

// probe is one attempt on a quarantined slot: log in again if the last probe says that is what is missing, then the canary.
func (s *Shards) probe(sl *slot) error {
	gen := sl.token.Generation()
	err := s.canary(sl)
	if err == nil || !classOf(err).Has(actL|actH|actW) {
		return err
	}
	// The token came back with other handles, sessions or slot number.
	if err := s.reset(sl, gen); err != nil {
		return err
	}
	return s.canary(sl)
}

// reopen gives a session to every shard that has none, or one of an older generation. Such a one stays until the new one is open: a round that
// comes meanwhile replaces it itself.
func (s *Shards) reopen(sl *slot) error {
	for _, sh := range sl.shards {
		sh.mu.Lock()
		need := !sh.current()
		sh.mu.Unlock()
		if !need {
			continue
		}
		l, err := s.openLane(sl, s.cfg.RoundMax)
		if err != nil {
			if e, ok := errors.AsType[*Error](err); ok && e.CKR == CKR_SESSION_COUNT {
				sh.mu.Lock()
				if !sh.current() {
					sh.drop() // the old session makes room for the next attempt
				}
				sh.mu.Unlock()
			}
			return err
		}
		sh.mu.Lock()
		if !sh.current() {
			sh.drop()
			sh.install(l)
			l = nil
		}
		sh.mu.Unlock()
		if l != nil {
			l.close()
		}
	}
	return nil
}

// current says whether the shard has a session of the token's present generation. It needs sh.mu.
func (sh *shard) current() bool { return sh.lane != nil && sh.lane.gen == sh.slot.token.Generation() }

// judge lets an error met outside a round change the slot's state.
func (s *Shards) judge(sl *slot, err error) {
	if err == nil {
		return
	}
	sl.setCause(err)
	c := classOf(err)
	switch {
	case c.Has(actX):
		sl.halt(err)
	case c.Has(actQ), errors.Is(err, ErrTimeout) && sl.hung(time.Now()), c.Has(actCanary) && sl.fault(time.Now()):
		sl.quarantine(err)
	case c.Has(actA):
		sl.alarm("session not reopened", err)
	}
}

func (sl *slot) anyDown() bool {
	for _, sh := range sl.shards {
		if !sh.up.Load() {
			return true
		}
	}
	return false
}

// install and drop need sh.mu.
func (sh *shard) install(l *lane) {
	sh.lane = l
	sh.replaced.Add(1)
	sh.up.Store(true)
}

func (sh *shard) drop() {
	if sh.lane != nil {
		sh.up.Store(false)
		sh.lane.close()
		sh.lane = nil
	}
}
