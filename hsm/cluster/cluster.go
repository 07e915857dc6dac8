package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/secret"
)

const (
	// MembersMin is how many HSMs must answer for a key to be made.
	MembersMin = 2
	// membersMax is more than the HSMs that a CloudHSM cluster can have.
	membersMax = 64
	// blocksLen is two AES blocks.
	blocksLen = 32
)

// Member is an HSM of the cluster, before it is opened.
type Member struct {
	Name string // of messages and counters: a label, or a URI without secrets
	// Open opens the token with the PIN, which is the caller's and wiped when Open returns. It makes at most one login. The error is as of hsm/p11: it wraps
	// hsm.ErrPIN where the token does not want the PIN, with the *hsm.Error of C_Login that says why; else the *hsm.Error of the module. It may hang.
	Open func(pin []byte) (hsm.Token, error)
	// Ask says which token it is, open or not, without a login. The error is as Open's. It may hang.
	Ask func() (hsm.TokenInfo, error)
}

// Config is what a cluster consists of. Of the durations 0 is the default.
type Config struct {
	ID      string   // cluster-…: of messages
	Members []Member // 1 to 64, each with a name of its own

	// Ring makes a key ring over this one token, without software keys, and what joins its jobs into rounds. done closes both.
	Ring func(t hsm.Token) (ring *hsm.KeyRing, done func(), err error)
	// Tokens are those of all clusters of the process; nil: they are not compared.
	Tokens *Tokens
	// Blocks are the two AES blocks whose images tell whether two keys are the same (snapshot.ResidentBlocks).
	Blocks string

	OpenTimeout  time.Duration // for a member to come up; 20 s
	CallTimeout  time.Duration // for a call that shows whether a member answers; 5 s
	AwayTimeout  time.Duration // for a member that is away to come up, or not, while a key is made; 1 s
	MakeTimeout  time.Duration // for what comes before the first key is brought into a member: finding out how, which takes seconds; 60 s
	CloseTimeout time.Duration // for Disconnect to wait for jobs that are under way, and for tokens to close; 10 s
	RetryMin     time.Duration // how often the members are looked after; 1 s
	RetryMax     time.Duration // how often at least one that is away is tried again; 3 s
	Logger       *slog.Logger  // nil discards
}

// Cluster is a group of HSMs that each have a copy of every key. Methods are safe for concurrent use.
type Cluster struct {
	cfg     Config
	members []*member
	conn    atomic.Pointer[conn] // nil: not connected
	next    atomic.Uint32        // where the search for a member begins

	mu      sync.Mutex // guards the rest
	pending *conn      // of a Connect or Learn that is under way
}

// member is what stays of an HSM from one connection to the next.
type member struct {
	Member
	jobs, failed atomic.Uint64
	root         atomic.Pointer[hsm.RootID] // when it came up last; nil: it never did

	askMu  sync.Mutex
	asking *asking // guarded by askMu: a call that has not ended
}

