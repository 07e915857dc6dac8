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
	Resume       kmsapi.KeyState // what an Updating or PendingImport key becomes when it is back; 0 otherwise
	Spec         string          // SYMMETRIC_DEFAULT, …
	Usage        string          // ENCRYPT_DECRYPT, …
	Origin       string          // AWS_KMS, …
	Created      time.Time
	DeletionDate time.Time            // zero unless the state is PendingDeletion
	DeletionDays int32                // the waiting period of a key that is pending deletion or pending replica deletion
	DeletionSeen time.Duration        // Store.Elapsed when the waiting period began, or a worker first saw that it had; Unseen before
	Versions     []Version            // ascending by Number; none of a key that has a Private
	Current      uint32               // Number of the version that encrypts
	Private      *snapshot.PrivateKey // of a key that is not SYMMETRIC_DEFAULT; shared by the copies of a Key, and not changed
	Import       *Import              // of a Private that was imported; shared by the copies of a Key, and not changed
	Rotation     Rotation             // of automatic and on-demand rotation
	MultiRegion  *MultiRegion         // of a multi-Region key; shared by the copies of a Key, and not changed
	Store        *snapshot.KeyStore   // of a key in a custom key store; shared by the copies of a Key, and not changed
	Manager      string               // "" for the customer's; AWS: made for a service, which AWS managed keys are
	Tags         []Tag                // ascending by Key, no key twice
	Aliases      []string             // "alias/…", ascending; the aliases that point at this key
	Revision     int64                // etcd mod revision; not part of the record
	Policy       Policy               // a record of its own; shared by the copies of a Key, and not changed
}

// Unseen is the DeletionSeen of a key that no worker has seen pending deletion, and the Seen of material of which none has seen that it expires.
const Unseen time.Duration = -1

// Version is one backing key of a SYMMETRIC_DEFAULT key. One whose Number is above Key.Current waits for a rotation to it.
type Version struct {
	snapshot.VersionRecord
	Created  time.Time
	Rotated  time.Time // when it became the current one by a rotation; zero of the first and of one that waits
	OnDemand bool      // that rotation was asked for with RotateKeyOnDemand
	Import   *Import   // of imported material; shared by the copies of a Key, and not changed
}

// Import is what is known of imported key material, also after it was deleted or has expired.
type Import struct {
	Expires     time.Time     // ValidTo; zero: it does not expire
	Description string        // KeyMaterialDescription
	Fingerprint [32]byte      // of a Private: what material has to have that is imported again. A version has its material ID.
	Imported    time.Time     // the last time
	Seen        time.Duration // Store.Elapsed when a worker first saw the material after that; Unseen before. Only of material that expires
	Expired     bool          // Expires has come by the wall clock: nobody uses the material, which is there until Elapsed agrees or the clock is set back
}

// Gone reports whether the version's material cannot be used: it was deleted, or has expired.
func (v *Version) Gone() bool { return v.Missing || v.Import != nil && v.Import.Expired }

// Incomplete reports whether a key lacks material that is permanently associated with it, and can be used by nobody for that.
func (k *Key) Incomplete() bool {
	if k.Spec != kmsapi.SymmetricDefault {
		return k.Private == nil || k.Import != nil && k.Import.Expired
	}
	for i := range k.Versions {
		if v := &k.Versions[i]; v.Number <= k.Current && v.Gone() {
			return true
		}
	}
	return len(k.Versions) == 0
}

// Rotation is the schedule of a key.
type Rotation struct {
	Enabled  bool
	Period   int32     // days, 90 to 2560; 0: never enabled
	Next     time.Time // when automatic rotation is due; zero unless Enabled
	OnDemand time.Time // when an on-demand rotation was asked for that is not done yet; else zero
	// Held is the date that Next was moved away from because it was too far away to be of this clock, zero if it was not. One of the two dates is of a wrong clock.
	Held time.Time
	Seen time.Duration // Store.Elapsed when Next was moved for that, Unseen if that is not known
}

