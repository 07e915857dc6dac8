package keystores

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/secret"
)

// Of several processes each has connections of its own, and follows what the record of a key store says. One of them, the control plane that was asked, connects and
// then writes CONNECTED; the others connect by themselves once that is written. DISCONNECTING is followed at once: whoever wrote it waits for all.

// leaveWait is how long whoever follows waits for calls that are under way. The process applies nothing else meanwhile, of nobody, and answers nobody when that takes
// long (fence.Term): an HSM of one key store that hangs is not to keep all others from being used. What is called from then on does not get to the HSM in any case.
const leaveWait = 600 * time.Millisecond // more than a cluster takes to refuse what a hung call gives (node.closeTimeout), less than a lease

// Follow brings the connection to a key store in line with its record, whoever wrote it. When it returns nothing begins to use the keys of one that is not to be
// connected, and what did has ended, unless it hangs; one that is to be is connected by and by. A record that is older than one that this process acts on already
// changes nothing. Nothing is kept of k.
func (r *Registry) Follow(k *store.KeyStore) {
	r.Add(k)
	c := r.Connection(k.KeyStoreName)
	switch {
	case c == nil:
	case k.State == store.Connected:
		c.follow(k)
	default: // CONNECTING too: whose attempt it is asks for this revision of the record
		c.leave(k.Revision)
	}
}

// Names are the key stores that have a connection, connected or not.
func (r *Registry) Names() []store.KeyStoreName {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Collect(maps.Keys(r.stores))
}

// Leave ends the connection to a key store of which nothing is known any more, as Follow does; gone: there is no such key store.
func (r *Registry) Leave(n store.KeyStoreName, gone bool) {
	r.mu.Lock()
	c := r.stores[n]
	if gone {
		delete(r.stores, n)
	}
	r.mu.Unlock()
	if c != nil {
		c.leave(math.MaxInt64)
	}
}

// leave is disconnect for what was asked for before a revision of the record, without waiting for calls that hang.
func (c *Connection) leave(revision int64) {
	c.mu.Lock()
	if c.attempt != nil && c.attempt.revision < revision {
		c.attempt.end()
		c.attempt = nil
	}
	var ending func()
	if s := c.session.Load(); s != nil && s.revision < revision {
		c.session.Store(nil)
		closed := make(chan struct{})
		c.closing = append(slices.DeleteFunc(c.closing, isClosed), closed)
		ending = func() { defer close(closed); s.close() }
	}
	var closing []chan struct{}
	if c.session.Load() == nil {
		closing = slices.Clone(c.closing)
	}
	c.mu.Unlock()
	if ending != nil && !c.registry.goes(ending) {
		ending()
	}
	timer := time.NewTimer(leaveWait)
	defer timer.Stop()
	for _, closed := range closing {
		select {
		case <-closed:
		case <-timer.C:
			c.log().Warn("the key store is disconnected, and calls of its that began before are under way still")
			return
		}
	}
}

// left waits for the calls of former sessions, false if ctx ends before.
func (c *Connection) left(ctx context.Context) bool {
	c.mu.Lock()
	closing := slices.Clone(c.closing)
	c.mu.Unlock()
	for _, closed := range closing {
		select {
		case <-closed:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// follow connects a key store that another process has connected.
func (c *Connection) follow(k *store.KeyStore) {
	r := c.registry
	if s := c.session.Load(); s != nil {
		if c.external || s.cluster == r.clusterFor(k) {
			return // Add has renewed what there is to renew
		}
		c.leave(k.Revision)
	}
	c.mu.Lock()
	underWay := c.attempt != nil && c.attempt.ctx.Err() == nil
	c.mu.Unlock()
	if underWay {
		return
	}
	if c.external {
		if err := c.use(k); err != nil {
			c.log().Error("the external key store, which another process has connected, is not connected here", "error", err)
		}
		return
	}
	own := *k
	own.Secret = secret.New(bytes.Clone(k.Secret.Expose()))
	// What keeps this process from it need not be what keeps others: that it failed is not written.
	if a := c.begin(r.life, k.Revision); !r.goes(func() { r.again(c, a, &own, nil) }) {
		a.end()
		own.Secret.Wipe()
	}
}

// targetOf tells whether two records ask for one and the same proxy with one and the same credential. It says nothing of the secret.
func (r *Registry) targetOf(k *store.KeyStore) (sum [sha256.Size]byte) {
	mac := hmac.New(sha256.New, r.fingerprints[:])
	for _, b := range [][]byte{[]byte(k.Region), []byte(k.Endpoint), []byte(k.Path), []byte(k.AccessKeyID), k.Secret.Expose()} {
		_ = binary.Write(mac, binary.BigEndian, uint32(len(b)))
		mac.Write(b)
	}
	mac.Sum(sum[:0])
	return sum
}
