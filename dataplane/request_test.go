package dataplane

import (
	"encoding/base64"
	"testing"

	"github.com/keyplane/keyplane/internal/invariants"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

func TestInvariantsOfRequests(t *testing.T) {
	if !invariants.Enabled {
		t.Log("checked in builds with the tag invariants, and in race builds")
	}
	broken := func(what string, f func(*requestPool)) {
		t.Helper()
		defer func() {
			if p := recover(); (p != nil) != invariants.Enabled {
				t.Errorf("%s: panic %v", what, p)
			}
		}()
		f(&requestPool{})
	}
	broken("double release", func(p *requestPool) {
		r := p.acquire()
		p.release(r)
		p.release(r)
	})
	broken("residue beyond a buffer's length", func(p *requestPool) {
		r := p.acquire()
		r.plain = append(r.plain, "secret"...)[:3]
		p.release(r)
	})
	broken("use after release", func(p *requestPool) {
		// The pool may drop what it is given, now and then in race builds: so try until it has not.
		for range 100 {
			r := p.acquire()
			p.release(r)
			r.key = nil
			r.sealed = []byte("late")
			p.acquire()
		}
	})
}

// Buffers are made once: the largest requests and replies fit, so that no memory with secrets is left to the garbage collector when append
// would have to move.
func TestBuffersHoldTheLargest(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true})
	w.addKey("mrk1", kmsapi.StateEnabled, 1)
	largest := base64.StdEncoding.EncodeToString(make([]byte, kmsapi.PlaintextMax))
	name := `"KeyId":"` + keyARN("mrk1") + `"`
	long := make([]byte, 0, 8185)
	for range cap(long) {
		long = append(long, 'v')
	}
	context := map[string]string{"k": string(long)}
	blob := base64.StdEncoding.EncodeToString(w.blob("mrk1", 1, context, make([]byte, kmsapi.PlaintextMax)))
	c := `EncryptionContext":{"k":"` + string(long) + `"}`
	for _, call := range [][2]string{
		{"Encrypt", `{` + name + `,"Plaintext":"` + largest + `","` + c + `}`},
		{"Decrypt", `{` + name + `,"CiphertextBlob":"` + blob + `","` + c + `}`},
		{"GenerateDataKey", `{` + name + `,"NumberOfBytes":1024,"` + c + `}`},
		{"ReEncrypt", `{"DestinationKeyId":"` + keyARN("mrk1") + `","CiphertextBlob":"` + blob + `","Source` + c + `,"Destination` + c + `}`},
		{"GenerateRandom", `{"NumberOfBytes":1024}`},
	} {
		if r := w.do(w.call(call[0], call[1])); r.status != 200 {
			t.Fatalf("%s: %d %s", call[0], r.status, r.body)
		}
	}
	found := 0
	for range 8 {
		r, ok := w.requests.pool.Get().(*request)
		if !ok {
			break
		}
		found++
		for _, b := range []struct {
			name string
			buf  []byte
			cap  int
		}{{"name", r.name, nameCap}, {"aad", r.aad, aadCap}, {"plain", r.plain, plainCap}, {"ctext", r.ctext, ctextCap}, {"out", r.out, outCap}, {"msg", r.msg, msgCap}} {
			if cap(b.buf) != b.cap {
				t.Errorf("%s was made with %d bytes and has %d", b.name, b.cap, cap(b.buf))
			}
		}
	}
	if found == 0 && !invariants.Enabled { // a pool in race builds drops what it is given now and then
		t.Error("no request came back to the pool")
	}
}

func TestWiped(t *testing.T) {
	b := append(make([]byte, 0, 64), "secret"...)
	if got := wiped(b, 16); len(got) != 0 || cap(got) != 64 || string(b) != "\x00\x00\x00\x00\x00\x00" {
		t.Errorf("at four times its class: %d of %d, %q", len(got), cap(got), b)
	}
	if got := wiped(make([]byte, 3, 65), 16); len(got) != 0 || cap(got) != 16 {
		t.Errorf("beyond four times its class: %d of %d", len(got), cap(got))
	}
	b = []byte("secret")
	if got := emptied(b); len(got) != 0 || cap(got) != 6 || string(b) != "\x00\x00\x00\x00\x00\x00" {
		t.Errorf("emptied: %d of %d, %q", len(got), cap(got), b)
	}
}
