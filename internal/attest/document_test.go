package attest_test

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/attest"
	at "github.com/keyplane/keyplane/internal/attest/attesttest"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// critical is an extension that nobody knows.
var critical = pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}

// recipient is a key of 2048 bits, made once.
var recipient = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func pcrs(n int) [][]byte {
	list := make([][]byte, n)
	for i := range list {
		list[i] = bytes.Repeat([]byte{byte(i + 1)}, 48)
	}
	return list
}

func TestVerify(t *testing.T) {
	a := at.New(t, now)
	other := at.New(t, now)
	roots := other.Roots(t)
	roots.AppendCertsFromPEM(a.RootPEM()) // several roots
	fields := a.Fields(t, &recipient().PublicKey, pcrs(16), now)
	good := at.Payload(fields)
	tpm := at.Set(at.Without(fields, "pcrs"), "nitrotpm_pcrs", at.Map([2][]byte{at.Uint(4), at.Bytes(make([]byte, 48))}))
	for _, c := range []struct {
		name     string
		document []byte
		tpm      bool
		pcr4     string
	}{
		{"untagged", a.Sign(t, good), false, string(pcrs(5)[4])},
		{"tagged", at.Tag(18, a.Sign(t, good)), false, string(pcrs(5)[4])},
		{"indefinite map", a.Sign(t, at.IndefiniteMap(good)), false, string(pcrs(5)[4])},
		{"without the optional fields", a.Sign(t, at.Payload(at.Without(at.Without(fields, "nonce"), "user_data"))), false, string(pcrs(5)[4])},
		{"full optional fields", a.Sign(t, at.Payload(at.Set(at.Set(fields, "nonce", at.Bytes(make([]byte, 512))), "user_data", at.Bytes(make([]byte, 512))))), false, string(pcrs(5)[4])},
		{"one PCR", a.Sign(t, at.Payload(at.Set(fields, "pcrs", at.Map([2][]byte{at.Uint(4), at.Bytes(make([]byte, 32))})))), false, string(make([]byte, 32))},
		{"32 PCRs", a.Document(t, &recipient().PublicKey, pcrs(32), now), false, string(pcrs(5)[4])},
		{"NitroTPM", a.Sign(t, at.Payload(tpm)), true, string(make([]byte, 48))},
		{"4 minutes 59 old", a.Document(t, &recipient().PublicKey, pcrs(16), now.Add(-299*time.Second)), false, string(pcrs(5)[4])},
		{"59 s ahead", a.Document(t, &recipient().PublicKey, pcrs(16), now.Add(59*time.Second)), false, string(pcrs(5)[4])},
	} {
		d, err := attest.Verify(c.document, roots, now)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if d.ModuleID != "i-0123456789abcdef0-enc0123456789abcdef" || d.TPM != c.tpm || d.PCRs[4] != c.pcr4 || !d.PublicKey.Equal(&recipient().PublicKey) || now.Sub(d.Time).Abs() > 5*time.Minute {
			t.Errorf("%s: %+v", c.name, d)
		}
	}
}

// changed is an authority whose certificate at a depth is changed.
func changed(t *testing.T, at0 int, change func(*x509.Certificate) crypto.Signer) *at.Authority {
	return at.New(t, now, func(depth int, c *x509.Certificate) crypto.Signer {
		if depth == at0 {
			return change(c)
		}
		return nil
	})
}

