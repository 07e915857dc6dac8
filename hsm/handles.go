package hsm

import (
	"sync"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// handles keeps the keys that are loaded in one token, or in software: at most max, the least recently used go first. A key is loaded once for
// all who want it at the same time, and unloaded when it has left and its last user is done. Keys of another generation of the token are never
// lent.
type handles struct {
	max        int
	load       func(*Key) (LoadedKey, error)
	unload     func(LoadedKey)
	generation func() uint64

	mu             sync.Mutex // guards the rest, and users, gone and the links of every handle; not held during load and unload
	byName         map[handleName]*handle
	newest, oldest *handle
	loads, failed  uint64 // calls of load
	evicted, lost  uint64 // to make room; because the token did not know them any more
}

// handleName names a loaded key. The spec is in it so that a key is never used as one of another spec.
type handleName struct {
	id   [32]byte
	spec keyspec.Spec
}

// handle is a loaded key, or one that is being loaded.
type handle struct {
	name   handleName
	loaded chan struct{} // closed when key and err are set
	key    LoadedKey
	err    error

	ready        bool // loaded is closed
	users        int
	gone         bool // no longer lent
	lost         bool // the token has it no more
	newer, older *handle
}

func newHandles(max int, load func(*Key) (LoadedKey, error), unload func(LoadedKey), generation func() uint64) *handles {
	return &handles{max: max, load: load, unload: unload, generation: generation, byName: map[handleName]*handle{}}
}

// waited is the error of a load that somebody else made, and does what is to be done about.
type waited struct{ cause error }

func (w *waited) Error() string { return w.cause.Error() }
func (w *waited) Unwrap() error { return w.cause }

// acquire lends the loaded key until release. An error of the load is also that of everybody who waited for it, as a waited, and is not kept.
func (c *handles) acquire(k *Key) (*handle, error) {
	name := handleName{k.ID, k.Spec}
	var leaving *handle // a list by older
	c.mu.Lock()
	h := c.byName[name]
	if h != nil && h.ready && h.key.Generation != c.generation() {
		leaving = c.remove(h, leaving)
		h = nil
	}
	if h != nil {
		h.users++
		c.unlink(h)
		c.link(h)
		ready := h.ready
		c.mu.Unlock()
		if !ready {
			<-h.loaded
		}
		if h.err != nil {
			err := h.err
			c.release(h)
			return nil, &waited{err}
		}
		return h, nil
	}
	for victim := c.oldest; victim != nil && len(c.byName) >= c.max; {
		next := victim.newer
		if victim.users == 0 { // where all are in use there are more than max for a while
			leaving = c.remove(victim, leaving)
			c.evicted++
		}
		victim = next
	}
	h = &handle{name: name, users: 1, loaded: make(chan struct{}), err: ErrUnavailable} // the error stays where load panics
	c.byName[name] = h
	c.link(h)
	c.loads++
	c.mu.Unlock()

	c.unloadAll(leaving)
	defer c.landed(h)
	h.key, h.err = c.load(k)
	if h.err != nil {
		return nil, h.err
	}
	return h, nil
}

// has says that the key is loaded, so that acquire will most likely not wait.
func (c *handles) has(k *Key) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.byName[handleName{k.ID, k.Spec}]
	return h != nil && h.ready && h.key.Generation == c.generation()
}

// landed ends the load of h. Where it failed, the loader's use ends too.
func (c *handles) landed(h *handle) {
	c.mu.Lock()
	h.ready = true
	if h.err != nil {
		c.failed++
		c.remove(h, nil)
		h.users--
	}
	c.mu.Unlock()
	close(h.loaded)
}

// release ends a use.
func (c *handles) release(h *handle) {
	c.mu.Lock()
	h.users--
	last := h.users == 0 && h.gone && h.err == nil && !h.forsaken()
	c.mu.Unlock()
	if last {
		c.unload(h.key)
	}
}

// forsaken says that there is nothing to unload: the token may have given the number to another object since.
func (h *handle) forsaken() bool { return h.lost && h.key.Object == nil }

// lose is for a key that the token does not know any more: the next user loads it again. The caller still releases it.
func (c *handles) lose(h *handle) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h.lost = true
	if !h.gone {
		c.lost++
		c.remove(h, nil)
	}
}

// forget takes a key out, in whatever spec it was loaded.
func (c *handles) forget(id [32]byte) {
	var leaving *handle
	c.mu.Lock()
	for s := keyspec.None + 1; s.Info().Family != 0; s++ {
		if h := c.byName[handleName{id, s}]; h != nil {
			leaving = c.remove(h, leaving)
		}
	}
	c.mu.Unlock()
	c.unloadAll(leaving)
}

// clear takes all keys out.
func (c *handles) clear() {
	var leaving *handle
	c.mu.Lock()
	for c.oldest != nil {
		leaving = c.remove(c.oldest, leaving)
	}
	c.mu.Unlock()
	c.unloadAll(leaving)
}

func (c *handles) unloadAll(leaving *handle) {
	for ; leaving != nil; leaving = leaving.older {
		c.unload(leaving.key)
	}
}

// remove takes h out and puts it in front of the list of those to unload, if nobody uses it. It needs mu.
func (c *handles) remove(h, leaving *handle) *handle {
	if h.gone {
		return leaving
	}
	h.gone = true
	delete(c.byName, h.name)
	c.unlink(h)
	if h.users > 0 || !h.ready || h.err != nil || h.forsaken() {
		return leaving
	}
	h.older = leaving
	return h
}

// link makes h the newest. It and unlink need mu.
func (c *handles) link(h *handle) {
	h.older, h.newer = c.newest, nil
	if c.newest != nil {
		c.newest.newer = h
	} else {
		c.oldest = h
	}
	c.newest = h
}

func (c *handles) unlink(h *handle) {
	if h.newer != nil {
		h.newer.older = h.older
	} else {
		c.newest = h.older
	}
	if h.older != nil {
		h.older.newer = h.newer
	} else {
		c.oldest = h.newer
	}
	h.newer, h.older = nil, nil
}

// HandleStats counts loaded keys.
type HandleStats struct {
	Loaded  int    `json:"loaded"` // now
	Loads   uint64 `json:"loads"`  // failed ones too
	Failed  uint64 `json:"failed"`
	Evicted uint64 `json:"evicted"` // to make room
	Lost    uint64 `json:"lost"`    // the token did not know them any more
}

func (c *handles) stats() HandleStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return HandleStats{Loaded: len(c.byName), Loads: c.loads, Failed: c.failed, Evicted: c.evicted, Lost: c.lost}
}
