package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestAuditCheckpoint(t *testing.T) {
	const log = "keyplane.example/us-east-1/checkpoints"
	ctx := t.Context()
	newest := func(want string) {
		t.Helper()
		if got, err := shared.AuditCheckpoint(ctx, log); err != nil || string(got) != want {
			t.Fatalf("%q, %v, want %q", got, err, want)
		}
	}
	newest("")
	for _, step := range []struct {
		old, new string
		want     error
		newest   string
	}{
		{"a", "b", ErrCheckpoint, ""}, // there is none
		{"", "a", nil, "a"},
		{"", "b", ErrCheckpoint, "a"},
		{"", "a", nil, "a"}, // again, after a lost answer
		{"a", "b", nil, "b"},
		{"a", "c", ErrCheckpoint, "b"}, // an older copy of the log goes on from where it was
		{"a", "b", nil, "b"},
		{"b", "b", nil, "b"},
		{"b", "with\nlines\n\n— and signatures\n", nil, "with\nlines\n\n— and signatures\n"},
	} {
		err := shared.PutAuditCheckpoint(ctx, log, []byte(step.old), []byte(step.new))
		if !errors.Is(err, step.want) {
			t.Errorf("%q to %q: %v, want %v", step.old, step.new, err, step.want)
		}
		newest(step.newest)
	}
	if got, err := shared.AuditCheckpoint(ctx, log+"2"); err != nil || got != nil {
		t.Errorf("another log: %q, %v", got, err)
	}
	for _, name := range []string{"", "a b", "a\n", "ä", "a\x00", strings.Repeat("a", auditLogMax+1)} {
		if _, err := shared.AuditCheckpoint(ctx, name); err == nil {
			t.Errorf("read of log %q", name)
		}
		if err := shared.PutAuditCheckpoint(ctx, name, nil, []byte("a")); err == nil {
			t.Errorf("write of log %q", name)
		}
	}
	for _, n := range []int{0, checkpointMax + 1} {
		if err := shared.PutAuditCheckpoint(ctx, "sizes", nil, make([]byte, n)); err == nil {
			t.Errorf("checkpoint of %d bytes", n)
		}
	}
	if err := shared.PutAuditCheckpoint(ctx, "sizes", nil, bytes.Repeat([]byte{'c'}, checkpointMax)); err != nil {
		t.Error(err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := shared.PutAuditCheckpoint(gone, log, nil, []byte("a")); !errors.Is(err, ErrUncertain) {
		t.Errorf("without an answer: %v", err)
	}
}

// Of many writers that go on from the same checkpoint one wins.
func TestAuditCheckpointRace(t *testing.T) {
	const log = "race"
	var old []byte
	for round := range 20 {
		var won atomic.Int32
		var wg sync.WaitGroup
		for writer := range 8 {
			wg.Go(func() {
				switch err := shared.PutAuditCheckpoint(t.Context(), log, old, fmt.Append(nil, round, " ", writer)); {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, ErrCheckpoint):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Fatalf("round %d: %d writers won", round, won.Load())
		}
		var err error
		if old, err = shared.AuditCheckpoint(t.Context(), log); err != nil {
			t.Fatal(err)
		}
	}
}
