package dataplane

import (
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// encrypt: plaintext (1 to 4096 bytes, for RSA keys 470 at most) → ciphertext blob (86 to 4181 bytes), of RSA keys as long as the modulus. Errors in the order
// of test: docs/errors.md.
func (s *Server) encrypt(r *request) kmsapi.Code {
	in := &r.in
	var code kmsapi.Code
	var alias []byte
	if r.key, alias, code = s.find(r, in.keyID); code != kmsapi.OK {
		return code
	}
	if code = s.authorize(r, r.key, r.op.action, &in.context, in.algorithm, alias); code != kmsapi.OK {
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
	if !r.key.symmetric() {
		if code = r.admitPlaintext(r.key, in.algorithm, in.plaintext); code != kmsapi.OK {
			return code
		}
	}
	if in.dryRun {
		return r.refuse(kmsapi.DryRunOperation)
	}
	if r.key.symmetric() {
		d, code := s.newKey(r, r.key)
		if code != kmsapi.OK {
			return code
		}
		if code = s.seal(r, r.key, d, &in.context, in.plaintext); code != kmsapi.OK {
			return code
		}
	} else if code = s.sealRSA(r, r.key, in.algorithm, in.plaintext); code != kmsapi.OK {
		return code
	}
	r.beginBody()
	r.memberBlob("CiphertextBlob", r.ctext)
	r.memberAlgorithm("EncryptionAlgorithm", in.algorithm)
	r.member("KeyId", r.key.ARN)
	r.endBody()
	return kmsapi.OK
}