// MultiRegion is what related keys know of each other. All of them have the same Primary, Replicas, Epoch and Revision but for the primary's copy being
// the newest; the rest is the primary's own, but for Born.
type MultiRegion struct {
	Primary  string   // Region of the primary key
	Replicas []string // Regions of the replica keys, ascending
	Epoch    uint64   // counts changes of the primary, from 1
	Revision uint64   // counts changes of shared properties in an epoch, from 1; UpdateKey counts them
	Void     uint64   // the last revision of the epoch at which handing the primary over was taken back, 0 for none
	Born     Moment   // of a replica: when the primary asked for it
	// Handovers prove the latest changes of the primary to Regions that have not heard of them (replication.Endpoint.Handover), the last one last.
	Handovers [][]byte

	Have    []Ack    // of the primary: what each replica is known to have, ascending by Region
	Intents []Intent // of the primary: replicas that are asked for and not known to be made
	// Promoting is the Region that becomes the primary, "" for none. Frozen: it may have become the primary already, so that nothing shared can change here
	// until it says so, or Withdrawn that it did not and never will.
	Promoting         string
	Frozen, Withdrawn bool
	Asked             []byte // by whom, for the record of the new primary's Region: the control plane's to read
	Former            string // of a new primary: the Region that was it before and has not been told yet; "" for none
}

// Moment orders what a primary says.
type Moment struct{ Epoch, Revision uint64 }

// Before says that m is older than o.
func (m Moment) Before(o Moment) bool {
	return m.Epoch < o.Epoch || m.Epoch == o.Epoch && m.Revision < o.Revision
}

// Ack is the last moment that a replica is known to have.
type Ack struct {
	Region string
	Moment
}

// Intent is a replica that was asked for, with what is not shared.
type Intent struct {
	Region string
	Moment
	Policy      []byte
	Description string
	Tags        []Tag
	Asked       []byte // by whom, for the record of the replica's Region: the control plane's to read
}

// At is the moment of the shared properties.
func (m *MultiRegion) At() Moment { return Moment{m.Epoch, m.Revision} }

// HasIt says that a replica is known to have the shared properties as they are.
func (m *MultiRegion) HasIt(region string) bool {
	for _, a := range m.Have {
		if a.Region == region {
			return a.Moment == m.At()
		}
	}
	return false
}

// Synchronized says that every replica is known to have the shared properties as they are.
func (m *MultiRegion) Synchronized() bool {
	for _, r := range m.Replicas {
		if !m.HasIt(r) {
			return false
		}
	}
	return len(m.Intents) == 0
}

// IsPrimary says that the key is the primary of its related keys.
func (k *Key) IsPrimary() bool { return k.MultiRegion != nil && k.MultiRegion.Primary == k.Region }

// IsReplica says that the key is a replica.
func (k *Key) IsReplica() bool { return k.MultiRegion != nil && k.MultiRegion.Primary != k.Region }

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
	if k.Rotation.Enabled == k.Rotation.Next.IsZero() || k.Rotation.Enabled && k.Rotation.Period == 0 || !k.Rotation.Enabled && !k.Rotation.Held.IsZero() || (k.MultiRegion != nil) != k.ID.MultiRegion {
		return ErrDamaged
	}
	if pending == k.DeletionDate.IsZero() || k.Spec == "" || k.Usage == "" || k.Origin == "" || k.Created.IsZero() {
		return ErrDamaged
	}
	if m := k.MultiRegion; m != nil && (m.Primary == "" || m.Epoch == 0 || m.Revision == 0 || !slices.IsSorted(m.Replicas) || slices.Contains(m.Replicas, m.Primary)) {
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
	switch {
	case k.IsPrimary():
		f.MultiRegionKeyType = "PRIMARY"
	case k.IsReplica():
		f.MultiRegionKeyType = "REPLICA"
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
		Private: k.Private, Expires: k.expires(), Facts: k.Facts(), Policy: k.Policy.Document, Bound: k.Policy.Bound, Store: k.Store,
	}
	for i := range k.Versions {
		r.Versions[i] = k.Versions[i].VersionRecord
		if k.Versions[i].Number == k.Current {
			r.Current = i
		}
	}
	return r
}

