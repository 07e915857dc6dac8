// Package snapshot holds what the data plane knows of a KMS key: an immutable view that is built from the control plane's records and
// never changed afterwards, until nobody uses it any more and it is wiped. A newer view is a new Key.
package snapshot

import (
	"time"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
)

// Key is the view of one KMS key at one revision. All fields are read-only until Wipe.
type Key struct {
	ID       keyid.ID
	Account  keyid.Account
	Region   string
	ARN      []byte // arn:aws:kms:<region>:<account>:key/<id>
	State    kmsapi.KeyState
	Spec     string // SYMMETRIC_DEFAULT, …
	Usage    string // ENCRYPT_DECRYPT, …
	Revision int64  // etcd mod revision of the record
	Versions []Version
	Current  int         // index into Versions of the version that encrypts
	Private  *PrivateKey // of a key that is not SYMMETRIC_DEFAULT, which has no Versions
	Expires  time.Time   // when the first of the imported materials that the key needs does; zero: none does
	Store    *KeyStore   // of a key in a custom key store; shared and not changed

	Policy *policy.Policy // key policy, compiled
	Facts  authz.KeyFacts // what conditions can ask
}

// Version is one backing key of a symmetric KMS key (docs/ciphertext.md §3). Of a resident one the data plane keeps the rest elsewhere.
type Version struct {
	Number     uint32   // in the blob, from 1
	Resident   bool     // of suite 0x02: no Root, no Offset
	Missing    bool     // of imported material that is not there; Resident
	Root       [8]byte  // hsm.RootID of the derivation root
	Offset     [16]byte // chain(S) xor K1(R)
	MaterialID [64]byte // hex, as the API shows it
}

// StateAt is the key's state at a time: imported material is there until it expires, whenever the control plane comes to note that.
func (k *Key) StateAt(now time.Time) kmsapi.KeyState {
	if k.Expires.IsZero() || now.Before(k.Expires) {
		return k.State
	}
	switch k.State {
	case kmsapi.StateEnabled, kmsapi.StateDisabled, kmsapi.StateUpdating:
		return kmsapi.StatePendingImport
	}
	return k.State
}

// Wipe clears the offsets. Nobody may use the view any more.
func (k *Key) Wipe() {
	for i := range k.Versions {
		clear(k.Versions[i].Offset[:])
	}
}

// Version returns the backing key with the number, or nil.
func (k *Key) Version(number uint32) *Version {
	if i := k.Index(number); i >= 0 {
		return &k.Versions[i]
	}
	return nil
}

// Index is where in Versions the backing key with the number is, or -1.
func (k *Key) Index(number uint32) int {
	// Versions are in ascending order, almost always from 1 without gaps.
	if i := int(number) - 1; i >= 0 && i < len(k.Versions) && k.Versions[i].Number == number {
		return i
	}
	for i := range k.Versions {
		if k.Versions[i].Number == number {
			return i
		}
	}
	return -1
}
