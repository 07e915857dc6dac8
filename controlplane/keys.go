package controlplane

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/snapshot"
)

const originKMS = "AWS_KMS"

type createKeyIn struct {
	Policy                         *string
	Description                    *string
	KeyUsage                       *string
	CustomerMasterKeySpec          *string
	KeySpec                        *string
	Origin                         *string
	CustomKeyStoreId               *string
	BypassPolicyLockoutSafetyCheck *bool
	Tags                           []*tagIn
	MultiRegion                    *bool
	XksKeyId                       *string
}

func (in *createKeyIn) check(v *kmsapi.Violations) {
	checkPolicy(v, in.Policy)
	checkLength(v, "description", in.Description, 0, kmsapi.DescriptionMax)
	checkEnum(v, "keyUsage", in.KeyUsage, keyUsages)
	checkEnum(v, "customerMasterKeySpec", in.CustomerMasterKeySpec, customerMasterKeySpecs)
	checkEnum(v, "keySpec", in.KeySpec, keySpecs)
	checkEnum(v, "origin", in.Origin, origins)
	checkLength(v, "customKeyStoreId", in.CustomKeyStoreId, 1, 64)
	checkTags(v, in.Tags)
	checkLength(v, "xksKeyId", in.XksKeyId, 1, 128)
	checkPattern(v, "xksKeyId", in.XksKeyId, "^[a-zA-Z0-9-_.]+$", isXksKeyID)
}

type keyMetadata struct {
	AWSAccountId            string
	KeyId                   string
	Arn                     string
	CreationDate            timestamp
	Enabled                 bool
	Description             string
	KeyUsage                string
	KeyState                string
	DeletionDate            timestamp `json:",omitzero"`
	ValidTo                 timestamp `json:",omitzero"`
	Origin                  string
	CustomKeyStoreId        string `json:",omitempty"`
	CloudHsmClusterId       string `json:",omitempty"`
	ExpirationModel         string `json:",omitempty"`
	KeyManager              string
	CustomerMasterKeySpec   string
	KeySpec                 string
	EncryptionAlgorithms    []string `json:",omitempty"`
	SigningAlgorithms       []string `json:",omitempty"`
	MacAlgorithms           []string `json:",omitempty"`
	KeyAgreementAlgorithms  []string `json:",omitempty"`
	EncapsulationAlgorithms []string `json:",omitempty"`
	MultiRegion             bool

	MultiRegionConfiguration    *multiRegionConfiguration `json:",omitzero"`
	XksKeyConfiguration         *xksKeyConfiguration      `json:",omitzero"`
	PendingDeletionWindowInDays int32                     `json:",omitzero"` // of a primary that waits for its replicas to be deleted

	CurrentKeyMaterialId string `json:",omitempty"`
	KeyplaneProtection   string `json:",omitempty"` // of ours: SOFTWARE, of a key that is used outside of the HSM
}

type xksKeyConfiguration struct{ Id string }

// protectionSoftware says that a key is made and used outside of the HSM.
const protectionSoftware = "SOFTWARE"

type keyMetadataOut struct{ KeyMetadata keyMetadata }

// metadata is what CreateKey and DescribeKey show of a key. cluster is that of its CloudHSM key store, if it is in one.
func (s *Server) metadata(k *store.Key, cluster string) keyMetadata {
	state := s.state(k)
	m := keyMetadata{
		AWSAccountId: k.Account.String(), KeyId: k.ID.String(), Arn: s.keyARN(k.KeyName), CreationDate: timestamp{k.Created},
		Enabled: state == kmsapi.StateEnabled, Description: k.Description, KeyUsage: k.Usage, KeyState: state.String(),
		DeletionDate: timestamp{k.DeletionDate}, Origin: k.Origin, KeyManager: keyManager(k), CustomerMasterKeySpec: k.Spec, KeySpec: k.Spec,
		MultiRegion: k.ID.MultiRegion,
	}
	m.MultiRegionConfiguration = s.related(k)
	if k.State == kmsapi.StatePendingReplicaDeletion {
		m.PendingDeletionWindowInDays = k.DeletionDays
	}
	m.setAlgorithms(k.Spec, k.Usage)
	m.expiration(k)
	if k.Private != nil && k.Private.Software {
		m.KeyplaneProtection = protectionSoftware
	}
	if k.Store != nil {
		m.CustomKeyStoreId, m.CloudHsmClusterId = k.Store.ID, cluster
		if k.Store.External() {
			m.XksKeyConfiguration = &xksKeyConfiguration{k.Store.XksKeyID}
		}
		return m
	}
	for i := range k.Versions {
		if v := &k.Versions[i]; v.Number == k.Current {
			m.CurrentKeyMaterialId = string(v.MaterialID[:])
		}
	}
	return m
}

