package dataplane

import (
	"context"
	"crypto/subtle"
	"errors"
	"time"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/aesgcm"
	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/invariants"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
	"github.com/keyplane/keyplane/ratelimit"
)

// A Derivation's Out is K (32) || C (16): docs/ciphertext.md §3.
func messageKey(d *hsm.Derivation) *[32]byte { return (*[32]byte)(d.Out[:32]) }
func commitment(d *hsm.Derivation) []byte    { return d.Out[32:48] }
func gcmNonce(nonce *[24]byte) *[12]byte     { return (*[12]byte)(nonce[12:]) }
func rootOf(v *snapshot.Version) hsm.RootID  { return hsm.RootID(v.Root) }
func current(k *keyView) *snapshot.Version   { return &k.Versions[k.Current] }

// suite is that of blobs under a version of k.
func (k *keyView) suite(v *snapshot.Version) byte {
	switch {
	case v.Resident:
		return blob.SuiteResident
	case k.Store.External():
		return blob.SuiteExternal
	}
	return blob.SuiteDerived
}

// want adds the derivation of a message key under version v of k to what round does.
func (s *Server) want(r *request, k *keyView, v *snapshot.Version) (*hsm.Derivation, kmsapi.Code) {
	if v.Resident {
		return s.wantResident(r, k, v)
	}
	invariants.Check(v.Offset != [16]byte{}, "a wiped key is used")
	d := &r.job.Derive[r.job.N]
	d.Offset = v.Offset
	r.job.Root = rootOf(v)
	r.job.N++
	return d, kmsapi.OK
}

// wantKey wants a new message key, under the key's current version.
func (s *Server) wantKey(r *request, k *keyView) (*hsm.Derivation, kmsapi.Code) {
	d, code := s.want(r, k, current(k))
	if code == kmsapi.OK {
		d.Draw = true
	}
	return d, code
}

// wantBlobKey wants the message key of the blob that was sent, which is under version v of r.key.
func (s *Server) wantBlobKey(r *request, v *snapshot.Version) (*hsm.Derivation, kmsapi.Code) {
	d, code := s.want(r, r.key, v)
	if code == kmsapi.OK {
		d.Nonce = r.blob.Nonce
	}
	return d, code
}

// newKey makes a new message key under the key's current version, and the random bytes that r.job asks for.
func (s *Server) newKey(r *request, k *keyView) (*hsm.Derivation, kmsapi.Code) {
	d, code := s.wantKey(r, k)
	if code == kmsapi.OK {
		code = s.round(r)
	}
	return d, code
}

// round runs r.job: one round in the batcher. Its time in the queue counts from r.now, which is later than the loading of a cold key.
func (s *Server) round(r *request) kmsapi.Code {
	if code := s.likely(r); code != kmsapi.OK {
		return code
	}
	if r.residents > 0 {
		return s.roundResident(r)
	}
	if err := s.parts.Run(&r.job, r.now); err != nil {
		return s.fail(r, err)
	}
	return kmsapi.OK
}

// warningLimit keeps the log readable while every request fails: ten lines a second, a hundred at once.
var warningLimit = ratelimit.Limit{Interval: 100 * time.Millisecond, Burst: 100}

// warn logs a fault that many requests may meet at once.
func (s *Server) warn(what string, err error, args ...any) {
	if ok, _ := s.warnings.Take(warningLimit, time.Now().UnixNano()); !ok {
		s.unlogged.Add(1)
		return
	}
	s.cfg.Logger.Warn(what, append(args, "error", err, "not_logged", s.unlogged.Swap(0))...)
}

// CodeOf is the exception that tells a client of an error of Parts.Run or of the store: docs/errors.md, "Faults on our side".
func CodeOf(err error) kmsapi.Code {
	switch {
	case errors.Is(err, batch.ErrFull), errors.Is(err, batch.ErrDeadline):
		return kmsapi.Throttling
	case errors.Is(err, batch.ErrClosed):
		return kmsapi.ServiceUnavailable
	case errors.Is(err, context.DeadlineExceeded):
		return kmsapi.DependencyTimeout
	}
	switch hsm.Outcome(err) {
	case hsm.Timeout:
		return kmsapi.DependencyTimeout
	case hsm.Unavailable:
		return kmsapi.KeyUnavailable
	case hsm.Throttled:
		return kmsapi.Throttling
	}
	return kmsapi.KMSInternal
}

// fail turns an internal error into what the client may see of it. Overload and the end of the process are no faults to log.
func (s *Server) fail(r *request, err error) kmsapi.Code {
	code := CodeOf(err)
	if errors.Is(err, batch.ErrFull) || errors.Is(err, batch.ErrDeadline) || errors.Is(err, batch.ErrClosed) {
		return r.refuse(code)
	}
	s.warn("a request failed on our side", err, "request", string(r.id[:]), "code", code.Type())
	return r.refuse(code)
}

// seal leaves in r.ctext the blob of plaintext under k, with the message key of derivation d.
func (s *Server) seal(r *request, k *keyView, d *hsm.Derivation, context *blob.Context, plaintext []byte) kmsapi.Code {
	v := current(k)
	h := blob.Header{Suite: k.suite(v), Account: k.Account, Key: k.ID, KeyVersion: v.Number, Nonce: d.Nonce}
	copy(h.Commitment[:], commitment(d))
	r.ctext = h.Append(r.ctext[:0])
	r.aad = context.AppendTo(append(emptied(r.aad), r.ctext...))
	r.ctext = aesgcm.Seal(r.ctext, messageKey(d), gcmNonce(&d.Nonce), plaintext, r.aad)
	if h.Suite == blob.SuiteExternal {
		return s.sealOuter(r, k)
	}
	return kmsapi.OK
}

// unseal leaves in r.plain the plaintext of the blob that was sent, with the message key of derivation d. A wrong key, commitment, context or tag are one and
// the same to the client. Before it is told so the message key is derived once more: it may be the device that is wrong.
func (s *Server) unseal(r *request, d *hsm.Derivation) kmsapi.Code {
	code := s.unsealWith(r, d)
	if code != kmsapi.InvalidCiphertext {
		return code
	}
	differs, code := s.deriveAgain(r, d)
	switch {
	case code != kmsapi.OK:
		return code
	case !differs:
		return r.refuse(kmsapi.InvalidCiphertext)
	}
	if code = s.unsealWith(r, d); code == kmsapi.InvalidCiphertext {
		return r.refuse(kmsapi.KMSInternal)
	}
	return code
}

func (s *Server) unsealWith(r *request, d *hsm.Derivation) kmsapi.Code {
	if subtle.ConstantTimeCompare(commitment(d), r.blob.Commitment[:]) != 1 {
		return r.refuse(kmsapi.InvalidCiphertext)
	}
	r.aad = r.in.context.AppendTo(append(r.aad[:0], r.in.ciphertextBlob[:blob.HeaderLen]...))
	if r.blob.Suite == blob.SuiteExternal {
		return s.unsealExternal(r, d)
	}
	if !r.open(d) {
		return r.refuse(kmsapi.InvalidCiphertext)
	}
	return kmsapi.OK
}

// open appends to r.plain the plaintext of r.sealed under r.aad. It reports false where they are not of this key.
func (r *request) open(d *hsm.Derivation) (ok bool) {
	r.plain, ok = aesgcm.Open(r.plain[:0], messageKey(d), gcmNonce(&r.blob.Nonce), r.sealed, r.aad)
	return ok
}
