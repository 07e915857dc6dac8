// Package hsm runs rounds of AES blocks and random bytes on PKCS#11 tokens: tokens, sessions, shards, and what to do when they fail.
// It is pure Go and knows nothing of the KMS API, HTTP or batch. Implementations of Token and Session: hsm/p11 (PKCS#11 modules, the
// only cgo that calls them) and hsm/softtoken (pure Go).
//
//	batch.Batcher ──► Shards.Run(shard, round)          one round at a time per shard
//	                    group the jobs by root
//	                    draw nonces, build the blocks    internal/kdf
//	                    Session.Round                    one crossing: C_GenerateRandom, C_EncryptUpdate or C_EncryptInit + C_Encrypt
//	                    outcome into every job           or classify the CKR (class.go), act, retry once
//
// Private and secret keys work on sessions of their own, so that they never delay a round of AES blocks:
//
//	KeyRing.Run                          an idle session of the key's root, or the one with the fewest jobs
//	batch.Batcher ──► Shards.runKeys     one round at a time per session; the jobs of one key together
//	                    handles          the loaded key: loaded once for all, a bounded number per token, unloaded when its last user is done
//	                    KeySession.Use   one call for each job, on the lane's memory
//
// key.go has the contracts, keys.go the KeyRing, keysrun.go the rounds, handles.go the loaded keys. They share lanes, classes and slots' states with
// the rounds of AES blocks, in a second instance of Shards.
//
// Read shards.go, run.go, lane.go (a session and its buffers), class.go (the table of what each return value leads to), slot.go (canaries,
// quarantine, coming back). Apart from all this is audit.go: the key that signs the audit log's checkpoints.
//
// Each shard owns one session and its buffers; only the goroutine that leads the shard's round touches them. A token also holds an
// anchor session that is never used and never closed, because closing the last one logs out and destroys session objects.
//
// Goroutines, all of the Shards and ended by Close: one supervisor per slot, one for each key that is being made, and one per session of a module that might hang, on which its
// calls run, so that the leader can give a hanging call up. A hanging call itself cannot be ended.
package hsm
