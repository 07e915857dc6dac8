package dataplane

import (
	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/planted"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// decrypt: ciphertext blob (86 to 4181 bytes), of RSA keys as long as the modulus → plaintext (1 to 4096 bytes). Errors in the order of test: docs/errors.md.
func (s *Server) decrypt(r *request) kmsapi.Code {
	in := &r.in
	alias, code := s.source(r)
	if code != kmsapi.OK {
		return code
	}
	if code = s.authorizeSource(r, alias); code != kmsapi.OK {
		return code
	}
	if code = s.admitTokens(r); code != kmsapi.OK {
		return code
	}
	if code = s.admit(r, r.key, keyspec.EncryptDecrypt, in.algorithm); code != kmsapi.OK {
		return code
	}
	if code = s.admitContext(r, r.key, &in.context); code != kmsapi.OK {
		return code
	}
	if in.ignoresCiphertext() {
		return r.refuse(kmsapi.DryRunOperation)
	}
	version, code := s.ciphertext(r)
	if code != kmsapi.OK {
		return code
	}
	if r.key.symmetric() {
		d, code := s.wantBlobKey(r, version)
		if code != kmsapi.OK {
			return code
		}
		if code = s.round(r); code != kmsapi.OK {
			return code
		}
		if code = s.unseal(r, d); code != kmsapi.OK {
			return code
		}
	} else if code = s.openRSA(r); code != kmsapi.OK {
		return code
	}
	if in.dryRun {
		return r.refuse(kmsapi.DryRunOperation)
	}
	r.beginBody()
	r.memberAlgorithm("EncryptionAlgorithm", in.algorithm)
	r.member("KeyId", r.key.ARN)
	if version != nil {
		r.memberMaterial(version.MaterialID[:])
	}
	planted.Swap(planted.ResultSwapped, r.plain)
	if code = r.memberSecret("Plaintext", r.plain); code != kmsapi.OK {
		return code
	}
	r.endBody()
	return kmsapi.OK
}

// source finds the key of the ciphertext that was sent: the one that is named, else the one the ciphertext names. For Decrypt, and for the
// first half of ReEncrypt.
func (s *Server) source(r *request) (alias []byte, code kmsapi.Code) {
	in := &r.in
	if in.keyID != nil {
		r.key, alias, code = s.find(r, in.keyID)
		return alias, code
	}
	if code = s.enter(r, keyspec.None); code != kmsapi.OK { // only ciphertexts of symmetric keys name their keys
		return nil, code
	}
	switch {
	case in.ignoresCiphertext():
		code = r.keyIDRequired("when the ciphertext is ignored.")
	case in.ciphertextBlob == nil:
		code = s.noCiphertext(r)
	case in.algorithm != nil && string(in.algorithm) != kmsapi.SymmetricDefault:
		code = r.keyIDRequired("to decrypt with an asymmetric KMS key.")
	case !r.parseBlob():
		code = r.refuse(kmsapi.InvalidCiphertext)
	default:
		r.key, code = s.blobKey(r)
	}
	return alias, code
}

// authorizeSource is authorize for the key that source found. Of another account's key that only the ciphertext names, a refusal says no more
// than of one that does not exist.
func (s *Server) authorizeSource(r *request, alias []byte) kmsapi.Code {
	code := s.authorize(r, r.key, r.op.action, &r.in.context, r.in.algorithm, alias)
	if code == kmsapi.AccessDenied && r.in.keyID == nil && r.key.Account != r.who.Principal().Account {
		r.msg = emptied(r.msg) // the text it replaces is longer
		return r.refuseText(code, textForeignBlob)
	}
	return code
}

func (r *request) keyIDRequired(why string) kmsapi.Code {
	name := "KeyId"
	if r.op.members&mSourceKeyID != 0 {
		name = "SourceKeyId"
	}
	r.msg = append(append(append(r.msg[:0], name...), " is required "...), why...)
	return kmsapi.Validation
}

// ignoresCiphertext says that a dry run asks for nothing but the rights.
func (in *input) ignoresCiphertext() bool { return in.dryRun && in.ignoreCiphertext }

// ciphertext reads the ciphertext, unless source has, and returns the backing key it was made under, one of r.key's; nil of an RSA key, which has one.
func (s *Server) ciphertext(r *request) (*snapshot.Version, kmsapi.Code) {
	in := &r.in
	if !r.key.symmetric() {
		return nil, kmsapi.OK
	}
	if in.keyID != nil {
		switch {
		case in.ciphertextBlob == nil:
			return nil, s.noCiphertext(r)
		case !r.parseBlob():
			return nil, r.refuse(kmsapi.InvalidCiphertext)
		case r.blob.Key != r.key.ID || r.blob.Account != r.key.Account:
			return nil, r.refuse(kmsapi.IncorrectKey)
		}
	}
	v := r.key.Version(r.blob.KeyVersion)
	if v == nil || r.blob.Suite != r.key.suite(v) {
		return nil, r.refuse(kmsapi.InvalidCiphertext)
	}
	return v, kmsapi.OK
}

// noCiphertext refuses a missing CiphertextBlob, which the model leaves optional since a dry run may go without.
func (s *Server) noCiphertext(r *request) kmsapi.Code {
	r.faults.Null("ciphertextBlob")
	r.msg = r.faults.AppendMessage(r.msg[:0])
	return kmsapi.Validation
}

// parseBlob reads the ciphertext that was sent.
func (r *request) parseBlob() bool {
	var ok bool
	r.sealed, ok = blob.Parse(r.in.ciphertextBlob, &r.blob)
	return ok
}
