package dataplane

import (
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/xks"
)

// KeyStores are the custom key stores that this process has connections to. Safe for concurrent use.
type KeyStores interface {
	// Store is the connection to a key store, nil if there is no such store. It is the same for as long as the key store exists, connected or not, so that a
	// key's view can keep it.
	Store(region string, a keyid.Account, id string) KeyStore
}

// KeyStore is one of them. Errors of its methods wrap a *kmsapi.Error where the key store's documentation has an exception and a text for them; others are
// what CodeOf says. Safe for concurrent use.
type KeyStore interface {
	// Connected says whether keys of the store can be used. DisconnectCustomKeyStore is answered after it became false.
	Connected() bool
	// External says which of the methods below it has.
	External() bool
	// Charge takes one request from the rate of the key store (quota.CustomKeyStoreRate), false if it does not fit.
	Charge(now time.Time) bool

	// Run is hsm.Keys.Run on a member of a CloudHSM cluster that serves. copies are the key as each root of the cluster wraps it; j.Key is set to one of them.
	Run(j *hsm.KeyJob, copies []hsm.Key, now time.Time) error
	// Forget unloads keys.
	Forget(copies []hsm.Key)
	// Random fills b from an HSM of the cluster.
	Random(b []byte) error

	// Encrypt has an external key encrypt, and Decrypt decrypt, within half a second. Nothing that is passed to
	// them is used any more when they return; the slices of the result are the caller's.
	Encrypt(key string, m *xks.Metadata, plaintext, aad []byte) (xks.Sealed, error)
	Decrypt(key string, m *xks.Metadata, sealed *xks.Sealed, aad []byte) (plaintext []byte, err error)
}
