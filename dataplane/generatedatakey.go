package dataplane

import (
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// generateDataKey: key → data key of 1 to 1024 bytes, in clear and encrypted. Errors in the order of test: docs/errors.md.
func (s *Server) generateDataKey(r *request) kmsapi.Code {
	if code := s.makeDataKey(r); code != kmsapi.OK {
		return code
	}
	r.beginBody()
	r.memberBlob("CiphertextBlob", r.ctext)
	if code := r.memberSecret("Plaintext", r.plain); code != kmsapi.OK {
		return code
	}
	r.dataKeyMembers()
	return kmsapi.OK
}

// generateDataKeyWithoutPlaintext is GenerateDataKey that gives the encrypted copy only.
func (s *Server) generateDataKeyWithoutPlaintext(r *request) kmsapi.Code {
	if code := s.makeDataKey(r); code != kmsapi.OK {
		return code
	}
	r.beginBody()
	r.memberBlob("CiphertextBlob", r.ctext)
	r.dataKeyMembers()
	return kmsapi.OK
}

func (r *request) dataKeyMembers() {
	r.member("KeyId", r.key.ARN)
	r.memberMaterial(current(r.key).MaterialID[:])
	r.endBody()
}

// makeDataKey leaves the data key in r.plain and its blob in r.ctext: one round draws the data key and derives the message key.
func (s *Server) makeDataKey(r *request) kmsapi.Code {
	in := &r.in
	var code kmsapi.Code
	var alias []byte
	if r.key, alias, code = s.resolve(r, in.keyID, r.op.action); code != kmsapi.OK {
		return code
	}
	if code = s.authorize(r, r.key, r.op.action, &in.context, nil, alias); code != kmsapi.OK {
		return code
	}
	if code = s.admitTokens(r); code != kmsapi.OK {
		return code
	}
	if code = s.admit(r, r.key, keyspec.EncryptDecrypt, nil); code != kmsapi.OK {
		return code
	}
	hasSpec, hasNumber := in.has&mKeySpec != 0, in.has&mNumberOfBytes != 0
	if hasSpec == hasNumber {
		return r.refuseText(kmsapi.Validation, "Please specify either number of bytes or key spec.")
	}
	n := int(in.numberOfBytes)
	if hasSpec {
		if n = 32; string(in.keySpec) == "AES_128" {
			n = 16
		}
	}
	if in.dryRun {
		return r.refuse(kmsapi.DryRunOperation)
	}
	r.plain = r.plain[:n]
	r.job.Random = r.plain
	d, code := s.newKey(r, r.key)
	if code != kmsapi.OK {
		return code
	}
	return s.seal(r, r.key, d, &in.context, r.plain)
}
