//go:build !race && !invariants

package dataplane

import (
	"bytes"
	"encoding/base64"
	"io"
	"net"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// TestAlloc counts the allocations of the whole process, server and client, while one keep-alive connection over loopback sends signed
// requests made beforehand. The client's part is nothing: it writes and reads fixed memory.
func TestAlloc(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true, tcp: true})
	w.addKey("k1", kmsapi.StateEnabled, 1)
	w.addKey("k2", kmsapi.StateEnabled, 1)
	w.addKey("off", kmsapi.StateDisabled, 1)
	w.records.aliases["alias/a"] = keyID("k1")
	const context = `"EncryptionContext":{"tenant":"t-1234","purpose":"test"}`
	pairs := map[string]string{"tenant": "t-1234", "purpose": "test"}
	blob := base64.StdEncoding.EncodeToString(w.blob("k1", 1, pairs, make([]byte, 32)))
	w.addKey("gone", kmsapi.StateEnabled, 1)
	gone := base64.StdEncoding.EncodeToString(w.blob("gone", 1, nil, make([]byte, 32)))
	delete(w.records.keys, keyID("gone"))
	w.KeyChanged(ours, keyID("gone"))
	k1, k2, off := keyID("k1").String(), keyID("k2").String(), keyID("off").String()
	tampered := w.call("GenerateDataKey", `{"KeyId":"`+k1+`","KeySpec":"AES_256"}`)
	tampered[len(tampered)-3] ^= 1

	// Nothing of the cache's is left: its hits allocate a dozen buffers in all, however many they are (package cache, hitSample).
	const few = 0.005
	for _, c := range []struct {
		name   string
		raw    []byte
		status string
		most   float64 // allocations per request
	}{
		{"GenerateDataKey", w.call("GenerateDataKey", `{"KeyId":"`+k1+`","KeySpec":"AES_256",`+context+`}`), "200", few},
		{"GenerateDataKey/alias", w.call("GenerateDataKey", `{"KeyId":"alias/a","NumberOfBytes":64}`), "200", few},
		{"GenerateDataKeyWithoutPlaintext", w.call("GenerateDataKeyWithoutPlaintext", `{"KeyId":"`+k1+`","KeySpec":"AES_128"}`), "200", few},
		{"Encrypt", w.call("Encrypt", `{"KeyId":"`+keyARN("k1")+`","Plaintext":"`+base64.StdEncoding.EncodeToString(make([]byte, 4096))+`",`+context+`}`), "200", few},
		{"Decrypt", w.call("Decrypt", `{"CiphertextBlob":"`+blob+`",`+context+`}`), "200", few},
		{"ReEncrypt", w.call("ReEncrypt", `{"CiphertextBlob":"`+blob+`","Source`+context[1:]+`,"DestinationKeyId":"`+k2+`"}`), "200", few},
		{"GenerateRandom", w.call("GenerateRandom", `{"NumberOfBytes":1024}`), "200", few},
		{"refused/dry run", w.call("GenerateDataKey", `{"KeyId":"`+k1+`","KeySpec":"AES_256","DryRun":true}`), "400", few},
		{"refused/disabled key", w.call("GenerateDataKey", `{"KeyId":"`+off+`","KeySpec":"AES_256"}`), "400", few},
		{"refused/wrong context", w.call("Decrypt", `{"CiphertextBlob":"`+blob+`"}`), "400", few},
		{"refused/no ciphertext", w.call("Decrypt", `{"CiphertextBlob":"aGVsbG8="}`), "400", few},
		{"refused/constraint", w.call("Encrypt", `{"KeyId":"`+k1+`","Plaintext":""}`), "400", few},
		{"refused/signature", tampered, "400", few},
		{"refused/unknown key", w.call("GenerateDataKey", `{"KeyId":"`+keyID("nobody").String()+`","KeySpec":"AES_256"}`), "400", few},
		{"refused/unknown alias", w.call("GenerateDataKey", `{"KeyId":"alias/nobody","KeySpec":"AES_256"}`), "400", few},
		{"refused/unknown key of a ciphertext", w.call("Decrypt", `{"CiphertextBlob":"`+gone+`"}`), "400", few},
	} {
		t.Run(c.name, func(t *testing.T) {
			warm, runs := 2_000, 20_000
			if c.status != "200" {
				warm, runs = 1_000, 10_000
			}
			n := allocations(t, w, c.raw, c.status, warm, runs)
			per := float64(n) / float64(runs)
			t.Logf("%d allocations in %d requests: %.4f per request", n, runs, per)
			if per > c.most {
				t.Errorf("%.4f allocations per request, at most %.2f are allowed", per, c.most)
			}
		})
	}
}

// allocations sends raw warm times, then runs times, and returns the mallocs of the latter.
func allocations(t *testing.T, w *world, raw []byte, status string, warm, runs int) uint64 {
	t.Helper()
	c, err := net.Dial("tcp", w.ln.Addr().String())
	w.must(err)
	defer c.Close()
	w.must(c.SetDeadline(time.Now().Add(60 * time.Second)))
	buf := make([]byte, 32<<10)
	size := firstReply(t, c, raw, buf)
	want := []byte("HTTP/1.1 " + status)
	send := func(n int) {
		for range n {
			if _, err := c.Write(raw); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, buf[:size]); err != nil {
				t.Fatal(err)
			}
			if !bytes.HasPrefix(buf, want) {
				t.Fatalf("got %s", buf[:size])
			}
		}
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	send(warm)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	send(runs)
	runtime.ReadMemStats(&after)
	return after.Mallocs - before.Mallocs
}
