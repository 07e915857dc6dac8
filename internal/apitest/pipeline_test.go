package apitest

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
)

// testPipeline: requests sent before the reply to the first are all answered, in order, each with its own answer.
func testPipeline(t *testing.T, v *victim) {
	const n = 60
	type want struct {
		plain string
		typ   string
	}
	var raw []byte
	var wants []want
	c := v.Client(t)
	for i := range n {
		plain := fmt.Sprintf("%x", sha256.Sum256([]byte{byte(i)}))
		var made struct{ CiphertextBlob []byte }
		pair := fmt.Sprintf(`{"n":"%d"}`, i)
		c.Do(t, "Encrypt", `{"KeyId":"`+v.keyID+`","Plaintext":"`+encode([]byte(plain))+`","EncryptionContext":`+pair+`}`).Members(t, &made)
		w, op, body := want{plain: plain}, "Decrypt", `{"CiphertextBlob":"`+encode(made.CiphertextBlob)+`","EncryptionContext":`+pair+`}`
		switch i % 6 {
		case 2: // the context of another
			w, body = want{typ: invalidCiphertext}, `{"CiphertextBlob":"`+encode(made.CiphertextBlob)+`","EncryptionContext":{"n":"x"}}`
		case 3:
			w, op, body = want{typ: validation}, "DescribeKey", `{}`
		case 4:
			w, body = want{typ: serialization}, `{"CiphertextBlob":`
		}
		wants = append(wants, w)
		raw = append(raw, v.bytesOf(t, op, body)...)
	}
	for _, piece := range []int{len(raw), 1000, 17} { // all at once, and cut anywhere
		conn := v.Dial(t)
		var sender sync.WaitGroup
		sender.Go(func() {
			for rest := raw; len(rest) > 0; {
				k := min(piece, len(rest))
				if _, err := conn.Write(rest[:k]); err != nil {
					t.Errorf("writing: %v", err)
					return
				}
				rest = rest[k:]
			}
		})
		br := bufio.NewReader(conn)
		ids := make(map[string]bool)
		for i, w := range wants {
			r := must(readReply(br))(t)
			if r == nil {
				t.Fatalf("the connection was closed before reply %d", i)
			}
			r.WellFormed(t)
			id := r.Header.Get("X-Amzn-Requestid")
			if ids[id] {
				t.Errorf("request ID %s twice", id)
			}
			ids[id] = true
			if w.typ != "" {
				equal(t, fmt.Sprintf("reply %d", i), r.Type, w.typ)
				continue
			}
			var out struct{ Plaintext []byte }
			if r.Status != 200 || json.Unmarshal(r.Body, &out) != nil || string(out.Plaintext) != w.plain {
				t.Errorf("reply %d is %d %s", i, r.Status, r.Body)
			}
		}
		sender.Wait()
		conn.Close()
	}
}
