package apitest

import (
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/node"
)

// hostileReadTimeout is the node's read_timeout while it meets slow senders: short, so that the test is, and long enough for a good request on a
// busy machine.
const hostileReadTimeout = 2 * time.Second

// goroutines counts this process's goroutines and returns their stacks. It leaves out fasthttp's workers without a connection: those are
// pooled, and end when they had none for 10 seconds.
func goroutines() (n int, stacks string) {
	buf := make([]byte, 4<<20)
	stacks = string(buf[:runtime.Stack(buf, true)])
	for stack := range strings.SplitSeq(stacks, "\n\n") {
		if !strings.Contains(stack, "fasthttp.(*workerPool).workerFunc") || strings.Contains(stack, "fasthttp.(*Server).serveConn") {
			n++
		}
	}
	return n, stacks
}

// victim is a node that meets bad input, with a key and a blob that work.
type victim struct {
	*Server
	keyID, keyARN string
	blob          []byte // of hello, under pairsAB
}

const (
	hello   = "aGVsbG8=" // base64 of the plaintext
	pairsAB = `{"b":"2","a":"1"}`
)

// TestBadInput: whatever is sent, the answer is a well-formed refusal, or a closed connection where HTTP itself is broken; never a 5xx, a
// panic or a hang, and nothing is left behind.
func TestBadInput(t *testing.T) {
	v := &victim{Server: Start(t, func(c *node.Config) { c.ReadTimeout = hostileReadTimeout })}
	var key struct{ KeyMetadata struct{ KeyId, Arn string } }
	v.Do(t, "CreateKey", "{}").Members(t, &key)
	v.keyID, v.keyARN = key.KeyMetadata.KeyId, key.KeyMetadata.Arn
	var made struct{ CiphertextBlob []byte }
	v.Do(t, "Encrypt", `{"KeyId":"`+v.keyID+`","Plaintext":"`+hello+`","EncryptionContext":`+pairsAB+`}`).Members(t, &made)
	v.blob = made.CiphertextBlob
	before, _ := goroutines()

	for _, set := range []struct {
		name string
		run  func(*testing.T, *victim)
	}{
		{"JSON", testHostileJSON},
		{"Blob", testHostileBlob},
		{"HTTP", testHostileHTTP},
		{"Signature", testHostileSignature},
		{"Slow", testSlowSenders},
		{"Pipeline", testPipeline},
		{"Random", testRandomRequests},
	} {
		t.Run(set.name, func(t *testing.T) {
			set.run(t, v)
			v.serves(t)
			if n := v.Stats().Panics; n != 0 {
				t.Errorf("%d requests ended in a panic", n)
			}
		})
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		after, stacks := goroutines()
		if after <= before {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before:\n%s", after, before, stacks)
		}
	}
}

// serves fails t unless a good request of each plane is answered.
func (v *victim) serves(t *testing.T) {
	t.Helper()
	var back struct{ Plaintext string }
	v.Do(t, "Decrypt", decryptBody(v.blob)).Members(t, &back)
	equal(t, "the plaintext", back.Plaintext, hello)
	var described struct{ KeyMetadata struct{ Arn string } }
	v.Do(t, "DescribeKey", `{"KeyId":"`+v.keyID+`"}`).Members(t, &described)
	equal(t, "the key's ARN", described.KeyMetadata.Arn, v.keyARN)
}

// refusal fails t unless the reply is a well-formed refusal of that type, or of one of them.
func refusal(t *testing.T, what string, r *Reply, types ...string) {
	t.Helper()
	if r == nil {
		t.Errorf("%s: the connection was closed without a reply, want %v", what, types)
		return
	}
	r.WellFormed(t)
	for _, typ := range types {
		if r.Type == typ {
			return
		}
	}
	t.Errorf("%s: %d %.300s, want %v", what, r.Status, r.Body, types)
}

// closedOr is refusal for input that is no HTTP: the server may also close without a word.
func closedOr(t *testing.T, what string, r *Reply, types ...string) {
	t.Helper()
	if r != nil {
		refusal(t, what, r, types...)
	}
}

// isClosed waits for the other side to close and reports how long that took.
func isClosed(t *testing.T, c net.Conn) time.Duration {
	t.Helper()
	began := time.Now()
	if err := c.SetReadDeadline(began.Add(exchangeTimeout)); err != nil {
		t.Fatal(err)
	}
	for b := make([]byte, 4096); ; {
		if _, err := c.Read(b); err != nil {
			if e, ok := err.(net.Error); ok && e.Timeout() {
				t.Fatalf("the connection is open after %v", exchangeTimeout)
			}
			return time.Since(began)
		}
	}
}
