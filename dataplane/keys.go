package dataplane

import (
	"context"
	"errors"
	"time"

	"github.com/keyplane/keyplane/cache"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/pubkey"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// loadTimeout bounds one read of the store on a cache miss.
const loadTimeout = 3 * time.Second

// aliasSize is the size of an alias's cached view, the ID of the key it points at.
const aliasSize = 24

// resolve finds the key that a KeyId member names: key ID, key ARN, alias name or alias ARN; alias is the name, if it is one. A key of another
// account is found too, for authorize to decide on; one that does not exist is refused in the words of one that the caller may not use.
func (s *Server) resolve(r *request, text []byte, action *authz.Action) (k *keyView, alias []byte, code kmsapi.Code) {
	ref, fault := keyid.Parse(text)
	if fault != keyid.None {
		r.msg = fault.AppendMessage(r.msg[:0], text)
		if fault == keyid.BadARN && r.op.Name == "GetPublicKey" { // the one operation of this plane that models it
			return nil, nil, kmsapi.InvalidArn
		}
		return nil, nil, kmsapi.NotFound
	}
	own := r.who.Principal().Account
	account := own
	if ref.Kind == keyid.KeyARN || ref.Kind == keyid.AliasARN {
		if string(ref.Region) != r.region.name || string(ref.Partition) != r.region.partition {
			r.msg = append(append(r.msg[:0], "Invalid arn "...), ref.Region...)
			return nil, nil, kmsapi.NotFound
		}
		account = ref.Account
	}
	id := ref.ID
	if ref.Alias != nil {
		target, found, err := s.aliasTarget(r, account, ref.Alias)
		if err == nil && !found && account == own && r.who.Principal().Caller.Via != "" {
			target, found, err = s.firstUse(r, ref.Alias)
		}
		switch {
		case err != nil:
			return nil, nil, s.fail(r, err)
		case !found && account != own:
			return nil, nil, s.denyUnknown(r, action)
		case !found:
			r.msg = append(r.msg[:0], "Alias "...)
			r.msg = keyid.AppendAliasARN(r.msg, r.region.partition, r.region.name, account, ref.Alias)
			r.msg = append(r.msg, " is not found."...)
			return nil, nil, kmsapi.NotFound
		}
		id = target
	}
	k, err := s.key(r, account, id)
	switch {
	case err != nil:
		return nil, nil, s.fail(r, err)
	case k == nil && account != own:
		return nil, nil, s.denyUnknown(r, action)
	case k == nil:
		r.msg = append(r.msg[:0], "Key '"...)
		r.msg = keyid.AppendKeyARN(r.msg, r.region.partition, r.region.name, account, id)
		r.msg = append(r.msg, "' does not exist"...)
		return nil, nil, kmsapi.NotFound
	}
	return k, ref.Alias, kmsapi.OK
}

// blobKey finds the key a ciphertext names.
func (s *Server) blobKey(r *request) (*keyView, kmsapi.Code) {
	k, err := s.key(r, r.blob.Account, r.blob.Key)
	switch {
	case err != nil:
		return nil, s.fail(r, err)
	case k == nil:
		return nil, r.refuseText(kmsapi.AccessDenied, textForeignBlob)
	}
	return k, kmsapi.OK
}

// textForeignBlob says nothing of whether the key of a ciphertext exists.
const textForeignBlob = "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed to access."

func (s *Server) aliasTarget(r *request, account keyid.Account, name []byte) (id keyid.ID, found bool, err error) {
	r.name = r.region.appendAliasName(emptied(r.name), account, name)
	lease, ok := s.aliases.Get(r.name)
	if !ok {
		if lease, err = s.loadAlias(r, account, name); err != nil {
			return keyid.ID{}, false, err
		}
	}
	defer lease.Release()
	if target := lease.Value(); target != nil {
		return *target, true, nil
	}
	return keyid.ID{}, false, nil
}

// firstUse looks again for an alias of the caller's account that was not there, once the control plane has made what a service may use for the first time.
func (s *Server) firstUse(r *request, name []byte) (id keyid.ID, found bool, err error) {
	if s.parts.Managed == nil || !keyid.ReservedAliasName(name) {
		return keyid.ID{}, false, nil
	}
	w := r.who.Principal()
	err = s.parts.Managed(r.region.index, &r.signed, string(r.id[:]), w.Caller, string(name))
	r.renewNow()
	if err != nil {
		return keyid.ID{}, false, err
	}
	return s.aliasTarget(r, w.Account, name)
}

// loadAlias reads where the alias r.name points.
func (s *Server) loadAlias(r *request, account keyid.Account, name []byte) (cache.Lease[keyid.ID], error) {
	defer r.renewNow()
	return s.aliases.Load(r.name, func() (*keyid.ID, int64, error) {
		ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
		defer cancel()
		target, err := s.parts.Records.AliasTarget(ctx, r.region.name, account, string(name))
		if errors.Is(err, snapshot.ErrNotFound) {
			return nil, 0, nil
		}
		return &target, aliasSize, err
	})
}

// key returns the latest view of a key, nothing that a completed KeyChanged made old; nil if there is no such key. r holds it until
// releaseKeys.
func (s *Server) key(r *request, account keyid.Account, id keyid.ID) (*keyView, error) {
	r.name = r.region.appendKeyName(emptied(r.name), account, id)
	lease, ok := s.keys.Get(r.name)
	if !ok {
		var err error
		if lease, err = s.loadKey(r, account, id); err != nil {
			return nil, err
		}
	}
	s.saw(r, lease.Mark())
	k := lease.Value()
	if k != nil {
		r.hold(lease)
	} else {
		lease.Release()
	}
	return k, nil
}

// loadKey reads the key r.name.
func (s *Server) loadKey(r *request, account keyid.Account, id keyid.ID) (cache.Lease[keyView], error) {
	defer r.renewNow()
	return s.keys.Load(r.name, func() (*keyView, int64, error) {
		k, size, err := s.view(r.region, account, id)
		switch {
		case errors.Is(err, snapshot.ErrNotFound):
			return nil, 0, nil
		case err != nil:
			return nil, 0, err
		}
		return k, k.size() + size, nil
	})
}

// keyView is what this plane keeps of a KMS key: the snapshot, and what is made of it once and not for each request.
type keyView struct {
	snapshot.Key
	spec     keyspec.Spec // None of SYMMETRIC_DEFAULT
	usage    keyspec.Usage
	public   *pubkey.Key // of an asymmetric key
	resident []resident  // by index in Versions, of those that are resident; nil where none is
	store    KeyStore    // of a key in a custom key store; nil if none was known when the view was made: storeOf
	private  hsm.Key     // of a key that is not SYMMETRIC_DEFAULT; not changed, also when the view is destroyed: a call that hangs in the HSM may still read it
}

// symmetric says that the key encrypts with AES, under versions.
func (k *keyView) symmetric() bool { return k.spec == keyspec.None }

// destroy wipes a view that nobody uses any more, and has the HSM forget its private key, or resident ones: the next view loads them again.
func (s *Server) destroy(k *keyView) {
	k.Wipe()
	forget := s.parts.Keys != nil && !s.closing.Load()
	if k.Private != nil && forget {
		s.parts.Keys.Forget(k.Private.ID)
	}
	for i := range k.resident {
		k.resident[i].wipe()
		if forget && k.Store == nil {
			s.parts.Keys.Forget(k.resident[i].key.ID)
		}
	}
	if k.Store != nil && !s.closing.Load() {
		s.forgetCopies(k)
	}
}

// view reads a key's record and has the HSM compute the offset of each of its derived versions. Resident ones are looked at when they are used: one that cannot be
// does not take the others from the key.
func (s *Server) view(at *region, account keyid.Account, id keyid.ID) (k *keyView, policySize int64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
	defer cancel()
	rec, err := s.parts.Records.KeyRecord(ctx, at.name, account, id)
	if err != nil {
		return nil, 0, err
	}
	defer rec.Wipe()
	compiled, policySize := s.policies.compile(rec, s.warn)
	k = &keyView{spec: keyspec.Of(rec.Spec), usage: keyspec.UsageOf(rec.Usage), Key: snapshot.Key{
		ID: rec.ID, Account: rec.Account, Region: rec.Region, State: rec.State, Spec: rec.Spec, Usage: rec.Usage, Revision: rec.Revision,
		ARN:      keyid.AppendKeyARN(nil, at.partition, rec.Region, rec.Account, rec.ID),
		Versions: make([]snapshot.Version, len(rec.Versions)),
		Current:  rec.Current,
		Private:  rec.Private,
		Expires:  rec.Expires,
		Store:    rec.Store,
		Facts:    rec.Facts,
		Policy:   compiled,
	}}
	if rec.Store != nil {
		k.store = s.storeOf(k)
	}
	for i := range rec.Versions {
		v := &rec.Versions[i]
		k.Versions[i] = snapshot.Version{Number: v.Number, Root: v.Root, MaterialID: v.MaterialID}
		if k.Versions[i].Missing = v.Missing; v.Missing || v.Resident != nil {
			if k.resident == nil {
				k.resident = make([]resident, len(rec.Versions))
			}
			k.Versions[i].Resident = true
			newResident(k, v, &k.resident[i])
			continue
		}
		if err := s.offsets.Offset(v.Root, &v.Salt, &k.Versions[i].Offset); err != nil {
			k.Wipe()
			return nil, 0, err
		}
	}
	if p := rec.Private; p != nil {
		k.private = hsm.Key{ID: p.ID, Spec: k.spec, Root: hsm.RootID(p.Root), Software: p.Software, Wrapped: p.Wrapped}
		if p.Public != nil {
			if k.public, err = pubkey.Parse(k.spec, p.Public); err != nil {
				return nil, 0, errors.Join(snapshot.ErrDamaged, err)
			}
		}
	}
	return k, policySize, nil
}

// size is what a view takes in the cache, without its policy. A parsed public key takes about three times its encoding.
func (k *keyView) size() int64 {
	n := 384 + len(k.ARN) + 112*len(k.Versions) + 128*len(k.resident)
	for i := range k.resident {
		n += len(k.resident[i].key.Wrapped)
		for j := range k.resident[i].copies {
			n += 128 + len(k.resident[i].copies[j].Wrapped)
		}
	}
	if k.Private != nil {
		n += len(k.Private.Wrapped) + 4*len(k.Private.Public)
	}
	return int64(n) + factsSize(&k.Facts)
}

// find is resolve for an operation that is charged to the pool of its key. The request enters before it is told anything of the key.
func (s *Server) find(r *request, text []byte) (k *keyView, alias []byte, code kmsapi.Code) {
	k, alias, code = s.resolve(r, text, r.op.action)
	spec := keyspec.None
	if k != nil && k.Account == r.who.Principal().Account {
		spec = k.spec
	}
	if entered := s.enter(r, spec); entered != kmsapi.OK {
		return nil, nil, entered
	}
	return k, alias, code
}

// admit says whether the key may do the operation now: usage and algorithm first, then state. algorithm is nil for SYMMETRIC_DEFAULT.
func (s *Server) admit(r *request, k *keyView, usage keyspec.Usage, algorithm []byte) kmsapi.Code {
	if k == r.key && k.Account != r.who.Principal().Account && r.op.pools.byKey && k.spec != keyspec.None {
		// Of another account's key the pool was not charged before the caller was known to have a right to it: it would tell what the key is.
		if code := s.charge(r, r.op.pools.of[k.spec]); code != kmsapi.OK {
			return code
		}
	}
	if k.Store != nil {
		if code := s.chargeStore(r, k); code != kmsapi.OK {
			return code
		}
	}
	if k.usage != usage {
		r.msg = append(append(emptied(r.msg), k.ARN...), " key usage is "...)
		r.msg = append(append(append(append(r.msg, k.Usage...), " which is not valid for "...), r.op.Name...), '.')
		return kmsapi.InvalidKeyUsage
	}
	if algorithm == nil {
		algorithm = symmetricDefault
	}
	if !k.has(algorithm) {
		r.msg = append(append(emptied(r.msg), "Algorithm "...), algorithm...)
		r.msg = append(append(append(r.msg, " is incompatible with key spec "...), k.Spec...), '.')
		return kmsapi.InvalidKeyUsage
	}
	return s.admitUse(r, k)
}

// admitUse refuses a key that is not in a state to be used.
func (s *Server) admitUse(r *request, k *keyView) kmsapi.Code {
	state := k.StateAt(r.date)
	if k.Store != nil {
		state = s.stateInStore(k, state)
	}
	code, text := usable(state)
	if code != kmsapi.OK {
		r.msg = append(append(emptied(r.msg), k.ARN...), text...)
	}
	return code
}

// admitState is the row of the key-state matrix for the operation.
func (s *Server) admitState(r *request, k *keyView) kmsapi.Code {
	if r.op.Name == "GetPublicKey" {
		return s.admitPublic(r, k)
	}
	return s.admitUse(r, k)
}

func (k *keyView) has(algorithm []byte) bool {
	if k.symmetric() {
		return string(algorithm) == kmsapi.SymmetricDefault
	}
	return k.spec.Has(k.usage, keyspec.AlgorithmOf(algorithm))
}

// admitContext refuses an encryption context for a key that cannot bind one.
func (s *Server) admitContext(r *request, k *keyView, c *blob.Context) kmsapi.Code {
	if !k.symmetric() && c.Len() > 0 {
		return r.refuseText(kmsapi.Validation, "EncryptionContext is supported only for symmetric encryption KMS keys.")
	}
	return kmsapi.OK
}

// usable is the row of the key-state matrix for every operation but GetPublicKey.
func usable(state kmsapi.KeyState) (kmsapi.Code, string) {
	switch state {
	case kmsapi.StateEnabled, kmsapi.StateUpdating:
		return kmsapi.OK, ""
	case kmsapi.StateDisabled:
		return kmsapi.Disabled, " is disabled."
	case kmsapi.StatePendingDeletion:
		return kmsapi.KMSInvalidState, " is pending deletion."
	case kmsapi.StatePendingReplicaDeletion:
		return kmsapi.KMSInvalidState, " is pending replica deletion."
	case kmsapi.StatePendingImport:
		return kmsapi.KMSInvalidState, " is pending import."
	case kmsapi.StateUnavailable:
		return kmsapi.KMSInvalidState, " is unavailable."
	case kmsapi.StateCreating:
		return kmsapi.KMSInvalidState, " is creating."
	}
	return kmsapi.KMSInternal, " is in no known state."
}

// admitTokens refuses what is no grant token. One that is says nothing that the store does not know: grants count from their creation on.
func (s *Server) admitTokens(r *request) kmsapi.Code {
	if r.in.invalidToken {
		return r.refuseText(kmsapi.InvalidGrantToken, "The grant token is not valid.")
	}
	return kmsapi.OK
}

func factsSize(f *authz.KeyFacts) int64 {
	n := 0
	for i := range f.Tags {
		n += 32 + len(f.Tags[i].Key) + len(f.Tags[i].Value)
	}
	for i := range f.Aliases {
		n += 16 + len(f.Aliases[i])
	}
	return int64(n)
}
