package hsm_test

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
)

// wrappingKey is an RSA key to import under.
type wrappingKey struct {
	*hsm.Key
	public []byte
	rsa    *rsa.PublicKey
}

func (r *keyRig) wrapping(t testing.TB, s keyspec.Spec) wrappingKey {
	t.Helper()
	k, public, err := r.Generate(s)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return wrappingKey{k, public, parsed.(*rsa.PublicKey)}
}

// imported is a ring's key of what Import gave.
func (r *keyRig) imported(t testing.TB, k *hsm.Key, public []byte) *testKey {
	t.Helper()
	r.ids++
	k.ID = [32]byte{r.ids}
	p := &testKey{Key: k}
	if public != nil {
		var err error
		if p.public, err = pubkey.Parse(k.Spec, public); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// image is what an AES or HMAC key gives of one input.
func (r *keyRig) image(t testing.TB, k *hsm.Key) []byte {
	t.Helper()
	m, in, out := hsm.MAC, []byte("sixteen bytes it"), make([]byte, 512)
	if k.Spec == keyspec.AES256 {
		m = hsm.EncryptBlocks
	}
	j := &hsm.KeyJob{Key: k, Mechanism: m, In: in, Out: out}
	if err := r.Run(j, time.Now()); err != nil {
		t.Fatal(err)
	}
	return out[:j.N]
}

// TestRingImports: a key goes from one ring to another, whose token has other roots, and is the same there.
func TestRingImports(t *testing.T) {
	from := newKeyRig(t, 1, nil)
	to := newKeyRig(t, 0, func(c *hsm.KeyRingConfig) { c.Tokens = []hsm.Token{hsmtest.NewFaulty(softTokenN(t, 1))} })
	w := to.wrapping(t, keyspec.RSA3072)
	for _, s := range []keyspec.Spec{keyspec.AES256, keyspec.HMAC224, keyspec.P384, keyspec.Secp256k1, keyspec.Ed25519, keyspec.RSA2048} {
		if ok, inside, err := to.Imports(s, keyspec.WrapRSAAES256); !ok || inside || err != nil {
			t.Errorf("%v: %t, inside %t", s, ok, inside)
		}
		k, public, err := from.Generate(s)
		if err != nil {
			t.Fatal(err)
		}
		k.ID = [32]byte{200, byte(s)}
		material, err := from.Export(k, keyspec.WrapRSAAES256, w.public)
		if err != nil {
			t.Fatalf("%v: %v", s, err)
		}
		got, gotPublic, err := to.Import(s, w.Key, keyspec.WrapRSAAES256, material)
		if err != nil || !bytes.Equal(gotPublic, public) || got.Root != w.Root || got.Software {
			t.Fatalf("%v: %+v, %x, want %x, %v", s, got, gotPublic, public, err)
		}
		if got.Root == k.Root {
			t.Fatal("the tokens have the same roots")
		}
		again := to.imported(t, got, gotPublic)
		if public == nil {
			if !bytes.Equal(to.image(t, again.Key), from.image(t, k)) {
				t.Errorf("%v: another key", s)
			}
		} else if err := to.use(t, again, hsmtest.FirstOf(hsm.MechanismsOf(s))); err != nil {
			t.Errorf("%v: %v", s, err)
		}
		if _, _, err := from.Import(s, w.Key, keyspec.WrapRSAAES256, material); !errors.Is(err, hsm.ErrNoRoot) {
			t.Errorf("%v, under a key of another token: %v", s, err)
		}
		if _, err := to.Export(k, keyspec.WrapRSAAES256, w.public); !errors.Is(err, hsm.ErrNoRoot) {
			t.Errorf("%v, a key of another token: %v", s, err)
		}
		for name, public := range map[string][]byte{"none": nil, "small": to.wrapping(t, keyspec.RSA2048).public} {
			if _, err := from.Export(k, keyspec.WrapRSAAES256, public); !errors.Is(err, hsm.ErrPeerKey) {
				t.Errorf("%v, for a public key that is %s: %v", s, name, err)
			}
		}
		if _, err := from.Export(k, keyspec.WrapOAEP256, w.public); !errors.Is(err, hsm.ErrNotOffered) {
			t.Errorf("%v, not under an AES key: %v", s, err)
		}
	}
	for _, s := range []keyspec.Spec{keyspec.MLDSA44, keyspec.MLKEM768, keyspec.None} {
		ok, _, _ := to.Imports(s, keyspec.WrapRSAAES1)
		if _, _, err := to.Import(s, w.Key, keyspec.WrapRSAAES1, make([]byte, 500)); ok || !errors.Is(err, hsm.ErrNotOffered) {
			t.Errorf("%v: %t, %v", s, ok, err)
		}
	}
	if ok, _, _ := to.Imports(keyspec.RSA2048, keyspec.WrapOAEP256); ok {
		t.Error("an RSA key in an RSA block")
	}
	for name, k := range map[string]*hsm.Key{"none": nil, "no RSA key": to.key(t, keyspec.P256).Key} {
		if _, _, err := to.Import(keyspec.AES256, k, keyspec.WrapOAEP256, make([]byte, 384)); !errors.Is(err, hsm.ErrNotOffered) {
			t.Errorf("a wrapping key that is %s: %v", name, err)
		}
	}
}

// TestBadMaterialDoesNotCostTheToken, whatever a module says of it, however often; with a canary that fails too, it is the token.
func TestBadMaterialDoesNotCostTheToken(t *testing.T) {
	r := newKeyRig(t, 1, nil)
	w := r.wrapping(t, keyspec.RSA2048)
	bring := func() error {
		_, _, err := r.Import(keyspec.AES256, w.Key, keyspec.WrapOAEP256, bytes.Repeat([]byte{1}, 256))
		return err
	}
	for range 20 {
		if err := bring(); err != hsm.ErrMaterial { //nolint:errorlint // it tells nothing more
			t.Fatal(err)
		}
	}
	if _, _, err := r.Import(keyspec.AES256, w.Key, keyspec.WrapOAEP256, make([]byte, hsm.MaterialMax+1)); !errors.Is(err, hsm.ErrMaterial) {
		t.Error(err)
	}
	if st := r.Stats().Slots[0]; st.State.String() != "serving" || st.Quarantines != 0 || st.Alarms != 0 || st.Canaries == 0 {
		t.Errorf("%+v", st)
	}
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Round, Times: hsmtest.Forever, CKR: hsm.CKR_DEVICE_REMOVED})
	eventually(t, "the token is in quarantine", func() bool { return hsm.Final(bring()) == hsm.Unavailable && r.Stats().Slots[0].Quarantines > 0 })
	r.tokens[0].Clear()
	r.heals(t)
	if err := bring(); !errors.Is(err, hsm.ErrMaterial) {
		t.Error(err)
	}
}

