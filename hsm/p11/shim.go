package p11

/*
#cgo CFLAGS: -Wall -Wextra -O2
#cgo linux LDFLAGS: -ldl
#cgo noescape kp_round
#cgo nocallback kp_round
#include <stdlib.h>
#include "shim.h"
*/
import "C"

import (
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

func (f functions) login(session uint, pin []byte) error {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	pinner.Pin(&pin[0])
	return ckr("C_Login", uint64(C.kp_login(f.list, C.ulong(session), (*C.uchar)(&pin[0]), C.ulong(len(pin)))))
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
	switch r.phase {
	case C.KP_RANDOM:
		return ckr("C_GenerateRandom", uint64(r.rv))
	case C.KP_ENCRYPT_INIT:
		return ckr("C_EncryptInit", uint64(r.rv))
	case C.KP_ENCRYPT_UPDATE:
		return ckr("C_EncryptUpdate", uint64(r.rv))
	case C.KP_ENCRYPT_FINAL:
		return ckr("C_EncryptFinal", uint64(r.rv))
	case C.KP_LENGTH:
		return hsm.ErrWrong
	}
	return ckr("C_Encrypt", uint64(r.rv))
}

func (f functions) streams() bool { return C.kp_streams(f.list) != 0 }

func ckr(function string, rv uint64) error {
	if rv == 0 {
		return nil
	}
	return &hsm.Error{CKR: hsm.CKR(rv), Function: function}
}
