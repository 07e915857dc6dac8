package p11

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/asn1"
	"errors"
	"fmt"
	"hash"
	"math/big"

	"github.com/miekg/pkcs11"
)

// Numbers of PKCS#11 3.0 §2.3.5 and §2.3.10 that the binding lacks.
const (
	ckmECEdwardsKeyPairGen = 0x00001055
	ckmEdDSA               = 0x00001057
)

// trial makes session keys and uses them. Keys are made on one session, which is closed at the end and the keys with it; each use is on a
// session of its own, because a refused operation may stay active on its session and spoil the next.
type trial struct {
	ctx     *pkcs11.Ctx
	slot    uint
	session pkcs11.SessionHandle
	report  *Report
}

// use runs f on a session of its own.
func (p *trial) use(f func(s pkcs11.SessionHandle) error) error {
	s, err := p.ctx.OpenSession(p.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return failed("C_OpenSession", err)
	}
	defer p.ctx.CloseSession(s)
	return f(s)
}

// try fills in the offers. The module is held for the whole of it, a few seconds on slow tokens; the caller is an operator.
func (t *Token) try(r *Report) error {
	t.mod.mu.RLock()
	defer t.mod.mu.RUnlock()
	session, err := t.mod.ctx.OpenSession(t.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if err != nil {
		return failed("C_OpenSession", err)
	}
	defer t.mod.ctx.CloseSession(session)
	p := &trial{t.mod.ctx, t.slot, session, r}
	p.symmetric()
	p.rsa()
	p.nist("ECC_NIST_P256", elliptic.P256(), ecdh.P256(), asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}, "ECDSA_SHA_256", sha256.New)
	p.nist("ECC_NIST_P384", elliptic.P384(), ecdh.P384(), asn1.ObjectIdentifier{1, 3, 132, 0, 34}, "ECDSA_SHA_384", sha512.New384)
	p.nist("ECC_NIST_P521", elliptic.P521(), ecdh.P521(), asn1.ObjectIdentifier{1, 3, 132, 0, 35}, "ECDSA_SHA_512", sha512.New)
	p.secp256k1()
	p.edwards()
	p.hmac("HMAC_224", "HMAC_SHA_224", pkcs11.CKM_SHA224_HMAC, sha256.New224)
	p.hmac("HMAC_256", "HMAC_SHA_256", pkcs11.CKM_SHA256_HMAC, sha256.New)
	p.hmac("HMAC_384", "HMAC_SHA_384", pkcs11.CKM_SHA384_HMAC, sha512.New384)
	p.hmac("HMAC_512", "HMAC_SHA_512", pkcs11.CKM_SHA512_HMAC, sha512.New)
	p.listed("ML_DSA_44 ML_DSA_65 ML_DSA_87", "ML_DSA_SHAKE_256", ckmMLDSAKeyPairGen, ckmMLDSA)
	p.listed("ML_KEM_512 ML_KEM_768 ML_KEM_1024", "ML_KEM", ckmMLKEMKeyPairGen, ckmMLKEM)
	return nil
}

func mech(m uint, parameter any) []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(m, parameter)}
}

// offer collects the outcomes for one key spec.
type offer struct{ *Offer }

func (p *trial) offer(spec string) offer {
	p.report.Offers = append(p.report.Offers, Offer{KeySpec: spec})
	return offer{&p.report.Offers[len(p.report.Offers)-1]}
}

func (o offer) note(algorithm string, err error) {
	if err != nil {
		o.Missing = append(o.Missing, fmt.Sprintf("%s: %v", algorithm, err))
		return
	}
	o.Algorithms = append(o.Algorithms, algorithm)
}

var errWrongResult = errors.New("the token's result is wrong")

func (p *trial) secretKey(keyType, bytes uint, gen uint, usage ...uint) (pkcs11.ObjectHandle, error) {
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, keyType),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, bytes),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
	}
	for _, u := range usage {
		template = append(template, pkcs11.NewAttribute(u, true))
	}
	key, err := p.ctx.GenerateKey(p.session, mech(gen, nil), template)
	return key, failed("C_GenerateKey", err)
}

// keyPair makes a pair with one usage on each half.
func (p *trial) keyPair(gen uint, public, private []*pkcs11.Attribute) (pub, priv pkcs11.ObjectHandle, err error) {
	common := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false)}
	secret := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true)}
	pub, priv, err = p.ctx.GenerateKeyPair(p.session, mech(gen, nil),
		append(public, common...), append(append(private, common...), secret...))
	return pub, priv, failed("C_GenerateKeyPair", err)
}