// New checks the configuration. It opens nothing.
func New(cfg Config) (*Cluster, error) {
	for _, d := range []struct {
		v      *time.Duration
		normal time.Duration
	}{
		{&cfg.OpenTimeout, 20 * time.Second}, {&cfg.CallTimeout, 5 * time.Second}, {&cfg.AwayTimeout, time.Second}, {&cfg.MakeTimeout, time.Minute},
		{&cfg.CloseTimeout, 10 * time.Second}, {&cfg.RetryMin, time.Second}, {&cfg.RetryMax, 3 * time.Second},
	} {
		if *d.v == 0 {
			*d.v = d.normal
		}
		if *d.v < 0 {
			return nil, errors.New("cluster: a duration is negative")
		}
	}
	if len(cfg.Members) < 1 || len(cfg.Members) > membersMax || cfg.Ring == nil || len(cfg.Blocks) != blocksLen || cfg.RetryMin > cfg.RetryMax {
		return nil, fmt.Errorf("cluster: config out of range: %d members, blocks of %d bytes, retries from %v to %v, or no Ring",
			len(cfg.Members), len(cfg.Blocks), cfg.RetryMin, cfg.RetryMax)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Logger = cfg.Logger.With("cluster", cfg.ID)
	c := &Cluster{cfg: cfg}
	names := map[string]bool{}
	for _, m := range cfg.Members {
		if m.Name == "" || m.Open == nil || m.Ask == nil || names[m.Name] {
			return nil, fmt.Errorf("cluster: member %q has no name of its own, no Open or no Ask", m.Name)
		}
		names[m.Name] = true
		c.members = append(c.members, &member{Member: m})
	}
	return c, nil
}

// conn is a connection, from Connect to Disconnect.
type conn struct {
	c     *Cluster
	pin   secret.Bytes
	seats []*seat
	stop  chan struct{} // closes at the end
	once  sync.Once     // of the end
	wg    sync.WaitGroup

	mu     sync.Mutex
	tokens map[[2]string]*seat // guarded by mu: who has a token, by module and serial number
}

// claim says that a token is the seat's, or that it is another one's already: two members that are one HSM would keep one copy where two are promised.
func (n *conn) claim(s *seat, info hsm.TokenInfo) error {
	if err := n.c.cfg.Tokens.Claim(n.c.cfg.ID, info); err != nil {
		return err
	}
	if info.Serial == "" {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	is := [2]string{info.Module, info.Serial}
	if other := n.tokens[is]; other != nil && other != s {
		return fmt.Errorf("%w: %q is %q", ErrTwice, s.Name, other.Name)
	}
	maps.DeleteFunc(n.tokens, func(_ [2]string, of *seat) bool { return of == s })
	n.tokens[is] = s
	return nil
}

// Connect opens all members at the same time and returns when each has come up or failed, at most after OpenTimeout. One that comes up is enough, unless another
// one refuses the PIN, or two are one HSM. Those that are away are tried again until Disconnect. pin is the caller's. The error is a *Fault, ErrConnected,
// ErrDisconnected where Disconnect came meanwhile, or the context's.
func (c *Cluster) Connect(ctx context.Context, pin []byte) error {
	n, err := c.begin(pin)
	if err != nil {
		return err
	}
	err = n.open(ctx, len(n.seats))
	c.mu.Lock()
	if c.pending != n {
		err = ErrDisconnected // and whoever did that closes it
		c.mu.Unlock()
		return err
	}
	c.pending = nil
	if err == nil {
		for _, s := range n.seats {
			n.wg.Go(s.supervise)
		}
		c.conn.Store(n)
		n.ready()
	}
	c.mu.Unlock()
	if err != nil {
		n.end()
	}
	return err
}

// begin is a connection before its members are opened; there is no other one.
func (c *Cluster) begin(pin []byte) (*conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending != nil || c.conn.Load() != nil {
		return nil, ErrConnected
	}
	n := &conn{c: c, pin: secret.New(bytes.Clone(pin)), stop: make(chan struct{}), tokens: map[[2]string]*seat{}}
	for _, m := range c.members {
		n.seats = append(n.seats, &seat{member: m, conn: n, log: c.cfg.Logger.With("hsm", m.Name)})
	}
	c.pending = n
	return n, nil
}

// Learn opens members for their Roots to be known, till enough of them have come up, or all others failed, and closes them again. It makes at most one login
// at each. Where ctx ends before, one that has come up is enough. closed is closed when they are, which may be CloseTimeout later: until then there is no
// other connection. The error is as Connect's; closed is nil with ErrConnected.
func (c *Cluster) Learn(ctx context.Context, pin []byte, enough int) (closed <-chan struct{}, err error) {
	n, err := c.begin(pin)
	if err != nil {
		return nil, err
	}
	if err = n.open(ctx, enough); err != nil && err == ctx.Err() && slices.ContainsFunc(n.seats, func(s *seat) bool { return s.link.Load() != nil }) {
		err = nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.end()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.pending == n {
			c.pending = nil
		}
	}()
	return done, err
}

// open opens all members, and returns when enough of them are up, or the rest has failed.
func (n *conn) open(ctx context.Context, enough int) error {
	type answer struct {
		seat *seat
		err  error
	}
	answers := make(chan answer, len(n.seats))
	for _, s := range n.seats {
		go func() {
			_, err := s.look(ctx)
			answers <- answer{s, err}
		}()
	}
	up := 0
	var faults []*MemberError
	for range n.seats {
		select {
		case a := <-answers:
			if a.err == nil {
				if up++; up >= enough {
					return nil
				}
				continue
			}
			if ctx.Err() != nil {
				return ctx.Err() // and the answer may be that
			}
			a.seat.log.Warn("the HSM does not come up", "err", a.err)
			faults = append(faults, &MemberError{a.seat.Name, a.err})
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fault := newFault(faults); up == 0 || refused(fault.Cause) {
		return fault
	}
	return nil
}

// Disconnect ends the connection, or a Connect that is under way. When it returns no call uses a key any more, and none has a result from one; tokens are closed,
// but for those whose modules hang.
func (c *Cluster) Disconnect() {
	c.mu.Lock()
	n := c.conn.Swap(nil)
	if n == nil {
		n = c.pending
	}
	c.pending = nil
	c.mu.Unlock()
	if n != nil {
		n.end()
	}
}

// end may come from Disconnect and from whoever has begun the connection.
func (n *conn) end() {
	n.once.Do(n.close)
}

func (n *conn) close() {
	close(n.stop)
	var closing sync.WaitGroup
	for _, s := range n.seats {
		closing.Go(s.close)
	}
	closing.Wait()
	n.wg.Wait()
	n.pin.Wipe()
}

// Connected says whether there is a connection. It does not ask whether a member answers.
func (c *Cluster) Connected() bool { return c.conn.Load() != nil }

// Active is how many members answer now: each is asked.
func (c *Cluster) Active() int {
	n := c.conn.Load()
	if n == nil {
		return 0
	}
	return len(n.active(context.Background(), n.seats))
}

// active asks these members at the same time. Those that have not answered after CallTimeout, or OpenTimeout where they have to be opened, or when ctx ends, do not.
func (n *conn) active(ctx context.Context, seats []*seat) []*seat {
	return answering(seats, func(s *seat) error {
		_, err := s.look(ctx)
		return err
	})
}

// answering are those of the seats that ask has no error for. They are asked at the same time.
func answering(seats []*seat, ask func(*seat) error) []*seat {
	answers := make([]chan error, len(seats))
	for i, s := range seats {
		answers[i] = make(chan error, 1)
		go func() { answers[i] <- ask(s) }()
	}
	var up []*seat
	for i, s := range seats {
		if <-answers[i] == nil {
			up = append(up, s)
		}
	}
	return up
}

// here are the seats of members that are not away. Those that are, whoever looks after them brings back; it may take long.
func (n *conn) here() []*seat {
	var here []*seat
	for _, s := range n.seats {
		if s.here() {
			here = append(here, s)
		}
	}
	return here
}

func (s *seat) here() bool {
	l := s.link.Load()
	return l != nil && !l.is("quarantined")
}

// asking is a call of Ask.
type asking struct {
	done chan struct{}
	info hsm.TokenInfo
	err  error
}

// ask begins a call, or joins one that has not ended: one that hangs is one.
func (m *member) ask() *asking {
	m.askMu.Lock()
	defer m.askMu.Unlock()
	if m.asking == nil {
		a := &asking{done: make(chan struct{})}
		m.asking = a
		go func() {
			defer close(a.done)
			a.info, a.err = m.Ask()
			m.askMu.Lock()
			defer m.askMu.Unlock()
			m.asking = nil
		}()
	}
	return m.asking
}

// Ask has the members say which HSMs they are, connected or not and without a login, and returns when enough of them have, all have answered, or ctx ends. n is
// how many different ones there are; err, where they are not enough, is a *Fault that says why.
func (c *Cluster) Ask(ctx context.Context, enough int) (n int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		name string
		asking
	}
	answers := make(chan answer, len(c.members))
	for _, m := range c.members {
		a := m.ask()
		go func() {
			select {
			case <-a.done:
				answers <- answer{m.Name, *a}
			case <-ctx.Done():
				answers <- answer{m.Name, asking{err: hsm.ErrTimeout}}
			}
		}()
	}
	different := map[[2]string]bool{}
	var faults []*MemberError
	for range c.members {
		a := <-answers
		if a.err == nil {
			a.err = c.cfg.Tokens.check(c.cfg.ID, a.info)
		}
		switch is := [2]string{a.info.Module, a.info.Serial}; {
		case a.err != nil:
			faults = append(faults, &MemberError{a.name, a.err})
		case a.info.Serial != "" && different[is]:
			faults = append(faults, &MemberError{a.name, ErrTwice})
		default:
			if n++; n >= enough {
				return n, nil
			}
			different[is] = true
		}
	}
	return n, newFault(faults)
}

// Roots are the different roots of the members that have come up since New, in order, as they were then. Clusters whose members were cloned from each other
// have the same.
func (c *Cluster) Roots() []hsm.RootID {
	var roots []hsm.RootID
	for _, m := range c.members {
		if root := m.root.Load(); root != nil {
			roots = append(roots, *root)
		}
	}
	slices.SortFunc(roots, func(a, b hsm.RootID) int { return bytes.Compare(a[:], b[:]) })
	return slices.Compact(roots)
}

// MemberStats is of one member. The counters are since New.
type MemberStats struct {
	Name   string        `json:"name"`
	Up     bool          `json:"up"`             // it is open; whether it answers is not asked
	Root   hsm.RootID    `json:"root"`           // while it is open
	Jobs   uint64        `json:"jobs"`           // that succeeded on it
	Failed uint64        `json:"failed"`         // that went to another member, or failed altogether
	Keys   *hsm.KeyStats `json:"keys,omitempty"` // of its key ring, while it is open
}

// Stats are the members' in order.
func (c *Cluster) Stats() []MemberStats {
	all := make([]MemberStats, len(c.members))
	n := c.conn.Load()
	for i, m := range c.members {
		all[i] = MemberStats{Name: m.Name, Jobs: m.jobs.Load(), Failed: m.failed.Load()}
		if n == nil {
			continue
		}
		if l := n.seats[i].link.Load(); l != nil && l.enter() {
			keys := l.ring.Stats()
			all[i].Up, all[i].Root, all[i].Keys = true, l.root, &keys
			l.leave()
		}
	}
	return all
}
