package dataplane

import "github.com/keyplane/keyplane/internal/kmsapi"

// generateRandom: 1 to 1024 random bytes from the HSM, or from one of a CloudHSM key store. Errors in the order of test: docs/errors.md.
func (s *Server) generateRandom(r *request) kmsapi.Code {
	in := &r.in
	if code := s.authorizeAlone(r, r.op.action); code != kmsapi.OK {
		return code
	}
	var store KeyStore
	if in.has&mCustomKeyStoreID != 0 {
		var code kmsapi.Code
		if store, code = s.storeNamed(r, in.customKeyStoreID); code != kmsapi.OK {
			return code
		}
	}
	if in.has&mNumberOfBytes == 0 {
		return r.refuseText(kmsapi.Validation, "NumberOfBytes is required.")
	}
	r.plain = r.plain[:in.numberOfBytes]
	code := kmsapi.OK
	if store != nil {
		code = s.randomOf(r, store)
	} else {
		r.job.Random = r.plain
		code = s.round(r)
	}
	if code != kmsapi.OK {
		return code
	}
	r.beginBody()
	if code = r.memberSecret("Plaintext", r.plain); code != kmsapi.OK {
		return code
	}
	r.endBody()
	return kmsapi.OK
}
