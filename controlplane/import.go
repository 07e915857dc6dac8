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
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/failpoint"
	"github.com/keyplane/keyplane/internal/keyid"
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

// wraps says whether key material of the spec is wrapped with the algorithm for a wrapping key of that spec (AWS KMS Developer Guide, "Select a wrapping
// algorithm"): RSAES_OAEP has no room for RSA private keys, nor under RSA_2048 for one of P-521; secret keys need nothing else.
func wraps(s keyspec.Spec, w keyspec.Wrapping, wrapping keyspec.Spec) bool {
	switch {
	case !hsm.Importable(s, w):
		return false
	case s.Info().Public == 0:
		return !hsm.Hybrid(w)
	}
	return hsm.Hybrid(w) || s != keyspec.P521 || wrapping != keyspec.RSA2048
}

// unimportable refuses a KMS key of the spec that nothing can be imported into.
func (s *Server) unimportable(name string) error {
	spec := keyspec.Of(name)
	if name == kmsapi.SymmetricDefault {
		spec = keyspec.AES256
	}
	fits := func(w keyspec.Wrapping) bool { return wraps(spec, w, keyspec.RSA4096) }
	if !slices.ContainsFunc(wrappings, fits) {
		return kmsapi.New(kmsapi.UnsupportedOperation, "Origin EXTERNAL is not valid for KMS keys with KeySpec "+name+".")
	}
	var unknown error
	for _, w := range wrappings {
		if !fits(w) {
			continue
		}
		ok, err := s.imports(spec, w)
		if ok {
			return nil
		}
		unknown = cmp.Or(unknown, err)
	}
	if unknown != nil {
		return unknown
	}
	return kmsapi.New(kmsapi.UnsupportedOperation, "The HSM of this service does not import key material into KMS keys with KeySpec "+name+".")
}

// imports says whether keys of the spec come in with the algorithm.
func (s *Server) imports(spec keyspec.Spec, w keyspec.Wrapping) (bool, error) {
	if s.keys == nil || s.sealer == nil {
		return false, nil
	}
	ok, err := s.keys.Imports(spec, w)
	if err != nil {
		return false, fmt.Errorf("controlplane: what the HSM imports: %w", err)
	}
	return ok, nil
}

type getParametersForImportIn struct {
	KeyId             *string
	WrappingAlgorithm *string
	WrappingKeySpec   *string
}

func (in *getParametersForImportIn) check(v *kmsapi.Violations) {
	checkKeyID(v, "keyId", in.KeyId)
	if in.WrappingAlgorithm == nil {
		v.Null("wrappingAlgorithm")
	}
	checkEnum(v, "wrappingAlgorithm", in.WrappingAlgorithm, wrappingAlgorithms)
	if in.WrappingKeySpec == nil {
		v.Null("wrappingKeySpec")
	}
	checkEnum(v, "wrappingKeySpec", in.WrappingKeySpec, wrappingKeySpecs)
}

type getParametersForImportOut struct {
	KeyId             string
	ImportToken       []byte
	PublicKey         []byte
	ParametersValidTo timestamp
}

// GetParametersForImport makes a wrapping key, of which nothing is kept: its private half, wrapped by the HSM, is in the import token.
func (s *Server) getParametersForImport(ctx context.Context, c *call, in *getParametersForImportIn) (getParametersForImportOut, error) {
	c.context.Extra = []authz.ExtraValue{{Key: policy.KMSWrappingAlgorithm, Value: *in.WrappingAlgorithm}, {Key: policy.KMSWrappingKeySpec, Value: *in.WrappingKeySpec}}
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return getParametersForImportOut{}, err
	}
	k, err := s.view(ctx, c, n)
	if err != nil {
		return getParametersForImportOut{}, err
	}
	defer k.Wipe()
	spec, w, wrapping := importedSpec(k), keyspec.WrappingOf(*in.WrappingAlgorithm), keyspec.Of(*in.WrappingKeySpec)
	switch {
	case w == keyspec.NoWrapping: // RSAES_PKCS1_V1_5, refused since October 2023; SM2PKE, for China Regions
		return getParametersForImportOut{}, kmsapi.New(kmsapi.UnsupportedOperation, "WrappingAlgorithm "+*in.WrappingAlgorithm+" is not supported.")
	case wrapping == keyspec.None: // SM2
		return getParametersForImportOut{}, kmsapi.New(kmsapi.UnsupportedOperation, "WrappingKeySpec "+*in.WrappingKeySpec+" is not supported.")
	case !wraps(spec, w, wrapping):
		return getParametersForImportOut{}, kmsapi.New(kmsapi.UnsupportedOperation, "WrappingAlgorithm "+*in.WrappingAlgorithm+" with WrappingKeySpec "+
			*in.WrappingKeySpec+" is not valid for the key material of KMS keys with KeySpec "+k.Spec+".")
	}
	if ok, err := s.imports(spec, w); err != nil {
		return getParametersForImportOut{}, err
	} else if !ok {
		return getParametersForImportOut{}, kmsapi.New(kmsapi.UnsupportedOperation, "The HSM of this service does not import keys with "+*in.WrappingAlgorithm+
			" into KMS keys with KeySpec "+k.Spec+".")
	}
	private, err := s.wrappingKey(ctx, c.account(), wrapping)
	if err != nil {
		return getParametersForImportOut{}, err
	}
	until := c.now.Add(parametersValid)
	t := importToken{Algorithm: w.String(), Spec: wrapping.String(), Expires: until.UnixMilli(), Root: private.Root[:], Software: private.Software, Wrapped: private.Wrapped}
	token, err := s.sealToken(n, &t)
	if err != nil {
		return getParametersForImportOut{}, fmt.Errorf("controlplane: sealing an import token: %w", err)
	}
	return getParametersForImportOut{KeyId: s.keyARN(n), ImportToken: token, PublicKey: private.Public, ParametersValidTo: timestamp{until}}, nil
}

