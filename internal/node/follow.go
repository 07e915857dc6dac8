package node

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/keyplane/keyplane/controlplane"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
)

// How a process of several learns of what the others change. A follower.Follower calls reload first, and apply with all changes from then on. This is the one place
// that spreads them over the parts; which parts there are depends on the process.

// apply takes changes in. When it returns nil no request that arrives later is answered from what was before, whichever part it asks, and nothing uses the keys of a
// key store that is to be disconnected, unless its HSM hangs. It can be called again with the same changes.
func (n *Node) apply(ctx context.Context, changes []store.Change) error {
	if n.barrier != nil {
		n.barrier.Apply(changes)
	}
	if n.principals != nil {
		if err := n.principals.Apply(ctx, changes); err != nil {
			return err
		}
	}
	for _, at := range n.regions {
		if at.limits == nil {
			continue
		}
		if err := at.limits.Apply(ctx, changes); err != nil {
			return err
		}
	}
	for i := range changes {
		n.applyData(&changes[i])
	}
	return n.applyKeyStores(ctx, changes)
}

// applyData tells the data plane's caches of one change.
func (n *Node) applyData(c *store.Change) {
	if c.What == store.DamagedChanged {
		n.log.Error("something was written to the store that no record can be", "key", c.Name, "revision", c.Revision)
	}
	if n.data == nil {
		return
	}
	switch c.What {
	case store.KeyChanged:
		n.data.KeyChanged(c.Region, c.Account, c.ID)
	case store.AliasChanged:
		n.data.AliasChanged(c.Region, c.Account, c.Name)
	case store.GrantsChanged:
		switch {
		case c.Name == "" || c.GrantID == "": // of everybody, or more than one
			n.data.GrantsChanged(c.Region, c.Account, c.ID, c.Name)
		case c.Gone:
			n.data.GrantRemoved(c.Region, c.Account, c.ID, c.Name, c.GrantID)
		case c.Grant != nil:
			n.data.GrantMade(c.Region, c.Account, c.ID, c.Name, c.Grant)
		default:
			n.data.GrantsChanged(c.Region, c.Account, c.ID, c.Name)
		}
	}
}

// applyKeyStores follows the records of custom key stores.
func (n *Node) applyKeyStores(ctx context.Context, changes []store.Change) error {
	if n.keyStores == nil {
		return nil
	}
	var names []store.KeyStoreName
	for i := range changes {
		c := &changes[i]
		name := store.KeyStoreName{Region: c.Region, Account: c.Account, ID: c.Name}
		if c.What == store.KeyStoreChanged && n.serves(c.Region) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return n.followKeyStores(ctx, names)
}

// serves says whether a Region is one of this process.
func (n *Node) serves(region string) bool { return slices.Contains(n.cfg.AllRegions(), region) }

// keyStoreReaders is how many records of key stores are read at a time, and connections ended: each may take keystores' leaveWait.
const keyStoreReaders = 16

// followKeyStores reads records and brings the connections in line with them. One that cannot be trusted disconnects: of what it has to be nothing is known.
func (n *Node) followKeyStores(ctx context.Context, names []store.KeyStoreName) error {
	var mu sync.Mutex
	var failed error
	var readers sync.WaitGroup
	next := make(chan store.KeyStoreName)
	for range min(keyStoreReaders, len(names)) {
		readers.Go(func() {
			for name := range next {
				if err := n.followKeyStore(ctx, name); err != nil {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
				}
			}
		})
	}
	for _, name := range names {
		next <- name
	}
	close(next)
	readers.Wait()
	return failed
}

func (n *Node) followKeyStore(ctx context.Context, name store.KeyStoreName) error {
	k, err := n.store.OpenKeyStore(ctx, name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		n.keyStores.Leave(name, true)
	case errors.Is(err, store.ErrDamaged):
		n.log.Error("a custom key store whose record is damaged is disconnected here", "region", name.Region, "key_store", name.ID, "error", err)
		n.keyStores.Leave(name, false)
	case err != nil:
		return err
	default:
		n.keyStores.Follow(k)
		k.Secret.Wipe()
	}
	return nil
}

// reload takes in the whole store, because changes may be missing. Nobody is answered meanwhile: the lease has run out.
func (n *Node) reload(ctx context.Context) error {
	if err := n.store.CheckFloor(ctx); err != nil { // it may be another store by now, or an older one
		return err
	}
	if n.barrier != nil {
		if err := n.barrier.Load(ctx); err != nil {
			return err
		}
	}
	if n.principals != nil {
		if err := n.principals.Load(ctx); err != nil {
			return err
		}
	}
	for _, at := range n.regions {
		if at.limits == nil {
			continue
		}
		if err := at.limits.Load(ctx); err != nil {
			return err
		}
	}
	if n.data != nil {
		n.data.AllChanged()
	}
	if n.keyStores == nil {
		return nil
	}
	names := n.keyStores.Names()
	for _, region := range n.cfg.AllRegions() {
		list, err := n.store.KeyStores(ctx, region)
		if err != nil && !errors.Is(err, store.ErrDamaged) {
			return err
		}
		for _, k := range list {
			if !slices.Contains(names, k.KeyStoreName) {
				names = append(names, k.KeyStoreName)
			}
		}
	}
	return n.followKeyStores(ctx, names)
}

// spread waits until every process has what this one has read and written of the store, or must not answer any more: fence.Wait at most. It is what iam, quotas and
// the Publisher of a control plane of several wait for before they answer. A write of unknown outcome that is published a second time, after store.Barrier, is
// waited for too: the barrier's own write came after it and was answered, so that store.Committed is not before it.
func (n *Node) spread() {
	if n.barrier != nil {
		n.barrier.Wait(context.Background(), n.store.Committed())
	}
}

// waiting is the Publisher of a control plane of several processes: what it is told of is in the store, from where all processes, this one too, have it.
type waiting struct{ n *Node }

func (p waiting) KeyChanged(keyid.Account, keyid.ID)                      { p.n.spread() }
func (p waiting) AliasChanged(keyid.Account, string)                      { p.n.spread() }
func (p waiting) GrantsChanged(keyid.Account, keyid.ID, string)           { p.n.spread() }
func (p waiting) GrantMade(keyid.Account, keyid.ID, string, *authz.Grant) { p.n.spread() }
func (p waiting) GrantRemoved(keyid.Account, keyid.ID, string, string)    { p.n.spread() }
func (p waiting) AccessKeyChanged(string)                                 { p.n.spread() }
func (p waiting) Spread()                                                 { p.n.spread() }

var _ controlplane.Publisher = waiting{}
