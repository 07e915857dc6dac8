package apitest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// kind says where a secret was in clear, and in which form the hunt looks for it.
type kind uint8

const (
	dataKeyRaw kind = iota // GenerateDataKey's Plaintext
	dataKeyText
	decryptedRaw // Decrypt's
	decryptedText
	encryptedRaw // Encrypt's, which the client sent
	encryptedText
	known // no secret: the ARN of the key in use, which has to be found
	kinds
)

var kindNames = [kinds]string{
	"data keys", "data keys in base64", "decrypted", "decrypted in base64", "sent to Encrypt", "sent to Encrypt in base64", "key ARNs in use",
}

// hunt finds secrets in the memory of another process.
type hunt struct {
	secrets map[uint64][]secretText // by their first 8 bytes
	begins  [1 << 16]bool           // the first two bytes of any
}

type secretText struct {
	text []byte
	kind kind
}

// secretLen is a multiple of 3, so that the base64 of a secret is the same wherever it stands, without padding.
const secretLen = 48

func (h *hunt) add(text []byte, k kind) {
	first := binary.LittleEndian.Uint64(text)
	h.secrets[first] = append(h.secrets[first], secretText{text, k})
	h.begins[binary.LittleEndian.Uint16(text)] = true
}

// addBoth takes a secret in both forms and each form in halves: what is left of one in a buffer that was written over in part is still too
// much.
func (h *hunt) addBoth(secret []byte, raw, text kind) {
	n := len(secret)
	h.add(secret[:n/2], raw)
	h.add(secret[n/2:], raw)
	e := []byte(encode(secret))
	n = len(e)
	h.add(e[:n/2], text)
	h.add(e[n/2:], text)
}

// scan counts what it finds of each kind in every writable mapping of the process.
func (h *hunt) scan(t *testing.T, pid int) (found [kinds]int, scanned int) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatalf("%v (the process is not dumpable: this test needs root)", err)
	}
	defer mem.Close()
	const overlap = 2 * secretLen
	window := make([]byte, 4<<20)
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
			n, _ := mem.ReadAt(window[:min(uint64(len(window)), to-from)], int64(from))
			scanned += n
			for i := 0; i+8 <= n && i < len(window)-overlap; i++ { // what begins later is the next window's
				if !h.begins[binary.LittleEndian.Uint16(window[i:])] {
					continue
				}
				for _, s := range h.secrets[binary.LittleEndian.Uint64(window[i:])] {
					if bytes.HasPrefix(window[i:n], s.text) {
						found[s.kind]++
					}
				}
			}
		}
	}
	return found, scanned
}

// TestNothingStays: a second after 800 requests over connections that stay open, the server's memory holds none of the data keys it gave
// out and none of the plaintexts it decrypted. What clients send to Encrypt passes fasthttp's read buffers, where the last request of a
// connection stays until the next one comes: of each connection one plaintext may be left, in base64.
//
// One thing is not ours to wipe: where Go's runtime interrupts a goroutine in the middle of a copy, it saves the vector registers, 256 bytes
// and more, in a place of its own, one for each processor and signal stack, which the next interruption writes over. So all is held to
// nothing without such interruptions, and with them to the little that they can leave.
func TestNothingStays(t *testing.T) {
	t.Run("uninterrupted", func(t *testing.T) {
		t.Setenv("GODEBUG", "asyncpreemptoff=1")
		testResidue(t, 0)
	})
	t.Run("as it runs", func(t *testing.T) { testResidue(t, 2*(runtime.GOMAXPROCS(0)+6)) })
}

// testResidue: interrupted is how many halves of secrets may be left in saved registers.
func testResidue(t *testing.T, interrupted int) {
	p := Command(t, filepath.Join(t.TempDir(), "data"))
	var key struct{ KeyMetadata struct{ KeyId, Arn string } }
	p.Do(t, "CreateKey", "{}").Members(t, &key)
	id := `"KeyId":"` + key.KeyMetadata.KeyId + `"`
	h := &hunt{secrets: make(map[uint64][]secretText)}
	const conns, each = 4, 50
	for range conns {
		c := p.Client(t)
		for i := range each {
			var out struct{ Plaintext, CiphertextBlob []byte }
			c.Do(t, "GenerateDataKey", `{`+id+fmt.Sprintf(`,"NumberOfBytes":%d}`, secretLen)).Members(t, &out)
			h.addBoth(out.Plaintext, dataKeyRaw, dataKeyText)
			// One that the server has only ever decrypted.
			c.Do(t, "GenerateDataKeyWithoutPlaintext", `{`+id+fmt.Sprintf(`,"NumberOfBytes":%d}`, secretLen)).Members(t, &out)
			c.Do(t, "Decrypt", `{"CiphertextBlob":"`+encode(out.CiphertextBlob)+`"}`).Members(t, &out)
			h.addBoth(out.Plaintext, decryptedRaw, decryptedText)
			sent := make([]byte, secretLen)
			for j := range sent {
				sent[j] = byte(i*7 + j*j + len(h.secrets))
			}
			c.Do(t, "Encrypt", `{`+id+`,"Plaintext":"`+encode(sent)+`"}`).Members(t, &out)
			h.addBoth(sent, encryptedRaw, encryptedText)
		}
	}
	if n := len(h.secrets); n < 12*conns*each*9/10 {
		t.Fatalf("only %d secrets are different", n)
	}
	h.add([]byte(key.KeyMetadata.Arn), known)
	time.Sleep(time.Second) // what is promised is that nothing stays, and what is wiped is wiped by then
	found, scanned := h.scan(t, p.cmd.Process.Pid)
	for k, n := range found {
		t.Logf("%4d halves of %d %s", n, conns*each, kindNames[k])
	}
	t.Logf("%d MiB scanned", scanned>>20)
	if found[known] == 0 {
		t.Error("the scan did not find what is there")
	}
	left := 0
	for _, n := range found[:encryptedText] {
		left += n
	}
	if left > interrupted {
		t.Errorf("%d halves of secrets are in the server's memory, want at most %d", left, interrupted)
	}
	if n := found[encryptedText]; n > 2*conns+interrupted {
		t.Errorf("%d halves of plaintexts that were sent to Encrypt are in the server's memory, want at most two for each of %d connections", n, conns)
	}
}
