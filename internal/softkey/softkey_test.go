package softkey

import (
	"bytes"
	"crypto/sha512"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"os"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
)

// generated are one key of each spec: making RSA_4096 takes seconds.
var generated = sync.OnceValue(func() map[keyspec.Spec]pair {
	all := map[keyspec.Spec]pair{}
	for _, s := range keyspec.Backing() {
		private, public, err := Generate(s)
		if err != nil {
			panic(err)
		}
		all[s] = pair{private, public}
	}
	return all
})

type pair struct{ private, public []byte }

// must loads one of them.
func must(t testing.TB, s keyspec.Spec) (*Key, *pubkey.Key) {
	t.Helper()
	p := generated()[s]
	k, err := Load(s, p.private)
	if err != nil {
		t.Fatalf("%s: Load: %v", s, err)
	}
	t.Cleanup(k.Wipe)
	if s.Info().Public == 0 {
		return k, nil
	}
	public, err := pubkey.Parse(s, p.public)
	if err != nil {
		t.Fatalf("%s: Parse: %v", s, err)
	}
	return k, public
}

// do does what has to work.
func do(t testing.TB, k *Key, op Op, in []byte) []byte {
	t.Helper()
	out := make([]byte, k.Spec().Info().Result)
	n, err := k.Do(op, in, out)
	if err != nil {
		t.Fatalf("%s, operation %d: %v", k.Spec(), op, err)
	}
	return out[:n]
}

// opOf is the operation of a signing algorithm.
var opOf = map[keyspec.Algorithm]Op{
	keyspec.PKCS1SHA256: SignPKCS1, keyspec.PKCS1SHA384: SignPKCS1, keyspec.PKCS1SHA512: SignPKCS1,
	keyspec.PSSSHA256: SignPSS256, keyspec.PSSSHA384: SignPSS384, keyspec.PSSSHA512: SignPSS512,
	keyspec.ECDSASHA256: SignECDSA, keyspec.ECDSASHA384: SignECDSA, keyspec.ECDSASHA512: SignECDSA,
	keyspec.Ed25519SHA512: SignEd25519, keyspec.Ed25519PHSHA512: SignEd25519ph, keyspec.MLDSAShake256: SignMLDSA,
}

// Every signing algorithm of every spec: what Prepare gives is signed, and the signature verifies with each message type that there is, and with
// nothing changed.
func TestSignAndVerify(t *testing.T) {
	message := []byte("a message to be signed")
	wide := sha512.Sum512(message)
	count := 0
	for _, s := range keyspec.All() {
		for _, a := range s.Algorithms(keyspec.SignVerify) {
			k, public := must(t, s)
			type form struct {
				t pubkey.Message
				m []byte
			}
			var forms []form
			switch a {
			case keyspec.Ed25519PHSHA512:
				forms = []form{{pubkey.DIGEST, wide[:]}}
			case keyspec.Ed25519SHA512:
				forms = []form{{pubkey.RAW, message}}
			case keyspec.MLDSAShake256:
				mu, ok := pubkey.Prepare(a, pubkey.RAW, public, message, make([]byte, 0, pubkey.PreparedMax))
				if !ok {
					t.Fatal("no μ")
				}
				forms = []form{{pubkey.RAW, message}, {pubkey.EXTERNALMU, mu}}
			default:
				digest, ok := pubkey.Prepare(a, pubkey.RAW, public, message, make([]byte, 0, pubkey.PreparedMax))
				if !ok {
					t.Fatal("no digest")
				}
				forms = []form{{pubkey.RAW, message}, {pubkey.DIGEST, digest[len(digest)-a.Info().Digest:]}}
			}
			for _, signed := range forms {
				in, ok := pubkey.Prepare(a, signed.t, public, signed.m, make([]byte, 0, pubkey.PreparedMax))
				if !ok {
					t.Fatalf("%s, %s, %d: not prepared", s, a, signed.t)
				}
				signature := pubkey.AppendSignature(nil, a, do(t, k, opOf[a], in))
				for _, f := range forms {
					count++
					if !public.Verify(a, f.t, f.m, signature) {
						t.Errorf("%s, %s: signed as %d, does not verify as %d", s, a, signed.t, f.t)
					}
					other := bytes.Clone(f.m)
					other[0] ^= 1
					if public.Verify(a, f.t, other, signature) {
						t.Errorf("%s, %s: another message verifies as %d", s, a, f.t)
					}
					bad := bytes.Clone(signature)
					bad[len(bad)-1] ^= 1
					if public.Verify(a, f.t, f.m, bad) {
						t.Errorf("%s, %s: another signature verifies as %d", s, a, f.t)
					}
					if public.Verify(a, f.t, f.m, append(signature[:len(signature):len(signature)], 0)) {
						t.Errorf("%s, %s: a longer signature verifies as %d", s, a, f.t)
					}
				}
			}
		}
	}
	if want := 3*6*4 + 4*4 + 2 + 3*4; count != want {
		t.Errorf("%d combinations, want %d", count, want)
	}
}