// expires is when the first of the materials that are permanently associated with the key and there expires, zero if none does.
func (k *Key) expires() (date time.Time) {
	see := func(f *Import) {
		if f != nil && !f.Expires.IsZero() && (date.IsZero() || f.Expires.Before(date)) {
			date = f.Expires
		}
	}
	if k.Private != nil {
		see(k.Import)
	}
	for i := range k.Versions {
		if v := &k.Versions[i]; v.Number <= k.Current && !v.Missing {
			see(v.Import)
		}
	}
	return date
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
	DeletionDays int32           `json:"deletionDays,omitzero"`
	DeletionSeen int64           `json:"deletionSeen,omitzero"` // nanoseconds
	Import       *storedImport   `json:"import,omitzero"`
	Rotation     *storedRotation `json:"rotation,omitzero"`
	MultiRegion  *storedRegions  `json:"multiRegion,omitzero"`
	Store        *storedStore    `json:"store,omitzero"`
	Manager      string          `json:"manager,omitzero"`
	Private      *storedPrivate  `json:"private,omitzero"`
	Tags         []Tag           `json:"tags,omitempty"`
	Aliases      []string        `json:"aliases,omitempty"`
}

type storedVersion struct {
	Number     uint32           `json:"number"`
	Root       string           `json:"root,omitzero"` // hex; of a derived backing key
	Salt       []byte           `json:"salt,omitempty"`
	Resident   *storedPrivate   `json:"resident,omitzero"` // neither: the material is missing
	Copies     []*storedPrivate `json:"copies,omitempty"`
	MaterialID string           `json:"materialId"`
	Created    int64            `json:"created"`
	Rotated    int64            `json:"rotated,omitzero"`
	OnDemand   bool             `json:"onDemand,omitzero"`
	Import     *storedImport    `json:"import,omitzero"`
}

// storedStore is in which custom key store a key is.
type storedStore struct {
	ID       string `json:"id"`
	XksKeyID string `json:"xksKeyId,omitzero"`
}

type storedImport struct {
	Expires     int64  `json:"expires,omitzero"`
	Description string `json:"description,omitzero"`
	Fingerprint string `json:"fingerprint,omitzero"` // hex
	Imported    int64  `json:"imported"`
	Seen        int64  `json:"seen,omitzero"` // nanoseconds
	Expired     bool   `json:"expired,omitzero"`
}

type storedRotation struct {
	Enabled  bool  `json:"enabled,omitzero"`
	Period   int32 `json:"period,omitzero"`
	Next     int64 `json:"next,omitzero"`
	OnDemand int64 `json:"onDemand,omitzero"`
	Held     int64 `json:"held,omitzero"`
	Seen     int64 `json:"seen,omitzero"` // nanoseconds
}

type storedRegions struct {
	Primary   string         `json:"primary"`
	Replicas  []string       `json:"replicas,omitempty"`
	Epoch     uint64         `json:"epoch"`
	Revision  uint64         `json:"revision"`
	Void      uint64         `json:"void,omitzero"`
	Handovers [][]byte       `json:"handovers,omitempty"`
	Born      *storedMoment  `json:"born,omitzero"`
	Have      []storedAck    `json:"have,omitempty"`
	Intents   []storedIntent `json:"intents,omitempty"`
	Promoting string         `json:"promoting,omitzero"`
	Frozen    bool           `json:"frozen,omitzero"`
	Withdrawn bool           `json:"withdrawn,omitzero"`
	Asked     []byte         `json:"asked,omitempty"`
	Former    string         `json:"former,omitzero"`
}

type storedMoment struct {
	Epoch    uint64 `json:"epoch"`
	Revision uint64 `json:"revision"`
}

type storedAck struct {
	Region string       `json:"region"`
	At     storedMoment `json:"at"`
}

