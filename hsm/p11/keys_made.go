package p11

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
	"github.com/miekg/pkcs11"
)

// Numbers that the binding lacks: PKCS#11 3.0 §2.3.5, §2.14.3; NSS's pkcs11n.h.
const (
	ckkECEdwards     = 0x00000040
	ckmAESKeyWrapKWP = 0x0000210b
	ckaNSSDB         = 0xd5a0db00
)

// publicExponent of all RSA keys: 65537.
var publicExponent = []byte{1, 0, 1}

// curves are the values of CKA_EC_PARAMS by which modules know a curve. Keys are made with the first that the module takes.
var curves = map[keyspec.Spec][][]byte{
	keyspec.P256:      {p256},
	keyspec.P384:      {{0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22}},
	keyspec.P521:      {{0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23}},
	keyspec.Secp256k1: {{0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a}},
	// By name (PKCS#11 3.0 §2.3.5), by the OID of RFC 8410, and by the one that GnuPG had before it.
	keyspec.Ed25519: {append([]byte{0x13, 12}, "edwards25519"...), {0x06, 0x03, 0x2b, 0x65, 0x70},
		{0x06, 0x09, 0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01}},
}

// keyType is CKA_KEY_TYPE of keys of the family.
func keyType(f keyspec.Family) uint {
	switch f {
	case keyspec.RSA:
		return pkcs11.CKK_RSA
	case keyspec.EC:
		return pkcs11.CKK_EC
	case keyspec.Edwards:
		return ckkECEdwards
	case keyspec.AES:
		return pkcs11.CKK_AES
	}
	return pkcs11.CKK_GENERIC_SECRET
}

// secretKey says whether keys of the family are secret keys, without a public half.
func secretKey(f keyspec.Family) bool { return f == keyspec.HMAC || f == keyspec.AES }

// class is CKA_CLASS of what is loaded of a key.
func class(f keyspec.Family) uint {
	if secretKey(f) {
		return pkcs11.CKO_SECRET_KEY
	}
	return pkcs11.CKO_PRIVATE_KEY
}

// keyUsages are the only usages of keys of the spec that are true. What the KMS key is for is not known here.
func keyUsages(s keyspec.Spec) []uint {
	switch {
	case s.Info().Family == keyspec.RSA:
		return []uint{pkcs11.CKA_SIGN, pkcs11.CKA_DECRYPT}
	case s.Info().Usages&keyspec.KeyAgreement != 0:
		return []uint{pkcs11.CKA_SIGN, pkcs11.CKA_DERIVE}
	case s.Info().Family == keyspec.AES:
		return []uint{pkcs11.CKA_ENCRYPT}
	}
	return []uint{pkcs11.CKA_SIGN}
}

// possibleUsages are the usages that an object of the family may have: PKCS#11 3.0 §4.8, §4.9, §4.10.
func possibleUsages(f keyspec.Family) []uint {
	if secretKey(f) {
		return []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_DECRYPT, pkcs11.CKA_SIGN, pkcs11.CKA_VERIFY, pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE}
	}
	return []uint{pkcs11.CKA_DECRYPT, pkcs11.CKA_SIGN, pkcs11.CKA_SIGN_RECOVER, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE}
}

// form is how a key is in the token: the only usages that are true, and whether it could be wrapped.
type form struct {
	usages      []uint
	extractable bool
	stored      bool // it was wrapped under the root, as long as it has to be
}

// keyForm is that of a key that is made, extractable, or loaded.
func keyForm(s keyspec.Spec, extractable bool) form {
	return form{usages: keyUsages(s), extractable: extractable}
}

// keyTemplate is what a key is generated with, extractable, and what it is loaded with.
func keyTemplate(s keyspec.Spec, extractable bool) []*pkcs11.Attribute {
	return keyForm(s, extractable).template(s)
}

func (w form) template(s keyspec.Spec) []*pkcs11.Attribute {
	f := s.Info().Family
	t := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, class(f)),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, keyType(f)),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, w.extractable),
	}
	for _, u := range possibleUsages(f) {
		t = append(t, pkcs11.NewAttribute(u, slices.Contains(w.usages, u)))
	}
	return t
}

