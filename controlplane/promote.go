package controlplane

import (
	"context"
	"errors"
	"slices"

	"github.com/keyplane/keyplane/controlplane/replication"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/failpoint"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// UpdatePrimaryRegion hands a key's primary from one Region, the old, to another, the new:
//
//	old   state Updating, Promoting = new                  the intent; shared properties can still change, and are synchronized
//	old   Frozen, once the new Region has them all         nothing shared can change here from now on, whoever is the primary
//	old → new   promote                                    at exactly the moment that both have
//	new   primary of the next epoch, Former = old          the one decision, in one transaction
//	new → old, others   sync                               the old one is a replica when it hears of the next epoch, and no earlier
//
// The promote carries an envelope that proves it, which the new one keeps with those of earlier changes, and shows to the others: they believe nobody that
// it is the primary who cannot show every change since the primary that they know, each signed by the former primary.
//
// The new Region refuses for good if it is not at that moment, or in a state that cannot be: then the old one counts a revision more and stays as it is,
// frozen, until the new Region has that too, because only then can an earlier promote, which may be on its way still, do nothing any more.

// handoversMax is how many changes of the primary are proved. A replica that heard of none of so many is deleted, and made anew.
const handoversMax = 16

type updatePrimaryRegionIn struct {
	KeyId         *string
	PrimaryRegion *string
}

func (in *updatePrimaryRegionIn) check(v *kmsapi.Violations) {
	checkKeyID(v, "keyId", in.KeyId)
	checkRegion(v, "primaryRegion", in.PrimaryRegion)
}

func (s *Server) updatePrimaryRegion(ctx context.Context, c *call, in *updatePrimaryRegionIn) (none, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return none{}, err
	}
	region := *in.PrimaryRegion
	c.context.Extra = []authz.ExtraValue{{Key: policy.KMSPrimaryRegion, Value: region}}
	k, err := s.store.Key(ctx, n)
	if err != nil {
		return none{}, s.keyError(c, n, err)
	}
	defer k.Wipe()
	if err := s.promotable(ctx, c, k, region); err != nil {
		return none{}, err
	}
	a, err := s.ask(ctx, region, n, replication.Message{Kind: replication.State})
	if err != nil {
		return none{}, s.awayError(region, err)
	}
	if !a.Exists {
		return none{}, s.noReplica(k, region)
	}
	if err := s.permitThere(c, k, region, a); err != nil {
		return none{}, err
	}
	if err := stateError(c.op.Name, kmsapi.KeyStateOf(a.State), s.arnIn(n, region)); err != nil {
		return none{}, err
	}
	asked, err := encodeCaller(c.asked())
	if err != nil {
		return none{}, err
	}
	noted, err := s.store.UpdateKey(ctx, n, func(k *store.Key) error {
		if err := s.promotable(ctx, c, k, region); err != nil || k.MultiRegion.Promoting == region {
			return err
		}
		m := *k.MultiRegion
		m.Promoting, m.Asked = region, asked
		k.MultiRegion = &m
		if k.State != kmsapi.StateUpdating {
			k.State, k.Resume = kmsapi.StateUpdating, k.State
		}
		return nil
	})
	s.publishKey(n, err)
	if err != nil {
		return none{}, s.keyError(c, n, err)
	}
	noted.Wipe()
	failpoint.Here("promote.intended")
	s.kick()
	return none{}, nil
}

// promotable says whether the caller may give the primary k to another Region, as it is.
func (s *Server) promotable(ctx context.Context, c *call, k *store.Key, region string) error {
	if err := s.authorize(ctx, c, k); err != nil {
		return err
	}
	arn := s.keyARN(k.KeyName)
	if !k.IsPrimary() {
		return s.notPrimary(k)
	}
	if err := stateError(c.op.Name, k.State, arn); err != nil {
		return err
	}
	m := k.MultiRegion
	switch {
	case region == s.region:
		return kmsapi.New(kmsapi.UnsupportedOperation, arn+" is the multi-region primary key already.")
	case !slices.Contains(m.Replicas, region):
		return s.noReplica(k, region)
	case m.Promoting != "" && m.Promoting != region, m.Withdrawn, m.Former != "", len(m.Intents) > 0:
		return kmsapi.New(kmsapi.KMSInvalidState, arn+stateTexts[kmsapi.StateUpdating])
	}
	return nil
}

func (s *Server) noReplica(k *store.Key, region string) error {
	return kmsapi.New(kmsapi.NotFound, "Key '"+s.arnIn(k.KeyName, region)+"' does not exist")
}

// permitThere asks the replica's key policy, as its Region says that it is, about the caller. Nobody has grants for this operation.
func (s *Server) permitThere(c *call, k *store.Key, region string, a *replication.Answer) error {
	bound := a.Bound
	if p := s.endpoint.Peer(region); p != nil && !p.Local {
		// The other Region has principals of its own, with unique IDs of its own; ARNs are what both have in common.
		bound = make(map[string]string, len(a.Bound))
		for arn := range a.Bound {
			if id, ok := s.bind(arn); ok {
				bound[arn] = id
			} else {
				bound[arn] = "nobody"
			}
		}
	}
	compiled, err := snapshot.CompilePolicy(a.Policy, bound)
	if err != nil {
		compiled = new(policy.Policy)
	}
	facts := k.Facts()
	facts.MultiRegionKeyType, facts.Tags, facts.Aliases = "REPLICA", nil, a.Alias
	for _, t := range a.Tags {
		facts.Tags = append(facts.Tags, authz.Tag(t))
	}
	c.context.Key, c.context.Region = &facts, region
	defer func() { c.context.Region = s.region }()
	_, err = c.decide(&authz.Question{Action: c.action, Resource: []byte(s.arnIn(k.KeyName, region)), Owner: k.Account, Policy: compiled})
	return err
}

