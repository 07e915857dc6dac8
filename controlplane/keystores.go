package controlplane

import (
	"bytes"
	"context"
	"slices"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
	"github.com/keyplane/keyplane/internal/xks"
)

// KeyStores are this process's connections to custom key stores. A connection is there from Add, or the start, to Remove, connected or not: it is what data
// planes ask. Safe for concurrent use; what takes more than an instant has a context. A keystores.Registry is one.
type KeyStores interface {
	// Cluster is the CloudHSM cluster with the ID, nil if none is configured.
	Cluster(id string) *Cluster
	// Add makes the connection of a key store, or gives it other properties. The record's secret is in clear, and not kept in any other place.
	Add(k *store.KeyStore)
	// Try sees whether a key store with these properties could be connected, before they are committed: the health of the proxy of an external one, how many
	// HSMs of a cluster answer. The password of a cluster is not tried, but for UpdateCustomKeyStore where no HSM has come up yet: Roots are known afterwards.
	// operation is the API's, requestID that of the call. A *StoreFault says why not.
	Try(ctx context.Context, k *store.KeyStore, operation, requestID string) error
	// Connect connects, and keeps connected until Disconnect, also through a time without the HSMs or the proxy. A *StoreFault says why it does not.
	Connect(ctx context.Context, k *store.KeyStore, requestID string) error
	// Disconnect: when it returns nothing uses the store's keys any more. It is no error that the store is not connected.
	Disconnect(n store.KeyStoreName)
	// Remove is for a key store that was deleted.
	Remove(n store.KeyStoreName)
	// Connected says whether keys of the store can be used.
	Connected(n store.KeyStoreName) bool

	// NewKey makes an AES-256 key in a connected cluster: on each member that can be reached, and those are two at least. One PrivateKey for each different root.
	// images are as Keys.Images'.
	NewKey(ctx context.Context, n store.KeyStoreName) (copies []*snapshot.PrivateKey, images *[32]byte, err error)
	// Repair adds what members lack of a key that others have; added is false if nothing was to add, or could be.
	Repair(ctx context.Context, n store.KeyStoreName, copies []*snapshot.PrivateKey) (all []*snapshot.PrivateKey, added bool, err error)
	// XksKey asks the proxy of an external key store whether a key can be used for a KMS key (GetKeyMetadata). A *kmsapi.Error, or another error.
	XksKey(ctx context.Context, n store.KeyStoreName, key string, m *xks.Metadata) error
}

// Cluster is a CloudHSM cluster of the configuration.
type Cluster struct {
	ID          string
	TrustAnchor []byte          // the certificate, DER
	Accounts    []keyid.Account // whose key stores can name it; none: all accounts'
	Roots       []byte          // of the members that have come up, 8 bytes each: SharesRoot; nil while none has
}

// SharesRoot says that two clusters have a root in common (Cluster.Roots), and so hold keys of each other: which members a process has seen is by chance.
func SharesRoot(a, b []byte) bool {
	for x := range slices.Chunk(a, rootLen) {
		for y := range slices.Chunk(b, rootLen) {
			if len(x) == rootLen && bytes.Equal(x, y) {
				return true
			}
		}
	}
	return false
}

const rootLen = 8

// StoreFault is why a key store does not come up.
type StoreFault struct {
	Connection string      // ConnectionErrorCode of ConnectCustomKeyStore
	Code       kmsapi.Code // what Create- and UpdateCustomKeyStore answer
	Text       string
}

func (f *StoreFault) Error() string { return f.Connection + ": " + f.Text }
