package hsm

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// What tells that a module lies that says CKR_OK: the known block of each crossing (lane.cross), and rounds that are done again on another session.

const (
	knownPairs  = 256 // known blocks of a slot: a crossing has others than the 127 before it
	knownLen    = knownPairs * blockLen
	youngRounds = 16   // of a session that was just opened: all are verified
	doubtRounds = 1024 // of a slot that was contradicted, but not convicted
	witnessWait = time.Second
)

// provenBlock is one of the blocks whose images are made at the start. What RootIDBlock's comment says of that one holds for each of them.
func provenBlock(pair uint8) (b [blockLen]byte) {
	copy(b[:], "keyplane known ")
	b[blockLen-1] = pair
	return b
}

// knowImages makes the images of the known blocks on a lane. A token with the root of another one has to have the same.
func (s *Shards) knowImages(sl *slot, l *lane) error {
	if err := l.askImages(); err != nil {
		return err
	}
	for i := range sl.images {
		copy(sl.images[i][:], l.out[i*blockLen:])
	}
	l.wipe()
	for _, other := range s.slots {
		if other != sl && other.root == sl.root && other.images != sl.images {
			return fmt.Errorf("%w: another token with the same root gives other images", ErrWrong)
		}
	}
	return nil
}

// provesImages has another lane make them too.
func (s *Shards) provesImages(sl *slot, l *lane) error {
	if err := l.askImages(); err != nil {
		return err
	}
	for i := range sl.images {
		if [blockLen]byte(l.out[i*blockLen:]) != sl.images[i] {
			return fmt.Errorf("%w: two sessions give two images of one block", ErrWrong)
		}
	}
	l.wipe()
	return nil
}

func (l *lane) askImages() error {
	l.in = l.in[:0]
	for i := range knownPairs {
		b := provenBlock(uint8(i))
		l.in = append(l.in, b[:]...)
	}
	return l.crossBare(0)
}

// witness is a session on which rounds of others are done again.
type witness struct {
	mu    sync.Mutex
	lane  *lane     // guarded by mu; nil while it is down
	tried time.Time // guarded by mu: when it was last opened anew
}

// openWitnesses opens the slot's witnesses, as many as it has room for. One shard's lane is open.
func (s *Shards) openWitnesses(sl *slot) error {
	if s.cfg.VerifyEvery == 0 {
		return nil
	}
	for range max(1, s.cfg.SessionsPerToken/s.cfg.VerifyEvery) {
		l, err := s.openLane(sl, s.cfg.RoundMax)
		if e, ok := errors.AsType[*Error](err); ok && e.CKR == CKR_SESSION_COUNT && s.cfg.VerifyEvery > 1 {
			sl.alarm("the token has no room for a session to verify rounds on", err)
			return nil
		}
		if err != nil {
			return err
		}
		sl.witnesses = append(sl.witnesses, &witness{lane: l})
	}
	return nil
}

func (s *Shards) closeWitnesses() {
	for _, sl := range s.slots {
		for _, w := range sl.witnesses {
			w.mu.Lock()
			w.drop()
			w.mu.Unlock()
		}
	}
}

func (w *witness) drop() {
	if w.lane != nil {
		w.lane.close()
		w.lane = nil
	}
}

// errUnverified is a round's whose results may be right, and must not be given out unverified.
var errUnverified = fmt.Errorf("%w: a round could not be verified", ErrUnavailable)

// unproved says that a round has no results although its own session has not failed.
func unproved(err error) bool { return err == errUnverified || err == ErrDisputed }

// verify does the crossing that sh.lane holds again on another session, if it is its turn or must be. nil: the results may be given out. ErrWrong: the shard's token lies.
func (s *Shards) verify(sh *shard, must bool) error {
	l, sl := sh.lane, sh.slot
	every := s.cfg.VerifyEvery
	if every == 0 {
		return nil
	}
	if sh.since++; !must && sh.since < every && l.young == 0 && sl.doubt.Load() == 0 {
		return nil
	}
	must = must || every == 1 || sl.doubt.Load() > 0
	other := s.witnessSlot(sl)
	if other == nil { // there is no room for one anywhere
		if every == 1 || sl.doubt.Load() > 0 {
			return errUnverified
		}
		return nil
	}
	same, err := s.again(sh, other)
	if err != nil {
		sl.unverified.Add(1)
		if must {
			return errUnverified
		}
		return nil // the next round tries
	}
	if !same {
		if err = s.dispute(sh, other); err != nil {
			return err
		}
	}
	sl.verified.Add(1)
	sh.since = 0
	l.young = max(0, l.young-1)
	if n := sl.doubt.Load(); n > 0 {
		sl.doubt.CompareAndSwap(n, n-1)
	}
	return nil
}

