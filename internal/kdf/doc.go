// Package kdf makes the inputs of the key derivation of docs/ciphertext.md §3: the SP 800-108r1 counter-mode KDF (§4.1) with AES-CMAC
// (SP 800-38B, RFC 4493) as PRF, cut so that the block cipher can be a key inside an HSM. The package xaes below it adds AES-GCM to the
// same derivation with the backing key itself as CMAC key, which is XAES-256-GCM.
//
//	once per key version     L  = E(0^128)            c1 = E(S[0:16])          one round, two blocks
//	                         chain = E(ChainInput2(c1, S[16:32]))              one round, one block
//	                         offset = Offset(chain, SubkeyK1(L))
//	per message              B_i = E(Input(offset, N[0:12], i)), i = 1, 2, 3   one round, three blocks
//	                         K = B_1 || B_2, C = B_3
//
// E never happens here: the package does not know what computes it, nor HSMs, blobs or KMS keys. It starts no goroutine, keeps nothing
// and allocates nothing. All functions run in time that does not depend on the values. Wiping what they return is the caller's.
package kdf
