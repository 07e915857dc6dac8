package hsm

import (
	"bytes"
	"sync/atomic"

	"github.com/keyplane/keyplane/internal/invariants"
	"github.com/keyplane/keyplane/internal/kdf"
)

// Job is one caller's unit of work in a round. The caller fills the request fields, hands the job to a batcher over Shards.Run and reads
// the results when it returns. A Job holds its own buffers and is reused; Wipe it in between.
//
// Results belong to the job that asked. Callers own their jobs exclusively and leave them alone while they are handed in; that is not only
// trusted but checked, because a pooled job that went back too early would get, or give away, another request's data key. Each hand-in has a
// ticket of its own. Run remembers the tickets of the jobs it takes and delivers result i only to a job i that still has its ticket and still
// asks for the same; Dispatch returns ErrReused unless the ticket it gave is still there at the end.
type Job struct {
	// Request.
	Derive  [2]Derivation // message keys to derive: the first N; of the others only nonces are drawn
	N       int           // 0, 1 or 2
	Random  []byte        // filled with random bytes from the token; may be empty
	Root    RootID        // root of all derivations of this job; ignored when N is 0 and Raw is false
	Raw     bool          // encrypt RawIn instead of deriving (to compute a key version's offset)
	RawIn   [32]byte      // two blocks
	RawOut  [32]byte
	Verify  bool  // the round is done again on another session, whatever the sampling says. It always is for Raw
	Attempt uint8 // set by the caller when it hands the job in again; a job is retried at most once

	// Outcome.
	Err error // nil, or one of this package's errors

	shard  int           // Dispatch's: where the outcome is from, counted from 1
	ticket atomic.Uint64 // of the hand-in, 0 while the job is its owner's
}

// Derivation asks for one message key and commitment: docs/ciphertext.md §3.
type Derivation struct {
	Offset [16]byte // of the key version
	Nonce  [24]byte // given for Decrypt; drawn by the round when Draw is set
	Draw   bool
	Out    [48]byte // K (32) || C (16)
}

// tickets numbers hand-ins.
var tickets atomic.Uint64

// handIn gives the job a ticket. It reports false if the job is handed in already.
func (j *Job) handIn() (ticket uint64, ok bool) {
	ticket = tickets.Add(1)
	ok = j.ticket.CompareAndSwap(0, ticket)
	invariants.Check(ok, "a job was handed in twice")
	return ticket, ok
}

// heldFor says that the job is still that of this hand-in: it was neither wiped nor handed in again.
func (j *Job) heldFor(ticket uint64) bool {
	ok := j.ticket.Load() == ticket
	invariants.Check(ok, "a job was reused while it was handed in")
	return ok
}

// handBack takes the ticket from the job, if it still is this one.
func (j *Job) handBack(ticket uint64) { j.ticket.CompareAndSwap(ticket, 0) }

// claim is what a round remembers of a job it has taken.
type claim struct {
	ticket         uint64
	blocks, random int // bytes asked for
}

// holds says that the job is still the one that was taken.
func (c *claim) holds(j *Job) bool { return j.ticket.Load() == c.ticket }

// same says that the job still asks for what it was taken for: blocks are those that were encrypted for it. The first block of a
// derivation stands for its key version and nonce.
func (c *claim) same(j *Job, blocks []byte) bool {
	if j.Raw {
		return bytes.Equal(j.RawIn[:], blocks) && len(j.Random) == c.random
	}
	if j.N < 0 || j.N > len(j.Derive) || len(blocks) != j.N*len(Derivation{}.Out) || len(j.Random) != c.random {
		return false
	}
	var first [blockLen]byte
	for i := range j.Derive[:j.N] {
		d := &j.Derive[i]
		kdf.Input(&first, &d.Offset, d.Nonce[:kdf.NonceLen], 1)
		if first != [blockLen]byte(blocks[i*len(d.Out):]) {
			return false
		}
	}
	return true
}

// Wipe clears everything in the job, results and request.
func (j *Job) Wipe() {
	invariants.Check(j.ticket.Load() == 0, "a job was wiped while it was handed in")
	clear(j.Random)
	*j = Job{}
}
