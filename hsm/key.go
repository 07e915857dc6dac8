package hsm

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// Mechanism is what is done with a private or secret key inside a token, in terms of bytes in and bytes out. Hashing, encoding and everything
// that needs only the public key happens outside (internal/pubkey).
type Mechanism uint8

const (
	NoMechanism      Mechanism = iota
	SignPKCS1                  // DigestInfo → signature: CKM_RSA_PKCS
	SignPSS256                 // SHA-256 digest → signature, salt as long as the digest: CKM_RSA_PKCS_PSS
	SignPSS384                 // the same with SHA-384
	SignPSS512                 // the same with SHA-512
	SignECDSA                  // digest, of the curve's length at most → r || s: CKM_ECDSA
	SignEd25519                // message → signature: CKM_EDDSA
	SignEd25519ph              // 64 bytes, which HashEdDSA hashes no more → signature: CKM_EDDSA with phFlag
	SignMLDSA                  // external μ of 64 bytes → hedged signature
	MAC                        // message → MAC of the spec: CKM_SHA…_HMAC
	DecryptOAEP1               // ciphertext → plaintext, SHA-1 for hash and MGF1, no label: CKM_RSA_PKCS_OAEP, or CKM_RSA_X_509 and our own decoding
	DecryptOAEP256             // the same with SHA-256
	DeriveECDH                 // uncompressed point of the peer, known to be on the curve → x coordinate: CKM_ECDH1_DERIVE
	DecapsulateMLKEM           // ciphertext of the right length → shared secret
	EncryptBlocks              // AES blocks → their images, each on its own; of a job 1 to 6: CKM_AES_ECB
	mechanisms
)

// Function is the PKCS#11 function that gives, or would give, the mechanism's result.
func (m Mechanism) Function() string {
	switch m {
	case DecryptOAEP1, DecryptOAEP256:
		return "C_Decrypt"
	case DeriveECDH:
		return "C_DeriveKey"
	case DecapsulateMLKEM:
		return "C_DecapsulateKey"
	case EncryptBlocks:
		return "C_Encrypt"
	}
	return "C_Sign"
}

// MechanismsOf are those that there are for keys of the spec.
func MechanismsOf(s keyspec.Spec) (all Mechanisms) {
	i := s.Info()
	switch i.Family {
	case keyspec.RSA:
		return all.With(SignPKCS1).With(SignPSS256).With(SignPSS384).With(SignPSS512).With(DecryptOAEP1).With(DecryptOAEP256)
	case keyspec.EC:
		all = all.With(SignECDSA)
		if i.Usages&keyspec.KeyAgreement != 0 {
			all = all.With(DeriveECDH)
		}
	case keyspec.Edwards:
		return all.With(SignEd25519).With(SignEd25519ph)
	case keyspec.HMAC:
		return all.With(MAC)
	case keyspec.MLDSA:
		return all.With(SignMLDSA)
	case keyspec.MLKEM:
		return all.With(DecapsulateMLKEM)
	case keyspec.AES:
		return all.With(EncryptBlocks)
	}
	return all
}

// Mechanisms is a set of them.
type Mechanisms uint32

// Has says whether m is in the set.
func (s Mechanisms) Has(m Mechanism) bool { return s&(1<<m) != 0 }

// With is the set and m.
func (s Mechanisms) With(m Mechanism) Mechanisms { return s | 1<<m }

var (
	// ErrNotOffered says that no token at hand makes keys of the spec, or does what was asked with one.
	ErrNotOffered = errors.New("hsm: the token does not offer this")
	// ErrKeyRefused says that the token gave a key other attributes than were asked for: it could leave the token, or do more than it should.
	ErrKeyRefused = errors.New("hsm: the token does not protect the key as it was asked to")
)

// ErrMaterial says that key material from outside does not unwrap to a key of the spec.
var ErrMaterial = errors.New("hsm: the key material does not unwrap to a key of the spec")

