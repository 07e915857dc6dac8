package apitest

import (
	"maps"
	"slices"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// The reference model of a KMS key's life, written from the key state matrix and the sections on rotation, deletion and import of the API reference. It knows
// nothing of how the server does it: no records, no indexes, no workers. Time passes by settle, which does at once what is due.

// A lifeKind is what a key of the model is.
type lifeKind int

const (
	lifeSymmetric lifeKind = iota
	lifeExternal           // SYMMETRIC_DEFAULT of origin EXTERNAL
	lifeHMAC
	lifeSigning
)

// States of the model: those that the API shows.
const (
	enabled         = "Enabled"
	disabled        = "Disabled"
	pendingDeletion = "PendingDeletion"
	pendingImport   = "PendingImport"
	gone            = "" // deleted
)

// Exceptions of the model.
const (
	isFine       = ""
	isNotFound   = "NotFoundException"
	isState      = "KMSInvalidStateException"
	isDisabled   = "DisabledException"
	isUnfit      = "UnsupportedOperationException"
	isConflict   = "ConflictException"
	isLimit      = "LimitExceededException"
	isExisting   = "AlreadyExistsException"
	isInvalid    = "ValidationException"
	isWrongBytes = "IncorrectKeyMaterialException"
)

// lifeVersion is one key material.
type lifeVersion struct {
	material string    // its ID, once a reply has told it
	bytes    int       // which of the key's materials, of an external key
	missing  bool      // deleted or expired
	expires  time.Time // zero: never
	rotated  time.Time // zero: not by a rotation
	onDemand bool
}

// lifeKey is the model of one key.
type lifeKey struct {
	kind     lifeKind
	state    string
	versions []lifeVersion // none of HMAC and signing keys
	current  int           // index; -1: an external key that never had material
	rotates  bool
	period   time.Duration
	next     time.Time // while rotates
	asked    bool      // for a rotation on demand
	deletion time.Time
	aliases  map[string]bool
	tags     map[string]string
	text     string // description
}

func newLifeKey(kind lifeKind) *lifeKey {
	k := &lifeKey{kind: kind, state: enabled, aliases: map[string]bool{}, tags: map[string]string{}}
	switch kind {
	case lifeExternal:
		k.state, k.current = pendingImport, -1
	case lifeSymmetric:
		k.versions = []lifeVersion{{}}
	}
	return k
}

// complete says that all material that was ever the current one is there.
func (k *lifeKey) complete() bool {
	if k.kind != lifeExternal {
		return true
	}
	return k.current >= 0 && !slices.ContainsFunc(k.versions[:k.current+1], func(v lifeVersion) bool { return v.missing })
}

// waits is the material that the next rotation goes to.
func (k *lifeKey) waits() bool { return k.current+1 < len(k.versions) }

// restate is the state after material has come or gone.
func (k *lifeKey) restate() {
	switch {
	case (k.state == enabled || k.state == disabled) && !k.complete():
		k.state = pendingImport
	case k.state == pendingImport && k.complete():
		k.state = enabled
	}
}

// settle does everything that is due at a date.
func (k *lifeKey) settle(now time.Time) {
	if k.state == enabled && k.rotates && !k.next.After(now) {
		k.versions, k.current = append(k.versions, lifeVersion{rotated: now}), k.current+1
		for !k.next.After(now) { // dates that were missed are one rotation
			k.next = k.next.Add(k.period)
		}
	}
	if k.state == enabled && k.asked {
		if k.kind == lifeSymmetric {
			k.versions = append(k.versions, lifeVersion{})
		}
		k.current++
		k.versions[k.current].rotated, k.versions[k.current].onDemand, k.asked = now, true, false
	}
	for i := len(k.versions) - 1; i >= 0; i-- {
		v := &k.versions[i]
		if v.missing || v.expires.IsZero() || v.expires.After(now) {
			continue
		}
		k.drop(i)
	}
	if k.state == pendingDeletion && !k.deletion.After(now) {
		*k = lifeKey{kind: k.kind, state: gone, current: -1}
	}
}

// drop takes material away: for good if it has never been the current one.
func (k *lifeKey) drop(i int) {
	if i > k.current {
		k.versions = slices.Delete(k.versions, i, i+1)
		return
	}
	k.versions[i].missing = true
	k.restate()
}

// verdict is what an operation on the key gives by the matrix, before anything of the request is looked at.
func (k *lifeKey) verdict(op string) string {
	if k.state == gone {
		return isNotFound
	}
	column := map[string]int{enabled: 0, disabled: 1, pendingDeletion: 2, pendingImport: 3}[k.state]
	symmetric := k.kind == lifeSymmetric || k.kind == lifeExternal
	row := [4]string{}
	switch op {
	case "CancelKeyDeletion":
		row = [4]string{isState, isState, isFine, isState}
	case "ScheduleKeyDeletion", "CreateAlias", "UpdateAlias", "TagResource", "UntagResource", "UpdateKeyDescription":
		row[2] = isState
	case "EnableKey", "DisableKey":
		row[2], row[3] = isState, isState
	case "EnableKeyRotation", "DisableKeyRotation", "RotateKeyOnDemand":
		if !symmetric || k.kind == lifeExternal && op != "RotateKeyOnDemand" {
			return isUnfit
		}
		row = [4]string{isFine, isDisabled, isState, isState}
	case "GetKeyRotationStatus":
		if k.kind == lifeExternal {
			row[3] = isUnfit
		}
	case "ListKeyRotations":
		if !symmetric {
			return isUnfit
		}
	case "GetParametersForImport", "ImportKeyMaterial":
		if k.kind != lifeExternal {
			return isUnfit
		}
		row[2] = isState
	case "DeleteImportedKeyMaterial":
		if k.kind != lifeExternal {
			return isUnfit
		}
	case "Encrypt", "Decrypt", "GenerateMac", "VerifyMac", "Sign", "Verify":
		row = [4]string{isFine, isDisabled, isState, isState}
	}
	return row[column]
}

// rotationRefused is what RotateKeyOnDemand says where the matrix lets it.
func (k *lifeKey) rotationRefused(now time.Time) string {
	done := 0
	for _, v := range k.versions {
		if v.onDemand {
			done++
		}
	}
	switch {
	case k.rotates && k.next.Sub(now) < 20*time.Minute:
		return isConflict
	case done >= 10:
		return isLimit
	case k.kind == lifeExternal && !k.waits():
		return isState
	}
	return isFine
}

// importRefused is what ImportKeyMaterial says of material, new or not by ImportType, where the matrix lets it.
func (k *lifeKey) importRefused(bytes int, isNew bool) string {
	known := slices.ContainsFunc(k.versions, func(v lifeVersion) bool { return v.bytes == bytes })
	switch {
	case isNew == known:
		return isWrongBytes
	case isNew && k.waits():
		return isState
	}
	return isFine
}

// import is a successful ImportKeyMaterial.
func (k *lifeKey) imported(bytes int, material string, expires time.Time) {
	v := slices.IndexFunc(k.versions, func(v lifeVersion) bool { return v.bytes == bytes })
	if v < 0 {
		v = len(k.versions)
		k.versions = append(k.versions, lifeVersion{bytes: bytes})
		k.current = max(k.current, 0)
	}
	k.versions[v].material, k.versions[v].missing, k.versions[v].expires = material, false, expires
	k.restate()
}

// expiration is ExpirationModel and ValidTo.
func (k *lifeKey) expiration() (model string, validTo time.Time) {
	for i := range k.versions {
		v := &k.versions[i]
		switch {
		case k.kind != lifeExternal || i > k.current || v.missing:
		case v.expires.IsZero() && model == "":
			model = "KEY_MATERIAL_DOES_NOT_EXPIRE"
		case !v.expires.IsZero():
			if model = "KEY_MATERIAL_EXPIRES"; validTo.IsZero() || v.expires.Before(validTo) {
				validTo = v.expires
			}
		}
	}
	return model, validTo
}

// class is what aliases do not cross.
func (k lifeKind) class() string {
	return map[lifeKind]string{lifeSymmetric: "symmetric", lifeExternal: "symmetric", lifeHMAC: "HMAC", lifeSigning: "asymmetric"}[k]
}

// names are the aliases in order.
func (k *lifeKey) names() []string { return slices.Sorted(maps.Keys(k.aliases)) }

// lifeOperations are the operations that the programs are made of, those that are built.
func lifeBuilt(op string) bool {
	o := kmsapi.Route([]byte(kmsapi.TargetPrefix + op))
	return o != nil && o.Built
}
