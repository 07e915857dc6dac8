package hsmtest

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	_ "crypto/sha512" // hashes of crypto.Hash
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"math/big"
	"sync"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
)

// TestKeyToken holds a token to the contracts of hsm.KeyToken and hsm.KeySession. open opens the token under test, the same one every time,
// with its roots made; the suite closes what it opens. want is what the token must offer, and all that it may.
func TestKeyToken(t *testing.T, open func(t testing.TB) hsm.Token, want map[keyspec.Spec][]hsm.Mechanism) {
	rig := &keyRig{open: func(t testing.TB) hsm.KeyToken { return open(t).(hsm.KeyToken) }, want: want}
	t.Run("Offers", rig.testOffers)
	for _, s := range keyspec.Backing() {
		if testing.Short() && (s == keyspec.RSA3072 || s == keyspec.RSA4096) {
			continue // they take seconds to make
		}
		if len(want[s]) > 0 {
			t.Run(s.String(), func(t *testing.T) { rig.testSpec(t, s) })
		}
	}
}

type keyRig struct {
	open func(t testing.TB) hsm.KeyToken
	want map[keyspec.Spec][]hsm.Mechanism
}

// testSpec makes a key, closes the token and opens it again: what is stored outlives the token's being open.
func (r *keyRig) testSpec(t *testing.T, s keyspec.Spec) {
	token := r.open(t)
	k := makeStored(t, token, s)
	mustClose(t, token)
	token = r.open(t)
	defer mustClose(t, token)
	for _, test := range []struct {
		name string
		f    func(*testing.T, hsm.KeyToken, *storedKey)
	}{
		{"Use", r.testUse}, {"NotOffered", r.testNotOffered}, {"Handles", r.testHandles}, {"Reset", r.testKeyReset}, {"Damaged", r.testDamaged},
		{"Concurrent", r.testKeyConcurrent}, {"BesideRounds", r.testBesideRounds}, {"Differ", r.testDiffer},
	} {
		t.Run(test.name, func(t *testing.T) { test.f(t, token, k) })
	}
}

// storedKey is a key as its owner keeps it.
type storedKey struct {
	spec    keyspec.Spec
	wrapped []byte
	spki    []byte
	public  *pubkey.Key // nil for HMAC and AES
	mac     []byte      // of macOf by an HMAC key, the image of aBlock by an AES key, as the first test found it
}

var macOf, aBlock = []byte("hsmtest"), []byte("a block: hsmtest")

func makeStored(t testing.TB, token hsm.KeyToken, s keyspec.Spec) *storedKey {
	t.Helper()
	wrapped, spki, err := token.GenerateKey(s)
	if err != nil {
		t.Fatal(err)
	}
	k := &storedKey{spec: s, wrapped: wrapped, spki: spki}
	if s.Info().Public == 0 {
		if spki != nil {
			t.Errorf("a secret key has a public half: %x", spki)
		}
		return k
	}
	if k.public, err = pubkey.Parse(s, spki); err != nil {
		t.Fatalf("public half: %v\n%x", err, spki)
	}
	return k
}

func mustLoad(t testing.TB, token hsm.KeyToken, k *storedKey) hsm.LoadedKey {
	t.Helper()
	loaded, err := token.LoadKey(k.spec, k.wrapped)
	if err != nil {
		t.Fatal(err)
	}
	return loaded
}

func mustKeySession(t testing.TB, token hsm.KeyToken) hsm.KeySession {
	t.Helper()
	return mustSession(t, token).(hsm.KeySession)
}

