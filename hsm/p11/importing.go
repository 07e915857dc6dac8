package p11

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/keywrap"
	"github.com/keyplane/keyplane/internal/pubkey"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/miekg/pkcs11"
)

var _ hsm.ImportToken = (*Token)(nil)

// A key comes in by one of two routes, and then goes the way of a key that was made here: it is a session object that is sensitive and can be wrapped,
// its attributes are held to what it was to be, it is wrapped under the wrapping root and destroyed, and what was wrapped is loaded and used.
//
//	throughToken    C_UnwrapKey(CKM_RSA_PKCS_OAEP) of the key, or of the AES key that it is wrapped under,
//	                and then C_UnwrapKey with AES key wrap with padding
//	throughProcess  C_Decrypt of the RSA block (CKM_RSA_PKCS_OAEP, or CKM_RSA_X_509 and our own decoding), and what it gave becomes an AES key in the
//	                token by C_CreateObject, or is wrapped under one for the way into it
//
// Of RSA_AES_KEY_WRAP_* the material is in clear in the token only by either route; by the second, the AES key that it is wrapped under is here.
type route uint8

const (
	noRoute route = iota
	throughToken
	throughProcess
)

// kekBytes is AES-256, the only AES key of RSA_AES_KEY_WRAP_*.
const kekBytes = 32

// importUsages are those of an RSA key while keys are imported under it.
var importUsages = []uint{pkcs11.CKA_DECRYPT, pkcs11.CKA_UNWRAP}

// oaepOf is the RSA part of a wrapping, for C_UnwrapKey and C_WrapKey.
func oaepOf(w keyspec.Wrapping) operation {
	_, m := hsm.OAEPOf(w)
	return fixed[m]
}

func (o *operation) oaep() []*pkcs11.Mechanism {
	return mech(o.mechanism, pkcs11.NewOAEPParams(o.hash, o.mgf, pkcs11.CKZ_DATA_SPECIFIED, nil))
}

// carrier is one import on its way: a session, and the objects in it, which are destroyed at the end whatever happens.
type carrier struct {
	t       *Token
	session pkcs11.SessionHandle
	pad     uint                // AES key wrap with padding
	format  byte                // of what is wrapped with it under the root
	rsa     pkcs11.ObjectHandle // the wrapping key
	size    int                 // bytes of its modulus
	spec    keyspec.Spec        // of the wrapping key
	raw     hsm.Mechanisms      // that are a raw decryption with it
	objects []pkcs11.ObjectHandle
}

func (c *carrier) keep(object pkcs11.ObjectHandle, err error) (pkcs11.ObjectHandle, error) {
	if err == nil {
		c.objects = append(c.objects, object)
	}
	return object, err
}

// destroy destroys the objects and joins what it could not destroy with err.
func (c *carrier) destroy(err *error) {
	for _, object := range c.objects {
		if derr := c.t.mod.ctx.DestroyObject(c.session, object); derr != nil {
			*err = errors.Join(*err, failed("C_DestroyObject", derr))
		}
	}
	c.objects = nil
}

// ImportKey brings the key in on a session of its own, and loads and uses what it wrapped, as GenerateKey does.
func (t *Token) ImportKey(s keyspec.Spec, wrapping keyspec.Spec, private []byte, w keyspec.Wrapping, material []byte) (wrapped, public []byte, err error) {
	if !hsm.Importable(s, w) || wrapping.Info().Family != keyspec.RSA {
		return nil, nil, hsm.ErrNotOffered
	}
	o, err := t.imports(s)
	if err != nil {
		return nil, nil, err
	}
	way, err := o.route(w)
	if err != nil {
		return nil, nil, err
	}
	offer, err := t.keyOffer(wrapping)
	if err != nil {
		return nil, nil, err
	}
	var made madeKey
	err = t.withKeySession(func(slot uint, session pkcs11.SessionHandle) (err error) {
		root, err := t.findRoot(session, wrappingRoot)
		if err != nil {
			return err
		}
		c := &carrier{t: t, session: session, raw: offer.raw}
		defer c.destroy(&err)
		if err := c.load(slot, root, wrapping, private); err != nil {
			return err
		}
		made, err = c.bring(root, s, way, w, material)
		return err
	})
	if err == nil {
		err = ofMaterial(t.prove(s, &made)) // it may be a key whose parts do not fit together
	}
	if err != nil {
		return nil, nil, err
	}
	return made.wrapped, made.public, nil
}

// load brings the wrapping key in. It needs mod.mu.
func (c *carrier) load(slot uint, root pkcs11.ObjectHandle, wrapping keyspec.Spec, private []byte) (err error) {
	if c.format, c.pad, err = c.t.wrapper(slot); err != nil {
		return err
	}
	c.spec, c.size = wrapping, wrapping.Info().Public
	c.rsa, err = c.keep(c.t.unwrapAs(c.session, root, wrapping, form{usages: importUsages}, private))
	return err
}

