package dataplane

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// cached returns the view of a key that is cached. The test knows that it stays, or looks at it only where nobody can wipe it.
func (w *world) cached(name string) *keyView {
	w.Helper()
	l, ok := w.keys.Get(w.regions[0].appendKeyName(nil, ours, keyID(name)))
	if !ok || l.Value() == nil {
		w.Fatalf("%s is not cached", name)
	}
	k := l.Value()
	l.Release()
	return k
}

func isWiped(k *keyView) bool {
	for _, v := range k.Versions {
		if v.Offset != [16]byte{} {
			return false
		}
	}
	return true
}

// A view that a change made old serves the requests that have it, and is wiped when the last of them is answered, however it ends.
func TestViewsAreWiped(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true})
	w.addKey("k1", kmsapi.StateEnabled, 2)
	w.addKey("k2", kmsapi.StateEnabled, 1)
	k1, k2 := keyID("k1").String(), keyID("k2").String()
	blob := base64.StdEncoding.EncodeToString(w.blob("k1", 2, nil, make([]byte, 32)))
	raw := w.call("ReEncrypt", `{"CiphertextBlob":"`+blob+`","DestinationKeyId":"`+k2+`"}`)
	changed := func() {
		w.KeyChanged(ours, keyID("k1"))
		w.KeyChanged(ours, keyID("k2"))
	}
	for name, end := range map[string]func() error{
		"error": func() error { return errors.New("no round") },
		"panic": func() error { panic("a bug") },
	} {
		w.instead = nil
		if r := w.do(raw); r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		source, dest := w.cached("k1"), w.cached("k2")
		w.instead = func() error {
			changed()
			if isWiped(source) || isWiped(dest) {
				t.Errorf("%s: wiped while a request uses it", name)
			}
			return end()
		}
		if r := w.do(raw); r.status != 500 {
			t.Fatalf("%s: %d %s", name, r.status, r.body)
		}
		if !isWiped(source) || !isWiped(dest) {
			t.Errorf("%s: not wiped although nobody uses it", name)
		}
	}
	w.panics.Store(0)
	w.instead = nil

	// However a request ends, it gives its keys back.
	off := w.addKey("off", kmsapi.StateDisabled, 1).ID.String()
	bad := base64.StdEncoding.EncodeToString(append(w.blob("k1", 1, nil, make([]byte, 32))[:100], make([]byte, 17)...))
	for i, c := range []struct{ op, body string }{
		{"GenerateDataKey", `{"KeyId":"` + k1 + `","KeySpec":"AES_256"}`},
		{"GenerateDataKeyWithoutPlaintext", `{"KeyId":"` + k1 + `","KeySpec":"AES_128"}`},
		{"GenerateDataKey", `{"KeyId":"` + k1 + `"}`},
		{"GenerateDataKey", `{"KeyId":"` + off + `","KeySpec":"AES_256"}`},
		{"Encrypt", `{"KeyId":"` + k1 + `","Plaintext":"aGVsbG8="}`},
		{"Encrypt", `{"KeyId":"` + k1 + `","Plaintext":"aGVsbG8=","DryRun":true}`},
		{"Encrypt", `{"KeyId":"` + k1 + `","Plaintext":"aGVsbG8=","GrantTokens":["a"]}`},
		{"Decrypt", `{"CiphertextBlob":"` + blob + `"}`},
		{"Decrypt", `{"CiphertextBlob":"` + bad + `"}`},
		{"Decrypt", `{"CiphertextBlob":"` + blob + `","KeyId":"` + k2 + `"}`},
		{"ReEncrypt", `{"CiphertextBlob":"` + blob + `","DestinationKeyId":"` + k1 + `"}`},
		{"ReEncrypt", `{"CiphertextBlob":"` + blob + `","DestinationKeyId":"` + off + `"}`},
		{"ReEncrypt", `{"CiphertextBlob":"` + blob + `","DestinationKeyId":"alias/nobody"}`},
		{"ReEncrypt", `{"CiphertextBlob":"` + bad + `","DestinationKeyId":"` + k2 + `"}`},
	} {
		for _, name := range []string{"k1", "k2", "off"} {
			w.do(w.call("Encrypt", `{"KeyId":"`+keyID(name).String()+`","Plaintext":"aGVsbG8="}`))
		}
		views := []*keyView{w.cached("k1"), w.cached("k2"), w.cached("off")}
		w.do(w.call(c.op, c.body))
		changed()
		w.KeyChanged(ours, keyID("off"))
		for _, k := range views {
			if !isWiped(k) {
				t.Errorf("%d, %s: %s is still held", i, c.op, k.ARN)
			}
		}
	}
}

