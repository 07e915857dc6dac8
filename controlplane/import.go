package controlplane

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/failpoint"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/snapshot"
)

const (
	materialExpires = "KEY_MATERIAL_EXPIRES"
	materialStays   = "KEY_MATERIAL_DOES_NOT_EXPIRE"

	newMaterial      = "NEW_KEY_MATERIAL"
	existingMaterial = "EXISTING_KEY_MATERIAL"

	parametersValid = 24 * time.Hour
	validToMost     = 365 * 24 * time.Hour

	// wrappingWait is how long a request waits for its turn to have a wrapping key made: longer than any HSM should take to make the one before it.
	// wrappingQueue is how many of one account may wait or be served.
	wrappingWait  = 30 * time.Second
	wrappingQueue = 4
)

// wrappings are the wrapping algorithms that are offered.
var wrappings = []keyspec.Wrapping{keyspec.WrapOAEP1, keyspec.WrapOAEP256, keyspec.WrapRSAAES1, keyspec.WrapRSAAES256}

// The enums of the import operations, as in the service model.
var (
	wrappingAlgorithms = []string{"RSAES_PKCS1_V1_5", "RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "RSA_AES_KEY_WRAP_SHA_1", "RSA_AES_KEY_WRAP_SHA_256", "SM2PKE"}
	wrappingKeySpecs   = []string{"RSA_2048", "RSA_3072", "RSA_4096", "SM2"}
	expirationModels   = []string{materialExpires, materialStays}
	importTypes        = []string{newMaterial, existingMaterial}
)

// importedSpec is the spec of the backing key that is imported into a KMS key.
func importedSpec(k *store.Key) keyspec.Spec {
	if k.Spec == kmsapi.SymmetricDefault {
		return keyspec.AES256
	}
	return keyspec.Of(k.Spec)
}

type importKeyMaterialIn struct {
	KeyId                  *string
	ImportToken            []byte
	EncryptedKeyMaterial   []byte
	ValidTo                *float64 // seconds since 1970
	ExpirationModel        *string
	ImportType             *string
	KeyMaterialDescription *string
	KeyMaterialId          *string
}

func (in *importKeyMaterialIn) check(v *kmsapi.Violations) {
	checkKeyID(v, "keyId", in.KeyId)
	checkBlob(v, "importToken", in.ImportToken, kmsapi.CiphertextBlobMax)
	checkBlob(v, "encryptedKeyMaterial", in.EncryptedKeyMaterial, kmsapi.CiphertextBlobMax)
	checkEnum(v, "expirationModel", in.ExpirationModel, expirationModels)
	checkEnum(v, "importType", in.ImportType, importTypes)
	checkLength(v, "keyMaterialDescription", in.KeyMaterialDescription, 0, 256)
	if in.KeyMaterialDescription != nil && *in.KeyMaterialDescription == "" {
		v.Pattern("keyMaterialDescription", []byte{}, descriptionPattern)
	}
	checkPattern(v, "keyMaterialDescription", in.KeyMaterialDescription, descriptionPattern, func(r rune) bool {
		return isWord(r) || slices.Contains([]rune(":/-. \t\n\v\f\r"), r)
	})
	checkMaterialID(v, in.KeyMaterialId)
}

const descriptionPattern = `^[a-zA-Z0-9:/_\s.-]+$`

func checkMaterialID(v *kmsapi.Violations, s *string) {
	checkLength(v, "keyMaterialId", s, 64, 64)
	checkPattern(v, "keyMaterialId", s, "^[a-f0-9]+$", func(r rune) bool { return r >= '0' && r <= '9' || r >= 'a' && r <= 'f' })
}

// model is the ExpirationModel, or its default.
func (in *importKeyMaterialIn) model() string {
	if in.ExpirationModel != nil {
		return *in.ExpirationModel
	}
	return materialExpires
}

// conditions are what the request says of the material's expiration, sensible or not: whether it may is asked first.
func (in *importKeyMaterialIn) conditions() []authz.ExtraValue {
	seen := []authz.ExtraValue{{Key: policy.KMSExpirationModel, Value: in.model()}}
	if in.ValidTo != nil {
		seen = append(seen, authz.ExtraValue{Key: policy.KMSValidTo, Value: strconv.FormatInt(calendarSeconds(math.Floor(*in.ValidTo)), 10)})
	}
	return seen
}

// validity is when the material expires, the zero time for never.
func (in *importKeyMaterialIn) validity(now time.Time) (expires time.Time, err error) {
	model := in.model()
	switch {
	case model == materialStays && in.ValidTo == nil:
		return time.Time{}, nil
	case model == materialStays:
		return time.Time{}, kmsapi.New(kmsapi.Validation, "A validTo date must not be set if the ExpirationModel is KEY_MATERIAL_DOES_NOT_EXPIRE")
	case in.ValidTo == nil:
		return time.Time{}, kmsapi.New(kmsapi.Validation, "A validTo date must be set if the ExpirationModel is KEY_MATERIAL_EXPIRES")
	}
	ms := math.Round(*in.ValidTo * 1000)
	switch {
	case ms <= float64(now.UnixMilli()):
		return time.Time{}, kmsapi.New(kmsapi.Validation, "The validTo date must be in the future")
	case ms > float64(now.Add(validToMost).UnixMilli()):
		return time.Time{}, kmsapi.New(kmsapi.Validation, "The validTo date must be at most 365 days in the future")
	}
	return time.UnixMilli(int64(ms)).UTC(), nil
}

// kind is the ImportType, or its default.
func (in *importKeyMaterialIn) kind(k *store.Key) string {
	switch {
	case in.ImportType != nil:
		return *in.ImportType
	case len(k.Versions) == 0:
		return newMaterial
	}
	return existingMaterial
}

// suits refuses members that are for symmetric encryption keys, and those that contradict each other.
func (in *importKeyMaterialIn) suits(k *store.Key) error {
	if k.Spec == kmsapi.SymmetricDefault {
		if in.KeyMaterialId != nil && in.kind(k) == newMaterial {
			return kmsapi.New(kmsapi.Validation, "KeyMaterialId must not be set if the ImportType is NEW_KEY_MATERIAL")
		}
		return nil
	}
	for _, m := range []struct {
		name string
		is   *string
	}{{"ImportType", in.ImportType}, {"KeyMaterialDescription", in.KeyMaterialDescription}, {"KeyMaterialId", in.KeyMaterialId}} {
		if m.is != nil {
			return kmsapi.New(kmsapi.Validation, m.name+" is supported only for symmetric encryption KMS keys")
		}
	}
	return nil
}

type importKeyMaterialOut struct {
	KeyId         string
	KeyMaterialId string `json:",omitempty"`
}

// ImportKeyMaterial unwraps the material in the HSM and puts what the HSM wrapped of it into the key's record, in one transaction.
func (s *Server) importKeyMaterial(ctx context.Context, c *call, in *importKeyMaterialIn) (importKeyMaterialOut, error) {
	defer clear(in.EncryptedKeyMaterial)
	defer clear(in.ImportToken)
	c.context.Extra = in.conditions()
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return importKeyMaterialOut{}, err
	}
	k, err := s.view(ctx, c, n)
	if err != nil {
		return importKeyMaterialOut{}, err
	}
	defer k.Wipe()
	expires, err := in.validity(c.now)
	if err != nil {
		return importKeyMaterialOut{}, err
	}
	if err := in.suits(k); err != nil {
		return importKeyMaterialOut{}, err
	}
	m, err := s.unwrap(k, in, c.now)
	if err != nil {
		return importKeyMaterialOut{}, err
	}
	// The HSM may have taken all of the operation's time.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	m.facts = store.Import{Expires: expires, Imported: c.now}
	if !expires.IsZero() {
		if m.facts.Seen, err = s.seen(ctx); err != nil {
			return importKeyMaterialOut{}, err
		}
	}
	failpoint.Here("import.unwrapped")
	k, err = s.change(ctx, c, n, func(k *store.Key) error { return s.associate(k, in, m) })
	failpoint.Here("import.written")
	if err != nil {
		return importKeyMaterialOut{}, err
	}
	k.Wipe()
	return importKeyMaterialOut{KeyId: s.keyARN(n), KeyMaterialId: m.id}, nil
}

