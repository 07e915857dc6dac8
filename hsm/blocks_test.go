package hsm_test

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/kdf"
	"github.com/keyplane/keyplane/internal/keyspec"
)

// inOneRound makes one round of jobs on the first shard, in their order, when all are handed in; every other job is a round.
type inOneRound struct {
	mu   sync.Mutex
	jobs []*hsm.KeyJob
	in   int // of them, handed in
	over chan struct{}
}

func (b *inOneRound) batch(_ int, run func(int, []*hsm.KeyJob)) (func(int, *hsm.KeyJob, time.Time) error, error) {
	return func(shard int, j *hsm.KeyJob, _ time.Time) error {
		b.mu.Lock()
		if b.jobs == nil {
			b.mu.Unlock()
			run(shard, []*hsm.KeyJob{j})
			return nil
		}
		if b.in++; b.in == 1 {
			b.over = make(chan struct{})
		}
		over := b.over
		if b.in == len(b.jobs) {
			run(0, b.jobs)
			b.jobs = nil // what is run again comes alone
			close(over)
		}
		b.mu.Unlock()
		<-over
		return nil
	}, nil
}

// TestBlocksShareCalls: the jobs of EncryptBlocks of one round that are under one key are one call into the token, each with its own images; others are a call each.
// Whatever goes wrong with the call, each job has its own images afterwards, or an error and none.
func TestBlocksShareCalls(t *testing.T) {
	type want struct {
		fault hsmtest.Fault
		calls int // more than without a fault
		lost  uint64
		fails bool
	}
	for name, c := range map[string]want{
		"no fault":        {},
		"session":         {fault: hsmtest.Fault{Op: hsmtest.Use, CKR: hsm.CKR_SESSION_HANDLE_INVALID}, calls: 1},
		"handle":          {fault: hsmtest.Fault{Op: hsmtest.Use, CKR: hsm.CKR_KEY_HANDLE_INVALID}, calls: 1, lost: 1},
		"object":          {fault: hsmtest.Fault{Op: hsmtest.Use, CKR: hsm.CKR_OBJECT_HANDLE_INVALID}, calls: 1, lost: 1},
		"device":          {fault: hsmtest.Fault{Op: hsmtest.Use, CKR: hsm.CKR_DEVICE_ERROR}, calls: 1},
		"length of data":  {fault: hsmtest.Fault{Op: hsmtest.Use, CKR: hsm.CKR_DATA_LEN_RANGE}, fails: true},
		"too few images":  {fault: hsmtest.Fault{Op: hsmtest.Use, Short: true}, fails: true},
		"key not offered": {fault: hsmtest.Fault{Op: hsmtest.Use, Err: hsm.ErrNotOffered}, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			rounds := &inOneRound{}
			r := newKeyRig(t, 1, func(c *hsm.KeyRingConfig) {
				c.SessionsPerToken, c.RoundMax, c.Batch = 1, 64, rounds.batch
			})
			a, b, mac := r.key(t, keyspec.AES256), r.key(t, keyspec.AES256), r.key(t, keyspec.HMAC256)
			var jobs []*hsm.KeyJob
			for i := range 60 {
				j := &hsm.KeyJob{Key: a.Key, Mechanism: hsm.EncryptBlocks, In: bytes.Repeat([]byte{byte(i)}, 16*(1+i%6)), Out: make([]byte, 96)}
				switch {
				case i%20 == 19:
					j.Key, j.Mechanism = mac.Key, hsm.MAC
				case i%3 == 1:
					j.Key = b.Key
				case i%4 == 2:
					again := *a.Key // the same key of another view
					j.Key = &again
				}
				jobs = append(jobs, j)
			}
			alone := make([][]byte, len(jobs))
			for i, j := range jobs {
				if err := r.Run(j, time.Now()); err != nil || j.Mechanism == hsm.EncryptBlocks && j.N != len(j.In) {
					t.Fatalf("job %d alone: %d, %v", i, j.N, err)
				}
				alone[i] = bytes.Clone(j.Out[:j.N])
				clear(j.Out)
			}
			before := r.tokens[0].Calls(hsmtest.Use)
			rounds.jobs = jobs
			r.tokens[0].Add(c.fault)
			var wg sync.WaitGroup
			for _, j := range jobs {
				wg.Go(func() { _ = r.Run(j, time.Now()) }) // it is in the job
			}
			wg.Wait()
			failed := 0
			for i, j := range jobs {
				switch {
				case j.Err == nil && bytes.Equal(j.Out[:j.N], alone[i]):
				case j.Err != nil && c.fails && j.N == 0 && bytes.Equal(j.Out, make([]byte, len(j.Out))):
					failed++
				default:
					t.Errorf("job %d: %d, %v", i, j.N, j.Err)
				}
			}
			if c.fails != (failed > 0) || failed == len(jobs) && name != "too few images" { // a token that gives a wrong result is not asked again
				t.Errorf("%d jobs failed", failed)
			}
			if n := r.Stats().Handles[0].Lost; n != c.lost {
				t.Errorf("%d keys were given up", n)
			}
			if n := r.tokens[0].Calls(hsmtest.Use) - before; n != 5+c.calls && name != "too few images" { // 38 and 19 jobs of 4 blocks on average, and three MACs
				t.Errorf("%d calls", n)
			}
		})
	}
}