func TestEncryption(t *testing.T) {
	for _, s := range []keyspec.Spec{keyspec.RSA2048, keyspec.RSA3072, keyspec.RSA4096} {
		k, public := must(t, s)
		for a, op := range map[keyspec.Algorithm]Op{keyspec.OAEPSHA1: DecryptOAEP1, keyspec.OAEPSHA256: DecryptOAEP256} {
			for _, size := range []int{0, 1, 32, s.PlaintextMax(a)} {
				plaintext := bytes.Repeat([]byte{1}, size)
				c := make([]byte, s.Info().Public)
				n, err := public.EncryptOAEP(a, plaintext, c)
				if err != nil || n != len(c) {
					t.Fatalf("%s, %s: %d, %v", s, a, n, err)
				}
				if got := do(t, k, op, c); !bytes.Equal(got, plaintext) {
					t.Errorf("%s, %s: %x, want %x", s, a, got, plaintext)
				}
				out := make([]byte, s.Info().Result)
				for _, bad := range [][]byte{c[1:], append(c[:len(c):len(c)], 0), nil, append([]byte{c[0] ^ 1}, c[1:]...), bytes.Repeat([]byte{255}, len(c))} {
					if n, err := k.Do(op, bad, out); n != 0 || !errors.Is(err, ErrData) {
						t.Errorf("%s, %s: %d, %v, want ErrData", s, a, n, err)
					}
				}
			}
			if _, err := public.EncryptOAEP(a, make([]byte, s.PlaintextMax(a)+1), make([]byte, s.Info().Public)); !errors.Is(err, pubkey.ErrLength) {
				t.Errorf("%s, %s: a plaintext that is too long: %v", s, a, err)
			}
		}
	}
}

func TestEncapsulation(t *testing.T) {
	for _, s := range []keyspec.Spec{keyspec.MLKEM512, keyspec.MLKEM768, keyspec.MLKEM1024} {
		k, public := must(t, s)
		secret, c := make([]byte, pubkey.SecretBytes), make([]byte, pubkey.CiphertextBytes(s))
		if err := public.Encapsulate(secret, c); err != nil {
			t.Fatal(err)
		}
		if got := do(t, k, DecapsulateMLKEM, c); !bytes.Equal(got, secret) {
			t.Errorf("%s: %x, want %x", s, got, secret)
		}
		c[5] ^= 1 // implicit rejection: another secret, and the same each time
		one, two := do(t, k, DecapsulateMLKEM, c), do(t, k, DecapsulateMLKEM, c)
		if !bytes.Equal(one, two) || bytes.Equal(one, secret) || len(one) != pubkey.SecretBytes {
			t.Errorf("%s: implicit rejection gives %x and %x", s, one, two)
		}
		for _, bad := range [][]byte{nil, c[1:], append(c[:len(c):len(c)], 0)} {
			if _, err := k.Do(DecapsulateMLKEM, bad, make([]byte, 32)); !errors.Is(err, ErrData) {
				t.Errorf("%s: %d bytes: %v, want ErrData", s, len(bad), err)
			}
			if err := public.Encapsulate(secret, bad); !errors.Is(err, pubkey.ErrLength) {
				t.Errorf("%s: room of %d bytes: %v, want ErrLength", s, len(bad), err)
			}
		}
	}
}

