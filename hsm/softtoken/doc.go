// Package softtoken is a token in pure Go for the case that there is no HSM: the embedded default, tests, and builds without cgo.
// It knows the contracts of package hsm and nothing of PKCS#11 modules. It starts no goroutine.
//
// Private and secret keys (keys.go) work in internal/softkey and are wrapped under the second root with AES-KWP (internal/keywrap).
//
// The roots and the audit key are in <dir>/token.json, sealed under a key that PBKDF2 makes from a PIN, and the roots' key schedules are in this
// process's memory while the token is open, as are loaded keys: whoever reads both files, or the memory, has the keys. TokenInfo.Software says so.
package softtoken
