package hsmtest

import (
	"bytes"
	"crypto/aes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"hash"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
	"github.com/keyplane/keyplane/internal/softkey"
)

// Importing is what a token does with material for keys of one spec.
type Importing struct {
	Wrappings map[keyspec.Wrapping]bool // those that it imports; true: the material is in clear only inside
	Exports   []keyspec.Wrapping
	Takes     []string // of the encodings that are none, those that the token's parser takes for the key that is in them
}

// Encodings of a private key that a lax parser takes.
const (
	ByteMore     = "a byte after the key"
	OtherVersion = "another version"
	// WrongPart follows the name of a part of an RSA key that does not fit the others, as in "Dp that does not fit".
	WrongPart = " that does not fit"
)

// Material is a key made outside.
type Material struct {
	Spec   keyspec.Spec
	Plain  []byte // before it is wrapped
	Public []byte // DER SubjectPublicKeyInfo; nil for secret keys
}

// others are keys that are wanted for what they are not, made once: RSA keys take long.
var others sync.Map

func otherMaterial(t testing.TB, s keyspec.Spec) Material {
	t.Helper()
	m, ok := others.Load(s)
	if !ok {
		m, _ = others.LoadOrStore(s, MakeMaterial(t, s))
	}
	return m.(Material)
}

// MakeMaterial makes a key of the spec with Go's library.
func MakeMaterial(t testing.TB, s keyspec.Spec) Material {
	t.Helper()
	if s.Info().Public == 0 {
		plain := make([]byte, s.Info().Bits/8)
		_, _ = rand.Read(plain)
		return Material{Spec: s, Plain: plain}
	}
	plain, public, err := softkey.Generate(s)
	if err != nil {
		t.Fatal(err)
	}
	return Material{s, plain, public}
}

// WrapMaterial wraps plain for an RSA public key as whoever imports a key does.
func WrapMaterial(t testing.TB, w keyspec.Wrapping, public *rsa.PublicKey, plain []byte) []byte {
	t.Helper()
	if !hsm.Hybrid(w) {
		return sealOAEP(t, w, public, plain)
	}
	kek := make([]byte, 32)
	_, _ = rand.Read(kek)
	return append(sealOAEP(t, w, public, kek), WrapKWP(kek, plain)...)
}

