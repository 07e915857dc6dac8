package controlplane

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
)

// Lanes: each other Region is told what there is to tell in a goroutine of its own, so that one that is slow, or hangs, or is gone delays none of the others. A lane takes the keys
// one after the other. It leaves a Region that does not answer alone for a while, with all keys; and a key that is refused or fails there, alone.

// What failed is tried again after a second, and after twice as long each time, up to a minute.
const awayMin, awayMax = time.Second, time.Minute

// absence is how long something that failed is left alone.
type absence struct {
	pause time.Duration
	until time.Duration // by Server.running
}

// longer is the absence after one more failure.
func (a absence) longer(now time.Duration) absence {
	a.pause = min(max(2*a.pause, awayMin), awayMax)
	a.until = now + a.pause
	return a
}

// away remembers which peers do not answer.
type away struct {
	mu    sync.Mutex
	peers map[string]absence
}

func (a *away) note(region string, err error, now time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		delete(a.peers, region)
		return
	}
	if a.peers == nil {
		a.peers = map[string]absence{}
	}
	a.peers[region] = a.peers[region].longer(now)
}

// skip says that the peer did not answer a moment ago.
func (a *away) skip(region string, now time.Duration) bool {
	_, skipped := a.left(region, now)
	return skipped
}

// left is how long the peer is left alone still, false for not at all.
func (a *away) left(region string, now time.Duration) (time.Duration, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p, ok := a.peers[region]
	return p.until - now, ok && now < p.until
}

// lane is what one Region is told. region is "" for that of all Regions that are no peers: what does not need them goes on, the rest fails.
type lane struct {
	region string
	kicked chan struct{}             // capacity 1: there may be something to tell
	keys   map[store.KeyName]absence // what failed; the lane's goroutine has it
}

// replicating has a lane for every Region, and kicks them all when it is kicked, until ctx ends. Run owns its goroutine, and it those of the lanes.
func (s *Server) replicating(ctx context.Context) {
	if s.endpoint == nil {
		return
	}
	var lanes []*lane
	var driving sync.WaitGroup
	defer driving.Wait()
	for _, region := range append(s.endpoint.Regions(), "") {
		l := &lane{region: region, kicked: make(chan struct{}, 1), keys: map[store.KeyName]absence{}}
		lanes = append(lanes, l)
		driving.Go(func() { s.drive(ctx, l) })
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.kicked:
		}
		for _, l := range lanes {
			select {
			case l.kicked <- struct{}{}:
			default:
			}
		}
	}
}

// drive tells a lane's Region what there is when it is kicked, and what failed when its time has come.
func (s *Server) drive(ctx context.Context, l *lane) {
	for {
		again := (<-chan time.Time)(nil)
		wait, failures, err := s.tell(ctx, l)
		if err != nil && ctx.Err() == nil {
			s.log.Warn("replication is not done; it is tried again", "region", l.region, "failures", failures, "first", err.Error())
		}
		if wait > 0 {
			again = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-l.kicked:
		case <-again:
		}
	}
}

// tell goes once through what there is to tell a lane's Region. It returns how long until what was left alone may be tried again, 0 if nothing was, and what failed
// first of how much.
func (s *Server) tell(ctx context.Context, l *lane) (wait time.Duration, failures int, first error) {
	meant := func(region string) bool { return region == l.region }
	if l.region == "" {
		meant = func(region string) bool { return s.endpoint.Peer(region) == nil }
	}
	was := l.keys
	l.keys = map[store.KeyName]absence{}
	note := func(err error) {
		if failures++; first == nil {
			first = err
		}
	}
	// try does f for a key, unless the key or the Region is left alone.
	try := func(n store.KeyName, f func() error) error {
		absent := was[n]
		switch {
		case s.running() < absent.until:
			l.keys[n] = absent
			return nil
		case s.away.skip(l.region, s.running()):
			return nil
		}
		if err := f(); err != nil {
			note(err)
			if !s.away.skip(l.region, s.running()) { // else it is not the key's
				l.keys[n] = absent.longer(s.running())
			}
		}
		return nil
	}
	if !s.away.skip(l.region, s.running()) {
		defer func() {
			if s.away.skip(l.region, s.running()) {
				s.kick() // the other lanes end the changes of primaries that waited for this Region
			}
		}()
		err := errors.Join(
			s.eachToTell(ctx, func(n store.KeyName) error { return try(n, func() error { return s.push(ctx, n, meant) }) }),
			s.eachFarewell(ctx, func(f *store.Farewell) error {
				if !meant(f.Primary) {
					return nil
				}
				return try(f.KeyName, func() error { return s.sayFarewell(ctx, f) })
			}),
		)
		if err != nil { // the store's
			note(err)
			wait = awayMin
		}
	} else {
		l.keys = was
	}
	if left, ok := s.away.left(l.region, s.running()); ok {
		return left, failures, first
	}
	for _, absent := range l.keys {
		if left := max(absent.until-s.running(), time.Millisecond); wait == 0 || left < wait {
			wait = left
		}
	}
	return wait, failures, first
}