type storedIntent struct {
	Region      string       `json:"region"`
	At          storedMoment `json:"at"`
	Policy      []byte       `json:"policy"`
	Description string       `json:"description,omitzero"`
	Tags        []Tag        `json:"tags,omitempty"`
	Asked       []byte       `json:"asked,omitempty"`
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
	st.DeletionDate, st.DeletionDays, st.DeletionSeen = milli(k.DeletionDate), k.DeletionDays, int64(k.DeletionSeen)
	for i := range k.Versions {
		v := &k.Versions[i]
		sv := storedVersion{
			Number: v.Number, Resident: encodePrivate(v.Resident), MaterialID: string(v.MaterialID[:]), Created: v.Created.UnixMilli(),
			Rotated: milli(v.Rotated), OnDemand: v.OnDemand, Import: encodeImport(v.Import),
		}
		for _, c := range v.Copies {
			sv.Copies = append(sv.Copies, encodePrivate(c))
		}
		if v.Resident == nil && !v.Missing {
			sv.Root, sv.Salt = hex.EncodeToString(v.Root[:]), v.Salt[:]
		}
		st.Versions = append(st.Versions, sv)
	}
	st.Private, st.Import, st.Manager = encodePrivate(k.Private), encodeImport(k.Import), k.Manager
	if k.Store != nil {
		st.Store = &storedStore{k.Store.ID, k.Store.XksKeyID}
	}
	if r := k.Rotation; r != (Rotation{}) {
		st.Rotation = &storedRotation{
			Enabled: r.Enabled, Period: r.Period, Next: milli(r.Next), OnDemand: milli(r.OnDemand), Held: milli(r.Held), Seen: int64(r.Seen),
		}
	}
	st.MultiRegion = encodeRegions(k.MultiRegion)
	return encode(&st)
}

func encodeRegions(m *MultiRegion) *storedRegions {
	if m == nil {
		return nil
	}
	st := &storedRegions{
		Primary: m.Primary, Replicas: m.Replicas, Epoch: m.Epoch, Revision: m.Revision, Promoting: m.Promoting, Frozen: m.Frozen, Withdrawn: m.Withdrawn,
		Asked: m.Asked, Former: m.Former, Void: m.Void, Handovers: m.Handovers,
	}
	if m.Born != (Moment{}) {
		born := storedMoment(m.Born)
		st.Born = &born
	}
	for _, a := range m.Have {
		st.Have = append(st.Have, storedAck{a.Region, storedMoment(a.Moment)})
	}
	for _, i := range m.Intents {
		st.Intents = append(st.Intents, storedIntent{i.Region, storedMoment(i.Moment), i.Policy, i.Description, i.Tags, i.Asked})
	}
	return st
}

func decodeRegions(st *storedRegions) *MultiRegion {
	if st == nil {
		return nil
	}
	m := &MultiRegion{
		Primary: st.Primary, Replicas: st.Replicas, Epoch: st.Epoch, Revision: st.Revision, Promoting: st.Promoting, Frozen: st.Frozen, Withdrawn: st.Withdrawn,
		Asked: st.Asked, Former: st.Former, Void: st.Void, Handovers: st.Handovers,
	}
	if st.Born != nil {
		m.Born = Moment(*st.Born)
	}
	for _, a := range st.Have {
		m.Have = append(m.Have, Ack{a.Region, Moment(a.At)})
	}
	for _, i := range st.Intents {
		m.Intents = append(m.Intents, Intent{i.Region, Moment(i.At), i.Policy, i.Description, i.Tags, i.Asked})
	}
	return m
}