// Each case is a good document with one thing wrong, and that thing is why it is refused.
func TestRefused(t *testing.T) {
	a := at.New(t, now)
	pub := &recipient().PublicKey
	fields := a.Fields(t, pub, pcrs(16), now)
	payload := at.Payload(fields)
	signature := a.Signature(t, at.ES384, payload)
	good := at.Envelope(at.ES384, at.Map(), payload, signature)
	set := func(name string, value []byte) []byte { return a.Sign(t, at.Payload(at.Set(fields, name, value))) }
	without := func(name string) []byte { return a.Sign(t, at.Payload(at.Without(fields, name))) }
	header := func(protected []byte) []byte {
		return at.Envelope(protected, at.Map(), payload, a.Signature(t, protected, payload))
	}
	alg := func(negative uint64) []byte { return at.Map([2][]byte{at.Uint(1), at.Negative(negative)}) }
	flip := func(b []byte, i int) []byte {
		b = slices.Clone(b)
		b[i] ^= 1
		return b
	}
	register := func(index, value []byte) []byte { return set("pcrs", at.Map([2][]byte{index, value})) }
	bundle := func(certs ...[]byte) []byte {
		items := make([][]byte, len(certs))
		for i := range certs {
			items[i] = at.Bytes(certs[i])
		}
		return set("cabundle", at.Array(items...))
	}
	key := func(pub crypto.PublicKey) []byte {
		der, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		return set("public_key", at.Bytes(der))
	}
	modulus := func(bits int) *rsa.PublicKey {
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
		return &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 65537}
	}
	spki, _ := x509.MarshalPKIXPublicKey(pub)
	root, regional, zonal := a.Chain[0], a.Chain[1], a.Chain[2]
	stranger := at.New(t, now)

	for _, c := range []struct {
		name     string
		document []byte
		reason   string
	}{
		// The envelope.
		{"nothing", nil, "not a COSE_Sign1"},
		{"too long", append(slices.Clone(good), make([]byte, attest.DocumentMax)...), "too long"},
		{"another tag", at.Tag(17, good), "not a COSE_Sign1"},
		{"two tags", at.Tag(18, at.Tag(18, good)), "not a COSE_Sign1"},
		{"a tag of two bytes", append([]byte{0xd8, 18}, good...), "not a COSE_Sign1"},
		{"three elements", at.Array(at.Bytes(at.ES384), at.Map(), at.Bytes(payload)), "not a COSE_Sign1"},
		{"five elements", at.Array(at.Bytes(at.ES384), at.Map(), at.Bytes(payload), at.Bytes(signature), at.Null()), "not a COSE_Sign1"},
		{"an indefinite array", append(append([]byte{0x9f}, good[1:]...), 0xff), "not a COSE_Sign1"},
		{"bytes behind it", append(slices.Clone(good), 0), "bytes follow"},
		{"cut off", good[:len(good)-1], "signature is not a byte string"},
		{"ES256", header(alg(6)), "protected header"},
		{"ES512", header(alg(35)), "protected header"},
		{"no algorithm", header(at.Map()), "protected header"},
		{"an empty protected header", header(nil), "protected header"},
		{"a second protected header", header(at.Map([2][]byte{at.Uint(1), at.Negative(34)}, [2][]byte{at.Uint(4), at.Bytes([]byte("k"))})), "protected header"},
		{"the algorithm twice", header(at.Map([2][]byte{at.Uint(1), at.Negative(34)}, [2][]byte{at.Uint(1), at.Negative(34)})), "protected header"},
		{"the algorithm in two bytes", header([]byte{0xa1, 0x01, 0x39, 0, 0x22}), "protected header"},
		{"the protected header not wrapped", at.Array(at.ES384, at.Map(), at.Bytes(payload), at.Bytes(signature)), "protected header"},
		{"the algorithm unprotected", at.Envelope(nil, at.ES384, payload, a.Signature(t, nil, payload)), "protected header"},
		{"the algorithm in both headers", at.Envelope(at.ES384, at.ES384, payload, signature), "unprotected header"},
		{"an unprotected key ID", at.Envelope(at.ES384, at.Map([2][]byte{at.Uint(4), at.Bytes([]byte("k"))}), payload, signature), "unprotected header"},
		{"a detached payload", at.Array(at.Bytes(at.ES384), at.Map(), at.Null(), at.Bytes(signature)), "payload is not a byte string"},
		{"an empty payload", a.Sign(t, nil), "payload is not a byte string"},
		{"a payload of 16385 bytes", a.Sign(t, append(payload, make([]byte, 16385-len(payload))...)), "payload is not a byte string"},
		{"a payload with a long length", bytes.Replace(good, at.Bytes(payload), append([]byte{0x5a, 0, 0, byte(len(payload) >> 8), byte(len(payload))}, payload...), 1), "payload is not a byte string"},
		{"a payload in chunks", bytes.Replace(good, at.Bytes(payload), append(append([]byte{0x5f}, at.Bytes(payload)...), 0xff), 1), "payload is not a byte string"},

		// The signature.
		{"r", at.Envelope(at.ES384, at.Map(), payload, flip(signature, 0)), "signature is not valid"},
		{"s", at.Envelope(at.ES384, at.Map(), payload, flip(signature, 95)), "signature is not valid"},
		{"zeros", at.Envelope(at.ES384, at.Map(), payload, make([]byte, 96)), "signature is not valid"},
		{"ones", at.Envelope(at.ES384, at.Map(), payload, bytes.Repeat([]byte{0xff}, 96)), "signature is not valid"},
		{"95 bytes", at.Envelope(at.ES384, at.Map(), payload, signature[:95]), "signature is not a byte string of 96 bytes"},
		{"97 bytes", at.Envelope(at.ES384, at.Map(), payload, append([]byte{0}, signature...)), "signature is not a byte string of 96 bytes"},
		{"another payload's", at.Envelope(at.ES384, at.Map(), at.Payload(at.Set(fields, "nonce", at.Bytes([]byte("n")))), signature), "signature is not valid"},
		{"of another protected header", at.Envelope(at.ES384, at.Map(), payload, a.Signature(t, alg(6), payload)), "signature is not valid"},
		{"another leaf's", at.Envelope(at.ES384, at.Map(), payload, stranger.Signature(t, at.ES384, payload)), "signature is not valid"},

		// The fields.
		{"an array for a payload", a.Sign(t, at.Array(payload)), "payload is not a map"},
		{"bytes behind the map", a.Sign(t, append(slices.Clone(payload), 0xf6)), "not the CBOR of a document"},
		{"a map cut off", a.Sign(t, payload[:len(payload)-1]), "not the CBOR of a document"},
		{"an unknown field", set("more", at.Null()), "not the CBOR of a document"},
		{"a field in capitals", a.Sign(t, at.Payload(at.Set(at.Without(fields, "nonce"), "Nonce", at.Null()))), "not the CBOR of a document"},
		{"a field twice", a.Sign(t, at.Payload(append(slices.Clone(fields), at.Field{Name: "public_key", Value: at.Bytes(spki)}))), "not the CBOR of a document"},
		{"a field twice, the first null", a.Sign(t, at.Payload(append(at.Set(fields, "public_key", at.Null()), at.Field{Name: "public_key", Value: at.Bytes(spki)}))), "not the CBOR of a document"},
		{"a field twice in an indefinite map", a.Sign(t, at.IndefiniteMap(at.Payload(append(slices.Clone(fields), at.Field{Name: "public_key", Value: at.Bytes(spki)})))), "not the CBOR of a document"},
		{"bytes behind an indefinite map", a.Sign(t, append(at.IndefiniteMap(payload), 0)), "not the CBOR of a document"},
		{"an indefinite map without an end", a.Sign(t, append([]byte{0xbf}, payload[1:]...)), "not the CBOR of a document"},
		{"an unknown field in an indefinite map", a.Sign(t, at.IndefiniteMap(at.Payload(at.Set(fields, "more", at.Null())))), "not the CBOR of a document"},
		{"33 pcrs in an indefinite map", set("pcrs", func() []byte {
			m := []byte{0xbf}
			for i := range uint64(33) {
				m = append(append(m, at.Uint(i)...), at.Bytes(make([]byte, 48))...)
			}
			return append(m, 0xff)
		}()), "not the CBOR of a document"},
		{"a tagged field", set("timestamp", at.Tag(1, at.Uint(uint64(now.UnixMilli())))), "not the CBOR of a document"},
		{"a name that is no text", a.Sign(t, append([]byte{payload[0] + 1}, append(slices.Clone(payload[1:]), at.Bytes([]byte("x"))[0], 'x', 0xf6)...)), "not the CBOR of a document"},
		{"too deep", set("nonce", at.Array(at.Array(at.Array(at.Array(at.Array()))))), "not the CBOR of a document"},
		{"no module_id", without("module_id"), "module_id"},
		{"an empty module_id", set("module_id", at.Text("")), "module_id"},
		{"a long module_id", set("module_id", at.Text(strings.Repeat("i", 257))), "module_id"},
		{"a module_id of bytes", set("module_id", at.Bytes([]byte("i-0"))), "not the CBOR of a document"},
		{"a module_id that is no UTF-8", set("module_id", at.Text("\xff")), "not the CBOR of a document"},
		{"no digest", without("digest"), "digest"},
		{"SHA256", set("digest", at.Text("SHA256")), "digest"},
		{"sha384", set("digest", at.Text("sha384")), "digest"},
		{"no timestamp", without("timestamp"), "timestamp"},
		{"timestamp 0", set("timestamp", at.Uint(0)), "timestamp"},
		{"a negative timestamp", set("timestamp", at.Negative(5)), "not the CBOR of a document"},
		{"the largest timestamp", set("timestamp", at.Uint(1<<64-1)), "timestamp"},
		{"a timestamp of text", set("timestamp", at.Text("1")), "not the CBOR of a document"},
		{"a timestamp with a point", set("timestamp", []byte{0xfb, 0x42, 0x79, 0, 0, 0, 0, 0, 0}), "not the CBOR of a document"},
		{"301 s old", a.Document(t, pub, pcrs(16), now.Add(-301*time.Second)), "too old"},
		{"61 s ahead", a.Document(t, pub, pcrs(16), now.Add(61*time.Second)), "in the future"},
		{"a timestamp in seconds", set("timestamp", at.Uint(uint64(now.Unix()))), "too old"},
		{"no pcrs", without("pcrs"), "one of pcrs and nitrotpm_pcrs"},
		{"both kinds of pcrs", set("nitrotpm_pcrs", at.Map([2][]byte{at.Uint(4), at.Bytes(make([]byte, 48))})), "one of pcrs and nitrotpm_pcrs"},
		{"pcrs of null", set("pcrs", at.Null()), "one of pcrs and nitrotpm_pcrs"},
		{"empty pcrs", set("pcrs", at.Map()), "number of PCRs"},
		{"33 pcrs", a.Document(t, pub, pcrs(33), now), "not the CBOR of a document"},
		{"PCR 32", register(at.Uint(32), at.Bytes(make([]byte, 48))), "index is out of range"},
		{"PCR -1", register(at.Negative(0), at.Bytes(make([]byte, 48))), "not the CBOR of a document"},
		{"PCR text", register(at.Text("0"), at.Bytes(make([]byte, 48))), "not the CBOR of a document"},
		{"PCR of 47 bytes", register(at.Uint(0), at.Bytes(make([]byte, 47))), "32, 48 or 64"},
		{"PCR of 0 bytes", register(at.Uint(0), at.Bytes(nil)), "32, 48 or 64"},
		{"PCR of null", register(at.Uint(0), at.Null()), "32, 48 or 64"},
		{"PCR of text", register(at.Uint(0), at.Text(strings.Repeat("a", 48))), "not the CBOR of a document"},
		{"a PCR twice", set("pcrs", at.Map([2][]byte{at.Uint(0), at.Bytes(make([]byte, 48))}, [2][]byte{at.Uint(0), at.Bytes(make([]byte, 48))})), "not the CBOR of a document"},
		{"a PCR twice, in two lengths", set("pcrs", at.Map([2][]byte{at.Uint(0), at.Bytes(make([]byte, 48))}, [2][]byte{{0x18, 0}, at.Bytes(make([]byte, 48))})), "not the CBOR of a document"},
		{"a user_data of 513 bytes", set("user_data", at.Bytes(make([]byte, 513))), "user_data"},
		{"a user_data of text", set("user_data", at.Text("u")), "not the CBOR of a document"},
		{"a nonce of 513 bytes", set("nonce", at.Bytes(make([]byte, 513))), "nonce"},

		// The key.
		{"no public_key", without("public_key"), "public_key is missing"},
		{"a public_key of null", set("public_key", at.Null()), "public_key is missing"},
		{"an empty public_key", set("public_key", at.Bytes(nil)), "public_key is missing"},
		{"a public_key of 1025 bytes", set("public_key", at.Bytes(make([]byte, 1025))), "public_key is missing or too long"},
		{"a public_key that is none", set("public_key", at.Bytes([]byte("dummy"))), "SubjectPublicKeyInfo"},
		{"a public_key in PKCS #1", set("public_key", at.Bytes(x509.MarshalPKCS1PublicKey(pub))), "SubjectPublicKeyInfo"},
		{"a public_key with bytes behind it", set("public_key", at.Bytes(append(slices.Clone(spki), 0))), "SubjectPublicKeyInfo"},
		{"an EC public_key", key(&a.Key.PublicKey), "not RSA"},
		{"2047 bits", key(modulus(2047)), "2048 to 4096 bits"},
		{"4097 bits", key(modulus(4097)), "2048 to 4096 bits"},
		{"an even modulus", key(&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2047), E: 65537}), "2048 to 4096 bits"},
		{"exponent 3", key(&rsa.PublicKey{N: pub.N, E: 3}), "exponent"},
		{"an exponent of 33 bits", key(&rsa.PublicKey{N: pub.N, E: 1<<32 + 1}), "exponent"},
		{"an even exponent", key(&rsa.PublicKey{N: pub.N, E: 65538}), "exponent"},

		// The chain.
		{"no certificate", without("certificate"), "certificate is missing"},
		{"a certificate of 1025 bytes", set("certificate", at.Bytes(make([]byte, 1025))), "certificate is missing or too long"},
		{"a certificate with bytes behind it", set("certificate", at.Bytes(append(slices.Clone(a.Leaf), 0))), "cannot be read"},
		{"no cabundle", without("cabundle"), "cabundle is missing"},
		{"an empty cabundle", bundle(), "cabundle is missing"},
		{"nine certificates", bundle(root, regional, zonal, zonal, zonal, zonal, zonal, zonal, zonal), "cabundle is missing or too long"},
		{"17 certificates", bundle(slices.Repeat([][]byte{zonal}, 17)...), "not the CBOR of a document"},
		{"an empty certificate", bundle(root, regional, nil, zonal), "empty or too long"},
		{"a large certificate", bundle(root, regional, make([]byte, 1025), zonal), "empty or too long"},
		{"garbage in cabundle", bundle(root, regional, []byte{0x30, 0}, zonal), "cannot be read"},
		{"cabundle of text", set("cabundle", at.Array(at.Text("x"))), "not the CBOR of a document"},
		{"the root last", bundle(zonal, regional, root), "do not lead to a configured root"},
		{"the intermediates swapped", bundle(root, zonal, regional), "not in the order of cabundle"},
		{"the root missing", bundle(regional, zonal), "do not lead to a configured root"},
		{"an intermediate missing", bundle(root, zonal), "do not lead to a configured root"},
		{"an intermediate twice", bundle(root, regional, regional, zonal), "the same name"},
		{"another root on top", bundle(stranger.Chain[0], regional, zonal), "not in the order of cabundle"},
		{"another root besides", bundle(stranger.Chain[0], root, regional, zonal), "the same name"},
		{"another's leaf", set("certificate", at.Bytes(stranger.Leaf)), "do not lead to a configured root"},
		{"another authority", stranger.Document(t, pub, pcrs(16), now), "do not lead to a configured root"},
	} {
		refused(t, c.name, c.document, a.Roots(t), c.reason)
	}
	if _, err := attest.Verify(good, a.Roots(t), now); err != nil {
		t.Fatalf("the document that the cases are made of: %v", err)
	}
	refused(t, "without roots", good, nil, "no roots")
	refused(t, "with an empty pool", good, x509.NewCertPool(), "do not lead to a configured root")
	refused(t, "with the leaf's issuer only", good, stranger.Roots(t), "do not lead to a configured root")

	for _, c := range []struct {
		name   string
		depth  int
		change func(c *x509.Certificate) crypto.Signer
		reason string
	}{
		{"an expired leaf", 3, func(c *x509.Certificate) crypto.Signer { c.NotAfter = now.Add(-time.Second); return nil }, "do not lead"},
		{"a leaf of tomorrow", 3, func(c *x509.Certificate) crypto.Signer { c.NotBefore = now.Add(time.Hour); return nil }, "do not lead"},
		{"an expired intermediate", 1, func(c *x509.Certificate) crypto.Signer { c.NotAfter = now.Add(-time.Second); return nil }, "do not lead"},
		{"an expired root", 0, func(c *x509.Certificate) crypto.Signer { c.NotAfter = now.Add(-time.Second); return nil }, "do not lead"},
		{"a leaf that is an authority", 3, func(c *x509.Certificate) crypto.Signer { c.IsCA = true; return nil }, "one of an authority"},
		{"a leaf that signs certificates", 3, func(c *x509.Certificate) crypto.Signer { c.KeyUsage |= x509.KeyUsageCertSign; return nil }, "one of an authority"},
		{"a leaf without digitalSignature", 3, func(c *x509.Certificate) crypto.Signer { c.KeyUsage = x509.KeyUsageKeyAgreement; return nil }, "not for signatures"},
		{"a leaf without key usage", 3, func(c *x509.Certificate) crypto.Signer { c.KeyUsage = 0; return nil }, "not for signatures"},
		{"an intermediate that is no authority", 2, func(c *x509.Certificate) crypto.Signer { c.IsCA = false; return nil }, "not one of an authority"},
		{"an intermediate without keyCertSign", 2, func(c *x509.Certificate) crypto.Signer { c.KeyUsage = x509.KeyUsageDigitalSignature; return nil }, "not one of an authority"},
		{"a path too long", 1, func(c *x509.Certificate) crypto.Signer { c.MaxPathLen, c.MaxPathLenZero = 0, true; return nil }, "do not lead"},
		{"a critical extension", 3, func(c *x509.Certificate) crypto.Signer {
			c.ExtraExtensions = append(c.ExtraExtensions, critical)
			return nil
		}, "do not lead"},
		{"a leaf on P-256", 3, func(*x509.Certificate) crypto.Signer { return at.NewKey(t, elliptic.P256()) }, "not ECDSA with P-384"},
		{"a leaf on P-521", 3, func(*x509.Certificate) crypto.Signer { return at.NewKey(t, elliptic.P521()) }, "not ECDSA with P-384"},
		{"an intermediate on P-256", 2, func(c *x509.Certificate) crypto.Signer { return at.NewKey(t, elliptic.P256()) }, "not ECDSA with P-384"},
		{"a leaf signed with SHA-256", 3, func(c *x509.Certificate) crypto.Signer { c.SignatureAlgorithm = x509.ECDSAWithSHA256; return nil }, "not ECDSA with P-384"},
		{"an RSA leaf", 3, func(c *x509.Certificate) crypto.Signer { return recipient() }, "not ECDSA with P-384"},
	} {
		b := changed(t, c.depth, c.change)
		if b.Key == nil || b.Key.Curve != elliptic.P384() {
			b.Key = a.Key // the leaf's key cannot make a signature of the right length; the chain is looked at first
		}
		refused(t, c.name, b.Document(t, pub, pcrs(16), now), b.Roots(t), c.reason)
	}
}