// doubtful are the codes of a call on the material that a token gives for bad material as well as for faults of its own.
var doubtful = []hsm.CKR{hsm.CKR_HOST_MEMORY, hsm.CKR_DEVICE_ERROR, hsm.CKR_DEVICE_MEMORY, hsm.CKR_TOKEN_RESOURCE_EXCEEDED, hsm.CKR_FUNCTION_CANCELED,
	hsm.CKR_VENDOR_DEFINED, hsm.CKR_VENDOR_DEFINED + 0x1234}

// TestDoubtfulMaterial: what a token says of the material that it also says when it is broken is the material's fault while its canary is well, however often;
// another token is asked, and takes it if it can.
func TestDoubtfulMaterial(t *testing.T) {
	m := hsmtest.MakeMaterial(t, keyspec.AES256)
	for _, code := range doubtful {
		fault := &hsm.MaterialFault{Cause: &hsm.Error{CKR: code, Function: "C_UnwrapKey"}}
		r := newKeyRig(t, 1, nil)
		w := r.wrapping(t, keyspec.RSA2048)
		material := hsmtest.WrapMaterial(t, keyspec.WrapOAEP256, w.rsa, m.Plain)
		r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Import, Err: fault, Times: 8})
		for range 8 {
			_, _, err := r.Import(m.Spec, w.Key, keyspec.WrapOAEP256, material)
			if code == hsm.CKR_DEVICE_MEMORY || code == hsm.CKR_TOKEN_RESOURCE_EXCEEDED { // it may have room later
				if hsm.Final(err) != hsm.Throttled || errors.Is(err, hsm.ErrMaterial) {
					t.Errorf("%v: %v", code, err)
				}
			} else if err != hsm.ErrMaterial { //nolint:errorlint // it tells nothing more
				t.Errorf("%v: %v", code, err)
			}
		}
		if st := r.Stats().Slots[0]; st.State.String() != "serving" || st.Quarantines != 0 || st.Alarms != 0 || st.Canaries == 0 {
			t.Errorf("%v: %+v", code, st)
		}
		if _, _, err := r.Import(m.Spec, w.Key, keyspec.WrapOAEP256, material); err != nil {
			t.Errorf("after %v: %v", code, err)
		}
	}
	r := newKeyRig(t, 2, nil)
	w := r.wrapping(t, keyspec.RSA2048)
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Import, Err: &hsm.MaterialFault{Cause: &hsm.Error{CKR: hsm.CKR_DEVICE_ERROR, Function: "C_Sign"}}})
	if _, _, err := r.Import(m.Spec, w.Key, keyspec.WrapOAEP256, hsmtest.WrapMaterial(t, keyspec.WrapOAEP256, w.rsa, m.Plain)); err != nil {
		t.Errorf("with another token: %v", err)
	}
}

