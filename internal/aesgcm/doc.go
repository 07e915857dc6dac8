// Package aesgcm is AES-256-GCM (NIST SP 800-38D) with a 12-byte nonce, a 16-byte tag and a fresh key for every message. The caller
// guarantees that no key and nonce pair seals twice; internal/kdf is what makes each key.
//
//	Seal: dst || ciphertext(n) || tag(16)          Open: dst || plaintext(n), or dst and false
//
// There is no AES or GHASH of ours here, only the choice, made once by Configure, of whose to call:
//
//	libcrypto   OpenSSL 3 by its EVP interface, loaded at run time, one re-keyed context per thread. Allocates nothing. The default where
//	            the library is there and the CPU has AES and carry-less multiplication instructions.
//	go          crypto/aes and crypto/cipher, on the same CPUs where libcrypto or cgo is missing. Two allocations a message, and the key
//	            schedule stays in the heap until the garbage collector reuses it.
//	bearssl     BearSSL's aes_ct64 and ghash_ctmul64, loaded at run time: constant time without any special instruction. Allocates nothing.
//	            For CPUs without the instructions and for --portable-crypto.
//
// # Why a third library
//
// AES by tables tells the key to whoever shares the CPU's cache, so what matters without AES instructions is constant time, and it is
// rare. Go's crypto/aes is table-based without the instructions (its documentation says so; bitslicing is open as golang/go#69025), and
// so is its GHASH; GODEBUG=cpu.aes=off therefore is not a portable path but an unsafe one. libcrypto with the instructions masked by
// OPENSSL_ia32cap has bitsliced (bsaes) and vector-permute (vpaes) code, yet for GCM on a CPU with SSSE3 it takes the key schedule and all single blocks
// (hash key, tag mask, messages under eight blocks: that is every data key) from the table-based AES_encrypt, and without carry-less
// multiplication its GHASH is a 4-bit table (providers/implementations/ciphers/cipher_aes_gcm_hw*.inc, crypto/modes/gcm128.c; OpenSSL
// 3.0 to 3.5). NSS has a constant-time GHASH but table-based AES, libgcrypt the reverse, libsodium offers AES-GCM with the
// instructions only, and the one Go module (bsaes) is withdrawn. BearSSL is constant time in both halves (https://www.bearssl.org/constanttime.html, as far
// as the CPU multiplies 64-bit words in constant time) and Debian has it as libbearssl0. Where none of these can be had, Configure
// refuses: there is no silent step down to tables.
//
// The package knows no keys, blobs or HSMs and starts no goroutine. Contexts belong to threads and live in C.
//
// # Wiping
//
// The libcrypto path sets the zero key after every message, which overwrites key schedule, hash key and counter; that costs about a fifth
// of a short message. The bearssl path clears its stack. Keys are the caller's to wipe. What no path can reach: registers, and copies
// that the runtime made of stacks it moved.
package aesgcm
