package apitest

import (
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/node"
)

// Clock is the time of a server under test and of the clients that Endpoint makes for it. It stands still until the test moves it.
type Clock struct {
	mu      sync.Mutex
	date    time.Time
	running time.Duration
}

// NewClock makes a clock that stands at a date.
func NewClock(date time.Time) *Clock { return &Clock{date: date.UTC()} }

// Now is the date.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.date
}

// Running is for how long the clock has run, whatever the date was set to.
func (c *Clock) Running() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running
}

// Advance lets time pass.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.date, c.running = c.date.Add(d), c.running+d
}

// Jump sets the date and lets no time pass, as somebody does who corrects a wall clock, or spoils it.
func (c *Clock) Jump(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.date = c.date.Add(d)
}

// WithClock has the node go by a clock.
func WithClock(c *Clock) Option {
	return func(cfg *node.Config) { cfg.Clock = &node.Clock{Now: c.Now, Running: c.Running} }
}

// Work does what is due now.
func (s *Server) Work(t testing.TB) {
	t.Helper()
	if err := s.node.Work(t.Context()); err != nil {
		t.Fatal(err)
	}
}
