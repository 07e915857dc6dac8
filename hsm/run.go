package hsm

import (
	"errors"
	"io"
	"time"

	"github.com/keyplane/keyplane/internal/invariants"
	"github.com/keyplane/keyplane/internal/kdf"
)

// A refusal that says "elsewhere" needs no memory.
var unavailableHere = &refusal{ErrUnavailable}

// Run executes one round on a shard and leaves an outcome in every job. One caller per shard at a time: it is batch's run function. It
// returns within a few RoundTimeouts whatever the module does, keeps nothing of the jobs, and allocates nothing unless a module fails.
//
// After an error the class decides (class.go). If the fault was the session's, its replacement runs the round again, once; otherwise jobs
// in their first attempt get an error that is Retryable.
func (s *Shards) Run(n int, round []*Job) {
	sh := s.shards[n]
	sh.mu.Lock()
	ended := false
	defer func() {
		if !ended {
			// A panic, which the caller of batch recovers: what the round left in the lane must not meet the next one's jobs.
			sh.drop()
			sh.slot.kick()
		}
		sh.mu.Unlock()
	}()
	s.run(sh, round)
	ended = true
}

// run is Run with the shard locked.
func (s *Shards) run(sh *shard, round []*Job) {
	for len(round) > s.cfg.RoundMax {
		round[len(round)-1].Err = ErrJob
		round = round[:len(round)-1]
	}
	draws := 0
	sh.claims = sh.claims[:0]
	for _, j := range round {
		sh.claims = append(sh.claims, claim{ticket: j.ticket.Load()})
		if j.Err = sh.admit(j); j.Err == nil {
			draws += j.draws()
		}
	}
	if s.closed.Load() {
		sh.refuse(round, ErrUnavailable)
		return
	}
	if err := s.ready(sh); err != nil {
		sh.fail(round, err, true)
		return
	}
	if draws > 0 {
		sh.nonce = sh.nonce[:draws*nonceLen]
		if _, err := io.ReadFull(s.cfg.OS, sh.nonce); err != nil {
			sh.refuse(round, errors.Join(ErrUnavailable, err))
			return
		}
		sh.draw(round)
	}
	err := s.cross(sh, round)
	if err == nil {
		return
	}
	if unproved(err) {
		sh.fail(round, err, err == errUnverified)
		return
	}
	again := s.react(sh, err)
	if !again {
		sh.fail(round, err, classOf(err).Has(actR) && s.budget(len(round)))
		return
	}
	// The jobs that have had their second chance on another shard do not get a third one here.
	for i, j := range round {
		if sh.claims[i].holds(j) && j.Err == nil && j.Attempt > 0 {
			j.Err = err
		}
	}
	sh.retries.Add(uint64(len(round)))
	if err = s.cross(sh, round); err != nil && !unproved(err) {
		s.react(sh, err)
	}
	if err != nil {
		sh.fail(round, err, false)
	}
}

// admit checks a job's limits and that the shard's token can do it.
func (sh *shard) admit(j *Job) error {
	switch {
	case j.N < 0 || j.N > len(j.Derive) || len(j.Random) > RandomMax || j.Raw && j.N > 0:
		return ErrJob
	case (j.N > 0 || j.Raw) && j.Root != sh.slot.root:
		return ErrNoRoot
	}
	return nil
}

func (j *Job) draws() int {
	n := 0
	for i := range j.Derive {
		if j.Derive[i].Draw {
			n++
		}
	}
	return n
}

// draw makes the round's nonces: the operating system's random, read in one go, XOR the token's. A weak generator on one side, or a copied
// virtual machine that repeats the pool, does not repeat a nonce.
func (sh *shard) draw(round []*Job) {
	rest := sh.nonce
	for _, j := range round {
		if j.Err != nil {
			continue
		}
		for i := range j.Derive {
			if d := &j.Derive[i]; d.Draw {
				d.Nonce = [nonceLen]byte(rest)
				sh.lane.nonce(&d.Nonce)
				rest = rest[nonceLen:]
			}
		}
	}
	clear(sh.nonce)
}

// cross builds the round's blocks, makes the crossing and delivers. On an error nothing is delivered. It wipes the lane in any case, but
// for a lane whose call has not come back: that one wipes itself.
func (s *Shards) cross(sh *shard, round []*Job) error {
	l := sh.lane
	jobBytes, verify := 0, false
	for i, j := range round {
		c := &sh.claims[i]
		c.blocks, c.random = 0, 0
		if c.holds(j) && j.Err == nil {
			before := len(l.in)
			l.in = j.appendBlocks(l.in)
			c.blocks, c.random = len(l.in)-before, len(j.Random)
			jobBytes += c.random
			verify = verify || j.Verify || j.Raw
		}
	}
	blocks := len(l.in) / blockLen
	l.random = l.random[:l.randomLen(jobBytes)]
	if len(l.in)+len(l.random) == 0 {
		return nil // nothing asked for, or nobody left
	}
	sh.rounds.Add(1)
	sh.jobs.Add(uint64(len(round)))
	sh.blocks.Add(uint64(blocks))
	sh.random.Add(uint64(len(l.random)))
	err := l.cross(jobBytes)
	if err == nil && blocks > 0 {
		err = s.verify(sh, verify)
	}
	if err != nil {
		sh.failures.Add(1)
		if l.abandoned {
			return err
		}
		l.wipe()
		return err
	}
	sh.deliver(round)
	l.wipe()
	return nil
}

