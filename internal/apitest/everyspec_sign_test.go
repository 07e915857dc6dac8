package apitest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha3"
	"crypto/sha512"
	"errors"
	"fmt"
	"strings"
	"testing"

	"filippo.io/mldsa"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	secpecdsa "github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
)

var signingHashes = map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}

// hashOf is the hash function in the name of a signing algorithm.
func hashOf(algorithm string) crypto.Hash {
	return signingHashes[algorithm[strings.LastIndex(algorithm, "_")+1:]]
}

// digestOf is the hash of a message.
func digestOf(h crypto.Hash, message []byte) []byte {
	d := h.New()
	d.Write(message)
	return d.Sum(nil)
}

// messageTypes are those that an algorithm takes, and what is sent for a message.
func messageTypes(k *specKey, algorithm string, message []byte) map[types.MessageType][]byte {
	switch algorithm {
	case "ED25519_SHA_512":
		return map[types.MessageType][]byte{types.MessageTypeRaw: message}
	case "ED25519_PH_SHA_512":
		return map[types.MessageType][]byte{types.MessageTypeDigest: digestOf(crypto.SHA512, message)}
	case "ML_DSA_SHAKE_256":
		// μ of FIPS 204, algorithm 7, line 6, for the empty context.
		tr := sha3.SumSHAKE256(k.raw, 64)
		mu := sha3.SumSHAKE256(append(append(tr, 0, 0), message...), 64)
		return map[types.MessageType][]byte{types.MessageTypeRaw: message, types.MessageTypeExternalMu: mu}
	}
	return map[types.MessageType][]byte{types.MessageTypeRaw: message, types.MessageTypeDigest: digestOf(hashOf(algorithm), message)}
}

// sign: each algorithm, each type of message, a short message and the longest.
func (w *specWorld) sign(t *testing.T, k *specKey) {
	t.Helper()
	for _, algorithm := range k.algorithms {
		for _, message := range [][]byte{[]byte("m"), bytes.Repeat([]byte("longest "), 512)} {
			sent := messageTypes(k, algorithm, message)
			for how, in := range sent {
				w.signOne(t, k, algorithm, message, how, in, sent)
			}
		}
		w.refusedMessages(t, k, algorithm)
	}
	// An algorithm of other keys.
	foreign := types.SigningAlgorithmSpecEcdsaSha256
	if strings.HasPrefix(k.algorithms[0], "ECDSA_SHA_256") {
		foreign = types.SigningAlgorithmSpecEcdsaSha384
	}
	_, err := w.c.Sign(t.Context(), &kms.SignInput{KeyId: k.id, Message: []byte("m"), SigningAlgorithm: foreign})
	refusedAs[*types.InvalidKeyUsageException](t, err)
	_, err = w.c.Verify(t.Context(), &kms.VerifyInput{KeyId: k.id, Message: []byte("m"), Signature: []byte("s"), SigningAlgorithm: foreign})
	refusedAs[*types.InvalidKeyUsageException](t, err)
	_, err = w.c.GenerateMac(t.Context(), &kms.GenerateMacInput{KeyId: k.id, Message: []byte("m"), MacAlgorithm: types.MacAlgorithmSpecHmacSha256})
	refusedAs[*types.InvalidKeyUsageException](t, err)
}

// signOne makes one signature, has others verify it, and the service too: as a message of every type that the algorithm takes.
func (w *specWorld) signOne(t *testing.T, k *specKey, algorithm string, message []byte, how types.MessageType, in []byte, sent map[types.MessageType][]byte) {
	t.Helper()
	spec := types.SigningAlgorithmSpec(algorithm)
	out := must(w.c.Sign(t.Context(), &kms.SignInput{KeyId: k.id, Message: in, MessageType: how, SigningAlgorithm: spec}))(t)
	w.add(&w.counts.signatures)
	equal(t, "KeyId", *out.KeyId, *k.arn)
	equal(t, "SigningAlgorithm", out.SigningAlgorithm, spec)
	if err := verifies(t, k, algorithm, message, out.Signature); err != nil {
		t.Errorf("%s %s: %v", algorithm, how, err)
	}
	w.opensslVerifies(t, k, algorithm, message, out.Signature)
	verify := func(m []byte, how types.MessageType, signature []byte) error {
		v, err := w.c.Verify(t.Context(), &kms.VerifyInput{KeyId: k.id, Message: m, MessageType: how, SigningAlgorithm: spec, Signature: signature})
		if err == nil && (!v.SignatureValid || *v.KeyId != *k.arn || v.SigningAlgorithm != spec) {
			t.Errorf("%s: Verify answered %+v", algorithm, v)
		}
		return err
	}
	for as, m := range sent {
		if err := verify(m, as, out.Signature); err != nil {
			t.Errorf("%s: signed as %s, verified as %s: %v", algorithm, how, as, err)
		}
	}
	for _, bad := range ends(out.Signature) {
		refusedAs[*types.KMSInvalidSignatureException](t, verify(in, how, bad))
		w.add(&w.counts.refusedSignatures)
		if verifies(t, k, algorithm, message, bad) == nil {
			t.Errorf("%s: a changed signature verifies outside", algorithm)
		}
	}
	refusedAs[*types.KMSInvalidSignatureException](t, verify(flipped(in, 3), how, out.Signature))
	w.add(&w.counts.refusedSignatures)
	refusedAs[*types.KMSInvalidSignatureException](t, verify(in, how, out.Signature[:len(out.Signature)-1]))
	w.add(&w.counts.refusedSignatures)
}

