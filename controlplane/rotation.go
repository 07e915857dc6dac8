package controlplane

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/quota"
)

const (
	originExternal = "EXTERNAL"

	day = 24 * time.Hour

	// beforeAutomatic is how long before an automatic rotation there is none on demand.
	beforeAutomatic = 20 * time.Minute

	rotationConflict = "The request was rejected because a rotation of this key is in progress, or an automatic rotation is scheduled to begin within the next 20 minutes."
)

// Types of rotation, as ListKeyRotations and audit records name them.
const (
	automatic = "AUTOMATIC"
	onDemand  = "ON_DEMAND"
)

// wrongOrigin is the refusal of an operation that is not for keys of the origin.
func wrongOrigin(arn, origin string) error {
	return kmsapi.New(kmsapi.UnsupportedOperation, arn+" origin is "+origin+" which is not valid for this operation.")
}

// rotates says whether keys like k rotate: on demand, or automatically. It is asked before the key state.
func (s *Server) rotates(k *store.Key, how string) error {
	switch {
	case keyspec.Of(k.Spec) != keyspec.None:
		return kmsapi.New(kmsapi.UnsupportedOperation, "") // without a message, as AWS has it
	case k.Origin != originKMS && (k.Origin != originExternal || how == automatic):
		return wrongOrigin(s.keyARN(k.KeyName), k.Origin)
	}
	return nil
}

// unfit refuses an operation on a key of a kind that it is not for, whatever the key's state.
func (s *Server) unfit(operation string, k *store.Key) error {
	switch operation {
	case "GetParametersForImport", "ImportKeyMaterial", "DeleteImportedKeyMaterial":
		if k.Origin != originExternal {
			return wrongOrigin(s.keyARN(k.KeyName), k.Origin)
		}
	case "EnableKeyRotation", "DisableKeyRotation", "RotateKeyOnDemand":
		how := automatic
		if operation == "RotateKeyOnDemand" {
			how = onDemand
		}
		if err := s.rotates(k, how); err != nil {
			return err
		}
		return s.primary(k)
	case "ListKeyRotations":
		return s.rotates(k, onDemand)
	case "GetKeyRotationStatus":
		if k.Origin != originKMS && k.Origin != originExternal {
			return wrongOrigin(s.keyARN(k.KeyName), k.Origin)
		}
	}
	return nil
}

// primary refuses what only the primary key of related multi-Region keys takes.
func (s *Server) primary(k *store.Key) error {
	if k.MultiRegion != nil && k.MultiRegion.Primary != k.Region {
		return s.notPrimary(k)
	}
	return nil
}

type enableKeyRotationIn struct {
	KeyId                *string
	RotationPeriodInDays *int32
}

func (in *enableKeyRotationIn) check(v *kmsapi.Violations) {
	checkKeyID(v, "keyId", in.KeyId)
	checkRange(v, "rotationPeriodInDays", in.RotationPeriodInDays, kmsapi.RotationPeriodMin, kmsapi.RotationPeriodMax)
}

// EnableKeyRotation sets a schedule: the first rotation is one period after the call, and so on. Of an enabled key with that period it changes nothing, so
// that who repeats it never puts a rotation off; another period begins with the call.
func (s *Server) enableKeyRotation(ctx context.Context, c *call, in *enableKeyRotationIn) (none, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return none{}, err
	}
	period := int32(kmsapi.RotationPeriodDays)
	if in.RotationPeriodInDays != nil {
		period = *in.RotationPeriodInDays
	}
	c.context.Extra = []authz.ExtraValue{{Key: policy.KMSRotationPeriodInDays, Value: strconv.Itoa(int(period))}}
	return none{}, s.reschedule(ctx, c, n, func(r *store.Rotation) {
		if !r.Enabled || r.Period != period {
			*r = store.Rotation{Enabled: true, Period: period, Next: c.now.Add(time.Duration(period) * day), OnDemand: r.OnDemand}
		}
	})
}

// DisableKeyRotation leaves a rotation on demand that is asked for.
func (s *Server) disableKeyRotation(ctx context.Context, c *call, in *keyIn) (none, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return none{}, err
	}
	return none{}, s.reschedule(ctx, c, n, func(r *store.Rotation) { *r = store.Rotation{Period: r.Period, OnDemand: r.OnDemand} })
}