func (r *keyRig) testOffers(t *testing.T) {
	token := r.open(t)
	defer mustClose(t, token)
	for _, s := range keyspec.Backing() {
		var want hsm.Mechanisms
		for _, m := range r.want[s] {
			want = want.With(m)
		}
		if got := token.Keys(s); got != want {
			t.Errorf("%v: mechanisms %b, want %b", s, got, want)
		}
		if want != 0 {
			continue
		}
		if _, _, err := token.GenerateKey(s); !errors.Is(err, hsm.ErrNotOffered) {
			t.Errorf("GenerateKey(%v): %v", s, err)
		}
		if _, err := token.LoadKey(s, make([]byte, 73)); !errors.Is(err, hsm.ErrNotOffered) {
			t.Errorf("LoadKey(%v): %v", s, err)
		}
	}
	if token.Keys(keyspec.None) != 0 {
		t.Error("something is done with keys of no spec")
	}
}

// room is an output buffer with something in it.
func room(s keyspec.Spec) []byte { return bytes.Repeat([]byte{0xaa}, s.Info().Result) }

func (r *keyRig) testUse(t *testing.T, token hsm.KeyToken, k *storedKey) {
	loaded := mustLoad(t, token, k)
	s := mustKeySession(t, token)
	for _, m := range r.want[k.spec] {
		for round := range 3 {
			if err := useAndVerify(s, loaded, k, m, round); err != nil {
				t.Errorf("mechanism %d, round %d: %v", m, round, err)
			}
		}
		refuseData(t, s, loaded, k, m)
	}
	if err := token.UnloadKey(loaded); err != nil {
		t.Error(err)
	}
	mustClose(t, s)
}

// useAndVerify does one operation and verifies the result outside: Go's standard library has the last word where it has the algorithm.
func useAndVerify(s hsm.KeySession, loaded hsm.LoadedKey, k *storedKey, m hsm.Mechanism, round int) error {
	message := bytes.Repeat([]byte("keyplane"), []int{1, 8, 512}[round%3])
	out := room(k.spec)
	use := func(in []byte) ([]byte, error) {
		before := bytes.Clone(in)
		n, err := s.Use(loaded, k.spec, m, in, out)
		if err == nil && !bytes.Equal(in, before) {
			err = errors.New("the input was changed")
		}
		return out[:n], err
	}
	switch m {
	case hsm.MAC:
		mac, err := use(macOf)
		if err != nil {
			return err
		}
		if k.mac == nil {
			k.mac = bytes.Clone(mac)
		}
		if len(mac) != k.spec.Info().Result || !bytes.Equal(mac, k.mac) {
			return errors.New("another MAC of the same message")
		}
		other, err := use(message)
		if err == nil && bytes.Equal(other, k.mac) {
			err = errors.New("the same MAC of another message")
		}
		return err
	case hsm.EncryptBlocks:
		image, err := use(aBlock)
		if err != nil {
			return err
		}
		if k.mac == nil {
			k.mac = bytes.Clone(image)
		}
		if len(image) != len(aBlock) || !bytes.Equal(image, k.mac) {
			return errors.New("another image of the same block")
		}
		// Each block is on its own, wherever it is.
		n := []int{2, 6, hsm.KeyInMax / len(aBlock)}[round%3]
		out = make([]byte, max(n*len(aBlock), len(out)))
		in := bytes.Repeat(aBlock, n)
		in[0] ^= 1
		images, err := use(in)
		if err != nil {
			return err
		}
		if len(images) != len(in) || bytes.Equal(images[:16], k.mac) || !bytes.Equal(images[16:], bytes.Repeat(k.mac, n-1)) {
			return fmt.Errorf("%d blocks have other images together than alone", n)
		}
		return nil
	case hsm.DecryptOAEP1, hsm.DecryptOAEP256:
		h, longest := sha1.New, k.spec.PlaintextMax(keyspec.OAEPSHA1)
		if m == hsm.DecryptOAEP256 {
			h, longest = sha256.New, k.spec.PlaintextMax(keyspec.OAEPSHA256)
		}
		plain := bytes.Repeat([]byte{1, 0, 1}, longest)[:[]int{0, 32, longest}[round%3]]
		sealed, err := rsa.EncryptOAEP(hash.Hash(h()), rand.Reader, standard(k).(*rsa.PublicKey), plain, nil)
		if err != nil {
			return err
		}
		got, err := use(sealed)
		if err == nil && !bytes.Equal(got, plain) {
			err = fmt.Errorf("decrypted %x, want %x", got, plain)
		}
		return err
	case hsm.DeriveECDH:
		own, err := standard(k).(*ecdsa.PublicKey).ECDH()
		if err != nil {
			return err
		}
		peer, err := own.Curve().GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		want, err := peer.ECDH(own)
		if err != nil {
			return err
		}
		got, err := use(peer.PublicKey().Bytes())
		if err == nil && !bytes.Equal(got, want) {
			err = fmt.Errorf("secret %x, want %x", got, want)
		}
		return err
	case hsm.DecapsulateMLKEM:
		secret, sealed := make([]byte, pubkey.SecretBytes), make([]byte, pubkey.CiphertextBytes(k.spec))
		if err := k.public.Encapsulate(secret, sealed); err != nil {
			return err
		}
		got, err := use(sealed)
		if err == nil && !bytes.Equal(got, secret) {
			err = errors.New("another secret was encapsulated")
		}
		return err
	}
	return signAndVerify(use, k, m, message)
}