// refusedMessages are types of message that the algorithm does not take, and digests of the wrong length.
func (w *specWorld) refusedMessages(t *testing.T, k *specKey, algorithm string) {
	t.Helper()
	takes := messageTypes(k, algorithm, []byte("m"))
	for _, how := range types.MessageType("").Values() {
		var in []byte
		switch {
		case takes[how] == nil:
			in = make([]byte, 64)
		case how == types.MessageTypeRaw: // of any length
			continue
		default:
			in = takes[how][1:]
		}
		_, err := w.c.Sign(t.Context(), &kms.SignInput{KeyId: k.id, Message: in, MessageType: how, SigningAlgorithm: types.SigningAlgorithmSpec(algorithm)})
		refusedWith(t, err, "ValidationException")
		_, err = w.c.Verify(t.Context(), &kms.VerifyInput{KeyId: k.id, Message: in, MessageType: how, SigningAlgorithm: types.SigningAlgorithmSpec(algorithm),
			Signature: []byte("s")})
		refusedWith(t, err, "ValidationException")
		w.add(&w.counts.refusedInput)
	}
}

var errSignature = errors.New("the signature does not verify outside")

// verifies verifies a signature with code that keyplane's is not.
func verifies(t *testing.T, k *specKey, algorithm string, message, signature []byte) error {
	t.Helper()
	ok := true
	switch name := algorithm; {
	case strings.HasPrefix(name, "RSASSA_PSS"):
		return rsa.VerifyPSS(parsed[*rsa.PublicKey](t, k), hashOf(name), digestOf(hashOf(name), message), signature,
			&rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	case strings.HasPrefix(name, "RSASSA_PKCS1"):
		return rsa.VerifyPKCS1v15(parsed[*rsa.PublicKey](t, k), hashOf(name), digestOf(hashOf(name), message), signature)
	case k.spec == types.KeySpecEccSecgP256k1:
		public, err := secp256k1.ParsePubKey(k.raw)
		if err != nil {
			return err
		}
		s, err := secpecdsa.ParseDERSignature(signature)
		if err != nil {
			return err
		}
		ok = s.Verify(digestOf(crypto.SHA256, message), public)
	case strings.HasPrefix(name, "ECDSA"):
		ok = ecdsa.VerifyASN1(parsed[*ecdsa.PublicKey](t, k), digestOf(hashOf(name), message), signature)
	case name == "ED25519_SHA_512":
		ok = ed25519.Verify(parsed[ed25519.PublicKey](t, k), message, signature)
	case name == "ED25519_PH_SHA_512":
		// The message of HashEdDSA is the digest; Go's function takes what HashEdDSA makes of its message.
		again := sha512.Sum512(digestOf(crypto.SHA512, message))
		return ed25519.VerifyWithOptions(parsed[ed25519.PublicKey](t, k), again[:], signature, &ed25519.Options{Hash: crypto.SHA512})
	case name == "ML_DSA_SHAKE_256":
		parameters := map[types.KeySpec]mldsa.Parameters{"ML_DSA_44": mldsa.MLDSA44(), "ML_DSA_65": mldsa.MLDSA65(), "ML_DSA_87": mldsa.MLDSA87()}[k.spec]
		public, err := mldsa.NewPublicKey(parameters, k.raw)
		if err != nil {
			return err
		}
		return mldsa.Verify(public, message, signature, nil)
	default:
		return fmt.Errorf("nobody verifies %s", algorithm)
	}
	if !ok {
		return errSignature
	}
	return nil
}

// opensslVerifies has openssl verify a signature of an algorithm that it knows.
func (w *specWorld) opensslVerifies(t *testing.T, k *specKey, algorithm string, message, signature []byte) {
	t.Helper()
	ssl := newOpenSSL(t)
	sig, in := ssl.file(t, "signature", signature), ssl.file(t, "message", message)
	var out []byte
	switch {
	case strings.HasPrefix(algorithm, "RSASSA_PSS"):
		out = ssl.run(t, "dgst", "-sha"+algorithm[len(algorithm)-3:], "-keyform", "DER", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest",
			"-verify", k.pem, "-signature", sig, in)
	case strings.HasPrefix(algorithm, "RSASSA_PKCS1"), strings.HasPrefix(algorithm, "ECDSA"):
		out = ssl.run(t, "dgst", "-sha"+algorithm[len(algorithm)-3:], "-keyform", "DER", "-verify", k.pem, "-signature", sig, in)
	case algorithm == "ED25519_SHA_512":
		out = ssl.run(t, "pkeyutl", "-verify", "-rawin", "-pubin", "-keyform", "DER", "-inkey", k.pem, "-sigfile", sig, "-in", in)
	default:
		return
	}
	w.add(&w.counts.opensslVerified)
	if !bytes.Contains(out, []byte("Verified OK")) && !bytes.Contains(out, []byte("Verified Successfully")) {
		t.Errorf("%s: openssl says %s", algorithm, out)
	}
}
