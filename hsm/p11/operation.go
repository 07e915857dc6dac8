package p11

import (
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
	"github.com/miekg/pkcs11"
)

// mechanismsOf are the mechanisms that make sense for keys of the spec and that this package knows how to have done.
func mechanismsOf(s keyspec.Spec) []hsm.Mechanism {
	switch s.Info().Family {
	case keyspec.RSA:
		return []hsm.Mechanism{hsm.SignPKCS1, hsm.SignPSS256, hsm.SignPSS384, hsm.SignPSS512, hsm.DecryptOAEP1, hsm.DecryptOAEP256}
	case keyspec.EC:
		if s == keyspec.Secp256k1 {
			return []hsm.Mechanism{hsm.SignECDSA}
		}
		return []hsm.Mechanism{hsm.SignECDSA, hsm.DeriveECDH}
	case keyspec.Edwards:
		return []hsm.Mechanism{hsm.SignEd25519, hsm.SignEd25519ph}
	case keyspec.HMAC:
		return []hsm.Mechanism{hsm.MAC}
	case keyspec.AES:
		return []hsm.Mechanism{hsm.EncryptBlocks}
	}
	return nil
}

// fixed are the operations that do not depend on the key's spec.
var fixed = [...]operation{
	hsm.SignPKCS1:      {how: signs, mechanism: pkcs11.CKM_RSA_PKCS},
	hsm.SignPSS256:     {how: signs, mechanism: pkcs11.CKM_RSA_PKCS_PSS, parameter: withPSS, hash: pkcs11.CKM_SHA256, mgf: pkcs11.CKG_MGF1_SHA256, salt: 32},
	hsm.SignPSS384:     {how: signs, mechanism: pkcs11.CKM_RSA_PKCS_PSS, parameter: withPSS, hash: pkcs11.CKM_SHA384, mgf: pkcs11.CKG_MGF1_SHA384, salt: 48},
	hsm.SignPSS512:     {how: signs, mechanism: pkcs11.CKM_RSA_PKCS_PSS, parameter: withPSS, hash: pkcs11.CKM_SHA512, mgf: pkcs11.CKG_MGF1_SHA512, salt: 64},
	hsm.SignECDSA:      {how: signs, mechanism: pkcs11.CKM_ECDSA},
	hsm.SignEd25519:    {how: signs, mechanism: ckmEdDSA},
	hsm.SignEd25519ph:  {how: signs, mechanism: ckmEdDSA, parameter: withPrehash},
	hsm.DecryptOAEP1:   {how: decrypts, mechanism: pkcs11.CKM_RSA_PKCS_OAEP, parameter: withOAEP, hash: pkcs11.CKM_SHA_1, mgf: pkcs11.CKG_MGF1_SHA1},
	hsm.DecryptOAEP256: {how: decrypts, mechanism: pkcs11.CKM_RSA_PKCS_OAEP, parameter: withOAEP, hash: pkcs11.CKM_SHA256, mgf: pkcs11.CKG_MGF1_SHA256},
	hsm.DeriveECDH:     {how: derives, mechanism: pkcs11.CKM_ECDH1_DERIVE},
	hsm.EncryptBlocks:  {how: encrypts, mechanism: pkcs11.CKM_AES_ECB}, // as many bytes as there are
}

// hmacs are the mechanisms of HMAC224 and the specs after it.
var hmacs = [...]uint{pkcs11.CKM_SHA224_HMAC, pkcs11.CKM_SHA256_HMAC, pkcs11.CKM_SHA384_HMAC, pkcs11.CKM_SHA512_HMAC}

// operationOf is how mechanism m is done with a key of the spec, which has it. raw is for OAEP that this package decodes.
func operationOf(s keyspec.Spec, m hsm.Mechanism, raw bool) operation {
	var o operation
	switch info := s.Info(); m {
	case hsm.MAC:
		o = operation{how: signs, mechanism: hmacs[s-keyspec.HMAC224], n: info.Result}
	case hsm.DecryptOAEP1, hsm.DecryptOAEP256:
		if o = fixed[m]; raw {
			o = operation{how: decrypts, mechanism: pkcs11.CKM_RSA_X_509, n: info.Public}
		}
	case hsm.EncryptBlocks:
		o = fixed[m]
	case hsm.DeriveECDH:
		o = fixed[m]
		o.n = (info.Bits + 7) / 8
	default:
		o = fixed[m]
		o.n = info.Result
	}
	return o
}

// operate does one operation in a session, which does nothing else meanwhile. block is scratch for a raw decryption, as long as the modulus.
// It allocates nothing unless it fails. On an error out is wiped.
func (f functions) operate(session, key uint, s keyspec.Spec, m hsm.Mechanism, raw bool, in, out, block []byte) (n int, err error) {
	o := operationOf(s, m, raw)
	switch m {
	case hsm.DecryptOAEP1, hsm.DecryptOAEP256:
		// Modules differ in whether a refused length leaves the operation active.
		if len(in) != s.Info().Public {
			clear(out)
			return 0, &hsm.Error{CKR: hsm.CKR_ENCRYPTED_DATA_LEN_RANGE, Function: "C_Decrypt"}
		}
	case hsm.DeriveECDH:
		if len(in) != s.Info().Public || in[0] != 4 {
			clear(out)
			return 0, &hsm.Error{CKR: hsm.CKR_DATA_INVALID, Function: "C_DeriveKey"}
		}
	case hsm.EncryptBlocks:
		if len(in) == 0 || len(in)%16 != 0 || len(out) < len(in) {
			clear(out)
			return 0, &hsm.Error{CKR: hsm.CKR_DATA_LEN_RANGE, Function: "C_Encrypt"}
		}
		o.n = len(in)
	}
	if o.mechanism != pkcs11.CKM_RSA_X_509 {
		n, err = f.use(session, key, &o, in, out)
		return n, ofData(err)
	}
	block = block[:o.n]
	defer clear(block)
	if _, err = f.use(session, key, &o, in, block); err != nil {
		clear(out)
		return 0, ofData(err)
	}
	a := keyspec.OAEPSHA1
	if m == hsm.DecryptOAEP256 {
		a = keyspec.OAEPSHA256
	}
	n, ok := pubkey.DecodeOAEP(a, block, out)
	if !ok {
		clear(out)
		return 0, &hsm.Error{CKR: hsm.CKR_ENCRYPTED_DATA_INVALID, Function: "C_Decrypt"}
	}
	return n, nil
}

// ofData gives an answer its meaning: all arguments of C_Decrypt but the ciphertext are ours and good, so what is bad is a number above the
// modulus, for which NSS says CKR_ARGUMENTS_BAD.
func ofData(err error) error {
	if e, ok := err.(*hsm.Error); ok && e.Function == "C_Decrypt" && e.CKR == hsm.CKR_ARGUMENTS_BAD {
		return &hsm.Error{CKR: hsm.CKR_ENCRYPTED_DATA_INVALID, Function: e.Function}
	}
	return err
}