// TestBlocksOfManyJobs: a round whose blocks do not fit into one call makes more of them.
func TestBlocksOfManyJobs(t *testing.T) {
	rounds := &inOneRound{}
	r := newKeyRig(t, 1, func(c *hsm.KeyRingConfig) {
		c.SessionsPerToken, c.RoundMax, c.Batch = 1, 64, rounds.batch
	})
	k := r.key(t, keyspec.AES256)
	k1 := r.k1(t, k)
	jobs := make([]*hsm.KeyJob, 64)
	for i := range jobs {
		jobs[i] = &hsm.KeyJob{Key: k.Key, Mechanism: hsm.EncryptBlocks, In: bytes.Repeat([]byte{byte(i)}, 96), Out: make([]byte, 96), K1: k1}
	}
	calls := r.tokens[0].Calls(hsmtest.Use)
	rounds.jobs = jobs
	var wg sync.WaitGroup
	for _, j := range jobs {
		wg.Go(func() { _ = r.Run(j, time.Now()) })
	}
	wg.Wait()
	seen := map[string]bool{}
	for i, j := range jobs {
		if j.Err != nil || j.N != 96 || !bytes.Equal(j.Out, bytes.Repeat(j.Out[:16], 6)) || seen[string(j.Out)] {
			t.Errorf("job %d: %d, %v, %x", i, j.N, j.Err, j.Out)
		}
		seen[string(j.Out)] = true
	}
	if n := r.tokens[0].Calls(hsmtest.Use) - calls; n != 2 { // 64 × 96 bytes in 4080 each
		t.Errorf("%d calls", n)
	}
	for _, in := range [][]byte{nil, make([]byte, 15), make([]byte, 17), make([]byte, 112)} {
		if err := r.Run(&hsm.KeyJob{Key: k.Key, Mechanism: hsm.EncryptBlocks, In: in, Out: make([]byte, 128)}, time.Now()); !errors.Is(err, hsm.ErrJob) {
			t.Errorf("%d bytes: %v", len(in), err)
		}
	}
}

// k1 asks for what a caller comes to know of a key: its subkey K1.
func (r *keyRig) k1(t testing.TB, k *testKey) (k1 [16]byte) {
	t.Helper()
	j := &hsm.KeyJob{Key: k.Key, Mechanism: hsm.EncryptBlocks, In: make([]byte, 16), Out: make([]byte, 96)}
	if err := r.Run(j, time.Now()); err != nil {
		t.Fatal(err)
	}
	kdf.SubkeyK1(&k1, (*[16]byte)(j.Out))
	return k1
}

