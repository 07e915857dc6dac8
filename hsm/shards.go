package hsm

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// ShardsConfig sizes Shards.
type ShardsConfig struct {
	Tokens           []Token
	SessionsPerToken int           // > 0; a token with room for fewer gets what it has room for
	RoundMax         int           // jobs in one round, 1..1024
	RoundTimeout     time.Duration // how long one call into a module may take; 0 means 2 s
	// VerifyEvery has each n-th round of a shard done again on another session, which has to give the same; 1: every round. The sessions for that come on top of
	// SessionsPerToken: one for each n of them, at least one. 0: no round, and no such sessions. The last is for shards whose results nobody keeps.
	VerifyEvery int
	OS          io.Reader    // the operating system's generator; nil means crypto/rand
	Logger      *slog.Logger // alarms and state changes; nil discards them
}

// Shards are the sessions that rounds run on, token by token, and whatever it takes to keep them going. Methods are safe for concurrent
// use, but for the one rule of Run. Shards do not close their tokens.
type Shards struct {
	cfg    ShardsConfig
	keys   *keyConfig // of shards for KeyJobs; nil: for Jobs
	slots  []*slot
	shards []*shard
	roots  []RootID // distinct, in token order

	stop    chan struct{} // closed by Close
	closed  atomic.Bool
	wg      sync.WaitGroup // supervisors
	workers sync.WaitGroup // lanes' goroutines; one that hangs is not waited for
}

// shard is the seat of one session.
type shard struct {
	slot *slot
	up   atomic.Bool // lane is there; lets Pick look without the lock

	mu     sync.Mutex // held by Run for a round, by the slot's supervisor to install a lane
	seat   int        // number among the slot's shards
	since  int        // the leader's: rounds since one was verified
	lane   *lane      // guarded by mu; nil while the shard is down
	nonce  []byte     // the leader's: random of the operating system for one round
	claims []claim    // the leader's: on the jobs of its round, one each

	keyClaims []keyClaim   // the same where rounds are of KeyJobs
	together  []int        // the leader's: of a round's KeyJobs those that are run in one call
	waiting   atomic.Int32 // KeyJobs handed to this shard, in its queue or in a round

	rounds, jobs, blocks, random, failures, retries, replaced atomic.Uint64

	_ [64]byte // keep neighbours' counters off this cache line
}

func (sh *shard) serving() bool { return sh.up.Load() && sh.slot.state.Load() == serving }

// NewShards opens SessionsPerToken sessions on every token and proves each: two sessions of a token give the same known answer, and the
// answer names the root. A token that cannot serve at the start is an error: what is configured and dead is for the operator to decide.
func NewShards(cfg ShardsConfig) (*Shards, error) { return newShards(cfg, nil) }