func refused(t *testing.T, name string, document []byte, roots *x509.CertPool, reason string) {
	t.Helper()
	d, err := attest.Verify(document, roots, now)
	var e *attest.Error
	switch {
	case err == nil:
		t.Errorf("%s: accepted: %+v", name, d)
	case !errors.As(err, &e) || !strings.Contains(e.Reason, reason):
		t.Errorf("%s: refused for another reason than %q: %v", name, reason, err)
	case d != nil:
		t.Errorf("%s: an error and a document", name)
	}
}

// Every single byte of a document matters, but for the optional tag.
func TestEveryByteMatters(t *testing.T) {
	a := at.New(t, now)
	good, roots := a.Document(t, &recipient().PublicKey, pcrs(1), now), a.Roots(t)
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 0x01
		if _, err := attest.Verify(bad, roots, now); err == nil {
			t.Fatalf("byte %d of %d does not matter", i, len(good))
		}
	}
	for n := range len(good) {
		if n%97 == 0 || n > len(good)-100 {
			if _, err := attest.Verify(good[:n], roots, now); err == nil {
				t.Fatalf("%d of %d bytes are enough", n, len(good))
			}
		}
	}
}

// Nothing is allocated by what a length says only.
func TestHugeLengths(t *testing.T) {
	a := at.New(t, now)
	for _, payload := range [][]byte{
		{0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {0xba, 0x7f, 0xff, 0xff, 0xff},
		append([]byte{0xa1}, append(at.Text("cabundle"), 0x9b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)...),
		append([]byte{0xa1}, append(at.Text("public_key"), 0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)...),
		append([]byte{0xa1}, append(at.Text("pcrs"), 0xba, 0x7f, 0xff, 0xff, 0xff)...),
	} {
		refused(t, "a huge length", a.Sign(t, payload), a.Roots(t), "not the CBOR of a document")
	}
}

func FuzzVerify(f *testing.F) {
	a := at.New(f, now)
	fields := a.Fields(f, &recipient().PublicKey, pcrs(16), now)
	f.Add(at.Payload(fields), true)
	f.Add(at.IndefiniteMap(at.Payload(fields)), true)
	f.Add(at.Payload(at.Set(at.Without(fields, "pcrs"), "nitrotpm_pcrs", at.Map([2][]byte{at.Uint(4), at.Bytes(make([]byte, 48))}))), true)
	f.Add(a.Document(f, &recipient().PublicKey, pcrs(2), now), false)
	f.Add([]byte{0xd2, 0x84, 0x44, 0xa1, 0x01, 0x38, 0x22, 0xa0, 0x41, 0xa0, 0x40}, false)
	roots := a.Roots(f)
	f.Fuzz(func(t *testing.T, data []byte, sign bool) {
		document := data
		if sign { // a payload that somebody vouches for
			if len(data) > 16384 {
				return
			}
			document = a.Sign(t, data)
		}
		before := bytes.Clone(document)
		d, err := attest.Verify(document, roots, now)
		if !bytes.Equal(before, document) {
			t.Fatal("the document was changed")
		}
		var e *attest.Error
		switch {
		case err != nil && (d != nil || !errors.As(err, &e) || e.Reason == ""):
			t.Fatalf("%v, %v", d, err)
		case err == nil:
			if d.ModuleID == "" || d.PublicKey == nil || d.PublicKey.N.BitLen() < 2048 || now.Sub(d.Time) > attest.AgeMax || d.PCRs == [attest.PCRs]string{} {
				t.Fatalf("%+v", d)
			}
			if _, err := attest.Seal(d.PublicKey, []byte("x")); err != nil {
				t.Fatalf("a key that was accepted cannot be used: %v", err)
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	a := at.New(b, now)
	document, roots := a.Document(b, &recipient().PublicKey, pcrs(16), now), a.Roots(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := attest.Verify(document, roots, now); err != nil {
			b.Fatal(err)
		}
	}
}