// standard is the public half as crypto/x509 reads it.
func standard(k *storedKey) any {
	key, err := x509.ParsePKIXPublicKey(k.spki)
	if err != nil {
		panic(err)
	}
	return key
}

// signing are the algorithms of the API that use a mechanism for signing.
func signing(s keyspec.Spec, m hsm.Mechanism) []keyspec.Algorithm {
	switch m {
	case hsm.SignPKCS1:
		return []keyspec.Algorithm{keyspec.PKCS1SHA256, keyspec.PKCS1SHA384, keyspec.PKCS1SHA512}
	case hsm.SignPSS256:
		return []keyspec.Algorithm{keyspec.PSSSHA256}
	case hsm.SignPSS384:
		return []keyspec.Algorithm{keyspec.PSSSHA384}
	case hsm.SignPSS512:
		return []keyspec.Algorithm{keyspec.PSSSHA512}
	case hsm.SignEd25519ph:
		return []keyspec.Algorithm{keyspec.Ed25519PHSHA512}
	}
	return s.Algorithms(keyspec.SignVerify)[:1]
}

func signAndVerify(use func([]byte) ([]byte, error), k *storedKey, m hsm.Mechanism, message []byte) error {
	for _, a := range signing(k.spec, m) {
		kind := pubkey.RAW
		if m == hsm.SignEd25519ph {
			message, kind = bytes.Repeat([]byte("digested"), 8), pubkey.DIGEST
		}
		in, ok := pubkey.Prepare(a, kind, k.public, message, make([]byte, pubkey.PreparedMax))
		if !ok {
			return fmt.Errorf("%v: the message was refused", a)
		}
		sig, err := use(bytes.Clone(in))
		if err != nil {
			return fmt.Errorf("%v: %w", a, err)
		}
		if !verifyStandard(k, a, in, sig) || !k.public.Verify(a, kind, message, pubkey.AppendSignature(nil, a, sig)) {
			return fmt.Errorf("%v: signature %x of %x does not verify", a, sig, in)
		}
	}
	return nil
}

// verifyStandard verifies with the standard library; it says yes where that lacks the algorithm, and package pubkey verifies alone.
func verifyStandard(k *storedKey, a keyspec.Algorithm, in, sig []byte) bool {
	h := map[int]crypto.Hash{32: crypto.SHA256, 48: crypto.SHA384, 64: crypto.SHA512}[a.Info().Digest]
	switch a {
	case keyspec.PKCS1SHA256, keyspec.PKCS1SHA384, keyspec.PKCS1SHA512:
		return rsa.VerifyPKCS1v15(standard(k).(*rsa.PublicKey), h, in[len(in)-h.Size():], sig) == nil
	case keyspec.PSSSHA256, keyspec.PSSSHA384, keyspec.PSSSHA512:
		return rsa.VerifyPSS(standard(k).(*rsa.PublicKey), h, in, sig, &rsa.PSSOptions{SaltLength: h.Size()}) == nil
	case keyspec.Ed25519SHA512:
		return ed25519.Verify(standard(k).(ed25519.PublicKey), in, sig)
	case keyspec.Ed25519PHSHA512:
		return ed25519.VerifyWithOptions(standard(k).(ed25519.PublicKey), in, sig, &ed25519.Options{Hash: crypto.SHA512}) == nil
	}
	if k.spec.Info().Family == keyspec.EC && k.spec != keyspec.Secp256k1 {
		half := len(sig) / 2
		return ecdsa.Verify(standard(k).(*ecdsa.PublicKey), in, new(big.Int).SetBytes(sig[:half]), new(big.Int).SetBytes(sig[half:]))
	}
	return true
}

