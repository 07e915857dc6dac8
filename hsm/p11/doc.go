// Package p11 is the Token and Session of package hsm over PKCS#11 modules, and what an operator needs to set a token up: InitRoots and
// Probe. It is the only package that calls a module, and needs cgo. It knows nothing of the KMS API but the names a probe reports.
//
// miekg/pkcs11 does slots, sessions, objects and the probe. It copies through C memory that it does not wipe, so what carries secrets goes
// through shim.c, which asks the same library instance for its own function list: C_Login, the round (C_GenerateRandom and
// C_EncryptUpdate, or C_EncryptInit and C_Encrypt), and each use of a key (C_SignInit and C_Sign, C_DecryptInit and C_Decrypt, or C_DeriveKey
// with what takes the secret out), in one crossing into the caller's memory without an allocation.
//
// Keys are made, wrapped and loaded in keys.go, what they are made of is in keys_made.go, what a token can do with them is found out in keys_try.go,
// and operation.go has the mechanisms. docs/hsm-modules.md says how modules differ.
//
// A module is C code in this process. It is initialised once, with CKF_OS_LOCKING_OK, by the first token opened on it and finalised by
// the last one closed, unless a call still hangs in it. The package starts no goroutine.
//
// # Token URIs
//
// A token is named by an RFC 7512 URI:
//
//	pkcs11:token=LABEL;serial=SERIAL?module-path=/ABSOLUTE/PATH&pin-source=file:/PATH
//
// Tokens are chosen by token, serial, manufacturer and model, which must match one token, and never by slot number: slot numbers change.
// pin-source is a file of one line that only its owner can read; pin-value is refused, because command lines are public. The vendor
// attribute x-init-args is handed to C_Initialize as its parameter string, which NSS wants:
//
//	x-init-args=configdir%3D'sql%3A/var/lib/nss'%20certPrefix%3D''%20keyPrefix%3D''%20secmod%3D'secmod.db'%20flags%3D
package p11
