// Package hsm runs rounds of AES blocks and random bytes on PKCS#11 tokens: tokens, sessions, shards, and what to do when they fail.
// It is pure Go and knows nothing of the KMS API, HTTP or batch. Implementations of Token and Session: hsm/p11 (PKCS#11 modules, the
// only cgo that calls them) and hsm/softtoken (pure Go).
//
//	batch.Batcher ──► Shards.Run(shard, round)          one round at a time per shard
//	                    group the jobs by root
//	                    draw nonces, build the blocks    internal/kdf
//	                    Session.Round                    one crossing: C_GenerateRandom, C_EncryptInit + C_Encrypt
//	                    outcome into every job           or classify the CKR, act (errors.go), retry once
//
// Each shard owns one session and its buffers; only the goroutine that leads the shard's round touches them. A token also holds an
// anchor session that is never used and never closed, because closing the last one logs out and destroys session objects.
package hsm