func (s *Server) reschedule(ctx context.Context, c *call, n store.KeyName, edit func(*store.Rotation)) error {
	k, err := s.change(ctx, c, n, func(k *store.Key) error {
		edit(&k.Rotation)
		return nil
	})
	if err != nil {
		return err
	}
	k.Wipe()
	return nil
}

type getKeyRotationStatusOut struct {
	KeyRotationEnabled        bool
	KeyId                     string
	RotationPeriodInDays      int32     `json:",omitzero"`
	NextRotationDate          timestamp `json:",omitzero"`
	OnDemandRotationStartDate timestamp `json:",omitzero"`
}

// GetKeyRotationStatus: a key pending deletion does not rotate, and says so; its schedule is back when the deletion is cancelled.
func (s *Server) getKeyRotationStatus(ctx context.Context, c *call, in *keyIn) (getKeyRotationStatusOut, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return getKeyRotationStatusOut{}, err
	}
	k, err := s.view(ctx, c, n)
	if err != nil {
		return getKeyRotationStatusOut{}, err
	}
	defer k.Wipe()
	out := getKeyRotationStatusOut{KeyId: s.keyARN(n)}
	if k.State == kmsapi.StatePendingDeletion || k.State == kmsapi.StatePendingReplicaDeletion {
		return out, nil
	}
	out.OnDemandRotationStartDate = timestamp{k.Rotation.OnDemand}
	if k.Rotation.Enabled {
		out.KeyRotationEnabled, out.RotationPeriodInDays, out.NextRotationDate = true, k.Rotation.Period, timestamp{k.Rotation.Next}
	}
	return out, nil
}

type rotateKeyOnDemandOut struct{ KeyId string }

// RotateKeyOnDemand notes that a rotation is asked for; a worker does it at once.
func (s *Server) rotateKeyOnDemand(ctx context.Context, c *call, in *keyIn) (rotateKeyOnDemandOut, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return rotateKeyOnDemandOut{}, err
	}
	k, err := s.view(ctx, c, n)
	if err != nil {
		return rotateKeyOnDemandOut{}, err
	}
	ready := ""
	if v := waiting(k); v != nil && k.Origin == originExternal && s.everywhere(ctx, k, v) {
		ready = string(v.MaterialID[:])
	}
	k.Wipe()
	k, err = s.change(ctx, c, n, func(k *store.Key) error {
		if err := s.canRotate(k, c.now, ready); err != nil {
			return err
		}
		k.Rotation.OnDemand = c.now
		return nil
	})
	if err != nil {
		return rotateKeyOnDemandOut{}, err
	}
	k.Wipe()
	s.hurry()
	return rotateKeyOnDemandOut{KeyId: s.keyARN(n)}, nil
}

// canRotate says whether a rotation of the key can be asked for now. ready is the ID of the imported material that all related keys have, "" for none.
func (s *Server) canRotate(k *store.Key, now time.Time, ready string) error {
	done := 0
	for i := range k.Versions {
		if k.Versions[i].OnDemand {
			done++
		}
	}
	switch {
	case !k.Rotation.OnDemand.IsZero(), k.Rotation.Enabled && k.Rotation.Next.Sub(now) < beforeAutomatic:
		return kmsapi.New(kmsapi.Conflict, rotationConflict)
	case done >= s.quotaOf(k.Account, quota.OnDemandRotationsPerKey):
		return kmsapi.New(kmsapi.LimitExceeded, "The on-demand rotations limit has been reached for the given keyId. "+
			"No more on-demand rotations can be performed for this key: "+s.keyARN(k.KeyName))
	case k.Origin != originExternal:
		return nil
	}
	if v := waiting(k); v == nil || string(v.MaterialID[:]) != ready || !inSync(k) {
		return kmsapi.New(kmsapi.KMSInvalidState, "No available key material pending rotation for the key: "+s.keyARN(k.KeyName)+".")
	}
	return nil
}

// waiting is the version that the next rotation of the key goes to, nil if there is none yet.
func waiting(k *store.Key) *store.Version {
	for i := range k.Versions {
		if v := &k.Versions[i]; v.Number > k.Current && !v.Gone() {
			return v
		}
	}
	return nil
}

func hasReplicas(k *store.Key) bool { return k.MultiRegion != nil && len(k.MultiRegion.Replicas) > 0 }