func keyManager(k *store.Key) string {
	if k.Manager != "" {
		return k.Manager
	}
	return "CUSTOMER"
}

// setAlgorithms fills the one list of algorithms that the key's usage has.
func (m *keyMetadata) setAlgorithms(spec, usage string) {
	s, u := keyspec.Of(spec), keyspec.UsageOf(usage)
	if s == keyspec.None {
		m.EncryptionAlgorithms = []string{kmsapi.SymmetricDefault}
		return
	}
	var names []string
	for _, a := range s.Algorithms(u) {
		names = append(names, a.String())
	}
	switch u {
	case keyspec.EncryptDecrypt:
		m.EncryptionAlgorithms = names
	case keyspec.SignVerify:
		m.SigningAlgorithms = names
	case keyspec.GenerateVerifyMAC:
		m.MacAlgorithms = names
	case keyspec.KeyAgreement:
		m.KeyAgreementAlgorithms = names
	case keyspec.EncapsulateDecapsulate:
		m.EncapsulationAlgorithms = names
	}
}

// CreateKey: a new key, Enabled, or PendingImport and without a backing key if that is to be imported. The first backing key of a symmetric encryption key is a
// salt from the HSM (docs/ciphertext.md §3); that of another key is made in the HSM, which can take seconds and is therefore the last thing before the record is
// written; so is one in a custom key store, which the cluster makes or the proxy is asked for.
func (s *Server) createKey(ctx context.Context, c *call, in *createKeyIn) (keyMetadataOut, error) {
	c.context.Extra = in.conditions()
	if err := c.permitAccount(c.action, "*"); err != nil {
		return keyMetadataOut{}, err
	}
	if len(in.Tags) > 0 {
		if err := c.permitAccount(authz.Actions["TagResource"], s.anyKeyARN(c.account())); err != nil {
			return keyMetadataOut{}, err
		}
	}
	spec, err := s.offered(in)
	if err != nil {
		return keyMetadataOut{}, err
	}
	tags, err := tagsOf(in.Tags)
	if err != nil {
		return keyMetadataOut{}, err
	}
	document := []byte(defaultPolicy(s.partition, c.account()))
	if in.Policy != nil {
		document = []byte(*in.Policy)
	}
	k := s.draft(c, spec, deref(in.KeyUsage), deref(in.Description), tags)
	if in.MultiRegion != nil && *in.MultiRegion {
		k.ID.MultiRegion, k.MultiRegion = true, &store.MultiRegion{Primary: s.region, Epoch: 1, Revision: 1}
	}
	if deref(in.Origin) == originExternal {
		k.State, k.Origin, k.Versions, k.Current = kmsapi.StatePendingImport, originExternal, nil, 0
	}
	if in.CustomKeyStoreId != nil {
		k.Origin, k.Store = *in.Origin, &snapshot.KeyStore{ID: *in.CustomKeyStoreId, XksKeyID: deref(in.XksKeyId)}
	}
	if k.Policy, err = s.newPolicy(c, k, s.anyKeyARN(c.account()), document, in.BypassPolicyLockoutSafetyCheck); err != nil {
		return keyMetadataOut{}, err
	}
	defer k.Wipe()
	limit := s.quotaOf(k.Account, quota.KeysPerAccount)
	var images *[32]byte // of a resident first version
	if k.Origin == originKMS && (spec != keyspec.None || k.ID.MultiRegion) {
		n, err := s.store.KeyCount(ctx, s.region, k.Account)
		if err != nil {
			return keyMetadataOut{}, err
		}
		if n >= limit { // decided again in the transaction
			return keyMetadataOut{}, keyLimit()
		}
		if spec == keyspec.None {
			images, err = s.resident(k)
		} else {
			k.Private, err = s.keys.New(spec)
		}
		if err != nil {
			return keyMetadataOut{}, fmt.Errorf("controlplane: making a key: %w", err)
		}
	}
	cluster := ""
	if k.Store != nil {
		if cluster, images, err = s.storeMaterial(ctx, c, k, limit); err != nil {
			return keyMetadataOut{}, err
		}
	}
	if k.Origin != originKMS || spec != keyspec.None || k.ID.MultiRegion {
		// The HSM may have taken all of the operation's time, to make the key or to say what it imports.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
		defer cancel()
	}
	// A fresh key ID is taken, or was once, only if the random numbers are broken; a second try tells a collision from that.
	for range 2 {
		if err := s.draw(k, images); err != nil {
			return keyMetadataOut{}, err
		}
		err = s.store.CreateKey(ctx, k, limit)
		s.publishKey(k.KeyName, err) // that there is no such key may be cached
		if errors.Is(err, store.ErrExists) {
			continue
		}
		if errors.Is(err, store.ErrKeyLimit) {
			return keyMetadataOut{}, keyLimit()
		}
		if err != nil {
			return keyMetadataOut{}, keyStoreError(err)
		}
		s.completeCopies(ctx, k)
		c.touchKey(s.keyARN(k.KeyName), k.Account)
		c.noteKeyIn(k, cluster)
		return keyMetadataOut{s.metadata(k, cluster)}, nil
	}
	return keyMetadataOut{}, errors.New("controlplane: the HSM's random numbers repeat")
}