func sealOAEP(t testing.TB, w keyspec.Wrapping, public *rsa.PublicKey, plain []byte) []byte {
	t.Helper()
	h := hash.Hash(sha256.New())
	if w == keyspec.WrapOAEP1 || w == keyspec.WrapRSAAES1 {
		h = sha1.New()
	}
	sealed, err := rsa.EncryptOAEP(h, rand.Reader, public, plain, nil)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// WrapKWP is AES Key Wrap with Padding of RFC 5649, read off the RFC and not off the tokens' code.
func WrapKWP(kek, plain []byte) []byte {
	block, err := aes.NewCipher(kek)
	if err != nil {
		panic(err)
	}
	padded := append(bytes.Clone(plain), make([]byte, (8-len(plain)%8)%8)...)
	n := len(padded) / 8
	a := binary.BigEndian.AppendUint32([]byte{0xa6, 0x59, 0x59, 0xa6}, uint32(len(plain)))
	if n == 1 {
		out := append(a, padded...)
		block.Encrypt(out, out)
		return out
	}
	for j := range 6 {
		for i := range n {
			b := append(bytes.Clone(a), padded[8*i:8*i+8]...)
			block.Encrypt(b, b)
			a = binary.BigEndian.AppendUint64(nil, binary.BigEndian.Uint64(b)^uint64(n*j+i+1))
			copy(padded[8*i:], b[8:])
		}
	}
	return append(a, padded...)
}

// TestImportToken holds a token to the contract of hsm.ImportToken. open opens the token under test, the same one every time, with its roots made; want
// is what the token must import and export, and all that it may. objects, where it is not nil, counts what is in the token.
func TestImportToken(t *testing.T, open func(t testing.TB) hsm.Token, want map[keyspec.Spec]Importing, objects func(t testing.TB, token hsm.Token) int) {
	token := open(t).(hsm.ImportToken)
	t.Cleanup(func() { mustClose(t, token) })
	r := &importRig{token: token, want: want, objects: func(t testing.TB) int {
		if objects == nil {
			return 0
		}
		return objects(t, token)
	}}
	t.Run("Offers", r.testImports)
	r.wrapping = map[keyspec.Spec]*wrappingKey{}
	for _, s := range []keyspec.Spec{keyspec.RSA2048, keyspec.RSA3072} {
		private, public, err := token.GenerateKey(s)
		if err != nil {
			t.Fatal(err)
		}
		k, err := x509.ParsePKIXPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		r.wrapping[s] = &wrappingKey{s, private, public, k.(*rsa.PublicKey)}
	}
	for _, s := range keyspec.Backing() {
		if (s == keyspec.RSA3072 || s == keyspec.RSA4096) && testing.Short() || len(want[s].Wrappings) == 0 {
			continue
		}
		t.Run(s.String(), func(t *testing.T) { r.testSpec(t, s) })
	}
	t.Run("NotOffered", r.testNothing)
}

type importRig struct {
	token    hsm.ImportToken
	want     map[keyspec.Spec]Importing
	wrapping map[keyspec.Spec]*wrappingKey
	objects  func(testing.TB) int
}

// wrappingKey is one that the token made.
type wrappingKey struct {
	spec            keyspec.Spec
	private, public []byte
	key             *rsa.PublicKey
}

func (r *importRig) testImports(t *testing.T) {
	for _, s := range append(keyspec.Backing(), keyspec.None) {
		for w := keyspec.NoWrapping; w <= keyspec.WrapRSAAES256+1; w++ {
			inside, ok := r.want[s].Wrappings[w]
			if gotOK, gotInside, err := r.token.Imports(s, w); gotOK != ok || gotInside != inside || err != nil {
				t.Errorf("%v, %v: %t, inside %t, %v; want %t, %t", s, w, gotOK, gotInside, err, ok, inside)
			}
		}
	}
}

// forSpec is a wrapping key that material of the spec fits under.
func (r *importRig) forSpec(s keyspec.Spec) *wrappingKey {
	if s == keyspec.P521 { // under 2048 bits it does not fit with RSAES_OAEP
		return r.wrapping[keyspec.RSA3072]
	}
	return r.wrapping[keyspec.RSA2048]
}

func (r *importRig) imports(k *wrappingKey, s keyspec.Spec, w keyspec.Wrapping, material []byte) (wrapped, public []byte, err error) {
	return r.token.ImportKey(s, k.spec, k.private, w, material)
}

func (r *importRig) testSpec(t *testing.T, s keyspec.Spec) {
	k, m := r.forSpec(s), MakeMaterial(t, s)
	before := r.objects(t)
	for w := range r.want[s].Wrappings {
		t.Run(w.String(), func(t *testing.T) {
			material := WrapMaterial(t, w, k.key, m.Plain)
			kept := bytes.Clone(material)
			wrapped, public, err := r.imports(k, s, w, material)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(material, kept) {
				t.Error("the material was changed")
			}
			r.check(t, &m, wrapped, public)
			r.testBad(t, &m, w)
			if got := r.objects(t); got != before {
				t.Errorf("%d objects are in the token, and before the import %d", got, before)
			}
		})
	}
	t.Run("Export", func(t *testing.T) { r.testExport(t, &m) })
	if got := r.objects(t); got != before {
		t.Errorf("%d objects are in the token, and before the import %d", got, before)
	}
}

// check holds an imported key to what it was outside: it is used with everything that the token does with keys of the spec.
func (r *importRig) check(t testing.TB, m *Material, wrapped, public []byte) {
	t.Helper()
	if !bytes.Equal(public, m.Public) {
		t.Errorf("the public half is %x, want %x", public, m.Public)
	}
	CheckImported(t, r.token, m, wrapped)
}

// CheckImported uses a key, which came from outside, with everything that the token does with keys of its spec.
func CheckImported(t testing.TB, token hsm.KeyToken, m *Material, wrapped []byte) {
	t.Helper()
	k := m.stored(wrapped)
	loaded := mustLoad(t, token, k)
	s := mustKeySession(t, token)
	offered := 0
	for mechanism := hsm.NoMechanism; mechanism < 32; mechanism++ {
		if token.Keys(m.Spec).Has(mechanism) {
			offered++
			if err := useAndVerify(s, loaded, k, mechanism, 1); err != nil {
				t.Errorf("mechanism %d: %v", mechanism, err)
			}
		}
	}
	if offered == 0 {
		t.Errorf("nothing is done with keys of %v", m.Spec)
	}
	mustClose(t, s)
	if err := token.UnloadKey(loaded); err != nil {
		t.Error(err)
	}
}

// stored is the key as its owner keeps it, with what Go's library says that it does.
func (m *Material) stored(wrapped []byte) *storedKey {
	k := &storedKey{spec: m.Spec, wrapped: wrapped, spki: m.Public}
	switch m.Spec.Info().Family {
	case keyspec.AES:
		block, err := aes.NewCipher(m.Plain)
		if err != nil {
			panic(err)
		}
		k.mac = make([]byte, len(aBlock))
		block.Encrypt(k.mac, aBlock)
	case keyspec.HMAC:
		h := hmac.New([]func() hash.Hash{sha256.New224, sha256.New, sha512.New384, sha512.New}[m.Spec-keyspec.HMAC224], m.Plain)
		h.Write(macOf)
		k.mac = h.Sum(nil)
	default:
		var err error
		if k.public, err = pubkey.Parse(m.Spec, m.Public); err != nil {
			panic(err)
		}
	}
	return k
}

// thorough are specs of each kind, which stand for the others.
var thorough = map[keyspec.Spec]bool{keyspec.AES256: true, keyspec.HMAC224: true, keyspec.P256: true, keyspec.P521: true, keyspec.RSA2048: true}

// testBad has everything refused that is not the material, with the one error.
func (r *importRig) testBad(t *testing.T, m *Material, w keyspec.Wrapping) {
	k := r.forSpec(m.Spec)
	bad := badMaterial(t, m, w, k.key)
	if !thorough[m.Spec] {
		few := map[string][]byte{}
		for _, name := range []string{"cut by a byte", "bit flip: last", "wrapped well: a byte less", "wrapped well: 32 bytes", "wrapped well: a key for ECC_NIST_P256"} {
			if material, ok := bad[name]; ok {
				few[name] = material
			}
		}
		bad = few
	}
	for name, material := range bad {
		wrapped, public, err := r.imports(k, m.Spec, w, material)
		if slices.Contains(r.want[m.Spec].Takes, strings.TrimPrefix(name, "wrapped well: ")) {
			if err != nil {
				t.Errorf("%s, which the token takes: %v", name, err)
				continue
			}
			r.check(t, m, wrapped, public) // and it is no other key
			continue
		}
		if !errors.Is(err, hsm.ErrMaterial) || wrapped != nil || public != nil {
			t.Errorf("%s: a key of %d bytes, public half of %d, %v", name, len(wrapped), len(public), err)
		}
		if errors.Is(err, hsm.ErrMaterial) && err.Error() != hsm.ErrMaterial.Error() {
			t.Errorf("%s: the error tells more: %v", name, err)
		}
	}
	wrapped, public, err := r.imports(k, m.Spec, w, WrapMaterial(t, w, k.key, m.Plain))
	if err != nil {
		t.Fatalf("after bad material: %v", err)
	}
	r.check(t, m, wrapped, public)
}

// badMaterial is what is not material for m's spec: damaged on its way, or wrapped well and no key of the spec.
func badMaterial(t testing.TB, m *Material, w keyspec.Wrapping, key *rsa.PublicKey) map[string][]byte {
	t.Helper()
	good := WrapMaterial(t, w, key, m.Plain)
	size := key.Size()
	bad := map[string][]byte{
		"nothing": nil, "a byte": {1}, "cut by a byte": good[:len(good)-1], "without its first byte": good[1:], "a byte more": append(bytes.Clone(good), 0),
		"a block more": append(bytes.Clone(good), make([]byte, 8)...), "half": good[:len(good)/2], "zeros": make([]byte, len(good)),
		"ones": bytes.Repeat([]byte{0xff}, len(good)), "too much": make([]byte, hsm.MaterialMax+8),
		"for another hash": WrapMaterial(t, otherHash(w), key, m.Plain),
	}
	for name, at := range map[string]int{"first": 0, "middle": len(good) / 2, "RSA's last": size - 1, "last": len(good) - 1} {
		flipped := bytes.Clone(good)
		flipped[at] ^= 0x10
		bad["bit flip: "+name] = flipped
	}
	if hsm.Hybrid(w) {
		bad["the RSA part alone"] = good[:size]
		bad["RSA part and a block"] = good[:size+8]
		bad["cut by a block"] = good[:len(good)-8]
		other, kek := make([]byte, 32), make([]byte, 32)
		kek[0] = 1
		bad["under another AES key"] = append(sealOAEP(t, w, key, other), WrapKWP(kek, m.Plain)...)
		for _, n := range []int{0, 16, 24, 31, 33} {
			kek := bytes.Repeat([]byte{7}, n)
			wrapped := WrapKWP(make([]byte, 32), m.Plain)
			if n == 16 || n == 24 {
				wrapped = WrapKWP(kek, m.Plain)
			}
			bad["under an AES key of "+big.NewInt(int64(n)).String()+" bytes"] = append(sealOAEP(t, w, key, kek), wrapped...)
		}
	}
	for name, plain := range badPlain(t, m) {
		if !hsm.Hybrid(w) && len(plain) > size-66 {
			continue // no room
		}
		if hsm.Hybrid(w) && len(plain) == 0 {
			continue // KWP wraps nothing of that length
		}
		bad["wrapped well: "+name] = WrapMaterial(t, w, key, plain)
	}
	return bad
}

func otherHash(w keyspec.Wrapping) keyspec.Wrapping {
	return map[keyspec.Wrapping]keyspec.Wrapping{keyspec.WrapOAEP1: keyspec.WrapOAEP256, keyspec.WrapOAEP256: keyspec.WrapOAEP1,
		keyspec.WrapRSAAES1: keyspec.WrapRSAAES256, keyspec.WrapRSAAES256: keyspec.WrapRSAAES1}[w]
}

// badPlain is what can be wrapped and is no key of m's spec.
func badPlain(t testing.TB, m *Material) map[string][]byte {
	t.Helper()
	bad := map[string][]byte{"nothing": {}, "a byte": {1}, "a byte less": m.Plain[:len(m.Plain)-1], ByteMore: append(bytes.Clone(m.Plain), 0)}
	family := m.Spec.Info().Family
	if family == keyspec.AES || family == keyspec.HMAC {
		for _, n := range []int{8, 16, 24, 27, 28, 31, 32, 33, 40, 47, 48, 56, 63, 64, 65, 72, 128} {
			if n != len(m.Plain) {
				bad[big.NewInt(int64(n)).String()+" bytes"] = bytes.Repeat([]byte{5}, n)
			}
		}
		return bad
	}
	bad["32 bytes"] = make([]byte, 32)
	version := bytes.Clone(m.Plain)
	version[bytes.Index(version, []byte{2, 1, 0})+2] = 0x21
	bad[OtherVersion] = version
	bad["text"] = []byte("-----BEGIN PRIVATE KEY-----")
	for _, at := range []int{0, 1, 2, 3, 4} { // of the head: tags and lengths
		flipped := bytes.Clone(m.Plain)
		flipped[at] ^= 0x21
		bad["head byte "+big.NewInt(int64(at)).String()] = flipped
	}
	for _, other := range []keyspec.Spec{keyspec.P256, keyspec.P384, keyspec.P521, keyspec.Secp256k1, keyspec.Ed25519, keyspec.RSA2048} {
		if other != m.Spec && (other != keyspec.RSA2048 || family == keyspec.RSA) {
			bad["a key for "+other.String()] = otherMaterial(t, other).Plain
		}
	}
	if family == keyspec.RSA {
		for name, plain := range badRSA(t, m) {
			bad[name] = plain
		}
	}
	if family == keyspec.EC && m.Spec != keyspec.Secp256k1 {
		bad["an ECPrivateKey without PKCS #8"] = sec1(t, m.Plain)
		bad["an empty scalar"] = emptyScalar(t, m.Plain)
	}
	return bad
}

// badRSA are keys that a token which does not look could take.
func badRSA(t testing.TB, m *Material) map[string][]byte {
	t.Helper()
	parsed, err := x509.ParsePKCS8PrivateKey(m.Plain)
	if err != nil {
		t.Fatal(err)
	}
	k := parsed.(*rsa.PrivateKey)
	bad := map[string][]byte{"an RSAPrivateKey without PKCS #8": x509.MarshalPKCS1PrivateKey(k)}
	// Parts that do not fit together: another key's private exponent, and its numbers for CRT with it.
	foreign, err := x509.ParsePKCS8PrivateKey(otherMaterial(t, m.Spec).Plain)
	if err != nil {
		t.Fatal(err)
	}
	mixed := *foreign.(*rsa.PrivateKey)
	mixed.N = k.N
	bad["another key's modulus"] = mixedPKCS8(t, &mixed)
	for name, part := range map[string]func(*rsa.PrivateKey) **big.Int{
		"D":  func(k *rsa.PrivateKey) **big.Int { return &k.D },
		"P":  func(k *rsa.PrivateKey) **big.Int { return &k.Primes[0] },
		"Q":  func(k *rsa.PrivateKey) **big.Int { return &k.Primes[1] },
		"Dp": func(k *rsa.PrivateKey) **big.Int { return &k.Precomputed.Dp },
		"Dq": func(k *rsa.PrivateKey) **big.Int { return &k.Precomputed.Dq },
		"Qi": func(k *rsa.PrivateKey) **big.Int { return &k.Precomputed.Qinv },
	} {
		without, wrong := *k, *k
		without.Primes, wrong.Primes = slices.Clone(k.Primes), slices.Clone(k.Primes)
		*part(&without) = new(big.Int)
		bad[name+" is 0"] = mixedPKCS8(t, &without)
		*part(&wrong) = new(big.Int).Add(*part(k), big.NewInt(2))
		bad[name+WrongPart] = mixedPKCS8(t, &wrong)
		if name != "D" {
			wrong.D = new(big.Int).Add(k.D, big.NewInt(2))
			bad["D and "+name+WrongPart] = mixedPKCS8(t, &wrong)
		}
	}
	one, phi := big.NewInt(1), new(big.Int)
	phi.Mul(new(big.Int).Sub(k.Primes[0], one), new(big.Int).Sub(k.Primes[1], one))
	// A right exponent that takes long.
	long := *k
	long.D = new(big.Int).Add(k.D, new(big.Int).Lsh(phi, 4000))
	bad["an exponent that is longer than the modulus"] = mixedPKCS8(t, &long)
	// The exponent 3 if it is one for these primes, else the next.
	for e := int64(3); ; e += 2 {
		if d := new(big.Int).ModInverse(big.NewInt(e), phi); d != nil && e != int64(k.E) {
			other := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: k.N, E: int(e)}, D: d, Primes: k.Primes}
			other.Precompute()
			der, err := x509.MarshalPKCS8PrivateKey(other)
			if err != nil {
				t.Fatal(err)
			}
			bad["another public exponent"] = der
			return bad
		}
	}
}