// KeyToken is a Token that makes private and secret keys, and keeps none of them: they leave it wrapped under the wrapping root and come back as
// session objects. Methods are safe for concurrent use, and none runs on the sessions that serve rounds.
type KeyToken interface {
	Token
	// Keys says what the token can do with keys of the spec: empty where it cannot make, wrap and unwrap them. It is found out by trying, once.
	Keys(keyspec.Spec) Mechanisms
	// GenerateKey makes a key of the spec in the token. It returns its private half (of HMAC keys: the key) wrapped under the wrapping root, and
	// the public half as DER SubjectPublicKeyInfo, nil for HMAC. Nothing of the key stays in the token. It can take many seconds (RSA_4096).
	GenerateKey(keyspec.Spec) (wrapped, public []byte, err error)
	// LoadKey unwraps a key to a session object that every session of the token's present generation can use, and refuses it with ErrKeyRefused
	// unless the attributes read back are those of a key that stays in the token and does only what the spec's keys do.
	LoadKey(s keyspec.Spec, wrapped []byte) (LoadedKey, error)
	// UnloadKey destroys the session object, if the token still has it.
	UnloadKey(LoadedKey) error
}

// LoadedKey is a key that LoadKey has brought in.
type LoadedKey struct {
	Handle     Handle
	Generation uint64 // of the token: in another the handle means nothing, or another key
	Object     any    // what an implementation in Go keeps instead of a handle
}

// ImportToken is a KeyToken into which keys come from outside, and that wraps its keys for another token. Key material is, before it is wrapped: of AES and
// HMAC keys the raw key, of private keys a PKCS #8 PrivateKeyInfo in DER.
type ImportToken interface {
	KeyToken
	// Imports says whether ImportKey does this for keys of the spec. inside says that the material is in clear in the token only, and never in this
	// process. It is found out by trying, once, which takes seconds. ErrUnavailable, or the token's error, while it could not be found out; it is tried again later.
	Imports(s keyspec.Spec, w keyspec.Wrapping) (ok, inside bool, err error)
	// ImportKey unwraps material that was wrapped for the public half of an RSA key that GenerateKey made: wrapping is that key's spec, private what was
	// returned of it. It returns what GenerateKey does. Whatever is wrong with the material, padding, length, encoding, curve, is one and the same error,
	// ErrMaterial. What is decoded in this process is so in a time that does not tell which; of what is unwrapped in a module the time is the module's. A *MaterialFault is that too. ErrKeyRefused as with LoadKey.
	ImportKey(s keyspec.Spec, wrapping keyspec.Spec, private []byte, w keyspec.Wrapping, material []byte) (wrapped, public []byte, err error)
	// ExportKey wraps a key, which GenerateKey or ImportKey gave, for an RSA public key of another token (DER SubjectPublicKeyInfo, at least 3072 bits),
	// with WrapRSAAES1 or WrapRSAAES256. The key is in clear in the token only. ErrNotOffered if the token cannot.
	ExportKey(s keyspec.Spec, wrapped []byte, w keyspec.Wrapping, public []byte) (material []byte, err error)
}

// KeySession is a Session that uses loaded keys.
type KeySession interface {
	Session
	// Use does one operation and returns the length of its result, which is in out. out has room for the longest result of the spec
	// (keyspec.Info.Result). EncryptBlocks comes with the blocks of several jobs, and a known one, KeyInMax bytes at most, and out has room for as many. in and out do not
	// overlap, and on an error out is wiped. The error is an *Error, of which those of the class's action
	// D are the data's fault, or ErrNotOffered.
	Use(k LoadedKey, s keyspec.Spec, m Mechanism, in, out []byte) (n int, err error)
}