func TestAgreement(t *testing.T) {
	for _, s := range []keyspec.Spec{keyspec.P256, keyspec.P384, keyspec.P521} {
		k, public := must(t, s)
		private, other, err := Generate(s)
		if err != nil {
			t.Fatal(err)
		}
		k2, err := Load(s, private)
		if err != nil {
			t.Fatal(err)
		}
		point, err := public.Peer(other)
		if err != nil {
			t.Fatal(err)
		}
		one, two := do(t, k, DeriveECDH, point), do(t, k2, DeriveECDH, public.Raw())
		if !bytes.Equal(one, two) || len(one) != (s.Info().Bits+7)/8 {
			t.Errorf("%s: %x and %x", s, one, two)
		}
		off := bytes.Clone(point)
		off[len(off)-1] ^= 1
		for _, bad := range [][]byte{nil, off, point[1:], {0}, append([]byte{2}, point[1:1+len(point)/2]...)} {
			if _, err := k.Do(DeriveECDH, bad, make([]byte, s.Info().Result)); !errors.Is(err, ErrData) {
				t.Errorf("%s: %x: %v, want ErrData", s, bad, err)
			}
		}
	}
}

// opsOf are the operations of keys of a spec.
func opsOf(s keyspec.Spec) []Op {
	switch s.Info().Family {
	case keyspec.RSA:
		return []Op{SignPKCS1, SignPSS256, SignPSS384, SignPSS512, DecryptOAEP1, DecryptOAEP256}
	case keyspec.EC:
		if s == keyspec.Secp256k1 {
			return []Op{SignECDSA}
		}
		return []Op{SignECDSA, DeriveECDH}
	case keyspec.Edwards:
		return []Op{SignEd25519, SignEd25519ph}
	case keyspec.HMAC:
		return []Op{MAC}
	case keyspec.MLDSA:
		return []Op{SignMLDSA}
	case keyspec.AES:
		return []Op{EncryptBlocks}
	}
	return []Op{DecapsulateMLKEM}
}

// Every spec with every operation: those that are not its own are ErrUnsupported, its own refuse data of a wrong length (messages have none), and
// whatever fails leaves zeros.
func TestOperationsOfSpecs(t *testing.T) {
	for _, s := range keyspec.Backing() {
		k, _ := must(t, s)
		for op := NoOp; op <= EncryptBlocks+1; op++ {
			out := bytes.Repeat([]byte{0xee}, s.Info().Result+5)
			n, err := k.Do(op, []byte("seven b"), out)
			switch {
			case !slices.Contains(opsOf(s), op):
				if n != 0 || !errors.Is(err, ErrUnsupported) || !zeros(out) {
					t.Errorf("%s, operation %d: %d, %v, want ErrUnsupported", s, op, n, err)
				}
			case op == MAC, op == SignEd25519, op == SignECDSA: // of a digest of any length up to the curve's
				if err != nil || n != s.Info().Result {
					t.Errorf("%s, operation %d: %d, %v", s, op, n, err)
				}
			default:
				if n != 0 || !errors.Is(err, ErrData) || !zeros(out) {
					t.Errorf("%s, operation %d: %d, %v, want ErrData", s, op, n, err)
				}
			}
			short := bytes.Repeat([]byte{0xee}, s.Info().Result-1)
			if n, err := k.Do(op, []byte("seven b"), short); n != 0 || !errors.Is(err, ErrRoom) || !zeros(short) {
				t.Errorf("%s, operation %d: without room: %d, %v", s, op, n, err)
			}
		}
	}
}

