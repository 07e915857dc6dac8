package controlplane

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keyplane/keyplane/controlplane/replication"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// Multi-Region keys. Related keys, the primary and its replicas, are records of several Regions, each with a Server and perhaps a store and a token of its
// own. What they share changes at the primary only, in its record; a worker takes it to the replicas, again and again until they have acknowledged it
// (synchronize.go). What has been promised to a client is in the record before the reply: replicas that are to be made (replicate.go), and another
// Region that is to be the primary (promote.go). docs/replication.md has the protocol.

// Replication is this Region's end of what Regions say to each other.
type Replication struct {
	Sign   replication.Sign
	Public *ecdsa.PublicKey   // of what Sign signs
	Peers  []replication.Peer // the other Regions, all of the same partition
}

// replicationTimeout bounds one exchange with a peer that an HSM may have to make an RSA key for, and what is done with one message.
const replicationTimeout = 30 * time.Second

// everywhereTimeout bounds the questions of one request to all other Regions.
const everywhereTimeout = 2 * time.Second

// regionalKey is one of several related keys.
type regionalKey struct {
	Arn    string
	Region string
}

type multiRegionConfiguration struct {
	MultiRegionKeyType string
	PrimaryKey         regionalKey
	ReplicaKeys        []regionalKey
}

func (s *Server) related(k *store.Key) *multiRegionConfiguration {
	m := k.MultiRegion
	if m == nil {
		return nil
	}
	facts := k.Facts()
	out := &multiRegionConfiguration{MultiRegionKeyType: facts.MultiRegionKeyType, PrimaryKey: s.regional(k.KeyName, m.Primary), ReplicaKeys: []regionalKey{}}
	for _, r := range m.Replicas {
		out.ReplicaKeys = append(out.ReplicaKeys, s.regional(k.KeyName, r))
	}
	return out
}

func (s *Server) regional(n store.KeyName, region string) regionalKey {
	return regionalKey{s.arnIn(n, region), region}
}

// arnIn is the ARN of the related key in another Region.
func (s *Server) arnIn(n store.KeyName, region string) string {
	return string(keyid.AppendKeyARN(nil, s.partition, region, n.Account, n.ID))
}

// inSync says that every replica is known to have what the primary k shares with them as it is now, so that it may be used or built on there.
func inSync(k *store.Key) bool { return !k.IsPrimary() || k.MultiRegion.Synchronized() }

func (s *Server) notPrimary(k *store.Key) error {
	return kmsapi.New(kmsapi.UnsupportedOperation, s.keyARN(k.KeyName)+" is not a multi-region primary key.")
}

// resident makes the first backing key of a multi-Region symmetric encryption key. Material that is derived from this Region's root could come to no other
// Region, so it is a key of its own.
func (s *Server) resident(k *store.Key) (*[32]byte, error) {
	if s.keys == nil {
		return nil, notOffered("MultiRegion")
	}
	p, err := s.keys.New(keyspec.AES256)
	if err != nil {
		return nil, err
	}
	k.Versions[0].Resident = p
	return s.keys.Images(keyspec.AES256, p)
}

// named is a copy of a backing key with the ID that it has as k's.
func named(k *store.Key, p *snapshot.PrivateKey) *snapshot.PrivateKey {
	c := *p
	c.ID = snapshot.PrivateKeyID(k.Account, k.ID, k.Spec, k.Usage, &c)
	return &c
}

// Replicate answers a message of another Region's Server. An error is all that a stranger gets.
func (s *Server) Replicate(ctx context.Context, envelope []byte) ([]byte, error) {
	if s.endpoint == nil {
		return nil, errors.New("controlplane: no Regions are configured to replicate with")
	}
	ctx, cancel := context.WithTimeout(ctx, replicationTimeout)
	defer cancel()
	return s.endpoint.Receive(ctx, envelope, s.answer)
}

// answer does what a verified message asks for.
func (s *Server) answer(ctx context.Context, m *replication.Message) *replication.Answer {
	a, err := s.perform(ctx, m)
	if err == nil {
		return a
	}
	e := exception(err)
	if definite(e.Code) {
		s.log.Warn("a replication message was refused", "from", m.From, "kind", string(m.Kind), "key", m.KeyID, "error", e.Error())
	} else {
		s.log.Error("a replication message failed", "from", m.From, "kind", string(m.Kind), "key", m.KeyID, "error", err.Error())
	}
	return &replication.Answer{Refused: e.Code.Type(), Text: e.Message}
}

