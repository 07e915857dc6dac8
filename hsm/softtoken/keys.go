package softtoken

import (
	"bytes"
	"errors"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/keywrap"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/keyplane/keyplane/internal/softkey"
)

// Keys makes and uses private and secret keys in the memory of this process (internal/softkey), for the soft token and for what another token
// does not offer. It is an hsm.SoftwareKeys. The private half of a key leaves it sealed only.
type Keys struct {
	Seal func(s keyspec.Spec, private []byte) (sealed []byte, err error)
	// Open is the way back, for no other spec. What it returns is wiped. The error of what was not sealed, or not like this, is one of an
	// hsm.Error's class D.
	Open func(s keyspec.Spec, sealed []byte) (private []byte, err error)
}

// GenerateKey makes a key.
func (k Keys) GenerateKey(s keyspec.Spec) (sealed, public []byte, err error) {
	private, public, err := softkey.Generate(s)
	if errors.Is(err, softkey.ErrUnsupported) {
		return nil, nil, hsm.ErrNotOffered
	}
	if err != nil {
		return nil, nil, &hsm.Error{CKR: hsm.CKR_FUNCTION_FAILED, Function: "C_GenerateKeyPair"}
	}
	defer secret.Wipe(private)
	if sealed, err = k.Seal(s, private); err != nil {
		return nil, nil, err
	}
	return sealed, public, nil
}

// ErrSealed is a module's answer to what it did not wrap.
var ErrSealed = &hsm.Error{CKR: hsm.CKR_WRAPPED_KEY_INVALID, Function: "C_UnwrapKey"}

// LoadKey opens a key and makes it ready for use.
func (k Keys) LoadKey(s keyspec.Spec, sealed []byte) (hsm.LoadedKey, error) {
	private, err := k.Open(s, sealed)
	if err != nil {
		return hsm.LoadedKey{}, err
	}
	defer secret.Wipe(private)
	key, err := softkey.Load(s, private)
	switch {
	case errors.Is(err, softkey.ErrUnsupported):
		return hsm.LoadedKey{}, hsm.ErrNotOffered
	case errors.Is(err, softkey.ErrKey):
		return hsm.LoadedKey{}, ErrSealed
	case err != nil:
		return hsm.LoadedKey{}, &hsm.Error{CKR: hsm.CKR_HOST_MEMORY, Function: "C_UnwrapKey"}
	}
	return hsm.LoadedKey{Object: key}, nil
}

// UnloadKey wipes a key.
func (k Keys) UnloadKey(l hsm.LoadedKey) error {
	if key, ok := l.Object.(*softkey.Key); ok {
		key.Wipe()
	}
	return nil
}

// Use does one operation, with the errors that a module gives.
func (k Keys) Use(l hsm.LoadedKey, s keyspec.Spec, m hsm.Mechanism, in, out []byte) (int, error) {
	key, ok := l.Object.(*softkey.Key)
	switch {
	case !ok:
		clear(out)
		return 0, &hsm.Error{CKR: hsm.CKR_KEY_HANDLE_INVALID, Function: m.Function()}
	case key.Spec() != s:
		clear(out)
		return 0, &hsm.Error{CKR: hsm.CKR_KEY_TYPE_INCONSISTENT, Function: m.Function()}
	}
	n, err := key.Do(softkey.Op(m), in, out)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, softkey.ErrUnsupported):
		return 0, hsm.ErrNotOffered
	case errors.Is(err, softkey.ErrWiped):
		return 0, &hsm.Error{CKR: hsm.CKR_KEY_HANDLE_INVALID, Function: m.Function()}
	case errors.Is(err, softkey.ErrData):
		return 0, dataError(m)
	}
	return 0, &hsm.Error{CKR: hsm.CKR_FUNCTION_FAILED, Function: m.Function()}
}

// dataError is a module's answer to bad input of the mechanism.
func dataError(m hsm.Mechanism) error {
	switch m {
	case hsm.DecryptOAEP1, hsm.DecryptOAEP256, hsm.DecapsulateMLKEM:
		return &hsm.Error{CKR: hsm.CKR_ENCRYPTED_DATA_INVALID, Function: m.Function()}
	case hsm.DeriveECDH:
		return &hsm.Error{CKR: hsm.CKR_PUBLIC_KEY_INVALID, Function: m.Function()}
	}
	return &hsm.Error{CKR: hsm.CKR_DATA_LEN_RANGE, Function: m.Function()}
}

// keys are the token's own, wrapped under the second root with AES-KWP together with the name of the spec, which it has no other place for.
func (t *Token) keys() Keys { return Keys{Seal: t.wrap, Open: t.unwrap} }

// wrap wraps the spec's name, a zero byte and the private half.
func (t *Token) wrap(s keyspec.Spec, private []byte) ([]byte, error) {
	framed := make([]byte, 0, len(s.String())+1+len(private))
	framed = append(append(append(framed, s.String()...), 0), private...)
	defer secret.Wipe(framed)
	return keywrap.Wrap(nil, t.wrapping, framed), nil
}

func (t *Token) unwrap(s keyspec.Spec, wrapped []byte) ([]byte, error) {
	framed, ok := keywrap.Unwrap(t.wrapping, wrapped)
	name, private, cut := bytes.Cut(framed, []byte{0})
	if !ok || !cut || string(name) != s.String() {
		secret.Wipe(framed)
		return nil, ErrSealed
	}
	return private, nil
}

// Keys are all that there are.
func (t *Token) Keys(s keyspec.Spec) hsm.Mechanisms { return hsm.MechanismsOf(s) }

// GenerateKey makes a key and wraps it with AES-KWP (RFC 5649).
func (t *Token) GenerateKey(s keyspec.Spec) (wrapped, public []byte, err error) {
	if err := t.alive(t.generation.Load(), "C_GenerateKeyPair"); err != nil {
		return nil, nil, err
	}
	return t.keys().GenerateKey(s)
}

// LoadKey unwraps a key. That it does not leave the token is this package's word, as with the roots.
func (t *Token) LoadKey(s keyspec.Spec, wrapped []byte) (hsm.LoadedKey, error) {
	generation := t.generation.Load()
	if err := t.alive(generation, "C_UnwrapKey"); err != nil {
		return hsm.LoadedKey{}, err
	}
	l, err := t.keys().LoadKey(s, wrapped)
	l.Generation = generation
	return l, err
}

// UnloadKey wipes a key of any generation.
func (t *Token) UnloadKey(l hsm.LoadedKey) error { return t.keys().UnloadKey(l) }

// Use does one operation with a key of the session's generation.
func (s *session) Use(l hsm.LoadedKey, spec keyspec.Spec, m hsm.Mechanism, in, out []byte) (int, error) {
	var err error
	switch {
	case s.closed:
		err = hsm.ErrSessionClosed
	case l.Generation != s.token.generation.Load():
		err = &hsm.Error{CKR: hsm.CKR_KEY_HANDLE_INVALID, Function: m.Function()}
	default:
		err = s.token.alive(s.generation, m.Function())
	}
	if err != nil {
		clear(out)
		return 0, err
	}
	return Keys{}.Use(l, spec, m, in, out)
}