func TestDigestsOfWrongLength(t *testing.T) {
	for s, sizes := range map[keyspec.Spec]map[int]bool{
		keyspec.P256: {0: false, 32: true, 33: false}, keyspec.P384: {0: false, 48: true, 49: false}, keyspec.P521: {0: false, 64: true, 66: true, 67: false},
		keyspec.Secp256k1: {0: false, 32: true, 33: false},
	} {
		k, _ := must(t, s)
		for size, want := range sizes {
			if _, err := k.Do(SignECDSA, make([]byte, size), make([]byte, s.Info().Result)); (err == nil) != want || !want && !errors.Is(err, ErrData) {
				t.Errorf("%s, %d bytes: %v", s, size, err)
			}
		}
	}
	k, _ := must(t, keyspec.RSA2048)
	for op, size := range map[Op]int{SignPSS256: 32, SignPSS384: 48, SignPSS512: 64} {
		for _, n := range []int{0, 20, 32, 48, 64, 65} {
			if _, err := k.Do(op, make([]byte, n), make([]byte, 256)); (err == nil) != (n == size) {
				t.Errorf("operation %d, %d bytes: %v", op, n, err)
			}
		}
	}
	for _, size := range []int{32, 48, 64} {
		in := append(pubkey.DigestInfo(size), make([]byte, size)...)
		for _, bad := range [][]byte{in[1:], in[:len(in)-1], append(in[:len(in):len(in)], 0), in[19:], append([]byte{in[0] ^ 1}, in[1:]...)} {
			if _, err := k.Do(SignPKCS1, bad, make([]byte, 256)); !errors.Is(err, ErrData) {
				t.Errorf("a DigestInfo of %x: %v", bad, err)
			}
		}
	}
	for s, op := range map[keyspec.Spec]Op{keyspec.Ed25519: SignEd25519ph, keyspec.MLDSA44: SignMLDSA} {
		k, _ := must(t, s)
		for _, n := range []int{0, 63, 65} {
			if _, err := k.Do(op, make([]byte, n), make([]byte, s.Info().Result)); !errors.Is(err, ErrData) {
				t.Errorf("%s, %d bytes: %v", s, n, err)
			}
		}
	}
}

// Private halves are those of their spec only, and no others.
func TestLoadRefuses(t *testing.T) {
	for _, s := range keyspec.Backing() {
		p := generated()[s].private
		for _, other := range keyspec.Backing() {
			fits := map[keyspec.Family]int{keyspec.HMAC: other.Info().Bits / 8, keyspec.AES: 32, keyspec.MLDSA: 32, keyspec.MLKEM: 64}[other.Info().Family] == len(p)
			k, err := Load(other, p) // bytes of one length are a key of every spec that has keys of that length
			if want := s == other || fits; (err == nil) != want || !want && (k != nil || !errors.Is(err, ErrKey)) {
				t.Errorf("%s as %s: %v", s, other, err)
			}
			if k != nil {
				k.Wipe()
			}
		}
		for _, bad := range [][]byte{nil, p[:1], p[1:], p[:len(p)-1], append(bytes.Clone(p), 0)} {
			if k, err := Load(s, bad); k != nil || !errors.Is(err, ErrKey) {
				t.Errorf("%s, %d of %d bytes: %v", s, len(bad), len(p), err)
			}
		}
	}
	for _, s := range []keyspec.Spec{keyspec.None, 200} {
		if _, err := Load(s, make([]byte, 32)); !errors.Is(err, ErrUnsupported) {
			t.Errorf("spec %d: %v", s, err)
		}
		if _, _, err := Generate(s); !errors.Is(err, ErrUnsupported) {
			t.Errorf("spec %d: %v", s, err)
		}
	}
	p := generated()[keyspec.Secp256k1].private
	for i := range p {
		bad := bytes.Clone(p)
		bad[i] ^= 1
		if _, err := Load(keyspec.Secp256k1, bad); !errors.Is(err, ErrKey) { // the scalar too: the point is another's then
			t.Errorf("secp256k1 with byte %d changed: %v", i, err)
		}
	}
	for name, scalar := range map[string][]byte{"zero": make([]byte, 32), "too large": bytes.Repeat([]byte{0xff}, 32)} {
		if _, err := Load(keyspec.Secp256k1, marshalSecp256k1(scalar, p[len(p)-65:])); !errors.Is(err, ErrKey) {
			t.Errorf("secp256k1 of %s: %v", name, err)
		}
	}
}