func (p *trial) sign(m *pkcs11.Mechanism, key pkcs11.ObjectHandle, data []byte) ([]byte, error) {
	var sig []byte
	err := p.use(func(s pkcs11.SessionHandle) (err error) {
		if err = p.ctx.SignInit(s, []*pkcs11.Mechanism{m}, key); err != nil {
			return failed("C_SignInit", err)
		}
		sig, err = p.ctx.Sign(s, data)
		return failed("C_Sign", err)
	})
	return sig, err
}

// symmetric tries what derived backing keys need: an AES-256 key that only encrypts, ECB under it, and random for data keys.
func (p *trial) symmetric() {
	o := p.offer("SYMMETRIC_DEFAULT")
	o.note("SYMMETRIC_DEFAULT", p.use(func(s pkcs11.SessionHandle) error {
		key, err := p.secretKey(pkcs11.CKK_AES, rootBytes, pkcs11.CKM_AES_KEY_GEN, pkcs11.CKA_ENCRYPT)
		if err != nil {
			return err
		}
		if err := p.ctx.EncryptInit(s, mech(pkcs11.CKM_AES_ECB, nil), key); err != nil {
			return failed("C_EncryptInit", err)
		}
		out, err := p.ctx.Encrypt(s, make([]byte, 48))
		if err != nil {
			return failed("C_Encrypt", err)
		}
		if len(out) != 48 || !bytes.Equal(out[:16], out[16:32]) || bytes.Equal(out[:16], make([]byte, 16)) {
			return errWrongResult
		}
		random, err := p.ctx.GenerateRandom(s, 32)
		if err != nil {
			return failed("C_GenerateRandom", err)
		}
		if len(random) != 32 || bytes.Equal(random[:16], random[16:]) {
			return errWrongResult
		}
		return nil
	}))
}

// rsa tries everything with one 2048-bit pair; whether larger ones fit is what the generator's size range says.
func (p *trial) rsa() {
	largest := uint(0)
	for _, m := range p.report.Mechanisms {
		if m.Type == pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN {
			largest = m.KeyMax
		}
	}
	o := p.offer("RSA_2048")
	_, private, err := p.keyPair(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, 2048),
		pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1}),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true),
		pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true),
	}, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true), pkcs11.NewAttribute(pkcs11.CKA_SIGN, true)})
	var public *rsa.PublicKey
	if err == nil {
		public, err = p.rsaPublic(private)
	}
	if err != nil {
		o.note("key pair", err)
		return
	}
	o.note("RSAES_OAEP_SHA_1", p.oaep(public, private, sha1.New, pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1))
	o.note("RSAES_OAEP_SHA_256", p.oaep(public, private, sha256.New, pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256))
	for _, h := range []struct {
		name      string
		hash      crypto.Hash
		mech, mgf uint
	}{
		{"SHA_256", crypto.SHA256, pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256},
		{"SHA_384", crypto.SHA384, pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384},
		{"SHA_512", crypto.SHA512, pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512},
	} {
		d := h.hash.New()
		d.Write([]byte("keyplane"))
		digest := d.Sum(nil)
		sig, err := p.sign(pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS_PSS, pkcs11.NewPSSParams(h.mech, h.mgf, uint(h.hash.Size()))), private, digest)
		if err == nil && rsa.VerifyPSS(public, h.hash, digest, sig, &rsa.PSSOptions{SaltLength: h.hash.Size()}) != nil {
			err = errWrongResult
		}
		o.note("RSASSA_PSS_"+h.name, err)
		sig, err = p.sign(pkcs11.NewMechanism(pkcs11.CKM_RSA_PKCS, nil), private, append(digestInfo[h.hash], digest...))
		if err == nil && rsa.VerifyPKCS1v15(public, h.hash, digest, sig) != nil {
			err = errWrongResult
		}
		o.note("RSASSA_PKCS1_V1_5_"+h.name, err)
	}
	tried := *o.Offer
	for _, bits := range []uint{3072, 4096} {
		next := p.offer(fmt.Sprintf("RSA_%d", bits))
		if largest < bits {
			next.note("key pair", fmt.Errorf("the largest key is %d bits", largest))
			continue
		}
		next.Algorithms, next.Missing = tried.Algorithms, tried.Missing
	}
}

// digestInfo is the DER prefix of PKCS #1 v1.5 signatures, RFC 8017 §9.2 note 1.
var digestInfo = map[crypto.Hash][]byte{
	crypto.SHA256: {0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, 0x04, 0x20},
	crypto.SHA384: {0x30, 0x41, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0x04, 0x30},
	crypto.SHA512: {0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03, 0x05, 0x00, 0x04, 0x40},
}

