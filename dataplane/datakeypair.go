package dataplane

import (
	"time"

	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/softkey"
)

// generateDataKeyPair: symmetric key → key pair, the private half (DER PKCS #8) encrypted, and in clear unless it is the operation WithoutPlaintext; the public
// half is DER SubjectPublicKeyInfo. The pair is made in this process: it leaves the service anyway. Errors in the order of test: docs/errors.md.
func (s *Server) generateDataKeyPair(r *request) kmsapi.Code {
	in := &r.in
	var code kmsapi.Code
	var alias []byte
	if r.key, alias, code = s.resolve(r, in.keyID, r.op.action); code != kmsapi.OK {
		return code
	}
	r.question(s).context.DataKeyPairSpec = in.keyPairSpec
	if code = s.authorize(r, r.key, r.op.action, &in.context, nil, alias); code != kmsapi.OK {
		return code
	}
	if code = s.admitTokens(r); code != kmsapi.OK {
		return code
	}
	if r.key.Store != nil {
		return r.refusedInStore(r.key)
	}
	if code = s.admit(r, r.key, keyspec.EncryptDecrypt, nil); code != kmsapi.OK {
		return code
	}
	spec := keyspec.Of(in.keyPairSpec)
	if spec == keyspec.None { // SM2
		return r.refuseText(kmsapi.UnsupportedOperation, "Key pairs of key spec SM2 are not offered.")
	}
	if in.dryRun {
		return r.refuse(kmsapi.DryRunOperation)
	}
	d, code := s.newKey(r, r.key)
	if code != kmsapi.OK {
		return code
	}
	public, private, code := s.pair(r, spec)
	if code != kmsapi.OK {
		return code
	}
	defer clear(private)
	if code = s.seal(r, r.key, d, &in.context, private); code != kmsapi.OK {
		return code
	}
	r.beginBody()
	r.member("KeyId", r.key.ARN)
	r.memberMaterial(current(r.key).MaterialID[:])
	r.member("KeyPairSpec", in.keyPairSpec)
	r.memberBlob("PrivateKeyCiphertextBlob", r.ctext)
	if r.op.members&mRecipient != 0 {
		if code = r.memberSecret("PrivateKeyPlaintext", private); code != kmsapi.OK {
			return code
		}
	}
	r.memberBlob("PublicKey", public)
	r.endBody()
	return kmsapi.OK
}

// pairWait is how long a request waits for its turn to make a key pair of RSA, which takes a processor for up to seconds.
const pairWait = 5 * time.Second

// pair makes a key pair. private is the caller's to clear.
func (s *Server) pair(r *request, spec keyspec.Spec) (public, private []byte, code kmsapi.Code) {
	if spec.Info().Family == keyspec.RSA {
		if !s.takePairTurn() {
			return nil, nil, r.refuse(kmsapi.Throttling)
		}
		defer func() { <-s.pairs }()
	}
	public, private, err := softkey.GeneratePair(spec)
	if err != nil {
		return nil, nil, s.fail(r, err)
	}
	return public, private, kmsapi.OK
}

func (s *Server) takePairTurn() bool {
	select {
	case s.pairs <- struct{}{}:
		return true
	default:
	}
	timer := time.NewTimer(pairWait)
	defer timer.Stop()
	select {
	case s.pairs <- struct{}{}:
		return true
	case <-timer.C:
		return false
	}
}
