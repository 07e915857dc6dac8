package snapshot

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"time"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// Record is what the control plane publishes of one KMS key: all that Build needs besides the HSM. Its salts are confidential though not
// secret (docs/ciphertext.md §5); whoever holds a Record calls Wipe when done.
type Record struct {
	ID                  keyid.ID
	Account             keyid.Account
	Region              string
	State               kmsapi.KeyState
	Spec, Usage, Origin string
	Revision            int64           // etcd mod revision of the key's record or of its policy, the later
	Versions            []VersionRecord // ascending by Number; none of a key that has a Private
	Current             int             // index into Versions of the version that encrypts
	Private             *PrivateKey     // of a key that is not SYMMETRIC_DEFAULT; nil while the material is missing
	Expires             time.Time       // when the first of the imported materials that the key needs does; zero: none does
	Store               *KeyStore       // of a key in a custom key store; nil: it is in none

	Facts  authz.KeyFacts    // what conditions can ask
	Policy []byte            // key policy, the document
	Bound  map[string]string // the unique ID of each principal that the policy names, by ARN, as it was when the policy was put; nil: the policy binds by ARN alone
}

// KeyStore says in which custom key store a KMS key is. Whether that is connected is not of the key's record: a key of one that is not is Unavailable,
// whatever its own state. It is shared and not changed.
type KeyStore struct {
	ID       string // cks-…
	XksKeyID string // of a key in an external key store: what its owner calls the key; "" in a CloudHSM key store
}

// Origins of keys in key stores.
const (
	OriginCloudHSM         = "AWS_CLOUDHSM"
	OriginExternalKeyStore = "EXTERNAL_KEY_STORE"
)

// External says that the key store is an external one: key versions are derived ones, and what they encrypt is encrypted again by the external key. In a
// CloudHSM key store they are resident in the cluster.
func (s *KeyStore) External() bool { return s != nil && s.XksKeyID != "" }

// PrivateKey is the one backing key of an asymmetric or HMAC KMS key as it is stored. It is shared and not changed.
type PrivateKey struct {
	ID       [32]byte // PrivateKeyID of what follows
	Root     [8]byte  // hsm.RootID of the token whose wrapping root wraps it
	Software bool     // used outside of the token
	Wrapped  []byte   // private key, or HMAC key, wrapped
	Public   []byte   // DER SubjectPublicKeyInfo; nil for HMAC
}

// VersionRecord is one backing key as it is stored (docs/ciphertext.md §3): derived, suite 0x01, or resident.
type VersionRecord struct {
	Number     uint32   // in the blob, from 1
	Root       [8]byte  // hsm.RootID of the derivation root
	Salt       [32]byte // S, made by the HSM; zero of the other suite
	MaterialID [64]byte // hex, as the API shows it

	Resident *PrivateKey // of suite 0x02: an AES-256 key of its own in the HSM; without a public half
	// Copies are the same key in the other HSMs of a CloudHSM cluster, each wrapped under a root of its own; none where HSMs share their root.
	Copies  []*PrivateKey
	Missing bool // of imported material that was deleted or has expired: no Salt, no Resident, the version cannot be used
}

// residentLabel and ResidentBlocks: the material ID of a resident backing key is made of its images of two fixed blocks, so that the same key material has
// the same ID wherever and whenever it comes in. The blocks are no input of the key derivation but by a chance of 2^-128: those are masked with K1.
const residentLabel = "keyplane resident key material v1"

// ResidentBlocks are the two blocks.
const ResidentBlocks = "keyplane resident" + " material id v1"

// ResidentMaterialID is the key material ID of a resident backing key whose images of ResidentBlocks are given (docs/ciphertext.md §4).
func ResidentMaterialID(a keyid.Account, id keyid.ID, images *[32]byte) [64]byte {
	b := appendKeyName(append(make([]byte, 0, 128), residentLabel...), a, id)
	sum := sha256.Sum256(append(b, images[:]...))
	var out [64]byte
	hex.Encode(out[:], sum[:])
	return out
}

// Wipe clears the salts.
func (r *Record) Wipe() {
	for i := range r.Versions {
		clear(r.Versions[i].Salt[:])
	}
}

var (
	// ErrNotFound says that there is no such KMS key or alias in this account and Region.
	ErrNotFound = errors.New("snapshot: no such key or alias")
	// ErrDamaged says that a record exists but cannot be trusted: it does not decode, or a salt or private key does not give its ID.
	ErrDamaged = errors.New("snapshot: the record is damaged")
)

// Check holds the record's invariants: at least one version, numbers ascending from 1 or more, Current among them, and every salt giving
// its material ID, every resident backing key its own; of a key that is not SYMMETRIC_DEFAULT no version but a private key that gives its ID. Material is
// missing only of keys that nobody can use in their state, and of versions after Current, which wait for a rotation: related keys in other Regions have
// those before their material is imported. ErrDamaged otherwise.
func (r *Record) Check() error {
	if s := keyspec.Of(r.Spec); s != keyspec.None {
		return r.checkPrivate(s)
	}
	if r.Private != nil || r.State.String() == "" || !r.stored() {
		return ErrDamaged
	}
	if len(r.Versions) == 0 {
		if r.mayMiss() && r.Current == -1 {
			return nil
		}
		return ErrDamaged
	}
	if r.Current < 0 || r.Current >= len(r.Versions) {
		return ErrDamaged
	}
	var last uint32
	for i := range r.Versions {
		v := &r.Versions[i]
		if v.Number <= last || !r.whole(i) {
			return ErrDamaged
		}
		last = v.Number
	}
	return nil
}

