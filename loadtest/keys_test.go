package loadtest

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// A second run finds the keys of the first; clean-up removes only what its own run created.
func TestKeysAreFoundAgain(t *testing.T) {
	k := newFakeKMS(t, nil)
	cfg := testConfig(k.url)
	cfg.Keys, cfg.Duration = 3, 20*time.Millisecond
	mustRun(t, cfg)
	mustRun(t, cfg)
	if n := k.count(k.targets, "CreateKey"); n != 3 || len(k.aliases) != 3 {
		t.Fatalf("%d keys created, aliases %v", n, k.aliases)
	}

	cfg.Keys, cfg.Cleanup = 40, true
	if p := mustRun(t, cfg); p.KeysRemoved != 37 || p.Requests.Failed > 0 {
		t.Fatalf("%d keys removed, errors %+v", p.KeysRemoved, p.Errors)
	}
	enabled := 0
	for _, key := range k.keys {
		if key.state == "Enabled" {
			enabled++
		}
	}
	if enabled != 3 || len(k.aliases) != 3 {
		t.Errorf("%d keys enabled, aliases %v", enabled, k.aliases)
	}
}

// Clean-up happens after an interrupt too, and when set-up fails half way.
func TestCleanupAfterInterruptAndFailure(t *testing.T) {
	k := newFakeKMS(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	k.fault = func(*fasthttp.RequestCtx, string, int64) bool { cancel(); return false }
	cfg := testConfig(k.url)
	cfg.Keys, cfg.Cleanup, cfg.Duration = 2, true, time.Hour
	p, err := Run(ctx, cfg)
	if err != nil || p.KeysRemoved != 2 || len(k.aliases) != 0 {
		t.Fatalf("error %v, report %+v, aliases %v", err, p, k.aliases)
	}

	k.aliases[AliasPrefix+"3"] = k.addKey("Disabled")
	cfg.Keys = 4
	if _, err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "is Disabled") {
		t.Fatalf("a disabled key: %v", err)
	}
	if len(k.aliases) != 1 {
		t.Errorf("aliases left: %v", k.aliases)
	}
}

// --key-id names keys in any form; requests repeat it as given, and replies are held against the ARN.
func TestKeyIDs(t *testing.T) {
	k := newFakeKMS(t, nil)
	a, b := k.addKey("Enabled"), k.addKey("Enabled")
	k.aliases["alias/app"] = b
	cfg := testConfig(k.url)
	cfg.KeyIDs = []string{a, k.keys[a].arn, "alias/app"}
	cfg.Cleanup = true
	p := k.runUntil(cfg, atLeast(100))
	if p.Requests.Failed > 0 || p.Keys != 3 || p.KeysRemoved != 0 || k.byKey[a] == 0 || k.byKey[b] == 0 {
		t.Errorf("keys %d, requests %+v, errors %+v, by key %v", p.Keys, p.Requests, p.Errors, k.byKey)
	}
	if k.count(k.targets, "CreateKey")+k.count(k.targets, "ScheduleKeyDeletion") != 0 {
		t.Error("keys were created or removed")
	}

	cfg.KeyIDs = []string{"alias/none"}
	if _, err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "alias/none") {
		t.Errorf("a missing key: %v", err)
	}
	cfg.KeyIDs = []string{k.addKey("PendingDeletion")}
	if _, err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "is PendingDeletion") {
		t.Errorf("a key on its way out: %v", err)
	}
}

// Two load tests that start at once share the key of whoever names it first; the other's key does not stay behind.
func TestCreateAliasRace(t *testing.T) {
	k := newFakeKMS(t, nil)
	setup := testConfig(k.url)
	setup.Region = testRegion
	site, err := connectSite(t.Context(), &setup)
	if err != nil {
		t.Fatal(err)
	}
	defer site.close()
	ring := &keyring{api: site.api}
	const alias = AliasPrefix + "0"
	k.onCreateKey = func() { // between this run's DescribeKey and its CreateAlias; called with the fake's lock held
		k.onCreateKey = nil
		k.aliases[alias] = k.addKey("Enabled")
	}
	got, err := ring.findOrCreate(t.Context(), alias)
	if err != nil {
		t.Fatal(err)
	}
	if want := k.keys[k.aliases[alias]].arn; got.arn != want {
		t.Errorf("got key %s, want %s", got.arn, want)
	}
	for id, key := range k.keys {
		if id != k.aliases[alias] && key.state != "PendingDeletion" {
			t.Errorf("key %s is %s", id, key.state)
		}
	}
	if removed, err := ring.clean(t.Context()); removed != 0 || err != nil || len(k.aliases) != 1 {
		t.Errorf("clean-up removed %d, %v", removed, err)
	}
}

// A CreateAlias whose answer was lost succeeded all the same: the key is this run's own, and clean-up removes it.
func TestCreateAliasRepeated(t *testing.T) {
	k := newFakeKMS(t, nil)
	setup := testConfig(k.url)
	site, err := connectSite(t.Context(), &setup)
	if err != nil {
		t.Fatal(err)
	}
	defer site.close()
	ring := &keyring{api: site.api}
	const alias = AliasPrefix + "0"
	k.onCreateAlias = func(keyID string) { k.aliases[alias] = keyID }
	got, err := ring.findOrCreate(t.Context(), alias)
	if err != nil || len(k.keys) != 1 || got.arn != k.keys[k.aliases[alias]].arn {
		t.Fatalf("key %+v, %v; keys %v, aliases %v", got, err, k.keys, k.aliases)
	}
	if removed, err := ring.clean(t.Context()); removed != 1 || err != nil || len(k.aliases) != 0 {
		t.Errorf("clean-up removed %d, %v; aliases %v", removed, err, k.aliases)
	}
}

// An interrupt during set-up ends it, and leaves no key behind where clean-up was asked for.
func TestInterruptDuringSetup(t *testing.T) {
	k := newFakeKMS(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	k.onCreateKey = cancel
	cfg := testConfig(k.url)
	cfg.Keys, cfg.Cleanup = 500, true
	if p, err := Run(ctx, cfg); err == nil || p != nil {
		t.Fatalf("report %+v, error %v", p, err)
	}
	for id, key := range k.keys {
		if key.state != "PendingDeletion" {
			t.Errorf("key %s is %s", id, key.state)
		}
	}
	if len(k.aliases) != 0 || len(k.keys) == 0 || len(k.keys) > 2*setupParallel {
		t.Errorf("%d keys, aliases %v", len(k.keys), k.aliases)
	}
}

// A server without credentials for us is reported as what it says, before any load.
func TestSetupRefused(t *testing.T) {
	k := newFakeKMS(t, nil)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "another")
	_, err := Run(t.Context(), testConfig(k.url))
	if err == nil || !strings.Contains(err.Error(), kmsapi.InvalidSignature.Type()) || k.calls.Load() != 0 {
		t.Fatalf("error %v after %d requests", err, k.calls.Load())
	}
}
