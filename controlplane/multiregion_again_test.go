package controlplane

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// TestCreateAnswerLost: a replica that was made is not refused when it is asked for again, although its policy could not be bound any more. Both Regions
// have it in the end.
func TestCreateAnswerLost(t *testing.T) {
	w := oneToken(t, 2)
	a, b := w.regions[0], w.regions[1]
	key := a.create(obj("MultiRegion", true))
	state := w.sent // the first message asks for the state, the second one creates
	w.fault = func(n int) fault {
		if n == state+1 {
			return answerLost
		}
		return delivered
	}
	a.fails("ReplicateKey", obj("KeyId", key.KeyId, "ReplicaRegion", b.region), kmsapi.DependencyTimeout, "*")
	if w.key(b, key.KeyId) == nil {
		t.Fatal("the replica was not made")
	}
	// A principal that the policy names is gone when it is asked for again.
	if _, err := a.store.UpdateKey(t.Context(), a.name(key.KeyId), func(k *store.Key) error {
		m := *k.MultiRegion
		m.Intents = slices.Clone(m.Intents)
		m.Intents[0].Policy = []byte(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + a.account.String() +
			`:user/gone"},"Action":"kms:*","Resource":"*"}]}`)
		k.MultiRegion = &m
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	w.settle()
	if got := b.describe(key.KeyId).KeyState; got != "Enabled" {
		t.Errorf("the replica is %s", got)
	}
	w.agree(key.KeyId)
}

// TestReplicationWaitsItsTurn: the RSA key that material crosses for is made in the row of those for imports; where that is full, the material comes later.
func TestReplicationWaitsItsTurn(t *testing.T) {
	w := twoTokens(t)
	a, b := w.regions[0], w.regions[1]
	key := a.create(obj("MultiRegion", true))
	a.replicateTo(key.KeyId, b.region)
	seats := b.Server.wrapping
	ctx, cancel := context.WithCancel(t.Context())
	seats.enter(ctx, b.account)
	var waiting sync.WaitGroup
	for range wrappingQueue - 1 {
		waiting.Go(func() { seats.enter(ctx, b.account) })
	}
	for row := 0; row < wrappingQueue-1; runtime.Gosched() {
		seats.mu.Lock()
		if len(seats.waiting) > 0 {
			row = len(seats.waiting[0].turns)
		}
		seats.mu.Unlock()
	}
	if err := w.turn(a); err == nil || b.describe(key.KeyId).KeyState != "Creating" {
		t.Errorf("with a full row: %v, and the replica is %s", err, b.describe(key.KeyId).KeyState)
	}
	cancel()
	waiting.Wait()
	seats.leave()
	w.settle()
	w.agree(key.KeyId)
}
