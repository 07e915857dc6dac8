package dataplane

import (
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// reEncrypt: ciphertext blob → blob of the same plaintext under another key or context. The plaintext does not leave the process. Both
// message keys come from one round, unless the keys have two derivation roots. Errors in the order of test: docs/errors.md.
func (s *Server) reEncrypt(r *request) kmsapi.Code {
	in := &r.in
	alias, code := s.source(r)
	if code != kmsapi.OK {
		return code
	}
	// Whether the destination exists is told after the decision about the source: else it would tell whether another account's source does.
	dest, destAlias, destCode := s.resolve(r, in.destKeyID, reEncryptTo)
	r.ask.context.ReEncrypt, r.ask.context.SameKey = true, dest != nil && r.key.ID == dest.ID && r.key.Account == dest.Account
	if code = s.authorizeSource(r, alias); code != kmsapi.OK {
		return code
	}
	if destCode != kmsapi.OK {
		return destCode
	}
	r.dest = dest // not before: the record lists it
	if code = s.authorize(r, r.dest, reEncryptTo, &in.destContext, in.destAlgorithm, destAlias); code != kmsapi.OK {
		return code
	}
	if code = s.chargeDest(r, dest); code != kmsapi.OK {
		return code
	}
	if code = s.admitTokens(r); code != kmsapi.OK {
		return code
	}
	if code = s.admit(r, r.key, keyspec.EncryptDecrypt, in.algorithm); code != kmsapi.OK {
		return code
	}
	if code = s.admit(r, r.dest, keyspec.EncryptDecrypt, in.destAlgorithm); code != kmsapi.OK {
		return code
	}
	if code = s.admitContext(r, r.key, &in.context); code != kmsapi.OK {
		return code
	}
	if code = s.admitContext(r, r.dest, &in.destContext); code != kmsapi.OK {
		return code
	}
	if in.ignoresCiphertext() {
		return r.refuse(kmsapi.DryRunOperation)
	}
	version, sealing, code := s.openSource(r)
	if code != kmsapi.OK {
		return code
	}
	if !r.dest.symmetric() {
		if code = r.admitPlaintext(r.dest, in.destAlgorithm, r.plain); code != kmsapi.OK {
			return code
		}
	}
	if in.dryRun {
		return r.refuse(kmsapi.DryRunOperation)
	}
	if code = s.sealDest(r, sealing); code != kmsapi.OK {
		return code
	}
	r.beginBody()
	r.memberBlob("CiphertextBlob", r.ctext)
	r.memberAlgorithm("DestinationEncryptionAlgorithm", in.destAlgorithm)
	if r.dest.symmetric() {
		r.member("DestinationKeyMaterialId", current(r.dest).MaterialID[:])
	}
	r.member("KeyId", r.dest.ARN)
	r.memberAlgorithm("SourceEncryptionAlgorithm", in.algorithm)
	r.member("SourceKeyId", r.key.ARN)
	if version != nil {
		r.member("SourceKeyMaterialId", version.MaterialID[:])
	}
	r.endBody()
	return kmsapi.OK
}

// chargeDest charges the request to the pool of its destination too, unless that is the source's. It is called after source.
func (s *Server) chargeDest(r *request, dest *keyView) kmsapi.Code {
	p, spec := &r.op.pools, keyspec.None
	if dest != nil {
		spec = dest.spec
	}
	if p.of[spec] == p.of[r.key.spec] {
		return kmsapi.OK
	}
	return s.charge(r, p.of[spec])
}

// openSource leaves the plaintext in r.plain. sealing is the derivation of the message key of the destination where the same round could make it, else nil.
func (s *Server) openSource(r *request) (version *snapshot.Version, sealing *hsm.Derivation, code kmsapi.Code) {
	version, code = s.ciphertext(r)
	switch {
	case code != kmsapi.OK:
		return nil, nil, code
	case version == nil:
		return nil, nil, s.openRSA(r)
	}
	opening, code := s.wantBlobKey(r, version)
	if code != kmsapi.OK {
		return nil, nil, code
	}
	if r.dest.symmetric() && together(version, current(r.dest)) {
		if sealing, code = s.wantKey(r, r.dest); code != kmsapi.OK {
			return nil, nil, code
		}
	}
	if code = s.round(r); code != kmsapi.OK {
		return nil, nil, code
	}
	if code = s.unseal(r, opening); code != kmsapi.OK {
		return nil, nil, code
	}
	return version, sealing, kmsapi.OK
}

// together says that one round makes message keys of both versions: a round has one derivation root.
func together(a, b *snapshot.Version) bool { return a.Resident || b.Resident || a.Root == b.Root }

// sealDest leaves the new ciphertext of r.plain in r.ctext.
func (s *Server) sealDest(r *request, sealing *hsm.Derivation) kmsapi.Code {
	in := &r.in
	if !r.dest.symmetric() {
		return s.sealRSA(r, r.dest, in.destAlgorithm, r.plain)
	}
	if sealing == nil {
		r.job.Wipe()
		r.renewNow()
		var code kmsapi.Code
		if sealing, code = s.newKey(r, r.dest); code != kmsapi.OK {
			return code
		}
	}
	return s.seal(r, r.dest, sealing, &in.destContext, r.plain)
}
