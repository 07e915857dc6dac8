package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
)

// gate counts who is inside and lets nobody in once it is shut.
type gate struct {
	n     atomic.Int64  // who is inside, and isShut where it is shut
	empty chan struct{} // closes when it is shut and nobody is inside
	once  sync.Once
}

const isShut = math.MinInt64 / 2

// enter says whether the caller is inside.
func (g *gate) enter() bool {
	if g.n.Add(1) > 0 {
		return true
	}
	g.leave()
	return false
}

func (g *gate) leave() {
	if g.n.Add(-1) == isShut {
		g.once.Do(func() { close(g.empty) })
	}
}

// shut is called once.
func (g *gate) shut() {
	if g.n.Add(isShut) == isShut {
		g.once.Do(func() { close(g.empty) })
	}
}

// link is an open member: what jobs are run on, while they are inside.
type link struct {
	gate
	token    hsm.ImportToken
	root     hsm.RootID
	ring     *hsm.KeyRing
	ringDone func()
	random   *hsm.Shards
	drawing  chan struct{} // capacity 1: in it who has random's only shard
	draws    atomic.Int32  // whose requests have it or wait for it
	left     atomic.Bool   // it is distrusted
	over     atomic.Bool   // Disconnect has given up waiting: what a job gives is nobody's
	stuck    atomic.Int32  // calls that have not come back

	prepared atomic.Bool // somebody makes wrap, or has
	wrapMu   sync.Mutex  // guards wrap
	wrap     *wrapping   // nil: not made yet
}

// seat is a member in a connection.
type seat struct {
	*member
	conn *conn
	log  *slog.Logger
	link atomic.Pointer[link] // nil while the member is away

	hung atomic.Int32 // calls on any of its links that have not come back

	mu      sync.Mutex // held for an instant; guards the rest
	looking *looking   // a look that has not ended
	opening *opening   // a call that has not ended
	token   hsm.Token  // once it was opened, also while it is lost
	refused error      // it is not tried again
	fault   error      // why it could not be opened
	tried   time.Time  // when that began
	known   time.Time  // when that was known
	closed  bool
}

// looking is a look, which all share that come before it has ended.
type looking struct {
	done chan struct{}
	link *link
	of   time.Time // an error's: it was so after this
	err  error
}

// opening is a call that opens a member.
type opening struct {
	began time.Time
	done  chan struct{}
	token hsm.Token // nil while none could be opened
	link  *link     // with err nil
	err   error
}

// look says whether the member answers, by a call, and opens it where it is away, or anew where it was lost; not where that has just failed. Those who look at
// the same time share one look. It ends with ctx for the caller only.
func (s *seat) look(ctx context.Context) (*link, error) { return s.lookSince(ctx, time.Time{}) }

