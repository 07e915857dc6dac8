package cluster

import (
	"crypto/sha256"
	"errors"
	"slices"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
)

// timeoutsMax bounds the members that one job waits for in vain: one that hangs is waited for as long as an operation may take.
const timeoutsMax = 2

// wrongMax bounds the members that find a wrong answer to one job, and are left out for it. Where two find one it is more likely what they are asked that is wrong.
const wrongMax = 2

// Run runs j, as hsm.Keys.Run does, on a member that has a copy of the key: that with the fewest jobs. copies are one key as each root wraps it, in any order; j.Key
// is set to one of them. What is a fault of the member, or its queue being full, goes to the next member. The error is the last one's; hsm.ErrUnavailable where
// no member with a copy is there, ErrDisconnected where there is no connection. It does not allocate where the first member serves.
func (c *Cluster) Run(j *hsm.KeyJob, copies []hsm.Key, now time.Time) error {
	n := c.conn.Load()
	if n == nil {
		return ErrDisconnected
	}
	var tried uint64 // members, a bit each
	err, timeouts, wrong, pause := error(hsm.ErrUnavailable), 0, 0, pauseMin
	for first := c.next.Add(1); ; now = time.Now() {
		s, l := n.pick(copies, &tried, first)
		if l == nil {
			if err != hsm.ErrUnavailable || !n.awaits(copies) || !n.wait(&pause) {
				return n.result(err)
			}
			tried = 0
			continue
		}
		j.Key = copyOf(copies, l.root)
		next := l.run(j, now)
		if next == nil {
			s.jobs.Add(1)
			return nil
		}
		s.failed.Add(1)
		if next == hsm.ErrReused { // the job is not the caller's
			return next
		}
		switch {
		case errors.Is(next, hsm.ErrTimeout):
			timeouts++
		case l.distrusted(): // its ring says ErrUnavailable when it has no other session
			wrong++
			next = hsm.ErrWrong
		}
		if final(next) || timeouts == timeoutsMax || wrong == wrongMax {
			return n.result(next)
		}
		// That a member does not serve says less than what another one says of the job.
		if hsm.Final(next) != hsm.Unavailable {
			err = next
		}
	}
}

// A member that has lost its sessions, or its login, has new ones some milliseconds later. Where no other one serves the job waits for that, some times.
const (
	pauseMin = 2 * time.Millisecond
	pauseMax = 64 * time.Millisecond
)

// awaits says that a member has a copy, or may have one when it is back.
func (n *conn) awaits(copies []hsm.Key) bool {
	return slices.ContainsFunc(n.seats, func(s *seat) bool {
		l := s.link.Load()
		return l == nil || copyOf(copies, l.root) != nil
	})
}

// wait waits for the pause, and doubles it; false where it was the last.
func (n *conn) wait(pause *time.Duration) bool {
	if *pause > pauseMax {
		return false
	}
	timer := time.NewTimer(*pause)
	defer timer.Stop()
	*pause *= 2
	select {
	case <-n.stop:
		return false
	case <-timer.C:
		return true
	}
}

// final says that another member would say the same.
func final(err error) bool {
	return err == hsm.ErrJob || err == ErrDisconnected || hsm.Final(err) == hsm.DataError
}

// result is an error, or that it is the end of the connection which explains it.
func (n *conn) result(err error) error {
	select {
	case <-n.stop:
		return ErrDisconnected
	default:
		return err
	}
}

// run is ring.Run of somebody who is inside, and leaves.
func (l *link) run(j *hsm.KeyJob, now time.Time) error {
	defer l.leave() // also after a panic
	err := l.ring.Run(j, now)
	if l.over.Load() && err != hsm.ErrReused {
		clear(j.Out)
		j.N, j.Err, err = 0, ErrDisconnected, ErrDisconnected
	}
	return err
}

