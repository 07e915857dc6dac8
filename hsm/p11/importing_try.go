package p11

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // #nosec: RSAES_OAEP_SHA_1
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/keywrap"
	"github.com/miekg/pkcs11"
)

// wrappings is more than there are.
const wrappings = keyspec.WrapRSAAES256 + 1

// importing is what has been found out about keys of one spec that come in from outside, and leave for other tokens.
type importing struct {
	mu    sync.Mutex // single flight
	known atomic.Pointer[importOffers]
}

// importOffers are of one spec.
type importOffers struct {
	spec    keyspec.Spec
	routes  [wrappings]route
	exports [wrappings]bool
	// answered says that the token has answered; the rest is asked again at the time again, or of a generation after this.
	answered   [wrappings]bool
	again      time.Time
	wait       time.Duration
	generation uint64
}

// Imports are asked again after importsWaitMin, and then twice as long each time, up to importsWaitMax.
const (
	importsWaitMin = time.Second
	importsWaitMax = time.Minute
)

// due says that something is to be asked again.
func (o *importOffers) due(generation uint64) bool {
	return o.wait > 0 && (generation != o.generation || !time.Now().Before(o.again))
}

// route is how keys come in, or the error that says why they do not.
func (o *importOffers) route(w keyspec.Wrapping) (route, error) {
	if o.routes[w] == noRoute {
		return noRoute, o.lacks(w, "importing")
	}
	return o.routes[w], nil
}

func (o *importOffers) lacks(w keyspec.Wrapping, what string) error {
	if !o.answered[w] {
		return fmt.Errorf("%w: whether there is %s %s by %s is not known yet", hsm.ErrUnavailable, what, o.spec, w)
	}
	return fmt.Errorf("%w: %s %s by %s", hsm.ErrNotOffered, what, o.spec, w)
}

// Imports tries, once for each spec: a key made by this process is brought in by every wrapping, and is used; then it is taken out and brought in again. Larger
// RSA keys are said to do what those of 2048 bits do. What has no answer, because the token was not well, is tried again later.
func (t *Token) Imports(s keyspec.Spec, w keyspec.Wrapping) (ok, inside bool, err error) {
	if !hsm.Importable(s, w) {
		return false, false, nil
	}
	o, err := t.imports(s)
	if err != nil {
		return false, false, err
	}
	way, err := o.route(w)
	if errors.Is(err, hsm.ErrNotOffered) {
		return false, false, nil
	}
	return err == nil, way == throughToken || way == throughProcess && hsm.Hybrid(w), err
}

// imports is of a spec that keys have. The error, with what is known, is one that ended the asking: the token, a session or a handle is lost.
func (t *Token) imports(s keyspec.Spec) (*importOffers, error) {
	k := &t.importing[s]
	if o := k.known.Load(); o != nil && !o.due(t.generation.Load()) {
		return o, nil
	} else if o == nil {
		k.mu.Lock()
	} else if !k.mu.TryLock() {
		return o, nil // somebody asks again
	}
	defer k.mu.Unlock()
	before := k.known.Load()
	if before != nil && !before.due(t.generation.Load()) {
		return before, nil
	}
	o := &importOffers{spec: s}
	if before != nil {
		*o = *before
	}
	o.generation = t.generation.Load()
	err := t.tryImports(o)
	o.wait = min(max(2*o.wait, importsWaitMin), importsWaitMax)
	if o.whole() {
		o.wait = 0
	}
	o.again = time.Now().Add(o.wait)
	k.known.Store(o)
	return o, err
}

// whole says that the token has answered everything.
func (o *importOffers) whole() bool {
	for w := keyspec.WrapOAEP1; w < wrappings; w++ {
		if hsm.Importable(o.spec, w) && !o.answered[w] {
			return false
		}
	}
	return true
}

// tryImports fills in what has no answer yet. The error is one that ends it: the token, a session or a handle is lost.
func (t *Token) tryImports(o *importOffers) error {
	under, err := t.keyOffer(keyspec.RSA2048)
	if err != nil {
		return err
	}
	offer, err := t.keyOffer(o.spec)
	switch {
	case err != nil && !ofCall(err):
		return err
	case err != nil:
		return nil // no answer
	case under.mechanisms == 0 || offer.mechanisms == 0: // nothing to import under, or to import
		o.all()
		return nil
	case o.spec == keyspec.RSA3072 || o.spec == keyspec.RSA4096:
		smallest, err := t.imports(keyspec.RSA2048)
		if err != nil {
			return err
		}
		o.routes, o.exports, o.answered = smallest.routes, smallest.exports, smallest.answered
		return nil
	}
	p, err := newProbe(o.spec)
	if err != nil {
		return err
	}
	if p == nil {
		o.all()
		return nil
	}
	err = t.withKeySession(func(slot uint, session pkcs11.SessionHandle) error {
		root, err := t.findRoot(session, wrappingRoot)
		standIn := errors.Is(err, hsm.ErrNoRoots)
		if standIn {
			root, err = t.standIn(session)
		}
		if err != nil {
			return err
		}
		p.t, p.slot, p.root, p.raw, p.offer = t, slot, root, under.raw, offer
		if p.wrapping, err = t.probeKey(slot, session, root, standIn); err != nil {
			return err
		}
		return p.try(o)
	})
	if err != nil {
		t.probing.Store(nil) // another root may be there now
	}
	return err
}