// lookSince is look where an error has to be of after the time, or a call hangs.
func (s *seat) lookSince(ctx context.Context, since time.Time) (*link, error) {
	for {
		s.mu.Lock()
		k := s.looking
		if k == nil {
			k = &looking{done: make(chan struct{})}
			s.looking = k
			go func() {
				defer close(k.done)
				k.link, k.of, k.err = s.see(since)
				s.mu.Lock()
				defer s.mu.Unlock()
				s.looking = nil
			}()
		}
		s.mu.Unlock()
		select {
		case <-k.done:
			if k.err == nil || !k.of.Before(since) {
				return k.link, k.err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// awayPause is how long a member that could not be opened is left alone by those who want to know of now.
const awayPause = 100 * time.Millisecond

// see is the look: one at a time. An error is of a time after of.
func (s *seat) see(since time.Time) (l *link, of time.Time, err error) {
	of = time.Now()
	s.mu.Lock()
	if rest := time.Until(s.known.Add(awayPause)); !since.IsZero() && s.link.Load() == nil && s.opening == nil && s.tried.Before(since) && rest > 0 {
		s.mu.Unlock()
		select {
		case <-time.After(rest):
		case <-s.conn.stop:
		}
		s.mu.Lock()
	}
	var o *opening
	l = s.link.Load()
	switch {
	case s.closed:
		err = ErrDisconnected
	case s.refused != nil:
		err = s.refused
	case l != nil && l.distrusted():
		err = ErrDistrusted
	case l == nil && s.opening == nil && s.fault != nil && (!since.IsZero() && !s.tried.Before(since) || since.IsZero() && time.Since(s.known) < s.conn.c.cfg.RetryMin):
		of, err = s.tried, s.fault
	case l == nil || l.is("quarantined"):
		// Its rings try it again too, but at times of their own.
		o = s.begin(l)
	}
	s.mu.Unlock()
	switch {
	case err != nil:
		return nil, of, err
	case o != nil:
		return s.come(o)
	}
	err = s.probe(l)
	if err == nil && l.settles(s.conn) {
		return l, of, nil
	}
	if _, answered := errors.AsType[*hsm.Error](err); err != nil && (!answered || hsm.Final(err) != hsm.Unavailable) {
		return nil, time.Now(), err
	}
	// It was lost, and nobody has noticed that but for this call; or its sessions take their time.
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, of, ErrDisconnected
	}
	o = s.begin(l)
	s.mu.Unlock()
	return s.come(o)
}

// healthy says that there are sessions that serve, of both kinds.
func (l *link) healthy() bool { return l.ring.Healthy() == nil && l.random.Healthy() == nil }

// is says that the token is in a state for one of the kinds.
func (l *link) is(state string) bool {
	return !l.healthy() && slices.ContainsFunc(append(l.ring.Stats().Slots, l.random.Stats().Slots...), func(sl hsm.SlotStats) bool {
		return sl.State.String() == state
	})
}

// distrusted says that the token's answers were wrong, or that it refuses the PIN it has taken: it serves when the cluster is connected anew.
func (l *link) distrusted() bool {
	if !l.left.Load() && l.is("stopped") {
		l.left.Store(true)
	}
	return l.left.Load()
}

const (
	// settleEvery is how often somebody looks who waits for a token's sessions, which were lost and are opened.
	settleEvery = 5 * time.Millisecond
	settleMax   = 60
)

// settles waits until the token's sessions serve, some 300 ms at most.
func (l *link) settles(n *conn) bool {
	for range settleMax {
		if l.healthy() {
			return true
		}
		select {
		case <-n.stop:
			return false
		case <-time.After(settleEvery):
		}
	}
	return false
}

// begin opens the member, after what is left of it was closed, where nobody does already. It needs s.mu.
func (s *seat) begin(left *link) *opening {
	if s.opening != nil {
		return s.opening
	}
	s.link.Store(nil)
	o := &opening{began: time.Now(), done: make(chan struct{})}
	s.opening = o
	token, pin := s.token, bytes.Clone(s.conn.pin.Expose()) // here: they are not the seat's any more when it is closed
	go func() {
		defer close(o.done)
		defer clear(pin)
		o.token, o.link, o.err = s.open(token, left, pin)
	}()
	return o
}

// come waits for the member to be opened. An error is of a time after of.
func (s *seat) come(o *opening) (l *link, of time.Time, err error) {
	timer := time.NewTimer(s.conn.c.cfg.OpenTimeout - time.Since(o.began)) // nobody waits for a call that hangs but the first
	defer timer.Stop()
	select {
	case <-o.done:
	case <-timer.C:
		return nil, time.Now(), hsm.ErrTimeout
	case <-s.conn.stop:
		return nil, time.Now(), ErrDisconnected
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed { // and whoever did that has seen to it
		return nil, time.Now(), ErrDisconnected
	}
	s.opening, s.token = nil, o.token
	if o.err != nil {
		if refused(causeOf(o.err)) {
			s.refused = o.err
			s.log.Error("the HSM does not take the PIN, or is another member too: it is not tried again before the key store is connected anew", "err", o.err)
		}
		s.fault, s.tried, s.known = o.err, o.began, time.Now()
		return nil, o.began, o.err
	}
	s.link.Store(o.link)
	s.root.Store(&o.link.root)
	if s.conn.c.conn.Load() == s.conn { // to learn roots takes no keys
		s.conn.ready()
	}
	return o.link, o.began, nil
}

// open logs in to the token again, or opens another one where there is none, or not that one any more. It returns the one that is open.
func (s *seat) open(token hsm.Token, left *link, pin []byte) (hsm.Token, *link, error) {
	if left != nil {
		left.close()
	}
	if token != nil {
		err := token.Reset()
		if err == nil {
			l, err := s.build(token, left)
			return token, l, err
		}
		if refused(causeOf(err)) {
			return token, nil, err
		}
	}
	fresh, err := s.Open(pin)
	if err != nil {
		return token, nil, err
	}
	if err := s.conn.claim(s, fresh.Info()); err != nil {
		s.closeToken(fresh)
		return token, nil, err
	}
	s.closeToken(token)
	l, err := s.build(fresh, nil)
	return fresh, l, err
}

func (s *seat) closeToken(token hsm.Token) {
	if token == nil {
		return
	}
	if err := token.Close(); err != nil {
		s.log.Warn("closing the token", "err", err)
	}
}

// narrow is a token as the key ring has it: it is asked for the specs of clusters' keys and of those that they are brought under, and no other. To be asked
// takes long.
type narrow struct{ hsm.ImportToken }

func (n narrow) Keys(spec keyspec.Spec) hsm.Mechanisms {
	if spec != keyspec.AES256 && spec != keyspec.RSA3072 {
		return 0
	}
	return n.ImportToken.Keys(spec)
}

// build makes the sessions on a token, of which left had some, unless it is nil.
func (s *seat) build(opened hsm.Token, left *link) (*link, error) {
	roots, err := opened.Roots()
	if err != nil {
		return nil, err
	}
	token, ok := opened.(hsm.ImportToken)
	if !ok {
		return nil, hsm.ErrNotOffered
	}
	cfg := &s.conn.c.cfg
	l := &link{gate: gate{empty: make(chan struct{})}, token: token, root: roots.ID, drawing: make(chan struct{}, 1)}
	if left != nil && left.root == l.root {
		l.wrap = left.wrap
	}
	if l.ring, l.ringDone, err = cfg.Ring(narrow{token}); err != nil {
		return nil, err
	}
	if m, software := l.ring.Offers(keyspec.AES256); software || !m.Has(hsm.EncryptBlocks) {
		l.ringDone()
		return nil, fmt.Errorf("%w: keys of AES that are wrapped", hsm.ErrNotOffered)
	}
	if l.random, err = hsm.NewShards(hsm.ShardsConfig{
		Tokens: []hsm.Token{token}, SessionsPerToken: 1, RoundMax: 1, RoundTimeout: cfg.CallTimeout, Logger: s.log.With("sessions", "random"),
	}); err != nil {
		l.ringDone()
		return nil, err
	}
	return l, nil
}

// close lets nobody in any more, and closes the sessions when everybody is out. It is called once.
func (l *link) close() {
	l.shut()
	<-l.empty
	l.ringDone()
	l.random.Close()
}

// stuckMax bounds the calls of one link that have not come back, hungMax those of all links of one member in a connection.
const (
	stuckMax = 2
	hungMax  = 8
)

// bounded runs f, which may hang in the module, and waits for it at most for the time. f is inside till then: a call that hangs keeps nobody from closing the link.
func (s *seat) bounded(l *link, timeout time.Duration, f func() error) error {
	if l.stuck.Load() >= stuckMax || s.hung.Load() >= hungMax {
		return hsm.ErrTimeout
	}
	if !l.enter() {
		return ErrDisconnected
	}
	leave := sync.OnceFunc(l.leave)
	l.stuck.Add(1)
	s.hung.Add(1)
	done := make(chan error, 1)
	go func() {
		defer leave()
		defer s.hung.Add(-1)
		defer l.stuck.Add(-1)
		done <- f()
	}()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		leave()
		return hsm.ErrTimeout
	case <-s.conn.stop:
		return ErrDisconnected
	}
}

// probe asks the token for the known answer, on a new session.
func (s *seat) probe(l *link) error {
	err := s.bounded(l, s.conn.c.cfg.CallTimeout, func() error {
		session, err := l.token.OpenSession()
		if err != nil {
			return err
		}
		defer session.Close()
		var image [16]byte
		if err := session.Round([]byte(hsm.RootIDBlock), image[:], nil); err != nil {
			return err
		}
		if hsm.RootID(image[:8]) != l.root {
			return fmt.Errorf("%w: the root has another ID", hsm.ErrWrong)
		}
		return nil
	})
	if err != nil && hsm.Final(err) == hsm.Throttled { // no room for a session: one that there is shows as much
		return s.bounded(l, s.conn.c.cfg.CallTimeout, func() error {
			var b [16]byte
			return l.draw(b[:], time.Now().Add(s.conn.c.cfg.CallTimeout))
		})
	}
	return err
}

// supervise opens the member while it is away and brings it back when it was lost, till the end of the connection.
func (s *seat) supervise() {
	cfg := &s.conn.c.cfg
	delay := cfg.RetryMin
	timer := time.NewTimer(delay)
	defer timer.Stop()
	away := s.link.Load() == nil
	for {
		select {
		case <-s.conn.stop:
			return
		case <-timer.C:
		}
		if l := s.link.Load(); l == nil || !l.healthy() {
			_, err := s.look(context.Background())
			switch {
			case err == nil && away:
				s.log.Warn("the HSM serves again")
			case err != nil && !away && !errors.Is(err, ErrDisconnected):
				s.log.Error("the HSM does not serve", "err", err)
			}
			if away = err != nil; away {
				delay = min(2*delay, cfg.RetryMax)
			}
		} else {
			delay, away = cfg.RetryMin, false
		}
		timer.Reset(delay)
	}
}

// close ends the seat. A call that hangs is left behind, and what it makes is closed when it comes back.
func (s *seat) close() {
	s.mu.Lock() // who looks sees that it is over
	s.closed = true
	l, token, o := s.link.Swap(nil), s.token, s.opening
	s.mu.Unlock()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		if l != nil {
			l.close()
		}
		if o != nil {
			<-o.done
			if token = o.token; o.err == nil {
				o.link.close()
			}
		}
		s.closeToken(token)
	}()
	timer := time.NewTimer(s.conn.c.cfg.CloseTimeout)
	defer timer.Stop()
	select {
	case <-closed:
	case <-timer.C:
		if l != nil {
			l.over.Store(true)
		}
		s.log.Error("a call hangs in the module: it is left behind")
	}
}
