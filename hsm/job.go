package hsm

// Job is one caller's unit of work in a round. The caller fills the request fields, hands the job to a batcher over Shards.Run and reads
// the results when it returns. A Job holds its own buffers and is reused; Wipe it in between.
//
// Results belong to the job that asked (S7): Run delivers result i only to job i of the round it executed, and callers own their jobs
// exclusively.
type Job struct {
	// Request.
	Derive  [2]Derivation // message keys to derive; the first N are used
	N       int           // 0, 1 or 2
	Random  []byte        // filled with random bytes from the token; may be empty
	Root    RootID        // root of all derivations of this job; ignored when N is 0 and Raw is false
	Raw     bool          // encrypt RawIn instead of deriving (to compute a key version's offset)
	RawIn   [32]byte      // two blocks
	RawOut  [32]byte
	Attempt uint8 // set by the caller when it hands the job in again; a job is retried at most once

	// Outcome.
	Err error // nil, or one of this package's errors
}

// Derivation asks for one message key and commitment: docs/ciphertext.md §3.
type Derivation struct {
	Offset [16]byte // of the key version
	Nonce  [24]byte // given for Decrypt; drawn by the round when Draw is set
	Draw   bool
	Out    [48]byte // K (32) || C (16)
}

// Wipe clears everything in the job, results and request.
func (j *Job) Wipe() {
	clear(j.Random)
	*j = Job{}
}
