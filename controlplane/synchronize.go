package controlplane

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyplane/keyplane/controlplane/replication"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/failpoint"
	"github.com/keyplane/keyplane/internal/keyspec"
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
	if root := s.root(); m.Root != hex.EncodeToString(root[:]) {
		m.Root = "" // no proof could be verified
	}
	a, err := s.ask(ctx, region, k.KeyName, m)
	if err != nil {
		return err
	}
	if len(a.Need) > 0 {
		if m.Material, err = s.wrap(k, region, a); err != nil {
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

// wrap is the material that the replica in a Region lacks: as it is where that has proved that its token has the same root, else wrapped in the HSM for the public key that the
// replica's answer has, whose private half is in the other HSM.
func (s *Server) wrap(k *store.Key, region string, a *replication.Answer) (list []replication.Material, err error) {
	if k.Origin != originKMS {
		return nil, errors.New("controlplane: the replica asks for imported material, which does not cross") // lacking never does
	}
	if len(a.Public) == 0 && !s.hasRoot(k, region, a) {
		return nil, errors.New("controlplane: the replica asks for copies of wrapped keys, and does not prove that it has their root")
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
