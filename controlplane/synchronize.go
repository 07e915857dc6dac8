package controlplane

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keyplane/keyplane/controlplane/replication"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/failpoint"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

const (
	// replicationsPerTurn bounds what the worker reads of an index at a time.
	replicationsPerTurn = 100
	// pushesMax bounds the steps that one turn takes with one key: each is one exchange with a peer, and changes the record.
	pushesMax = 64
	// tokenLifetime is how long a public key that was made for an exchange may be used.
	tokenLifetime = 10 * time.Minute
)

// kick has the workers look for what there is to replicate now.
func (s *Server) kick() {
	select {
	case s.kicked <- struct{}{}:
	default:
	}
}

// kickFor kicks for a record that was changed, if it has something to tell.
func (s *Server) kickFor(k *store.Key) {
	if !inSync(k) {
		s.kick()
	}
}

// replicate tells other Regions once what there is to tell, one after the other: Run has a lane for each (lanes.go). One key or peer that it does not work with does not
// keep the others from it.
func (s *Server) replicate(ctx context.Context) error {
	if s.endpoint == nil {
		return nil
	}
	return errors.Join(
		s.eachToTell(ctx, func(n store.KeyName) error { return s.push(ctx, n, anyRegion) }),
		s.eachFarewell(ctx, func(f *store.Farewell) error { return s.sayFarewell(ctx, f) }),
	)
}

// eachToTell calls tell for every primary that has something to tell, and returns all errors together, but those of tell do not end it.
func (s *Server) eachToTell(ctx context.Context, tell func(store.KeyName) error) error {
	var errs []error
	var after *store.Due
	for {
		due, err := s.store.Due(ctx, store.Replicating, s.region, store.AtOnce, after, replicationsPerTurn)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for i := range due {
			if err := tell(due[i].KeyName); err != nil {
				errs = append(errs, err)
			}
			after = &due[i]
		}
		if len(due) < replicationsPerTurn {
			return errors.Join(errs...)
		}
	}
}

// eachFarewell does so for every farewell.
func (s *Server) eachFarewell(ctx context.Context, tell func(*store.Farewell) error) error {
	var errs []error
	var last *store.Farewell
	for {
		farewells, err := s.store.Farewells(ctx, s.region, last, replicationsPerTurn)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for i := range farewells {
			if err := tell(&farewells[i]); err != nil {
				errs = append(errs, err)
			}
			last = &farewells[i]
		}
		if len(farewells) < replicationsPerTurn {
			return errors.Join(errs...)
		}
	}
}

// anyRegion is every Region.
func anyRegion(string) bool { return true }

// push takes a primary's record forward until every replica that answers has what there is, of those in the Regions that are meant. What is under way is read from the
// record before every step, so that it goes on wherever it was left; others may take it forward at the same time, with other Regions.
func (s *Server) push(ctx context.Context, n store.KeyName, meant func(region string) bool) error {
	var errs []error
	failed := map[string]bool{} // steps of this turn
	for range pushesMax {
		k, err := s.store.Key(ctx, n)
		if errors.Is(err, store.ErrNotFound) {
			return errors.Join(errs...)
		}
		if err != nil {
			return err
		}
		name, step := s.nextStep(k, failed, meant)
		if step == nil {
			k.Wipe()
			return errors.Join(errs...)
		}
		stepCtx, cancel := context.WithTimeout(ctx, 2*replicationTimeout)
		err = step(stepCtx)
		cancel()
		k.Wipe()
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			failed[name] = true
			errs = append(errs, fmt.Errorf("%s of %s: %w", name, s.keyARN(n), err))
		}
	}
	return errors.Join(append(errs, fmt.Errorf("%s: after %d steps there is more to do", s.keyARN(n), pushesMax))...)
}