func keyLimit() error {
	return kmsapi.New(kmsapi.LimitExceeded, "The account has reached the limit of KMS keys in this Region.")
}

// draft is a new key that has neither an ID nor a backing key yet. spec is keyspec.None for a symmetric encryption key.
func (s *Server) draft(c *call, spec keyspec.Spec, usage, description string, tags []store.Tag) *store.Key {
	k := &store.Key{
		KeyName: store.KeyName{Region: s.region, Account: c.account()}, Description: description, State: kmsapi.StateEnabled,
		Spec: spec.String(), Usage: usage, Origin: originKMS, Created: c.now,
	}
	for _, t := range tags {
		k.SetTag(t)
	}
	if spec == keyspec.None {
		k.Spec, k.Usage, k.Current, k.Versions = kmsapi.SymmetricDefault, kmsapi.EncryptDecrypt, 1, make([]store.Version, 1)
		k.Versions[0].Number, k.Versions[0].Created = k.Current, c.now
	}
	return k
}

// draw gives a draft its ID, and its first version a salt, or its backing key the name that goes with the ID, if it has either. images are those of a resident
// version.
func (s *Server) draw(k *store.Key, images *[32]byte) error {
	var random [16 + 32]byte
	defer clear(random[:])
	if err := s.random(random[:]); err != nil {
		return fmt.Errorf("controlplane: random bytes for a key: %w", err)
	}
	k.ID = keyid.NewID([16]byte(random[:16]), k.MultiRegion != nil)
	if k.Private != nil {
		k.Private = named(k, k.Private)
		return nil
	}
	if k.Origin == originExternal {
		return nil
	}
	v := &k.Versions[0]
	if v.Resident != nil {
		v.Resident = named(k, v.Resident)
		for i, p := range v.Copies {
			v.Copies[i] = named(k, p)
		}
		v.Root, v.MaterialID = v.Resident.Root, snapshot.ResidentMaterialID(k.Account, k.ID, images)
		return nil
	}
	v.Root = s.root()
	copy(v.Salt[:], random[16:])
	v.MaterialID = snapshot.MaterialID(k.Account, k.ID, v.Number, &v.Salt)
	return nil
}

type describeKeyIn struct {
	KeyId       *string
	GrantTokens []*string
}

func (in *describeKeyIn) check(v *kmsapi.Violations) {
	checkKeyID(v, "keyId", in.KeyId)
	checkGrantTokens(v, in.GrantTokens)
}

// DescribeKey takes an alias as well.
func (s *Server) describeKey(ctx context.Context, c *call, in *describeKeyIn) (keyMetadataOut, error) {
	ref, err := s.reference(c, *in.KeyId, true)
	if err != nil {
		return keyMetadataOut{}, err
	}
	if ref.Alias != nil {
		c.context.RequestAlias = ref.Alias
		alias, err := s.store.Alias(ctx, s.region, ref.Account, string(ref.Alias))
		if errors.Is(err, store.ErrNotFound) && ref.Account == c.account() {
			alias, err = s.firstUse(ctx, c, string(ref.Alias))
		}
		if err != nil {
			return keyMetadataOut{}, s.aliasError(c, ref.Account, string(ref.Alias), err)
		}
		c.told(alias.Revision)
		ref.ID = alias.Target
	}
	k, err := s.view(ctx, c, store.KeyName{Region: s.region, Account: ref.Account, ID: ref.ID})
	if err != nil {
		return keyMetadataOut{}, err
	}
	defer k.Wipe()
	cluster, err := s.clusterOf(ctx, k)
	if err != nil {
		return keyMetadataOut{}, err
	}
	return keyMetadataOut{s.metadata(k, cluster)}, nil
}