// refuseData gives mechanisms that interpret a client's bytes such as are wrong. Afterwards the session works.
func refuseData(t *testing.T, s hsm.KeySession, loaded hsm.LoadedKey, k *storedKey, m hsm.Mechanism) {
	t.Helper()
	var bad [][]byte
	switch m {
	case hsm.DecryptOAEP1, hsm.DecryptOAEP256:
		size := k.spec.Info().Public
		bad = [][]byte{nil, make([]byte, size), bytes.Repeat([]byte{1}, size), bytes.Repeat([]byte{1}, size-1), bytes.Repeat([]byte{1}, size+1),
			bytes.Repeat([]byte{0xff}, size)}
	case hsm.DeriveECDH:
		size := k.spec.Info().Public
		bad = [][]byte{nil, make([]byte, size), bytes.Repeat([]byte{4}, size-1), bytes.Repeat([]byte{4}, size+1), {0}}
	}
	for _, in := range bad {
		out := room(k.spec)
		n, err := s.Use(loaded, k.spec, m, in, out)
		if _, ok := errors.AsType[*hsm.Error](err); !ok || n != 0 || hsm.Final(err) != hsm.DataError {
			t.Errorf("mechanism %d of %d bad bytes %.8x…: %d, %v", m, len(in), in, n, err)
		}
		wiped(t, out)
		if err := useAndVerify(s, loaded, k, m, 0); err != nil {
			t.Errorf("mechanism %d after bad data: %v", m, err)
		}
	}
}

func (r *keyRig) testNotOffered(t *testing.T, token hsm.KeyToken, k *storedKey) {
	loaded := mustLoad(t, token, k)
	s := mustKeySession(t, token)
	for m := hsm.NoMechanism; m <= hsm.EncryptBlocks+1; m++ {
		if token.Keys(k.spec).Has(m) {
			continue
		}
		out := room(k.spec)
		if n, err := s.Use(loaded, k.spec, m, make([]byte, 32), out); !errors.Is(err, hsm.ErrNotOffered) || n != 0 {
			t.Errorf("mechanism %d: %d, %v", m, n, err)
		}
		wiped(t, out)
	}
	mustClose(t, s)
}

// input is something that the mechanism takes.
func input(k *storedKey, m hsm.Mechanism) []byte {
	switch m {
	case hsm.DecryptOAEP1, hsm.DecryptOAEP256:
		return bytes.Repeat([]byte{1}, k.spec.Info().Public)
	case hsm.DeriveECDH:
		curve := map[keyspec.Spec]ecdh.Curve{keyspec.P256: ecdh.P256(), keyspec.P384: ecdh.P384(), keyspec.P521: ecdh.P521()}[k.spec]
		key, err := curve.GenerateKey(rand.Reader)
		if err != nil {
			panic(err)
		}
		return key.PublicKey().Bytes()
	case hsm.DecapsulateMLKEM:
		return make([]byte, pubkey.CiphertextBytes(k.spec))
	case hsm.SignPSS384:
		return make([]byte, 48)
	case hsm.SignPSS512, hsm.SignEd25519ph, hsm.SignMLDSA:
		return make([]byte, 64)
	case hsm.SignPKCS1:
		return append(pubkey.DigestInfo(32), make([]byte, 32)...)
	}
	return make([]byte, 32)
}

