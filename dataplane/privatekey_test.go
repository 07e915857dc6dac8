package dataplane

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/snapshot"
	"github.com/keyplane/keyplane/ratelimit"
)

// keyReply is what the operations of these tests answer.
type keyReply struct {
	KeyId, KeySpec, KeyUsage, SigningAlgorithm, MacAlgorithm, KeyAgreementAlgorithm, EncapsulationAlgorithm, EncryptionAlgorithm, KeyOrigin, KeyPairSpec string
	SourceEncryptionAlgorithm, DestinationEncryptionAlgorithm, SourceKeyMaterialId, DestinationKeyMaterialId, KeyMaterialId                              string
	SigningAlgorithms                                                                                                                                    []string
	Signature, Mac, PublicKey, SharedSecret, SharedSecretCiphertextBlob, CiphertextBlob, Plaintext, PrivateKeyCiphertextBlob, PrivateKeyPlaintext        []byte
	SignatureValid, MacValid                                                                                                                             bool
}

// ask sends a request that must succeed, and holds the members of the reply to those that are wanted, in their order.
func (w *world) ask(op, members, format string, args ...any) (out keyReply) {
	w.Helper()
	r := w.do(w.call(op, fmt.Sprintf(format, args...)))
	if err := json.Unmarshal(r.body, &out); err != nil || r.status != 200 {
		w.Fatalf("%s: %d %s %v", op, r.status, r.body, err)
	}
	if got := replyMembers(w, r.body); got != members {
		w.Errorf("%s: members %s, want %s", op, got, members)
	}
	return out
}

func replyMembers(t testing.TB, body []byte) string {
	d := json.NewDecoder(bytes.NewReader(body))
	var names []string
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			t.Fatal(err)
		}
		names = append(names, name.(string))
	}
	return strings.Join(names, " ")
}