// promote takes the change of the primary k one step further.
func (s *Server) promote(ctx context.Context, k *store.Key, failed map[string]bool, name string) error {
	m := k.MultiRegion
	at, region := m.At(), m.Promoting
	step := func(change func(k *store.Key, m *store.MultiRegion)) error {
		done, err := s.store.UpdateKey(ctx, k.KeyName, func(now *store.Key) error {
			if now.Revision != k.Revision {
				return errMoved
			}
			r := *now.MultiRegion
			change(now, &r)
			now.MultiRegion = &r
			return nil
		})
		s.publishKey(k.KeyName, err)
		if err == nil {
			done.Wipe()
		}
		return err
	}
	switch {
	case m.Withdrawn:
		return step(stay)
	case !m.Frozen:
		return step(func(_ *store.Key, r *store.MultiRegion) { r.Frozen = true })
	}
	failpoint.Here("promote.frozen")
	shared, err := s.share(k)
	if err != nil {
		return err
	}
	proof, err := s.endpoint.Handover(k.Account.String(), k.ID.String(), replication.Step{To: region, Epoch: at.Epoch, Revision: at.Revision})
	if err != nil {
		return err
	}
	a, err := s.ask(ctx, region, k.KeyName, replication.Message{Kind: replication.Promote, Shared: shared, Caller: decodeCaller(m.Asked), Handover: proof})
	if refusal(err) != nil {
		s.log.Warn("another Region does not become the primary", "key", s.keyARN(k.KeyName), "region", region, "error", err.Error())
		return step(func(_ *store.Key, r *store.MultiRegion) {
			r.Withdrawn, r.Revision, r.Void = true, at.Revision+1, at.Revision
		})
	}
	if err != nil {
		return err
	}
	failpoint.Here("promote.promoted")
	failed[name] = true // nothing is left to do here: the new primary says so, with what it shares
	s.log.Info("another Region is the primary", "key", s.keyARN(k.KeyName), "region", region, "epoch", a.Epoch)
	return nil
}

// stay ends the change of a primary k that stays it. r is what k is going to know of its related keys.
func stay(k *store.Key, r *store.MultiRegion) {
	r.Promoting, r.Frozen, r.Withdrawn, r.Asked = "", false, false, nil
	if k.State == kmsapi.StateUpdating {
		k.State, k.Resume = k.Resume, 0
	}
}

// receivePromote makes this Region the primary, if it has exactly what the old one has.
func (s *Server) receivePromote(ctx context.Context, m *replication.Message, n store.KeyName) (*replication.Answer, error) {
	in := m.Shared
	at := store.Moment{Epoch: in.Epoch, Revision: in.Revision}
	told := false
	if step, err := s.endpoint.ProvenStep(m.Handover, m.Account, m.KeyID); err != nil || step != (replication.Step{From: m.From, To: s.region, Epoch: at.Epoch, Revision: at.Revision}) {
		return nil, kmsapi.New(kmsapi.Validation, "The message has no proof for other Regions.")
	}
	done, err := s.store.UpdateKey(ctx, n, func(k *store.Key) error {
		r := k.MultiRegion
		if r != nil && k.IsPrimary() && r.Epoch == at.Epoch+1 && slices.Contains(r.Replicas, m.From) {
			return nil // it is
		}
		if r == nil || m.From != r.Primary || r.At() != at {
			return kmsapi.New(kmsapi.Conflict, "This Region is at another moment.")
		}
		if err := stateError("UpdatePrimaryRegion", k.State, s.keyARN(n)); err != nil {
			return err
		}
		if !told {
			request := cloudtrail.AppendMember(cloudtrail.AppendMember([]byte{'{'}, "keyId", []byte(s.arnIn(n, m.From))), "primaryRegion", []byte(s.region))
			if err := s.auditFor(m.Caller, n, "UpdatePrimaryRegion", append(request, '}'), nil); err != nil {
				return err
			}
			told = true
		}
		k.MultiRegion = &store.MultiRegion{
			Primary: s.region, Replicas: withRegion(withoutRegion(r.Replicas, s.region), m.From), Epoch: at.Epoch + 1, Revision: 1, Former: m.From,
			Handovers: append(slices.Clone(r.Handovers[max(0, len(r.Handovers)-handoversMax+1):]), m.Handover),
		}
		k.State, k.Resume = kmsapi.StateUpdating, k.State
		return nil
	})
	s.publishKey(n, err)
	if err != nil {
		return nil, s.remoteError(n, err)
	}
	defer done.Wipe()
	failpoint.Here("promote.taken")
	s.kick()
	return has(done), nil
}

// promoted ends the change at the new primary, after the former was told or did not answer.
func (s *Server) promoted(ctx context.Context, k *store.Key) error {
	done, err := s.store.UpdateKey(ctx, k.KeyName, func(now *store.Key) error {
		m := *now.MultiRegion
		m.Former = ""
		now.MultiRegion = &m
		if now.State == kmsapi.StateUpdating && m.Promoting == "" {
			now.State, now.Resume = now.Resume, 0
		}
		return nil
	})
	s.publishKey(k.KeyName, err)
	if err == nil {
		done.Wipe()
	}
	return err
}

// remoteError words an error of the store about a key that another Region asked about.
func (s *Server) remoteError(n store.KeyName, err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return kmsapi.New(kmsapi.NotFound, "Key '"+s.keyARN(n)+"' does not exist")
	}
	return err
}