// refused checks that a key cannot be used, and that the answer means that the handle is nothing.
func (r *keyRig) refused(t *testing.T, s hsm.KeySession, loaded hsm.LoadedKey, k *storedKey) {
	t.Helper()
	for _, m := range r.want[k.spec] {
		out := room(k.spec)
		n, err := s.Use(loaded, k.spec, m, input(k, m), out)
		e, ok := errors.AsType[*hsm.Error](err)
		if !ok || n != 0 || e.CKR != hsm.CKR_KEY_HANDLE_INVALID && e.CKR != hsm.CKR_OBJECT_HANDLE_INVALID {
			t.Errorf("mechanism %d with a handle that is nothing: %d, %v", m, n, err)
		}
		wiped(t, out)
	}
}

func (r *keyRig) works(t *testing.T, s hsm.KeySession, loaded hsm.LoadedKey, k *storedKey) {
	t.Helper()
	for _, m := range r.want[k.spec] {
		if err := useAndVerify(s, loaded, k, m, 0); err != nil {
			t.Errorf("mechanism %d: %v", m, err)
		}
	}
}

func (r *keyRig) testHandles(t *testing.T, token hsm.KeyToken, k *storedKey) {
	before := mustKeySession(t, token)
	first, second := mustLoad(t, token, k), mustLoad(t, token, k)
	after := mustKeySession(t, token)
	for _, s := range []hsm.KeySession{before, after} {
		r.works(t, s, first, k)
	}
	mustClose(t, before)
	r.works(t, after, first, k) // it does not belong to a session that serves
	if err := token.UnloadKey(first); err != nil {
		t.Error(err)
	}
	s := mustKeySession(t, token) // what a refusal does to a session is not the next one's business
	r.refused(t, s, first, k)
	_ = s.Close() // it may have been spoiled
	r.works(t, after, second, k)
	if err := token.UnloadKey(first); err != nil {
		t.Errorf("unloaded twice: %v", err)
	}
	r.works(t, after, second, k)
	s = mustKeySession(t, token)
	r.refused(t, s, hsm.LoadedKey{Generation: token.Generation()}, k)
	_ = s.Close() // as above
	if err := token.UnloadKey(second); err != nil {
		t.Error(err)
	}
	mustClose(t, after)
	out := room(k.spec)
	if _, err := after.Use(second, k.spec, r.want[k.spec][0], input(k, r.want[k.spec][0]), out); !errors.Is(err, hsm.ErrSessionClosed) {
		t.Errorf("a closed session: %v", err)
	}
	wiped(t, out)
}

func (r *keyRig) testKeyReset(t *testing.T, token hsm.KeyToken, k *storedKey) {
	loaded, old := mustLoad(t, token, k), mustKeySession(t, token)
	if loaded.Generation != token.Generation() {
		t.Errorf("generation %d of a key, %d of the token", loaded.Generation, token.Generation())
	}
	if err := token.Reset(); err != nil {
		t.Fatal(err)
	}
	s := mustKeySession(t, token)
	r.refused(t, s, loaded, k)
	r.refused(t, old, loaded, k)
	if err := token.UnloadKey(loaded); err != nil {
		t.Errorf("unloading a key of an old generation: %v", err)
	}
	again := mustLoad(t, token, k)
	if again.Generation != token.Generation() {
		t.Errorf("generation %d of a key, %d of the token", again.Generation, token.Generation())
	}
	r.works(t, s, again, k)
	if err := token.UnloadKey(loaded); err != nil {
		t.Errorf("unloading a key of an old generation: %v", err)
	}
	r.works(t, s, again, k)
	m := r.want[k.spec][0]
	out := room(k.spec)
	if n, err := old.Use(again, k.spec, m, input(k, m), out); err == nil || n != 0 {
		t.Errorf("a session of an old generation: %d, %v", n, err)
	}
	wiped(t, out)
	_ = old.Close() // a dead session may or may not be closable
	mustClose(t, s)
}

