package hsm

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	blockLen  = 16
	nonceLen  = 24
	jobBlocks = 6    // AES blocks of one job at most: two derivations of three blocks
	RandomMax = 1024 // bytes of random in one job; the API's own limit
	stuckMax  = 8    // calls of one slot that may hang before no more sessions are opened on it
)

// lane is a session with the buffers its calls use. One goroutine at a time uses it: the shard's leader, or whoever opened it. Where the
// module may hang, calls run on the lane's own goroutine, and a lane whose call does not come back in time is abandoned as a whole: its
// goroutine wipes it and closes the session if the call ever ends. That is why a session never sees a job's own memory.
type lane struct {
	slot    *slot
	session Session
	gen     uint64 // of the token when the session was opened

	in, out, random []byte // used parts are wiped after each round
	pool            []byte // nonces drawn by earlier crossings; empty where the lane is a canary
	used            int    // bytes of pool spent since it was last full
	last            [blockLen]byte
	young           int // rounds still to come that are all done again elsewhere: those of a session that was just opened

	use    use     // what opUse does, with in and out
	orphan *handle // the key of the call that hangs: the goroutine's to release, like abandoned

	watched   bool
	op        op
	call      chan struct{} // unbuffered: op and the slices are the goroutine's from the send until done
	done      chan error    // capacity 1, so that a late result never blocks
	timer     *time.Timer
	timeout   time.Duration
	abandoned bool // written before call is closed, read by the goroutine after
}

type op uint8

const (
	opOpen op = iota
	opRound
	opUse
)

// newLane opens a session on the slot and proves it: the known answer, and random that does not repeat. roundMax 0 makes a canary.
// While the slot has no known answer yet, the lane's becomes it.
func (s *Shards) newLane(sl *slot, roundMax int) (*lane, error) {
	if sl.stuck.Load() >= stuckMax {
		return nil, ErrTimeout
	}
	inLen, outLen := knownLen, knownLen
	if s.keys != nil && roundMax > 0 {
		roundMax, inLen, outLen = 0, KeyInMax, keyOutMax // one operation at a time
	}
	nonces := roundMax * 2 * nonceLen
	l := &lane{
		slot:    sl,
		gen:     sl.token.Generation(),
		in:      make([]byte, 0, max(inLen, (roundMax*jobBlocks+2)*blockLen)),
		out:     make([]byte, 0, max(outLen, (roundMax*jobBlocks+2)*blockLen)),
		random:  make([]byte, 0, align(roundMax*RandomMax+nonces)+blockLen),
		pool:    make([]byte, nonces),
		used:    nonces,
		young:   youngRounds,
		watched: sl.watched,
		timeout: s.cfg.RoundTimeout,
	}
	if l.watched {
		l.call, l.done = make(chan struct{}), make(chan error, 1)
		l.timer = time.NewTimer(time.Hour)
		l.timer.Stop()
		s.workers.Add(1)
		go l.work(&s.workers)
	}
	err := l.do(opOpen)
	if err == nil {
		l.in = append(l.in, RootIDBlock...)
		l.random = l.random[:align(nonces)+blockLen]
		if err = l.crossBare(0); err == nil && !sl.confirm(l.out) {
			err = ErrWrong
		}
	}
	if err != nil {
		l.close()
		return nil, err
	}
	l.wipe()
	return l, nil
}

// cross makes one crossing for the blocks in l.in and the first jobBytes of l.random. Behind the blocks goes a known one, and another among them, in a place that
// nobody knows beforehand; of other pairs than those of the crossing before. An answer that is too short, or not this crossing's, has others, and whatever damages
// some blocks has a chance to meet one. It proves what came back and refills the nonce pool from the rest of l.random; the caller has sized that with randomLen.
func (l *lane) cross(jobBytes int) error {
	n := len(l.in)
	if n == 0 {
		return l.crossBare(jobBytes)
	}
	pair, at := l.slot.nextPair(), rand.IntN(n/blockLen)*blockLen
	known := provenBlock(pair)
	l.in = append(l.in, l.in[at:at+blockLen]...) // the block whose place it takes comes behind the others
	copy(l.in[at:], known[:])
	if err := l.crossKnown(jobBytes); err != nil {
		return err
	}
	if [blockLen]byte(l.out[at:]) != l.slot.images[pair] {
		return ErrWrong
	}
	copy(l.in[at:], l.in[n:])
	copy(l.out[at:], l.out[n:])
	l.cut(n)
	return nil
}

