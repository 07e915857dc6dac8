package hsmtest

import (
	"sync/atomic"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
)

// lent is the Object of a key that Faulty has loaded: the inner token's, whose generations are others.
type lent struct {
	inner    hsm.LoadedKey
	unloaded atomic.Bool
}

// Keys is nothing where the inner token is no KeyToken.
func (f *Faulty) Keys(s keyspec.Spec) hsm.Mechanisms {
	if t, ok := f.Token.(hsm.KeyToken); ok {
		return t.Keys(s)
	}
	return 0
}

func (f *Faulty) GenerateKey(s keyspec.Spec) (wrapped, public []byte, err error) {
	function := "C_GenerateKeyPair"
	if s.Info().Family == keyspec.HMAC {
		function = "C_GenerateKey"
	}
	if err := f.beforeIn(f.next(Generate), function); err != nil {
		return nil, nil, err
	}
	if f.loggedOut.Load() {
		return nil, nil, &hsm.Error{CKR: hsm.CKR_USER_NOT_LOGGED_IN, Function: function}
	}
	return f.Token.(hsm.KeyToken).GenerateKey(s)
}

func (f *Faulty) LoadKey(s keyspec.Spec, wrapped []byte) (hsm.LoadedKey, error) {
	if err := f.beforeIn(f.next(Load), "C_UnwrapKey"); err != nil {
		return hsm.LoadedKey{}, err
	}
	if f.loggedOut.Load() {
		return hsm.LoadedKey{}, &hsm.Error{CKR: hsm.CKR_USER_NOT_LOGGED_IN, Function: "C_UnwrapKey"}
	}
	generation := f.Generation()
	inner, err := f.Token.(hsm.KeyToken).LoadKey(s, wrapped)
	if err != nil {
		return hsm.LoadedKey{}, err
	}
	f.loaded.Add(1)
	return hsm.LoadedKey{Handle: inner.Handle, Generation: generation, Object: &lent{inner: inner}}, nil
}

func (f *Faulty) UnloadKey(k hsm.LoadedKey) error {
	err := f.beforeIn(f.next(Unload), "C_DestroyObject")
	l, ok := k.Object.(*lent)
	if !ok || l.unloaded.Swap(true) {
		return err
	}
	f.loaded.Add(-1)
	if inner := f.Token.(hsm.KeyToken).UnloadKey(l.inner); err == nil {
		err = inner
	}
	return err
}

// Imports is nothing where the inner token is no ImportToken.
func (f *Faulty) Imports(s keyspec.Spec, w keyspec.Wrapping) (ok, inside bool, err error) {
	if err := f.before(f.next(Imports)); err != nil {
		return false, false, err
	}
	if t, is := f.Token.(hsm.ImportToken); is {
		return t.Imports(s, w)
	}
	return false, false, nil
}

func (f *Faulty) ImportKey(s keyspec.Spec, wrapping keyspec.Spec, private []byte, w keyspec.Wrapping, material []byte) (wrapped, public []byte, err error) {
	if err := f.beforeIn(f.next(Import), "C_UnwrapKey"); err != nil {
		return nil, nil, err
	}
	if f.loggedOut.Load() {
		return nil, nil, &hsm.Error{CKR: hsm.CKR_USER_NOT_LOGGED_IN, Function: "C_UnwrapKey"}
	}
	return f.Token.(hsm.ImportToken).ImportKey(s, wrapping, private, w, material)
}

func (f *Faulty) ExportKey(s keyspec.Spec, wrapped []byte, w keyspec.Wrapping, public []byte) (material []byte, err error) {
	if err := f.beforeIn(f.next(Export), "C_WrapKey"); err != nil {
		return nil, err
	}
	if f.loggedOut.Load() {
		return nil, &hsm.Error{CKR: hsm.CKR_USER_NOT_LOGGED_IN, Function: "C_WrapKey"}
	}
	return f.Token.(hsm.ImportToken).ExportKey(s, wrapped, w, public)
}

// Loaded is how many keys were loaded and not unloaded.
func (f *Faulty) Loaded() int { return int(f.loaded.Load()) }

// Use runs on a session of the token. Wrong flips a bit of the result, or of each of its blocks.
func (s *faultySession) Use(k hsm.LoadedKey, spec keyspec.Spec, m hsm.Mechanism, in, out []byte) (n int, err error) {
	f, function := s.token, m.Function()
	x := f.next(Use)
	err = f.beforeIn(x, function)
	l, ok := k.Object.(*lent)
	switch {
	case err != nil:
	case f.loggedOut.Load():
		err = &hsm.Error{CKR: hsm.CKR_USER_NOT_LOGGED_IN, Function: function}
	case !ok || k.Generation != f.Generation():
		err = &hsm.Error{CKR: hsm.CKR_KEY_HANDLE_INVALID, Function: function}
	case s.generation != f.Generation():
		err = &hsm.Error{CKR: hsm.CKR_SESSION_HANDLE_INVALID, Function: function}
	default:
		n, err = s.Session.(hsm.KeySession).Use(l.inner, spec, m, in, out)
	}
	if err != nil {
		clear(out)
		return 0, err
	}
	if x.Wrong {
		out[0] ^= 1
		for i := 16; m == hsm.EncryptBlocks && i < n; i += 16 {
			out[i] ^= 1
		}
	}
	if x.Short {
		clear(out[n/2:])
		n /= 2
	}
	return n, nil
}