// pick chooses the member with the fewest jobs of those that have a copy, are trusted and were not tried, and enters it. copies nil stands for any member.
func (n *conn) pick(copies []hsm.Key, tried *uint64, first uint32) (*seat, *link) {
	for {
		best, least := -1, int64(0)
		var link *link
		for k := range n.seats {
			i := (int(first%membersMax) + k) % len(n.seats)
			l := n.seats[i].link.Load()
			if *tried&(1<<i) != 0 || l == nil || l.left.Load() || copies != nil && copyOf(copies, l.root) == nil {
				continue
			}
			if jobs := l.n.Load(); best < 0 || jobs < least {
				best, least, link = i, jobs, l
			}
		}
		if best < 0 {
			return nil, nil
		}
		if link.enter() { // else it has just been replaced
			*tried |= 1 << best
			return n.seats[best], link
		}
	}
}

// copyOf is the copy that a root wraps, nil if there is none.
func copyOf(copies []hsm.Key, root hsm.RootID) *hsm.Key {
	for i := range copies {
		if copies[i].Root == root {
			return &copies[i]
		}
	}
	return nil
}

// A member makes random bytes for one at a time. As many as this may have it or wait for it, and for so long together with other members' turns.
const (
	drawsMax    = 64
	drawWaitMax = 500 * time.Millisecond
)

// Random fills b, at most hsm.RandomMax bytes, from the generator of a member. ErrFull where no member has room in time.
func (c *Cluster) Random(b []byte) error {
	n := c.conn.Load()
	if n == nil {
		return ErrDisconnected
	}
	var tried uint64
	err, pause, until := error(hsm.ErrUnavailable), pauseMin, time.Now().Add(drawWaitMax)
	for first := c.next.Add(1); ; {
		_, l := n.pick(nil, &tried, first)
		if l == nil {
			if clear(b); err == ErrFull || !n.wait(&pause) {
				return n.result(err)
			}
			tried = 0
			continue
		}
		err = l.queue(b, until)
		if l.over.Load() {
			err = ErrDisconnected
		}
		l.leave()
		if err == nil || err == hsm.ErrJob {
			return err
		}
	}
}

// queue is draw where there is room for one more.
func (l *link) queue(b []byte, until time.Time) error {
	defer l.draws.Add(-1)
	if l.draws.Add(1) > drawsMax {
		return ErrFull
	}
	return l.draw(b, until)
}

// draw fills b if its turn comes until then, else ErrFull. The caller is inside.
func (l *link) draw(b []byte, until time.Time) error {
	select {
	case l.drawing <- struct{}{}:
	default:
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		select {
		case l.drawing <- struct{}{}:
		case <-timer.C:
			return ErrFull
		}
	}
	defer func() { <-l.drawing }()
	j := hsm.Job{Random: b}
	if _, err := l.random.Pick(hsm.RootID{}, 0); err != nil {
		return err
	}
	l.random.Run(0, []*hsm.Job{&j})
	return j.Err
}

// Forget unloads a key from all members. It is loaded again when it is used again.
func (c *Cluster) Forget(copies []hsm.Key) {
	n := c.conn.Load()
	if n == nil {
		return
	}
	for _, s := range n.seats {
		l := s.link.Load()
		if l == nil || !l.enter() {
			continue
		}
		if k := copyOf(copies, l.root); k != nil {
			l.ring.Forget(k.ID)
		}
		l.leave()
	}
}

// images are those of Config.Blocks under the key, from one member. The caller is inside.
func (n *conn) images(l *link, k *hsm.Key) (*[blocksLen]byte, error) {
	// The key may have no ID yet; its handle must be no other's.
	key := *k
	key.ID = sha256.Sum256(append([]byte("keyplane images v1"), k.Wrapped...))
	j := hsm.KeyJob{Key: &key, Mechanism: hsm.EncryptBlocks, In: []byte(n.c.cfg.Blocks), Out: make([]byte, keyspec.AES256.Info().Result)}
	err := l.ring.Run(&j, time.Now())
	l.ring.Forget(key.ID)
	if err != nil {
		return nil, err
	}
	return (*[blocksLen]byte)(j.Out[:blocksLen]), nil
}
