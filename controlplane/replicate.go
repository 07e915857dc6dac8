package controlplane

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"

	"github.com/keyplane/keyplane/controlplane/replication"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/failpoint"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/quota"
)

type replicateKeyIn struct {
	KeyId                          *string
	ReplicaRegion                  *string
	Policy                         *string
	BypassPolicyLockoutSafetyCheck *bool
	Description                    *string
	Tags                           []*tagIn
}

func (in *replicateKeyIn) check(v *kmsapi.Violations) {
	checkKeyID(v, "keyId", in.KeyId)
	checkRegion(v, "replicaRegion", in.ReplicaRegion)
	checkPolicy(v, in.Policy)
	checkLength(v, "description", in.Description, 0, kmsapi.DescriptionMax)
	checkTags(v, in.Tags)
}

// conditions are what policies of the primary can ask.
func (in *replicateKeyIn) conditions() []authz.ExtraValue {
	list := []authz.ExtraValue{{Key: policy.KMSReplicaRegion, Value: *in.ReplicaRegion}, bypassing(in.BypassPolicyLockoutSafetyCheck)}
	return append(list, tagging(in.Tags)...)
}

// creating are what identity policies can ask of the replica that is to be made.
func (in *replicateKeyIn) creating(k *store.Key) []authz.ExtraValue {
	list := []authz.ExtraValue{
		{Key: policy.KMSKeySpec, Value: k.Spec}, {Key: policy.KMSCustomerMasterKeySpec, Value: k.Spec}, {Key: policy.KMSKeyUsage, Value: k.Usage},
		{Key: policy.KMSCustomerMasterKeyUsage, Value: k.Usage}, {Key: policy.KMSKeyOrigin, Value: k.Origin}, {Key: policy.KMSMultiRegion, Value: strconv.FormatBool(true)},
		{Key: policy.KMSMultiRegionKeyType, Value: "REPLICA"}, bypassing(in.BypassPolicyLockoutSafetyCheck),
	}
	return append(list, tagging(in.Tags)...)
}

type replicateKeyOut struct {
	ReplicaKeyMetadata keyMetadata
	ReplicaPolicy      string
	ReplicaTags        []tagOut
}

// ReplicateKey: a replica of a primary key in another Region, in state Creating until it has the key material (synchronize.go). The intent is in the primary's
// record before the other Region hears of it, so that whatever happens in between, both have it in the end, or neither.
func (s *Server) replicateKey(ctx context.Context, c *call, in *replicateKeyIn) (replicateKeyOut, error) {
	var none replicateKeyOut
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return none, err
	}
	region := *in.ReplicaRegion
	c.context.Extra = in.conditions()
	k, err := s.store.Key(ctx, n)
	if err != nil {
		return none, s.keyError(c, n, err)
	}
	defer k.Wipe()
	if err := s.authorize(ctx, c, k); err != nil {
		return none, err
	}
	document, err := s.permitReplica(c, k, in, region)
	if err != nil {
		return none, err
	}
	if err := s.replicable(k, region); err != nil {
		return none, err
	}
	tags, err := tagsOf(in.Tags)
	if err != nil {
		return none, err
	}
	// Asked before anything is written: a Region that is away leaves nothing behind.
	a, err := s.ask(ctx, region, n, replication.Message{Kind: replication.State})
	if err != nil {
		return none, s.awayError(region, err)
	}
	// One that is still Creating is what is left of an intent whose outcome was not known here; it is made anew.
	if a.Exists && (a.State != kmsapi.StateCreating.String() || a.Primary != s.region) {
		return none, s.replicaExists(n, region)
	}
	asked, err := encodeCaller(c.asked())
	if err != nil {
		return none, err
	}
	intent := store.Intent{Region: region, Policy: document, Description: deref(in.Description), Tags: tags, Asked: asked}
	// The caller was asked about the record as it was; a change of the policy since is noticed here.
	c.context.Extra = in.conditions()
	noted, err := s.store.UpdateKey(ctx, n, func(k *store.Key) error {
		if err := s.authorize(ctx, c, k); err != nil {
			return err
		}
		if err := s.replicable(k, region); err != nil {
			return err
		}
		m := *k.MultiRegion
		m.Revision++
		intent.Moment = m.At()
		m.Intents = append(slices.Clone(m.Intents), intent)
		k.MultiRegion = &m
		return nil
	})
	if err != nil {
		return none, s.keyError(c, n, err)
	}
	defer noted.Wipe()
	defer s.kick() // the material goes over without the caller
	failpoint.Here("replicate.intended")
	made, err := s.createReplica(ctx, noted, &intent)
	if e := refusal(err); e != nil {
		return none, e
	}
	if err != nil {
		return none, s.awayError(region, err)
	}
	defer made.Wipe()
	return s.replicated(made, &intent), nil
}