// deliver gives every job its part of what the crossing left in the lane: the part that was asked for it, whatever has become of the job
// since, so that one that was reused does not shift the others. A job whose claim does not hold is not touched: it is somebody else's.
func (sh *shard) deliver(round []*Job) {
	in, out, random := sh.lane.in, sh.lane.out, sh.lane.random
	for i, j := range round {
		c := &sh.claims[i]
		if c.holds(j) && j.Err == nil {
			if c.same(j, in[:c.blocks]) {
				j.takeBlocks(out[:c.blocks])
				copy(j.Random, random)
			} else {
				invariants.Check(false, "a job was changed while it was handed in")
				j.Err = ErrReused
			}
		}
		in, out, random = in[c.blocks:], out[c.blocks:], random[c.random:]
	}
}

// appendBlocks appends the AES blocks the job needs encrypted: docs/ciphertext.md §3.
func (j *Job) appendBlocks(dst []byte) []byte {
	if j.Raw {
		return append(dst, j.RawIn[:]...)
	}
	var block [blockLen]byte
	for i := range j.Derive[:j.N] {
		d := &j.Derive[i]
		for b := range byte(len(d.Out) / blockLen) {
			kdf.Input(&block, &d.Offset, d.Nonce[:kdf.NonceLen], b+1)
			dst = append(dst, block[:]...)
		}
	}
	return dst
}

// takeBlocks reads the job's results from src, in the order of appendBlocks.
func (j *Job) takeBlocks(src []byte) {
	if j.Raw {
		copy(j.RawOut[:], src)
		return
	}
	for i := range j.Derive[:j.N] {
		src = src[copy(j.Derive[i].Out[:], src):]
	}
}

// fail leaves err in every job that has no outcome yet; where elsewhere is true, a job in its first attempt may go to another shard.
func (sh *shard) fail(round []*Job, err error, elsewhere bool) {
	var retry error
	if elsewhere {
		if err == ErrUnavailable {
			retry = unavailableHere
		} else {
			retry = &refusal{err}
		}
	}
	for i, j := range round {
		if sh.claims[i].holds(j) && j.Err == nil {
			if j.Err = err; elsewhere && j.Attempt == 0 {
				j.Err = retry
				sh.retries.Add(1)
			}
		}
	}
}

func (sh *shard) refuse(round []*Job, err error) { sh.fail(round, err, false) }

// ready sees to it that the shard has a session of the token's present generation.
func (s *Shards) ready(sh *shard) error {
	if sh.slot.state.Load() != serving {
		return ErrUnavailable
	}
	if sh.current() {
		return nil
	}
	if sh.lane == nil {
		return ErrUnavailable // the supervisor is at it
	}
	return s.replace(sh)
}

// replace gives the shard a new session. If that fails the shard is down and the slot judged.
func (s *Shards) replace(sh *shard) error {
	sh.drop()
	l, err := s.openLane(sh.slot, s.cfg.RoundMax)
	if err != nil {
		s.judge(sh.slot, err)
		sh.slot.kick()
		return err
	}
	sh.install(l)
	return nil
}

// react does what the table says after a failed crossing and reports whether the round may be run again on this shard.
func (s *Shards) react(sh *shard, err error) bool {
	sl := sh.slot
	c := classOf(err)
	if errors.Is(err, ErrTimeout) {
		sh.drop()
		if sl.hung(time.Now()) {
			sl.quarantine(err)
		} else {
			sl.alarm("no answer from the module", err)
		}
		sl.setCause(err)
		sl.kick()
		return false
	}
	if c.Has(actA) {
		sl.alarm("error of the token", err)
	}
	switch {
	case c.Has(actX):
		sl.halt(err)
	case c.Has(actQ):
		sl.quarantine(err)
	case c.Has(actCanary):
		if bad := s.canary(sl); bad != nil && !noVerdict(bad) {
			s.judge(sl, bad)
			sl.quarantine(err)
		} else if sl.fault(time.Now()) {
			sl.quarantine(err)
		}
	}
	if sl.state.Load() != serving {
		sh.drop()
		return false
	}
	if c.Has(actL) {
		if err := s.reset(sl, sh.lane.gen); err != nil {
			sh.drop()
			s.judge(sl, err)
			sl.quarantine(err)
			return false
		}
	}
	if s.replace(sh) != nil {
		return false
	}
	return c.Has(actR) && (!c.Has(actElsewhere) || len(s.slots) == 1) && s.budget(s.cfg.RoundMax)
}

// budget keeps retries to a tenth of all jobs, with some to spare for a quiet service, so that a broken token does not double the load.
func (s *Shards) budget(jobs int) bool {
	var total, retried uint64
	for _, sh := range s.shards {
		total += sh.jobs.Load()
		retried += sh.retries.Load()
	}
	return retried+uint64(jobs) <= 1024+total/10
}
