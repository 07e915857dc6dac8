package p11

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/secret"
)

// pinMax bounds a PIN, in bytes.
const pinMax = 256

// OpenPIN is Open with a PIN in place of the file that the URI names, for tokens whose PIN others know, and change: those of a key store. pin is the caller's.
// One call tries it once, and the Token not again if the module refuses it; the next OpenPIN does. A token that this process is logged in to already takes
// only the PIN of that login. The error wraps hsm.ErrPIN and the *hsm.Error of C_Login: CKR_PIN_LOCKED also where one try is left, which is not made,
// CKR_USER_PIN_NOT_INITIALIZED also where the token wants no login.
func OpenPIN(uri string, pin []byte) (hsm.Token, error) {
	cfg, err := parseConfig(uri)
	switch {
	case err != nil:
		return nil, err
	case cfg.pinFile != "":
		return nil, errors.New("p11: pin-source is not accepted here: the PIN is that of the key store")
	case len(pin) == 0 || len(pin) > pinMax:
		return nil, fmt.Errorf("%w: %w", hsm.ErrPIN, &hsm.Error{CKR: hsm.CKR_PIN_LEN_RANGE, Function: "C_Login"})
	}
	t, err := openAs(cfg, secret.New(bytes.Clone(pin)))
	if err != nil {
		return nil, err
	}
	return t, nil
}

// login is this process's login to a token.
type login struct {
	mu   sync.Mutex        // held while somebody logs in
	with [sha256.Size]byte // guarded by mu: fingerprint of the PIN of the last login
}

// loginOf is the module's login to a token, by serial and label.
func (m *module) loginOf(token string) *login {
	m.known.Lock()
	defer m.known.Unlock()
	l := m.logins[token]
	if l == nil {
		l = &login{}
		m.logins[token] = l
	}
	return l
}

// fingerprintKey makes fingerprints of no use to whoever reads the memory of another process.
var fingerprintKey = sync.OnceValue(func() []byte {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // it does not fail
	return key
})

// fingerprint tells PINs apart.
func fingerprint(pin secret.Bytes) (f [sha256.Size]byte) {
	h := hmac.New(sha256.New, fingerprintKey())
	h.Write(pin.Expose())
	h.Sum(f[:0])
	return f
}