// TestBlocksAreProved: a call whose known block has another image than it must have gives nobody a result, whoever of its jobs knows that. Its token is not used for
// keys any more, and another one that holds the root does the jobs.
func TestBlocksAreProved(t *testing.T) {
	for name, knows := range map[string]func(i int) bool{
		"all jobs":  func(int) bool { return true },
		"the first": func(i int) bool { return i == 0 },
		"the last":  func(i int) bool { return i == 9 },
	} {
		t.Run(name, func(t *testing.T) {
			rounds := &inOneRound{}
			r := newKeyRig(t, 2, func(c *hsm.KeyRingConfig) {
				c.SessionsPerToken, c.RoundMax, c.Batch = 1, 64, rounds.batch
			})
			a := r.key(t, keyspec.AES256)
			k1 := r.k1(t, a)
			jobs, want := make([]*hsm.KeyJob, 10), make([][]byte, 10)
			for i := range jobs {
				jobs[i] = &hsm.KeyJob{Key: a.Key, Mechanism: hsm.EncryptBlocks, In: bytes.Repeat([]byte{byte(i + 1)}, 16*(1+i%6)), Out: make([]byte, 96)}
				if knows(i) {
					jobs[i].K1 = k1
				}
				if err := r.Run(jobs[i], time.Now()); err != nil || jobs[i].N != len(jobs[i].In) {
					t.Fatalf("job %d alone: %d, %v", i, jobs[i].N, err)
				}
				want[i] = bytes.Clone(jobs[i].Out)
				clear(jobs[i].Out)
			}
			run := func() {
				rounds.in, rounds.jobs = 0, jobs
				var wg sync.WaitGroup
				for _, j := range jobs {
					wg.Go(func() { _ = r.Run(j, time.Now()) }) // it is in the job
				}
				wg.Wait()
			}
			before := r.tokens[1].Calls(hsmtest.Use)
			r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Use, Wrong: true}) // the rounds of inOneRound are the first token's
			run()
			for i, j := range jobs {
				if j.Err != nil || !bytes.Equal(j.Out, want[i]) {
					t.Errorf("job %d: %v, %x, want %x", i, j.Err, j.Out, want[i])
				}
				clear(j.Out)
			}
			if n := r.tokens[1].Calls(hsmtest.Use) - before; n == 0 {
				t.Error("the second token did nothing")
			}
			if err := r.Healthy(); !errors.Is(err, hsm.ErrWrong) {
				t.Errorf("after a wrong answer: %v", err)
			}
			r.tokens[1].Add(hsmtest.Fault{Op: hsmtest.Use, Wrong: true})
			j := &hsm.KeyJob{Key: a.Key, Mechanism: hsm.EncryptBlocks, In: make([]byte, 16), Out: make([]byte, 96), K1: k1}
			for range 2 {
				if err := r.Run(j, time.Now()); !errors.Is(err, hsm.ErrUnavailable) || j.N != 0 || !bytes.Equal(j.Out, make([]byte, 96)) {
					t.Errorf("with no token left: %d, %v, %x", j.N, err, j.Out)
				}
			}
		})
	}
	r := newKeyRig(t, 2, nil)
	a, b := r.key(t, keyspec.AES256), r.key(t, keyspec.AES256)
	j := &hsm.KeyJob{Key: a.Key, Mechanism: hsm.EncryptBlocks, In: make([]byte, 32), Out: make([]byte, 96), K1: r.k1(t, b)}
	if err := r.Run(j, time.Now()); !errors.Is(err, hsm.ErrWrong) || hsm.Final(err) != hsm.Internal || j.N != 0 || !bytes.Equal(j.Out, make([]byte, 96)) {
		t.Errorf("another key's blocks: %d, %v, %x", j.N, err, j.Out)
	}
}

// TestBlocksJoinRounds: many jobs under one key count as one in a round of a batcher.
func TestBlocksJoinRounds(t *testing.T) {
	var batcher *batch.Batcher[hsm.KeyJob]
	r := newKeyRig(t, 1, func(c *hsm.KeyRingConfig) {
		c.SessionsPerToken, c.RoundMax = 1, 64
		c.Batch = func(shards int, run func(int, []*hsm.KeyJob)) (func(int, *hsm.KeyJob, time.Time) error, error) {
			var err error
			batcher, err = batch.NewJoining(batch.Config{Shards: shards, RoundMax: 2, QueueMax: 100}, 64, (*hsm.KeyJob).SameCall, run)
			return batcher.Do, err
		}
	})
	t.Cleanup(func() { batcher.Close() })
	a, b, c := r.key(t, keyspec.AES256), r.key(t, keyspec.AES256), r.key(t, keyspec.AES256)
	use := func(k *testKey) {
		if err := r.use(t, k, hsm.EncryptBlocks); err != nil {
			t.Error(err)
		}
	}
	use(a)
	use(b)
	use(c)
	hang := make(chan struct{})
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Use, Hang: hang})
	var wg sync.WaitGroup
	one := func(k *testKey) {
		wg.Go(func() {
			if err := r.Run(&hsm.KeyJob{Key: k.Key, Mechanism: hsm.EncryptBlocks, In: make([]byte, 16), Out: make([]byte, 96)}, time.Now()); err != nil {
				t.Error(err)
			}
		})
	}
	calls := r.tokens[0].Calls(hsmtest.Use)
	one(a)
	eventually(t, "the first call", func() bool { return r.tokens[0].Calls(hsmtest.Use) == calls+1 })
	rounds, queued := batcher.Stats().Rounds, 0
	for _, k := range []*testKey{a, b, a, b, a, a, b, a} {
		one(k)
		queued++
		eventually(t, "it is in the queue", func() bool { return batcher.Stats().Queued == queued })
	}
	one(c) // a third call, for the next round
	eventually(t, "it is in the queue", func() bool { return batcher.Stats().Queued == queued+1 })
	close(hang)
	wg.Wait()
	eventually(t, "the rounds end", func() bool { return batcher.Stats().Rounds == rounds+3 })
	if n := r.tokens[0].Calls(hsmtest.Use) - calls; n != 4 {
		t.Errorf("%d calls", n)
	}
}