// bring unwraps the material and wraps the key under the root. It needs mod.mu.
func (c *carrier) bring(root pkcs11.ObjectHandle, s keyspec.Spec, way route, w keyspec.Wrapping, material []byte) (made madeKey, err error) {
	if len(material) < c.size || len(material) > hsm.MaterialMax || hsm.Hybrid(w) == (len(material) == c.size) {
		return made, hsm.ErrMaterial // lengths are no secret
	}
	key, err := c.unwrap(s, way, w, material[:c.size], material[c.size:])
	if err == nil {
		err = c.checked(&made, key, s)
	}
	if err == nil {
		made.wrapped, err = c.t.mod.fns.wrap(uint(c.session), c.pad, uint(root), uint(key.object), c.format)
	}
	if err == nil && s.Info().Family == keyspec.RSA && len(made.wrapped) > rsaWrappedMax(s) {
		err = hsm.ErrMaterial
	}
	if err != nil {
		return madeKey{}, ofMaterial(err)
	}
	return made, nil
}

// rsaWrappedMax is how long a wrapped RSA key of the spec can be: modulus and exponent, five numbers of half their length, and what is around them. Modules take
// exponents that are longer than the modulus, and then an operation takes many times as long.
func rsaWrappedMax(s keyspec.Spec) int { return s.Info().Bits*9/16 + 128 }

// ofMaterial is the error of a call on the material, or on what became of it. It is the material's whatever the token says, since modules say of bad material
// what they say when they are broken too: hsm.ErrMaterial, or where the code could be the token's fault hsm.MaterialFault. Only what no material brings about
// stays as it is: that a session, a login or a handle is lost, or that the token does not protect the key.
func ofMaterial(err error) error {
	e, ok := errors.AsType[*hsm.Error](err)
	switch {
	case errors.Is(err, hsm.ErrKeyRefused), ok && lost(e.CKR):
		return err
	case errors.Is(err, hsm.ErrMaterial), errors.Is(err, hsm.ErrWrong), ok && !passing(e.CKR):
		return hsm.ErrMaterial
	case ok:
		return &hsm.MaterialFault{Cause: err}
	}
	return err
}

// brought is an object that material has become.
type brought struct {
	object pkcs11.ObjectHandle
	// again unwraps it once more in another form: how to learn how long it is, of a token that does not tell.
	again func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error)
}

// unwrap makes an object of the RSA block and what is behind it.
func (c *carrier) unwrap(s keyspec.Spec, way route, w keyspec.Wrapping, block, rest []byte) (key brought, err error) {
	o := oaepOf(w)
	pad := mech(c.pad, nil)
	switch {
	case way == throughToken && !hsm.Hybrid(w):
		return c.object(s, func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
			return c.t.unwrapUnder(c.session, o.oaep(), c.rsa, s, template, block)
		})
	case way == throughToken:
		kek := form{usages: []uint{pkcs11.CKA_UNWRAP}, extractable: true}
		k, err := c.objectOf(keyspec.AES256, kek.template(keyspec.AES256), func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
			return c.t.unwrapUnder(c.session, o.oaep(), c.rsa, keyspec.AES256, template, block)
		})
		if err != nil {
			return key, err
		}
		if n, err := c.length(keyspec.AES256, k); err != nil || n != kekBytes {
			return key, materialOr(err)
		}
		return c.object(s, func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
			return c.t.unwrapUnder(c.session, pad, k.object, s, template, rest)
		})
	}
	opened := make([]byte, c.spec.Info().Result)
	defer secret.Wipe(opened)
	_, m := hsm.OAEPOf(w)
	n, err := c.t.mod.fns.operate(uint(c.session), uint(c.rsa), c.spec, m, c.raw.Has(m), block, opened, make([]byte, c.size))
	if err != nil && !refuses(err) {
		return key, err
	}
	// A wrong padding, a wrong length and a wrong AES key take one way from here, under a key that nobody knows.
	good := err == nil
	kek := make([]byte, kekBytes)
	defer secret.Wipe(kek)
	_, _ = rand.Read(kek) // never fails
	if hsm.Hybrid(w) {
		if good = good && n == kekBytes; good {
			copy(kek, opened)
		}
	} else {
		if n == 0 || secretKey(s.Info().Family) && n != s.Info().Bits/8 {
			good, n = false, 1
		}
		block, err := newAES(kek)
		if err != nil {
			return key, err
		}
		rest = keywrap.Wrap(nil, block, opened[:n])
	}
	object, err := c.t.mod.fns.createKEK(uint(c.session), kek)
	if _, err = c.keep(pkcs11.ObjectHandle(object), err); err != nil {
		return key, err
	}
	key, err = c.object(s, func(template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
		return c.t.unwrapUnder(c.session, pad, pkcs11.ObjectHandle(object), s, template, rest)
	})
	if err == nil && !good {
		err = hsm.ErrMaterial
	}
	return key, err
}

