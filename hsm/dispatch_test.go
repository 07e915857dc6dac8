package hsm_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
)

// TestDispatchFull: a job whose shard is full goes to another that holds its root, and is refused when those asked are full too.
func TestDispatchFull(t *testing.T) {
	full := errors.New("full")
	shards := newShards(t, hsm.ShardsConfig{Tokens: []hsm.Token{softTokenN(t, 0), softTokenN(t, 1)}, SessionsPerToken: 6, RoundMax: 1})
	if len(shards.Roots()) != 2 {
		t.Fatal("the test wants tokens with roots of their own")
	}
	var asked []int
	var answer func(shard int) error
	d := &hsm.Dispatch{Shards: shards, Full: full, QueueTimeMax: time.Minute, Do: func(shard int, j *hsm.Job, _ time.Time) error {
		asked = append(asked, shard)
		if err := answer(shard); err != nil {
			return err
		}
		shards.Run(shard, []*hsm.Job{j})
		return nil
	}}
	run := func(j *hsm.Job) error {
		asked = asked[:0]
		return d.Run(j, time.Now())
	}
	for _, root := range shards.Roots() {
		for range 100 { // the first shard depends on the clock
			answer = func(int) error {
				if len(asked) < 4 {
					return full
				}
				return nil
			}
			if err := run(&hsm.Job{Raw: true, Root: root}); err != nil {
				t.Fatalf("after three full shards: %v, asked %v", err, asked)
			}
			if slices.Sort(asked); len(asked) != 4 || len(slices.Compact(asked)) != 4 {
				t.Fatalf("asked shards %v, want four of the root's six", asked)
			}
			answer = func(int) error { return full }
			if err := run(&hsm.Job{Raw: true, Root: root}); err != full || len(asked) != 4 {
				t.Fatalf("all full: %v, asked %v", err, asked)
			}
			other := errors.New("closed")
			answer = func(int) error { return other }
			if err := run(&hsm.Job{Raw: true, Root: root}); err != other || len(asked) != 1 {
				t.Fatalf("another error: %v, asked %v", err, asked)
			}
		}
	}
	d.Full = nil
	answer = func(int) error { return full }
	if err := run(&hsm.Job{}); err != full || len(asked) != 1 {
		t.Errorf("without Full: %v, asked %v", err, asked)
	}
	answer = func(int) error { return nil }
	if err := run(&hsm.Job{}); err != nil || len(asked) != 1 {
		t.Errorf("without Full, with room: %v, asked %v", err, asked)
	}
}

// TestDispatchOnce: with Once the second shard has what the first has left of the time, and is not asked when that is nothing.
func TestDispatchOnce(t *testing.T) {
	r := newRig(t, 2, 2)
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Round, CKR: hsm.CKR_DEVICE_ERROR})
	refused := r.run(t, 0, 0)
	if !hsm.Retryable(refused) {
		t.Fatal(refused)
	}
	var deadlines []time.Time
	d := &hsm.Dispatch{Shards: r.Shards, QueueTimeMax: time.Hour, Do: func(_ int, j *hsm.Job, deadline time.Time) error {
		deadlines = append(deadlines, deadline)
		if j.Err = nil; j.Attempt == 0 {
			j.Err = refused
		}
		return nil
	}}
	run := func(once bool, age time.Duration) error {
		d.Once, deadlines = once, nil
		return d.Run(fixed(r.Primary()), time.Now().Add(-age))
	}
	if err := run(false, 2*time.Hour); err != nil || len(deadlines) != 2 || !deadlines[1].After(time.Now()) {
		t.Errorf("anew for each: %v, deadlines %v", err, deadlines)
	}
	if err := run(true, time.Minute); err != nil || len(deadlines) != 2 || !deadlines[1].Equal(deadlines[0]) {
		t.Errorf("once: %v, deadlines %v", err, deadlines)
	}
	if err := run(true, 2*time.Hour); err != refused || len(deadlines) != 1 {
		t.Errorf("once, and all of it gone: %v, deadlines %v", err, deadlines)
	}
}