// checkKey holds a key's attributes, as read back from the token, to what it was asked for. All faults are in the one error, which is an
// hsm.ErrKeyRefused. A usage that the token does not tell of is none.
func checkKey(s keyspec.Spec, a attributes, extractable bool) error {
	return keyForm(s, extractable).check(s, a)
}

func (f form) check(s keyspec.Spec, a attributes) error {
	return refusedKey(s, append(f.unprotected(a), f.unfit(s, a)...))
}

// refusedKey is nil if there are no faults.
func refusedKey(s keyspec.Spec, faults []string) error {
	if err := refusal(s.String(), faults); err != nil {
		return fmt.Errorf("%w: %w", hsm.ErrKeyRefused, err)
	}
	return nil
}

// unprotected are the faults that the token is to blame for: a key could leave it, or do more than it should.
func (f form) unprotected(a attributes) (faults []string) {
	for _, w := range []struct {
		attr uint
		name string
		want bool
	}{
		{pkcs11.CKA_TOKEN, "CKA_TOKEN", false}, {pkcs11.CKA_PRIVATE, "CKA_PRIVATE", true},
		{pkcs11.CKA_SENSITIVE, "CKA_SENSITIVE", true}, {pkcs11.CKA_EXTRACTABLE, "CKA_EXTRACTABLE", f.extractable},
	} {
		if !a.is(w.attr, w.want) {
			faults = append(faults, fmt.Sprintf("%s is not %v", w.name, w.want))
		}
	}
	for _, u := range keyUsageNames {
		_, told := a[u.attr]
		if want := slices.Contains(f.usages, u.attr); (want || told) && !a.is(u.attr, want) {
			faults = append(faults, fmt.Sprintf("%s is not %v", u.name, want))
		}
	}
	for _, part := range secretParts {
		if _, ok := a[part]; ok {
			faults = append(faults, fmt.Sprintf("attribute %#x, a part of the secret, can be read", part))
		}
	}
	return faults
}

// unfit are the faults of a key that is none of the spec.
func (f form) unfit(s keyspec.Spec, a attributes) (faults []string) {
	info := s.Info()
	for _, w := range []struct {
		attr uint
		name string
		want uint
	}{{pkcs11.CKA_CLASS, "CKA_CLASS", class(info.Family)}, {pkcs11.CKA_KEY_TYPE, "CKA_KEY_TYPE", keyType(info.Family)}} {
		if v, ok := a.ulong(w.attr); !ok || v != w.want {
			faults = append(faults, fmt.Sprintf("%s is not %#x", w.name, w.want))
		}
	}
	switch info.Family {
	case keyspec.RSA:
		if n := new(big.Int).SetBytes(a[pkcs11.CKA_MODULUS]); n.BitLen() != info.Bits {
			faults = append(faults, fmt.Sprintf("CKA_MODULUS has %d bits", n.BitLen()))
		}
		if e, ok := a[pkcs11.CKA_PUBLIC_EXPONENT]; ok && !bytes.Equal(bytes.TrimLeft(e, "\x00"), publicExponent) {
			faults = append(faults, "CKA_PUBLIC_EXPONENT is not 65537")
		}
	case keyspec.HMAC, keyspec.AES:
		// SoftHSM says 0 of every key that it has unwrapped: wrappedLength has to do there.
		if v, ok := a.ulong(pkcs11.CKA_VALUE_LEN); !ok || v != uint(info.Bits/8) && (v != 0 || !f.stored) {
			faults = append(faults, fmt.Sprintf("CKA_VALUE_LEN is not %d", info.Bits/8))
		}
	default:
		if !slices.ContainsFunc(curves[s], func(c []byte) bool { return bytes.Equal(c, a[pkcs11.CKA_EC_PARAMS]) }) {
			faults = append(faults, "CKA_EC_PARAMS is another curve")
		}
	}
	return faults
}

var keyUsageNames = append(slices.Clone(usageNames), struct {
	attr uint
	name string
}{pkcs11.CKA_SIGN_RECOVER, "CKA_SIGN_RECOVER"})