// probeKey is the RSA key that keys are brought in under to see whether they can be: one for all specs, but of a token without roots. It needs mod.mu.
func (t *Token) probeKey(slot uint, session pkcs11.SessionHandle, root pkcs11.ObjectHandle, standIn bool) (*madeKey, error) {
	if k := t.probing.Load(); k != nil && !standIn {
		return k, nil
	}
	k, err := t.makeKey(slot, session, root, keyspec.RSA2048)
	if err == nil && !standIn {
		t.probing.Store(&k)
	}
	return &k, err
}

// all notes that there is no more to ask.
func (o *importOffers) all() {
	for w := range o.answered {
		o.answered[w] = true
	}
}

// ofCall says that an error tells of the one call, which gave no answer; after another there is no point in going on.
func ofCall(err error) bool {
	e, ok := errors.AsType[*hsm.Error](err)
	return ok && !lost(e.CKR)
}

// importProbe is a key made by this process, to try with.
type importProbe struct {
	spec     keyspec.Spec
	plain    []byte
	public   []byte // DER SubjectPublicKeyInfo; nil for secret keys
	t        *Token
	slot     uint
	root     pkcs11.ObjectHandle
	wrapping *madeKey       // of 2048 bits
	raw      hsm.Mechanisms // of the wrapping key
	offer    *keyOffer      // of the spec
}

// generator is the public half of the secp256k1 key whose scalar is 1: Go's library has no such keys.
const generator = "\x30\x56\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x0a\x03\x42\x00\x04" +
	"\x79\xbe\x66\x7e\xf9\xdc\xbb\xac\x55\xa0\x62\x95\xce\x87\x0b\x07\x02\x9b\xfc\xdb\x2d\xce\x28\xd9\x59\xf2\x81\x5b\x16\xf8\x17\x98" +
	"\x48\x3a\xda\x77\x26\xa3\xc4\x65\x5d\xa4\xfb\xfc\x0e\x11\x08\xa8\xfd\x17\xb4\x48\xa6\x85\x54\x19\x9c\x47\xd0\x8f\xfb\x10\xd4\xb8"

// newProbe is nil for keys that this package cannot bring in: of Ed25519 keys the public half is not to be had from a signature.
func newProbe(s keyspec.Spec) (*importProbe, error) {
	p := &importProbe{spec: s}
	switch {
	case secretKey(s.Info().Family):
		p.plain = make([]byte, s.Info().Bits/8)
		_, _ = rand.Read(p.plain) // never fails
		return p, nil
	case s.Info().Family == keyspec.RSA:
		k, err := rsa.GenerateKey(rand.Reader, s.Info().Bits)
		if err != nil {
			return nil, err
		}
		if p.plain, err = x509.MarshalPKCS8PrivateKey(k); err != nil {
			return nil, err
		}
		p.public, err = x509.MarshalPKIXPublicKey(&k.PublicKey)
		return p, err
	case s == keyspec.Secp256k1:
		p.plain, p.public = shortPKCS8(s, append(make([]byte, 31), 1)), []byte(generator)
		return p, nil
	case s.Info().Family == keyspec.EC:
		k, err := ecdsa.GenerateKey(map[keyspec.Spec]elliptic.Curve{keyspec.P256: elliptic.P256(), keyspec.P384: elliptic.P384(), keyspec.P521: elliptic.P521()}[s], rand.Reader)
		if err != nil {
			return nil, err
		}
		scalar, err := k.Bytes()
		if err != nil {
			return nil, err
		}
		p.plain = shortPKCS8(s, scalar)
		p.public, err = x509.MarshalPKIXPublicKey(&k.PublicKey)
		return p, err
	}
	return nil, nil
}

