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
// rare:
//
//   - Go's crypto/aes is table-based without the instructions (its documentation says so; bitslicing is golang/go#69025, open), and so is
//     its GHASH. GODEBUG=cpu.aes=off is therefore no portable path but an unsafe one.
//   - libcrypto with the instructions masked by OPENSSL_ia32cap has bitsliced and vector-permute AES. For GCM, however, it prefers the
//     bitsliced code where it has it (any x86-64 CPU with SSSE3), which covers runs of eight blocks or more only: key schedule, hash key,
//     tag mask and short messages, that is every data key, take the table-based AES_encrypt. Without carry-less multiplication its GHASH
//     is a 4-bit table. (providers/implementations/ciphers/cipher_aes_gcm_hw.c, crypto/modes/gcm128.c of OpenSSL 3.)
//   - libsodium offers AES-GCM with the instructions only. The Go module bsaes has had no release since 2019 and cannot be had from
//     the module proxy.
//   - BearSSL is constant time in both halves (https://www.bearssl.org/constanttime.html), as far as the CPU multiplies 64-bit words in
//     constant time. Debian has it as libbearssl0.
//
// Where no constant-time path can be had, Configure refuses: there is no silent step down to tables. CPUs other than amd64 and arm64
// count as without instructions.
//
// The package knows no keys, blobs or HSMs and starts no goroutine. Contexts belong to threads and live in C.
//
// # Wiping
//
// The libcrypto path sets the zero key after every message, which overwrites key schedule, hash key and counter; that costs one more key
// set-up, measured as 245 ns of some 1150 ns for a 32-byte message. The bearssl path clears its stack. Keys are the caller's to wipe.
// What no path can reach: registers, and copies that the runtime made of stacks it moved.
package aesgcm
