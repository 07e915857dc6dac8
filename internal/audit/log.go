package audit

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	groups    = 8       // buffers: one fills, one is written, others wait for their callers to leave
	groupSize = 1 << 20 // bytes of entries in a group; touched, and so resident, only as far as they fill
)

// group is the entries that one write makes durable, and the callers that wait for it.
type group struct {
	buf     []byte // entries
	records int
	opened  time.Time // of its first Append: the deadline counts from here
	settled bool      // the callers have been told; guarded by Log.mu
	done    sync.Cond // L is unlocker, see Append
	outcome atomic.Uint32
	refs    atomic.Int32 // callers that have not left, and one for the log while it has the group
}

const (
	pending uint32 = iota
	stored
	lost
)

// unlocker lets sync.Cond.Wait release the mutex and not take it again: the waiters of a group do not queue up for it when they wake.
type unlocker struct{ mu *sync.Mutex }

func (u unlocker) Lock()   {}
func (u unlocker) Unlock() { u.mu.Unlock() }

// segment is one that the log has, in order of first.
type segment struct {
	first   uint64
	records uint64 // committed
	bytes   int64  // of their entries
	packed  bool
	begun   time.Time
}

// state of the log towards callers.
type state uint8

const (
	ready  state = iota
	failed       // a write failed or hangs: callers are refused until the writer has repaired it
	closed
)

// Log is an audit log that is open for appending. Its methods are safe for concurrent use.
type Log struct {
	cfg  Config
	lock *os.File

	mu       sync.Mutex
	state    state
	cause    error    // of state failed
	damaged  error    // acknowledged records are gone: the log stays in state failed
	filling  *group   // never nil
	full     []*group // filled up, to be written before filling, oldest first
	free     []*group
	awake    bool      // the writer is at work and will look at filling again
	deadline time.Time // of what the writer is doing; zero: nothing
	armed    time.Time // when the watchdog looks next; zero: it sleeps
	current  *group    // being written
	segments []segment // the last one is being written
	stats    Stats
	tip      tip // of the tree, as far as its hashes are in the files
	ckpt     checkpointing

	wake     chan struct{} // of the writer
	seal     atomic.Bool   // the writer is to begin a new segment because of the age of this one
	watchdog *time.Timer
	out      file // the last segment; the writer's

	ctx                                  context.Context // of Publish and Newest
	cancel                               context.CancelFunc
	stop                                 chan struct{} // closed by Close
	grown                                chan struct{} // to the integrator: more is committed
	keep                                 chan struct{} // to the keeper: a segment was sealed
	messages                             chan message  // to the reporter
	writerDone, integratorDone, keepDone chan struct{}
	reporterDone                         chan struct{}

	in    integrator
	doubt atomic.Bool // a sync has failed since the last checkpoint: what the files have is not what they show
}

// Stats counts since Open.
type Stats struct {
	Records, Commits, Bytes uint64 // committed: records, groups, bytes of entries
	Failed                  uint64 // records whose Append returned ErrUnavailable after it had been taken into a group
	Refused                 uint64 // records that were not taken at all
	Next                    uint64 // index of the next record
	Integrated              uint64 // records in the tree
	Checkpoint              uint64 // records that the newest checkpoint covers
	Published               uint64 // and the newest published one
	Segments                int
}

// Append returns nil when record is durable. It copies record. With ErrUnavailable the record may be in the log all the same, or not.
func (l *Log) Append(record []byte) error {
	if len(record) == 0 || len(record) > RecordMax || bytes.IndexByte(record, '\n') >= 0 {
		return ErrRecord
	}
	l.mu.Lock()
	if l.state != ready {
		l.stats.Refused++
		err := ErrUnavailable
		if l.state == closed {
			err = ErrClosed
		}
		l.mu.Unlock()
		return err
	}
	g := l.filling
	if len(g.buf)+2+len(record) > groupSize {
		if len(l.free) == 0 {
			l.stats.Refused++
			l.mu.Unlock()
			return ErrUnavailable
		}
		l.full = append(l.full, g)
		g = l.take()
		l.filling = g
	}
	if g.records == 0 {
		g.opened = time.Now()
	}
	g.buf = binary.BigEndian.AppendUint16(g.buf, uint16(len(record)))
	g.buf = append(g.buf, record...)
	g.records++
	if !l.awake {
		l.awake = true
		l.rouse()
	}
	g.done.Wait() // unlocks l.mu
	ok := g.outcome.Load() == stored
	l.release(g)
	if !ok {
		return ErrUnavailable
	}
	return nil
}

// rouse makes the writer look at the log.
func (l *Log) rouse() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// take returns an empty group. l.mu is held and l.free has one.
func (l *Log) take() *group {
	g := l.free[len(l.free)-1]
	l.free = l.free[:len(l.free)-1]
	g.buf, g.records, g.settled = g.buf[:0], 0, false
	g.outcome.Store(pending)
	g.refs.Store(1)
	return g
}

