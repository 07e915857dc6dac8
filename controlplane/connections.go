package controlplane

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/failpoint"
	"github.com/keyplane/keyplane/internal/uuid"
)

// The connection of a custom key store. What is to be is in its record; what is, is in KeyStores. ConnectCustomKeyStore writes CONNECTING and is answered; a
// turn then connects, and writes CONNECTED or FAILED. DisconnectCustomKeyStore writes DISCONNECTING, ends that turn, disconnects, and writes DISCONNECTED before it is
// answered. Whatever a process leaves in between, the next one's Run goes on with.
//
// Of several control planes the one that was asked does it, and the others, and all data planes, follow the record (keystores.Registry.Follow): DisconnectCustomKeyStore
// waits for them between DISCONNECTING and DISCONNECTED. What a control plane that is gone has left, the one goes on with that owns the work of the Region: it cannot
// tell that one is gone, but nobody takes longer than adoptAfter. Should two do it, one of them writes what came of it.
//
//	DISCONNECTED ──Connect──► CONNECTING ──► CONNECTED
//	     ▲                        │    └───► FAILED
//	     └──── DISCONNECTING ◄──Disconnect───┘

const (
	// connectTimeout bounds one attempt to connect.
	connectTimeout = 2 * time.Minute
	// turnPause is how long a turn waits before it tries again what it could not read or write, twice as long each time, to workInterval at most.
	turnPause = 250 * time.Millisecond
	// adoptAfter is how long a key store is CONNECTING before it is taken for left by who was asked.
	adoptAfter = connectTimeout + settleTimeout

	networkErrors = "NETWORK_ERRORS"
	internalError = "INTERNAL_ERROR"
)

// connections are what this control plane is doing about the connections of custom key stores.
type connections struct {
	mu     sync.Mutex
	turns  map[store.KeyStoreName]*turn  // one thing at a time about each
	asked  map[store.KeyStoreName]string // the ID of the request that asked for the connection
	mine   map[store.KeyStoreName]bool   // what this control plane was asked to do and has not done yet
	others map[store.KeyStoreName]sight  // what is under way that it was not asked for
	owner  bool                          // it owns the work of the Region
	untold map[store.KeyStoreName]bool   // KeyStores could not be told of a change
	wanted chan struct{}                 // capacity 1: there is something to do

	telling sync.Mutex // KeyStores hears of changes in the order in which they are read
}

// turn is somebody's to do something about one key store.
type turn struct {
	end  context.CancelFunc // asks it to end, which of a turn that disconnects it does anyway
	over chan struct{}
}

// sight is a revision of a record, and when this process has seen it first.
type sight struct {
	revision int64
	at       time.Time
}

func (c *connections) init() {
	c.mine, c.others = map[store.KeyStoreName]bool{}, map[store.KeyStoreName]sight{}
	c.turns, c.asked, c.untold, c.wanted = map[store.KeyStoreName]*turn{}, map[store.KeyStoreName]string{}, map[store.KeyStoreName]bool{}, make(chan struct{}, 1)
}

// want has the goroutine of Run look at the key stores.
func (c *connections) want() {
	select {
	case c.wanted <- struct{}{}:
	default:
	}
}

// ask takes note of what this control plane has to do.
func (c *connections) ask(n store.KeyStoreName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mine[n] = true
}

// did is the inverse, in the turn in which it was done.
func (c *connections) did(n store.KeyStoreName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.mine, n)
}

// own says whether this process owns the work of the Region.
func (c *connections) own(owner bool) {
	c.mu.Lock()
	c.owner = owner
	c.mu.Unlock()
	c.want()
}

// adopts says whether this control plane, of several, does what a record says is under way.
func (c *connections) adopts(k *store.KeyStore) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mine[k.KeyStoreName] {
		return true
	}
	seen := c.others[k.KeyStoreName]
	if seen.revision != k.Revision {
		seen = sight{k.Revision, time.Now()}
		c.others[k.KeyStoreName] = seen
	}
	// To disconnect twice is to disconnect once. To connect twice may cost tries of the password.
	return c.owner && (k.State == store.Disconnecting || time.Since(seen.at) >= adoptAfter)
}

// forget forgets what is not under way any more.
func (c *connections) forget(underWay map[store.KeyStoreName]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := range c.others {
		if !underWay[n] {
			delete(c.others, n)
		}
	}
}

// begin takes the turn, unless somebody has it, who is returned.
func (c *connections) begin(n store.KeyStoreName, end context.CancelFunc) *turn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.turns[n]; t != nil {
		return t
	}
	c.turns[n] = &turn{end: end, over: make(chan struct{})}
	return nil
}

// finish gives the turn back. What was written meanwhile may ask for the next.
func (c *connections) finish(n store.KeyStoreName) {
	c.mu.Lock()
	close(c.turns[n].over)
	delete(c.turns, n)
	c.mu.Unlock()
	c.want()
}