// materialOr is err, or hsm.ErrMaterial where there is none.
func materialOr(err error) error {
	if err == nil {
		return hsm.ErrMaterial
	}
	return err
}

func (c *carrier) object(s keyspec.Spec, again func([]*pkcs11.Attribute) (pkcs11.ObjectHandle, error)) (brought, error) {
	return c.objectOf(s, keyTemplate(s, true), again)
}

func (c *carrier) objectOf(s keyspec.Spec, template []*pkcs11.Attribute, again func([]*pkcs11.Attribute) (pkcs11.ObjectHandle, error)) (brought, error) {
	object, err := c.keep(again(template))
	return brought{object, again}, err
}

// length is how long a secret key is. SoftHSM says 0 of every key that it has unwrapped. There the key is unwrapped once more as one that is not sensitive,
// which the token may tell the length of, is asked for nothing else, and is destroyed.
func (c *carrier) length(s keyspec.Spec, key brought) (n uint, err error) {
	value, err := c.t.attribute(c.session, key.object, pkcs11.CKA_VALUE_LEN)
	if err != nil {
		return 0, failed("C_GetAttributeValue", err)
	}
	if n, ok := (attributes{pkcs11.CKA_VALUE_LEN: value}).ulong(pkcs11.CKA_VALUE_LEN); ok && n != 0 {
		return n, nil
	}
	template := form{extractable: true}.template(s)
	for i, a := range template {
		if a.Type == pkcs11.CKA_SENSITIVE {
			template[i] = pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, false)
		}
	}
	object, err := c.keep(key.again(template))
	if err != nil {
		return 0, err
	}
	return c.t.mod.fns.valueLen(uint(c.session), uint(object))
}

// checked holds an imported key to its spec, and finds its public half or, of a secret key, what it gives.
func (c *carrier) checked(made *madeKey, key brought, s keyspec.Spec) error {
	f := keyForm(s, true)
	a, err := c.t.readNarrow(c.session, key.object, s, f)
	if err != nil {
		return err
	}
	if secretKey(s.Info().Family) {
		n, err := c.length(s, key)
		if err != nil {
			return err
		}
		a[pkcs11.CKA_VALUE_LEN] = pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, n).Value
	}
	if err := refusedKey(s, f.unprotected(a)); err != nil {
		return err
	}
	if len(f.unfit(s, a)) > 0 {
		return hsm.ErrMaterial
	}
	use := c.user(s, key.object)
	switch s.Info().Family {
	case keyspec.RSA:
		made.public, err = pubkey.MarshalRSA(s, a[pkcs11.CKA_MODULUS], publicExponent)
	case keyspec.EC:
		made.public, err = recovered(s, use)
	default:
		m, in := secretUse(s)
		made.mac, err = use(m, in)
	}
	if errors.Is(err, pubkey.ErrKey) {
		return hsm.ErrMaterial
	}
	return err
}

// user does one operation with an object.
func (c *carrier) user(s keyspec.Spec, key pkcs11.ObjectHandle) func(hsm.Mechanism, []byte) ([]byte, error) {
	return func(m hsm.Mechanism, in []byte) ([]byte, error) {
		out := make([]byte, s.Info().Result)
		n, err := c.t.mod.fns.operate(uint(c.session), uint(key), s, m, false, in, out, nil)
		return out[:n], err
	}
}

// recovered is the public half of a private key that signs: PKCS#11 has no attribute for it in the private object, but two signatures say it.
func recovered(s keyspec.Spec, use func(hsm.Mechanism, []byte) ([]byte, error)) ([]byte, error) {
	var signed [2]pubkey.Signed
	for i := range signed {
		message := append(bytes.Clone(macMessage), byte(i))
		digest := make([]byte, 0, sha512.Size)
		switch s.Algorithms(keyspec.SignVerify)[0] {
		case keyspec.ECDSASHA384:
			sum := sha512.Sum384(message)
			digest = append(digest, sum[:]...)
		case keyspec.ECDSASHA512:
			sum := sha512.Sum512(message)
			digest = append(digest, sum[:]...)
		default:
			sum := sha256.Sum256(message)
			digest = append(digest, sum[:]...)
		}
		signature, err := use(hsm.SignECDSA, digest)
		if err != nil {
			return nil, err
		}
		signed[i] = pubkey.Signed{Digest: digest, Signature: signature}
	}
	return pubkey.RecoverECDSA(s, signed[0], signed[1])
}