// nextStep is the first thing to do for a primary that did not fail in this turn, with one of the Regions that are meant; nil for nothing.
func (s *Server) nextStep(k *store.Key, failed map[string]bool, meant func(region string) bool) (string, func(context.Context) error) {
	m := k.MultiRegion
	if !k.IsPrimary() {
		return "", nil
	}
	may := func(name, region string) bool {
		return meant(region) && !failed[name] && !s.away.skip(region, s.running())
	}
	for i := range m.Intents {
		intent := &m.Intents[i]
		if name := "creating the replica in " + intent.Region; may(name, intent.Region) {
			return name, func(ctx context.Context) error {
				done, err := s.createReplica(ctx, k, intent)
				if err == nil {
					done.Wipe()
				} else if refusal(err) != nil {
					s.log.Warn("a replica that was asked for is not made", "key", s.keyARN(k.KeyName), "region", intent.Region, "error", err.Error())
					err = nil
				}
				return err
			}
		}
	}
	for _, region := range m.Replicas {
		if name := "synchronizing with " + region; !m.HasIt(region) && may(name, region) {
			return name, func(ctx context.Context) error { return s.syncReplica(ctx, k, region) }
		}
	}
	// Whether the former primary has been told or does not answer: this one is the primary now. If it does not answer, whoever comes here ends the change, since the
	// lane of its Region takes up no keys then.
	if name := "ending the change of the primary"; m.Former != "" && (meant(m.Former) || s.away.skip(m.Former, s.running())) && !failed[name] {
		return name, func(ctx context.Context) error { return s.promoted(ctx, k) }
	}
	if name := "making " + m.Promoting + " the primary"; m.Promoting != "" && may(name, m.Promoting) && (m.Frozen || m.HasIt(m.Promoting)) {
		if m.Withdrawn && !m.HasIt(m.Promoting) {
			return "", nil
		}
		return name, func(ctx context.Context) error { return s.promote(ctx, k, failed, name) }
	}
	return "", nil
}

// syncReplica brings one replica to where the primary k is.
func (s *Server) syncReplica(ctx context.Context, k *store.Key, region string) error {
	shared, err := s.share(k)
	if err != nil {
		return err
	}
	m := replication.Message{Kind: replication.Sync, Shared: shared, Root: commonRoot(k)}
	a, err := s.ask(ctx, region, k.KeyName, m)
	if err != nil {
		return err
	}
	if len(a.Need) > 0 {
		if m.Material, err = s.wrap(k, a); err != nil {
			return err
		}
		m.Token = a.Token
		failpoint.Here("sync.wrapped")
		if a, err = s.ask(ctx, region, k.KeyName, m); err != nil {
			return err
		}
	}
	if !a.Exists {
		return s.dropReplica(ctx, k, region)
	}
	if k.MultiRegion.At().Before(moment(a)) {
		return s.overtaken(ctx, k, region, a)
	}
	if moment(a) != k.MultiRegion.At() || len(a.Need) > 0 {
		return fmt.Errorf("controlplane: Region %s has revision %d of epoch %d", region, a.Revision, a.Epoch)
	}
	failpoint.Here("sync.taken")
	if err := s.auditSync(k); err != nil {
		return err
	}
	done, err := s.store.UpdateKey(ctx, k.KeyName, func(now *store.Key) error {
		if !now.IsPrimary() || now.MultiRegion.Epoch != k.MultiRegion.Epoch || !slices.Contains(now.MultiRegion.Replicas, region) {
			return errMoved
		}
		r := *now.MultiRegion
		r.Have = slices.DeleteFunc(slices.Clone(r.Have), func(h store.Ack) bool { return h.Region == region })
		r.Have = append(r.Have, store.Ack{Region: region, Moment: k.MultiRegion.At()})
		slices.SortFunc(r.Have, func(a, b store.Ack) int { return bytes.Compare([]byte(a.Region), []byte(b.Region)) })
		now.MultiRegion = &r
		return nil
	})
	if err != nil {
		return err
	}
	if inSync(done) {
		s.hurry() // a rotation may have waited for this
	}
	done.Wipe()
	return nil
}

