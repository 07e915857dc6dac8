package controlplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/snapshot"
)

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