// permitReplica asks what the replica needs in its Region, and returns its policy: CreateKey, TagResource where it has tags, and that its maker is not
// locked out of it.
func (s *Server) permitReplica(c *call, k *store.Key, in *replicateKeyIn, region string) ([]byte, error) {
	c.context.Region, c.context.Extra = region, in.creating(k)
	defer func() { c.context.Region = s.region }()
	if err := c.permitAccount(authz.Actions["CreateKey"], "*"); err != nil {
		return nil, err
	}
	if len(in.Tags) > 0 {
		if err := c.permitAccount(authz.Actions["TagResource"], "arn:"+s.partition+":kms:"+region+":"+c.account().String()+":key/*"); err != nil {
			return nil, err
		}
	}
	document := []byte(defaultPolicy(s.partition, c.account()))
	if in.Policy != nil {
		document = []byte(*in.Policy)
	}
	there := *k
	there.Tags, there.Aliases = nil, nil
	// Whom the policy names is looked up where the replica is; here it is only asked whether it names the caller.
	lenient := func(arn string) (string, bool) {
		id, _ := s.principals.Bind(policy.PrincipalARN(arn, s.partition))
		return id, true
	}
	_, p, err := s.parsePolicy(document, lenient)
	if err != nil {
		return nil, err
	}
	return document, s.lockout(c, &there, s.arnIn(k.KeyName, region), p, in.BypassPolicyLockoutSafetyCheck)
}

// replicable says whether the key k can have a replica in the Region.
func (s *Server) replicable(k *store.Key, region string) error {
	if !k.IsPrimary() {
		return s.notPrimary(k)
	}
	if err := stateError("ReplicateKey", k.State, s.keyARN(k.KeyName)); err != nil {
		return err
	}
	m := k.MultiRegion
	if region == s.region || slices.Contains(m.Replicas, region) || slices.ContainsFunc(m.Intents, func(i store.Intent) bool { return i.Region == region }) {
		return s.replicaExists(k.KeyName, region)
	}
	if s.endpoint == nil || s.endpoint.Peer(region) == nil {
		return kmsapi.New(kmsapi.UnsupportedOperation, "Region "+region+" is not one that this service replicates to.")
	}
	return nil
}

func (s *Server) replicaExists(n store.KeyName, region string) error {
	return kmsapi.New(kmsapi.AlreadyExists, "A related key "+s.arnIn(n, region)+" already exists")
}

// awayError is what a client hears when another Region did not answer.
func (s *Server) awayError(region string, err error) error {
	if e := refusal(err); e != nil {
		return e
	}
	s.log.Warn("another Region does not answer", "region", region, "error", err.Error())
	return kmsapi.E(kmsapi.DependencyTimeout)
}

// replicated is the reply, of the primary's record after the replica was made.
func (s *Server) replicated(k *store.Key, intent *store.Intent) replicateKeyOut {
	there := *k
	there.Region, there.State, there.Description = intent.Region, kmsapi.StateCreating, intent.Description
	out := replicateKeyOut{ReplicaKeyMetadata: s.metadata(&there, ""), ReplicaPolicy: string(intent.Policy), ReplicaTags: []tagOut{}}
	out.ReplicaKeyMetadata.Arn = s.arnIn(k.KeyName, intent.Region)
	out.ReplicaKeyMetadata.CurrentKeyMaterialId = ""
	out.ReplicaKeyMetadata.CreationDate = timestamp{k.Created}
	for _, t := range intent.Tags {
		out.ReplicaTags = append(out.ReplicaTags, tagOut{TagKey: t.Key, TagValue: t.Value})
	}
	return out
}