// TestImportsIsAskedOnce: a token that is slow to say what it imports is asked once, whoever waits, and keeps its place; nobody is told no meanwhile.
func TestImportsIsAskedOnce(t *testing.T) {
	r := newKeyRig(t, 1, func(c *hsm.KeyRingConfig) { c.Timeout = 100 * time.Millisecond })
	hang := make(chan struct{})
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Imports, Hang: hang})
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if ok, _, err := r.Imports(keyspec.AES256, keyspec.WrapOAEP256); ok || hsm.Final(err) != hsm.Unavailable {
				t.Errorf("not known yet: %t, %v", ok, err)
			}
		})
	}
	wg.Wait()
	if n := r.tokens[0].Calls(hsmtest.Imports); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if st := r.Stats().Slots[0]; st.Quarantines != 0 {
		t.Errorf("%+v", st)
	}
	close(hang)
	eventually(t, "the answer is there", func() bool {
		ok, inside, err := r.Imports(keyspec.AES256, keyspec.WrapOAEP256)
		return ok && !inside && err == nil
	})
}

// lateImport is a token whose import begins to read the material when it is let go.
type lateImport struct {
	hsm.ImportToken
	let  chan struct{}
	read chan []byte
}

func (l lateImport) Info() hsm.TokenInfo {
	info := l.ImportToken.Info()
	info.InProcess = false
	return info
}

func (l lateImport) ImportKey(_, _ keyspec.Spec, _ []byte, _ keyspec.Wrapping, material []byte) (wrapped, public []byte, err error) {
	<-l.let
	l.read <- bytes.Clone(material)
	return nil, nil, hsm.ErrMaterial
}

// TestLateImportKeepsItsMaterial: the caller has its memory back when Import returns, a call that hangs in the module has its own.
func TestLateImportKeepsItsMaterial(t *testing.T) {
	token := lateImport{softToken(t).(hsm.ImportToken), make(chan struct{}), make(chan []byte, 1)}
	w := newKeyRig(t, 0, func(c *hsm.KeyRingConfig) { c.Tokens = []hsm.Token{token} }).wrapping(t, keyspec.RSA2048)
	r := newKeyRig(t, 0, func(c *hsm.KeyRingConfig) { c.Tokens, c.GenerateTimeout = []hsm.Token{token}, time.Second })
	material := bytes.Repeat([]byte{7}, 256)
	if _, _, err := r.Import(keyspec.AES256, w.Key, keyspec.WrapOAEP256, material); !errors.Is(err, hsm.ErrTimeout) {
		t.Fatal(err)
	}
	clear(material)
	close(token.let)
	if got := <-token.read; !bytes.Equal(got, bytes.Repeat([]byte{7}, 256)) {
		t.Errorf("the call read %x", got[:8])
	}
}

