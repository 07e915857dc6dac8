package controlplane

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
)

// What a create of unknown outcome may still make is published as well: that it does not exist may be cached.
func TestUncertainCreatesArePublished(t *testing.T) {
	e := newEnv(t)
	key := e.create("{}")
	e.published.take()
	uncertain := func() int {
		e.unsettled.mu.Lock()
		defer e.unsettled.mu.Unlock()
		return len(e.unsettled.again)
	}
	// The client's time runs out a little later from try to try, until it does so while the transaction is under way.
	for wait := time.Duration(0); uncertain() == 0; wait += 20 * time.Microsecond {
		if wait > 100*time.Millisecond {
			t.Fatal("no create was of unknown outcome")
		}
		e.published.take()
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		e.Serve(ctx, &Request{Signed: e.sign("CreateKey", []byte("{}")), RequestID: "test", SourceIP: "127.0.0.1"})
		cancel()
	}
	if got := e.published.take(); !strings.HasPrefix(got, "key ") || strings.Contains(got, key.KeyId) {
		t.Errorf("CreateKey published %q", got)
	}
	e.unsettled.mu.Lock()
	defer e.unsettled.mu.Unlock()
	if len(e.unsettled.again) != 1 {
		t.Errorf("%d names are to be published again", len(e.unsettled.again))
	}
	for _, tell := range e.unsettled.again {
		tell()
	}
	if got := e.published.take(); !strings.HasPrefix(got, "key ") {
		t.Errorf("published again %q", got)
	}
}

// TestUncertainIsPublishedAgain: what a stalled store may still apply is published at once and once more when a later write has settled.
// Without the second time, a view that was read in between would stay for ever.
func TestUncertainIsPublishedAgain(t *testing.T) {
	e := deletionEnv(t, "eu-test-7")
	told := make(chan string, 16)
	tell := func(what string) func() { return func() { told <- what } }
	e.publish("a", nil, tell("certain"))
	e.publish("b", errors.New("refused"), tell("refused"))
	e.publish("c", fmt.Errorf("%w: timeout", store.ErrUncertain), tell("uncertain"))
	for _, want := range []string{"certain", "uncertain"} {
		if got := <-told; got != want {
			t.Fatalf("told %s, want %s", got, want)
		}
	}
	if len(told) != 0 {
		t.Fatalf("told %s before anything settled", <-told)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	select {
	case got := <-told:
		if got != "uncertain" {
			t.Errorf("told %s again", got)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("never told again")
	}
	// A second one, while Run runs already.
	e.publish("d", store.ErrUncertain, tell("late"))
	for range 2 {
		if got := <-told; got != "late" {
			t.Errorf("told %s", got)
		}
	}
	cancel()
	<-ended
	if len(told) != 0 {
		t.Errorf("told %s once too often", <-told)
	}
}
