package store

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// Key is the record of one KMS key. Times have millisecond resolution.
type Key struct {
	KeyName
	Description  string
	State        kmsapi.KeyState
	Resume       kmsapi.KeyState // what an Unavailable or Updating key becomes when it is back; 0 otherwise
	Spec         string          // SYMMETRIC_DEFAULT, …
	Usage        string          // ENCRYPT_DECRYPT, …
	Origin       string          // AWS_KMS, …
	Created      time.Time
	DeletionDate time.Time            // zero unless the state is PendingDeletion
	Versions     []Version            // ascending by Number; none of a key that has a Private
	Current      uint32               // Number of the version that encrypts
	Private      *snapshot.PrivateKey // of a key that is not SYMMETRIC_DEFAULT; shared by the copies of a Key, and not changed
	Tags         []Tag                // ascending by Key, no key twice
	Aliases      []string             // "alias/…", ascending; the aliases that point at this key
	Revision     int64                // etcd mod revision; not part of the record
	Policy       Policy               // a record of its own; shared by the copies of a Key, and not changed
}

// Version is one derived backing key.
type Version struct {
	snapshot.VersionRecord
	Created time.Time
}

// Tag is one tag of a key.
type Tag struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Wipe clears the salts. The other fields stay readable; a private key is wrapped, and no secret.
func (k *Key) Wipe() {
	for i := range k.Versions {
		clear(k.Versions[i].Salt[:])
	}
}

// SetTag adds a tag or overwrites the one with the same key.
func (k *Key) SetTag(t Tag) {
	i, found := slices.BinarySearchFunc(k.Tags, t, byTagKey)
	if found {
		k.Tags[i] = t
		return
	}
	k.Tags = slices.Insert(k.Tags, i, t)
}

// RemoveTag removes the tag with the key, if there is one.
func (k *Key) RemoveTag(key string) {
	if i, found := slices.BinarySearchFunc(k.Tags, Tag{Key: key}, byTagKey); found {
		k.Tags = slices.Delete(k.Tags, i, i+1)
	}
}

func byTagKey(a, b Tag) int { return strings.Compare(a.Key, b.Key) }

func (k *Key) addAlias(name string) {
	if i, found := slices.BinarySearch(k.Aliases, name); !found {
		k.Aliases = slices.Insert(k.Aliases, i, name)
	}
}

func (k *Key) removeAlias(name string) {
	if i, found := slices.BinarySearch(k.Aliases, name); found {
		k.Aliases = slices.Delete(k.Aliases, i, i+1)
	}
}

// clone copies what a change function may change. Versions share no memory with the original either, so that both can be wiped.
func (k *Key) clone() *Key {
	c := *k
	c.Versions = slices.Clone(k.Versions)
	c.Tags = slices.Clone(k.Tags)
	c.Aliases = slices.Clone(k.Aliases)
	return &c
}

// check holds the record's own invariants, before it is written and after it is read.
func (k *Key) check() error {
	r := k.record()
	defer r.Wipe()
	if r.Check() != nil {
		return ErrDamaged
	}
	pending := k.State == kmsapi.StatePendingDeletion
	if pending == k.DeletionDate.IsZero() || k.Spec == "" || k.Usage == "" || k.Origin == "" || k.Created.IsZero() {
		return ErrDamaged
	}
	if len(k.Tags) > kmsapi.TagsPerKeyMax || len(k.Aliases) > kmsapi.AliasesPerKeyMost {
		return ErrDamaged
	}
	for i := 1; i < len(k.Tags); i++ {
		if k.Tags[i-1].Key >= k.Tags[i].Key {
			return ErrDamaged
		}
	}
	for i := 1; i < len(k.Aliases); i++ {
		if k.Aliases[i-1] >= k.Aliases[i] {
			return ErrDamaged
		}
	}
	return nil
}

