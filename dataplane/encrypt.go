package dataplane

import "github.com/keyplane/keyplane/internal/kmsapi"

// encrypt: plaintext (1 to 4096 bytes) → ciphertext blob (86 to 4181 bytes). Errors in the order of test: docs/errors.md.
func (s *Server) encrypt(r *request) kmsapi.Code {
	in := &r.in
	var code kmsapi.Code
	var alias []byte
	if r.key, alias, code = s.resolve(r, in.keyID, r.op.action); code != kmsapi.OK {
		return code
	}
	if code = s.authorize(r, r.key, r.op.action, &in.context, in.algorithm, alias); code != kmsapi.OK {
		return code
	}
	if code = s.admitTokens(r); code != kmsapi.OK {
		return code
	}
	if code = s.admit(r, r.key, in.algorithm); code != kmsapi.OK {
		return code
	}
	if in.dryRun {
		return r.refuse(kmsapi.DryRunOperation)
	}
	r.wantKey(r.key)
	if code = s.round(r); code != kmsapi.OK {
		return code
	}
	r.seal(r.key, &r.job.Derive[0], &in.context, in.plaintext)
	r.beginBody()
	r.memberBlob("CiphertextBlob", r.ctext)
	r.memberText("EncryptionAlgorithm", kmsapi.SymmetricDefault)
	r.member("KeyId", r.key.ARN)
	r.endBody()
	return kmsapi.OK
}