// release gives up one hold on g. The last one makes it free.
func (l *Log) release(g *group) {
	if g.refs.Add(-1) > 0 {
		return
	}
	l.mu.Lock()
	starved := len(l.free) == 0
	l.discard(g)
	l.mu.Unlock()
	if starved {
		l.rouse() // the writer may be waiting for it
	}
}

func (l *Log) discard(g *group) {
	if len(l.free) < groups {
		l.free = append(l.free, g)
	}
}

// settle decides what the callers of g are told about their records. l.mu is held. Only the first call counts; after it g.done is to be broadcast.
func (l *Log) settle(g *group, outcome uint32) {
	if g.settled {
		return
	}
	g.settled = true
	if outcome == lost {
		l.stats.Failed += uint64(g.records)
	}
	g.refs.Add(int32(g.records))
	g.outcome.Store(outcome)
}

// fail refuses callers from now on and tells all who wait. l.mu is held.
func (l *Log) fail(cause error) {
	if l.state == ready {
		l.state = failed
	}
	if l.cause = cause; l.damaged != nil {
		l.cause = l.damaged
	}
	if g := l.current; g != nil {
		l.settle(g, lost) // the writer still has its buffer
		g.done.Broadcast()
	}
	for _, g := range l.full {
		l.drop(g)
	}
	l.full = l.full[:0]
	if g := l.filling; g.records > 0 {
		l.drop(g)
		if len(l.free) == 0 { // callers have yet to leave theirs; discard keeps the number of groups bounded
			l.free = append(l.free, l.newGroup())
		}
		l.filling = l.take()
	}
}

// drop gives up a group that is not going to be written. l.mu is held.
func (l *Log) drop(g *group) {
	l.settle(g, lost)
	g.done.Broadcast()
	if g.refs.Add(-1) == 0 {
		l.discard(g)
	}
}

func (l *Log) newGroup() *group {
	g := &group{buf: make([]byte, 0, groupSize)}
	g.done.L = unlocker{&l.mu}
	return g
}

// Err is nil while records can be appended and checkpoints keep up; otherwise it says why not. It is for readiness.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.state == closed:
		return ErrClosed
	case l.state == failed:
		return fmt.Errorf("%w: %w", ErrUnavailable, l.cause)
	case time.Since(l.ckpt.good) <= 3*l.cfg.CheckpointEvery:
		return nil
	case l.ckpt.err != nil:
		return fmt.Errorf("audit: no checkpoint since %s: %w", l.ckpt.good.UTC().Format(time.RFC3339), l.ckpt.err)
	case l.tip.size > l.ckpt.newest.Size: // the signer or the disk hangs
		return fmt.Errorf("audit: no checkpoint since %s", l.ckpt.good.UTC().Format(time.RFC3339))
	}
	return nil
}

// Stats returns the counters.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	last := l.segments[len(l.segments)-1]
	s.Next, s.Integrated, s.Segments = last.first+last.records, l.tip.size, len(l.segments)
	s.Checkpoint, s.Published = l.ckpt.newest.Size, l.ckpt.published
	return s
}

// Close writes what was appended, signs a last checkpoint and ends the log's goroutines. It gives up after closeMax.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.state == closed {
		l.mu.Unlock()
		return ErrClosed
	}
	cause := l.cause
	if l.state == ready {
		cause = nil
	}
	l.state = closed
	l.mu.Unlock()
	close(l.stop)

	giveUp := time.NewTimer(closeMax)
	defer giveUp.Stop()
	for _, done := range []chan struct{}{l.writerDone, l.integratorDone, l.keepDone} {
		select {
		case <-done:
		case <-giveUp.C:
			l.cancel()
			return errors.Join(cause, errors.New("audit: the log does not come to its end: the disk or the signer hangs"))
		}
	}
	l.cancel()
	l.watchdog.Stop()
	select {
	case <-l.reporterDone:
	case <-time.After(time.Second): // the Logger hangs; everything else has come to its end
	}
	l.mu.Lock()
	err := l.ckpt.err
	l.mu.Unlock()
	return errors.Join(cause, err, l.in.hashes.close(), l.lock.Close())
}

const closeMax = 30 * time.Second

// message is one for the Logger.
type message struct {
	level slog.Level
	text  string
	args  []any
}

// tell has the reporter log a message. It never waits, so l.mu may be held: the Logger's stderr may be a file on the disk that hangs.
func (l *Log) tell(level slog.Level, text string, args ...any) {
	select {
	case l.messages <- message{level, text, args}:
	default: // the Logger hangs, and messagesMax wait for it
	}
}

const messagesMax = 64

// report is the reporter: the only goroutine that calls the Logger once Open has returned. It ends when Close has ended all others.
func (l *Log) report() {
	defer close(l.reporterDone)
	for ended := false; ; {
		select {
		case m := <-l.messages:
			l.cfg.Logger.Log(context.Background(), m.level, m.text, m.args...)
			continue
		default:
		}
		if ended {
			return
		}
		select {
		case m := <-l.messages:
			l.cfg.Logger.Log(context.Background(), m.level, m.text, m.args...)
		case <-l.ctx.Done():
			ended = true
		}
	}
}
