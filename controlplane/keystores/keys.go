package keystores

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/cluster"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
	"github.com/keyplane/keyplane/internal/xks"
)

// errTooFew and errStoreState are what CreateKey answers.
var (
	errTooFew     = kmsapi.New(kmsapi.CloudHsmClusterInvalidConfiguration, faultTooFew.Text)
	errStoreState = kmsapi.New(kmsapi.CustomKeyStoreInvalidState, "The custom key store is not connected.")
)

// clusterOf is the cluster of a connected CloudHSM key store.
func (r *Registry) clusterOf(n store.KeyStoreName) (*cluster.Cluster, error) {
	c := r.Connection(n)
	if c == nil {
		return nil, errStoreState
	}
	s := c.session.Load()
	if s == nil || s.cluster == nil {
		return nil, errStoreState
	}
	return s.cluster.hsms, nil
}

// ofCluster gives an error of a cluster its exception.
func (r *Registry) ofCluster(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, cluster.ErrDisconnected):
		return errStoreState
	case errors.Is(err, cluster.ErrTooFew):
		return fmt.Errorf("%w: %w", errTooFew, err)
	}
	return fmt.Errorf("%w: %w", kmsapi.E(r.cfg.Code(err)), err)
}

// NewKey implements controlplane.KeyStores.
func (r *Registry) NewKey(ctx context.Context, n store.KeyStoreName) ([]*snapshot.PrivateKey, *[32]byte, error) {
	c, err := r.clusterOf(n)
	if err != nil {
		return nil, nil, err
	}
	copies, images, err := c.NewKey(ctx)
	if err != nil {
		return nil, nil, r.ofCluster(err)
	}
	return stored(copies), images, nil
}

// Repair implements controlplane.KeyStores.
func (r *Registry) Repair(ctx context.Context, n store.KeyStoreName, copies []*snapshot.PrivateKey) (all []*snapshot.PrivateKey, added bool, err error) {
	c, err := r.clusterOf(n)
	if err != nil {
		return copies, false, err
	}
	keys, added, err := c.Repair(ctx, asKeys(copies))
	if added {
		copies = append(copies[:len(copies):len(copies)], stored(keys[len(copies):])...)
	}
	return copies, added, r.ofCluster(err)
}

// XksKey implements controlplane.KeyStores.
func (r *Registry) XksKey(ctx context.Context, n store.KeyStoreName, key string, m *xks.Metadata) error {
	c := r.Connection(n)
	if c == nil {
		return xks.Fail(xks.NotConnected, xks.AtKey, nil)
	}
	return c.call(xks.AtKey, func(p Proxy) error { return p.KeyMetadata(ctx, key, m) })
}

func asKeys(copies []*snapshot.PrivateKey) []hsm.Key {
	keys := make([]hsm.Key, len(copies))
	for i, p := range copies {
		keys[i] = hsm.Key{ID: p.ID, Spec: keyspec.AES256, Root: p.Root, Wrapped: p.Wrapped}
	}
	return keys
}

func stored(copies []hsm.Key) []*snapshot.PrivateKey {
	all := make([]*snapshot.PrivateKey, len(copies))
	for i := range copies {
		all[i] = &snapshot.PrivateKey{Root: copies[i].Root, Wrapped: copies[i].Wrapped}
	}
	return all
}