// refused sends a request that must be refused with an exception.
func (w *world) refused(want, op, format string, args ...any) {
	w.Helper()
	if r := w.do(w.call(op, fmt.Sprintf(format, args...))); r.exception() != want {
		w.Errorf("%s: %d %s, want %s", op, r.status, r.body, want)
	}
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// specsFor are the specs with a usage; in short tests without the two that take seconds to make.
func specsFor(u keyspec.Usage) (list []keyspec.Spec) {
	for _, s := range keyspec.All() {
		if s.Info().Usages&u != 0 && !(testing.Short() && (s == keyspec.RSA3072 || s == keyspec.RSA4096)) {
			list = append(list, s)
		}
	}
	return list
}

// Every signing algorithm of every spec, with every message type that it takes: signatures that others verify, and that Verify takes, of the same message only.
func TestSignVerify(t *testing.T) {
	w := newWorld(t, worldConfig{})
	for _, s := range specsFor(keyspec.SignVerify) {
		k := w.addPrivateKey("k-"+s.String(), kmsapi.StateEnabled, s, keyspec.SignVerify)
		id := k.ID.String()
		for _, a := range s.Algorithms(keyspec.SignVerify) {
			message := bytes.Repeat([]byte("m"), 4096)
			sign := func(typ string, message []byte) []byte {
				out := w.ask("Sign", "KeyId Signature SigningAlgorithm", `{"KeyId":%q,"Message":%q,"MessageType":%q,"SigningAlgorithm":%q}`, id, b64(message), typ, a)
				if out.KeyId != keyARN("k-"+s.String()) || out.SigningAlgorithm != a.String() {
					t.Errorf("%v %v: %+v", s, a, out)
				}
				if !w.verifies(k, a, typ, message, out.Signature) {
					t.Errorf("%v %v %s: nobody else verifies the signature", s, a, typ)
				}
				verify := `{"KeyId":%q,"Message":%q,"MessageType":%q,"SigningAlgorithm":%q,"Signature":%q}`
				if v := w.ask("Verify", "KeyId SignatureValid SigningAlgorithm", verify, id, b64(message), typ, a, b64(out.Signature)); !v.SignatureValid {
					t.Errorf("%v %v %s: not valid", s, a, typ)
				}
				other, bad := bytes.Clone(message), bytes.Clone(out.Signature)
				other[0] ^= 1
				bad[len(bad)-1] ^= 1
				w.refused("KMSInvalidSignatureException", "Verify", verify, id, b64(other), typ, a, b64(out.Signature))
				w.refused("KMSInvalidSignatureException", "Verify", verify, id, b64(message), typ, a, b64(bad))
				w.refused("KMSInvalidSignatureException", "Verify", verify, id, b64(message), typ, a, b64(out.Signature[1:]))
				return out.Signature
			}
			switch a {
			case keyspec.Ed25519SHA512:
				sign("RAW", message)
			case keyspec.Ed25519PHSHA512:
				d := sha512.Sum512(message)
				sign("DIGEST", d[:])
			case keyspec.MLDSAShake256:
				sign("RAW", message)
				sign("EXTERNAL_MU", message[:64])
			default:
				signature := sign("RAW", message)
				sign("RAW", message[:1])
				d := digest(hashOf(a), message)
				sign("DIGEST", d)
				// The message and its digest have the same signatures.
				w.ask("Verify", "KeyId SignatureValid SigningAlgorithm", `{"KeyId":%q,"Message":%q,"MessageType":"DIGEST","SigningAlgorithm":%q,"Signature":%q}`, id, b64(d), a, b64(signature))
			}
			for _, typ := range []string{"RAW", "DIGEST", "EXTERNAL_MU"} {
				for _, n := range []int{1, 20, 31, 32, 33, 47, 48, 49, 63, 64, 65} {
					takes := typ == "RAW" && a != keyspec.Ed25519PHSHA512 || n == a.Info().Digest &&
						(typ == "DIGEST" && a != keyspec.Ed25519SHA512 && a != keyspec.MLDSAShake256 || typ == "EXTERNAL_MU" && a == keyspec.MLDSAShake256)
					want := "ValidationException"
					if takes {
						want = "DryRunOperationException"
					}
					w.refused(want, "Sign", `{"KeyId":%q,"Message":%q,"MessageType":%q,"SigningAlgorithm":%q,"DryRun":true}`, id, b64(message[:n]), typ, a)
				}
			}
		}
	}
}

// Every MAC is the one that the key itself makes.
func TestMac(t *testing.T) {
	w := newWorld(t, worldConfig{})
	for _, s := range specsFor(keyspec.GenerateVerifyMAC) {
		k := w.addPrivateKey("k-"+s.String(), kmsapi.StateEnabled, s, keyspec.GenerateVerifyMAC)
		other := w.addPrivateKey("other-"+s.String(), kmsapi.StateEnabled, s, keyspec.GenerateVerifyMAC)
		id, a := k.ID.String(), s.Algorithms(keyspec.GenerateVerifyMAC)[0]
		for _, message := range [][]byte{{0}, []byte("hello"), bytes.Repeat([]byte("m"), 4096)} {
			out := w.ask("GenerateMac", "KeyId Mac MacAlgorithm", `{"KeyId":%q,"Message":%q,"MacAlgorithm":%q}`, id, b64(message), a)
			if want := w.mustUse(k, hsm.MAC, message); !bytes.Equal(out.Mac, want) || len(want) != s.Info().Result {
				t.Errorf("%v: %x, want %x", s, out.Mac, want)
			}
			const verify = `{"KeyId":%q,"Message":%q,"MacAlgorithm":%q,"Mac":%q}`
			if v := w.ask("VerifyMac", "KeyId MacAlgorithm MacValid", verify, id, b64(message), a, b64(out.Mac)); !v.MacValid {
				t.Errorf("%v: not valid", s)
			}
			bad := bytes.Clone(out.Mac)
			bad[0] ^= 1
			w.refused("KMSInvalidMacException", "VerifyMac", verify, id, b64(message), a, b64(bad))
			w.refused("KMSInvalidMacException", "VerifyMac", verify, id, b64(message), a, b64(out.Mac[:len(out.Mac)-1]))
			w.refused("KMSInvalidMacException", "VerifyMac", verify, id, b64(append(message[1:], 1)), a, b64(out.Mac))
			w.refused("KMSInvalidMacException", "VerifyMac", verify, other.ID, b64(message), a, b64(out.Mac))
		}
	}
}

func TestDeriveSharedSecret(t *testing.T) {
	w := newWorld(t, worldConfig{})
	const body = `{"KeyId":%q,"KeyAgreementAlgorithm":"ECDH","PublicKey":%q}`
	for _, s := range specsFor(keyspec.KeyAgreement) {
		k := w.addPrivateKey("k-"+s.String(), kmsapi.StateEnabled, s, keyspec.KeyAgreement)
		_, spki := peer(t, s)
		out := w.ask("DeriveSharedSecret", "KeyAgreementAlgorithm KeyId KeyOrigin SharedSecret", body, k.ID, b64(spki))
		if !bytes.Equal(out.SharedSecret, w.agreed(k)) || out.KeyOrigin != "AWS_KMS" {
			t.Errorf("%v: %+v", s, out)
		}
		bad := bytes.Clone(spki)
		bad[len(bad)-1] ^= 1 // not on the curve
		_, another := peer(t, map[keyspec.Spec]keyspec.Spec{keyspec.P256: keyspec.P384, keyspec.P384: keyspec.P521, keyspec.P521: keyspec.P256}[s])
		for _, p := range [][]byte{bad, another, append(bytes.Clone(spki), 0), spki[:len(spki)-1], {0x30}, k.Private.Public[1:]} {
			r := w.do(w.call("DeriveSharedSecret", fmt.Sprintf(body, k.ID, b64(p))))
			if string(r.body) != `{"__type":"ValidationException","message":""}` && string(r.body) != `{"__type":"ValidationException"}` {
				t.Errorf("%v, peer %x: %s", s, p, r.body)
			}
		}
	}
}

func TestEncapsulate(t *testing.T) {
	w := newWorld(t, worldConfig{})
	const body = `{"KeyId":%q,"EncapsulationAlgorithm":"ML_KEM","SharedSecretCiphertextBlob":%q}`
	for _, s := range specsFor(keyspec.EncapsulateDecapsulate) {
		k := w.addPrivateKey("k-"+s.String(), kmsapi.StateEnabled, s, keyspec.EncapsulateDecapsulate)
		out := w.ask("Encapsulate", "EncapsulationAlgorithm KeyId SharedSecret SharedSecretCiphertextBlob", `{"KeyId":%q,"EncapsulationAlgorithm":"ML_KEM"}`, k.ID)
		again := w.ask("Encapsulate", "EncapsulationAlgorithm KeyId SharedSecret SharedSecretCiphertextBlob", `{"KeyId":%q,"EncapsulationAlgorithm":"ML_KEM"}`, k.ID)
		if !bytes.Equal(out.SharedSecret, w.mustUse(k, hsm.DecapsulateMLKEM, out.SharedSecretCiphertextBlob)) || bytes.Equal(out.SharedSecret, again.SharedSecret) {
			t.Errorf("%v: %x, then %x", s, out.SharedSecret, again.SharedSecret)
		}
		secret, ciphertext := w.encapsulated(k)
		if got := w.ask("Decapsulate", "EncapsulationAlgorithm KeyId SharedSecret", body, k.ID, b64(ciphertext)).SharedSecret; !bytes.Equal(got, secret) {
			t.Errorf("%v: %x, want %x", s, got, secret)
		}
		damaged := bytes.Clone(ciphertext)
		damaged[0] ^= 1
		if got := w.ask("Decapsulate", "EncapsulationAlgorithm KeyId SharedSecret", body, k.ID, b64(damaged)).SharedSecret; len(got) != 32 || bytes.Equal(got, secret) {
			t.Errorf("%v: a damaged ciphertext gives %x", s, got)
		}
		w.refused("InvalidCiphertextException", "Decapsulate", body, k.ID, b64(ciphertext[1:]))
		w.refused("InvalidCiphertextException", "Decapsulate", body, k.ID, b64(append(ciphertext, 0)))
	}
}

// RSA ciphertexts are those of the standard library, at every length; each combination of keys re-encrypts.
func TestRSAEncryption(t *testing.T) {
	w := newWorld(t, worldConfig{})
	w.addKey("sym", kmsapi.StateEnabled, 2)
	sym := keyID("sym").String()
	for _, s := range specsFor(keyspec.EncryptDecrypt) {
		k := w.addPrivateKey("k-"+s.String(), kmsapi.StateEnabled, s, keyspec.EncryptDecrypt)
		id := k.ID.String()
		for _, a := range s.Algorithms(keyspec.EncryptDecrypt) {
			most := map[string]int{"RSA_2048 RSAES_OAEP_SHA_1": 214, "RSA_3072 RSAES_OAEP_SHA_1": 342, "RSA_4096 RSAES_OAEP_SHA_1": 470,
				"RSA_2048 RSAES_OAEP_SHA_256": 190, "RSA_3072 RSAES_OAEP_SHA_256": 318, "RSA_4096 RSAES_OAEP_SHA_256": 446}[s.String()+" "+a.String()]
			for _, n := range []int{1, 32, most} {
				plaintext := bytes.Repeat([]byte{7}, n)
				out := w.ask("Encrypt", "CiphertextBlob EncryptionAlgorithm KeyId", `{"KeyId":%q,"Plaintext":%q,"EncryptionAlgorithm":%q}`, id, b64(plaintext), a)
				if got := w.mustUse(k, decryption(a), out.CiphertextBlob); !bytes.Equal(got, plaintext) || out.EncryptionAlgorithm != a.String() {
					t.Errorf("%v %v: %x is of %x", s, a, out.CiphertextBlob, got)
				}
				d := w.ask("Decrypt", "EncryptionAlgorithm KeyId Plaintext", `{"KeyId":%q,"CiphertextBlob":%q,"EncryptionAlgorithm":%q}`, id, b64(w.encryptOAEP(k, a, plaintext)), a)
				if !bytes.Equal(d.Plaintext, plaintext) || d.EncryptionAlgorithm != a.String() {
					t.Errorf("%v %v: %+v", s, a, d)
				}
			}
			w.refused("ValidationException", "Encrypt", `{"KeyId":%q,"Plaintext":%q,"EncryptionAlgorithm":%q}`, id, b64(make([]byte, most+1)), a)
			good := w.encryptOAEP(k, a, []byte("hello"))
			damaged := bytes.Clone(good)
			damaged[9] ^= 1
			other := keyspec.OAEPSHA1 + keyspec.OAEPSHA256 - a
			for _, bad := range [][]byte{damaged, good[1:], append(bytes.Clone(good), 0), bytes.Repeat([]byte{0xff}, len(good)), make([]byte, len(good)), w.encryptOAEP(k, other, []byte("hello")), w.blob("sym", 1, nil, []byte("hello"))} {
				w.refused("InvalidCiphertextException", "Decrypt", `{"KeyId":%q,"CiphertextBlob":%q,"EncryptionAlgorithm":%q}`, id, b64(bad), a)
			}

			// RSA → symmetric, symmetric → RSA, RSA → RSA.
			r := w.ask("ReEncrypt", "CiphertextBlob DestinationEncryptionAlgorithm DestinationKeyMaterialId KeyId SourceEncryptionAlgorithm SourceKeyId",
				`{"SourceKeyId":%q,"SourceEncryptionAlgorithm":%q,"CiphertextBlob":%q,"DestinationKeyId":%q,"DestinationEncryptionContext":{"a":"1"}}`, id, a, b64(good), sym)
			if _, version, got, ok := w.open(r.CiphertextBlob, map[string]string{"a": "1"}); !ok || version != 2 || string(got) != "hello" || r.SourceEncryptionAlgorithm != a.String() || r.DestinationEncryptionAlgorithm != "SYMMETRIC_DEFAULT" {
				t.Errorf("%v %v to symmetric: %+v", s, a, r)
			}
			r = w.ask("ReEncrypt", "CiphertextBlob DestinationEncryptionAlgorithm KeyId SourceEncryptionAlgorithm SourceKeyId SourceKeyMaterialId",
				`{"CiphertextBlob":%q,"SourceEncryptionContext":{"a":"1"},"DestinationKeyId":%q,"DestinationEncryptionAlgorithm":%q}`, b64(r.CiphertextBlob), id, a)
			if got := w.mustUse(k, decryption(a), r.CiphertextBlob); string(got) != "hello" {
				t.Errorf("symmetric to %v %v: %q", s, a, got)
			}
			r = w.ask("ReEncrypt", "CiphertextBlob DestinationEncryptionAlgorithm KeyId SourceEncryptionAlgorithm SourceKeyId",
				`{"SourceKeyId":%q,"SourceEncryptionAlgorithm":%q,"CiphertextBlob":%q,"DestinationKeyId":%q,"DestinationEncryptionAlgorithm":%q}`, id, a, b64(r.CiphertextBlob), id, other)
			if got := w.mustUse(k, decryption(other), r.CiphertextBlob); string(got) != "hello" {
				t.Errorf("%v %v to %v: %q", s, a, other, got)
			}
			w.refused("ValidationException", "ReEncrypt", `{"CiphertextBlob":%q,"DestinationKeyId":%q,"DestinationEncryptionAlgorithm":%q}`,
				b64(w.blob("sym", 1, nil, make([]byte, most+1))), id, a)
			w.refused("InvalidCiphertextException", "ReEncrypt", `{"SourceKeyId":%q,"SourceEncryptionAlgorithm":%q,"CiphertextBlob":%q,"DestinationKeyId":%q}`, id, a, b64(damaged), sym)
		}
	}
}

func TestGetPublicKey(t *testing.T) {
	w := newWorld(t, worldConfig{})
	members := map[keyspec.Usage]string{keyspec.EncryptDecrypt: "EncryptionAlgorithms", keyspec.SignVerify: "SigningAlgorithms",
		keyspec.KeyAgreement: "KeyAgreementAlgorithms", keyspec.EncapsulateDecapsulate: "EncapsulationAlgorithms"}
	for u, list := range members {
		for _, s := range specsFor(u) {
			k := w.addPrivateKey("k-"+s.String()+u.String(), kmsapi.StateEnabled, s, u)
			out := w.ask("GetPublicKey", "CustomerMasterKeySpec "+list+" KeyId KeySpec KeyUsage PublicKey", `{"KeyId":%q}`, k.ID)
			if !bytes.Equal(out.PublicKey, k.Private.Public) || out.KeySpec != s.String() || out.KeyUsage != u.String() {
				t.Errorf("%v: %+v", s, out)
			}
		}
	}
	for _, s := range specsFor(keyspec.GenerateVerifyMAC) {
		k := w.addPrivateKey("k-"+s.String(), kmsapi.StateEnabled, s, keyspec.GenerateVerifyMAC)
		w.refused("UnsupportedOperationException", "GetPublicKey", `{"KeyId":%q}`, k.ID)
	}
}

// Key pairs of every spec: the halves belong together, and the encrypted one decrypts to the one in clear.
func TestGenerateDataKeyPair(t *testing.T) {
	w := newWorld(t, worldConfig{})
	k := w.addKey("k1", kmsapi.StateEnabled, 2)
	id := k.ID.String()
	for _, s := range keyspec.All() {
		if !s.Info().Pair || testing.Short() && s.Info().Bits > 2048 {
			continue
		}
		body := fmt.Sprintf(`{"KeyId":%q,"KeyPairSpec":%q,"EncryptionContext":{"a":"1"}}`, id, s)
		out := w.ask("GenerateDataKeyPair", "KeyId KeyMaterialId KeyPairSpec PrivateKeyCiphertextBlob PrivateKeyPlaintext PublicKey", "%s", body)
		if out.KeyId != keyARN("k1") || out.KeyMaterialId != string(k.Versions[1].MaterialID[:]) || out.KeyPairSpec != s.String() || !matches(t, s, out.PrivateKeyPlaintext, out.PublicKey) {
			t.Errorf("%v: %+v", s, out)
		}
		d := w.ask("Decrypt", "EncryptionAlgorithm KeyId KeyMaterialId Plaintext", `{"CiphertextBlob":%q,"EncryptionContext":{"a":"1"}}`, b64(out.PrivateKeyCiphertextBlob))
		if !bytes.Equal(d.Plaintext, out.PrivateKeyPlaintext) {
			t.Errorf("%v: another key is encrypted", s)
		}
		out = w.ask("GenerateDataKeyPairWithoutPlaintext", "KeyId KeyMaterialId KeyPairSpec PrivateKeyCiphertextBlob PublicKey", "%s", body)
		d = w.ask("Decrypt", "EncryptionAlgorithm KeyId KeyMaterialId Plaintext", `{"CiphertextBlob":%q,"EncryptionContext":{"a":"1"}}`, b64(out.PrivateKeyCiphertextBlob))
		if !matches(t, s, d.Plaintext, out.PublicKey) {
			t.Errorf("%v: the halves do not belong together", s)
		}
	}
}

// While all turns are taken a key pair of RSA waits, and one of another spec does not.
func TestPairTurns(t *testing.T) {
	w := newWorld(t, worldConfig{})
	id := w.addKey("k1", kmsapi.StateEnabled, 1).ID
	for range cap(w.pairs) {
		w.pairs <- struct{}{}
	}
	w.ask("GenerateDataKeyPairWithoutPlaintext", "KeyId KeyMaterialId KeyPairSpec PrivateKeyCiphertextBlob PublicKey", `{"KeyId":%q,"KeyPairSpec":"ECC_NIST_P256"}`, id)
	w.refused("ThrottlingException", "GenerateDataKeyPair", `{"KeyId":%q,"KeyPairSpec":"RSA_2048"}`, id)
	<-w.pairs
	w.ask("GenerateDataKeyPairWithoutPlaintext", "KeyId KeyMaterialId KeyPairSpec PrivateKeyCiphertextBlob PublicKey", `{"KeyId":%q,"KeyPairSpec":"RSA_2048"}`, id)
	if len(w.pairs) != cap(w.pairs)-1 {
		t.Errorf("%d turns are taken after the pair is made", len(w.pairs))
	}
}

// keyCall is one operation with a key of each kind: what it is sent for a key, and the usage that it is for.
type keyCall struct {
	op    string
	usage keyspec.Usage
	body  func(w *world, k *snapshot.Record) string // without the key's name
}

var keyCalls = []keyCall{
	{"Sign", keyspec.SignVerify, func(w *world, k *snapshot.Record) string {
		return `"Message":"aGVsbG8=","SigningAlgorithm":"` + keyspec.Of(k.Spec).Algorithms(keyspec.SignVerify)[0].String() + `"`
	}},
	{"Verify", keyspec.SignVerify, func(w *world, k *snapshot.Record) string {
		a := keyspec.Of(k.Spec).Algorithms(keyspec.SignVerify)[0]
		return `"Message":"aGVsbG8=","SigningAlgorithm":"` + a.String() + `","Signature":"` + b64(w.signature(k, a, []byte("hello"))) + `"`
	}},
	{"GenerateMac", keyspec.GenerateVerifyMAC, func(w *world, k *snapshot.Record) string {
		return `"Message":"aGVsbG8=","MacAlgorithm":"` + keyspec.Of(k.Spec).Algorithms(keyspec.GenerateVerifyMAC)[0].String() + `"`
	}},
	{"VerifyMac", keyspec.GenerateVerifyMAC, func(w *world, k *snapshot.Record) string {
		return `"Message":"aGVsbG8=","MacAlgorithm":"` + keyspec.Of(k.Spec).Algorithms(keyspec.GenerateVerifyMAC)[0].String() + `","Mac":"` + b64(w.mustUse(k, hsm.MAC, []byte("hello"))) + `"`
	}},
	{"DeriveSharedSecret", keyspec.KeyAgreement, func(w *world, k *snapshot.Record) string {
		_, spki := peer(w, keyspec.Of(k.Spec))
		return `"KeyAgreementAlgorithm":"ECDH","PublicKey":"` + b64(spki) + `"`
	}},
	{"Encapsulate", keyspec.EncapsulateDecapsulate, func(*world, *snapshot.Record) string { return `"EncapsulationAlgorithm":"ML_KEM"` }},
	{"Decapsulate", keyspec.EncapsulateDecapsulate, func(w *world, k *snapshot.Record) string {
		_, c := w.encapsulated(k)
		return `"EncapsulationAlgorithm":"ML_KEM","SharedSecretCiphertextBlob":"` + b64(c) + `"`
	}},
	{"Encrypt", keyspec.EncryptDecrypt, func(_ *world, k *snapshot.Record) string {
		return `"Plaintext":"aGVsbG8="` + rsaAlgorithm(k, "EncryptionAlgorithm")
	}},
	{"Decrypt", keyspec.EncryptDecrypt, func(w *world, k *snapshot.Record) string {
		return `"CiphertextBlob":"` + b64(w.ciphertextOf(k)) + `"` + rsaAlgorithm(k, "EncryptionAlgorithm")
	}},
	{"ReEncrypt", keyspec.EncryptDecrypt, func(w *world, k *snapshot.Record) string {
		return `"CiphertextBlob":"` + b64(w.ciphertextOf(k)) + `","DestinationKeyId":"` + keyARN("to") + `"` + rsaAlgorithm(k, "SourceEncryptionAlgorithm")
	}},
	{"GenerateDataKey", keyspec.EncryptDecrypt, func(*world, *snapshot.Record) string { return `"KeySpec":"AES_256"` }},
	{"GenerateDataKeyWithoutPlaintext", keyspec.EncryptDecrypt, func(*world, *snapshot.Record) string { return `"KeySpec":"AES_256"` }},
	{"GenerateDataKeyPair", keyspec.EncryptDecrypt, func(*world, *snapshot.Record) string { return `"KeyPairSpec":"ECC_NIST_P256"` }},
	{"GenerateDataKeyPairWithoutPlaintext", keyspec.EncryptDecrypt, func(*world, *snapshot.Record) string { return `"KeyPairSpec":"ECC_NIST_P256"` }},
	{"GetPublicKey", 0, func(*world, *snapshot.Record) string { return `"GrantTokens":[]` }},
}

func rsaAlgorithm(k *snapshot.Record, member string) string {
	if k.Private == nil {
		return ""
	}
	return `,"` + member + `":"RSAES_OAEP_SHA_256"`
}

func (w *world) ciphertextOf(k *snapshot.Record) []byte {
	w.Helper()
	if k.Private == nil {
		for name := range keyKinds {
			if keyID(name) == k.ID {
				return w.blob(name, 1, nil, []byte("hello"))
			}
		}
	}
	return w.encryptOAEP(k, keyspec.OAEPSHA256, []byte("hello"))
}

// signature is one by the key of a record, of a message.
func (w *world) signature(k *snapshot.Record, a keyspec.Algorithm, message []byte) []byte {
	w.Helper()
	out := w.ask("Sign", "KeyId Signature SigningAlgorithm", `{"KeyId":%q,"Message":%q,"SigningAlgorithm":%q}`, keyARNOf(k), b64(message), a)
	return out.Signature
}

func keyARNOf(k *snapshot.Record) string {
	return "arn:aws:kms:" + k.Region + ":" + k.Account.String() + ":key/" + k.ID.String()
}

// keyKinds are keys of every usage; "to" is what is re-encrypted to.
var keyKinds = map[string]struct {
	spec  keyspec.Spec
	usage keyspec.Usage
}{
	"symmetric": {keyspec.None, keyspec.EncryptDecrypt}, "to": {keyspec.None, keyspec.EncryptDecrypt},
	"rsa-encrypt": {keyspec.RSA2048, keyspec.EncryptDecrypt}, "rsa-sign": {keyspec.RSA2048, keyspec.SignVerify},
	"ec-sign": {keyspec.P256, keyspec.SignVerify}, "ec-agree": {keyspec.P256, keyspec.KeyAgreement}, "secp256k1": {keyspec.Secp256k1, keyspec.SignVerify},
	"edwards": {keyspec.Ed25519, keyspec.SignVerify}, "hmac": {keyspec.HMAC256, keyspec.GenerateVerifyMAC},
	"ml-dsa": {keyspec.MLDSA44, keyspec.SignVerify}, "ml-kem": {keyspec.MLKEM768, keyspec.EncapsulateDecapsulate},
}

func (w *world) addKinds() map[string]*snapshot.Record {
	w.Helper()
	all := map[string]*snapshot.Record{}
	for name, kind := range keyKinds {
		if kind.spec == keyspec.None {
			all[name] = w.addKey(name, kmsapi.StateEnabled, 1)
		} else {
			all[name] = w.addPrivateKey(name, kmsapi.StateEnabled, kind.spec, kind.usage)
		}
	}
	return all
}

// named is the body of a call with the key's name in it.
func (c *keyCall) named(w *world, k *snapshot.Record) string {
	member := "KeyId"
	if c.op == "ReEncrypt" {
		member = "SourceKeyId"
	}
	return `{"` + member + `":"` + keyARNOf(k) + `",` + c.body(w, k) + `}`
}

// suits says whether the operation can use the key; kind has its usage.
func (c *keyCall) suits(spec keyspec.Spec, usage keyspec.Usage) bool {
	switch {
	case c.op == "GetPublicKey":
		return spec.Info().Public > 0
	case strings.HasPrefix(c.op, "GenerateDataKey"):
		return spec == keyspec.None
	}
	return usage == c.usage
}

// Every operation in every state of a key, and in each a dry run: docs/errors.md, and AWS's matrix of key states.
func TestKeyStates(t *testing.T) {
	w := newWorld(t, worldConfig{})
	all := w.addKinds()
	for i := range keyCalls {
		c := &keyCalls[i]
		for name, kind := range keyKinds {
			if name == "to" || !c.suits(kind.spec, kind.usage) {
				continue
			}
			k := all[name]
			body := c.named(w, k)
			for _, state := range kmsapi.KeyStates {
				w.records.mu.Lock()
				k.State = state
				w.records.mu.Unlock()
				w.KeyChanged(k.Account, k.ID)
				want := "KMSInvalidStateException"
				switch state {
				case kmsapi.StateEnabled, kmsapi.StateUpdating:
					want = ""
				case kmsapi.StateDisabled:
					if want = "DisabledException"; c.op == "GetPublicKey" {
						want = ""
					}
				case kmsapi.StatePendingImport:
					if c.op == "GetPublicKey" {
						want = ""
					}
				}
				r := w.do(w.call(c.op, body))
				if r.exception() != want || (want == "") != (r.status == 200) {
					t.Errorf("%s, %s, %v: %d %s, want %s", c.op, name, state, r.status, r.body, want)
				}
				if c.op == "GetPublicKey" {
					continue
				}
				if want == "" {
					want = "DryRunOperationException"
				}
				if r := w.do(w.call(c.op, body[:len(body)-1]+`,"DryRun":true}`)); r.exception() != want {
					t.Errorf("dry run of %s, %s, %v: %d %s, want %s", c.op, name, state, r.status, r.body, want)
				}
			}
			w.records.mu.Lock()
			k.State = kmsapi.StateEnabled
			w.records.mu.Unlock()
			w.KeyChanged(k.Account, k.ID)
		}
	}
}

// Every operation with a key that it cannot use, in a state that it cannot be used in: the key is refused, not its state.
func TestWrongKeys(t *testing.T) {
	w := newWorld(t, worldConfig{})
	all := w.addKinds()
	bodies := map[string]string{}
	for i := range keyCalls {
		for name, kind := range keyKinds {
			if c := &keyCalls[i]; bodies[c.op] == "" && c.suits(kind.spec, kind.usage) {
				bodies[c.op] = c.body(w, all[name])
			}
		}
	}
	for name := range all {
		all[name].State = kmsapi.StatePendingDeletion
		w.KeyChanged(ours, keyID(name))
	}
	for i := range keyCalls {
		c := &keyCalls[i]
		for name, kind := range keyKinds {
			if c.suits(kind.spec, kind.usage) {
				continue
			}
			member, want := "KeyId", "InvalidKeyUsageException"
			if c.op == "ReEncrypt" {
				member = "SourceKeyId"
			}
			if c.op == "GetPublicKey" {
				want = "UnsupportedOperationException"
			}
			w.refused(want, c.op, `{%q:%q,%s}`, member, keyARN(name), bodies[c.op])
		}
	}
}

// Algorithms that the key does not have.
func TestWrongAlgorithms(t *testing.T) {
	w := newWorld(t, worldConfig{})
	w.addKinds()
	for name, kind := range keyKinds {
		for a := keyspec.OAEPSHA1; a.String() != ""; a++ {
			if kind.spec == keyspec.None || a.Info().Usage != kind.usage {
				continue
			}
			op, member, rest := "Sign", "SigningAlgorithm", `"Message":"aGVsbG8="`
			switch kind.usage {
			case keyspec.GenerateVerifyMAC:
				op, member = "GenerateMac", "MacAlgorithm"
			case keyspec.EncryptDecrypt:
				op, member, rest = "Encrypt", "EncryptionAlgorithm", `"Plaintext":"aGVsbG8="`
			case keyspec.KeyAgreement, keyspec.EncapsulateDecapsulate:
				continue // there is one only
			}
			has := slices.Contains(kind.spec.Algorithms(kind.usage), a)
			r := w.do(w.call(op, fmt.Sprintf(`{"KeyId":%q,%q:%q,%s,"DryRun":true}`, keyARN(name), member, a, rest)))
			want := fmt.Sprintf(`{"__type":"InvalidKeyUsageException","message":"Algorithm %v is incompatible with key spec %v."}`, a, kind.spec)
			if has == (string(r.body) == want) {
				t.Errorf("%s with %v: %s", name, a, r.body)
			}
		}
	}
	w.refused("InvalidKeyUsageException", "Encrypt", `{"KeyId":%q,"Plaintext":"eA=="}`, keyARN("rsa-encrypt"))
	w.refused("InvalidKeyUsageException", "Sign", `{"KeyId":%q,"Message":"eA==","SigningAlgorithm":"SM2DSA"}`, keyARN("ec-sign"))
}

// Requests are charged to the pool of their key, once, ReEncrypt to each pool; key pairs to that of their spec.
func TestPoolsOfKeys(t *testing.T) {
	q := newQuota(ratelimit.Unlimited)
	q.record = true
	w := newWorld(t, worldConfig{quota: q.charge})
	all := w.addKinds()
	pool := func(kind string) ratelimit.Pool {
		return map[string]ratelimit.Pool{"rsa-encrypt": quota.RSA, "rsa-sign": quota.RSA, "ec-sign": quota.ECC, "ec-agree": quota.ECC, "secp256k1": quota.ECC,
			"edwards": quota.ECC, "ml-dsa": quota.MLDSA, "ml-kem": quota.MLKEM}[kind] // else quota.Symmetric
	}
	check := func(name string, r reply, want ...ratelimit.Pool) {
		t.Helper()
		var got []ratelimit.Pool
		for _, c := range q.take() {
			if c.account != ours {
				t.Errorf("%s: charged to %v", name, c.account)
			}
			got = append(got, c.pool)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %d %s charged %v, want %v", name, r.status, r.body, got, want)
		}
	}
	for i := range keyCalls {
		c := &keyCalls[i]
		for name, kind := range keyKinds {
			if !c.suits(kind.spec, kind.usage) {
				continue
			}
			body := c.named(w, all[name])
			q.take()
			r := w.do(w.call(c.op, body))
			want := []ratelimit.Pool{pool(name)}
			switch {
			case c.op == "GetPublicKey", strings.HasPrefix(c.op, "GenerateDataKeyPair"):
				p, _ := quota.PoolOf(kmsapi.Route([]byte(kmsapi.TargetPrefix+c.op)), "ECC_NIST_P256")
				want = []ratelimit.Pool{p}
			case c.op == "ReEncrypt" && pool(name) != quota.Symmetric:
				want = append(want, quota.Symmetric)
			}
			check(c.op+" "+name, r, want...)
		}
	}
	check("no such key", w.do(w.call("Sign", `{"KeyId":"`+keyARN("nobody")+`","Message":"eA==","SigningAlgorithm":"ECDSA_SHA_256"}`)), quota.Symmetric)
	check("no such alias", w.do(w.call("Encrypt", `{"KeyId":"alias/nobody","Plaintext":"eA=="}`)), quota.Symmetric)
	check("a ciphertext without a key", w.do(w.call("Decrypt", `{"CiphertextBlob":"AAAA"}`)), quota.Symmetric)
	check("another account's key", w.do(w.call("Sign", `{"KeyId":"`+keyARN("foreign")+`","Message":"eA==","SigningAlgorithm":"ECDSA_SHA_256"}`)), quota.Symmetric)
	check("SM2", w.do(w.call("GenerateDataKeyPair", `{"KeyId":"`+keyARN("symmetric")+`","KeyPairSpec":"SM2"}`)), func() ratelimit.Pool {
		p, _ := quota.PoolOf(kmsapi.Route([]byte(kmsapi.TargetPrefix+"GenerateDataKeyPair")), "SM2")
		return p
	}())
	check("constraint", w.do(w.call("Sign", `{"KeyId":"`+keyARN("ec-sign")+`"}`)))
}

// A throttled request learns nothing of its key, not even that there is none.
func TestThrottledByKey(t *testing.T) {
	q := newQuota(0)
	w := newWorld(t, worldConfig{quota: q.charge})
	w.addPrivateKey("k", kmsapi.StateEnabled, keyspec.P256, keyspec.SignVerify)
	w.audit.taken()
	for _, id := range []string{keyARN("k"), keyARN("nobody"), keyARN("foreign"), "alias/nobody", "nonsense"} {
		w.refused("ThrottlingException", "Sign", `{"KeyId":%q,"Message":"eA==","SigningAlgorithm":"ECDSA_SHA_256"}`, id)
	}
	for _, line := range w.audit.taken() {
		if !strings.Contains(line, `"resources":[]`) {
			t.Errorf("the record has a key: %s", line)
		}
	}
}

// What befalls the HSM is told as with symmetric keys.
func TestKeyJobErrors(t *testing.T) {
	w := newWorld(t, worldConfig{})
	all := w.addKinds()
	for i := range keyCalls {
		c := &keyCalls[i]
		for name, kind := range keyKinds {
			if !c.suits(kind.spec, kind.usage) || kind.spec == keyspec.None {
				continue
			}
			body := c.named(w, all[name])
			for want, err := range map[string]error{"UnsupportedOperationException": hsm.ErrNotOffered, "KeyUnavailableException": hsm.ErrUnavailable,
				"DependencyTimeoutException": hsm.ErrTimeout, "KMSInternalException": hsm.ErrWrong} {
				w.useErr = func() error { return err }
				switch c.op {
				case "Verify", "Encapsulate", "Encrypt", "GetPublicKey": // without the HSM
					want = ""
				}
				if r := w.do(w.call(c.op, body)); r.exception() != want {
					t.Errorf("%s, %s, %v: %d %s, want %s", c.op, name, err, r.status, r.body, want)
				}
				w.useErr = nil
			}
		}
	}
}

// Without Keys whatever needs a private key is refused, and what does not is done.
func TestWithoutKeys(t *testing.T) {
	w := newWorld(t, worldConfig{})
	all := w.addKinds()
	bodies := map[string]string{}
	for i := range keyCalls {
		for name, kind := range keyKinds {
			if c := &keyCalls[i]; kind.spec != keyspec.None && c.suits(kind.spec, kind.usage) {
				bodies[c.op] = c.named(w, all[name])
			}
		}
	}
	w.parts.Keys = nil
	for op, body := range bodies {
		want := "UnsupportedOperationException"
		switch op {
		case "Verify", "Encapsulate", "Encrypt", "GetPublicKey":
			want = ""
		}
		w.refused(want, op, "%s", body)
	}
}

// A key that changed or left the cache is loaded no more.
func TestKeysAreForgotten(t *testing.T) {
	w := newWorld(t, worldConfig{})
	k := w.addPrivateKey("k", kmsapi.StateEnabled, keyspec.HMAC256, keyspec.GenerateVerifyMAC)
	loaded := func() (n int) {
		for _, h := range w.ring.Stats().Handles {
			n += h.Loaded
		}
		return n
	}
	for range 3 {
		w.ask("GenerateMac", "KeyId Mac MacAlgorithm", `{"KeyId":%q,"Message":"eA==","MacAlgorithm":"HMAC_SHA_256"}`, k.ID)
		if n := loaded(); n != 1 {
			t.Errorf("%d keys are loaded after one was used", n)
		}
		w.KeyChanged(ours, k.ID)
		if n := loaded(); n != 0 {
			t.Errorf("%d keys are loaded after the one changed", n)
		}
	}
}

// A record whose public key is not one of its spec is damaged.
func TestDamagedPublicKey(t *testing.T) {
	w := newWorld(t, worldConfig{})
	k := w.addPrivateKey("k", kmsapi.StateEnabled, keyspec.P256, keyspec.SignVerify)
	k.Private.Public = bytes.Clone(k.Private.Public)
	k.Private.Public[len(k.Private.Public)-1] ^= 1
	w.refused("KMSInternalException", "GetPublicKey", `{"KeyId":%q}`, k.ID)
}