// commonRoot is the root that wraps all of a key's material, "" if there are several.
func commonRoot(k *store.Key) string {
	var root [8]byte
	add := func(p *snapshot.PrivateKey) bool {
		if p == nil {
			return true
		}
		if root != [8]byte{} && root != p.Root {
			return false
		}
		root = p.Root
		return true
	}
	ok := add(k.Private)
	for i := range k.Versions {
		ok = ok && add(k.Versions[i].Resident)
	}
	if !ok || root == [8]byte{} {
		return ""
	}
	return hex.EncodeToString(root[:])
}

// wrap is the material that a replica lacks: as it is where the other Region's token has the same root, else wrapped in the HSM for the public key that the
// replica's answer has, whose private half is in the other HSM.
func (s *Server) wrap(k *store.Key, a *replication.Answer) (list []replication.Material, err error) {
	if k.Origin != originKMS {
		return nil, errors.New("controlplane: the replica asks for imported material, which does not cross") // lacking never does
	}
	for i, id := range a.Need {
		if slices.Contains(a.Need[:i], id) {
			return nil, errors.New("controlplane: the replica asks for the same material twice")
		}
		var p *snapshot.PrivateKey
		spec := keyspec.Of(k.Spec)
		if spec != keyspec.None && id == "" {
			p = k.Private
		}
		for i := range k.Versions {
			if v := &k.Versions[i]; string(v.MaterialID[:]) == id {
				p, spec = v.Resident, keyspec.AES256
			}
		}
		if p == nil {
			return nil, fmt.Errorf("controlplane: the replica asks for material that is not there: %.64q", id)
		}
		if len(a.Public) == 0 {
			list = append(list, replication.Material{ID: id, Copied: true, Software: p.Software, Wrapped: p.Wrapped})
			continue
		}
		var wrapped []byte
		err = errors.New("controlplane: the other Region takes no wrapping algorithm")
		for _, name := range a.Wrapping {
			w := keyspec.WrappingOf(name)
			if w != keyspec.WrapRSAAES256 && w != keyspec.WrapRSAAES1 {
				continue
			}
			if wrapped, err = s.keys.Export(spec, p, w, a.Public); err == nil {
				list = append(list, replication.Material{ID: id, Wrapping: name, Wrapped: wrapped})
				break
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// auditSync leaves the record of properties that came to a replica. It is the service's own call, which AWS calls an API call.
func (s *Server) auditSync(k *store.Key) error {
	if s.sink == nil {
		return nil
	}
	r := &cloudtrail.Record{
		Time: s.now().UTC(), Source: cloudtrail.KMS, Name: "SynchronizeMultiRegionKey", Region: s.region, Type: cloudtrail.AwsInternalCall, Recipient: k.Account,
	}
	s.events.Fill(&r.EventID)
	request := r.EventID
	s.events.Fill(&r.EventID)
	r.RequestID = request[:]
	r.AddResource([]byte(s.keyARN(k.KeyName)), k.Account)
	if err := s.sink(r.Append(nil)); err != nil {
		s.unrecorded.Add(1)
		return fmt.Errorf("controlplane: a synchronization cannot be recorded: %w", err)
	}
	return nil
}

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
			if root := s.root(); m.Root != "" && m.Root == hex.EncodeToString(root[:]) {
				return a, nil
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

// overtaken ends a primary's turn with a replica that has a later moment than the primary k: the primary's record was restored from a backup. Of its own
// epoch, it goes on after that, so that no moment has two meanings; of a later one, the primary of that tells it so.
func (s *Server) overtaken(ctx context.Context, k *store.Key, region string, a *replication.Answer) error {
	s.log.Error("a replica is ahead of its primary: was this Region restored from a backup?", "key", s.keyARN(k.KeyName), "region", region, "epoch", a.Epoch, "revision", a.Revision)
	here := k.MultiRegion
	if a.Epoch == here.Epoch && a.Primary == s.region && !here.Frozen && a.Revision-here.Revision <= revisionsAhead {
		done, err := s.store.UpdateKey(ctx, k.KeyName, func(now *store.Key) error {
			if now.Revision != k.Revision {
				return errMoved
			}
			r := *now.MultiRegion
			r.Revision = a.Revision + 1
			now.MultiRegion = &r
			return nil
		})
		if err != nil {
			return err
		}
		done.Wipe()
		return errMoved
	}
	return fmt.Errorf("controlplane: Region %s is ahead, at revision %d of epoch %d", region, a.Revision, a.Epoch)
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

// dropReplica takes a replica that is not there any more out of the record k, unless that has changed since it was asked for.
func (s *Server) dropReplica(ctx context.Context, k *store.Key, region string) error {
	done, err := s.store.UpdateKey(ctx, k.KeyName, func(now *store.Key) error {
		if now.Revision != k.Revision || !now.IsPrimary() {
			return errMoved
		}
		m := *now.MultiRegion
		m.Replicas = withoutRegion(m.Replicas, region)
		m.Have = slices.DeleteFunc(slices.Clone(m.Have), func(a store.Ack) bool { return a.Region == region })
		now.MultiRegion = &m
		if m.Promoting == region {
			m.Void = m.Revision // the change of the Replicas counts one more
			stay(now, &m)       // what is not there becomes no primary
		}
		return s.settleDeletion(ctx, now)
	})
	s.publishKey(k.KeyName, err)
	if err != nil {
		return err
	}
	done.Wipe()
	s.log.Info("a replica was deleted", "key", s.keyARN(k.KeyName), "region", region)
	return nil
}

// settleDeletion begins the waiting period of a primary that waited for its replicas to go.
func (s *Server) settleDeletion(ctx context.Context, k *store.Key) error {
	if !allReplicasGone(k) {
		return nil
	}
	k.State = kmsapi.StatePendingDeletion
	return s.beginDeletion(ctx, k, k.DeletionDays, fromMilli(s.now().UnixMilli()))
}

// allReplicasGone says that a primary that is pending replica deletion has no replica any more, nor is to have one.
func allReplicasGone(k *store.Key) bool {
	return k.State == kmsapi.StatePendingReplicaDeletion && len(k.MultiRegion.Replicas)+len(k.MultiRegion.Intents) == 0
}

// receiveGone is told that a replica was deleted. It asks the replica's Region itself, so that a message that is late does not remove another replica that
// has been made there since.
func (s *Server) receiveGone(ctx context.Context, m *replication.Message, n store.KeyName) (*replication.Answer, error) {
	k, err := s.store.Key(ctx, n)
	if errors.Is(err, store.ErrNotFound) {
		return &replication.Answer{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer k.Wipe()
	if !k.IsPrimary() || !slices.Contains(k.MultiRegion.Replicas, m.From) {
		return has(k), nil
	}
	a, err := s.ask(ctx, m.From, n, replication.Message{Kind: replication.State})
	if err != nil {
		return nil, err
	}
	if a.Exists {
		return has(k), nil
	}
	if err := s.dropReplica(ctx, k, m.From); err != nil {
		return nil, err
	}
	s.kick()
	return has(k), nil
}

// sayFarewell tells the primary, whoever is it now, that a replica was deleted.
func (s *Server) sayFarewell(ctx context.Context, f *store.Farewell) error {
	if s.away.skip(f.Primary, s.running()) {
		return nil
	}
	a, err := s.ask(ctx, f.Primary, f.KeyName, replication.Message{Kind: replication.Gone})
	if err != nil {
		return err
	}
	next := ""
	if a.Exists && a.Primary != f.Primary && a.Primary != s.region {
		next = a.Primary
	}
	return s.store.Redirect(ctx, *f, next)
}
