// Package pubkey is everything about asymmetric keys that needs no private key: their SubjectPublicKeyInfo, what a message is turned into before
// a token signs it, signatures and their verification, RSA-OAEP up to the private operation, key encapsulation, and the peer of a key agreement.
// It knows neither the API's messages nor PKCS#11.
//
// Reading order: spki.go (bytes to Key and back) → message.go (Prepare) → ecdsa.go (encodings of signatures) → verify.go → oaep.go → mldsa.go.
//
// Everything in here works on public bytes and may take time that depends on them, except DecodeOAEP, which is given what a private key decrypted.
//
// # Libraries
//
// Go's standard library does RSA, the NIST curves, Ed25519, and ML-KEM-768 and -1024. It lacks, as of Go 1.26:
//
//   - secp256k1: github.com/decred/dcrd/dcrec/secp256k1, the implementation behind most Go software that holds such keys; no cgo.
//     Its arithmetic takes time that depends on the numbers, so internal/softkey blinds what is secret.
//   - ML-DSA in public: filippo.io/mldsa is the standard library's own code in a module. It does not export verification of an external μ, which is
//     therefore in mldsa.go, and checked against the library.
//   - ML-KEM-512: github.com/cloudflare/circl/kem/mlkem/mlkem512. Go leaves the smallest set out by intent; circl is maintained, has been
//     reviewed, and implements the final FIPS 203. Its other packages are not imported.
package pubkey