// mixedPKCS8 encodes an RSA key without asking whether it is one.
func mixedPKCS8(t testing.TB, k *rsa.PrivateKey) []byte {
	t.Helper()
	inner, err := asn1.Marshal(struct {
		Version             int
		N                   *big.Int
		E                   int
		D, P, Q, Dp, Dq, Qi *big.Int
	}{0, k.N, k.E, k.D, k.Primes[0], k.Primes[1], k.Precomputed.Dp, k.Precomputed.Dq, k.Precomputed.Qinv})
	if err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(struct {
		Version   int
		Algorithm pkix.AlgorithmIdentifier
		Key       []byte
	}{0, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, Parameters: asn1.NullRawValue}, inner})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// emptyScalar is a PKCS #8 encoding of an EC key whose scalar has no bytes.
func emptyScalar(t testing.TB, pkcs8 []byte) []byte {
	t.Helper()
	var info struct {
		Version   int
		Algorithm pkix.AlgorithmIdentifier
		Key       []byte
	}
	if _, err := asn1.Unmarshal(pkcs8, &info); err != nil {
		t.Fatal(err)
	}
	info.Key = []byte{0x30, 5, 2, 1, 1, 4, 0}
	der, err := asn1.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func sec1(t testing.TB, pkcs8 []byte) []byte {
	t.Helper()
	k, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(k.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// testExport takes a key out, and in again.
func (r *importRig) testExport(t *testing.T, m *Material) {
	k := r.forSpec(m.Spec)
	from := WrapMaterial(t, keyspec.WrapRSAAES256, k.key, m.Plain)
	w := keyspec.WrapRSAAES256
	if _, ok := r.want[m.Spec].Wrappings[w]; !ok {
		w = keyspec.WrapRSAAES1
		from = WrapMaterial(t, w, k.key, m.Plain)
	}
	wrapped, _, err := r.imports(k, m.Spec, w, from)
	if err != nil {
		t.Fatal(err)
	}
	peer := r.wrapping[keyspec.RSA3072]
	exports := map[keyspec.Wrapping]bool{}
	for _, w := range r.want[m.Spec].Exports {
		exports[w] = true
	}
	for w := keyspec.NoWrapping; w <= keyspec.WrapRSAAES256; w++ {
		material, err := r.token.ExportKey(m.Spec, wrapped, w, peer.public)
		switch {
		case !exports[w]:
			if !errors.Is(err, hsm.ErrNotOffered) || material != nil {
				t.Errorf("%v: %x, %v", w, material, err)
			}
			continue
		case err != nil:
			t.Errorf("%v: %v", w, err)
			continue
		case bytes.Contains(material, m.Plain):
			t.Error("the key is in clear")
		}
		again, public, err := r.imports(peer, m.Spec, w, material)
		if err != nil {
			t.Errorf("%v: importing what was exported: %v", w, err)
			continue
		}
		r.check(t, m, again, public)
		if other, err := r.token.ExportKey(m.Spec, wrapped, w, peer.public); err != nil || bytes.Equal(other, material) {
			t.Errorf("%v: the same twice, or %v", w, err)
		}
		for name, public := range map[string][]byte{"none": nil, "2048 bits": r.wrapping[keyspec.RSA2048].public, "P-256": p256Public(t), "cut": peer.public[:100],
			"trailing": append(bytes.Clone(peer.public), 0)} {
			if material, err := r.token.ExportKey(m.Spec, wrapped, w, public); !errors.Is(err, hsm.ErrPeerKey) || material != nil {
				t.Errorf("%v, for a public key that is %s: %x, %v", w, name, material, err)
			}
		}
		if material, err := r.token.ExportKey(m.Spec, wrapped[:len(wrapped)-8], w, peer.public); err == nil || material != nil {
			t.Errorf("%v: a damaged key is exported", w)
		}
	}
}

func p256Public(t testing.TB) []byte {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// testNothing asks for what there is not, and under what is no wrapping key.
func (r *importRig) testNothing(t *testing.T) {
	k := r.wrapping[keyspec.RSA2048]
	for _, s := range append(keyspec.Backing(), keyspec.None) {
		for w := keyspec.NoWrapping; w <= keyspec.WrapRSAAES256+1; w++ {
			if _, ok := r.want[s].Wrappings[w]; ok {
				continue
			}
			if wrapped, public, err := r.imports(k, s, w, make([]byte, 512)); !errors.Is(err, hsm.ErrNotOffered) || wrapped != nil || public != nil {
				t.Errorf("%v, %v: %x, %x, %v", s, w, wrapped, public, err)
			}
		}
	}
	m := MakeMaterial(t, keyspec.HMAC256)
	for w := range r.want[m.Spec].Wrappings {
		material := WrapMaterial(t, w, k.key, m.Plain)
		if _, _, err := r.token.ImportKey(m.Spec, keyspec.P256, k.private, w, material); !errors.Is(err, hsm.ErrNotOffered) {
			t.Errorf("a wrapping key for P-256: %v", err)
		}
		if _, _, err := r.token.ImportKey(m.Spec, k.spec, k.private[:len(k.private)-8], w, material); err == nil || errors.Is(err, hsm.ErrMaterial) {
			t.Errorf("a damaged wrapping key: %v", err)
		}
		other := r.wrapping[keyspec.RSA3072]
		if _, _, err := r.imports(other, m.Spec, w, material); !errors.Is(err, hsm.ErrMaterial) {
			t.Errorf("another wrapping key: %v", err)
		}
	}
}

// TestBetween has keys of one token go to another: wrapped there, unwrapped here, and the same. want is by which wrappings; other specs are not tried.
func TestBetween(t *testing.T, from, to hsm.ImportToken, want map[keyspec.Spec][]keyspec.Wrapping) {
	private, public, err := to.GenerateKey(keyspec.RSA3072)
	if err != nil {
		t.Fatal(err)
	}
	for s, wrappings := range want {
		for _, w := range wrappings {
			t.Run(s.String()+"/"+w.String(), func(t *testing.T) {
				k := makeStored(t, from, s)
				material, err := from.ExportKey(s, k.wrapped, w, public)
				if err != nil {
					t.Fatal(err)
				}
				wrapped, spki, err := to.ImportKey(s, keyspec.RSA3072, private, w, material)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(spki, k.spki) {
					t.Fatalf("public half %x, want %x", spki, k.spki)
				}
				there := &storedKey{spec: s, wrapped: wrapped, spki: spki, public: k.public}
				for _, place := range []struct {
					token hsm.KeyToken
					k     *storedKey
				}{{from, k}, {to, there}} { // the image of a secret key in the one is what it has to be in the other
					loaded, session := mustLoad(t, place.token, place.k), mustKeySession(t, place.token)
					if err := useAndVerify(session, loaded, place.k, FirstOf(place.token.Keys(s)), 1); err != nil {
						t.Error(err)
					}
					there.mac = k.mac
					mustClose(t, session)
					if err := place.token.UnloadKey(loaded); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}