type listKeyRotationsIn struct {
	KeyId              *string
	IncludeKeyMaterial *string
	Limit              *int32
	Marker             *string
}

var includeKeyMaterial = []string{allKeyMaterial, "ROTATIONS_ONLY"}

const allKeyMaterial = "ALL_KEY_MATERIAL"

func (in *listKeyRotationsIn) check(v *kmsapi.Violations) {
	checkKeyID(v, "keyId", in.KeyId)
	checkEnum(v, "includeKeyMaterial", in.IncludeKeyMaterial, includeKeyMaterial)
	checkPage(v, in.Limit, in.Marker, kmsapi.LimitMax)
}

type rotationsListEntry struct {
	KeyId                  string
	KeyMaterialId          string
	KeyMaterialDescription string `json:",omitempty"`
	ImportState            string `json:",omitempty"`
	KeyMaterialState       string
	ExpirationModel        string    `json:",omitempty"`
	ValidTo                timestamp `json:",omitzero"`
	RotationDate           timestamp `json:",omitzero"`
	RotationType           string    `json:",omitempty"`
}

type listKeyRotationsOut struct {
	Rotations  []rotationsListEntry
	NextMarker string `json:",omitempty"`
	Truncated  bool
}

// ListKeyRotations lists the rotations that are done, oldest first, or all key material there was, is and waits.
func (s *Server) listKeyRotations(ctx context.Context, c *call, in *listKeyRotationsIn) (listKeyRotationsOut, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return listKeyRotationsOut{}, err
	}
	k, err := s.view(ctx, c, n)
	if err != nil {
		return listKeyRotationsOut{}, err
	}
	defer k.Wipe()
	all := deref(in.IncludeKeyMaterial) == allKeyMaterial
	p := page{operation: c.op.Name, account: n.Account, region: s.region, filter: n.ID.String() + strconv.FormatBool(all)}
	position, err := p.position(in.Marker)
	if err != nil {
		return listKeyRotationsOut{}, err
	}
	synchronous := true
	if last := len(k.Versions) - 1; all && last >= 0 && k.Versions[last].Number > k.Current && k.Origin == originExternal && k.MultiRegion != nil {
		synchronous = waiting(k) != nil && s.everywhere(ctx, k, waiting(k))
	}
	versions := slices.DeleteFunc(slices.Clone(k.Versions), func(v store.Version) bool { return !all && v.Rotated.IsZero() })
	name := func(v store.Version) string { return fmt.Sprintf("%010d", v.Number) }
	versions, more := cut(versions, name, position, pageSize(in.Limit, kmsapi.LimitDefault))
	out := listKeyRotationsOut{Rotations: []rotationsListEntry{}, Truncated: more}
	for i := range versions {
		out.Rotations = append(out.Rotations, s.rotation(k, &versions[i], synchronous))
	}
	if more {
		out.NextMarker = p.marker(name(versions[len(versions)-1]))
	}
	return out, nil
}

// rotation is the entry of one version. synchronous says that imported material that waits is in all related keys.
func (s *Server) rotation(k *store.Key, v *store.Version, synchronous bool) rotationsListEntry {
	e := rotationsListEntry{KeyId: s.keyARN(k.KeyName), KeyMaterialId: string(v.MaterialID[:]), KeyMaterialState: "NON_CURRENT"}
	switch {
	case v.Number == k.Current:
		e.KeyMaterialState = "CURRENT"
	case v.Number > k.Current && !synchronous:
		e.KeyMaterialState = "PENDING_MULTI_REGION_IMPORT_AND_ROTATION"
	case v.Number > k.Current:
		e.KeyMaterialState = "PENDING_ROTATION"
	}
	if !v.Rotated.IsZero() {
		e.RotationDate, e.RotationType = timestamp{v.Rotated}, automatic
		if v.OnDemand {
			e.RotationType = onDemand
		}
	}
	if m := v.Import; m != nil {
		e.KeyMaterialDescription, e.ImportState = m.Description, "IMPORTED"
		if v.Gone() {
			e.ImportState = "PENDING_IMPORT"
			return e
		}
		if e.ExpirationModel = "KEY_MATERIAL_DOES_NOT_EXPIRE"; !m.Expires.IsZero() {
			e.ExpirationModel, e.ValidTo = "KEY_MATERIAL_EXPIRES", timestamp{m.Expires}
		}
	}
	return e
}