// milli and fromMilli keep a time in milliseconds, the zero time as 0.
func milli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMilli(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func encodePrivate(p *snapshot.PrivateKey) *storedPrivate {
	if p == nil {
		return nil
	}
	return &storedPrivate{
		Root: hex.EncodeToString(p.Root[:]), Software: p.Software, Wrapped: p.Wrapped, Public: p.Public, ID: hex.EncodeToString(p.ID[:]),
	}
}

func decodePrivate(sp *storedPrivate) (*snapshot.PrivateKey, error) {
	if sp == nil {
		return nil, nil
	}
	p := &snapshot.PrivateKey{Software: sp.Software, Wrapped: sp.Wrapped, Public: sp.Public}
	if !decodeHex(p.Root[:], sp.Root) || !decodeHex(p.ID[:], sp.ID) {
		return nil, ErrDamaged
	}
	return p, nil
}

func encodeImport(m *Import) *storedImport {
	if m == nil {
		return nil
	}
	st := &storedImport{Expires: milli(m.Expires), Description: m.Description, Imported: milli(m.Imported), Seen: int64(m.Seen), Expired: m.Expired}
	if m.Fingerprint != [32]byte{} {
		st.Fingerprint = hex.EncodeToString(m.Fingerprint[:])
	}
	return st
}

func decodeImport(st *storedImport) (*Import, error) {
	if st == nil {
		return nil, nil
	}
	m := &Import{Expires: fromMilli(st.Expires), Description: st.Description, Imported: fromMilli(st.Imported), Seen: time.Duration(st.Seen), Expired: st.Expired}
	if st.Fingerprint != "" && !decodeHex(m.Fingerprint[:], st.Fingerprint) {
		return nil, ErrDamaged
	}
	return m, nil
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
	k.DeletionDate, k.DeletionDays, k.DeletionSeen, k.Manager = fromMilli(st.DeletionDate), st.DeletionDays, time.Duration(st.DeletionSeen), st.Manager
	if r := st.Rotation; r != nil {
		k.Rotation = Rotation{
			Enabled: r.Enabled, Period: r.Period, Next: fromMilli(r.Next), OnDemand: fromMilli(r.OnDemand), Held: fromMilli(r.Held), Seen: time.Duration(r.Seen),
		}
	}
	k.MultiRegion = decodeRegions(st.MultiRegion)
	if st.Store != nil {
		k.Store = &snapshot.KeyStore{ID: st.Store.ID, XksKeyID: st.Store.XksKeyID}
	}
	if err := k.decodeMaterial(&st); err != nil {
		k.Wipe()
		return nil, err
	}
	if err := k.check(); err != nil {
		k.Wipe()
		return nil, err
	}
	return k, nil
}

// decodeMaterial reads versions or private key.
func (k *Key) decodeMaterial(st *storedKey) (err error) {
	if k.Private, err = decodePrivate(st.Private); err != nil {
		return err
	}
	if k.Import, err = decodeImport(st.Import); err != nil {
		return err
	}
	for i := range st.Versions {
		sv := &st.Versions[i]
		v := Version{Created: fromMilli(sv.Created), Rotated: fromMilli(sv.Rotated), OnDemand: sv.OnDemand}
		v.Number = sv.Number
		if len(sv.MaterialID) != len(v.MaterialID) || copy(v.MaterialID[:], sv.MaterialID) == 0 {
			return ErrDamaged
		}
		if v.Import, err = decodeImport(sv.Import); err != nil {
			return err
		}
		if v.Resident, err = decodePrivate(sv.Resident); err != nil {
			return err
		}
		for _, c := range sv.Copies {
			copied, err := decodePrivate(c)
			if err != nil || copied == nil {
				return ErrDamaged
			}
			v.Copies = append(v.Copies, copied)
		}
		switch {
		case v.Resident != nil && len(sv.Salt) == 0:
			v.Root = v.Resident.Root
		case len(sv.Salt) == len(v.Salt) && v.Resident == nil && decodeHex(v.Root[:], sv.Root):
			copy(v.Salt[:], sv.Salt)
		case sv.Salt == nil && sv.Root == "":
			v.Missing = true
		default:
			return ErrDamaged
		}
		k.Versions = append(k.Versions, v)
	}
	return nil
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
	if value[0] == damagedFormat {
		return fmt.Errorf("%w: %w", ErrDamaged, errUnauthenticated)
	}
	if value[0] != recordFormat {
		return fmt.Errorf("%w: format %d is not known to this version of keyplane", ErrDamaged, value[0])
	}
	if err := json.Unmarshal(value[1:], v, json.RejectUnknownMembers(true)); err != nil {
		return ErrDamaged // json's text could repeat a salt
	}
	return nil
}
