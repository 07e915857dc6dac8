package apitest

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand"
	"net"
	"sync"
	"testing"
	"time"
)

// slowMargin is what a busy machine may take beyond the read timeout.
const slowMargin = 5 * time.Second

// testSlowSenders: who does not finish a request in time is cut off, whatever it sends in between; who goes away early leaves nothing.
func testSlowSenders(t *testing.T, v *victim) {
	good := v.bytesOf(t, "Decrypt", decryptBody(v.blob))
	split := bytes.Index(good, []byte("\r\n\r\n")) + 4
	header, body := good[:split], good[split:]
	for name, s := range map[string]struct{ first, drops []byte }{
		"header":               {nil, header},
		"header after a while": {header[:split-10], nil},
		"body":                 {header, body},
		"no body":              {header, nil},
		"one byte less":        {good[:len(good)-1], nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := v.Dial(t)
			if _, err := c.Write(s.first); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			stop := make(chan struct{})
			var sender sync.WaitGroup
			sender.Go(func() { // a byte at a time, each long before any single read would time out
				for i := 0; i < len(s.drops)-1; i++ {
					select {
					case <-stop:
						return
					case <-time.After(hostileReadTimeout / 20):
					}
					if _, err := c.Write(s.drops[i : i+1]); err != nil {
						return
					}
				}
			})
			br := bufio.NewReader(c)
			r, err := readReply(br)
			if err != nil {
				t.Fatal(err)
			}
			closedOr(t, name, r, "RequestTimeoutException", badRequest)
			isClosed(t, c)
			close(stop)
			sender.Wait()
			if took := time.Since(began); took > hostileReadTimeout+slowMargin {
				t.Errorf("cut off after %v, read_timeout is %v", took, hostileReadTimeout)
			}
		})
	}
	t.Run("early ends", func(t *testing.T) {
		t.Parallel()
		for n := 0; n <= len(good); n += 7 {
			c := v.Dial(t)
			if _, err := c.Write(good[:n]); err != nil {
				t.Fatal(err)
			}
			if n%2 == 0 { // a reset instead of a proper end
				_ = c.(*net.TCPConn).SetLinger(0)
			}
			c.Close()
		}
	})
	t.Run("half closed", func(t *testing.T) {
		t.Parallel()
		c := v.Dial(t).(*net.TCPConn)
		if _, err := c.Write(good); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		r := must(readReply(bufio.NewReader(c)))(t)
		if r == nil || r.Status != 200 {
			t.Errorf("a client that sends no more got %+v", r)
		}
	})
}

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

// hostileSeed makes the random requests the same on every run.
const hostileSeed = 20261124

// testRandomRequests sends 10 000 requests that a fixed seed makes: good ones with bytes changed on the wire, and well signed nonsense.
func testRandomRequests(t *testing.T, v *victim) {
	total := 10_000
	if testing.Short() {
		total = 3_000
	}
	const workers = 4
	replies := make(map[string]int)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range workers {
		g := &nonsense{Rand: rand.New(rand.NewSource(hostileSeed + int64(w))), v: v}
		client := v.Client(t)
		wg.Go(func() {
			for range total / workers {
				r, err := g.exchange(client)
				what := "closed"
				switch {
				case err != nil:
					t.Errorf("seed %d: %v", hostileSeed+w, err)
					return
				case r != nil:
					r.WellFormed(t)
					if what = r.Type; r.Status == 200 {
						what = "200"
					}
					if r.Status >= 500 {
						t.Errorf("seed %d: %d %s", hostileSeed+w, r.Status, r.Body)
					}
				}
				mu.Lock()
				replies[what]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("replies: %v", replies)
	for _, want := range []string{"closed", badRequest, serialization, validation, invalidSignature, invalidCiphertext} {
		if replies[want] == 0 {
			t.Errorf("no request ended with %s: the requests are not what they were", want)
		}
	}
}
