package dataplane

import (
	"crypto/subtle"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// generateMac: message of 1 to 4096 bytes → its HMAC, of 28 to 64 bytes. Errors in the order of test: docs/errors.md.
func (s *Server) generateMac(r *request) kmsapi.Code {
	in := &r.in
	if code := s.open(r, keyspec.GenerateVerifyMAC); code != kmsapi.OK {
		return code
	}
	if in.dryRun {
		return r.refuse(kmsapi.DryRunOperation)
	}
	if code := s.private(r, r.key, hsm.MAC, in.message, kmsapi.KMSInternal); code != kmsapi.OK {
		return code
	}
	r.beginBody()
	r.member("KeyId", r.key.ARN)
	r.memberBlob("Mac", r.plain)
	r.member("MacAlgorithm", in.algorithm)
	r.endBody()
	return kmsapi.OK
}

// verifyMac: message and MAC → that it is the message's; else KMSInvalidMacException. The HSM makes the MAC again. A dry run verifies too.
func (s *Server) verifyMac(r *request) kmsapi.Code {
	in := &r.in
	if code := s.open(r, keyspec.GenerateVerifyMAC); code != kmsapi.OK {
		return code
	}
	if code := s.private(r, r.key, hsm.MAC, in.message, kmsapi.KMSInternal); code != kmsapi.OK {
		return code
	}
	if subtle.ConstantTimeCompare(r.plain, in.mac) != 1 {
		return r.refuse(kmsapi.KMSInvalidMac)
	}
	if in.dryRun {
		return r.refuse(kmsapi.DryRunOperation)
	}
	r.beginBody()
	r.member("KeyId", r.key.ARN)
	r.member("MacAlgorithm", in.algorithm)
	r.memberTrue("MacValid")
	r.endBody()
	return kmsapi.OK
}