// testDamaged loads what is not a wrapped key. A key of another spec is one too.
func (r *keyRig) testDamaged(t *testing.T, token hsm.KeyToken, k *storedKey) {
	bad := [][]byte{nil, {}, k.wrapped[:1], k.wrapped[1:], k.wrapped[:len(k.wrapped)-1], k.wrapped[:len(k.wrapped)-8],
		append(bytes.Clone(k.wrapped), 0), append(bytes.Clone(k.wrapped), make([]byte, 8)...), make([]byte, len(k.wrapped))}
	for i := range 24 {
		flipped := bytes.Clone(k.wrapped)
		flipped[i*(len(flipped)-1)/23] ^= 1 << (i % 8)
		bad = append(bad, flipped)
	}
	for i, wrapped := range bad {
		if loaded, err := token.LoadKey(k.spec, wrapped); err == nil {
			t.Errorf("damaged bytes %d were loaded: %v", i, loaded)
		} else if _, ok := errors.AsType[*hsm.Error](err); !ok {
			t.Errorf("damaged bytes %d: %v", i, err)
		}
	}
	for s := range r.want {
		// Secret keys are any bytes, and a token cannot tell: that a wrapped key is of its spec has to be known from where it is stored.
		if s == k.spec || s.Info().Public == 0 {
			continue
		}
		if _, err := token.LoadKey(s, k.wrapped); err == nil {
			t.Errorf("a key for %v was loaded as one for %v", k.spec, s)
		}
	}
	s := mustKeySession(t, token)
	r.works(t, s, mustLoad(t, token, k), k)
	mustClose(t, s)
}

func (r *keyRig) testKeyConcurrent(t *testing.T, token hsm.KeyToken, k *storedKey) {
	loaded := mustLoad(t, token, k)
	m := r.want[k.spec][0]
	var wg sync.WaitGroup
	for range 4 {
		s := mustKeySession(t, token)
		wg.Go(func() {
			own := *k
			for round := range 12 {
				if err := useAndVerify(s, loaded, &own, m, round); err != nil {
					t.Error(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Go(func() { // keys come and go meanwhile
		for range 12 {
			other, err := token.LoadKey(k.spec, k.wrapped)
			if err == nil {
				err = token.UnloadKey(other)
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	if err := token.UnloadKey(loaded); err != nil {
		t.Error(err)
	}
}

// testBesideRounds has a session do rounds and use keys in turn.
func (r *keyRig) testBesideRounds(t *testing.T, token hsm.KeyToken, k *storedKey) {
	loaded := mustLoad(t, token, k)
	s := mustKeySession(t, token)
	want, _ := mustRound(t, s, pattern(5), 16)
	for range 3 {
		r.works(t, s, loaded, k)
		if got, _ := mustRound(t, s, pattern(5), 16); !bytes.Equal(got, want) {
			t.Error("a key was used and the round's images are others")
		}
	}
	mustClose(t, s)
}

// testDiffer: two keys are two keys, and the same key loaded twice is one.
func (r *keyRig) testDiffer(t *testing.T, token hsm.KeyToken, k *storedKey) {
	if k.spec == keyspec.RSA3072 || k.spec == keyspec.RSA4096 {
		return // they take long to make, and RSA_2048 says the same
	}
	other := makeStored(t, token, k.spec)
	if bytes.Equal(other.wrapped, k.wrapped) || k.spki != nil && bytes.Equal(other.spki, k.spki) {
		t.Error("the same key was made twice")
	}
	s := mustKeySession(t, token)
	a, b := mustLoad(t, token, k), mustLoad(t, token, other)
	r.works(t, s, b, other)
	r.works(t, s, a, k)
	if other.mac != nil && bytes.Equal(other.mac, k.mac) {
		t.Error("two keys give the same MAC, or the same image")
	}
	mustClose(t, s)
}
