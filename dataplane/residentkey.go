package dataplane

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/kdf"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// Symmetric keys whose versions are keys of their own in the HSM (docs/ciphertext.md §3, suite 0x02): imported ones, those that are in several Regions, and, in the
// HSMs of a cluster, those of CloudHSM key stores. Their random bytes and nonces come out of the rounds of all keys. The blocks of a message key are a KeyJob, which shares its crossing with those of other requests
// under the same version.

// resident is such a version.
type resident struct {
	key    hsm.Key                            // not changed, as keyView.private
	copies []hsm.Key                          // of a key in a CloudHSM key store: key, and the same key as the other HSMs have it; not changed either
	of     *keyView                           // whose version it is
	offset atomic.Pointer[[kdf.BlockLen]byte] // K1 of the key; nil before its first use, which proves that it is the version's key
}

// newResident is the resident half of a version of k, empty of one that is missing.
func newResident(k *keyView, v *snapshot.VersionRecord, dst *resident) {
	dst.of = k
	if v.Resident == nil {
		return
	}
	dst.key = aesKey(v.Resident)
	if k.Store == nil {
		return
	}
	dst.copies = append(make([]hsm.Key, 0, 1+len(v.Copies)), dst.key)
	for _, p := range v.Copies {
		dst.copies = append(dst.copies, aesKey(p))
	}
}

func aesKey(p *snapshot.PrivateKey) hsm.Key {
	return hsm.Key{ID: p.ID, Spec: keyspec.AES256, Root: hsm.RootID(p.Root), Software: p.Software, Wrapped: p.Wrapped}
}

// wipe clears the offset. Nobody uses the version any more.
func (v *resident) wipe() {
	if offset := v.offset.Load(); offset != nil {
		clear(offset[:])
	}
}

// residentOf is the resident half of a version of k that is one.
func (k *keyView) residentOf(v *snapshot.Version) *resident { return &k.resident[k.Index(v.Number)] }

// residentBlocks is how many blocks the HSM encrypts for a derivation.
const residentBlocks = len(hsm.Derivation{}.Out) / kdf.BlockLen

// wantResident is want for a resident version. Its derivation is one of the job's last: the round draws a nonce for it and no more.
func (s *Server) wantResident(r *request, k *keyView, v *snapshot.Version) (*hsm.Derivation, kmsapi.Code) {
	if v.Missing { // it waits for a rotation here, and encrypts in another Region already: no state lets other missing material get here
		r.msg = append(append(emptied(r.msg), k.ARN...), " is pending import."...)
		return nil, kmsapi.KMSInvalidState
	}
	half := k.residentOf(v)
	offset := half.offset.Load()
	if offset == nil {
		var code kmsapi.Code
		if offset, code = s.prove(r, k, v, half); code != kmsapi.OK {
			return nil, code
		}
	}
	i := len(r.job.Derive) - 1 - r.residents
	r.residents++
	r.resident[i] = half
	d := &r.job.Derive[i]
	d.Offset = *offset
	return d, kmsapi.OK
}

// unknown stands for the K1 of a key that is not proved yet.
var unknown [kdf.BlockLen]byte

// prove has the HSM make what the data plane needs of a resident version once, K1, and what names its key material: a key that is not the version's is of no use.
// Requests that need it at once all ask, in one crossing.
func (s *Server) prove(r *request, k *keyView, v *snapshot.Version, half *resident) (*[kdf.BlockLen]byte, kmsapi.Code) {
	clear(r.blocks[:kdf.BlockLen])
	n := kdf.BlockLen + copy(r.blocks[kdf.BlockLen:], snapshot.ResidentBlocks)
	if code := s.images(r, half, &unknown, n); code != kmsapi.OK {
		return nil, code
	}
	r.renewNow() // the key may have been brought into the HSM
	if snapshot.ResidentMaterialID(k.Account, k.ID, (*[32]byte)(r.images[kdf.BlockLen:])) != v.MaterialID {
		return nil, s.fail(r, errNotTheVersion)
	}
	offset := new([kdf.BlockLen]byte)
	kdf.SubkeyK1(offset, (*[kdf.BlockLen]byte)(r.images[:]))
	if !half.offset.CompareAndSwap(nil, offset) {
		clear(offset[:])
		offset = half.offset.Load()
	}
	return offset, kmsapi.OK
}

