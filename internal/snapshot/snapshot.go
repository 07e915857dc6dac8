// Package snapshot holds what the data plane knows of a KMS key: an immutable view that is built from the control plane's records and
// never changed afterwards, until nobody uses it any more and it is wiped. A newer view is a new Key.
package snapshot

import (
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

	Policy *policy.Policy // key policy, compiled
	Facts  authz.KeyFacts // what conditions can ask
}

// Version is one backing key of a symmetric KMS key (docs/ciphertext.md §3, suite 0x01).
type Version struct {
	Number     uint32   // in the blob, from 1
	Root       [8]byte  // hsm.RootID of the derivation root
	Offset     [16]byte // chain(S) xor K1(R)
	MaterialID [64]byte // hex, as the API shows it
}

// Wipe clears the offsets. Nobody may use the view any more.
func (k *Key) Wipe() {
	for i := range k.Versions {
		clear(k.Versions[i].Offset[:])
	}
}

// Version returns the backing key with the number, or nil.
func (k *Key) Version(number uint32) *Version {
	// Versions are in ascending order, almost always from 1 without gaps.
	if i := int(number) - 1; i >= 0 && i < len(k.Versions) && k.Versions[i].Number == number {
		return &k.Versions[i]
	}
	for i := range k.Versions {
		if k.Versions[i].Number == number {
			return &k.Versions[i]
		}
	}
	return nil
}
