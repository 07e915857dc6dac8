package controlplane

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
)

// settlePause is how long Run waits between two attempts to learn that earlier writes have settled, and settleTimeout bounds one.
const (
	settlePause   = 250 * time.Millisecond
	settleTimeout = 10 * time.Second
)

// unsettled remembers what to publish again. A write whose outcome is unknown (store.ErrUncertain: a stalled disk, a lost quorum) may be
// applied after it was published; whoever reads the record in between would keep the old view for ever.
type unsettled struct {
	mu       sync.Mutex
	again    map[string]func() // by what changed, so that it is bounded by the names that exist
	settling map[string]func() // those of them that settle waits for, until they are published
	arrived  chan struct{}     // capacity 1
}

// publish tells the data plane of a change: now, and again once a write of unknown outcome has settled. err is the write's.
func (s *Server) publish(name string, err error, tell func()) {
	uncertain := errors.Is(err, store.ErrUncertain)
	if err != nil && !uncertain {
		return
	}
	if uncertain {
		s.unsettled.mu.Lock()
		s.unsettled.again[name] = tell
		s.unsettled.mu.Unlock()
		select {
		case s.unsettled.arrived <- struct{}{}:
		default:
		}
	}
	tell()
}

// settle publishes again what could not be published for certain. It ends with ctx; Run owns its goroutine.
func (s *Server) settle(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.unsettled.arrived:
		}
		again := s.unsettled.next()
		// A write that is proposed now comes after the uncertain ones in the log, or they are not in it at all: when it is done, so are they.
		for s.barrier(ctx) != nil {
			select {
			case <-ctx.Done():
				return
			case <-time.After(settlePause):
			}
		}
		for _, tell := range again {
			tell()
		}
		s.unsettled.done()
	}
}

// next takes what is to be published again. It counts as unsettled until done.
func (u *unsettled) next() map[string]func() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.settling, u.again = u.again, map[string]func(){}
	return u.settling
}

func (u *unsettled) done() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.settling = nil
}

// publishUnsettled publishes at once what begins with prefix and may not have settled: the caller has read that one of them did.
func (s *Server) publishUnsettled(prefix string) {
	var tell []func()
	s.unsettled.mu.Lock()
	for _, m := range []map[string]func(){s.unsettled.again, s.unsettled.settling} {
		for name, f := range m {
			if strings.HasPrefix(name, prefix) {
				tell = append(tell, f)
			}
		}
	}
	s.unsettled.mu.Unlock()
	for _, f := range tell {
		f()
	}
}

func (s *Server) barrier(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return s.store.Barrier(ctx)
}
