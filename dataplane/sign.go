package dataplane

import (
	"errors"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/pubkey"
)

// sign: message of 1 to 4096 bytes, its digest or its μ → signature: DER of ECDSA, else as the algorithm has it. Errors in the order of test: docs/errors.md.
func (s *Server) sign(r *request) kmsapi.Code {
	in := &r.in
	if code := s.open(r, keyspec.SignVerify); code != kmsapi.OK {
		return code
	}
	a := keyspec.AlgorithmOf(in.algorithm)
	message, code := r.messageOf(a)
	if code != kmsapi.OK {
		return code
	}
	if in.dryRun {
		return r.refuse(kmsapi.DryRunOperation)
	}
	r.aad = emptied(r.aad)[:pubkey.PreparedMax]
	prepared, ok := pubkey.Prepare(a, message, r.key.public, in.message, r.aad)
	if !ok {
		return r.refuse(kmsapi.KMSInternal) // messageOf has refused what Prepare does
	}
	if code = s.private(r, r.key, signing[a], prepared, kmsapi.KMSInternal); code != kmsapi.OK {
		return code
	}
	signature := r.plain
	if r.key.spec.Info().Family == keyspec.EC {
		r.ctext = pubkey.AppendSignature(r.ctext[:0], a, r.plain)
		signature = r.ctext
	}
	if s.proves(r.key) && !r.key.public.Verify(a, message, in.message, signature) {
		r.plain, r.ctext = emptied(r.plain), emptied(r.ctext)
		return s.fail(r, errSignature)
	}
	r.beginBody()
	r.member("KeyId", r.key.ARN)
	r.memberBlob("Signature", signature)
	r.member("SigningAlgorithm", in.algorithm)
	r.endBody()
	return kmsapi.OK
}

// proves says whether a signature is verified before it leaves. Of RSA keys every one is: a single wrong one, made with a fault in one half of the
// private key's arithmetic, tells the key's factors to whoever has it. Of other keys one in provedEvery is. Go's RSA does it itself.
func (s *Server) proves(k *keyView) bool {
	if s.provedEvery == 0 {
		return false
	}
	if k.spec.Info().Family == keyspec.RSA {
		return !k.private.Software
	}
	return s.signatures.Add(1)%s.provedEvery == 0
}

const provedEvery = 64

var errSignature = errors.New("dataplane: the HSM made a signature that does not verify")

// verify: message and signature → that it is valid; else KMSInvalidSignatureException. It needs no HSM. A dry run verifies too.
func (s *Server) verify(r *request) kmsapi.Code {
	in := &r.in
	if code := s.open(r, keyspec.SignVerify); code != kmsapi.OK {
		return code
	}
	a := keyspec.AlgorithmOf(in.algorithm)
	message, code := r.messageOf(a)
	switch {
	case code != kmsapi.OK:
		return code
	case !r.key.public.Verify(a, message, in.message, in.signature):
		return r.refuse(kmsapi.KMSInvalidSignature)
	case in.dryRun:
		return r.refuse(kmsapi.DryRunOperation)
	}
	r.beginBody()
	r.member("KeyId", r.key.ARN)
	r.memberTrue("SignatureValid")
	r.member("SigningAlgorithm", in.algorithm)
	r.endBody()
	return kmsapi.OK
}

// signing is the mechanism of each signing algorithm.
var signing = [...]hsm.Mechanism{
	keyspec.PSSSHA256: hsm.SignPSS256, keyspec.PSSSHA384: hsm.SignPSS384, keyspec.PSSSHA512: hsm.SignPSS512,
	keyspec.PKCS1SHA256: hsm.SignPKCS1, keyspec.PKCS1SHA384: hsm.SignPKCS1, keyspec.PKCS1SHA512: hsm.SignPKCS1,
	keyspec.ECDSASHA256: hsm.SignECDSA, keyspec.ECDSASHA384: hsm.SignECDSA, keyspec.ECDSASHA512: hsm.SignECDSA,
	keyspec.Ed25519SHA512: hsm.SignEd25519, keyspec.Ed25519PHSHA512: hsm.SignEd25519ph, keyspec.MLDSAShake256: hsm.SignMLDSA,
}

// messageOf is what MessageType says of the message, RAW where it is absent, if the algorithm signs such a message of this length.
func (r *request) messageOf(a keyspec.Algorithm) (pubkey.Message, kmsapi.Code) {
	t, _ := messageTypeOf(r.in.messageType)
	takes := t == pubkey.RAW
	switch a {
	case keyspec.MLDSAShake256:
		takes = t != pubkey.DIGEST
	case keyspec.Ed25519PHSHA512:
		takes = t == pubkey.DIGEST
	case keyspec.Ed25519SHA512:
	default:
		takes = t != pubkey.EXTERNALMU
	}
	if !takes {
		r.msg = append(append(emptied(r.msg), "MessageType "...), messageTypes[t]...)
		r.msg = append(append(append(r.msg, " is not valid for algorithm "...), a.String()...), '.')
		return t, kmsapi.Validation
	}
	if t != pubkey.RAW && len(r.in.message) != a.Info().Digest {
		r.msg = append(append(append(emptied(r.msg), "Digest is invalid length for algorithm "...), a.String()...), '.')
		return t, kmsapi.Validation
	}
	return t, kmsapi.OK
}

var messageTypes = [...]string{pubkey.RAW: "RAW", pubkey.DIGEST: "DIGEST", pubkey.EXTERNALMU: "EXTERNAL_MU"}

var messageRaw = []byte(messageTypes[pubkey.RAW])

// messageTypeOf is the message type of a name, RAW where there is none.
func messageTypeOf(name []byte) (t pubkey.Message, ok bool) {
	if name == nil {
		return pubkey.RAW, true
	}
	for t, n := range messageTypes {
		if n == string(name) {
			return pubkey.Message(t), true
		}
	}
	return pubkey.RAW, false
}