// WrappingSeats are what requests for wrapping keys wait for, those of all Servers of a process that have the same HSM. One key is made at a time, which leaves
// the HSM's other hand to CreateKey. Accounts that wait have their turns one after the other, however many requests each of them has.
type WrappingSeats struct {
	mu      sync.Mutex
	making  bool
	served  keyid.Account   // for which one is made
	waiting []wrappingTurns // in the order of their turns
}

// wrappingTurns are the requests of one account that wait, at least one; each has its channel closed when it is its turn.
type wrappingTurns struct {
	account keyid.Account
	turns   []chan struct{}
}

// enter waits for a turn of the account, which ends with leave. false: too many requests of the account wait already, or ctx has ended.
func (w *WrappingSeats) enter(ctx context.Context, a keyid.Account) bool {
	w.mu.Lock()
	if !w.making {
		w.making, w.served = true, a
		w.mu.Unlock()
		return true
	}
	at := slices.IndexFunc(w.waiting, func(q wrappingTurns) bool { return q.account == a })
	if at < 0 {
		at, w.waiting = len(w.waiting), append(w.waiting, wrappingTurns{account: a})
	}
	q := &w.waiting[at]
	have := len(q.turns)
	if a == w.served {
		have++
	}
	if have >= wrappingQueue {
		w.mu.Unlock()
		return false
	}
	turn := make(chan struct{})
	q.turns = append(q.turns, turn)
	w.mu.Unlock()
	select {
	case <-turn:
		return true
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.waiting {
		if j := slices.Index(w.waiting[i].turns, turn); j >= 0 {
			if w.waiting[i].turns = slices.Delete(w.waiting[i].turns, j, j+1); len(w.waiting[i].turns) == 0 {
				w.waiting = slices.Delete(w.waiting, i, i+1)
			}
			return false
		}
	}
	return true // its turn has come meanwhile
}

// leave gives the turn to the account that has waited longest since its last one.
func (w *WrappingSeats) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.waiting) == 0 {
		w.making = false
		return
	}
	next := w.waiting[0]
	w.waiting = slices.Delete(w.waiting, 0, 1)
	w.served = next.account
	close(next.turns[0])
	if next.turns = next.turns[1:]; len(next.turns) > 0 {
		w.waiting = append(w.waiting, next)
	}
}

// wrappingKey has the HSM make an RSA key, which can take seconds.
func (s *Server) wrappingKey(ctx context.Context, a keyid.Account, spec keyspec.Spec) (*snapshot.PrivateKey, error) {
	// What the HSM took to say what it imports does not count.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wrappingWait)
	defer cancel()
	if !s.wrapping.enter(ctx, a) {
		return nil, kmsapi.E(kmsapi.Throttling)
	}
	defer s.wrapping.leave()
	k, err := s.keys.New(spec)
	if err != nil {
		return nil, fmt.Errorf("controlplane: making a wrapping key: %w", err)
	}
	return k, nil
}

// importToken is what an import token says, once it is open. Which KMS key it is for is bound to it and not in it.
type importToken struct {
	Algorithm string `json:"algorithm"` // WrappingAlgorithm
	Spec      string `json:"spec"`      // of the wrapping key
	Expires   int64  `json:"expires"`   // milliseconds since 1970
	Root      []byte `json:"root"`      // the private half of the wrapping key, as a snapshot.PrivateKey has it
	Software  bool   `json:"software,omitzero"`
	Wrapped   []byte `json:"wrapped"`
}

const importTokenLabel = "keyplane import token v1"

// boundTo is what a token is sealed to.
func boundTo(n store.KeyName) []byte {
	return []byte(importTokenLabel + "\x00" + n.Region + "/" + n.Account.String() + "/" + n.ID.String())
}

func (s *Server) sealToken(n store.KeyName, t *importToken) ([]byte, error) {
	text, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	token, err := s.sealer.Seal(text, boundTo(n))
	if err == nil && len(token) > kmsapi.CiphertextBlobMax {
		err = fmt.Errorf("%d bytes are too many", len(token))
	}
	return token, err
}

// openToken opens a token that is given with a key, and holds its date against the clock.
func (s *Server) openToken(n store.KeyName, token []byte, now time.Time) (*importToken, error) {
	if s.sealer == nil {
		return nil, kmsapi.New(kmsapi.InvalidImportToken, invalidToken)
	}
	text, err := s.sealer.Open(token, boundTo(n))
	if errors.Is(err, store.ErrSealed) {
		return nil, kmsapi.New(kmsapi.InvalidImportToken, invalidToken)
	}
	if err != nil {
		return nil, fmt.Errorf("controlplane: opening an import token: %w", err)
	}
	t := new(importToken)
	if json.Unmarshal(text, t, json.RejectUnknownMembers(true)) != nil || len(t.Root) != 8 {
		return nil, kmsapi.New(kmsapi.InvalidImportToken, invalidToken) // of a version that had other ones
	}
	if !time.UnixMilli(t.Expires).After(now) {
		return nil, kmsapi.New(kmsapi.ExpiredImportToken, "The import token has expired.")
	}
	return t, nil
}

const invalidToken = "The import token is not valid for this KMS key."

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
