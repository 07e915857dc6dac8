package dataplane

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"github.com/keyplane/keyplane/cache"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// loadTimeout bounds one read of the store on a cache miss.
const loadTimeout = 3 * time.Second

// aliasSize is the size of an alias's cached view, the ID of the key it points at.
const aliasSize = 24

// Names in the caches.
const keyNameLen = 8 + 1 + 16

func appendKeyName(dst []byte, a keyid.Account, id keyid.ID) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(a))
	form := byte(0)
	if id.MultiRegion {
		form = 1
	}
	dst = append(dst, form)
	return append(dst, id.UUID[:]...)
}

func appendAliasName(dst []byte, a keyid.Account, name []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(a))
	return append(dst, name...)
}

// resolve finds the key that a KeyId member names: key ID, key ARN, alias name or alias ARN. It authorises too: until policies are
// evaluated, every principal of the key's account is its administrator and nobody else gets in, so that a foreign account's identifier is
// refused before anything is looked up and tells nothing of what exists there.
func (s *Server) resolve(r *request, text []byte) (*snapshot.Key, kmsapi.Code) {
	ref, fault := keyid.Parse(text)
	if fault != keyid.None {
		r.msg = fault.AppendMessage(r.msg[:0], text)
		// None of this plane's operations models InvalidArnException.
		return nil, kmsapi.NotFound
	}
	account := r.who.Principal().Account
	if ref.Kind == keyid.KeyARN || ref.Kind == keyid.AliasARN {
		if string(ref.Region) != s.cfg.Region || string(ref.Partition) != s.partition {
			r.msg = append(append(r.msg[:0], "Invalid arn "...), ref.Region...)
			return nil, kmsapi.NotFound
		}
		if ref.Account != account {
			return nil, s.deny(r)
		}
	}
	id := ref.ID
	if ref.Kind == keyid.AliasName || ref.Kind == keyid.AliasARN {
		var code kmsapi.Code
		if id, code = s.aliasTarget(r, account, ref.Alias); code != kmsapi.OK {
			return nil, code
		}
	}
	key, err := s.key(r, account, id)
	switch {
	case err != nil:
		return nil, s.fail(r, err)
	case key == nil:
		r.msg = append(r.msg[:0], "Key '"...)
		r.msg = keyid.AppendKeyARN(r.msg, s.partition, s.cfg.Region, account, id)
		r.msg = append(r.msg, "' does not exist"...)
		return nil, kmsapi.NotFound
	}
	return key, kmsapi.OK
}

// deny refuses a foreign account's key, whether it exists or not.
func (s *Server) deny(r *request) kmsapi.Code {
	r.msg = append(r.msg[:0], "User: "...)
	r.msg = append(r.msg, r.who.Principal().ARN...)
	r.msg = append(r.msg, " is not authorized to perform: kms:"...)
	r.msg = append(r.msg, r.op.Name...)
	if r.op.members&mSourceKeyID != 0 { // ReEncrypt is two actions
		if r.key == nil {
			r.msg = append(r.msg, "From"...)
		} else {
			r.msg = append(r.msg, "To"...)
		}
	}
	r.msg = append(r.msg, " on this resource because the resource does not exist in this Region, no resource-based policies allow access, or a resource-based policy explicitly denies access"...)
	return kmsapi.AccessDenied
}

// blobKey finds the key a ciphertext names. Nothing is said of whether it exists to a caller who may not know.
func (s *Server) blobKey(r *request) (*snapshot.Key, kmsapi.Code) {
	if r.blob.Account == r.who.Principal().Account {
		key, err := s.key(r, r.blob.Account, r.blob.Key)
		if err != nil {
			return nil, s.fail(r, err)
		}
		if key != nil {
			return key, kmsapi.OK
		}
	}
	return nil, r.refuseText(kmsapi.AccessDenied, "The ciphertext refers to a customer master key that does not exist, does not exist in this region, or you are not allowed to access.")
}

func (s *Server) aliasTarget(r *request, account keyid.Account, name []byte) (keyid.ID, kmsapi.Code) {
	r.name = appendAliasName(emptied(r.name), account, name)
	lease, ok := s.aliases.Get(r.name)
	if !ok {
		var err error
		if lease, err = s.loadAlias(r, account, name); err != nil {
			return keyid.ID{}, s.fail(r, err)
		}
	}
	defer lease.Release()
	if target := lease.Value(); target != nil {
		return *target, kmsapi.OK
	}
	r.msg = append(r.msg[:0], "Alias "...)
	r.msg = keyid.AppendAliasARN(r.msg, s.partition, s.cfg.Region, account, name)
	r.msg = append(r.msg, " is not found."...)
	return keyid.ID{}, kmsapi.NotFound
}