// firstUse makes the AWS managed key that an alias of the caller's account stands for, if it does, and the caller may see it. store.ErrNotFound: it does not.
func (s *Server) firstUse(ctx context.Context, c *call, alias string) (*store.Alias, error) {
	service := s.managedService(c.account(), alias)
	if service == "" {
		return nil, store.ErrNotFound
	}
	if err := s.makeManaged(ctx, c.account(), alias, service, c.now, func(k *store.Key) error { return s.authorize(ctx, c, k) }); err != nil {
		return nil, err
	}
	return s.store.Alias(ctx, s.region, c.account(), alias)
}

type listKeysIn struct {
	Limit  *int32
	Marker *string
}

func (in *listKeysIn) check(v *kmsapi.Violations) {
	checkPage(v, in.Limit, in.Marker, kmsapi.LimitMax)
}

type keyListEntry struct {
	KeyId  string
	KeyArn string
}

type listKeysOut struct {
	Keys       []keyListEntry
	NextMarker string `json:",omitempty"`
	Truncated  bool
}

// ListKeys lists the account's keys in every state.
func (s *Server) listKeys(ctx context.Context, c *call, in *listKeysIn) (listKeysOut, error) {
	if err := c.permitAccount(c.action, "*"); err != nil {
		return listKeysOut{}, err
	}
	p := page{operation: c.op.Name, account: c.account(), region: s.region}
	position, err := p.position(in.Marker)
	if err != nil {
		return listKeysOut{}, err
	}
	var from *keyid.ID
	if position != "" {
		id, ok := keyid.ParseID([]byte(position))
		if !ok {
			return listKeysOut{}, kmsapi.E(kmsapi.InvalidMarker)
		}
		from = &id
	}
	ids, more, err := s.store.Keys(ctx, s.region, c.account(), from, pageSize(in.Limit, kmsapi.LimitDefault))
	if err != nil {
		return listKeysOut{}, err
	}
	out := listKeysOut{Keys: []keyListEntry{}, Truncated: more}
	for _, id := range ids {
		n := store.KeyName{Region: s.region, Account: c.account(), ID: id}
		out.Keys = append(out.Keys, keyListEntry{KeyId: id.String(), KeyArn: s.keyARN(n)})
	}
	if more {
		out.NextMarker = p.marker(ids[len(ids)-1].String())
	}
	return out, nil
}

// keyIn is the input of operations that take a key and nothing else.
type keyIn struct{ KeyId *string }

func (in *keyIn) check(v *kmsapi.Violations) { checkKeyID(v, "keyId", in.KeyId) }

// EnableKey and DisableKey. Enabling an enabled key is no error, nor is disabling a disabled one.
func (s *Server) enableKey(ctx context.Context, c *call, in *keyIn) (none, error) {
	return none{}, s.switchState(ctx, c, *in.KeyId)
}

func (s *Server) disableKey(ctx context.Context, c *call, in *keyIn) (none, error) {
	return none{}, s.switchState(ctx, c, *in.KeyId)
}

func (s *Server) switchState(ctx context.Context, c *call, keyID string) error {
	n, err := s.keyName(c, keyID)
	if err != nil {
		return err
	}
	if c.op.Name == "DisableKey" {
		c.context.Extra = s.trailing(n, c.now)
	}
	k, err := s.change(ctx, c, n, func(k *store.Key) error {
		if k.State = after(c.op.Name, k.State); k.State == kmsapi.StateEnabled {
			elapsed, err := s.seen(ctx)
			if err != nil {
				return err
			}
			s.healSchedule(k, c.now, elapsed)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if dueRotation(k, c.now) != "" { // it was due, or asked for, while the key was disabled
		s.hurry()
	}
	k.Wipe()
	return nil
}

type updateKeyDescriptionIn struct {
	KeyId       *string
	Description *string
}

func (in *updateKeyDescriptionIn) check(v *kmsapi.Violations) {
	checkKeyID(v, "keyId", in.KeyId)
	if in.Description == nil {
		v.Null("description")
	}
	checkLength(v, "description", in.Description, 0, kmsapi.DescriptionMax)
}

func (s *Server) updateKeyDescription(ctx context.Context, c *call, in *updateKeyDescriptionIn) (none, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return none{}, err
	}
	k, err := s.change(ctx, c, n, func(k *store.Key) error {
		k.Description = *in.Description
		return nil
	})
	if err != nil {
		return none{}, err
	}
	k.Wipe()
	return none{}, nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