// A request gives its keys back before its reply leaves, also where no connection of ours releases it later.
func TestKeysAreBackBeforeTheReply(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true})
	w.addKey("k1", kmsapi.StateEnabled, 1)
	client, server := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- w.http.ServeConn(server) }()
	br := bufio.NewReader(client)
	raw := w.call("Encrypt", `{"KeyId":"`+keyID("k1").String()+`","Plaintext":"aGVsbG8="}`)
	for range 3 {
		if _, err := client.Write(raw); err != nil {
			t.Fatal(err)
		}
		if r, err := readReply(br); err != nil || r.status != 200 {
			t.Fatal(r.status, err)
		}
		k := w.cached("k1")
		w.KeyChanged(ours, keyID("k1"))
		if !isWiped(k) {
			t.Error("an answered request holds its key")
		}
	}
	_ = client.Close()
	<-served
}

// A key whose offsets the HSM did not compute is not cached.
func TestFailedLoadsAreNotKept(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true})
	w.addKey("k1", kmsapi.StateEnabled, 1)
	raw := w.call("Encrypt", `{"KeyId":"`+keyID("k1").String()+`","Plaintext":"aGVsbG8="}`)
	for range 3 {
		w.instead = func() error { return errors.New("no round") } // not for the offsets either
		if r := w.do(raw); r.status != 500 {
			t.Errorf("%d %s", r.status, r.body)
		}
	}
	w.instead = nil
	if r := w.do(raw); r.status != 200 || w.keys.Loads() != 4 {
		t.Errorf("%d %s after %d loads", r.status, r.body, w.keys.Loads())
	}
}

// That a key or an alias does not exist is read once, until it is said to have changed.
func TestAbsenceIsCached(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true})
	w.addKey("gone", kmsapi.StateEnabled, 1)
	blob := base64.StdEncoding.EncodeToString(w.blob("gone", 1, nil, make([]byte, 32)))
	delete(w.records.keys, keyID("gone"))
	reads := func() int {
		w.records.mu.Lock()
		defer w.records.mu.Unlock()
		return w.records.reads
	}
	for i, c := range []struct {
		op, body, exception string
		changed             func()
	}{
		{"Encrypt", `{"KeyId":"` + keyID("nobody").String() + `","Plaintext":"aGVsbG8="}`, "NotFoundException", func() { w.KeyChanged(ours, keyID("nobody")) }},
		{"Encrypt", `{"KeyId":"alias/nobody","Plaintext":"aGVsbG8="}`, "NotFoundException", func() { w.AliasChanged(ours, "alias/nobody") }},
		{"Decrypt", `{"CiphertextBlob":"` + blob + `"}`, "AccessDeniedException", func() { w.KeyChanged(ours, keyID("gone")) }},
	} {
		raw := w.call(c.op, c.body)
		for round := range 2 {
			before := reads()
			var first []byte
			for n := range 5 {
				r := w.do(raw)
				if r.exception() != c.exception {
					t.Fatalf("%d: %d %s", i, r.status, r.body)
				}
				if n == 0 {
					first = r.body
				} else if string(r.body) != string(first) {
					t.Errorf("%d: %s, at first %s", i, r.body, first)
				}
			}
			if n := reads() - before; n != 1 {
				t.Errorf("%d: %d reads of the store in round %d, want 1", i, n, round)
			}
			c.changed()
		}
	}

	// A store that fails is not an absence.
	w.records.mu.Lock()
	w.records.err = errors.New("away")
	w.records.mu.Unlock()
	raw := w.call("Encrypt", `{"KeyId":"`+keyID("k1").String()+`","Plaintext":"aGVsbG8="}`)
	if r := w.do(raw); r.exception() != "KMSInternalException" {
		t.Errorf("%d %s", r.status, r.body)
	}
	w.records.mu.Lock()
	w.records.err = nil
	w.records.mu.Unlock()
	w.addKey("k1", kmsapi.StateEnabled, 1) // and nobody says that it has changed
	if r := w.do(raw); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// Whoever guesses names pushes no key out of the cache.
func TestGuessesPushNothingOut(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true})
	w.addKey("k1", kmsapi.StateEnabled, 1)
	raw := w.call("Encrypt", `{"KeyId":"`+keyID("k1").String()+`","Plaintext":"aGVsbG8="}`)
	if r := w.do(raw); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	for i := range 1000 {
		if r := w.do(w.call("Encrypt", `{"KeyId":"`+keyID(fmt.Sprint("guess ", i)).String()+`","Plaintext":"aGVsbG8="}`)); r.status != 400 {
			t.Fatalf("%d %s", r.status, r.body)
		}
	}
	loads := w.keys.Loads()
	if r := w.do(raw); r.status != 200 || w.keys.Loads() != loads {
		t.Errorf("%d %s: %d loads for a key that was cached", r.status, r.body, w.keys.Loads()-loads)
	}
}