func TestLoadCopies(t *testing.T) {
	private := bytes.Clone(generated()[keyspec.HMAC256].private)
	k, err := Load(keyspec.HMAC256, private)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Wipe()
	before := do(t, k, MAC, []byte("m"))
	clear(private)
	if !bytes.Equal(do(t, k, MAC, []byte("m")), before) {
		t.Error("the key changes with the caller's bytes")
	}
}

// A wiped key does nothing, and the memory of its key is not there any more.
func TestWipe(t *testing.T) {
	for _, s := range keyspec.Backing() {
		k, err := Load(s, generated()[s].private)
		if err != nil {
			t.Fatal(err)
		}
		kept := k.raw != nil
		if want := s.Info().Family == keyspec.HMAC || s == keyspec.Secp256k1; kept != want {
			t.Errorf("%s: in memory of our own: %t", s, kept)
		}
		if k.Locked() != k.memory.locked || !kept && k.Locked() {
			t.Errorf("%s: locked: %t", s, k.Locked())
		}
		rsaKey, edKey, aesKey := k.rsa, k.ed25519, k.aes
		k.Wipe()
		k.Wipe()
		if rsaKey != nil && (rsaKey.D.Sign() != 0 || rsaKey.Primes[0].Sign() != 0 || rsaKey.Primes[1].Sign() != 0) {
			t.Errorf("%s: integers are left", s)
		}
		if aesKey != nil && !reflect.ValueOf(aesKey).Elem().IsZero() {
			t.Errorf("%s: an expanded key is left", s)
		}
		if !zeros(edKey) {
			t.Errorf("%s: a key is left", s)
		}
		for _, op := range opsOf(s) {
			out := bytes.Repeat([]byte{0xee}, s.Info().Result)
			if n, err := k.Do(op, nil, out); n != 0 || !errors.Is(err, ErrWiped) || !zeros(out) {
				t.Errorf("%s, operation %d: %d, %v, want ErrWiped", s, op, n, err)
			}
		}
		if k.Locked() || k.raw != nil {
			t.Errorf("%s: memory is left", s)
		}
	}
}

// Operations and Wipe at once: each operation gives its result or ErrWiped, and none touches memory that is gone.
func TestWipeWhileInUse(t *testing.T) {
	for _, s := range []keyspec.Spec{keyspec.HMAC256, keyspec.Secp256k1, keyspec.Ed25519, keyspec.P256, keyspec.AES256} {
		k, err := Load(s, generated()[s].private)
		if err != nil {
			t.Fatal(err)
		}
		var wait sync.WaitGroup
		for range 4 {
			wait.Go(func() {
				out := make([]byte, s.Info().Result)
				for range 10000 {
					if _, err := k.Do(opsOf(s)[0], make([]byte, 32), out); errors.Is(err, ErrWiped) {
						return
					} else if err != nil {
						t.Errorf("%s: %v", s, err)
						return
					}
				}
			})
		}
		k.Wipe()
		wait.Wait()
	}
}

// Where no memory can be locked, keys are there all the same and say so.
func TestMemory(t *testing.T) {
	for _, refused := range []error{nil, errors.New("the limit")} {
		m, err := newMemory(33, func([]byte) error { return refused })
		if err != nil {
			t.Fatal(err)
		}
		if len(m.pages)%os.Getpagesize() != 0 || len(m.pages) == 0 || !zeros(m.pages) || m.locked != (refused == nil) {
			t.Errorf("%d bytes, locked: %t", len(m.pages), m.locked)
		}
		m.free()
		m.free()
		if m.pages != nil || m.locked {
			t.Error("memory after free")
		}
	}
}