// SoftwareKeys makes and uses keys outside of the tokens, which it seals under the derivation root of the first. Its methods do what those of
// KeyToken and KeySession do. They are safe for concurrent use and return in reasonable time.
type SoftwareKeys interface {
	GenerateKey(keyspec.Spec) (sealed, public []byte, err error)
	LoadKey(s keyspec.Spec, sealed []byte) (LoadedKey, error)
	UnloadKey(LoadedKey) error
	Use(k LoadedKey, s keyspec.Spec, m Mechanism, in, out []byte) (n int, err error)
	Imports(s keyspec.Spec, w keyspec.Wrapping) (ok, inside bool, err error)
	ImportKey(s keyspec.Spec, wrapping keyspec.Spec, private []byte, w keyspec.Wrapping, material []byte) (sealed, public []byte, err error)
	ExportKey(s keyspec.Spec, sealed []byte, w keyspec.Wrapping, public []byte) (material []byte, err error)
	// ImportOpened is ImportKey where the RSA key is a token's: opened is what RSAES_OAEP gave, nil for what it refused, and rest is the material after
	// the RSA block.
	ImportOpened(s keyspec.Spec, w keyspec.Wrapping, opened, rest []byte) (sealed, public []byte, err error)
}

// Key is a private or secret key as it is stored. It is not changed.
type Key struct {
	ID       [32]byte // of this key alone: the name of its handles
	Spec     keyspec.Spec
	Root     RootID // of the token whose wrapping root wraps it, named by its derivation root
	Software bool   // made and used outside of the token, and sealed under the derivation root
	Wrapped  []byte
}

// KeyJob is one operation with a private or secret key. The caller fills it, hands it to Keys.Run and reads the outcome when that returns.
type KeyJob struct {
	// Request.
	Key       *Key
	Mechanism Mechanism
	In        []byte // not changed
	Out       []byte // with room for the longest result
	// K1 is, for EncryptBlocks, subkey K1 of the key (internal/kdf), or zero where it is not known yet. A call with a job that knows it has a token encrypt a block
	// more, whose image gives K1: with another the results are ErrWrong's.
	K1 [blockLen]byte

	// Outcome.
	N   int   // bytes of Out
	Err error // nil, or one of this package's errors; a fault of the data is one for which Outcome is DataError

	Attempt uint8

	ticket atomic.Uint64 // of the hand-in, as in Job
}

// KeyInMax is the longest In: the longest message that the API signs, or makes a MAC of. Out is as long as keyspec.Info.Result, or longer.
const KeyInMax = 4096

// keyOutMax has room for the longest result, the signature of ML_DSA_87.
const keyOutMax = 4640

// Keys runs KeyJobs and makes keys.
type Keys interface {
	// Run runs a job in a round of one of the sessions for keys. The error is the job's, or that of the queue: batch's.
	Run(j *KeyJob, now time.Time) error
	// Generate makes a key on the first token, or in software where that is allowed and the token does not offer the spec: ErrNotOffered otherwise.
	// The key has no ID yet. public is DER SubjectPublicKeyInfo, nil for HMAC.
	Generate(s keyspec.Spec) (k *Key, public []byte, err error)
	// Offers says what is done with keys of the spec, and whether in software.
	Offers(s keyspec.Spec) (m Mechanisms, software bool)
	// Import brings a key in from outside (ImportToken.ImportKey) on the token whose root wraps the RSA key wrapping. The key has no ID yet. ErrMaterial;
	// ErrNotOffered.
	Import(s keyspec.Spec, wrapping *Key, w keyspec.Wrapping, material []byte) (k *Key, public []byte, err error)
	// Imports says whether Import does this, and whether the material is in clear only inside the token. ErrUnavailable while that is not known.
	Imports(s keyspec.Spec, w keyspec.Wrapping) (ok, inside bool, err error)
	// Export wraps a key for another token's RSA public key (ImportToken.ExportKey).
	Export(k *Key, w keyspec.Wrapping, public []byte) (material []byte, err error)
	// Forget unloads a key. It is loaded again when it is used again.
	Forget(id [32]byte)
}