// createReplica has an intent done: the other Region makes the replica, without material, and the primary's record has it among its replicas. k is the
// primary's record with the intent; the one returned is that without, and has Created as the replica has it. A refusal takes the intent back; after another
// error it stays.
func (s *Server) createReplica(ctx context.Context, k *store.Key, intent *store.Intent) (*store.Key, error) {
	shared, err := s.share(k)
	if err != nil {
		return nil, err
	}
	creation := &replication.Creation{Epoch: intent.Epoch, Revision: intent.Revision, Policy: intent.Policy, Description: intent.Description}
	for _, t := range intent.Tags {
		creation.Tags = append(creation.Tags, replication.Tag(t))
	}
	a, refused := s.ask(ctx, intent.Region, k.KeyName, replication.Message{
		Kind: replication.Create, Shared: shared, Creation: creation, Caller: decodeCaller(intent.Asked),
	})
	if refused != nil && refusal(refused) == nil {
		return nil, refused
	}
	failpoint.Here("replicate.created")
	done, err := s.store.UpdateKey(ctx, k.KeyName, func(k *store.Key) error {
		if !k.IsPrimary() {
			return errMoved
		}
		m := *k.MultiRegion
		m.Intents = slices.DeleteFunc(slices.Clone(m.Intents), func(i store.Intent) bool { return i.Region == intent.Region && i.Moment == intent.Moment })
		if refused == nil {
			m.Replicas = withRegion(m.Replicas, intent.Region)
			m.Have = slices.DeleteFunc(slices.Clone(m.Have), func(a store.Ack) bool { return a.Region == intent.Region })
		}
		k.MultiRegion = &m
		return s.settleDeletion(ctx, k)
	})
	s.publishKey(k.KeyName, err)
	if err != nil {
		return nil, err
	}
	if refused != nil {
		done.Wipe()
		return nil, refused
	}
	done.Created = fromMilli(a.Created)
	return done, nil
}

// errMoved says that the record is not what was decided on any more: it is read again.
var errMoved = errors.New("controlplane: the key has changed meanwhile")

