// Package blob is docs/ciphertext.md in code: the header of the ciphertext blob and the canonical encryption context, which together are
// the additional authenticated data of its AES-256-GCM.
//
//	version(1) || suite(1) || account(6) || key ID form(1) || key ID(16) || key version(4) || nonce(24) || commitment(16) || ciphertext(n) || tag(16)
//
// Of keys in external key stores what follows the header is encrypted once more, by others (Outer).
//
// It knows no keys and does no cryptography: internal/kdf makes the message key and the commitment, internal/aesgcm seals and opens.
// Slices it returns alias their input. Nothing here allocates, starts a goroutine or keeps what it was given beyond Reset.
package blob