// ExportKey wraps the key under an AES key that is made for it, and that under the public key, all in the token.
func (t *Token) ExportKey(s keyspec.Spec, wrapped []byte, w keyspec.Wrapping, public []byte) (material []byte, err error) {
	if !hsm.Importable(s, w) || !hsm.Hybrid(w) {
		return nil, hsm.ErrNotOffered
	}
	if _, err := hsm.PeerKey(public); err != nil {
		return nil, err
	}
	o, err := t.imports(s)
	if err != nil {
		return nil, err
	}
	if !o.exports[w] {
		return nil, o.lacks(w, "exporting")
	}
	err = t.withKeySession(func(slot uint, session pkcs11.SessionHandle) (err error) {
		root, err := t.findRoot(session, wrappingRoot)
		if err != nil {
			return err
		}
		material, err = t.export(slot, session, root, s, wrapped, w, public)
		return err
	})
	if err != nil {
		return nil, err
	}
	return material, nil
}

// export needs mod.mu.
func (t *Token) export(slot uint, session pkcs11.SessionHandle, root pkcs11.ObjectHandle, s keyspec.Spec, wrapped []byte, w keyspec.Wrapping, public []byte) (
	material []byte, err error) {
	c := &carrier{t: t, session: session}
	defer c.destroy(&err)
	if _, c.pad, err = t.wrapper(slot); err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return nil, hsm.ErrPeerKey
	}
	peer := parsed.(*rsa.PublicKey)
	key, err := c.keep(t.unwrapAs(session, root, s, keyForm(s, true), wrapped))
	if err != nil {
		return nil, err
	}
	if t.namesDB.Load() && s.Info().Family == keyspec.EC {
		if key, err = c.named(root, key, s, wrapped); err != nil {
			return nil, err
		}
	}
	kek := form{usages: []uint{pkcs11.CKA_WRAP}, extractable: true}
	object, err := t.mod.ctx.GenerateKey(session, mech(pkcs11.CKM_AES_KEY_GEN, nil),
		append(kek.template(keyspec.AES256), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, kekBytes)))
	if object, err = c.keep(object, failed("C_GenerateKey", err)); err != nil {
		return nil, err
	}
	a, err := t.readKey(session, object, keyspec.AES256)
	if err == nil {
		err = kek.check(keyspec.AES256, a)
	}
	if err != nil {
		return nil, err
	}
	wrapper, err := t.mod.ctx.CreateObject(session, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_WRAP, true),
		pkcs11.NewAttribute(pkcs11.CKA_MODULUS, peer.N.Bytes()),
		pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, exponentBytes(peer.E)),
	})
	if wrapper, err = c.keep(wrapper, failed("C_CreateObject", err)); err != nil {
		return nil, err
	}
	material = make([]byte, peer.Size()+wrappedMax)
	n, err := t.mod.fns.wrapInto(uint(session), oaepOf(w), uint(wrapper), uint(object), material)
	if err != nil {
		return nil, err
	}
	if n != peer.Size() {
		return nil, fmt.Errorf("p11: %w: an RSA block of %d bytes", hsm.ErrWrong, n)
	}
	m, err := t.mod.fns.wrapInto(uint(session), operation{mechanism: c.pad}, uint(object), uint(key), material[n:])
	if err != nil {
		return nil, err
	}
	return material[:n+m], nil
}

// named is an EC key whose CKA_NSS_DB is its public half: NSS wraps with the key what it was told there, as a public half that readers of PKCS #8 check.
func (c *carrier) named(root, key pkcs11.ObjectHandle, s keyspec.Spec, wrapped []byte) (pkcs11.ObjectHandle, error) {
	public, err := recovered(s, c.user(s, key))
	if err != nil {
		return 0, err
	}
	mechanism := unwrapperOf(wrapped)
	template := append(keyTemplate(s, true), pkcs11.NewAttribute(ckaNSSDB, public[len(public)-s.Info().Public:]))
	object, err := c.t.mod.ctx.UnwrapKey(c.session, mech(mechanism, nil), root, wrapped[1:], template)
	if object, err = c.keep(object, failed("C_UnwrapKey", err)); err != nil {
		return 0, err
	}
	a, err := c.t.readNarrow(c.session, object, s, keyForm(s, true))
	if err == nil {
		err = checkKey(s, a, true)
	}
	return object, err
}

// exponentBytes are big-endian, without leading zeros.
func exponentBytes(e int) []byte {
	return bytes.TrimLeft([]byte{byte(e >> 24), byte(e >> 16), byte(e >> 8), byte(e)}, "\x00")
}
