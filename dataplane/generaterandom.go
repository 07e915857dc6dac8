package dataplane

import "github.com/keyplane/keyplane/internal/kmsapi"

// generateRandom: 1 to 1024 random bytes from the HSM. Errors in the order of test: docs/errors.md.
func (s *Server) generateRandom(r *request) kmsapi.Code {
	in := &r.in
	if code := s.authorizeAlone(r, r.op.action); code != kmsapi.OK {
		return code
	}
	if in.has&mCustomKeyStoreID != 0 {
		// None can have been created yet.
		return r.refuseText(kmsapi.CustomKeyStoreNotFound, "The custom key store does not exist.")
	}
	if in.has&mNumberOfBytes == 0 {
		return r.refuseText(kmsapi.Validation, "NumberOfBytes is required.")
	}
	r.plain = r.plain[:in.numberOfBytes]
	r.job.Random = r.plain
	if code := s.round(r); code != kmsapi.OK {
		return code
	}
	r.beginBody()
	if code := r.memberSecret("Plaintext", r.plain); code != kmsapi.OK {
		return code
	}
	r.endBody()
	return kmsapi.OK
}
