package hsmtest

import (
	"bytes"
	"cmp"
	"crypto/sha512"
	"errors"
	"fmt"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
	"github.com/keyplane/keyplane/internal/softkey"
)

// FirstOf is the set's first mechanism.
func FirstOf(set hsm.Mechanisms) hsm.Mechanism {
	for m := hsm.NoMechanism + 1; m < 32; m++ {
		if set.Has(m) {
			return m
		}
	}
	return hsm.NoMechanism
}

// signedWith are the algorithms whose signatures a mechanism makes.
var signedWith = map[hsm.Mechanism][]keyspec.Algorithm{
	hsm.SignPKCS1:     {keyspec.PKCS1SHA256, keyspec.PKCS1SHA384, keyspec.PKCS1SHA512},
	hsm.SignPSS256:    {keyspec.PSSSHA256},
	hsm.SignPSS384:    {keyspec.PSSSHA384},
	hsm.SignPSS512:    {keyspec.PSSSHA512},
	hsm.SignEd25519:   {keyspec.Ed25519SHA512},
	hsm.SignEd25519ph: {keyspec.Ed25519PHSHA512},
	hsm.SignMLDSA:     {keyspec.MLDSAShake256},
}

// CheckKey does the mechanism through use and holds the result to the public half. Of HMAC and AES keys it holds that it is one and stays the same. The
// error is use's, or says what is wrong.
func CheckKey(s keyspec.Spec, m hsm.Mechanism, public *pubkey.Key, use func(in, out []byte) (int, error)) error {
	message := []byte("a message of a client")
	in, want := message, []byte(nil)
	switch m {
	case hsm.MAC:
		var macs [3][]byte
		for i, in := range [][]byte{message, message, message[1:]} {
			macs[i] = make([]byte, s.Info().Result)
			if n, err := use(in, macs[i]); err != nil || n != len(macs[i]) {
				return cmp.Or(err, errors.New("a MAC has another length"))
			}
		}
		if !bytes.Equal(macs[0], macs[1]) || bytes.Equal(macs[0], macs[2]) {
			return errors.New("no MACs")
		}
		return nil
	case hsm.EncryptBlocks:
		one, six := make([]byte, s.Info().Result), make([]byte, s.Info().Result)
		if n, err := use(aBlock, one); err != nil || n != len(aBlock) {
			return cmp.Or(err, errors.New("an image has another length"))
		}
		if n, err := use(bytes.Repeat(aBlock, 6), six); err != nil || n != 6*len(aBlock) {
			return cmp.Or(err, errors.New("six images have another length"))
		}
		if bytes.Equal(one[:16], aBlock) || !bytes.Equal(six[:6*16], bytes.Repeat(one[:16], 6)) {
			return errors.New("no images")
		}
		return nil
	case hsm.DecryptOAEP1, hsm.DecryptOAEP256:
		in, want = make([]byte, s.Info().Public), message
		if _, err := public.EncryptOAEP(keyspec.OAEPSHA1+keyspec.Algorithm(m-hsm.DecryptOAEP1), message, in); err != nil {
			return err
		}
	case hsm.DecapsulateMLKEM:
		in, want = make([]byte, pubkey.CiphertextBytes(s)), make([]byte, pubkey.SecretBytes)
		if err := public.Encapsulate(want, in); err != nil {
			return err
		}
	case hsm.DeriveECDH:
		var err error
		if in, want, err = agree(s, public); err != nil {
			return err
		}
	default:
		return checkSignatures(s, m, public, message, use)
	}
	out := make([]byte, s.Info().Result)
	n, err := use(in, out)
	if err == nil && !bytes.Equal(out[:n], want) {
		err = errors.New("another plaintext or shared secret")
	}
	return err
}

// agree is the point of a fresh key and what it has in common with a public key.
func agree(s keyspec.Spec, public *pubkey.Key) (point, secret []byte, err error) {
	private, spki, err := softkey.Generate(s)
	if err != nil {
		return nil, nil, err
	}
	other, err := softkey.Load(s, private)
	if err != nil {
		return nil, nil, err
	}
	if point, err = public.Peer(spki); err != nil {
		return nil, nil, err
	}
	secret = make([]byte, s.Info().Result)
	n, err := other.Do(softkey.DeriveECDH, public.Raw(), secret)
	return point, secret[:n], err
}

func checkSignatures(s keyspec.Spec, m hsm.Mechanism, public *pubkey.Key, message []byte, use func(in, out []byte) (int, error)) error {
	algorithms := signedWith[m]
	if m == hsm.SignECDSA {
		algorithms = s.Algorithms(keyspec.SignVerify)
	}
	for _, a := range algorithms {
		kind, given := pubkey.RAW, message
		if a == keyspec.Ed25519PHSHA512 {
			digest := sha512.Sum512(message)
			kind, given = pubkey.DIGEST, digest[:]
		}
		var room [pubkey.PreparedMax]byte
		in, ok := pubkey.Prepare(a, kind, public, given, room[:])
		if !ok {
			return fmt.Errorf("%v does not take the message", a)
		}
		out := make([]byte, s.Info().Result)
		n, err := use(in, out)
		if err != nil {
			return err
		}
		if !public.Verify(a, kind, given, pubkey.AppendSignature(nil, a, out[:n])) {
			return fmt.Errorf("%v: the signature is wrong", a)
		}
	}
	return nil
}
