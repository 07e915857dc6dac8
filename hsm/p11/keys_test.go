package p11

import (
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/keyspec"
)

// What the two modules do with keys. SoftHSM 2.6 makes Ed25519 keys and does not wrap them; NSS 3.87 has neither them nor secp256k1.
var (
	rsaMechanisms  = []hsm.Mechanism{hsm.SignPKCS1, hsm.SignPSS256, hsm.SignPSS384, hsm.SignPSS512, hsm.DecryptOAEP1, hsm.DecryptOAEP256}
	nistMechanisms = []hsm.Mechanism{hsm.SignECDSA, hsm.DeriveECDH}
	nssKeys        = map[keyspec.Spec][]hsm.Mechanism{
		keyspec.RSA2048: rsaMechanisms, keyspec.RSA3072: rsaMechanisms, keyspec.RSA4096: rsaMechanisms,
		keyspec.P256: nistMechanisms, keyspec.P384: nistMechanisms, keyspec.P521: nistMechanisms,
		keyspec.HMAC224: {hsm.MAC}, keyspec.HMAC256: {hsm.MAC}, keyspec.HMAC384: {hsm.MAC}, keyspec.HMAC512: {hsm.MAC},
	}
	softHSMKeys = func() map[keyspec.Spec][]hsm.Mechanism {
		all := map[keyspec.Spec][]hsm.Mechanism{keyspec.Secp256k1: {hsm.SignECDSA}}
		for s, m := range nssKeys {
			all[s] = m
		}
		return all
	}()
)

func TestKeysSoftHSM(t *testing.T) {
	hsmtest.TestKeyToken(t, opener(t, hsmtest.SoftHSM(t)), softHSMKeys)
}

func TestKeysNSS(t *testing.T) { hsmtest.TestKeyToken(t, opener(t, hsmtest.NSS(t)), nssKeys) }