// receiveCreate makes a replica without material. The same message again changes nothing, and a later one of the same primary makes it anew while it
// has no material.
func (s *Server) receiveCreate(ctx context.Context, m *replication.Message, n store.KeyName) (*replication.Answer, error) {
	in, shared := m.Creation, m.Shared
	spec := keyspec.Of(shared.Spec)
	born := store.Moment{Epoch: in.Epoch, Revision: in.Revision}
	switch {
	case shared.Primary != m.From || born.Epoch == 0 || born.Revision == 0 || shared.Epoch == 0 || shared.Revision == 0:
		return nil, kmsapi.New(kmsapi.Validation, "The message is not its primary's.")
	case shared.Spec != kmsapi.SymmetricDefault && spec == keyspec.None, !slices.Contains(specUsages[shared.Spec], shared.Usage),
		shared.Origin != originKMS && shared.Origin != "EXTERNAL", s.keys == nil:
		return nil, notOffered("KeySpec " + shared.Spec)
	}
	old, err := s.store.Key(ctx, n)
	there := err == nil
	if there {
		defer old.Wipe()
		if old.IsReplica() && old.MultiRegion.Primary == m.From && old.MultiRegion.Born == born {
			return has(old), nil // whatever its policy names may be gone since it was made
		}
	} else if !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	if _, known := s.principals.Bind("arn:" + s.partition + ":iam::" + n.Account.String() + ":root"); !known {
		return nil, kmsapi.New(kmsapi.NotFound, "There is no account "+n.Account.String()+" in Region "+s.region)
	}
	if utf8.RuneCountInString(in.Description) > kmsapi.DescriptionMax || !plausible(m.Caller) {
		return nil, kmsapi.New(kmsapi.Validation, "The message is longer than any call.")
	}
	var tags []*tagIn
	for _, t := range in.Tags {
		tags = append(tags, &tagIn{&t.Key, &t.Value})
	}
	k := &store.Key{
		KeyName: n, Description: in.Description, State: kmsapi.StateCreating, Spec: shared.Spec, Usage: shared.Usage, Origin: shared.Origin,
		Created: fromMilli(s.now().UnixMilli()), MultiRegion: &store.MultiRegion{Primary: m.From, Epoch: shared.Epoch, Revision: shared.Revision, Born: born,
			Replicas: withRegion(shared.Replicas, s.region)},
	}
	if k.Tags, err = tagsOf(tags); err != nil {
		return nil, err
	}
	slices.SortFunc(k.Tags, func(a, b store.Tag) int { return strings.Compare(a.Key, b.Key) })
	if k.Policy, _, err = s.parsePolicy(in.Policy, s.bind); err != nil {
		return nil, err
	}
	if there {
		return s.createAgain(ctx, old, k)
	}
	// AWS charges a dry run and the call itself.
	for range 2 {
		if s.quotas != nil {
			if pool, ok := quota.PoolOf(kmsapi.Route([]byte(kmsapi.TargetPrefix+"CreateKey")), ""); ok && !s.quotas.Charge(n.Account, pool, time.Now()) {
				return nil, kmsapi.E(kmsapi.Throttling)
			}
		}
	}
	limit := s.quotaOf(n.Account, quota.KeysPerAccount)
	count, err := s.store.KeyCount(ctx, s.region, n.Account)
	if err != nil {
		return nil, err
	}
	if count >= limit { // decided again in the transaction
		return nil, keyLimit()
	}
	metadata, err := json.Marshal(keyMetadataOut{s.metadata(k, "")})
	if err != nil {
		return nil, err
	}
	if err := s.auditFor(m.Caller, n, "CreateKey", nil, objectOf(nil, metadata, []shown{metadataShown})); err != nil {
		return nil, err
	}
	failpoint.Here("replicate.making")
	err = s.store.CreateKey(ctx, k, limit)
	s.publishKey(n, err) // that there is no such key may be cached
	switch {
	case errors.Is(err, store.ErrKeyLimit):
		return nil, keyLimit()
	case err != nil:
		return nil, err
	}
	return has(k), nil
}

// callerPartMax bounds each of what a record says of a caller, in bytes.
const callerPartMax = 2048

// plausible says that no part of what a message says of a caller is longer than can be.
func plausible(c *replication.Caller) bool {
	return c == nil || max(len(c.ARN), len(c.UserID), len(c.UserName), len(c.AccessKey)) <= callerPartMax
}

// createAgain is receiveCreate where there is such a key.
func (s *Server) createAgain(ctx context.Context, old, k *store.Key) (*replication.Answer, error) {
	same := old.IsReplica() && old.MultiRegion.Primary == k.MultiRegion.Primary
	if !same || old.State != kmsapi.StateCreating || !old.MultiRegion.Born.Before(k.MultiRegion.Born) {
		return nil, s.replicaExists(k.KeyName, s.region)
	}
	if err := s.store.PutPolicy(ctx, k.KeyName, func(*store.Key) (store.Policy, error) { return k.Policy, nil }); err != nil {
		return nil, err
	}
	done, err := s.store.UpdateKey(ctx, k.KeyName, func(old *store.Key) error {
		if old.State != kmsapi.StateCreating || !old.MultiRegion.Born.Before(k.MultiRegion.Born) {
			return s.replicaExists(k.KeyName, s.region)
		}
		old.Description, old.Tags, old.MultiRegion = k.Description, k.Tags, k.MultiRegion
		return nil
	})
	s.publishKey(k.KeyName, err)
	if err != nil {
		return nil, err
	}
	defer done.Wipe()
	return has(done), nil
}