// newShards is NewShards, with keys for shards whose rounds are of KeyJobs.
func newShards(cfg ShardsConfig, keys *keyConfig) (*Shards, error) {
	if len(cfg.Tokens) == 0 || cfg.SessionsPerToken < 1 || cfg.RoundMax < 1 || cfg.RoundMax > 1024 || cfg.RoundTimeout < 0 || cfg.VerifyEvery < 0 {
		return nil, fmt.Errorf("hsm: config out of range: %d tokens, %d sessions, rounds of %d, timeout %v, each %d-th verified",
			len(cfg.Tokens), cfg.SessionsPerToken, cfg.RoundMax, cfg.RoundTimeout, cfg.VerifyEvery)
	}
	if cfg.RoundTimeout == 0 {
		cfg.RoundTimeout = 2 * time.Second
	}
	if cfg.OS == nil {
		cfg.OS = rand.Reader
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Shards{cfg: cfg, keys: keys, stop: make(chan struct{})}
	lanes := make([][]*lane, len(cfg.Tokens))
	for i, token := range cfg.Tokens {
		sl := newSlot(token, cfg.Logger)
		s.slots = append(s.slots, sl)
		if keys != nil {
			sl.offers, sl.handles = keys.offers[i], s.newHandles(sl, keys.handlesMax)
			sl.making, sl.unloads = make(chan struct{}, makingMax), make(chan LoadedKey, unloadsMax)
		}
		var err error
		if lanes[i], err = s.openSlot(sl); err != nil {
			s.closeWitnesses()
			for _, ls := range lanes {
				for _, l := range ls {
					l.close()
				}
			}
			return nil, fmt.Errorf("hsm: token %q serial %q: %w", sl.info.Label, sl.info.Serial, err)
		}
	}
	// Neighbouring shards are on different tokens, so that hints spread over them.
	for n := 0; n < cfg.SessionsPerToken; n++ {
		for i, sl := range s.slots {
			if n < len(lanes[i]) {
				sh := &shard{slot: sl, seat: n, lane: lanes[i][n]}
				if keys == nil {
					sh.nonce, sh.claims = make([]byte, 0, cfg.RoundMax*2*nonceLen), make([]claim, 0, cfg.RoundMax)
				} else {
					sh.keyClaims, sh.together = make([]keyClaim, 0, cfg.RoundMax), make([]int, 0, cfg.RoundMax)
				}
				sh.up.Store(true)
				s.shards = append(s.shards, sh)
				sl.shards = append(sl.shards, sh)
			}
		}
	}
	for _, sl := range s.slots {
		if !s.has(sl.root) {
			s.roots = append(s.roots, sl.root)
		}
	}
	for _, sl := range s.slots {
		s.wg.Add(1)
		go s.supervise(sl)
		if keys != nil && sl.watched {
			s.workers.Add(1)
			go s.unloader(sl)
		}
	}
	return s, nil
}

// openSlot opens the slot's first lanes.
func (s *Shards) openSlot(sl *slot) ([]*lane, error) {
	roots, err := sl.token.Roots()
	if err != nil {
		return nil, err
	}
	sl.root = roots.ID
	if sl.handles == nil { // once for each token
		sl.log.Info("the token's roots", "root", fmt.Sprintf("%x", roots.ID[:]), "clonable", roots.Clonable)
	}
	// The first answer becomes the known one; this lane stays open until another session has agreed.
	first, err := s.openLane(sl, 0)
	if err != nil {
		return nil, err
	}
	defer first.close()
	if RootID(sl.answer[:8]) != sl.root {
		return nil, fmt.Errorf("%w: the root's ID does not match its known answer", ErrWrong)
	}
	if s.keys == nil {
		if err := s.knowImages(sl, first); err != nil {
			return nil, err
		}
	}
	var lanes []*lane
	for range s.cfg.SessionsPerToken {
		l, err := s.openLane(sl, s.cfg.RoundMax)
		if e, ok := errors.AsType[*Error](err); ok && e.CKR == CKR_SESSION_COUNT && len(lanes) > 0 {
			sl.alarm("the token has no room for more sessions", err, "opened", len(lanes), "wanted", s.cfg.SessionsPerToken)
			break
		}
		if err != nil {
			for _, l := range lanes {
				l.close()
			}
			return nil, err
		}
		lanes = append(lanes, l)
		if len(lanes) > 1 || s.keys != nil {
			continue
		}
		if err = s.provesImages(sl, l); err == nil {
			err = s.openWitnesses(sl)
		}
		if err != nil {
			l.close()
			return nil, err
		}
	}
	return lanes, nil
}

func (s *Shards) has(root RootID) bool {
	for _, r := range s.roots {
		if r == root {
			return true
		}
	}
	return false
}

// Len is the number of shards. It never changes; a shard that lost its session keeps its number.
func (s *Shards) Len() int { return len(s.shards) }

// Roots are the derivation roots that the tokens hold, in token order.
func (s *Shards) Roots() []RootID { return append([]RootID(nil), s.roots...) }

// Primary is the root for new key versions: the first token's.
func (s *Shards) Primary() RootID { return s.roots[0] }

// Pick chooses a serving shard whose token holds root; the zero root stands for any, for jobs that derive nothing. Equal hints give the
// same shard while it serves. The error is ErrNoRoot if no token ever had the root, ErrUnavailable if none of those that do serves.
func (s *Shards) Pick(root RootID, hint uint64) (int, error) {
	found := false
	for k, i := 0, int(hint%uint64(len(s.shards))); k < len(s.shards); k++ {
		if sh := s.shards[i]; sh.slot.holds(root) {
			if sh.serving() {
				return i, nil
			}
			found = true
		}
		if i++; i == len(s.shards) {
			i = 0
		}
	}
	if found {
		return 0, ErrUnavailable
	}
	return 0, ErrNoRoot
}

// PickOther is Pick for a job that failed on shard not: on another slot if there is one, else on another shard, else on not itself, whose
// session has been replaced since.
func (s *Shards) PickOther(root RootID, not int, hint uint64) (int, error) {
	sibling := -1
	for k, i := 0, int(hint%uint64(len(s.shards))); k < len(s.shards); k++ {
		if sh := s.shards[i]; i != not && sh.slot.holds(root) && sh.serving() {
			if sh.slot != s.shards[not].slot {
				return i, nil
			}
			if sibling < 0 {
				sibling = i
			}
		}
		if i++; i == len(s.shards) {
			i = 0
		}
	}
	if sibling >= 0 {
		return sibling, nil
	}
	return s.Pick(root, uint64(not))
}

// Healthy is nil if every token has a serving shard, else says which has none and why.
func (s *Shards) Healthy() error {
	if s.closed.Load() {
		return errors.New("hsm: closed")
	}
	var faults []error
	for _, sl := range s.slots {
		if !sl.anyServing() {
			state, cause := sl.status()
			faults = append(faults, fmt.Errorf("hsm: token %q serial %q: no serving session (%s): %w", sl.info.Label, sl.info.Serial, state, cause))
		}
	}
	return errors.Join(faults...)
}

// Serves is nil if every root has a serving shard, on whichever of the tokens that hold it; else it says which tokens have none and why.
func (s *Shards) Serves() error {
	faults := s.Healthy()
	if faults == nil || s.closed.Load() {
		return faults
	}
	for _, root := range s.roots {
		if _, err := s.Pick(root, 0); err != nil {
			return faults
		}
	}
	return nil
}

// Close ends the supervisors and closes every session once its round is over. A call that hangs in a module is left behind.
func (s *Shards) Close() {
	if s.closed.Swap(true) {
		return
	}
	close(s.stop)
	s.wg.Wait()
	for _, sh := range s.shards {
		sh.mu.Lock()
		sh.drop()
		sh.mu.Unlock()
	}
	s.closeWitnesses()
	ended := make(chan struct{})
	go func() {
		s.workers.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(s.cfg.RoundTimeout):
	}
}