// shortPKCS8 is the PrivateKeyInfo of an EC key without the public half, which fits into every RSA block.
func shortPKCS8(s keyspec.Spec, scalar []byte) []byte {
	in := func(tag byte, parts ...[]byte) []byte {
		content := bytes.Join(parts, nil)
		return append([]byte{tag, byte(len(content))}, content...)
	}
	ecPublicKey := []byte("\x06\x07\x2a\x86\x48\xce\x3d\x02\x01")
	return in(0x30, []byte{2, 1, 0}, in(0x30, ecPublicKey, curves[s][0]), in(0x04, in(0x30, []byte{2, 1, 1}, in(0x04, scalar))))
}

// wrap wraps the key as whoever imports one does.
func (p *importProbe) wrap(w keyspec.Wrapping) ([]byte, error) {
	public, err := x509.ParsePKIXPublicKey(p.wrapping.public)
	if err != nil {
		return nil, err
	}
	first, rest := p.plain, []byte(nil)
	if hsm.Hybrid(w) {
		first = make([]byte, kekBytes)
		_, _ = rand.Read(first) // never fails
		block, err := newAES(first)
		if err != nil {
			return nil, err
		}
		rest = keywrap.Wrap(nil, block, p.plain)
	}
	h := hash.Hash(sha256.New())
	if a, _ := hsm.OAEPOf(w); a == keyspec.OAEPSHA1 {
		h = sha1.New() // #nosec
	}
	sealed, err := rsa.EncryptOAEP(h, rand.Reader, public.(*rsa.PublicKey), first, nil)
	return append(sealed, rest...), err
}

func newAES(key []byte) (cipher.Block, error) { return aes.NewCipher(key) }

// try finds the first route that works for each wrapping, and whether what comes in goes out again. What has no answer stays open. The error is one that ends it.
func (p *importProbe) try(o *importOffers) error {
	for w := keyspec.WrapOAEP1; w < wrappings; w++ {
		if !hsm.Importable(p.spec, w) || o.answered[w] {
			continue
		}
		switch err := p.tryWrapping(o, w); {
		case err == nil:
			o.answered[w] = true
		case !ofCall(err):
			return err
		}
	}
	return nil
}

func (p *importProbe) tryWrapping(o *importOffers, w keyspec.Wrapping) error {
	material, err := p.wrap(w)
	if err != nil {
		return err
	}
	for _, way := range []route{throughToken, throughProcess} {
		made, err := p.bring(way, w, material)
		if isAnswer(err) {
			continue
		}
		if err != nil {
			return err
		}
		o.routes[w] = way
		if !hsm.Hybrid(w) {
			return nil
		}
		switch good, err := p.export(way, w, made); {
		case err == nil:
			o.exports[w] = good
		case !isAnswer(err):
			return err
		}
		return nil
	}
	return nil
}

// isAnswer says that an error is the token's answer to what it was asked to try.
func isAnswer(err error) bool {
	_, doubtful := errors.AsType[*hsm.MaterialFault](err)
	return !doubtful && errors.Is(err, hsm.ErrMaterial) || refuses(err)
}

// bring brings the key in on a session of its own, which a refusal may spoil, loads and uses it.
func (p *importProbe) bring(way route, w keyspec.Wrapping, material []byte) (made madeKey, err error) {
	err = p.onSession(func(session pkcs11.SessionHandle) (err error) {
		c := &carrier{t: p.t, session: session, raw: p.raw}
		defer c.destroy(&err)
		if err := c.load(p.slot, p.root, keyspec.RSA2048, p.wrapping.wrapped); err != nil {
			return err
		}
		if made, err = c.bring(p.root, p.spec, way, w, material); err != nil {
			return err
		}
		if !bytes.Equal(made.public, p.public) || p.public == nil && !bytes.Equal(made.mac, secretImage(p.spec, p.plain)) {
			return hsm.ErrWrong
		}
		key, err := c.keep(p.t.unwrap(session, p.root, p.spec, made.wrapped))
		if err != nil {
			return err
		}
		m := mechanismsOf(p.spec)[0]
		return p.t.checkUse(p.spec, m, p.offer.raw.Has(m), &made, uint(session), uint(key))
	})
	return made, err
}

// export takes the key out for the wrapping key's public half, and brings it in again.
func (p *importProbe) export(way route, w keyspec.Wrapping, made madeKey) (good bool, err error) {
	var material []byte
	if err := p.onSession(func(session pkcs11.SessionHandle) (err error) {
		material, err = p.t.export(p.slot, session, p.root, p.spec, made.wrapped, w, p.wrapping.public)
		return err
	}); err != nil {
		return false, err
	}
	_, err = p.bring(way, w, material)
	return err == nil, err
}

func (p *importProbe) onSession(f func(session pkcs11.SessionHandle) error) error {
	session, err := p.t.openKeySession(p.slot, false)
	if err != nil {
		return err
	}
	defer p.t.mod.ctx.CloseSession(session) // it may have an operation left
	return f(session)
}
