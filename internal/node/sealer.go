package node

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/dataplane"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/aesgcm"
	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// sealer protects access key secrets at rest under the derivation root, with the construction of docs/ciphertext.md §6. It is made before
// the tokens are opened, because the store needs it and comes first; ready is called before its first use.
type sealer struct {
	run     func(j *hsm.Job, now time.Time) error
	offsets hsm.Offsets
	primary hsm.RootID
}

// sealSalt stands where a KMS key's version has its salt: no KMS key has this one but by a 2^-256 chance.
var sealSalt = sha256.Sum256([]byte("keyplane sealed secrets v1"))

var errSealed = fmt.Errorf("node: it is damaged, or it was sealed under another token's derivation root: %w", store.ErrSealed)

const rootLen = len(hsm.RootID{})

func (s *sealer) ready(run func(*hsm.Job, time.Time) error, primary hsm.RootID) {
	s.run, s.primary = run, primary
	s.offsets.Run = run
}

// Seal returns root ID (8) || blob of plaintext, 1 to 4096 bytes, bound to aad, at most 4096 bytes.
func (s *sealer) Seal(plaintext, aad []byte) ([]byte, error) {
	var j hsm.Job
	defer j.Wipe()
	d := &j.Derive[0]
	d.Draw = true
	if err := s.derive(&j, s.primary); err != nil {
		return nil, err
	}
	h := blob.Header{Suite: blob.SuiteDerived, KeyVersion: 1, Nonce: d.Nonce, Commitment: [16]byte(d.Out[32:])}
	out := append([]byte(nil), s.primary[:]...)
	out = h.Append(out)
	return aesgcm.Seal(out, (*[32]byte)(d.Out[:32]), (*[12]byte)(d.Nonce[12:]), plaintext, append(out[rootLen:len(out):len(out)], aad...)), nil
}

// Open returns what Seal was given.
func (s *sealer) Open(sealed, aad []byte) ([]byte, error) {
	var h blob.Header
	if len(sealed) < rootLen {
		return nil, errSealed
	}
	text, ok := blob.Parse(sealed[rootLen:], &h)
	if !ok || h.Suite != blob.SuiteDerived || h.KeyVersion != 1 {
		return nil, errSealed
	}
	var j hsm.Job
	defer j.Wipe()
	d := &j.Derive[0]
	d.Nonce = h.Nonce
	if err := s.derive(&j, hsm.RootID(sealed[:rootLen])); err != nil {
		if errors.Is(err, hsm.ErrNoRoot) {
			return nil, errSealed
		}
		return nil, err
	}
	if subtle.ConstantTimeCompare(d.Out[32:], h.Commitment[:]) != 1 {
		return nil, errSealed
	}
	bound := append(append([]byte(nil), sealed[rootLen:rootLen+blob.HeaderLen]...), aad...)
	plaintext, ok := aesgcm.Open(nil, (*[32]byte)(d.Out[:32]), (*[12]byte)(h.Nonce[12:]), text, bound)
	if !ok {
		return nil, errSealed
	}
	return plaintext, nil
}

// derive runs the job. What the HSM does not do wraps the exception that the data plane would answer, for whoever was asked by a client.
func (s *sealer) derive(j *hsm.Job, root hsm.RootID) error {
	if err := s.offsets.Offset(root, &sealSalt, &j.Derive[0].Offset); err != nil {
		return err
	}
	j.Root, j.N = root, 1
	if err := s.run(j, time.Now()); err != nil {
		return fmt.Errorf("%w: %w", kmsapi.E(dataplane.CodeOf(err)), err)
	}
	return nil
}
