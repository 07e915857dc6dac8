//go:build !(cgo && unix)

package aesgcm

// Without cgo neither library can be loaded.
func loadLibcrypto() bool { return false }

func libcryptoSeal([]byte, *[KeyLen]byte, *[NonceLen]byte, []byte, []byte) bool { return false }

func libcryptoOpen([]byte, *[KeyLen]byte, *[NonceLen]byte, []byte, []byte) (ok, done bool) {
	return false, false
}

func loadBearSSL() bool { return false }

func bearsslSeal([]byte, *[KeyLen]byte, *[NonceLen]byte, []byte, []byte) {
	panic("aesgcm: bearssl is not in this build")
}

func bearsslOpen([]byte, *[KeyLen]byte, *[NonceLen]byte, []byte, []byte) bool {
	panic("aesgcm: bearssl is not in this build")
}