// Facts is what conditions can ask about the key.
func (k *Key) Facts() authz.KeyFacts {
	f := authz.KeyFacts{
		Account: k.Account, Spec: k.Spec, Usage: k.Usage, Origin: k.Origin, MultiRegion: k.ID.MultiRegion, Aliases: slices.Clone(k.Aliases),
	}
	for _, t := range k.Tags {
		f.Tags = append(f.Tags, authz.Tag(t))
	}
	return f
}

// record is the part of the key that the data plane gets. It has its own copies of the salts. Current is -1 if no version has the
// current number, which Check refuses of a key that has versions.
func (k *Key) record() *snapshot.Record {
	r := &snapshot.Record{
		ID: k.ID, Account: k.Account, Region: k.Region, State: k.State, Spec: k.Spec, Usage: k.Usage, Origin: k.Origin,
		Revision: max(k.Revision, k.Policy.Revision), Versions: make([]snapshot.VersionRecord, len(k.Versions)), Current: -1,
		Private: k.Private, Facts: k.Facts(), Policy: k.Policy.Document, Bound: k.Policy.Bound,
	}
	for i := range k.Versions {
		r.Versions[i] = k.Versions[i].VersionRecord
		if k.Versions[i].Number == k.Current {
			r.Current = i
		}
	}
	return r
}

// recordFormat is the first byte of every value: the version of the JSON that follows.
const recordFormat = 1

// storedKey is a key record's JSON. Times are milliseconds since the epoch.
type storedKey struct {
	Region       string          `json:"region"`
	Account      string          `json:"account"`
	ID           string          `json:"id"`
	Description  string          `json:"description,omitzero"`
	State        string          `json:"state"`
	Resume       string          `json:"resume,omitzero"`
	Spec         string          `json:"spec"`
	Usage        string          `json:"usage"`
	Origin       string          `json:"origin"`
	Created      int64           `json:"created"`
	DeletionDate int64           `json:"deletionDate,omitzero"`
	Versions     []storedVersion `json:"versions,omitempty"`
	Current      uint32          `json:"current,omitzero"`
	Private      *storedPrivate  `json:"private,omitzero"`
	Tags         []Tag           `json:"tags,omitempty"`
	Aliases      []string        `json:"aliases,omitempty"`
}

type storedVersion struct {
	Number     uint32 `json:"number"`
	Root       string `json:"root"` // hex
	Salt       []byte `json:"salt"`
	MaterialID string `json:"materialId"`
	Created    int64  `json:"created"`
}

// storedPrivate is the backing key of an asymmetric or HMAC KMS key.
type storedPrivate struct {
	Root     string `json:"root"` // hex
	Software bool   `json:"software,omitzero"`
	Wrapped  []byte `json:"wrapped"`
	Public   []byte `json:"public,omitempty"` // DER; none of HMAC keys
	ID       string `json:"id"`               // hex
}

func encodeKey(k *Key) ([]byte, error) {
	if err := k.check(); err != nil {
		return nil, err
	}
	st := storedKey{
		Region: k.Region, Account: k.Account.String(), ID: k.ID.String(), Description: k.Description, State: k.State.String(),
		Resume: k.Resume.String(), Spec: k.Spec, Usage: k.Usage, Origin: k.Origin, Created: k.Created.UnixMilli(),
		Current: k.Current, Tags: k.Tags, Aliases: k.Aliases,
	}
	if !k.DeletionDate.IsZero() {
		st.DeletionDate = k.DeletionDate.UnixMilli()
	}
	for i := range k.Versions {
		v := &k.Versions[i]
		st.Versions = append(st.Versions, storedVersion{
			Number: v.Number, Root: hex.EncodeToString(v.Root[:]), Salt: v.Salt[:], MaterialID: string(v.MaterialID[:]),
			Created: v.Created.UnixMilli(),
		})
	}
	if p := k.Private; p != nil {
		st.Private = &storedPrivate{
			Root: hex.EncodeToString(p.Root[:]), Software: p.Software, Wrapped: p.Wrapped, Public: p.Public, ID: hex.EncodeToString(p.ID[:]),
		}
	}
	return encode(&st)
}