// Pairs are those of Generate in PKCS #8, for the specs that are for it.
func TestGeneratePair(t *testing.T) {
	count := 0
	for _, s := range keyspec.All() {
		spki, pkcs8, err := GeneratePair(s)
		if !s.Info().Pair {
			if !errors.Is(err, ErrUnsupported) || spki != nil || pkcs8 != nil {
				t.Errorf("%s: %v", s, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		count++
		if _, err := pubkey.Parse(s, spki); err != nil {
			t.Errorf("%s: %v", s, err)
		}
		private := pkcs8
		if s.Info().Family == keyspec.MLKEM {
			var key struct {
				Version   int
				Algorithm pkix.AlgorithmIdentifier
				Key       []byte
			}
			var seed asn1.RawValue
			if rest, err := asn1.Unmarshal(pkcs8, &key); err != nil || len(rest) != 0 {
				t.Fatalf("%s: %v", s, err)
			}
			if rest, err := asn1.Unmarshal(key.Key, &seed); err != nil || len(rest) != 0 {
				t.Fatalf("%s: %v", s, err)
			}
			oid := asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 4, 1 + int(s-keyspec.MLKEM512)}
			if key.Version != 0 || !key.Algorithm.Algorithm.Equal(oid) || len(key.Algorithm.Parameters.FullBytes) != 0 || seed.Class != asn1.ClassContextSpecific ||
				seed.Tag != 0 || seed.IsCompound || len(seed.Bytes) != kemSeedBytes || len(pkcs8) != 86 {
				t.Errorf("%s: %x", s, pkcs8)
			}
			private = seed.Bytes
		}
		k, err := Load(s, private)
		if err != nil {
			t.Errorf("%s: Load: %v", s, err)
			continue
		}
		public, err := pubkey.Parse(s, spki)
		if err != nil {
			t.Fatal(err)
		}
		if s.Info().Family == keyspec.MLKEM { // the halves belong together
			secret, c := make([]byte, 32), make([]byte, pubkey.CiphertextBytes(s))
			if err := public.Encapsulate(secret, c); err != nil || !bytes.Equal(do(t, k, DecapsulateMLKEM, c), secret) {
				t.Errorf("%s: another secret, %v", s, err)
			}
		}
		k.Wipe()
	}
	if count != 11 {
		t.Errorf("%d specs, want 11", count)
	}
}

// FIPS 197, appendix C.3, and the same key twice: blocks do not depend on each other, and there may be as many as there is room for.
func TestEncryptBlocks(t *testing.T) {
	key, plain := make([]byte, 32), make([]byte, 16)
	for i := range key {
		key[i] = byte(i)
	}
	for i := range plain {
		plain[i] = byte(i * 0x11)
	}
	k, err := Load(keyspec.AES256, key)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Wipe()
	clear(key) // Load has copied it
	image := []byte{0x8e, 0xa2, 0xb7, 0xca, 0x51, 0x67, 0x45, 0xbf, 0xea, 0xfc, 0x49, 0x90, 0x4b, 0x49, 0x60, 0x89}
	for _, n := range []int{1, 3, 7, 256} {
		out := make([]byte, max(n*16, keyspec.AES256.Info().Result))
		if got, err := k.Do(EncryptBlocks, bytes.Repeat(plain, n), out); err != nil || got != n*16 || !bytes.Equal(out[:got], bytes.Repeat(image, n)) {
			t.Errorf("%d blocks: %d, %v, %x", n, got, err, out)
		}
	}
	out := bytes.Repeat([]byte{0xee}, 9*16-1)
	if n, err := k.Do(EncryptBlocks, make([]byte, 9*16), out); n != 0 || !errors.Is(err, ErrRoom) || !zeros(out) {
		t.Errorf("without room: %d, %v", n, err)
	}
	out = make([]byte, keyspec.AES256.Info().Result)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := k.Do(EncryptBlocks, plain, out); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
