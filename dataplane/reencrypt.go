package dataplane

import (
	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// reEncrypt: ciphertext blob → blob of the same plaintext under another key or context. The plaintext does not leave the process. Both
// message keys come from one round where the keys share a derivation root. Errors in the order of test: docs/errors.md.
func (s *Server) reEncrypt(r *request) kmsapi.Code {
	in := &r.in
	alias, code := s.source(r)
	if code != kmsapi.OK {
		return code
	}
	// Whether the destination exists is told after the decision about the source: else it would tell whether another account's source does.
	dest, destAlias, destCode := s.resolve(r, in.destKeyID, reEncryptTo)
	r.dest = dest
	r.ask.context.ReEncrypt, r.ask.context.SameKey = true, dest != nil && r.key.ID == dest.ID && r.key.Account == dest.Account
	if code = s.authorizeSource(r, alias); code != kmsapi.OK {
		return code
	}
	if destCode != kmsapi.OK {
		return destCode
	}
	if code = s.authorize(r, r.dest, reEncryptTo, &in.destContext, in.destAlgorithm, destAlias); code != kmsapi.OK {
		return code
	}
	if code = s.admitTokens(r); code != kmsapi.OK {
		return code
	}
	if code = s.admit(r, r.key, in.algorithm); code != kmsapi.OK {
		return code
	}
	if code = s.admit(r, r.dest, in.destAlgorithm); code != kmsapi.OK {
		return code
	}
	if in.ignoresCiphertext() {
		return r.refuse(kmsapi.DryRunOperation)
	}
	version, code := s.ciphertext(r)
	if code != kmsapi.OK {
		return code
	}
	r.wantBlobKey(version)
	split := rootOf(version) != rootOf(current(r.dest))
	if !split {
		r.wantKey(r.dest)
	}
	if code = s.round(r); code != kmsapi.OK {
		return code
	}
	if !r.open(&r.job.Derive[0], &in.context, in.ciphertextBlob[:blob.HeaderLen]) {
		return r.refuse(kmsapi.InvalidCiphertext)
	}
	if in.dryRun {
		return r.refuse(kmsapi.DryRunOperation)
	}
	sealing := &r.job.Derive[1]
	if split {
		r.job.Wipe()
		r.wantKey(r.dest)
		r.renewNow()
		if code = s.round(r); code != kmsapi.OK {
			return code
		}
		sealing = &r.job.Derive[0]
	}
	r.seal(r.dest, sealing, &in.destContext, r.plain)
	r.beginBody()
	r.memberBlob("CiphertextBlob", r.ctext)
	r.memberText("DestinationEncryptionAlgorithm", kmsapi.SymmetricDefault)
	r.member("DestinationKeyMaterialId", current(r.dest).MaterialID[:])
	r.member("KeyId", r.dest.ARN)
	r.memberText("SourceEncryptionAlgorithm", kmsapi.SymmetricDefault)
	r.member("SourceKeyId", r.key.ARN)
	r.member("SourceKeyMaterialId", version.MaterialID[:])
	r.endBody()
	return kmsapi.OK
}
