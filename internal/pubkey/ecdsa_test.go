package pubkey

import (
	"bytes"
	"encoding/asn1"
	"math/big"
	"testing"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// ecdsaSpecs have signatures r || s.
var ecdsaSpecs = map[keyspec.Spec]keyspec.Algorithm{
	keyspec.P256: keyspec.ECDSASHA256, keyspec.P384: keyspec.ECDSASHA384, keyspec.P521: keyspec.ECDSASHA512, keyspec.Secp256k1: keyspec.ECDSASHA256,
}

// numbers are r and s of the edges: 1, of one byte with and without a high bit, short, the order less 1.
func numbers(s keyspec.Spec) []*big.Int {
	order := new(big.Int).SetBytes([]byte(orders[s]))
	return []*big.Int{
		big.NewInt(1), big.NewInt(0x7f), big.NewInt(0x80), big.NewInt(0xff), big.NewInt(0x100), new(big.Int).Rsh(order, 7), new(big.Int).Rsh(order, 8),
		new(big.Int).Rsh(order, 1), new(big.Int).Sub(order, big.NewInt(1)),
	}
}

func TestSignatureEncoding(t *testing.T) {
	for s, a := range ecdsaSpecs {
		size := s.Info().Result
		for _, r := range numbers(s) {
			for _, n := range numbers(s) {
				raw := append(r.FillBytes(make([]byte, size/2)), n.FillBytes(make([]byte, size/2))...)
				want, err := asn1.Marshal(struct{ R, S *big.Int }{r, n})
				if err != nil {
					t.Fatal(err)
				}
				got := AppendSignature([]byte("before"), a, raw)
				if !bytes.Equal(got[6:], want) || string(got[:6]) != "before" {
					t.Errorf("%s, %x: %x, want %x", s, raw, got, want)
				}
				if back, ok := RawSignature(s, want, make([]byte, size)); !ok || !bytes.Equal(back, raw) {
					t.Errorf("%s, %x: back %x, %t", s, want, back, ok)
				}
			}
		}
	}
	for _, a := range []keyspec.Algorithm{keyspec.PSSSHA256, keyspec.PKCS1SHA512, keyspec.Ed25519SHA512, keyspec.MLDSAShake256} {
		if got := AppendSignature([]byte("a"), a, []byte("bc")); string(got) != "abc" {
			t.Errorf("%s: %s", a, got)
		}
	}
}

func TestBadSignatureEncodings(t *testing.T) {
	const one = "\x02\x01\x01"
	order := orders[keyspec.P256]
	for name, bad := range map[string]string{
		"empty": "", "a tag": "\x30", "two bytes": "\x30\x00", "another tag": "\x31\x06" + one + one, "long form of a short length": "\x30\x81\x06" + one + one,
		"indefinite": "\x30\x80" + one + one + "\x00\x00", "length of two bytes": "\x30\x82\x00\x06" + one + one, "too long": "\x30\x07" + one + one,
		"too short": "\x30\x05" + one + one, "trailing": "\x30\x06" + one + one + "\x00", "trailing inside": "\x30\x08" + one + one + "\x05\x00",
		"one number": "\x30\x03" + one, "three": "\x30\x09" + one + one + one, "zero r": "\x30\x06\x02\x01\x00" + one, "zero s": "\x30\x06" + one + "\x02\x01\x00",
		"no bytes of r": "\x30\x06\x02\x00" + one + "\x00", "negative r": "\x30\x06\x02\x01\xff" + one, "negative s": "\x30\x06" + one + "\x02\x01\x80",
		"a zero too many": "\x30\x07\x02\x02\x00\x01" + one, "not an integer": "\x30\x06\x03\x01\x01" + one, "long form of a number": "\x30\x07\x02\x81\x01\x01" + one,
		"r runs out": "\x30\x06\x02\x7f\x01\x02\x01\x01", "s runs out": "\x30\x06" + one + "\x02\x02\x01", "s is a tag": "\x30\x04" + one + "\x02",
		"r is the order": "\x30\x26\x02\x21\x00" + order + one, "s is the order": "\x30\x26" + one + "\x02\x21\x00" + order,
		"r is longer": "\x30\x27\x02\x22\x00\x80" + order + one,
	} {
		if raw, ok := RawSignature(keyspec.P256, []byte(bad), make([]byte, 64)); ok {
			t.Errorf("%s: %x is %x", name, bad, raw)
		}
	}
	if _, ok := RawSignature(keyspec.P256, []byte("\x30\x06"+one+one), make([]byte, 64)); !ok {
		t.Error("1 and 1 is none")
	}
	if _, ok := RawSignature(keyspec.Ed25519, []byte("\x30\x06"+one+one), make([]byte, 64)); ok {
		t.Error("Ed25519 has DER")
	}
}

// One encoding per signature: what is read is written the same, and it is what encoding/asn1 reads.
func FuzzSignature(f *testing.F) {
	for s, a := range ecdsaSpecs {
		for _, n := range numbers(s) {
			raw := n.FillBytes(make([]byte, s.Info().Result/2))
			f.Add(uint8(s), AppendSignature(nil, a, append(raw, raw...)))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, der []byte) {
		s := keyspec.Spec(which)
		a, known := ecdsaSpecs[s]
		if !known {
			return
		}
		var lib struct{ R, S *big.Int }
		rest, err := asn1.Unmarshal(der, &lib)
		raw, ok := RawSignature(s, der, make([]byte, s.Info().Result))
		if !ok {
			order := new(big.Int).SetBytes([]byte(orders[s]))
			if err == nil && len(rest) == 0 && lib.R.Sign() > 0 && lib.S.Sign() > 0 && lib.R.Cmp(order) < 0 && lib.S.Cmp(order) < 0 {
				if again, _ := asn1.Marshal(lib); bytes.Equal(again, der) {
					t.Fatalf("%x is refused", der)
				}
			}
			return
		}
		if again := AppendSignature(nil, a, raw); !bytes.Equal(again, der) {
			t.Fatalf("%x is written as %x", der, again)
		}
		half := len(raw) / 2
		if err != nil || len(rest) != 0 || lib.R.Cmp(new(big.Int).SetBytes(raw[:half])) != 0 || lib.S.Cmp(new(big.Int).SetBytes(raw[half:])) != 0 {
			t.Fatalf("%x: %x, but encoding/asn1: %v, %v, %v", der, raw, lib.R, lib.S, err)
		}
	})
}