func (s *Server) perform(ctx context.Context, m *replication.Message) (*replication.Answer, error) {
	n := store.KeyName{Region: s.region}
	var accountOK, idOK bool
	n.Account, accountOK = keyid.ParseAccount([]byte(m.Account))
	n.ID, idOK = keyid.ParseID([]byte(m.KeyID))
	if !accountOK || !idOK || !n.ID.MultiRegion {
		return nil, kmsapi.New(kmsapi.Validation, "The message names no multi-Region key.")
	}
	switch m.Kind {
	case replication.State:
		return s.receiveState(ctx, m, n)
	case replication.Create:
		return s.receiveCreate(ctx, m, n)
	case replication.Sync:
		return s.receiveSync(ctx, m, n)
	case replication.Promote:
		return s.receivePromote(ctx, m, n)
	case replication.Gone:
		return s.receiveGone(ctx, m, n)
	}
	return nil, kmsapi.E(kmsapi.UnknownOperation)
}

// definite says of a refusal that what was asked for was not done, and will not be.
func definite(c kmsapi.Code) bool {
	return c != kmsapi.KMSInternal && c != kmsapi.DependencyTimeout && c != kmsapi.KeyUnavailable && c != kmsapi.ServiceUnavailable
}

// ask sends a request about a key to another Region. A refusal is a *kmsapi.Error; every other error leaves open what became of the request.
func (s *Server) ask(ctx context.Context, region string, n store.KeyName, m replication.Message) (*replication.Answer, error) {
	if s.endpoint == nil {
		return nil, errors.New("controlplane: no Regions are configured to replicate with")
	}
	m.Account, m.KeyID = n.Account.String(), n.ID.String()
	a, err := s.endpoint.Call(ctx, region, m)
	s.away.note(region, err, s.running())
	if err != nil {
		return nil, err
	}
	if a.Refused == "" {
		return a, nil
	}
	if code := kmsapi.CodeOf(a.Refused); code != kmsapi.OK && definite(code) {
		return nil, kmsapi.New(code, a.Text)
	}
	return nil, fmt.Errorf("controlplane: Region %s could not do what it was asked for: %s", region, a.Refused)
}

// refusal is the *kmsapi.Error in an error of ask, nil where the outcome is open.
func refusal(err error) *kmsapi.Error {
	e, _ := errors.AsType[*kmsapi.Error](err)
	return e
}

// moment is what an answer says that the other Region has.
func moment(a *replication.Answer) store.Moment {
	return store.Moment{Epoch: a.Epoch, Revision: a.Revision}
}

// has is what this Region says of a key that it has.
func has(k *store.Key) *replication.Answer {
	a := &replication.Answer{Exists: true, State: k.State.String(), Created: k.Created.UnixMilli()}
	if m := k.MultiRegion; m != nil {
		a.Primary, a.Epoch, a.Revision = m.Primary, m.Epoch, m.Revision
	}
	return a
}

// relates says that a Region is one of those of the key k, as far as this one knows.
func relates(k *store.Key, region string) bool {
	return k.MultiRegion.Primary == region || slices.Contains(k.MultiRegion.Replicas, region)
}

// hasFor is has for a Region: to one that is none of the key's, only that there is such a key.
func hasFor(k *store.Key, region string) *replication.Answer {
	if !relates(k, region) {
		return &replication.Answer{Exists: true}
	}
	return has(k)
}