// readKey reads what checkKey looks at.
func (t *Token) readKey(session pkcs11.SessionHandle, object pkcs11.ObjectHandle, s keyspec.Spec) (attributes, error) {
	wanted := []uint{pkcs11.CKA_CLASS, pkcs11.CKA_KEY_TYPE, pkcs11.CKA_TOKEN, pkcs11.CKA_PRIVATE, pkcs11.CKA_SENSITIVE, pkcs11.CKA_EXTRACTABLE}
	switch s.Info().Family {
	case keyspec.RSA:
		wanted = append(wanted, pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT, pkcs11.CKA_PRIVATE_EXPONENT, pkcs11.CKA_PRIME_1)
	case keyspec.HMAC, keyspec.AES:
		wanted = append(wanted, pkcs11.CKA_VALUE_LEN, pkcs11.CKA_VALUE)
	default:
		wanted = append(wanted, pkcs11.CKA_EC_PARAMS, pkcs11.CKA_VALUE)
	}
	for _, u := range keyUsageNames {
		wanted = append(wanted, u.attr)
	}
	return t.readThese(session, object, wanted)
}

// generateKey makes a key as session objects. public is 0 for secret keys. The error is nil or the objects are not there.
func (t *Token) generateKey(session pkcs11.SessionHandle, s keyspec.Spec) (public, private pkcs11.ObjectHandle, err error) {
	info := s.Info()
	template := keyTemplate(s, true)
	if secretKey(info.Family) {
		generator := uint(pkcs11.CKM_GENERIC_SECRET_KEY_GEN)
		if info.Family == keyspec.AES {
			generator = pkcs11.CKM_AES_KEY_GEN
		}
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, info.Bits/8))
		private, err = t.mod.ctx.GenerateKey(session, mech(generator, nil), template)
		return 0, private, failed("C_GenerateKey", err)
	}
	common := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, keyType(info.Family)),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true),
	}
	if info.Family == keyspec.RSA {
		common = append(common, pkcs11.NewAttribute(pkcs11.CKA_MODULUS_BITS, info.Bits), pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, publicExponent))
		public, private, err = t.mod.ctx.GenerateKeyPair(session, mech(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil), common, template)
		return public, private, failed("C_GenerateKeyPair", err)
	}
	generator := uint(pkcs11.CKM_EC_KEY_PAIR_GEN)
	if info.Family == keyspec.Edwards {
		generator = ckmECEdwardsKeyPairGen
	}
	for _, c := range curves[s] {
		public, private, err = t.mod.ctx.GenerateKeyPair(session, mech(generator, nil),
			append(slices.Clone(common), pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, c)), template)
		if code, ok := err.(pkcs11.Error); !ok || passing(hsm.CKR(code)) {
			break
		}
	}
	return public, private, failed("C_GenerateKeyPair", err)
}

// publicOf reads the public half as DER SubjectPublicKeyInfo.
func (t *Token) publicOf(session pkcs11.SessionHandle, object pkcs11.ObjectHandle, s keyspec.Spec) ([]byte, error) {
	parts := []uint{pkcs11.CKA_EC_POINT}
	if s.Info().Family == keyspec.RSA {
		parts = []uint{pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT}
	}
	var values [][]byte
	for _, attr := range parts {
		v, err := t.attribute(session, object, attr)
		if err != nil {
			return nil, failed("C_GetAttributeValue", err)
		}
		values = append(values, v)
	}
	var public []byte
	var err error
	if s.Info().Family != keyspec.RSA {
		public, err = pubkey.Marshal(s, pointOf(values[0], s.Info().Public))
	} else if public, err = pubkey.MarshalRSA(s, values[0], publicExponent); err == nil && !bytes.Equal(bytes.TrimLeft(values[1], "\x00"), publicExponent) {
		err = errors.New("the exponent is not 65537")
	}
	if err != nil {
		return nil, fmt.Errorf("p11: %w: the public half of a key for %s: %w", hsm.ErrWrong, s, err)
	}
	return public, nil
}

// pointOf reads CKA_EC_POINT of a point of n bytes: in a DER octet string (PKCS#11 2.20 and after), in a bit string, or as it is. The length
// decides: an uncompressed point starts with the tag of an octet string.
func pointOf(value []byte, n int) []byte {
	if len(value) == n {
		return value
	}
	var octets []byte
	if rest, err := asn1.Unmarshal(value, &octets); err == nil && len(rest) == 0 {
		return octets
	}
	var bits asn1.BitString
	if rest, err := asn1.Unmarshal(value, &bits); err == nil && len(rest) == 0 && bits.BitLength%8 == 0 {
		return bits.Bytes
	}
	return value
}
