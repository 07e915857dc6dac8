package dataplane

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/aesgcm"
	"github.com/keyplane/keyplane/internal/kdf"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
	"github.com/keyplane/keyplane/internal/xks"
)

// What an external key does, and the format of what it encrypts: docs/xks-proxy.md, "Format".

// xksFormat1 is the first byte of ciphertextMetadata: 01 || key version (4) || N[0:12]. N[12:24] is the initialization vector.
const (
	xksFormat1     = 0x01
	xksMetadataLen = 1 + 4 + kdf.NonceLen
)

// xksVersion is the key version that a ciphertextMetadata names.
func xksVersion(m *[xksMetadataLen]byte) uint32 { return binary.BigEndian.Uint32(m[1:]) }

// xksLabel sets message keys of external keys apart from those of the KMS API.
const xksLabel = "keyplane external key v1"

// admit finds the external key and its KMS key, which r holds, and says whether the request may use it.
func (x *XKS) admit(r *request) xks.Failure {
	k := r.xks.prefix.keys[string(r.xks.id)]
	if k == nil {
		return r.refuseXKS(xks.KeyNotFound, "There is no external key with this ID in the external key store.")
	}
	r.xks.key = k
	if reason := k.denies(&r.xks.in); reason != "" {
		return r.refuseXKS(xks.AccessDenied, reason)
	}
	if k.ReadOnly && r.xks.api == xks.Encrypt {
		return r.refuseXKS(xks.InvalidKeyUsage, "The external key is for decryption only.")
	}
	r.region = k.region
	return x.admitKey(r)
}

// admitKey finds the KMS key of the external key, and says whether it may be used now.
func (x *XKS) admitKey(r *request) xks.Failure {
	k := r.xks.key
	view, err := x.s.key(r, k.Account, k.Key)
	switch {
	case err != nil:
		return r.xksFailure(x.s.fail(r, err))
	case view == nil:
		return r.refuseXKS(xks.KeyNotFound, "The KMS key of the external key does not exist.")
	}
	r.key = view
	if !view.external() {
		return r.refuseXKS(xks.UnsupportedOperation, "The KMS key of the external key is not a symmetric encryption key of one Region with origin AWS_KMS.")
	}
	if code, _ := usable(view.StateAt(r.date)); code != kmsapi.OK && r.xks.api != xks.GetKeyMetadata {
		return r.refuseXKS(xks.InvalidState, "The KMS key of the external key is not enabled.")
	}
	return xks.OK
}

// external says whether the key can be offered as an external key: it is derived, and not itself in a custom key store.
func (k *keyView) external() bool {
	if !k.symmetric() || k.usage != keyspec.EncryptDecrypt || k.Store != nil || len(k.Versions) == 0 {
		return false
	}
	for i := range k.Versions {
		if k.Versions[i].Resident {
			return false
		}
	}
	return true
}

// xksFailure is what a client of the proxy is told of a code that it would get of the KMS API.
func (r *request) xksFailure(c kmsapi.Code) xks.Failure {
	switch c {
	case kmsapi.Throttling:
		return r.refuseXKS(xks.Throttling, "The key manager is busy.")
	case kmsapi.DependencyTimeout, kmsapi.ServiceUnavailable:
		return r.refuseXKS(xks.DependencyTimeout, "The key manager did not answer in time.")
	}
	return r.refuseXKS(xks.Internal, "The key manager failed.")
}

func (x *XKS) getKeyMetadata(r *request) xks.Failure {
	r.out = append(r.out[:0], `{"keySpec":"`+xks.KeySpecAES256+`","keyUsage":[`...)
	if !r.xks.key.ReadOnly {
		r.out = append(r.out, `"`+xks.UsageEncrypt+`",`...)
	}
	r.out = append(r.out, `"`+xks.UsageDecrypt+`"],"keyStatus":"`...)
	if code, _ := usable(r.key.StateAt(r.date)); code == kmsapi.OK {
		r.out = append(r.out, xks.StatusEnabled...)
	} else {
		r.out = append(r.out, xks.StatusDisabled...)
	}
	r.out = append(r.out, `"}`...)
	return xks.OK
}

// encrypt: plaintext (1 to 4300 bytes) → ciphertext of the same length, initialization vector, tag and metadata. Where the client wants a CDIV, what was made is
// decrypted again before it leaves, with a message key that the HSM derives anew.
func (x *XKS) encrypt(r *request) xks.Failure {
	in, m := &r.xks.in, &r.xks.metadata
	v := current(r.key)
	d := r.wantXKS(v)
	d.Draw = true
	if code := x.round(r); code != xks.OK {
		return code
	}
	m[0] = xksFormat1
	binary.BigEndian.PutUint32(m[1:], v.Number)
	copy(m[5:], d.Nonce[:kdf.NonceLen])
	r.xks.iv = *gcmNonce(&d.Nonce)
	r.hashXKSKey(d)
	r.aad = appendXKSAAD(r.aad[:0], in.aad, m[:])
	r.ctext = aesgcm.Seal(r.ctext[:0], &r.xks.message, &r.xks.iv, in.plaintext, r.aad)
	n := len(in.plaintext)
	made := xks.Sealed{IV: r.xks.iv[:], Ciphertext: r.ctext[:n], Tag: r.ctext[n:], Metadata: m[:]}
	r.beginBody()
	r.memberBlob("ciphertext", made.Ciphertext)
	r.memberBlob("ciphertextMetadata", made.Metadata)
	r.memberBlob("initializationVector", made.IV)
	r.memberBlob("authenticationTag", made.Tag)
	if in.cdivAlgorithm != nil {
		// Before the decryption: what is damaged after it does not give this CDIV.
		cdiv := xks.CDIV(&made, in.aad)
		r.memberBlob("ciphertextDataIntegrityValue", cdiv[:])
		if code := x.proveXKS(r, v); code != xks.OK {
			return code
		}
	}
	r.endBody()
	return xks.OK
}