// crossKnown is cross with the known block behind the others alone.
func (l *lane) crossKnown(jobBytes int) error {
	n, pair := len(l.in), l.slot.nextPair()
	known := provenBlock(pair)
	l.in = append(l.in, known[:]...)
	if err := l.crossBare(jobBytes); err != nil {
		return err
	}
	if [blockLen]byte(l.out[n:]) != l.slot.images[pair] {
		return ErrWrong
	}
	l.cut(n)
	return nil
}

// cut leaves the first n bytes of the blocks and of their images.
func (l *lane) cut(n int) {
	clear(l.in[n:])
	clear(l.out[n:])
	l.in, l.out = l.in[:n], l.out[:n]
}

// crossBare is cross without a known block.
func (l *lane) crossBare(jobBytes int) error {
	l.out = l.out[:len(l.in)]
	if err := l.do(opRound); err != nil {
		return err
	}
	if !l.healthy() {
		return ErrWrong
	}
	if l.used > 0 {
		copy(l.pool[:l.used], l.random[jobBytes:])
		l.used = 0
	}
	return nil
}

// randomLen is how many random bytes a crossing draws: the jobs', the nonces spent, and a block that nobody uses, for the health test.
func (l *lane) randomLen(jobBytes int) int {
	if jobBytes+l.used == 0 {
		return 0
	}
	return align(jobBytes+l.used) + blockLen
}

// healthy is the repeated-block test: no two consecutive blocks of the token's random may be equal, across crossings too, nor may the last block be
// that of the crossing before, as it is where a generator gives the same answer again. The block kept for the next crossing is the unused one, never a
// data key.
func (l *lane) healthy() bool {
	prev := l.last[:]
	for r := l.random; len(r) >= blockLen; r = r[blockLen:] {
		if bytes.Equal(prev, r[:blockLen]) {
			return false
		}
		prev = r[:blockLen]
	}
	if len(l.random) >= blockLen && bytes.Equal(prev, l.last[:]) {
		return false
	}
	copy(l.last[:], prev)
	return true
}

// nonce takes 24 bytes of the token's random into n by XOR. The pool holds two nonces a job, so it is never empty within a round.
func (l *lane) nonce(n *[nonceLen]byte) {
	p := l.pool[l.used : l.used+nonceLen]
	for i := range n {
		n[i] ^= p[i]
	}
	clear(p)
	l.used += nonceLen
}

// work runs the lane's calls. It belongs to the Shards; it ends when the lane is closed, which for an abandoned one is after its last call.
func (l *lane) work(wg *sync.WaitGroup) {
	defer wg.Done()
	for range l.call {
		l.done <- l.act()
	}
	l.destroy()
	if l.abandoned {
		l.slot.stuck.Add(-1)
	}
	if l.orphan != nil {
		l.slot.handles.release(l.orphan)
	}
}

func (l *lane) act() error {
	switch l.op {
	case opOpen:
		session, err := l.slot.token.OpenSession()
		if err == nil {
			l.session = session
		}
		return err
	case opUse:
		return l.useKey()
	}
	return l.session.Round(l.in, l.out, l.random)
}

// do runs one call and waits for it, at most timeout. After ErrTimeout the lane may only be closed.
func (l *lane) do(o op) error {
	l.op = o
	if !l.watched {
		return l.act()
	}
	l.timer.Reset(l.timeout)
	l.call <- struct{}{}
	select {
	case err := <-l.done:
		l.timer.Stop()
		return err
	case <-l.timer.C:
		l.abandoned = true
		l.slot.stuck.Add(1)
		return ErrTimeout
	}
}

// close wipes the lane and closes its session, at once or when the call that hangs has ended.
func (l *lane) close() {
	if l.watched {
		close(l.call)
		return
	}
	l.destroy()
}

func (l *lane) destroy() {
	clear(l.in[:cap(l.in)])
	clear(l.out[:cap(l.out)])
	clear(l.random[:cap(l.random)])
	clear(l.pool)
	if l.session != nil {
		// The session is given up because it failed or is no longer needed: there is nobody to tell about a failing close.
		_ = l.session.Close()
	}
}

// wipe clears what a round used. The slices keep their memory.
func (l *lane) wipe() {
	clear(l.in)
	clear(l.out)
	clear(l.random)
	l.in, l.out, l.random = l.in[:0], l.out[:0], l.random[:0]
}

// align rounds up to whole blocks.
func align(n int) int { return (n + blockLen - 1) &^ (blockLen - 1) }
