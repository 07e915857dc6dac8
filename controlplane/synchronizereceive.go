package controlplane

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json"

	"github.com/keyplane/keyplane/controlplane/replication"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/failpoint"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// replicationToken is what comes back with material: the RSA key that it is wrapped for.
type replicationToken struct {
	Root     string `json:"root"`
	Software bool   `json:"software,omitzero"`
	Wrapped  []byte `json:"wrapped"`
	Expires  int64  `json:"expires"`
}

// replicationSpec is the RSA key that material crosses for: AES-256 as strong as it makes it, and made in a second.
const replicationSpec = keyspec.RSA3072

func (s *Server) tokenBinding(n store.KeyName) []byte {
	return []byte("keyplane replication token v1|" + n.Region + "|" + n.Account.String() + "|" + n.ID.String())
}

// prepare makes the key that material is to be wrapped for, when it is its turn among those for imports.
func (s *Server) prepare(ctx context.Context, k *store.Key, a *replication.Answer) error {
	spec := keyspec.Of(k.Spec)
	if spec == keyspec.None {
		spec = keyspec.AES256
	}
	for _, w := range []keyspec.Wrapping{keyspec.WrapRSAAES256, keyspec.WrapRSAAES1} {
		if ok, err := s.keys.Imports(spec, w); err != nil {
			return err
		} else if ok {
			a.Wrapping = append(a.Wrapping, w.String())
		}
	}
	if len(a.Wrapping) == 0 || s.sealer == nil {
		return notOffered("Replication to this HSM of keys of the spec " + k.Spec)
	}
	p, err := s.wrappingKey(ctx, k.Account, replicationSpec)
	if err != nil {
		return err
	}
	t, err := json.Marshal(&replicationToken{Root: hex.EncodeToString(p.Root[:]), Software: p.Software, Wrapped: p.Wrapped, Expires: s.now().Add(tokenLifetime).UnixMilli()})
	if err != nil {
		return err
	}
	a.Public = p.Public
	a.Token, err = s.sealer.Seal(t, s.tokenBinding(k.KeyName))
	return err
}

// rootBinding is what a Region binds to that it has the root which wraps a key's material: the root seals it, so that no other can. A proof is for one Region, key and moment.
func (s *Server) rootBinding(n store.KeyName, region string, at store.Moment) []byte {
	return fmt.Appendf(nil, "keyplane replication root v1|%s|%s|%s|%d|%d", region, n.Account, n.ID, at.Epoch, at.Revision)
}

// hasRoot says whether a Region's answer proves that it has the root that wraps all of the primary k's material.
func (s *Server) hasRoot(k *store.Key, region string, a *replication.Answer) bool {
	root := s.root()
	if s.sealer == nil || commonRoot(k) != hex.EncodeToString(root[:]) {
		return false
	}
	b, err := s.sealer.Open(a.Token, s.rootBinding(k.KeyName, region, k.MultiRegion.At()))
	return err == nil && bytes.Equal(b, root[:])
}

var errToken = kmsapi.New(kmsapi.InvalidImportToken, "The token was not made for this key, or it is too old.")

func (s *Server) openPrepared(n store.KeyName, sealed []byte) (*snapshot.PrivateKey, error) {
	if s.sealer == nil {
		return nil, errToken
	}
	b, err := s.sealer.Open(sealed, s.tokenBinding(n))
	if err != nil {
		return nil, errToken
	}
	var t replicationToken
	if json.Unmarshal(b, &t, json.RejectUnknownMembers(true)) != nil || s.now().UnixMilli() > t.Expires {
		return nil, errToken
	}
	p := &snapshot.PrivateKey{Software: t.Software, Wrapped: t.Wrapped}
	if root, err := hex.DecodeString(t.Root); err != nil || copy(p.Root[:], root) != len(p.Root) {
		return nil, errToken
	}
	return p, nil
}