// errNotTheVersion is for an operator: whoever may write records, or the HSM, has given a key version another key.
var errNotTheVersion = errors.Join(snapshot.ErrDamaged, errors.New("dataplane: the material ID of a key version is not that of its key in the HSM"))

// roundResident is round where message keys of resident versions are wanted: what the round of all keys has to give, if anything, then their blocks.
func (s *Server) roundResident(r *request) kmsapi.Code {
	if r.job.N > 0 || r.job.Derive[0].Draw || r.job.Derive[1].Draw {
		if err := s.parts.Run(&r.job, r.now); err != nil {
			return s.fail(r, err)
		}
		r.renewNow()
	}
	if r.resident[0] == r.resident[1] {
		return s.deriveResident(r, r.resident[0], 0, 1)
	}
	for i, half := range r.resident {
		if half == nil {
			continue
		}
		if code := s.deriveResident(r, half, i, i); code != kmsapi.OK {
			return code
		}
		r.renewNow() // a member of a cluster may have hung: the time in the queue of the next one counts from here
	}
	return kmsapi.OK
}

// deriveResident makes the message keys of the derivations from first to last, which are under one key.
func (s *Server) deriveResident(r *request, half *resident, first, last int) kmsapi.Code {
	n := 0
	for i := first; i <= last; i++ {
		d := &r.job.Derive[i]
		for b := range residentBlocks {
			kdf.Input((*[kdf.BlockLen]byte)(r.blocks[n:]), &d.Offset, d.Nonce[:kdf.NonceLen], byte(b+1))
			n += kdf.BlockLen
		}
	}
	if code := s.images(r, half, &r.job.Derive[first].Offset, n); code != kmsapi.OK {
		return code
	}
	images := r.images[:n]
	for i := first; i <= last; i++ {
		images = images[copy(r.job.Derive[i].Out[:], images):]
	}
	clear(r.images[:n])
	return kmsapi.OK
}

// images has the HSM encrypt the first n bytes of r.blocks, whole blocks, under a key, to r.images. They are those of that key if its k1 is given.
func (s *Server) images(r *request, half *resident, k1 *[kdf.BlockLen]byte, n int) kmsapi.Code {
	if code := s.likely(r); code != kmsapi.OK {
		return code
	}
	j := &r.use
	j.Key, j.Mechanism, j.In, j.Out = &half.key, hsm.EncryptBlocks, r.blocks[:n], r.images[:]
	j.K1 = *k1
	err := s.useResident(j, half, r.now)
	if err == nil && j.N != n {
		err = hsm.ErrWrong
	}
	switch {
	case err == nil:
		return kmsapi.OK
	case errors.Is(err, hsm.ErrNotOffered):
		which := " with keys that are imported or multi-Region is not offered by this server's HSM."
		if half.copies != nil {
			which = " with keys of this custom key store is not offered by its HSMs."
		}
		r.msg = append(append(emptied(r.msg), r.op.Name...), which...)
		return kmsapi.UnsupportedOperation
	case half.copies != nil:
		return s.failStore(r, half.of, err)
	}
	return s.fail(r, err)
}

// useResident runs a job on the HSM that has the key: the server's own, or one of the key store's.
func (s *Server) useResident(j *hsm.KeyJob, half *resident, now time.Time) error {
	if half.copies != nil {
		store := s.storeOf(half.of)
		if store == nil {
			return hsm.ErrUnavailable
		}
		return store.Run(j, half.copies, now)
	}
	if s.parts.Keys == nil {
		return hsm.ErrNotOffered
	}
	return s.parts.Keys.Run(j, now)
}
