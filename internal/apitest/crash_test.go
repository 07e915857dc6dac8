package apitest

import (
	"flag"
	"fmt"
	"math/rand"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var crashRounds = flag.Int("crash-rounds", 6, "how often TestCrash kills the server; it waits for 50 writes as often")

// TestCrash kills keyplane with SIGKILL again and again while writers write. Whatever was acknowledged is there afterwards; what was not
// is there whole or not at all.
func TestCrash(t *testing.T) {
	t.Parallel()
	rounds, writes := *crashRounds, 50**crashRounds
	if testing.Short() {
		rounds, writes = 3, 150
	}
	const writers = 4
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewSource(seed))
	dir := filepath.Join(t.TempDir(), "data")
	var all []*writer
	for i := range writers {
		all = append(all, &writer{name: fmt.Sprint("w", i), rnd: rand.New(rand.NewSource(seed + int64(i) + 1)), aliases: map[string]string{}})
	}
	done := 0
	for round := range rounds {
		p := Command(t, dir, "--quotas", "off") // the writers write faster than an account may
		for _, w := range all {
			w.settle(t, p.Endpoint)
		}
		checkAliases(t, p.Endpoint)

		// The kill comes when about this many writes of the round are acknowledged, wherever the others are by then.
		kill := int64(1 + rnd.Intn(2*(writes-done)/(rounds-round)))
		if round == rounds-1 {
			kill = int64(max(1, writes-done))
		}
		var acknowledged atomic.Int64
		var wg sync.WaitGroup
		var once sync.Once
		for _, w := range all {
			client := p.Client(t)
			wg.Go(func() {
				for w.write(t, client) {
					if acknowledged.Add(1) >= kill {
						once.Do(func() { _ = p.cmd.Process.Kill() })
					}
				}
			})
		}
		wg.Wait()
		p.Kill(t)
		done += int(acknowledged.Load())
		if t.Failed() {
			return
		}
	}
	p := Command(t, dir, "--quotas", "off")
	keys, blobs, unsure := 0, 0, 0
	for _, w := range all {
		w.settle(t, p.Endpoint)
		keys, blobs, unsure = keys+len(w.keys), blobs+len(w.blobs), unsure+w.unsure
	}
	checkAliases(t, p.Endpoint)
	listed := listKeys(t, p.Client(t))
	for _, w := range all {
		for _, k := range w.keys {
			if !listed[k.id] {
				t.Errorf("ListKeys lacks the key %s", k.id)
			}
		}
	}
	if extra := len(listed) - keys; extra < 0 || extra > unsure {
		t.Errorf("%d keys are listed, %d were acknowledged and %d writes had no answer", len(listed), keys, unsure)
	}
	t.Logf("%d acknowledged writes in %d rounds, %d without an answer: %d keys, %d blobs", done, rounds, unsure, keys, blobs)
	if done < writes {
		t.Errorf("%d writes were acknowledged, want %d", done, writes)
	}
	if code := stop(t, p); code != 0 {
		t.Errorf("the exit status is %d", code)
	}
}

// stop ends a process in good order.
func stop(t *testing.T, p *Process) int {
	t.Helper()
	p.Terminate(t)
	return p.Wait(t)
}

// TestFirstStartKilled: a first start that was cut short anywhere does not keep the next one from serving.
func TestFirstStartKilled(t *testing.T) {
	t.Parallel()
	tries := 8
	if testing.Short() {
		tries = 2
	}
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewSource(seed))
	for range tries {
		dir := filepath.Join(t.TempDir(), "data")
		p := Launch(t, dir)
		time.Sleep(time.Duration(rnd.Intn(1200)) * time.Millisecond) // not a wait for anything: the random point
		p.Kill(t)
		p = Command(t, dir)
		r := p.Do(t, "CreateKey", "{}")
		if r.Status != 200 {
			t.Fatalf("after the start that was killed: %d %s", r.Status, r.Body)
		}
		p.Kill(t)
	}
}

// TestCredentialsBeforeStore: the credentials file is written before the store knows the key. A crash in between leaves a file that the
// next start takes.
func TestCredentialsBeforeStore(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	const id, secretKey = "AKIATESTTESTTESTTEST", "abcdefghijklmnopqrstuvwxyz/+0123456789ABCD=="
	writePrivate(t, dir, "credentials", "[default]\naws_access_key_id = "+id+"\naws_secret_access_key = "+secretKey+"\n")
	p := Command(t, dir)
	equal(t, "the access key", p.AccessKeyID, id)
	equal(t, "its secret", p.SecretAccessKey, secretKey)
	if r := p.Do(t, "ListKeys", "{}"); r.Status != 200 {
		t.Errorf("signed with it: %d %s", r.Status, r.Body)
	}
}