// witnessSlot is whose witnesses verify the rounds of a slot: those of another token with the same root that serves, else its own. nil: neither has any.
func (s *Shards) witnessSlot(own *slot) *slot {
	for _, sl := range s.slots {
		if sl != own && sl.root == own.root && len(sl.witnesses) > 0 && sl.state.Load() == serving {
			return sl
		}
	}
	if len(own.witnesses) > 0 {
		return own
	}
	return nil
}

// again does the crossing of a shard once more, on a witness of a slot, and says whether the results are the same. The blocks are in other places, so that what
// befalls the same places of both answers, or gives the second call the answer of the first, does not pass.
func (s *Shards) again(sh *shard, sl *slot) (same bool, err error) {
	w := sl.witnesses[sh.seat%len(sl.witnesses)]
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := s.readyWitness(w, sl); err != nil {
		return false, err
	}
	l, in, out := w.lane, sh.lane.in, sh.lane.out
	turn := rand.IntN(len(in)/blockLen-1)*blockLen + blockLen // no job has a single block
	l.in = append(append(l.in[:0], in[turn:]...), in[:turn]...)
	l.random = l.random[:0]
	if err := l.crossKnown(0); err != nil { // a known block among them would bring some back to where they were
		s.failedWitness(w, sl, err)
		return false, err
	}
	rest := len(in) - turn
	same = subtle.ConstantTimeCompare(l.out[:rest], out[turn:])&subtle.ConstantTimeCompare(l.out[rest:], out[:turn]) == 1
	l.wipe()
	return same, nil
}

// readyWitness sees to it that a witness has a session of its token's present generation. After a failure it waits a second.
func (s *Shards) readyWitness(w *witness, sl *slot) error {
	if sl.state.Load() != serving || s.closed.Load() {
		return ErrUnavailable
	}
	if w.lane != nil && w.lane.gen == sl.token.Generation() {
		return nil
	}
	if w.lane == nil && time.Since(w.tried) < witnessWait {
		return ErrUnavailable
	}
	w.drop()
	w.tried = time.Now()
	l, err := s.openLane(sl, s.cfg.RoundMax)
	if err != nil {
		s.judge(sl, err)
		return err
	}
	w.lane = l
	return nil
}

// failedWitness does what the table says of an error of a witness, but for trying again.
func (s *Shards) failedWitness(w *witness, sl *slot, err error) {
	w.drop()
	if classOf(err).Has(actL) {
		w.tried = time.Time{} // openLane logs in
	}
	s.judge(sl, err)
}

// dispute finds out who is wrong when a witness of slot other contradicts a shard. nil: the shard is right. A token that contradicts itself is convicted: it does
// not serve again. Where two tokens contradict each other and neither itself nobody gets a result, and every round of both is verified for a while.
func (s *Shards) dispute(sh *shard, other *slot) error {
	own := sh.slot
	if other == own {
		own.lies.Add(1)
		return ErrWrong
	}
	if len(own.witnesses) > 0 {
		if same, err := s.again(sh, own); err == nil && !same {
			own.lies.Add(1)
			return ErrWrong
		}
	}
	if same, err := s.again(sh, other); err == nil && same {
		other.lies.Add(1)
		other.halt(ErrWrong)
		return nil
	}
	for _, sl := range [...]*slot{own, other} {
		sl.doubt.Store(doubtRounds)
		sl.alarm("another token contradicts this one", ErrDisputed)
	}
	return ErrDisputed
}

// contradicted says that what a shard gave is not what a verified round of another one gave: its token lies, and does not serve again. Where no round can be
// verified it is one word against another, and counts as an error that leaves open who is at fault.
func (s *Shards) contradicted(shard, by int) {
	sl := s.shards[shard].slot
	sl.lies.Add(1)
	if s.witnessSlot(s.shards[by].slot) != nil {
		sl.halt(ErrWrong)
		return
	}
	if sl.alarm("two sessions give two results", ErrWrong); sl.fault(time.Now()) {
		sl.quarantine(ErrWrong)
	}
}