// material is imported key material in the HSM.
type material struct {
	private     *snapshot.PrivateKey
	id          string   // of a symmetric encryption key's
	fingerprint [32]byte // of another key's
	facts       store.Import
}

// unwrap has the HSM unwrap the material that was wrapped for the token's key. Whatever is wrong with it is one refusal.
func (s *Server) unwrap(k *store.Key, in *importKeyMaterialIn, now time.Time) (*material, error) {
	t, err := s.openToken(k.KeyName, in.ImportToken, now)
	if err != nil {
		return nil, err
	}
	spec := importedSpec(k)
	wrapping := &snapshot.PrivateKey{Root: [8]byte(t.Root), Software: t.Software, Wrapped: t.Wrapped}
	p, err := s.keys.Import(spec, keyspec.Of(t.Spec), wrapping, keyspec.WrappingOf(t.Algorithm), in.EncryptedKeyMaterial)
	if errors.Is(err, hsm.ErrMaterial) {
		return nil, kmsapi.E(kmsapi.InvalidCiphertext)
	}
	if err != nil {
		return nil, fmt.Errorf("controlplane: importing a key: %w", err)
	}
	m := &material{private: p}
	m.private.ID = snapshot.PrivateKeyID(k.Account, k.ID, k.Spec, k.Usage, p)
	if len(p.Public) > 0 {
		m.fingerprint = sha256.Sum256(p.Public)
		return m, nil
	}
	images, err := s.keys.Images(spec, p)
	if err != nil {
		return nil, fmt.Errorf("controlplane: identifying an imported key: %w", err)
	}
	if spec != keyspec.AES256 {
		m.fingerprint = *images
		return m, nil
	}
	id := snapshot.ResidentMaterialID(k.Account, k.ID, images)
	m.id = string(id[:])
	return m, nil
}

