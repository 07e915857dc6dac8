// Package softkey is private and secret keys in the memory of this process: for a token in software, for specs that a token does not offer where
// that is allowed, and for the data key pairs that leave the service anyway. It does the operations of hsm.Mechanism and nothing else; what needs
// no private key is internal/pubkey's.
//
// Reading order: key.go (Load, Do, Wipe) → operate.go → generate.go → pkcs8.go → memory.go.
//
// # What memory holds
//
// HMAC keys and secp256k1 scalars live in memory of our own: whole pages that are not on Go's heap, are left out of core dumps, and
// are locked against being swapped out where RLIMIT_MEMLOCK allows it (Key.Locked says so). Wipe clears them. They are all of the key that this
// package keeps, but not all that there is of it:
//
//   - Go's crypto computes on copies. HMAC keeps its padded key, ECDSA and Ed25519 keep scalars and nonces on the heap or the stack; some are
//     cleared by the library, most are left to be overwritten when the memory is used again.
//   - Expanded AES keys are on Go's heap, unlocked. Wipe clears them whole, and the collector those that nobody has wiped.
//   - RSA keys, keys on the NIST curves and Curve25519, ML-DSA and ML-KEM keys are held in the form that the libraries compute with, made once by Load, because
//     making it costs more than an operation. That form is on Go's heap, unlocked. The collector does not move or copy it, but nobody can clear
//     all of it either: Wipe overwrites the integers that are reachable and drops the rest.
//   - The bytes given to Load and got from Generate are the caller's to clear.
//
// A process that locks all of its memory and has no core dumps covers those copies against swapping and dumps. Nothing here covers any of it
// against who can read the memory of the process. That is what tokens are for.
package softkey
