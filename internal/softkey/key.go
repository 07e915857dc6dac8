package softkey

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/mlkem"
	"crypto/rsa"
	"errors"
	"math/big"
	"reflect"
	"runtime"
	"sync"

	"filippo.io/mldsa"
	"github.com/cloudflare/circl/kem/mlkem/mlkem512"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// Op is what is done with a private or secret key. The constants are those of hsm.Mechanism: the same numbers, names and meanings.
type Op uint8

const (
	NoOp             Op = iota
	SignPKCS1           // DigestInfo → signature
	SignPSS256          // SHA-256 digest → signature, salt as long as the digest
	SignPSS384          // the same with SHA-384
	SignPSS512          // the same with SHA-512
	SignECDSA           // digest, of the curve's length at most → r || s
	SignEd25519         // message → signature
	SignEd25519ph       // 64 bytes, which HashEdDSA hashes no more → signature
	SignMLDSA           // external μ of 64 bytes → hedged signature
	MAC                 // message → MAC of the spec
	DecryptOAEP1        // ciphertext → plaintext, SHA-1 for hash and MGF1, no label
	DecryptOAEP256      // the same with SHA-256
	DeriveECDH          // uncompressed point of the peer → x coordinate
	DecapsulateMLKEM    // ciphertext of the right length → shared secret
	EncryptBlocks       // AES blocks, one at least → their images, each on its own
)

var (
	// ErrData says that the input is at fault: not of the right length, or not what the operation takes. It is the one error of everything that
	// can be wrong with an RSA ciphertext.
	ErrData = errors.New("softkey: the data is at fault")
	// ErrUnsupported says that keys of the spec do not do the operation, or that there are none of the spec.
	ErrUnsupported = errors.New("softkey: not for this spec")
	// ErrKey says that bytes are not those of a private key of the spec.
	ErrKey = errors.New("softkey: no private key of this spec")
	// ErrRoom says that the result has no room.
	ErrRoom = errors.New("softkey: no room for the result")
	// ErrWiped says that the key is wiped.
	ErrWiped = errors.New("softkey: the key is wiped")
)

// Key is a private or secret key. It is safe for concurrent use.
type Key struct {
	spec keyspec.Spec

	mu    sync.RWMutex // held for reading by Do: Wipe takes memory away
	wiped bool

	memory    memory // of raw
	raw       []byte // HMAC key or secp256k1 scalar
	forgotten runtime.Cleanup

	// For other families, one of these.
	aes     cipher.Block // the expanded key, on the heap; Wipe clears it
	rsa     *rsa.PrivateKey
	ecdsa   *ecdsa.PrivateKey
	ecdh    *ecdh.PrivateKey   // beside ecdsa
	ed25519 ed25519.PrivateKey // on the heap: the library caches what it computes of it under a weak pointer, which cannot point elsewhere
	mldsa   *mldsa.PrivateKey
	kem512  *mlkem512.PrivateKey
	kem768  *mlkem.DecapsulationKey768
	kem1024 *mlkem.DecapsulationKey1024
}

// Load makes a key of the private half in the form of Generate's. The error is ErrKey, ErrUnsupported for a spec that there is none of, or that of
// the system when it has no memory. private is copied, and the caller's to clear.
func Load(s keyspec.Spec, private []byte) (*Key, error) {
	k := &Key{spec: s}
	var err error
	switch s.Info().Family {
	case keyspec.RSA:
		k.rsa, err = parseRSA(s, private)
	case keyspec.EC:
		if s == keyspec.Secp256k1 {
			err = k.loadSecp256k1(private)
			break
		}
		if k.ecdsa, err = parseNIST(s, private); err == nil {
			k.ecdh, err = k.ecdsa.ECDH()
		}
	case keyspec.Edwards:
		k.ed25519, err = parseEd25519(private)
	case keyspec.HMAC:
		if len(private) != s.Info().Bits/8 {
			return nil, ErrKey
		}
		err = k.keep(private)
	case keyspec.AES:
		if len(private) != s.Info().Bits/8 {
			return nil, ErrKey
		}
		if k.aes, err = aes.NewCipher(private); err == nil {
			k.forgotten = runtime.AddCleanup(k, wipeAES, k.aes)
		}
	case keyspec.MLDSA:
		k.mldsa, err = mldsa.NewPrivateKey(mldsaParameters(s), private)
	case keyspec.MLKEM:
		if len(private) != kemSeedBytes {
			return nil, ErrKey
		}
		switch s {
		case keyspec.MLKEM512:
			_, k.kem512 = mlkem512.NewKeyFromSeed(private)
		case keyspec.MLKEM768:
			k.kem768, err = mlkem.NewDecapsulationKey768(private)
		case keyspec.MLKEM1024:
			k.kem1024, err = mlkem.NewDecapsulationKey1024(private)
		}
	default:
		return nil, ErrUnsupported
	}
	var system noMemory
	switch {
	case errors.As(err, &system):
		return nil, err
	case err != nil:
		return nil, ErrKey // of the libraries' errors nothing: they can quote what they parse
	}
	return k, nil
}

// noMemory is an error of the system.
type noMemory struct{ error }

// keep copies the raw key into memory of our own, which the collector frees with a key that nobody has wiped.
func (k *Key) keep(raw []byte) error {
	m, err := newMemory(len(raw), lock)
	if err != nil {
		return noMemory{err}
	}
	k.memory, k.raw = m, m.pages[:len(raw):len(raw)]
	copy(k.raw, raw)
	k.forgotten = runtime.AddCleanup(k, func(m memory) { m.free() }, m)
	return nil
}

// Spec is the key's spec.
func (k *Key) Spec() keyspec.Spec { return k.spec }

// Locked says whether the key is in memory that is never swapped out: false where the limit of locked memory, of which a key takes a page, does not allow it, and for specs whose
// keys are on Go's heap (see the package's comment).
func (k *Key) Locked() bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.memory.locked
}

// Wipe clears what can be cleared of the key, once no operation uses it. After it, Do gives ErrWiped.
func (k *Key) Wipe() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.forgotten.Stop()
	k.memory.free()
	k.raw = nil
	clear(k.ed25519)
	if k.rsa != nil {
		wipeRSA(k.rsa)
	}
	if k.aes != nil {
		wipeAES(k.aes)
	}
	k.aes, k.rsa, k.ecdsa, k.ecdh, k.ed25519, k.mldsa, k.kem512, k.kem768, k.kem1024 = nil, nil, nil, nil, nil, nil, nil, nil, nil
	k.wiped = true
}

// wipeAES clears an expanded key, which has no method to do it.
func wipeAES(b cipher.Block) { reflect.ValueOf(b).Elem().SetZero() }

func wipeRSA(k *rsa.PrivateKey) {
	clearInt(k.D)
	for _, p := range k.Primes {
		clearInt(p)
	}
	clearInt(k.Precomputed.Dp)
	clearInt(k.Precomputed.Dq)
	clearInt(k.Precomputed.Qinv)
}

func clearInt(n *big.Int) {
	if n != nil {
		clear(n.Bits())
		n.SetInt64(0)
	}
}
