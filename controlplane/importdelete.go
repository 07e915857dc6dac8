package controlplane

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/failpoint"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

type deleteImportedKeyMaterialIn struct {
	KeyId         *string
	KeyMaterialId *string
}

func (in *deleteImportedKeyMaterialIn) check(v *kmsapi.Violations) {
	checkKeyID(v, "keyId", in.KeyId)
	checkMaterialID(v, in.KeyMaterialId)
}

type deleteImportedKeyMaterialOut struct {
	KeyId         string
	KeyMaterialId string `json:",omitempty"`
}

// DeleteImportedKeyMaterial takes material out of the key's record and out of the store's history. The key is pending import, unless the material waited for
// a rotation. Deleting what is not there is no error.
func (s *Server) deleteImportedKeyMaterial(ctx context.Context, c *call, in *deleteImportedKeyMaterialIn) (deleteImportedKeyMaterialOut, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return deleteImportedKeyMaterialOut{}, err
	}
	out := deleteImportedKeyMaterialOut{KeyId: s.keyARN(n)}
	k, err := s.change(ctx, c, n, func(k *store.Key) error {
		out.KeyMaterialId = ""
		removed := false // material that is the key's for good
		if k.Spec != kmsapi.SymmetricDefault {
			if in.KeyMaterialId != nil {
				return kmsapi.New(kmsapi.Validation, "KeyMaterialId is supported only for symmetric encryption KMS keys")
			}
			removed, k.Private = k.Private != nil, nil
		} else if at := materialAt(k, in.KeyMaterialId); at >= 0 {
			out.KeyMaterialId = string(k.Versions[at].MaterialID[:])
			removed = k.Versions[at].Number <= k.Current && !k.Versions[at].Missing
			dropVersion(k, at)
		} else if in.KeyMaterialId != nil {
			return kmsapi.New(kmsapi.NotFound, "Key material (id: "+*in.KeyMaterialId+") is not associated with KMS key "+k.ID.String()+".")
		}
		if restate(k); k.State == kmsapi.StatePendingImport && removed {
			k.Resume = 0
		}
		return nil
	})
	failpoint.Here("import.deleted")
	if err != nil {
		return deleteImportedKeyMaterialOut{}, err
	}
	defer k.Wipe()
	if err := s.store.Compact(ctx, k.Revision); err != nil {
		// It is out of the record, and out of the history with the next compaction.
		s.log.Error("deleted key material is still in the store's history", "key", s.keyARN(n), "error", err.Error())
	}
	return out, nil
}

// materialAt is the version with that material ID, without one the current version; -1 if there is none.
func materialAt(k *store.Key, id *string) int {
	return slices.IndexFunc(k.Versions, func(v store.Version) bool {
		if id == nil {
			return v.Number == k.Current
		}
		return string(v.MaterialID[:]) == *id
	})
}

// dropVersion takes a version's material away. Of one that waits for a rotation nothing stays, nor of a request to rotate to it: what is imported in its
// place was not meant. A replica keeps the version without its material, because it is the primary key's to give up.
func dropVersion(k *store.Key, at int) {
	v := &k.Versions[at]
	if v.Number > k.Current && !k.IsReplica() {
		k.Versions, k.Rotation.OnDemand = slices.Delete(k.Versions, at, at+1), time.Time{}
		return
	}
	v.Resident, v.Root, v.Missing = nil, [8]byte{}, true
}

// expiration fills ExpirationModel and ValidTo: of the material that is permanently associated with the key and there, what expires first.
func (m *keyMetadata) expiration(k *store.Key) {
	see := func(f *store.Import) {
		switch {
		case f == nil || f.Expired:
		case f.Expires.IsZero():
			m.ExpirationModel = cmp.Or(m.ExpirationModel, materialStays)
		default:
			if m.ExpirationModel = materialExpires; m.ValidTo.IsZero() || f.Expires.Before(m.ValidTo.Time) {
				m.ValidTo = timestamp{f.Expires}
			}
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
}
