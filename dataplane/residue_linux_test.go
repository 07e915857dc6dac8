//go:build !race

package dataplane

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// mask hides what the test itself knows of data keys from its own scan.
const mask = 0xa5

// hunt finds data keys in memory without holding one.
type hunt struct {
	patterns map[uint64][][]byte // masked, by their first 8 bytes
	begins   [1 << 16]bool       // first two bytes of any
	window   [1 << 20]byte
}

// add takes a pattern, which the caller clears.
func (h *hunt) add(pattern []byte) {
	masked := make([]byte, len(pattern))
	for i, c := range pattern {
		masked[i] = c ^ mask
	}
	first := binary.LittleEndian.Uint64(masked)
	h.patterns[first] = append(h.patterns[first], masked)
	h.begins[binary.LittleEndian.Uint16(masked)] = true
}

func (h *hunt) at(b []byte) bool {
	const masks = 0xa5a5a5a5a5a5a5a5
	for _, p := range h.patterns[binary.LittleEndian.Uint64(b)^masks] {
		if len(b) < len(p) {
			continue
		}
		same := true
		for i := range p {
			same = same && b[i]^mask == p[i]
		}
		if same {
			return true
		}
	}
	return false
}

// memory counts the patterns in every writable mapping of this process. The window it reads through is cleared before each read, so that
// it does not find itself.
func (h *hunt) memory(t *testing.T) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	window := h.window[:]
	const overlap = 64 // longer than a pattern
	found, scanned := 0, 0
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var perms string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &perms); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(perms, "rw") {
			continue
		}
		for ; from < to; from += uint64(len(window)) - overlap {
			clear(window)
			n, _ := mem.ReadAt(window[:min(uint64(len(window)), to-from)], int64(from))
			for i := 0; i+8 <= n && i < len(window)-overlap; i++ { // what begins later is the next window's
				if h.begins[binary.LittleEndian.Uint16(window[i:])^(mask<<8|mask)] && h.at(window[i:n]) {
					found++
				}
			}
			scanned += n
		}
	}
	clear(window)
	t.Logf("%d MiB scanned", scanned>>20)
	return found
}

// After 200 GenerateDataKey over keep-alive connections no data key is left anywhere in the process, raw or in base64: not in our pooled
// requests, not in fasthttp's buffers, not in the rounds' memory. The connections stay open meanwhile.
//
// The test runs in a process of its own that does not preempt goroutines asynchronously: where the runtime interrupts a copy it saves the vector
// registers on a stack, and what they held is beyond our wiping (docs/ARCHITECTURE.md §7).
func TestNoDataKeyStays(t *testing.T) {
	if os.Getenv("KEYPLANE_RESIDUE_CHILD") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestNoDataKeyStays$", "-test.v", "-test.timeout=60s")
		cmd.Env = append(os.Environ(), "KEYPLANE_RESIDUE_CHILD=1", "GODEBUG=asyncpreemptoff=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("--- PASS: TestNoDataKeyStays")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	debug.FreeOSMemory()                             // of tests before
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // or a collection would tidy up what we forgot
	w := newWorld(t, worldConfig{plain: true, tcp: true})
	w.addKey("k1", kmsapi.StateEnabled, 1)
	w.addResidentKey("own", kmsapi.StateEnabled, 1)
	ask := func(key string) []byte { // 30 bytes are 40 base64 digits, no padding
		return w.call("GenerateDataKey", `{"KeyId":"`+keyID(key).String()+`","NumberOfBytes":30}`)
	}
	requests := [][]byte{ask("k1"), ask("own")}
	h := &hunt{patterns: map[uint64][][]byte{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	const conns, each = 4, 50
	var canary [30]byte
	for i := range conns {
		raw := requests[i%len(requests)]
		c, err := w.dial()
		w.must(err)
		defer c.Close()
		wg.Go(func() {
			for range each {
				if err := takeDataKey(c, raw, &mu, h, &canary); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := len(h.patterns); n != 2*conns*each {
		t.Fatalf("%d patterns", n)
	}
	// A request is wiped when the server reads the connection next, which it does right after the reply has left.
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if h.memory(t) == 1 { // the canary
			break
		}
		if time.Now().After(deadline) {
			clear(canary[:])
			t.Fatalf("%d data keys are left in memory", h.memory(t))
		}
	}
	clear(canary[:])
	if n := h.memory(t); n != 0 {
		t.Errorf("%d data keys are left in memory", n)
	}
}

// takeDataKey asks for a data key and gives it to the hunt in both forms. The last one taken is kept in canary: what the scan has to find.
func takeDataKey(c net.Conn, raw []byte, mu *sync.Mutex, h *hunt, canary *[30]byte) error {
	buf := make([]byte, 4096)
	defer clear(buf)
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(raw); err != nil {
		return err
	}
	n, err := io.ReadAtLeast(c, buf, 1)
	for err == nil && !bytes.HasSuffix(buf[:n], []byte(`"}`)) {
		var m int
		m, err = c.Read(buf[n:])
		n += m
	}
	if err != nil {
		return err
	}
	const member = `"Plaintext":"`
	at := bytes.Index(buf[:n], []byte(member))
	if at < 0 {
		return fmt.Errorf("no data key in the reply: %d bytes", n)
	}
	text := buf[at+len(member) : at+len(member)+40]
	key := buf[len(buf)-30:] // not on the stack, which leaves copies behind when it grows
	if _, err := base64.StdEncoding.Decode(key, text); err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	h.add(text)
	h.add(key)
	copy(canary[:], key)
	return nil
}
