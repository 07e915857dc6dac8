package p11

/*
#cgo CFLAGS: -Wall -Wextra -O2
#cgo linux LDFLAGS: -ldl
#cgo noescape kp_round
#cgo nocallback kp_round
#cgo noescape kp_use
#cgo nocallback kp_use
#include <stdlib.h>
#include "shim.h"
*/
import "C"

import (
	"bytes"
	"errors"
	"runtime"
	"unsafe"

	"github.com/keyplane/keyplane/hsm"
)

// functions is a module's CK_FUNCTION_LIST. It lives as long as the process.
type functions struct{ list *C.kp_functions }

func load(path string) (functions, error) {
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	var reason [256]C.char
	list := C.kp_load(name, &reason[0], C.size_t(len(reason)))
	if list == nil {
		return functions{}, errors.New(C.GoString(&reason[0]))
	}
	return functions{list}, nil
}

// initialize gives the module args as its parameter string where there are any. Modules keep no pointer to it.
func (f functions) initialize(args string) error {
	var p *C.char
	if args != "" {
		p = C.CString(args)
		defer C.free(unsafe.Pointer(p))
	}
	return ckr("C_Initialize", uint64(C.kp_initialize(f.list, p)))
}

func (f functions) finalize() error { return ckr("C_Finalize", uint64(C.kp_finalize(f.list))) }

func (f functions) login(session uint, pin []byte) error { return f.loginAs(session, 0, pin) }

// loginOfficer logs the Security Officer in.
func (f functions) loginOfficer(session uint, pin []byte) error { return f.loginAs(session, 1, pin) }

func (f functions) loginAs(session uint, officer C.int, pin []byte) error {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	pinner.Pin(&pin[0])
	return ckr("C_Login", uint64(C.kp_login(f.list, C.ulong(session), officer, (*C.uchar)(&pin[0]), C.ulong(len(pin)))))
}

// mode is how a round encrypts: shim.h.
type mode uint

const (
	single mode = C.KP_SINGLE
	begin  mode = C.KP_BEGIN
	next   mode = C.KP_NEXT
	renew  mode = C.KP_RENEW
)

// round is the crossing. The slices are pinned for the call, as every pointer argument of cgo is; nothing here escapes or allocates.
func (f functions) round(session, key uint, m mode, in, out, random []byte) error {
	r := C.kp_round(f.list, C.ulong(session), C.ulong(key), C.ulong(m),
		(*C.uchar)(unsafe.SliceData(in)), (*C.uchar)(unsafe.SliceData(out)), C.ulong(len(in)),
		(*C.uchar)(unsafe.SliceData(random)), C.ulong(len(random)))
	if r.rv == 0 {
		return nil
	}
	return phaseError(r.rv, r.phase)
}

// phaseError is the error of a crossing that ended in phase.
func phaseError(rv, phase C.ulong) error {
	switch phase {
	case C.KP_LENGTH:
		return hsm.ErrWrong
	default:
		return ckr(phaseNames[phase], uint64(rv))
	}
}

var phaseNames = [...]string{
	C.KP_DONE: "C_Encrypt", C.KP_RANDOM: "C_GenerateRandom", C.KP_ENCRYPT_INIT: "C_EncryptInit", C.KP_ENCRYPT: "C_Encrypt",
	C.KP_ENCRYPT_UPDATE: "C_EncryptUpdate", C.KP_ENCRYPT_FINAL: "C_EncryptFinal", C.KP_SIGN_INIT: "C_SignInit", C.KP_SIGN: "C_Sign",
	C.KP_DECRYPT_INIT: "C_DecryptInit", C.KP_DECRYPT: "C_Decrypt", C.KP_DERIVE_KEY: "C_DeriveKey", C.KP_GET_VALUE: "C_GetAttributeValue",
	C.KP_DESTROY: "C_DestroyObject", C.KP_WRAP_KEY: "C_WrapKey",
	C.KP_CREATE: "C_CreateObject",
}