func decodeKey(n KeyName, value []byte, revision int64) (*Key, error) {
	var st storedKey
	if err := decode(value, &st); err != nil {
		return nil, err
	}
	defer func() {
		for i := range st.Versions {
			clear(st.Versions[i].Salt)
		}
	}()
	if st.Region != n.Region || st.Account != n.Account.String() || st.ID != n.ID.String() {
		return nil, ErrDamaged
	}
	k := &Key{
		KeyName: n, Description: st.Description, State: kmsapi.KeyStateOf(st.State), Resume: kmsapi.KeyStateOf(st.Resume),
		Spec: st.Spec, Usage: st.Usage, Origin: st.Origin, Created: time.UnixMilli(st.Created).UTC(),
		Current: st.Current, Tags: st.Tags, Aliases: st.Aliases, Revision: revision,
	}
	if st.DeletionDate != 0 {
		k.DeletionDate = time.UnixMilli(st.DeletionDate).UTC()
	}
	for i := range st.Versions {
		sv := &st.Versions[i]
		v := Version{Created: time.UnixMilli(sv.Created).UTC()}
		v.Number = sv.Number
		if !decodeHex(v.Root[:], sv.Root) || len(sv.Salt) != len(v.Salt) || len(sv.MaterialID) != len(v.MaterialID) {
			return nil, ErrDamaged
		}
		copy(v.Salt[:], sv.Salt)
		copy(v.MaterialID[:], sv.MaterialID)
		k.Versions = append(k.Versions, v)
	}
	if sp := st.Private; sp != nil {
		p := &snapshot.PrivateKey{Software: sp.Software, Wrapped: sp.Wrapped, Public: sp.Public}
		if !decodeHex(p.Root[:], sp.Root) || !decodeHex(p.ID[:], sp.ID) {
			k.Wipe()
			return nil, ErrDamaged
		}
		k.Private = p
	}
	if err := k.check(); err != nil {
		k.Wipe()
		return nil, err
	}
	return k, nil
}

func decodeHex(dst []byte, s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && copy(dst, b) == len(dst) && len(b) == len(dst)
}

// Alias is the record of one alias.
type Alias struct {
	Name             string // "alias/…"
	Target           keyid.ID
	Created, Updated time.Time
	Revision         int64 // etcd mod revision; not part of the record
}

type storedAlias struct {
	Name    string `json:"name"`
	Target  string `json:"target"`
	Created int64  `json:"created"`
	Updated int64  `json:"updated"`
}

func encodeAlias(a *Alias) ([]byte, error) {
	return encode(&storedAlias{Name: a.Name, Target: a.Target.String(), Created: a.Created.UnixMilli(), Updated: a.Updated.UnixMilli()})
}

func decodeAlias(name string, value []byte, revision int64) (*Alias, error) {
	var st storedAlias
	if err := decode(value, &st); err != nil {
		return nil, err
	}
	target, ok := keyid.ParseID([]byte(st.Target))
	if !ok || st.Name != name {
		return nil, ErrDamaged
	}
	return &Alias{
		Name: name, Target: target, Created: time.UnixMilli(st.Created).UTC(), Updated: time.UnixMilli(st.Updated).UTC(), Revision: revision,
	}, nil
}

// encode and decode are the one codec of all records. json's defaults are strict: case-sensitive names, no duplicates, valid UTF-8.
func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("store: encoding a record: %w", err)
	}
	value := append([]byte{recordFormat}, b...)
	clear(b)
	return value, nil
}

func decode(value []byte, v any) error {
	if len(value) == 0 {
		return ErrDamaged
	}
	if value[0] != recordFormat {
		return fmt.Errorf("%w: format %d is not known to this version of keyplane", ErrDamaged, value[0])
	}
	if err := json.Unmarshal(value[1:], v, json.RejectUnknownMembers(true)); err != nil {
		return ErrDamaged // json's text could repeat a salt
	}
	return nil
}