// take ends the turn that somebody has and takes it.
func (c *connections) take(ctx context.Context, n store.KeyStoreName) error {
	for {
		t := c.begin(n, func() {})
		if t == nil {
			return nil
		}
		t.end()
		select {
		case <-t.over:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// requestID is that of the request that asked for a connection, or one of its own where that is not known any more.
func (s *Server) requestID(n store.KeyStoreName) string {
	s.connections.mu.Lock()
	defer s.connections.mu.Unlock()
	id, ok := s.connections.asked[n]
	delete(s.connections.asked, n)
	if !ok {
		var text [uuid.Len]byte
		s.events.Fill(&text)
		id = string(text[:])
	}
	return id
}

// ConnectCustomKeyStore: to ask again for a connection that is there or under way changes nothing.
func (s *Server) connectCustomKeyStore(ctx context.Context, c *call, in *keyStoreIn) (noMembers, error) {
	if err := c.permitAccount(c.action, "*"); err != nil {
		return noMembers{}, err
	}
	n := s.keyStoreName(c, *in.CustomKeyStoreId)
	asked := false
	_, err := s.store.UpdateKeyStore(ctx, n, func(k *store.KeyStore) error {
		c.noteKeyStore(k)
		asked = k.State == store.Disconnected
		switch k.State {
		case store.Failed, store.Disconnecting:
			return invalidState(k)
		case store.Disconnected:
			k.State = store.Connecting
		}
		return nil
	}, nil)
	if asked && (err == nil || errors.Is(err, store.ErrUncertain)) {
		s.connections.mu.Lock()
		s.connections.asked[n], s.connections.mine[n] = c.request.RequestID, true
		s.connections.mu.Unlock()
		failpoint.Here("keystore.connecting")
		s.connections.want()
	}
	return noMembers{}, keyStoreError(err)
}

// DisconnectCustomKeyStore is answered when nothing uses the key store's keys any more.
func (s *Server) disconnectCustomKeyStore(ctx context.Context, c *call, in *keyStoreIn) (noMembers, error) {
	if err := c.permitAccount(c.action, "*"); err != nil {
		return noMembers{}, err
	}
	n := s.keyStoreName(c, *in.CustomKeyStoreId)
	k, err := s.store.UpdateKeyStore(ctx, n, func(k *store.KeyStore) error {
		c.noteKeyStore(k)
		if k.State == store.Disconnecting || k.State == store.Disconnected {
			return invalidState(k)
		}
		k.State, k.Error = store.Disconnecting, ""
		return nil
	}, nil)
	if err == nil || errors.Is(err, store.ErrUncertain) {
		s.connections.ask(n)
	}
	if err != nil {
		s.connections.want() // a write of unknown outcome
		return noMembers{}, keyStoreError(err)
	}
	failpoint.Here("keystore.disconnecting")
	if err := s.connections.take(ctx, n); err != nil {
		s.connections.want()
		return noMembers{}, err
	}
	defer s.connections.finish(n)
	if err := s.disconnect(ctx, k); err != nil {
		return noMembers{}, err
	}
	s.connections.did(n)
	return noMembers{}, nil
}

// disconnect goes on from DISCONNECTING, in its turn. When nothing uses the keys any more, in no process, it is DISCONNECTED.
func (s *Server) disconnect(ctx context.Context, k *store.KeyStore) error {
	if s.keyStores != nil {
		s.keyStores.Disconnect(k.KeyStoreName)
	}
	s.publisher.Spread()
	_, err := s.arrive(ctx, k, store.Disconnected, "")
	return err
}

// outcome is what came of one attempt to connect, asked for by a revision of the record. Each attempt may cost a try of the password at every HSM of a cluster, so
// that one whose outcome cannot be written is not made again: only the writing is.
type outcome struct {
	revision    int64 // 0: of none yet
	state, code string
}

// connect goes on from CONNECTING, in its turn, of which come is the outcome. ctx ends when the process does, or somebody wants it disconnected: then there is
// nothing to be said.
func (s *Server) connect(ctx context.Context, k *store.KeyStore, come *outcome) error {
	if come.revision != k.Revision {
		state, code := s.attempt(ctx, k)
		if ctx.Err() != nil {
			return nil
		}
		*come = outcome{revision: k.Revision, state: state, code: code}
	}
	failpoint.Here("keystore.connected")
	at, err := s.arrive(ctx, k, come.state, come.code)
	if err == nil && at != store.Connected && s.keyStores != nil {
		s.keyStores.Disconnect(k.KeyStoreName)
	}
	return err
}

// attempt connects, and says what the key store is then: CONNECTED, or FAILED with a code. Where ctx has ended it says nothing.
func (s *Server) attempt(ctx context.Context, k *store.KeyStore) (state, code string) {
	if s.keyStores == nil {
		return store.Failed, internalError
	}
	attempt, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	err := s.keyStores.Connect(attempt, k, s.requestID(k.KeyStoreName))
	if err == nil || ctx.Err() != nil {
		return store.Connected, ""
	}
	code = internalError
	if f, ok := errors.AsType[*StoreFault](err); ok {
		code = cmp.Or(f.Connection, code)
	} else if attempt.Err() != nil {
		code = networkErrors
	}
	s.log.Warn("a custom key store does not connect", "keyStore", k.ID, "code", code, "error", err.Error())
	return store.Failed, code
}

// arrive writes what came of the state that k is in, unless it has been left since. It returns the state that the key store is in then, "" if there is none.
func (s *Server) arrive(ctx context.Context, k *store.KeyStore, state, code string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	now, err := s.store.UpdateKeyStore(ctx, k.KeyStoreName, func(now *store.KeyStore) error {
		if now.Revision == k.Revision {
			now.State, now.Error = state, code
			if state == store.Connected && now.Type == store.CloudHSM {
				now.Roots = s.roots(now)
			}
		}
		return nil
	}, nil)
	if errors.Is(err, store.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	s.log.Info("custom key store", "keyStore", k.ID, "account", k.Account.String(), "connectionState", now.State)
	return now.State, nil
}

// connecting goes on with what the records of key stores say is under way, each in a goroutine that it waits for at the end, when it is told to or after a while.
func (s *Server) connecting(ctx context.Context) {
	var turns sync.WaitGroup
	defer turns.Wait()
	ticker := time.NewTicker(s.workInterval)
	defer ticker.Stop()
	for {
		if err := s.takeTurns(ctx, &turns); err != nil && ctx.Err() == nil {
			s.log.Error("custom key stores cannot be connected; it is tried again", "error", err.Error())
		}
		select {
		case <-s.connections.wanted:
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Server) takeTurns(ctx context.Context, turns *sync.WaitGroup) error {
	s.tellUntold()
	list, damaged := s.store.KeyStores(ctx, s.region)
	underWay := map[store.KeyStoreName]bool{}
	for _, k := range list {
		if k.State != store.Connecting && k.State != store.Disconnecting {
			continue
		}
		n := k.KeyStoreName
		underWay[n] = true
		if s.lease != nil && !s.connections.adopts(k) {
			continue
		}
		ctx, cancel := context.WithCancel(ctx)
		if s.connections.begin(n, cancel) != nil {
			cancel()
			continue
		}
		turns.Go(func() {
			defer cancel()
			defer s.connections.finish(n)
			s.goOnUntilDone(ctx, n)
		})
	}
	s.connections.forget(underWay)
	return damaged
}

// goOnUntilDone does what is under way of one key store, whose turn it is, and tries again what cannot be read or written, until ctx ends.
func (s *Server) goOnUntilDone(ctx context.Context, n store.KeyStoreName) {
	var come outcome
	for pause := turnPause; ; pause = min(2*pause, s.workInterval) {
		err := s.goOn(ctx, n, &come)
		if err == nil || ctx.Err() != nil {
			return
		}
		s.log.Error("the connection state of a custom key store cannot be read or written; it is tried again", "keyStore", n.ID, "error", err.Error())
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// goOn does what is under way of one key store, whose turn it is. come is the outcome of an attempt that this turn has made.
func (s *Server) goOn(ctx context.Context, n store.KeyStoreName, come *outcome) error {
	k, err := s.store.OpenKeyStore(ctx, n) // again: before the turn began, another could have ended
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer k.Secret.Wipe()
	switch {
	case k.State == store.Connecting:
		err = s.connect(ctx, k, come)
	case k.State == store.Disconnecting:
		err = s.disconnect(ctx, k)
	default:
		return nil
	}
	if err == nil && ctx.Err() == nil {
		s.connections.did(n)
	}
	return err
}

// publishKeyStore tells KeyStores that a key store may have been made, changed or deleted. err is the write's.
func (s *Server) publishKeyStore(n store.KeyStoreName, err error) {
	s.publish("keystore/"+n.Account.String()+"/"+n.ID, err, func() {
		s.tellKeyStore(n)
		s.publisher.Spread()
	})
}

func (s *Server) tellKeyStore(n store.KeyStoreName) {
	if s.keyStores == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	s.connections.telling.Lock()
	defer s.connections.telling.Unlock()
	k, err := s.store.OpenKeyStore(ctx, n)
	switch {
	case err == nil:
		s.keyStores.Add(k)
		k.Secret.Wipe()
	case errors.Is(err, store.ErrNotFound):
		s.keyStores.Remove(n)
	default:
		s.log.Error("a custom key store that was changed cannot be read; it is tried again", "keyStore", n.ID, "error", err.Error())
		s.connections.mu.Lock()
		s.connections.untold[n] = true
		s.connections.mu.Unlock()
	}
}

// tellUntold tries again what tellKeyStore could not.
func (s *Server) tellUntold() {
	s.connections.mu.Lock()
	untold := s.connections.untold
	s.connections.untold = map[store.KeyStoreName]bool{}
	s.connections.mu.Unlock()
	for n := range untold {
		s.tellKeyStore(n)
	}
}