// receiveState says what this Region has of a key, and to the primary what decides about who may make it the primary.
func (s *Server) receiveState(ctx context.Context, m *replication.Message, n store.KeyName) (*replication.Answer, error) {
	k, err := s.store.Key(ctx, n)
	if errors.Is(err, store.ErrNotFound) {
		return &replication.Answer{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer k.Wipe()
	a := hasFor(k, m.From)
	if v := waiting(k); v != nil && k.Origin == originExternal && relates(k, m.From) {
		a.Waiting = string(v.MaterialID[:])
	}
	if k.MultiRegion.Primary != m.From {
		return a, nil
	}
	a.Policy, a.Bound, a.Alias = k.Policy.Document, k.Policy.Bound, k.Aliases
	for _, t := range k.Tags {
		a.Tags = append(a.Tags, replication.Tag(t))
	}
	return a, nil
}

// everywhere says whether material of origin EXTERNAL that waits for a rotation of k is imported into all related keys, as their Regions say when asked. One that
// does not answer may not have it. Nothing is kept of the answers: material can be deleted, and can expire, in each Region at any time.
func (s *Server) everywhere(ctx context.Context, k *store.Key, v *store.Version) bool {
	m := k.MultiRegion
	if m == nil {
		return true
	}
	if !inSync(k) {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, everywhereTimeout)
	defer cancel()
	var lacking atomic.Bool
	var asking sync.WaitGroup
	for _, region := range withoutRegion(withRegion(m.Replicas, m.Primary), s.region) {
		asking.Go(func() {
			if s.away.skip(region, s.running()) {
				lacking.Store(true)
				return
			}
			a, err := s.ask(ctx, region, k.KeyName, replication.Message{Kind: replication.State})
			if err != nil || a.Waiting != string(v.MaterialID[:]) {
				lacking.Store(true)
			}
		})
	}
	asking.Wait()
	return !lacking.Load()
}

// share is what related keys have in common with the primary k.
func (s *Server) share(k *store.Key) (*replication.Shared, error) {
	m := k.MultiRegion
	out := &replication.Shared{
		Spec: k.Spec, Usage: k.Usage, Origin: k.Origin, Primary: m.Primary, Replicas: m.Replicas, Epoch: m.Epoch, Revision: m.Revision, Current: k.Current,
		Void: m.Void, Handovers: m.Handovers, Import: shareImport(k.Import),
	}
	if r := k.Rotation; r != (store.Rotation{}) {
		out.Rotation = &replication.Rotation{Enabled: r.Enabled, Period: r.Period, Next: milli(r.Next), OnDemand: milli(r.OnDemand)}
	}
	for i := range k.Versions {
		v := &k.Versions[i]
		out.Versions = append(out.Versions, replication.Version{
			Number: v.Number, MaterialID: string(v.MaterialID[:]), Created: milli(v.Created), Rotated: milli(v.Rotated), OnDemand: v.OnDemand, Import: shareImport(v.Import),
		})
	}
	if p := k.Private; p != nil {
		out.Public = p.Public
		if spec := keyspec.Of(k.Spec); spec.Info().Family == keyspec.HMAC && k.Origin == originKMS {
			images, err := s.keys.Images(spec, p)
			if err != nil {
				return nil, err
			}
			out.Images = images[:]
		}
	}
	return out, nil
}

func shareImport(m *store.Import) *replication.Import {
	if m == nil {
		return nil
	}
	out := &replication.Import{Description: m.Description}
	if m.Fingerprint != [32]byte{} {
		out.Fingerprint = fmt.Sprintf("%x", m.Fingerprint)
	}
	return out
}

// milli and fromMilli are dates of messages: 0 is none.
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

// asked is who makes a call, for the records of other Regions.
func (c *call) asked() *replication.Caller {
	w := c.principal()
	if w == nil {
		return nil
	}
	return &replication.Caller{
		Kind: uint8(w.Kind), Account: w.Account.String(), ARN: w.ARN, UserID: w.UserID, UserName: w.UserName, AccessKey: c.caller.AccessKeyID(),
	}
}

func encodeCaller(c *replication.Caller) ([]byte, error) {
	if c == nil {
		return nil, nil
	}
	return json.Marshal(c)
}

func decodeCaller(b []byte) *replication.Caller {
	c := new(replication.Caller)
	if len(b) == 0 || json.Unmarshal(b, c) != nil {
		return nil
	}
	return c
}

// auditFor leaves the record of what was done in this Region because of a call in another: kms.amazonaws.com calls for whoever made that.
func (s *Server) auditFor(by *replication.Caller, n store.KeyName, name string, request, reply []byte) error {
	if s.sink == nil {
		return nil
	}
	r := &cloudtrail.Record{
		Time: s.now().UTC(), Source: cloudtrail.KMS, Name: name, Region: s.region, Recipient: n.Account, RequestParameters: request, ResponseElements: reply,
		Type: cloudtrail.AwsInternalCall,
	}
	if by != nil {
		if a, ok := keyid.ParseAccount([]byte(by.Account)); ok {
			r.Type, r.AccessKeyID = cloudtrail.AwsApiCall, by.AccessKey
			r.Caller = &authz.Caller{
				Principal: policy.Principal{Kind: policy.PrincipalKind(by.Kind), Account: a, ARN: by.ARN}, UserID: by.UserID, UserName: by.UserName,
				ViaName: cloudtrail.KMS,
			}
		}
	}
	s.events.Fill(&r.EventID)
	r.AddResource([]byte(s.keyARN(n)), n.Account)
	if err := s.sink(r.Append(nil)); err != nil {
		s.unrecorded.Add(1)
		return fmt.Errorf("%s of %s cannot be recorded and is not done: %w", name, s.keyARN(n), err)
	}
	return nil
}

// withRegion and withoutRegion are a sorted list of Regions with, and without, one of them. The list given stays as it is.
func withRegion(list []string, region string) []string {
	out := append(slices.Clone(list), region)
	slices.Sort(out)
	return slices.Compact(out)
}

func withoutRegion(list []string, region string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(r string) bool { return r == region })
}