func (p *trial) rsaPublic(key pkcs11.ObjectHandle) (*rsa.PublicKey, error) {
	a, err := p.ctx.GetAttributeValue(p.session, key, []*pkcs11.Attribute{{Type: pkcs11.CKA_MODULUS}, {Type: pkcs11.CKA_PUBLIC_EXPONENT}})
	if err != nil {
		return nil, failed("C_GetAttributeValue", err)
	}
	e := new(big.Int).SetBytes(a[1].Value)
	if !e.IsInt64() || e.Int64() != 65537 {
		return nil, errWrongResult
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(a[0].Value), E: 65537}, nil
}

func (p *trial) oaep(public *rsa.PublicKey, private pkcs11.ObjectHandle, h func() hash.Hash, m, mgf uint) error {
	sealed, err := rsa.EncryptOAEP(h(), rand.Reader, public, []byte("keyplane"), nil)
	if err != nil {
		return err
	}
	params := pkcs11.NewOAEPParams(m, mgf, pkcs11.CKZ_DATA_SPECIFIED, nil)
	return p.use(func(s pkcs11.SessionHandle) error {
		if err := p.ctx.DecryptInit(s, mech(pkcs11.CKM_RSA_PKCS_OAEP, params), private); err != nil {
			return failed("C_DecryptInit", err)
		}
		plain, err := p.ctx.Decrypt(s, sealed)
		if err != nil {
			return failed("C_Decrypt", err)
		}
		if string(plain) != "keyplane" {
			return errWrongResult
		}
		return nil
	})
}

// curve makes a pair on a named curve. One pair signs, another agrees: KMS keys have one usage.
func (p *trial) curve(gen uint, params []byte, public, private uint) (pub, priv pkcs11.ObjectHandle, point []byte, err error) {
	pub, priv, err = p.keyPair(gen, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, params), pkcs11.NewAttribute(public, true)},
		[]*pkcs11.Attribute{pkcs11.NewAttribute(private, true)})
	if err != nil {
		return 0, 0, nil, err
	}
	a, err := p.ctx.GetAttributeValue(p.session, pub, []*pkcs11.Attribute{{Type: pkcs11.CKA_EC_POINT}})
	if err != nil {
		return 0, 0, nil, failed("C_GetAttributeValue", err)
	}
	// CKA_EC_POINT is a DER octet string; some modules leave the wrapping out.
	if rest, derr := asn1.Unmarshal(a[0].Value, &point); derr != nil || len(rest) > 0 {
		point = a[0].Value
	}
	return pub, priv, point, nil
}

func (p *trial) nist(spec string, curve elliptic.Curve, dh ecdh.Curve, oid asn1.ObjectIdentifier, algorithm string, h func() hash.Hash) {
	o := p.offer(spec)
	params, err := asn1.Marshal(oid)
	if err != nil {
		o.note(algorithm, err)
		return
	}
	o.note(algorithm, func() error {
		_, private, point, err := p.curve(pkcs11.CKM_EC_KEY_PAIR_GEN, params, pkcs11.CKA_VERIFY, pkcs11.CKA_SIGN)
		if err != nil {
			return err
		}
		public, err := ecdsa.ParseUncompressedPublicKey(curve, point)
		if err != nil {
			return err
		}
		d := h()
		d.Write([]byte("keyplane"))
		sig, err := p.sign(pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil), private, d.Sum(nil))
		if err != nil {
			return err
		}
		r, s := new(big.Int).SetBytes(sig[:len(sig)/2]), new(big.Int).SetBytes(sig[len(sig)/2:])
		if !ecdsa.Verify(public, d.Sum(nil), r, s) {
			return errWrongResult
		}
		return nil
	}())
	o.note("ECDH", func() error {
		_, private, point, err := p.curve(pkcs11.CKM_EC_KEY_PAIR_GEN, params, pkcs11.CKA_DERIVE, pkcs11.CKA_DERIVE)
		if err != nil {
			return err
		}
		public, err := dh.NewPublicKey(point)
		if err != nil {
			return err
		}
		peer, err := dh.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		want, err := peer.ECDH(public)
		if err != nil {
			return err
		}
		key, err := p.ctx.DeriveKey(p.session, mech(pkcs11.CKM_ECDH1_DERIVE, pkcs11.NewECDH1DeriveParams(pkcs11.CKD_NULL, nil, peer.PublicKey().Bytes())),
			private, []*pkcs11.Attribute{
				pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
				pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
				pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, len(want)),
				pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
				pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, false), // the shared secret is the API's answer
				pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
			})
		if err != nil {
			return failed("C_DeriveKey", err)
		}
		a, err := p.ctx.GetAttributeValue(p.session, key, []*pkcs11.Attribute{{Type: pkcs11.CKA_VALUE}})
		if err != nil {
			return failed("C_GetAttributeValue", err)
		}
		if !bytes.Equal(a[0].Value, want) {
			return errWrongResult
		}
		return nil
	}())
}

