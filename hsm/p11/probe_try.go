package p11

import (
	"bytes"
	"errors"
	"slices"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/miekg/pkcs11"
)

// Numbers of PKCS#11 3.0 §2.3.5 and §2.3.10 that the binding lacks.
const (
	ckmECEdwardsKeyPairGen = 0x00001055
	ckmEdDSA               = 0x00001057
)

func mech(m uint, parameter any) []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(m, parameter)}
}

// try fills in the offers, a few seconds on slow tokens; the caller is an operator.
func (t *Token) try(r *Report) error {
	symmetric := Offer{KeySpec: "SYMMETRIC_DEFAULT"}
	if err := t.withKeySession(t.trySymmetric); err != nil {
		symmetric.Missing = []string{"SYMMETRIC_DEFAULT: " + err.Error()}
	} else {
		symmetric.Algorithms = []string{"SYMMETRIC_DEFAULT"}
	}
	r.Offers = append(r.Offers, symmetric)
	for _, s := range keyspec.Backing() {
		offer := Offer{KeySpec: s.String()}
		o, err := t.keyOffer(s)
		switch {
		case err != nil:
			offer.Missing = []string{"keys: " + err.Error()}
		case mechanismsOf(s) == nil:
			offer.Missing = []string{t.postQuantum(s, r)}
		default:
			offer.Mechanisms, offer.Decoded = namesOf(s, o.mechanisms), namesOf(s, o.raw)
			offer.Algorithms, offer.Missing = o.algorithms(s), o.missing
			t.probeImports(&offer, s)
		}
		r.Offers = append(r.Offers, offer)
	}
	return nil
}

// probeImports says how keys of the spec come in and leave. A token that cannot tell now imports nothing as far as this goes.
func (t *Token) probeImports(offer *Offer, s keyspec.Spec) {
	o, err := t.imports(s)
	if err != nil {
		offer.Missing = append(offer.Missing, "imports: "+err.Error())
		return
	}
	for w := keyspec.WrapOAEP1; w < wrappings; w++ {
		if o.routes[w] != noRoute {
			offer.Imports = append(offer.Imports, w.String())
		}
		if o.routes[w] == throughProcess {
			offer.Here = append(offer.Here, w.String())
		}
		if o.exports[w] {
			offer.Exports = append(offer.Exports, w.String())
		}
	}
}

// namesOf are the mechanisms of a set, in the order of mechanismsOf.
func namesOf(s keyspec.Spec, set hsm.Mechanisms) (names []string) {
	for _, m := range mechanismsOf(s) {
		if set.Has(m) {
			names = append(names, mechanismNamesOf[m])
		}
	}
	return names
}

// algorithms are those of the API whose mechanism is offered.
func (o *keyOffer) algorithms(s keyspec.Spec) (names []string) {
	for _, u := range []keyspec.Usage{keyspec.EncryptDecrypt, keyspec.SignVerify, keyspec.GenerateVerifyMAC, keyspec.KeyAgreement} {
		for _, a := range s.Algorithms(u) {
			if o.mechanisms.Has(mechanismOf(a)) {
				names = append(names, a.String())
			}
		}
	}
	return names
}

// mechanismOf is what an algorithm of the API needs of the token.
func mechanismOf(a keyspec.Algorithm) hsm.Mechanism {
	switch a {
	case keyspec.OAEPSHA1:
		return hsm.DecryptOAEP1
	case keyspec.OAEPSHA256:
		return hsm.DecryptOAEP256
	case keyspec.PKCS1SHA256, keyspec.PKCS1SHA384, keyspec.PKCS1SHA512:
		return hsm.SignPKCS1
	case keyspec.PSSSHA256:
		return hsm.SignPSS256
	case keyspec.PSSSHA384:
		return hsm.SignPSS384
	case keyspec.PSSSHA512:
		return hsm.SignPSS512
	case keyspec.ECDSASHA256, keyspec.ECDSASHA384, keyspec.ECDSASHA512:
		return hsm.SignECDSA
	case keyspec.Ed25519SHA512:
		return hsm.SignEd25519
	case keyspec.Ed25519PHSHA512:
		return hsm.SignEd25519ph
	case keyspec.HMACSHA224, keyspec.HMACSHA256, keyspec.HMACSHA384, keyspec.HMACSHA512:
		return hsm.MAC
	case keyspec.ECDHAgreement:
		return hsm.DeriveECDH
	}
	return hsm.NoMechanism
}

// postQuantum says what the mechanism list has of the spec: there is no binding for its mechanisms, so they are named, not offered.
func (t *Token) postQuantum(s keyspec.Spec, r *Report) string {
	wanted := []uint{ckmMLDSAKeyPairGen, ckmMLDSA}
	if s.Info().Family == keyspec.MLKEM {
		wanted = []uint{ckmMLKEMKeyPairGen, ckmMLKEM}
	}
	for _, w := range wanted {
		if !slices.ContainsFunc(r.Mechanisms, func(m Mechanism) bool { return m.Type == w }) {
			return "keys: no such mechanism"
		}
	}
	return "keys: listed by the token, not tried"
}

// trySymmetric tries what derived backing keys need: an AES-256 key that only encrypts, ECB under it, and random for data keys.
func (t *Token) trySymmetric(_ uint, s pkcs11.SessionHandle) error {
	ctx := t.mod.ctx
	key, err := ctx.GenerateKey(s, mech(pkcs11.CKM_AES_KEY_GEN, nil), []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, rootBytes),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true),
	})
	if err != nil {
		return failed("C_GenerateKey", err)
	}
	if err := ctx.EncryptInit(s, mech(pkcs11.CKM_AES_ECB, nil), key); err != nil {
		return failed("C_EncryptInit", err)
	}
	out, err := ctx.Encrypt(s, make([]byte, 48))
	if err != nil {
		return failed("C_Encrypt", err)
	}
	if len(out) != 48 || !bytes.Equal(out[:16], out[16:32]) || bytes.Equal(out[:16], make([]byte, 16)) {
		return errWrongResult
	}
	random, err := ctx.GenerateRandom(s, 32)
	if err != nil {
		return failed("C_GenerateRandom", err)
	}
	if len(random) != 32 || bytes.Equal(random[:16], random[16:]) {
		return errWrongResult
	}
	return nil
}

var errWrongResult = errors.New("the token's result is wrong")