// proveXKS decrypts what encrypt has made, and compares.
func (x *XKS) proveXKS(r *request, v *snapshot.Version) xks.Failure {
	r.job.Derive[0] = hsm.Derivation{}
	r.job.N = 0
	if code := x.openXKS(r, v); code != xks.OK && code != xks.InvalidCiphertext {
		return code
	} else if code == xks.OK && subtle.ConstantTimeCompare(r.plain, r.xks.in.plaintext) == 1 {
		return xks.OK
	}
	return r.xksFailure(x.s.fail(r, errNotDecrypted))
}

var errNotDecrypted = errors.New("dataplane: what an external key has encrypted does not decrypt")

// decrypt: ciphertext (1 to 4300 bytes), initialization vector, tag and metadata → plaintext.
func (x *XKS) decrypt(r *request) xks.Failure {
	in, m := &r.xks.in, &r.xks.metadata
	if len(in.metadata) != len(m) || in.metadata[0] != xksFormat1 {
		return r.refuseXKS(xks.InvalidCiphertext, textXKSCiphertext)
	}
	copy(m[:], in.metadata)
	copy(r.xks.iv[:], in.iv)
	v := r.key.Version(xksVersion(m))
	if v == nil {
		return r.refuseXKS(xks.InvalidCiphertext, textXKSCiphertext)
	}
	r.ctext = append(append(r.ctext[:0], in.ciphertext...), in.tag...)
	if code := x.openXKS(r, v); code != xks.OK {
		return code
	}
	r.beginBody()
	r.memberBlob("plaintext", r.plain)
	r.endBody()
	return xks.OK
}

// openXKS appends to r.plain the plaintext of what r.ctext, r.xks.iv and r.xks.metadata are, under version v of r.key.
func (x *XKS) openXKS(r *request, v *snapshot.Version) xks.Failure {
	d := r.wantXKS(v)
	copy(d.Nonce[:kdf.NonceLen], r.xks.metadata[5:])
	copy(d.Nonce[kdf.NonceLen:], r.xks.iv[:])
	if code := x.round(r); code != xks.OK {
		return code
	}
	r.hashXKSKey(d)
	r.aad = appendXKSAAD(r.aad[:0], r.xks.in.aad, r.xks.metadata[:])
	var ok bool
	if r.plain, ok = aesgcm.Open(r.plain[:0], &r.xks.message, &r.xks.iv, r.ctext, r.aad); !ok {
		return r.refuseXKS(xks.InvalidCiphertext, textXKSCiphertext)
	}
	return xks.OK
}

// wantXKS adds the derivation of a message key under version v of r.key to what round does.
func (r *request) wantXKS(v *snapshot.Version) *hsm.Derivation {
	d := &r.job.Derive[0]
	d.Offset = v.Offset
	r.job.Root, r.job.N = rootOf(v), 1
	return d
}

// round runs r.job, unless nobody waits for the reply any more.
func (x *XKS) round(r *request) xks.Failure {
	if x.cfg.TimeMax > 0 && time.Since(r.xks.arrived) > x.cfg.TimeMax {
		return r.xksFailure(kmsapi.DependencyTimeout)
	}
	if !x.s.cfg.Lease.Likely() {
		return r.refuseXKS(xks.Internal, textFenced)
	}
	if err := x.cfg.Run(&r.job, r.xks.arrived); err != nil {
		return r.xksFailure(x.s.fail(r, err))
	}
	return xks.OK
}

// hashXKSKey makes the message key of what a derivation gave: SP 800-56C one-step, SHA-256(00000001 || K || C || label).
func (r *request) hashXKSKey(d *hsm.Derivation) {
	b := binary.BigEndian.AppendUint32(r.xks.secret[:0], 1)
	b = append(append(b, d.Out[:]...), xksLabel...)
	r.xks.message = sha256.Sum256(b)
}

// appendXKSAAD appends the additional authenticated data of AES-GCM as the API recommends it.
func appendXKSAAD(dst, aad, metadata []byte) []byte {
	dst = append(binary.BigEndian.AppendUint16(dst, uint16(len(aad))), aad...)
	return append(append(dst, byte(len(metadata))), metadata...)
}