// associate gives the key the material. Another key than a symmetric encryption key has one for ever.
func (s *Server) associate(k *store.Key, in *importKeyMaterialIn, m *material) error {
	permanent := true
	if k.Spec == kmsapi.SymmetricDefault {
		number, err := s.associateVersion(k, in, m)
		if err != nil {
			return err
		}
		permanent = number <= k.Current
	} else {
		if k.Import != nil && k.Import.Fingerprint != m.fingerprint {
			return kmsapi.New(kmsapi.IncorrectKeyMaterial, otherMaterial)
		}
		facts := m.facts
		facts.Fingerprint = m.fingerprint
		k.Private, k.Import = m.private, &facts
	}
	if k.State == kmsapi.StatePendingImport && permanent {
		// Import completes into Enabled, also of a key that was disabled when its material went. Material that waits for a rotation completes nothing.
		k.Resume = 0
	}
	restate(k)
	return nil
}

// restate is what the coming and going of material does to a key's state. Keys that are pending deletion stay so; cancelDeletion looks again.
func restate(k *store.Key) {
	incomplete := k.Incomplete()
	switch k.State {
	case kmsapi.StateEnabled, kmsapi.StateDisabled:
		if incomplete {
			k.State, k.Resume = kmsapi.StatePendingImport, k.State
		}
	case kmsapi.StatePendingImport:
		if !incomplete {
			k.State, k.Resume = cmp.Or(k.Resume, kmsapi.StateEnabled), 0
		}
	case kmsapi.StateUpdating:
		switch {
		case incomplete:
			k.Resume = kmsapi.StatePendingImport
		case k.Resume == kmsapi.StatePendingImport:
			k.Resume = kmsapi.StateEnabled
		}
	}
}

const (
	otherMaterial = "The key material in the request is not the key material that was imported into this KMS key before."
	knownMaterial = "The key material in the request is associated with this KMS key already."
)

// associateVersion: material that the key has is there again; the first material ever is the current one; other material waits for a rotation.
// number is that of the version that has it now.
func (s *Server) associateVersion(k *store.Key, in *importKeyMaterialIn, m *material) (number uint32, err error) {
	at := slices.IndexFunc(k.Versions, func(v store.Version) bool { return string(v.MaterialID[:]) == m.id })
	facts := m.facts
	described := in.KeyMaterialDescription != nil && !k.IsReplica() // a replica has the primary's
	if described {
		facts.Description = *in.KeyMaterialDescription
	}
	if in.kind(k) == existingMaterial {
		if at < 0 || in.KeyMaterialId != nil && *in.KeyMaterialId != m.id {
			return 0, kmsapi.New(kmsapi.IncorrectKeyMaterial, otherMaterial)
		}
		v := &k.Versions[at]
		if v.Import != nil && !described {
			facts.Description = v.Import.Description
		}
		v.Resident, v.Root, v.Missing, v.Import = m.private, m.private.Root, false, &facts
		return v.Number, nil
	}
	if err := s.primary(k); err != nil {
		return 0, err
	}
	if at >= 0 {
		return 0, kmsapi.New(kmsapi.IncorrectKeyMaterial, knownMaterial)
	}
	number = 1
	if n := len(k.Versions); n > 0 {
		last := &k.Versions[n-1]
		if last.Number > k.Current {
			return 0, kmsapi.New(kmsapi.KMSInvalidState, "New key material (id: "+m.id+") cannot be imported into KMS key "+k.ID.String()+
				", because another key material (id: "+string(last.MaterialID[:])+") is pending rotation.")
		}
		number = last.Number + 1
	} else {
		k.Current = number
	}
	v := store.Version{Created: facts.Imported, Import: &facts}
	v.Number, v.Root, v.Resident = number, m.private.Root, m.private
	copy(v.MaterialID[:], m.id)
	k.Versions = append(k.Versions, v)
	return number, nil
}
