package hsm

import (
	"crypto/subtle"
	"sync"
	"time"

	"github.com/keyplane/keyplane/internal/kdf"
)

// Dispatch sends jobs to shards and, once, to another shard when the first failed for a reason of the device. Safe for concurrent use.
type Dispatch struct {
	Shards *Shards
	// Do runs a job in the next round of a shard (batch.Batcher.Do over Shards.Run). Its errors mean that the job was not run.
	Do func(shard int, j *Job, deadline time.Time) error
	// Full is Do's error for a shard whose queue is full. The job then goes to another shard: at most three are asked after the first.
	Full error
	// QueueTimeMax is how long a job may wait for its round to start, counted from Run's now, and anew for the second shard.
	QueueTimeMax time.Duration
	// Once has QueueTimeMax count from Run's now for the second shard too: after it nobody waits for the job any more.
	Once bool
}

// Run runs j, which the caller owns again when it returns. The error is j.Err, Do's, that of choosing a shard, or ErrReused: then the job
// is not the caller's.
func (d *Dispatch) Run(j *Job, now time.Time) error { return d.run(j, now, -1) }

// Again is Run for a job that was run and whose results are doubted: its derivations are made again, on another shard and, where there is one, on another token, by a
// round that is verified. differs says that those that drew no nonce are not what they were. Then the first results were wrong: the token that they are from does not
// serve again, if two sessions agree on the second ones.
func (d *Dispatch) Again(j *Job, now time.Time) (differs bool, err error) {
	before, from := j.Derive, j.shard-1
	defer clear(before[:])
	j.Verify = true
	err = d.run(j, now, from)
	j.Verify = false
	if err != nil {
		return false, err
	}
	same := 1
	for i := range max(0, min(j.N, len(j.Derive))) {
		if !j.Derive[i].Draw {
			same &= subtle.ConstantTimeCompare(before[i].Out[:], j.Derive[i].Out[:])
		}
	}
	if same == 1 {
		return false, nil
	}
	if from >= 0 {
		d.Shards.contradicted(from, j.shard-1)
	}
	return true, nil
}

// run is Run, on another shard than not, if that is one.
func (d *Dispatch) run(j *Job, now time.Time, not int) error {
	ticket, ok := j.handIn()
	if !ok {
		return ErrReused
	}
	defer j.handBack(ticket) // also after a panic: the round is over then
	hint := uint64(now.UnixNano()) >> 3
	var shard int
	var err error
	if not < 0 {
		shard, err = d.Shards.Pick(j.Root, hint)
	} else {
		shard, err = d.Shards.PickOther(j.Root, not, hint)
	}
	if err != nil {
		return err
	}
	deadline := now.Add(d.QueueTimeMax)
	for j.Attempt = 0; ; j.Attempt++ {
		j.Err = ErrUnavailable // stays where the round gave no outcome
		if shard, err = d.do(shard, j, deadline); err != nil {
			return err
		}
		if !j.heldFor(ticket) {
			return ErrReused
		}
		j.shard = shard + 1
		if j.Err == nil || j.Attempt == 1 || !Retryable(j.Err) {
			return j.Err
		}
		if d.Once && time.Now().After(deadline) {
			return j.Err
		}
		if shard, err = d.Shards.PickOther(j.Root, shard, hint); err != nil {
			return err
		}
		if !d.Once {
			deadline = time.Now().Add(d.QueueTimeMax)
		}
	}
}

// othersMax bounds the queues that are asked for one job when one after the other is full: in an overload all are.
const othersMax = 3

// do runs j on a shard or, where its queue is full, on one of the next. It returns the shard.
func (d *Dispatch) do(shard int, j *Job, deadline time.Time) (int, error) {
	err := d.Do(shard, j, deadline)
	for range min(othersMax, d.Shards.Len()-1) {
		if err == nil || err != d.Full {
			break
		}
		next, pickErr := d.Shards.Pick(j.Root, uint64(shard)+1)
		if pickErr != nil {
			break
		}
		shard = next
		err = d.Do(shard, j, deadline)
	}
	return shard, err
}

// Offsets computes the offsets of key versions (docs/ciphertext.md §3) and keeps what is the same for all of them: subkey K1 of each root.
type Offsets struct {
	Run func(j *Job, now time.Time) error // Dispatch.Run

	mu sync.Mutex
	k1 map[RootID][16]byte // guarded by mu
}

// Offset sets dst to chain(S) xor K1(R): two rounds, and a third for the first key of a root.
func (o *Offsets) Offset(root RootID, salt *[32]byte, dst *[16]byte) error {
	k1, err := o.subkey(root)
	if err != nil {
		return err
	}
	var j Job
	defer j.Wipe()
	var chain [16]byte
	copy(j.RawIn[:16], salt[:16])
	if err := o.encrypt(root, &j, &chain); err != nil {
		return err
	}
	kdf.ChainInput2((*[16]byte)(j.RawIn[:16]), &chain, (*[16]byte)(salt[16:]))
	if err := o.encrypt(root, &j, &chain); err != nil {
		return err
	}
	kdf.Offset(dst, &chain, &k1)
	clear(chain[:])
	return nil
}

func (o *Offsets) subkey(root RootID) ([16]byte, error) {
	o.mu.Lock()
	k1, ok := o.k1[root]
	o.mu.Unlock()
	if ok {
		return k1, nil
	}
	var j Job // RawIn is zero: L = E(0)
	defer j.Wipe()
	var l [16]byte
	if err := o.encrypt(root, &j, &l); err != nil {
		return k1, err
	}
	kdf.SubkeyK1(&k1, &l)
	clear(l[:])
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.k1 == nil {
		o.k1 = make(map[RootID][16]byte)
	}
	o.k1[root] = k1
	return k1, nil
}

// encrypt encrypts the first block of j.RawIn under root.
func (o *Offsets) encrypt(root RootID, j *Job, dst *[16]byte) error {
	j.Root, j.Raw, j.N = root, true, 0
	if err := o.Run(j, time.Now()); err != nil {
		return err
	}
	copy(dst[:], j.RawOut[:16])
	return nil
}
