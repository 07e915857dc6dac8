// Package keyring is what the control plane wants of keys (controlplane.Keys) on top of the HSM's key ring (hsm.Keys): keys as they are stored, and
// errors that wrap exceptions.
package keyring

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// Ring is a key ring as a controlplane.Keys. Safe for concurrent use.
type Ring struct {
	keys       hsm.Keys
	code       func(error) kmsapi.Code
	insideOnly bool
}

// New is a Ring over keys. code is the exception that tells a client of an error of theirs: the data plane's CodeOf.
func New(keys hsm.Keys, code func(error) kmsapi.Code) Ring { return Ring{keys: keys, code: code} }

// New makes a key.
func (r Ring) New(s keyspec.Spec) (*snapshot.PrivateKey, error) {
	k, public, err := r.keys.Generate(s)
	if err != nil {
		return nil, r.fault(s, err)
	}
	return stored(k, public), nil
}

// InsideOnly is a Ring that imports only where the material is in clear inside the HSM alone.
func (r Ring) InsideOnly() Ring {
	r.insideOnly = true
	return r
}

// Imports says what comes in.
func (r Ring) Imports(s keyspec.Spec, w keyspec.Wrapping) (bool, error) {
	ok, inside, err := r.keys.Imports(s, w)
	if err != nil {
		return false, r.fault(s, err)
	}
	return ok && (inside || !r.insideOnly), nil
}

// Import brings a key in.
func (r Ring) Import(s, wrapping keyspec.Spec, p *snapshot.PrivateKey, w keyspec.Wrapping, material []byte) (*snapshot.PrivateKey, error) {
	if r.insideOnly { // an import token may be of a time when it was not
		if ok, err := r.Imports(s, w); err != nil {
			return nil, err
		} else if !ok {
			return nil, kmsapi.New(kmsapi.UnsupportedOperation, fmt.Sprintf("The HSM of this service does not import keys of the spec %s with %s.", s, w))
		}
	}
	k, public, err := r.keys.Import(s, asKey(wrapping, p), w, material)
	if err != nil {
		return nil, r.fault(s, err)
	}
	return stored(k, public), nil
}

// Export wraps a key for another HSM.
func (r Ring) Export(s keyspec.Spec, p *snapshot.PrivateKey, w keyspec.Wrapping, public []byte) ([]byte, error) {
	material, err := r.keys.Export(asKey(s, p), w, public)
	if err != nil {
		return nil, r.fault(s, err)
	}
	return material, nil
}

// Images compares key material without its leaving the HSM.
func (r Ring) Images(s keyspec.Spec, p *snapshot.PrivateKey) (*[32]byte, error) {
	m := hsm.EncryptBlocks
	if s.Info().Family == keyspec.HMAC {
		m = hsm.MAC
	}
	j := hsm.KeyJob{Key: asKey(s, p), Mechanism: m, In: []byte(snapshot.ResidentBlocks), Out: make([]byte, s.Info().Result)}
	// The key may have no ID yet; its handle must be no other's.
	j.Key.ID = sha256.Sum256(append([]byte("keyplane images v1"), p.Wrapped...))
	err := r.keys.Run(&j, time.Now())
	r.keys.Forget(j.Key.ID)
	if err != nil {
		return nil, r.fault(s, err)
	}
	var images [32]byte
	copy(images[:], j.Out[:j.N])
	return &images, nil
}

func asKey(s keyspec.Spec, p *snapshot.PrivateKey) *hsm.Key {
	return &hsm.Key{ID: p.ID, Spec: s, Root: p.Root, Software: p.Software, Wrapped: p.Wrapped}
}

func stored(k *hsm.Key, public []byte) *snapshot.PrivateKey {
	return &snapshot.PrivateKey{Root: k.Root, Software: k.Software, Wrapped: k.Wrapped, Public: public}
}

func (r Ring) fault(s keyspec.Spec, err error) error {
	if errors.Is(err, hsm.ErrMaterial) {
		return err
	}
	if errors.Is(err, hsm.ErrNotOffered) {
		return kmsapi.New(kmsapi.UnsupportedOperation, fmt.Sprintf("The HSM of this service does not make keys of the spec %s.", s))
	}
	return fmt.Errorf("%w: %w", kmsapi.E(r.code(err)), err)
}
