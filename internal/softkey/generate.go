package softkey

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"

	"filippo.io/mldsa"
	"github.com/cloudflare/circl/kem/mlkem/mlkem512"
	"github.com/decred/dcrd/dcrec/secp256k1/v4"

	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
)

// Generate makes a key of the spec. The private half is DER PKCS #8 of RSA, EC and Ed25519 keys, the bytes of HMAC and AES keys, the seed of ML-DSA keys
// (ξ, 32 bytes) and ML-KEM keys (d || z, 64 bytes); it is the caller's to clear. The public half is DER SubjectPublicKeyInfo, nil for HMAC and AES. It
// can take seconds for RSA_4096.
func Generate(s keyspec.Spec) (private, public []byte, err error) {
	switch s {
	case keyspec.RSA2048, keyspec.RSA3072, keyspec.RSA4096:
		k, err := rsa.GenerateKey(rand.Reader, s.Info().Bits)
		if err != nil {
			return nil, nil, err
		}
		defer wipeRSA(k)
		return marshal(s, k)
	case keyspec.P256, keyspec.P384, keyspec.P521:
		k, err := ecdsa.GenerateKey(curve(s), rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		return marshal(s, k)
	case keyspec.Ed25519:
		_, k, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, nil, err
		}
		defer clear(k)
		return marshal(s, k)
	case keyspec.Secp256k1:
		return generateSecp256k1()
	}
	switch s.Info().Family {
	case keyspec.HMAC, keyspec.AES:
		return random(s.Info().Bits / 8), nil, nil
	case keyspec.MLDSA:
		return generateMLDSA(s)
	case keyspec.MLKEM:
		return generateMLKEM(s)
	}
	return nil, nil, ErrUnsupported
}

// GeneratePair makes a key pair for GenerateDataKeyPair, of the specs that are for it (keyspec.Info.Pair): DER SubjectPublicKeyInfo and DER PKCS #8,
// which for ML-KEM has the seed only (RFC 9935) and therefore one length for all three. pkcs8 is the caller's to clear. How many of these run
// at once is bounded by the caller.
func GeneratePair(s keyspec.Spec) (spki, pkcs8 []byte, err error) {
	if !s.Info().Pair {
		return nil, nil, ErrUnsupported
	}
	private, public, err := Generate(s)
	if err != nil || s.Info().Family != keyspec.MLKEM {
		return public, private, err
	}
	head := kemHeads[s]
	pkcs8 = make([]byte, 0, len(head)+len(private))
	pkcs8 = append(append(pkcs8, head...), private...)
	clear(private)
	return public, pkcs8, nil
}

// marshal encodes a key of Go's library.
func marshal(s keyspec.Spec, k crypto.Signer) (private, public []byte, err error) {
	if public, err = x509.MarshalPKIXPublicKey(k.Public()); err != nil {
		return nil, nil, err
	}
	if _, err = pubkey.Parse(s, public); err != nil {
		return nil, nil, err
	}
	if private, err = x509.MarshalPKCS8PrivateKey(k); err != nil {
		return nil, nil, err
	}
	return private, public, nil
}

func generateSecp256k1() (private, public []byte, err error) {
	k, err := secp256k1.GeneratePrivateKeyFromRand(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	defer k.Zero()
	point, scalar := k.PubKey().SerializeUncompressed(), k.Serialize()
	defer clear(scalar)
	if public, err = pubkey.Marshal(keyspec.Secp256k1, point); err != nil {
		return nil, nil, err
	}
	return marshalSecp256k1(scalar, point), public, nil
}

func generateMLDSA(s keyspec.Spec) (private, public []byte, err error) {
	seed := random(mldsa.PrivateKeySize)
	k, err := mldsa.NewPrivateKey(mldsaParameters(s), seed)
	if err != nil {
		return nil, nil, err
	}
	public, err = pubkey.Marshal(s, k.PublicKey().Bytes())
	return seed, public, err
}

func generateMLKEM(s keyspec.Spec) (private, public []byte, err error) {
	seed := random(kemSeedBytes)
	var raw []byte
	switch s {
	case keyspec.MLKEM512:
		k, _ := mlkem512.NewKeyFromSeed(seed)
		raw = make([]byte, mlkem512.PublicKeySize)
		k.Pack(raw)
	case keyspec.MLKEM768:
		k, err := mlkem.NewDecapsulationKey768(seed)
		if err != nil {
			return nil, nil, err
		}
		raw = k.EncapsulationKey().Bytes()
	case keyspec.MLKEM1024:
		k, err := mlkem.NewDecapsulationKey1024(seed)
		if err != nil {
			return nil, nil, err
		}
		raw = k.EncapsulationKey().Bytes()
	}
	public, err = pubkey.Marshal(s, raw)
	return seed, public, err
}

// random is n random bytes. crypto/rand never fails: it ends the process instead.
func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func curve(s keyspec.Spec) elliptic.Curve {
	switch s {
	case keyspec.P256:
		return elliptic.P256()
	case keyspec.P384:
		return elliptic.P384()
	}
	return elliptic.P521()
}