// TestImportFaults: what is repaired for the making of keys is for their import and export; what is stored and does not unwrap is nobody's material.
func TestImportFaults(t *testing.T) {
	r := newKeyRig(t, 2, nil)
	w, peer := r.wrapping(t, keyspec.RSA2048), r.wrapping(t, keyspec.RSA3072)
	m := hsmtest.MakeMaterial(t, keyspec.HMAC256)
	material := hsmtest.WrapMaterial(t, keyspec.WrapOAEP256, w.rsa, m.Plain)
	k := r.key(t, keyspec.HMAC256)
	do := map[hsmtest.Op]func() error{
		hsmtest.Import: func() error {
			_, _, err := r.Import(m.Spec, w.Key, keyspec.WrapOAEP256, material)
			return err
		},
		hsmtest.Export: func() error {
			_, err := r.Export(k.Key, keyspec.WrapRSAAES256, peer.public)
			return err
		},
	}
	for op, call := range do {
		for _, code := range []hsm.CKR{hsm.CKR_USER_NOT_LOGGED_IN, hsm.CKR_SESSION_HANDLE_INVALID, hsm.CKR_DEVICE_ERROR, hsm.CKR_DEVICE_REMOVED, hsm.CKR_DEVICE_MEMORY} {
			r.tokens[0].Add(hsmtest.Fault{Op: op, CKR: code})
			if err := call(); err != nil {
				t.Errorf("%v, once: %v", code, err)
			}
			r.heals(t)
		}
		for _, code := range []hsm.CKR{hsm.CKR_WRAPPED_KEY_INVALID, hsm.CKR_WRAPPED_KEY_LEN_RANGE} {
			before := r.Stats().Slots[0].Alarms
			r.tokens[0].Add(hsmtest.Fault{Op: op, CKR: code, Function: "C_UnwrapKey"})
			if err := call(); err != nil { // the next replica knows better
				t.Errorf("%v of one: %v", code, err)
			}
			for _, token := range r.tokens {
				token.Add(hsmtest.Fault{Op: op, CKR: code, Function: "C_UnwrapKey"})
			}
			if err := call(); hsm.Outcome(err) != hsm.Unavailable || errors.Is(err, hsm.ErrMaterial) {
				t.Errorf("%v: %v", code, err)
			}
			if r.Stats().Slots[0].Alarms == before {
				t.Errorf("%v: no alarm", code)
			}
		}
	}
	hang := make(chan struct{})
	defer close(hang)
	slow := newKeyRig(t, 2, func(c *hsm.KeyRingConfig) { c.GenerateTimeout = 2 * time.Second })
	slow.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Import, Hang: hang, Times: 2})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, _, err := slow.Import(m.Spec, w.Key, keyspec.WrapOAEP256, material); !errors.Is(err, hsm.ErrTimeout) {
				t.Errorf("hangs: %v", err)
			}
		})
	}
	wg.Wait()
	if _, _, err := slow.Import(m.Spec, w.Key, keyspec.WrapOAEP256, material); err != nil {
		t.Errorf("while they hang, by the other token: %v", err)
	}
}

// rsaOnly is a token that offers RSA only: other keys are for software.
type rsaOnly struct{ hsm.ImportToken }

func (o rsaOnly) Keys(s keyspec.Spec) hsm.Mechanisms {
	if s.Info().Family != keyspec.RSA {
		return 0
	}
	return o.ImportToken.Keys(s)
}

// noImports is a token that makes keys and imports none.
type noImports struct{ hsm.KeyToken }

