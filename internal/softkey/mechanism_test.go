package softkey_test

import (
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/softkey"
)

// The operations are the mechanisms of tokens: the same numbers. Each line does not compile, or fails, when one side changes alone.
func TestOpsAreMechanisms(t *testing.T) {
	for op, m := range map[softkey.Op]hsm.Mechanism{
		softkey.NoOp: hsm.NoMechanism, softkey.SignPKCS1: hsm.SignPKCS1, softkey.SignPSS256: hsm.SignPSS256, softkey.SignPSS384: hsm.SignPSS384,
		softkey.SignPSS512: hsm.SignPSS512, softkey.SignECDSA: hsm.SignECDSA, softkey.SignEd25519: hsm.SignEd25519, softkey.SignEd25519ph: hsm.SignEd25519ph,
		softkey.SignMLDSA: hsm.SignMLDSA, softkey.MAC: hsm.MAC, softkey.DecryptOAEP1: hsm.DecryptOAEP1, softkey.DecryptOAEP256: hsm.DecryptOAEP256,
		softkey.DeriveECDH: hsm.DeriveECDH, softkey.DecapsulateMLKEM: hsm.DecapsulateMLKEM, softkey.EncryptBlocks: hsm.EncryptBlocks,
	} {
		if uint8(op) != uint8(m) {
			t.Errorf("%d is not %d", op, m)
		}
	}
}
