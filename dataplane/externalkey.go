package dataplane

import (
	"crypto/sha256"
	"errors"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/xks"
)

// Symmetric keys in external key stores (docs/ciphertext.md §7, suite 0x03): what a derived version has encrypted is encrypted again by the external key, and
// decrypted by it first. The proxy never sees a plaintext. It is asked when the round in the HSM is over, by the goroutine of the request, which holds nothing
// that others wait for, and before the call is recorded.

// errSealed is a fault of who implements KeyStore.
var errSealed = errors.New("dataplane: the external key store returned what no blob can hold")

// sealOuter has the external key of k encrypt what follows the header in r.ctext, which is bound by r.aad.
func (s *Server) sealOuter(r *request, k *keyView) kmsapi.Code {
	store := s.storeOf(k)
	if store == nil {
		return r.unavailable(k)
	}
	if code := s.likely(r); code != kmsapi.OK {
		return code
	}
	inner := r.ctext[blob.HeaderLen:]
	aad := outerAAD(r.aad)
	sealed, err := store.Encrypt(k.Store.XksKeyID, r.metadata(k), inner, aad[:])
	if err != nil {
		return s.failStore(r, k, err)
	}
	o := blob.Outer(sealed)
	if !o.Valid() || len(o.Ciphertext) != len(inner) {
		return s.fail(r, errSealed)
	}
	r.ctext = o.Append(r.ctext[:blob.HeaderLen]) // longer than what was there
	return kmsapi.OK
}

// unsealExternal is unseal behind the comparison of the commitment. A dry run does not ask the proxy: of the plaintext it leaves the length, all of it zero.
func (s *Server) unsealExternal(r *request, d *hsm.Derivation) kmsapi.Code {
	var o blob.Outer
	if !blob.ParseOuter(r.sealed, &o) {
		return r.refuse(kmsapi.InvalidCiphertext)
	}
	if r.in.dryRun {
		r.plain = r.plain[:len(o.Ciphertext)-blob.TagLen]
		return kmsapi.OK
	}
	store := s.storeOf(r.key)
	if store == nil {
		return r.unavailable(r.key)
	}
	if code := s.likely(r); code != kmsapi.OK {
		return code
	}
	aad := outerAAD(r.aad)
	var err error
	if r.sealed, err = store.Decrypt(r.key.Store.XksKeyID, r.metadata(r.key), (*xks.Sealed)(&o), aad[:]); err != nil {
		return s.failStore(r, r.key, err)
	}
	if !r.open(d) {
		e := xks.BadCiphertext.At(xks.AtCrypto) // the proxy has not refused it
		return r.refuseText(e.Code, e.Message)
	}
	return kmsapi.OK
}

// outerAAD is what the external key binds besides its ciphertext: the header, and the SHA-256 of the canonical encryption context. aad is both in clear.
func outerAAD(aad []byte) (out [blob.HeaderLen + sha256.Size]byte) {
	sum := sha256.Sum256(aad[blob.HeaderLen:])
	copy(out[copy(out[:], aad[:blob.HeaderLen]):], sum[:])
	return out
}

// metadata is what the proxy is told of the call.
func (r *request) metadata(k *keyView) *xks.Metadata {
	w := r.who.Principal().Caller
	return &xks.Metadata{Principal: w.PrincipalARN(), KeyARN: string(k.ARN), Operation: r.op.Name, RequestID: string(r.id[:]), ViaService: w.Via}
}