// TestImportInSoftware: the RSA key is in the token or in software, what comes in is a software key, and no other way is taken where that is not allowed.
func TestImportInSoftware(t *testing.T) {
	root := hsm.RootID{5}
	soft := softToken(t).(hsm.ImportToken)
	for name, token := range map[string]hsm.Token{"RSA in the token": rsaOnly{soft}, "RSA in software": noKeys{soft}} {
		t.Run(name, func(t *testing.T) {
			r := newKeyRig(t, 0, func(c *hsm.KeyRingConfig) { c.Tokens, c.Software, c.Root = []hsm.Token{token}, sealedKeys(), root })
			w, peer := r.wrapping(t, keyspec.RSA2048), r.wrapping(t, keyspec.RSA3072)
			if w.Software != (name == "RSA in software") {
				t.Fatalf("%+v", w.Key)
			}
			for _, s := range []keyspec.Spec{keyspec.AES256, keyspec.HMAC256, keyspec.P256, keyspec.Ed25519} {
				m := hsmtest.MakeMaterial(t, s)
				for wrapping := keyspec.WrapOAEP1; wrapping <= keyspec.WrapRSAAES256; wrapping++ {
					if ok, inside, err := r.Imports(s, wrapping); !ok || inside || err != nil {
						t.Errorf("%v, %v: %t, %t", s, wrapping, ok, inside)
					}
					material := hsmtest.WrapMaterial(t, wrapping, w.rsa, m.Plain)
					k, public, err := r.Import(s, w.Key, wrapping, material)
					if err != nil || !k.Software || k.Root != root || !bytes.Equal(public, m.Public) {
						t.Fatalf("%v, %v: %+v, %v", s, wrapping, k, err)
					}
					if err := r.use(t, r.imported(t, k, public), hsmtest.FirstOf(hsm.MechanismsOf(s))); err != nil {
						t.Error(err)
					}
					for name, bad := range map[string][]byte{"nothing": nil, "cut": material[:len(material)-1], "RSA cut": material[:255],
						"ones": bytes.Repeat([]byte{1}, len(material)), "more": append(bytes.Clone(material), 0)} {
						if k, _, err := r.Import(s, w.Key, wrapping, bad); !errors.Is(err, hsm.ErrMaterial) || k != nil {
							t.Errorf("%v, %v, %s: %+v, %v", s, wrapping, name, k, err)
						}
					}
					if wrapping == keyspec.WrapRSAAES1 {
						out, err := r.Export(k, wrapping, peer.public)
						if err != nil {
							t.Fatal(err)
						}
						if _, again, err := r.Import(s, peer.Key, wrapping, out); err != nil || !bytes.Equal(again, public) {
							t.Errorf("%v: exported and imported: %v", s, err)
						}
					}
				}
			}
			if n := r.Stats().Handles; len(n) > 0 && n[0].Loaded != 0 {
				t.Errorf("wrapping keys stay loaded: %+v", n)
			}
			not := newKeyRig(t, 0, func(c *hsm.KeyRingConfig) { c.Tokens = []hsm.Token{token} })
			if ok, _, _ := not.Imports(keyspec.P256, keyspec.WrapOAEP256); ok {
				t.Error("not allowed, and imported")
			}
			if _, _, err := not.Import(keyspec.P256, w.Key, keyspec.WrapOAEP256, make([]byte, 256)); !errors.Is(err, hsm.ErrNotOffered) {
				t.Errorf("not allowed: %v", err)
			}
		})
	}
	r := newKeyRig(t, 0, func(c *hsm.KeyRingConfig) {
		c.Tokens, c.Software, c.Root = []hsm.Token{noImports{soft}}, sealedKeys(), root
	})
	w, k := r.wrapping(t, keyspec.RSA3072), r.key(t, keyspec.P256)
	if ok, _, _ := r.Imports(keyspec.P256, keyspec.WrapOAEP256); ok {
		t.Error("a token that imports nothing")
	}
	if _, _, err := r.Import(keyspec.P256, w.Key, keyspec.WrapOAEP256, make([]byte, 384)); !errors.Is(err, hsm.ErrNotOffered) {
		t.Errorf("a token that imports nothing: %v", err)
	}
	if _, err := r.Export(k.Key, keyspec.WrapRSAAES256, w.public); !errors.Is(err, hsm.ErrNotOffered) {
		t.Errorf("a token that exports nothing: %v", err)
	}
}
