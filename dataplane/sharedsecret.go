package dataplane

import (
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/bytesconv"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/pubkey"
)

// deriveSharedSecret: the peer's public key, DER SubjectPublicKeyInfo on the same curve → the raw x coordinate of 32, 48 or 66 bytes. Errors in the order of
// test: docs/errors.md.
func (s *Server) deriveSharedSecret(r *request) kmsapi.Code {
	in := &r.in
	if code := s.open(r, keyspec.KeyAgreement); code != kmsapi.OK {
		return code
	}
	point, err := r.key.public.Peer(in.publicKey)
	if err != nil {
		return r.refuse(kmsapi.Validation) // without a message, as AWS
	}
	if in.dryRun {
		return r.refuse(kmsapi.DryRunOperation)
	}
	if code := s.private(r, r.key, hsm.DeriveECDH, point, kmsapi.Validation); code != kmsapi.OK {
		return code
	}
	r.beginBody()
	r.member("KeyAgreementAlgorithm", in.algorithm)
	r.member("KeyId", r.key.ARN)
	r.member("KeyOrigin", bytesconv.Bytes(r.key.Facts.Origin))
	if code := r.memberSecret("SharedSecret", r.plain); code != kmsapi.OK {
		return code
	}
	r.endBody()
	return kmsapi.OK
}

// encapsulate makes a secret of 32 bytes and its ciphertext with the public key. It needs no HSM.
func (s *Server) encapsulate(r *request) kmsapi.Code {
	in := &r.in
	if code := s.open(r, keyspec.EncapsulateDecapsulate); code != kmsapi.OK {
		return code
	}
	if in.dryRun {
		return r.refuse(kmsapi.DryRunOperation)
	}
	r.plain = r.plain[:pubkey.SecretBytes]
	r.ctext = r.ctext[:pubkey.CiphertextBytes(r.key.spec)]
	if err := r.key.public.Encapsulate(r.plain, r.ctext); err != nil {
		return s.fail(r, err)
	}
	r.beginBody()
	r.member("EncapsulationAlgorithm", in.algorithm)
	r.member("KeyId", r.key.ARN)
	r.memberBlob("SharedSecret", r.plain)
	r.memberBlob("SharedSecretCiphertextBlob", r.ctext)
	r.endBody()
	return kmsapi.OK
}

// decapsulate: ciphertext → the secret of 32 bytes. Of a ciphertext that is damaged it is another secret: ML-KEM rejects implicitly.
func (s *Server) decapsulate(r *request) kmsapi.Code {
	in := &r.in
	if code := s.open(r, keyspec.EncapsulateDecapsulate); code != kmsapi.OK {
		return code
	}
	if len(in.ciphertextBlob) != pubkey.CiphertextBytes(r.key.spec) {
		return r.refuse(kmsapi.InvalidCiphertext)
	}
	if in.dryRun {
		return r.refuse(kmsapi.DryRunOperation)
	}
	if code := s.private(r, r.key, hsm.DecapsulateMLKEM, in.ciphertextBlob, kmsapi.InvalidCiphertext); code != kmsapi.OK {
		return code
	}
	r.beginBody()
	r.member("EncapsulationAlgorithm", in.algorithm)
	r.member("KeyId", r.key.ARN)
	r.memberBlob("SharedSecret", r.plain)
	r.endBody()
	return kmsapi.OK
}