// secp256k1 is checked by the token itself: the standard library does not have the curve.
func (p *trial) secp256k1() {
	o := p.offer("ECC_SECG_P256K1")
	o.note("ECDSA_SHA_256", func() error {
		params, err := asn1.Marshal(asn1.ObjectIdentifier{1, 3, 132, 0, 10})
		if err != nil {
			return err
		}
		public, private, _, err := p.curve(pkcs11.CKM_EC_KEY_PAIR_GEN, params, pkcs11.CKA_VERIFY, pkcs11.CKA_SIGN)
		if err != nil {
			return err
		}
		digest := sha256.Sum256([]byte("keyplane"))
		sig, err := p.sign(pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil), private, digest[:])
		if err != nil {
			return err
		}
		return p.use(func(s pkcs11.SessionHandle) error {
			if err := p.ctx.VerifyInit(s, mech(pkcs11.CKM_ECDSA, nil), public); err != nil {
				return failed("C_VerifyInit", err)
			}
			return failed("C_Verify", p.ctx.Verify(s, digest[:], sig))
		})
	}())
}

func (p *trial) edwards() {
	o := p.offer("ECC_NIST_EDWARDS25519")
	var private pkcs11.ObjectHandle
	var point []byte
	var err error
	// The curve by name (PKCS#11 3.0 §2.3.5), and by OID for modules that know it only so.
	for _, params := range [][]byte{append([]byte{0x13, 12}, "edwards25519"...), {0x06, 0x03, 0x2b, 0x65, 0x70}} {
		if _, private, point, err = p.curve(ckmECEdwardsKeyPairGen, params, pkcs11.CKA_VERIFY, pkcs11.CKA_SIGN); err == nil {
			break
		}
	}
	if err == nil && len(point) != ed25519.PublicKeySize {
		err = errWrongResult
	}
	if err != nil {
		o.note("key pair", err)
		return
	}
	message := []byte("keyplane")
	sig, err := p.sign(pkcs11.NewMechanism(ckmEdDSA, nil), private, message)
	if err == nil && !ed25519.Verify(point, message, sig) {
		err = errWrongResult
	}
	o.note("ED25519_SHA_512", err)
	// CK_EDDSA_PARAMS with phFlag set and no context: CK_BBOOL padded to a CK_ULONG, length 0, NULL.
	params := make([]byte, 24)
	params[0] = 1
	digest := sha512.Sum512(message)
	sig, err = p.sign(pkcs11.NewMechanism(ckmEdDSA, params), private, digest[:])
	if err == nil && ed25519.VerifyWithOptions(point, digest[:], sig, &ed25519.Options{Hash: crypto.SHA512}) != nil {
		err = errWrongResult
	}
	o.note("ED25519_PH_SHA_512", err)
}

// hmac compares with a key whose value is known: a session key brought in, because the generated one's would not be.
func (p *trial) hmac(spec, algorithm string, m uint, h func() hash.Hash) {
	o := p.offer(spec)
	o.note(algorithm, func() error {
		size := h().Size()
		key, err := p.secretKey(pkcs11.CKK_GENERIC_SECRET, uint(size), pkcs11.CKM_GENERIC_SECRET_KEY_GEN, pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY)
		if err != nil {
			return err
		}
		mac, err := p.sign(pkcs11.NewMechanism(m, nil), key, []byte("keyplane"))
		if err != nil {
			return err
		}
		if len(mac) != size {
			return errWrongResult
		}
		value := bytes.Repeat([]byte{0x6b}, size)
		brought, err := p.ctx.CreateObject(p.session, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
			pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
			pkcs11.NewAttribute(pkcs11.CKA_VALUE, value),
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
			pkcs11.NewAttribute(pkcs11.CKA_SIGN, true),
		})
		if err != nil {
			return nil // a token that lets no key in still makes MACs
		}
		mac, err = p.sign(pkcs11.NewMechanism(m, nil), brought, []byte("keyplane"))
		if err != nil {
			return err
		}
		want := hmac.New(h, value)
		want.Write([]byte("keyplane"))
		if !hmac.Equal(mac, want.Sum(nil)) {
			return errWrongResult
		}
		return nil
	}())
}

// listed reports mechanisms that the binding cannot try: they are named, not offered.
func (p *trial) listed(specs, algorithm string, wanted ...uint) {
	have := 0
	for _, m := range p.report.Mechanisms {
		for _, w := range wanted {
			if m.Type == w {
				have++
			}
		}
	}
	err := errors.New("no such mechanism")
	if have == len(wanted) {
		err = errors.New("listed by the token, not tried")
	}
	p.offer(specs).note(algorithm, err)
}