// receiveSync takes what related keys share, or says what material is lacking for that. What is older than what is here changes nothing, and is answered
// with what is here.
func (s *Server) receiveSync(ctx context.Context, m *replication.Message, n store.KeyName) (*replication.Answer, error) {
	k, err := s.store.Key(ctx, n)
	if errors.Is(err, store.ErrNotFound) {
		return &replication.Answer{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer k.Wipe()
	newer, err := s.accepts(k, m)
	if err != nil {
		return nil, err
	}
	if !newer {
		return has(k), s.remind(ctx, k, m)
	}
	next, err := s.adopt(k, m)
	if err != nil {
		return nil, err
	}
	need := s.lacking(next)
	if len(need) > 0 {
		if len(m.Material) == 0 {
			a := has(k)
			a.Need = need
			if root := s.root(); m.Root != "" && m.Root == hex.EncodeToString(root[:]) && s.sealer != nil {
				a.Token, err = s.sealer.Seal(root[:], s.rootBinding(n, s.region, store.Moment{Epoch: m.Shared.Epoch, Revision: m.Shared.Revision}))
				return a, err
			}
			return a, s.prepare(ctx, k, a)
		}
		if err := s.install(next, m, need); err != nil {
			return nil, err
		}
	}
	s.settleState(next)
	failpoint.Here("sync.installed")
	done, err := s.store.UpdateKey(ctx, n, func(now *store.Key) error {
		if now.Revision != k.Revision {
			return errMoved
		}
		tags, description, aliases, policy := now.Tags, now.Description, now.Aliases, now.Policy
		*now = *next
		now.Tags, now.Description, now.Aliases, now.Policy = tags, description, aliases, policy
		now.Versions = slices.Clone(next.Versions)
		return nil
	})
	s.publishKey(n, err)
	if err != nil {
		return nil, err
	}
	defer done.Wipe()
	if gaveUp(k, next) {
		if err := s.store.Compact(ctx, done.Revision); err != nil {
			s.log.Error("deleted key material is still in the store's history", "key", s.keyARN(n), "error", err.Error())
		}
	}
	s.log.Info("a multi-Region key was synchronized", "key", s.keyARN(n), "primary", m.From, "epoch", m.Shared.Epoch, "revision", m.Shared.Revision)
	return has(done), nil
}

// accepts says whether a message has something newer than the record k, from whom may say so: the primary that is known, or one to which it was handed over.
func (s *Server) accepts(k *store.Key, m *replication.Message) (newer bool, err error) {
	in, at := m.Shared, store.Moment{Epoch: m.Shared.Epoch, Revision: m.Shared.Revision}
	here := k.MultiRegion
	switch {
	case here == nil || in.Primary != m.From || in.Revision == 0 || in.Primary == s.region:
		return false, kmsapi.New(kmsapi.Validation, "The message is not its primary's.")
	case at.Epoch < here.Epoch && relates(k, m.From):
		return false, nil
	case at.Epoch > here.Epoch && s.handedOver(k, m), at.Epoch == here.Epoch && m.From == here.Primary:
	default:
		return false, kmsapi.New(kmsapi.Validation, "The message is not its primary's.")
	}
	if in.Spec != k.Spec || in.Usage != k.Usage || in.Origin != k.Origin {
		return false, kmsapi.New(kmsapi.Validation, "The message is about another key.")
	}
	return here.At().Before(at) || here.At() == at && k.State == kmsapi.StateCreating, nil
}

// handedOver says that the primary that is known here has handed over, and whoever has it since, to the message's sender. A handover counts if it was not
// taken back. This Region's own does too where its record does not know of it: then it was restored from before.
func (s *Server) handedOver(k *store.Key, m *replication.Message) bool {
	here := k.MultiRegion
	primary, epoch := here.Primary, here.Epoch
	if len(m.Shared.Handovers) > handoversMax || m.Shared.Epoch-epoch > handoversMax {
		return false
	}
	for _, envelope := range m.Shared.Handovers {
		step, err := s.endpoint.ProvenStep(envelope, m.Account, m.KeyID)
		if err != nil {
			return false
		}
		if step.Epoch < here.Epoch {
			continue
		}
		if step.From != primary || step.Epoch != epoch || epoch == here.Epoch && step.Revision <= here.Void {
			return false
		}
		primary, epoch = step.To, epoch+1
	}
	return primary == m.From && epoch == m.Shared.Epoch
}

// remind has a replica told again that takes itself for the primary still, because its record was restored from before this Region became it.
func (s *Server) remind(ctx context.Context, k *store.Key, m *replication.Message) error {
	if !k.IsPrimary() || m.Shared.Epoch >= k.MultiRegion.Epoch || !slices.Contains(k.MultiRegion.Replicas, m.From) {
		return nil
	}
	s.log.Error("a replica takes itself for the primary: was its Region restored from a backup?", "key", s.keyARN(k.KeyName), "region", m.From)
	done, err := s.store.UpdateKey(ctx, k.KeyName, func(now *store.Key) error {
		if !now.IsPrimary() {
			return errMoved
		}
		r := *now.MultiRegion
		r.Have = slices.DeleteFunc(slices.Clone(r.Have), func(a store.Ack) bool { return a.Region == m.From })
		now.MultiRegion = &r
		return nil
	})
	if err != nil {
		return err
	}
	done.Wipe()
	s.kick()
	return nil
}

// revisionsAhead bounds how far a primary follows a replica that is ahead.
const revisionsAhead = 1 << 20

// adopt is the record k with what the message says: with the material that is here, and lacking the rest.
func (s *Server) adopt(k *store.Key, m *replication.Message) (*store.Key, error) {
	in := m.Shared
	next := *k
	if !slices.IsSorted(in.Replicas) || !slices.Contains(in.Replicas, s.region) {
		return nil, kmsapi.New(kmsapi.Validation, "The message is for related keys that this is none of.")
	}
	next.MultiRegion = &store.MultiRegion{Primary: in.Primary, Replicas: in.Replicas, Epoch: in.Epoch, Revision: in.Revision, Void: in.Void, Handovers: in.Handovers, Born: k.MultiRegion.Born}
	next.Rotation, next.Current, next.Versions = store.Rotation{}, in.Current, nil
	if r := in.Rotation; r != nil {
		next.Rotation = store.Rotation{Enabled: r.Enabled, Period: r.Period, Next: fromMilli(r.Next), OnDemand: fromMilli(r.OnDemand)}
	}
	next.Import = adoptImport(in.Import, k.Import)
	for i := range in.Versions {
		v := &in.Versions[i]
		if len(v.MaterialID) != 64 {
			return nil, kmsapi.New(kmsapi.Validation, "The message has a version without a material ID.")
		}
		made := store.Version{Created: fromMilli(v.Created), Rotated: fromMilli(v.Rotated), OnDemand: v.OnDemand}
		made.Number, made.Missing = v.Number, true
		copy(made.MaterialID[:], v.MaterialID)
		var mine *store.Import
		for j := range k.Versions {
			if have := &k.Versions[j]; have.Number == v.Number && have.MaterialID == made.MaterialID {
				made.Root, made.Resident, made.Missing, mine = have.Root, have.Resident, have.Missing, have.Import
			}
		}
		made.Import = adoptImport(v.Import, mine)
		next.Versions = append(next.Versions, made)
	}
	// A version that has encrypted is never given up, whatever another Region says.
	for i := range k.Versions {
		have := &k.Versions[i]
		if have.Number <= k.Current && !slices.ContainsFunc(next.Versions, func(v store.Version) bool {
			return v.Number == have.Number && v.MaterialID == have.MaterialID
		}) {
			return nil, kmsapi.New(kmsapi.Validation, "The message lacks a version that this Region has.")
		}
	}
	return &next, nil
}

// gaveUp says that the record k has material that next has not: it waited for a rotation, and was deleted at the primary.
func gaveUp(k, next *store.Key) bool {
	return slices.ContainsFunc(k.Versions, func(v store.Version) bool {
		return !v.Missing && !slices.ContainsFunc(next.Versions, func(n store.Version) bool { return n.MaterialID == v.MaterialID })
	})
}

// adoptImport is what is shared of imported material with what is this Region's own.
func adoptImport(in *replication.Import, mine *store.Import) *store.Import {
	if in == nil {
		return mine
	}
	out := new(store.Import)
	if mine != nil {
		*out = *mine
	}
	out.Description = in.Description
	if b, err := hex.DecodeString(in.Fingerprint); err == nil && len(b) == len(out.Fingerprint) {
		copy(out.Fingerprint[:], b)
	}
	return out
}

// lacking are the IDs of the material that has to come from the primary. That of origin EXTERNAL is imported by the customer, in each Region.
func (s *Server) lacking(k *store.Key) (ids []string) {
	if k.Origin != originKMS {
		return nil
	}
	if keyspec.Of(k.Spec) != keyspec.None {
		if k.Private == nil {
			ids = append(ids, "")
		}
		return ids
	}
	for i := range k.Versions {
		if v := &k.Versions[i]; v.Missing {
			ids = append(ids, string(v.MaterialID[:]))
		}
	}
	return ids
}

// install puts the material that came into the record, after it was found to be what it was announced as.
func (s *Server) install(k *store.Key, m *replication.Message, need []string) error {
	for _, id := range need {
		i := slices.IndexFunc(m.Material, func(x replication.Material) bool { return x.ID == id })
		if i < 0 {
			return kmsapi.New(kmsapi.IncorrectKeyMaterial, "Material is lacking.")
		}
		spec := keyspec.Of(k.Spec)
		if spec == keyspec.None {
			spec = keyspec.AES256
		}
		p, err := s.takeIn(k, m, &m.Material[i], spec)
		if err != nil {
			return err
		}
		if spec != keyspec.AES256 {
			if spec.Info().Family == keyspec.HMAC {
				images, err := s.keys.Images(spec, p)
				if err != nil {
					return err
				}
				if !bytes.Equal(images[:], m.Shared.Images) {
					return errOtherMaterial
				}
			} else if !bytes.Equal(p.Public, m.Shared.Public) {
				return errOtherMaterial
			}
			k.Private = named(k, p)
			continue
		}
		images, err := s.keys.Images(spec, p)
		if err != nil {
			return err
		}
		if got := snapshot.ResidentMaterialID(k.Account, k.ID, images); string(got[:]) != id {
			return errOtherMaterial
		}
		for j := range k.Versions {
			if v := &k.Versions[j]; string(v.MaterialID[:]) == id {
				v.Resident, v.Missing = named(k, p), false
				v.Root = p.Root
			}
		}
	}
	return nil
}

var errOtherMaterial = kmsapi.New(kmsapi.IncorrectKeyMaterial, "The material is not what it was announced as.")

// takeIn takes one backing key in.
func (s *Server) takeIn(k *store.Key, m *replication.Message, x *replication.Material, spec keyspec.Spec) (*snapshot.PrivateKey, error) {
	if x.Copied {
		root := s.root()
		if m.Root != hex.EncodeToString(root[:]) {
			return nil, errOtherMaterial
		}
		p := &snapshot.PrivateKey{Root: root, Software: x.Software, Wrapped: x.Wrapped}
		if spec.Info().Public > 0 {
			p.Public = m.Shared.Public // what is copied has none of its own
		}
		return p, nil
	}
	w := keyspec.WrappingOf(x.Wrapping)
	if w != keyspec.WrapRSAAES256 && w != keyspec.WrapRSAAES1 {
		return nil, errOtherMaterial
	}
	wrapping, err := s.openPrepared(k.KeyName, m.Token)
	if err != nil {
		return nil, err
	}
	p, err := s.keys.Import(spec, replicationSpec, wrapping, w, x.Wrapped)
	if err != nil && refusal(err) == nil {
		return nil, fmt.Errorf("%w: %w", errOtherMaterial, err)
	}
	return p, err
}

// settleState ends Creating, and the Updating of a primary that is none any more. A key that lacks material waits for its import; one that waited, also because
// its deletion was scheduled and cancelled while it was Creating, waits no longer when it has it.
func (s *Server) settleState(k *store.Key) {
	switch {
	case k.State == kmsapi.StateCreating && k.Incomplete():
		k.State = kmsapi.StatePendingImport
	case k.State == kmsapi.StateCreating:
		k.State = kmsapi.StateEnabled
	case k.State == kmsapi.StateUpdating:
		k.State, k.Resume = k.Resume, 0
	}
	restate(k) // the primary may have rotated to material that was not imported here
}