// loadAlias reads where the alias r.name points.
func (s *Server) loadAlias(r *request, account keyid.Account, name []byte) (cache.Lease[keyid.ID], error) {
	defer r.renewNow()
	return s.aliases.Load(r.name, func() (*keyid.ID, int64, error) {
		ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
		defer cancel()
		target, err := s.parts.Records.AliasTarget(ctx, s.cfg.Region, account, string(name))
		if errors.Is(err, snapshot.ErrNotFound) {
			return nil, 0, nil
		}
		return &target, aliasSize, err
	})
}

// key returns the latest view of a key, nothing that a completed KeyChanged made old; nil if there is no such key. r holds it until
// releaseKeys.
func (s *Server) key(r *request, account keyid.Account, id keyid.ID) (*snapshot.Key, error) {
	r.name = appendKeyName(emptied(r.name), account, id)
	lease, ok := s.keys.Get(r.name)
	if !ok {
		var err error
		if lease, err = s.loadKey(r, account, id); err != nil {
			return nil, err
		}
	}
	k := lease.Value()
	if k != nil {
		r.hold(lease)
	} else {
		lease.Release()
	}
	return k, nil
}

// loadKey reads the key r.name.
func (s *Server) loadKey(r *request, account keyid.Account, id keyid.ID) (cache.Lease[snapshot.Key], error) {
	defer r.renewNow()
	return s.keys.Load(r.name, func() (*snapshot.Key, int64, error) {
		k, err := s.view(account, id)
		switch {
		case errors.Is(err, snapshot.ErrNotFound):
			return nil, 0, nil
		case err != nil:
			return nil, 0, err
		}
		return k, int64(256 + len(k.ARN) + 112*len(k.Versions)), nil
	})
}

// view reads a key's record and has the HSM compute the offset of each of its versions.
func (s *Server) view(account keyid.Account, id keyid.ID) (*snapshot.Key, error) {
	ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
	defer cancel()
	rec, err := s.parts.Records.KeyRecord(ctx, s.cfg.Region, account, id)
	if err != nil {
		return nil, err
	}
	defer rec.Wipe()
	k := &snapshot.Key{
		ID: rec.ID, Account: rec.Account, Region: rec.Region, State: rec.State, Spec: rec.Spec, Usage: rec.Usage, Revision: rec.Revision,
		ARN:      keyid.AppendKeyARN(nil, s.partition, rec.Region, rec.Account, rec.ID),
		Versions: make([]snapshot.Version, len(rec.Versions)),
		Current:  rec.Current,
	}
	for i := range rec.Versions {
		v := &rec.Versions[i]
		k.Versions[i] = snapshot.Version{Number: v.Number, Root: v.Root, MaterialID: v.MaterialID}
		if err := s.offsets.Offset(v.Root, &v.Salt, &k.Versions[i].Offset); err != nil {
			k.Wipe()
			return nil, err
		}
	}
	return k, nil
}

// admit says whether the key may do this plane's symmetric operations now: usage and algorithm first, then state.
func (s *Server) admit(r *request, k *snapshot.Key, algorithm []byte) kmsapi.Code {
	if k.Usage != kmsapi.EncryptDecrypt {
		r.msg = append(append(r.msg[:0], k.ARN...), " key usage is "...)
		r.msg = append(append(append(append(r.msg, k.Usage...), " which is not valid for "...), r.op.Name...), '.')
		return kmsapi.InvalidKeyUsage
	}
	if algorithm != nil && string(algorithm) != kmsapi.SymmetricDefault {
		r.msg = append(append(r.msg[:0], "Algorithm "...), algorithm...)
		r.msg = append(append(append(r.msg, " is incompatible with key spec "...), k.Spec...), '.')
		return kmsapi.InvalidKeyUsage
	}
	code, text := usable(k.State)
	if code != kmsapi.OK {
		r.msg = append(append(r.msg[:0], k.ARN...), text...)
	}
	return code
}

// usable is the row of the key-state matrix for Encrypt, Decrypt, ReEncrypt and GenerateDataKey*.
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

// admitTokens answers grant tokens. No grant exists yet, so none was ever issued.
func (s *Server) admitTokens(r *request) kmsapi.Code {
	if r.in.grantTokens > 0 {
		return r.refuseText(kmsapi.InvalidGrantToken, "The grant token is not valid.")
	}
	return kmsapi.OK
}

// admitRecipient refuses attestation documents: a service that cannot verify one must not answer with the plaintext.
func (s *Server) admitRecipient(r *request) kmsapi.Code {
	if r.in.has&mRecipient != 0 {
		return r.refuseText(kmsapi.UnsupportedOperation, "Recipient is not offered by this version of keyplane.")
	}
	return kmsapi.OK
}