// end ends the encryption that stays active in the session.
func (f functions) end(session uint) error {
	r := C.kp_end(f.list, C.ulong(session))
	if r.rv == 0 {
		return nil
	}
	return phaseError(r.rv, r.phase)
}

// operation is what is done with a key: shim.h.
type operation struct {
	how, mechanism, parameter uint
	hash, mgf, salt           uint
	n                         int // bytes of the result; 0: any number
}

const (
	signs    = C.KP_SIGNS
	decrypts = C.KP_DECRYPTS
	derives  = C.KP_DERIVES
	encrypts = C.KP_ENCRYPTS

	withPSS     = C.KP_PSS
	withOAEP    = C.KP_OAEP
	withPrehash = C.KP_PREHASH
)

// initFunction is the first function that the operation calls.
func (o operation) initFunction() string {
	switch o.how {
	case signs:
		return "C_SignInit"
	case decrypts:
		return "C_DecryptInit"
	case encrypts:
		return "C_EncryptInit"
	}
	return "C_DeriveKey"
}

// use is the crossing of one operation with a key, on the terms of round. On an error out is wiped.
func (f functions) use(session, key uint, o *operation, in, out []byte) (n int, err error) {
	r := C.kp_use(f.list, C.ulong(session), C.ulong(key), C.kp_operation{
		how: C.ulong(o.how), mechanism: C.ulong(o.mechanism), parameter: C.ulong(o.parameter),
		hash: C.ulong(o.hash), mgf: C.ulong(o.mgf), salt_len: C.ulong(o.salt), n: C.ulong(o.n),
	}, (*C.uchar)(unsafe.SliceData(in)), C.ulong(len(in)), (*C.uchar)(unsafe.SliceData(out)), C.ulong(len(out)))
	if r.rv == 0 {
		return int(r.n), nil
	}
	return 0, phaseError(r.rv, r.phase)
}

// wrappedMax is more than a wrapped key has: an RSA_4096 one has 2384 bytes.
const wrappedMax = 4096

// wrap wraps a key. The result starts with format.
func (f functions) wrap(session, mechanism, root, key uint, format byte) ([]byte, error) {
	out := make([]byte, 1+wrappedMax)
	out[0] = format
	n, err := f.wrapInto(session, operation{mechanism: mechanism}, root, key, out[1:])
	if err != nil {
		return nil, err
	}
	return bytes.Clone(out[:1+n]), nil
}

// wrapInto wraps a key with the operation's mechanism into out.
func (f functions) wrapInto(session uint, o operation, root, key uint, out []byte) (n int, err error) {
	r := C.kp_wrap(f.list, C.ulong(session), C.ulong(o.mechanism), C.ulong(o.hash), C.ulong(o.mgf), C.ulong(root), C.ulong(key),
		(*C.uchar)(unsafe.SliceData(out)), C.ulong(len(out)))
	if r.rv != 0 {
		return 0, phaseError(r.rv, r.phase)
	}
	return int(r.n), nil
}

// createKEK makes an AES key that unwraps, of a value that goes to the module and nowhere else.
func (f functions) createKEK(session uint, value []byte) (object uint, err error) {
	r := C.kp_create_kek(f.list, C.ulong(session), (*C.uchar)(unsafe.SliceData(value)), C.ulong(len(value)))
	if r.rv != 0 {
		return 0, phaseError(r.rv, r.phase)
	}
	return uint(r.n), nil
}

// valueLen is how long an object's value is.
func (f functions) valueLen(session, object uint) (n uint, err error) {
	r := C.kp_value_len(f.list, C.ulong(session), C.ulong(object))
	if r.rv != 0 {
		return 0, phaseError(r.rv, r.phase)
	}
	return uint(r.n), nil
}

func (f functions) streams() bool { return C.kp_streams(f.list) != 0 }

func ckr(function string, rv uint64) error {
	if rv == 0 {
		return nil
	}
	return &hsm.Error{CKR: hsm.CKR(rv), Function: function}
}