// mayMiss says that a key in this state can be without its material.
func (r *Record) mayMiss() bool {
	switch r.State {
	case kmsapi.StatePendingImport, kmsapi.StatePendingDeletion, kmsapi.StatePendingReplicaDeletion, kmsapi.StateCreating:
		return true
	}
	return false
}

// whole says that a version has the backing key that its ID names. A resident one's material ID can only be checked with the HSM.
func (r *Record) whole(at int) bool {
	v := &r.Versions[at]
	if len(v.Copies) > 0 && (r.Store == nil || v.Resident == nil) {
		return false
	}
	switch {
	case v.Missing:
		return (r.mayMiss() || at > r.Current) && v.Resident == nil && v.Salt == [32]byte{}
	case v.Resident != nil:
		roots := [][8]byte{v.Resident.Root}
		for _, p := range v.Copies {
			if p == nil || slices.Contains(roots, p.Root) || !r.wrapped(p) {
				return false
			}
			roots = append(roots, p.Root)
		}
		return v.Salt == [32]byte{} && r.wrapped(v.Resident)
	}
	return v.MaterialID == MaterialID(r.Account, r.ID, v.Number, &v.Salt)
}

// wrapped says that a resident backing key, or a copy of it, has the ID that goes with it.
func (r *Record) wrapped(p *PrivateKey) bool {
	return len(p.Wrapped) > 0 && len(p.Public) == 0 && p.ID == PrivateKeyID(r.Account, r.ID, r.Spec, r.Usage, p)
}

// stored says that what is in a key store, and nothing else, says in which: of a CloudHSM one, keys whose backing keys are resident, of an external one,
// derived ones.
func (r *Record) stored() bool {
	switch r.Origin {
	case OriginCloudHSM:
		return r.Store != nil && r.Store.ID != "" && !r.Store.External() && len(r.Versions) == 1 && r.Versions[0].Resident != nil
	case OriginExternalKeyStore:
		return r.Store.External() && r.Store.ID != "" && len(r.Versions) == 1 && r.Versions[0].Resident == nil && !r.Versions[0].Missing
	}
	return r.Store == nil
}

func (r *Record) checkPrivate(s keyspec.Spec) error {
	p := r.Private
	switch {
	case r.State.String() == "" || r.Store != nil || len(r.Versions) != 0 || s.Info().Usages&keyspec.UsageOf(r.Usage) == 0:
	case p == nil && r.mayMiss():
		return nil
	case p == nil || len(p.Wrapped) == 0 || (len(p.Public) == 0) != (s.Info().Public == 0):
	case p.ID != PrivateKeyID(r.Account, r.ID, r.Spec, r.Usage, p):
	default:
		return nil
	}
	return ErrDamaged
}

// materialIDLabel separates this hash from every other use of SHA-256 (docs/ciphertext.md §4).
const materialIDLabel = "keyplane key material v1"

// MaterialID is the key material ID of a derived backing key, in lower-case hex (docs/ciphertext.md §4).
func MaterialID(a keyid.Account, id keyid.ID, version uint32, salt *[32]byte) [64]byte {
	var in [len(materialIDLabel) + keyNameBytes + 4 + 32]byte
	b := append(in[:0], materialIDLabel...)
	b = appendKeyName(b, a, id)
	b = binary.BigEndian.AppendUint32(b, version)
	b = append(b, salt[:]...)
	sum := sha256.Sum256(b)
	clear(in[:])
	var out [64]byte
	hex.Encode(out[:], sum[:])
	return out
}

// privateKeyIDLabel does the same for the IDs of private keys.
const privateKeyIDLabel = "keyplane private key v1"

// PrivateKeyID names what is stored of a private or HMAC key: SHA-256 of the label, the account (six bytes, big-endian), the form of the key ID
// (one byte), its UUID, the key spec and the key usage, each with a zero byte after it, the root, 1 of a software key else 0, the length of what is
// wrapped (four bytes, big-endian), that, and the public key to the end. A wrapped key that was moved to another KMS key, or given another public
// key, spec or usage, does not have the ID that is stored with it. It is no authentication: whoever writes records can make it.
func PrivateKeyID(a keyid.Account, id keyid.ID, spec, usage string, p *PrivateKey) (sum [32]byte) {
	h := sha256.New()
	b := appendKeyName(append(make([]byte, 0, 128), privateKeyIDLabel...), a, id)
	b = append(append(b, spec...), 0)
	b = append(append(b, usage...), 0)
	b = append(b, p.Root[:]...)
	if p.Software {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	h.Write(binary.BigEndian.AppendUint32(b, uint32(len(p.Wrapped))))
	h.Write(p.Wrapped)
	h.Write(p.Public)
	h.Sum(sum[:0])
	return sum
}

const keyNameBytes = 6 + 1 + 16

// appendKeyName appends the account, which is below 10^12 and hence six bytes, and the key ID with its form.
func appendKeyName(b []byte, a keyid.Account, id keyid.ID) []byte {
	var account [8]byte
	binary.BigEndian.PutUint64(account[:], uint64(a))
	b = append(b, account[2:]...)
	if id.MultiRegion {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	return append(b, id.UUID[:]...)
}
