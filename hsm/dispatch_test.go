package hsm_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
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
