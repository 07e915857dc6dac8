// Package attesttest makes attestation documents for tests, as the hypervisor of an authority of its own, and opens what was sealed for them. It encodes CBOR
// and reads CMS by itself: nothing here is code of package attest.
package attesttest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"slices"
	"testing"
	"time"
)

// Authority is a certificate chain as AWS's: a root, intermediates down to the instance, and the leaf whose key signs documents.
type Authority struct {
	Chain [][]byte // DER from the root to the last intermediate: cabundle
	Leaf  []byte   // DER
	Key   *ecdsa.PrivateKey
}

// Option changes the template of one certificate of an authority; depth is 0 of the root, 3 of the leaf. It returns the key that the certificate gets, nil
// for a new one on P-384.
type Option func(depth int, c *x509.Certificate) crypto.Signer

// leafDepth is where the leaf stands under the root.
const leafDepth = 3

// New makes an authority that is valid from a day before now to a day after.
func New(t testing.TB, now time.Time, options ...Option) *Authority {
	t.Helper()
	a := &Authority{}
	var parent *x509.Certificate
	var parentKey crypto.Signer
	for depth := range leafDepth + 1 {
		c := &x509.Certificate{
			SerialNumber: big.NewInt(now.UnixNano() + int64(depth)),
			Subject:      pkix.Name{Country: []string{"US"}, Organization: []string{"Test"}, CommonName: []string{"root", "regional", "zonal", "instance"}[depth] + ".test.nitro-enclaves"},
			NotBefore:    now.Add(-24 * time.Hour), NotAfter: now.Add(24 * time.Hour),
			BasicConstraintsValid: true, IsCA: depth < leafDepth,
			KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, SignatureAlgorithm: x509.ECDSAWithSHA384,
		}
		if depth == leafDepth {
			c.KeyUsage = x509.KeyUsageDigitalSignature
		}
		var key crypto.Signer
		for _, o := range options {
			if k := o(depth, c); k != nil {
				key = k
			}
		}
		if key == nil {
			key = NewKey(t, elliptic.P384())
		}
		if parent == nil {
			parent, parentKey = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), parentKey)
		if err != nil {
			t.Fatal(err)
		}
		if parent, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		parentKey = key
		if depth < leafDepth {
			a.Chain = append(a.Chain, der)
		} else {
			a.Leaf = der
			a.Key, _ = key.(*ecdsa.PrivateKey)
		}
	}
	return a
}

// NewKey makes a key on a curve.
func NewKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Roots is the pool that trusts the authority.
func (a *Authority) Roots(t testing.TB) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(a.RootPEM()) {
		t.Fatal("the root cannot be read")
	}
	return pool
}

// RootPEM is the root as a file has it.
func (a *Authority) RootPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Chain[0]})
}

// Field is one field of a document, its value in CBOR.
type Field struct {
	Name  string
	Value []byte
}

// Fields are those of a document of an enclave, in the order of the hypervisor: a recipient's key, registers from 0 on, and the time.
func (a *Authority) Fields(t testing.TB, pub crypto.PublicKey, pcrs [][]byte, now time.Time) []Field {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	registers := make([][2][]byte, len(pcrs))
	for i, v := range pcrs {
		registers[i] = [2][]byte{Uint(uint64(i)), Bytes(v)}
	}
	bundle := make([][]byte, len(a.Chain))
	for i, der := range a.Chain {
		bundle[i] = Bytes(der)
	}
	return []Field{
		{"module_id", Text("i-0123456789abcdef0-enc0123456789abcdef")}, {"digest", Text("SHA384")}, {"timestamp", Uint(uint64(now.UnixMilli()))},
		{"pcrs", Map(registers...)}, {"certificate", Bytes(a.Leaf)}, {"cabundle", Array(bundle...)},
		{"public_key", Bytes(spki)}, {"user_data", Null()}, {"nonce", Null()},
	}
}

// Set replaces the value of a field, or adds the field.
func Set(fields []Field, name string, value []byte) []Field {
	fields = slices.Clone(fields)
	for i := range fields {
		if fields[i].Name == name {
			fields[i].Value = value
			return fields
		}
	}
	return append(fields, Field{name, value})
}

// Without is the fields but one.
func Without(fields []Field, name string) []Field {
	return slices.DeleteFunc(slices.Clone(fields), func(f Field) bool { return f.Name == name })
}

// Payload is the map of fields.
func Payload(fields []Field) []byte {
	pairs := make([][2][]byte, len(fields))
	for i, f := range fields {
		pairs[i] = [2][]byte{Text(f.Name), f.Value}
	}
	return Map(pairs...)
}

// ES384 is the protected header of documents, {1: -35}.
var ES384 = Map([2][]byte{Uint(1), Negative(34)})

// Sign makes a document of a payload, without a tag.
func (a *Authority) Sign(t testing.TB, payload []byte) []byte {
	t.Helper()
	return Envelope(ES384, Map(), payload, a.Signature(t, ES384, payload))
}

// Envelope is an array of four, a COSE_Sign1 without a tag.
func Envelope(protected, unprotected, payload, signature []byte) []byte {
	return Array(Bytes(protected), unprotected, Bytes(payload), Bytes(signature))
}

// Signature signs a payload under a protected header, whatever that says, with SHA-384.
func (a *Authority) Signature(t testing.TB, protected, payload []byte) []byte {
	t.Helper()
	digest := sha512.Sum384(Array(Text("Signature1"), Bytes(protected), Bytes(nil), Bytes(payload)))
	r, s, err := ecdsa.Sign(rand.Reader, a.Key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	n := (a.Key.Curve.Params().BitSize + 7) / 8
	return append(r.FillBytes(make([]byte, n)), s.FillBytes(make([]byte, n))...)
}

// Document is a good document of an enclave.
func (a *Authority) Document(t testing.TB, pub crypto.PublicKey, pcrs [][]byte, now time.Time) []byte {
	t.Helper()
	return a.Sign(t, Payload(a.Fields(t, pub, pcrs, now)))
}

// NewRecipient makes the key of an enclave.
func NewRecipient(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
