package apitest

import (
	"bufio"
	"fmt"
	"math/rand"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

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

// nonsense makes hostile requests out of random numbers.
type nonsense struct {
	*rand.Rand
	v *victim
}

// exchange sends one and reads the reply, nil if there was none.
func (g *nonsense) exchange(keep *Client) (*Reply, error) {
	op := kmsapi.Operations[g.Intn(len(kmsapi.Operations))]
	for op.Write || !op.Built && g.Intn(16) > 0 { // the victim's key shall survive
		op = kmsapi.Operations[g.Intn(len(kmsapi.Operations))]
	}
	switch g.Intn(5) {
	case 0, 1: // well signed, on a connection that stays
		return keep.Try(op.Name, g.body())
	case 4: // a ciphertext that is none
		return keep.Try("Decrypt", decryptBody(g.mangle(append([]byte(nil), g.v.blob...))))
	case 2: // a good request with bytes changed
		raw, err := g.v.Request("Decrypt", decryptBody(g.v.blob)).Bytes()
		if err != nil {
			return nil, err
		}
		return g.alone(g.mangle(raw))
	}
	raw, err := g.v.Request(op.Name, g.body()).Bytes()
	if err != nil {
		return nil, err
	}
	return g.alone(g.mangle(raw))
}

// alone sends bytes on a connection of their own and then says that nothing follows, so that the server need not wait for the rest.
func (g *nonsense) alone(raw []byte) (*Reply, error) {
	c, err := net.Dial("tcp", g.v.Addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(exchangeTimeout)); err != nil {
		return nil, err
	}
	_, _ = c.Write(raw)
	_ = c.(*net.TCPConn).CloseWrite()
	return readReply(bufio.NewReader(c))
}

// special are the bytes that HTTP and JSON are made of.
const special = "\r\n:; \t\x00\"\\{}[],="

// mangle changes 1 to 4 places.
func (g *nonsense) mangle(raw []byte) []byte {
	for range 1 + g.Intn(4) {
		i := g.Intn(len(raw) + 1)
		switch g.Intn(6) {
		case 0:
			if i < len(raw) {
				raw[i] ^= 1 << g.Intn(8)
			}
		case 1:
			raw = append(raw[:i:i], raw[min(len(raw), i+1+g.Intn(20)):]...)
		case 2:
			raw = append(append(append([]byte(nil), raw[:i]...), g.bytes(1+g.Intn(20))...), raw[i:]...)
		case 3: // a piece again
			j := min(len(raw), i+g.Intn(200))
			raw = append(append(append([]byte(nil), raw[:j]...), raw[i:j]...), raw[j:]...)
		case 4:
			raw = raw[:i]
		case 5:
			if i < len(raw) {
				raw[i] = special[g.Intn(len(special))]
			}
		}
	}
	return raw
}

func (g *nonsense) bytes(n int) []byte {
	b := make([]byte, n)
	g.Read(b)
	return b
}

// body is a JSON object of members that operations know with values that they may not, sometimes damaged.
func (g *nonsense) body() string {
	members := []string{"KeyId", "CiphertextBlob", "Plaintext", "EncryptionContext", "NumberOfBytes", "KeySpec", "GrantTokens", "DryRun", "Limit", "Marker",
		"DestinationKeyId", "SourceKeyId", "EncryptionAlgorithm", "Recipient", "PolicyName", "DryRunModifiers", "CustomKeyStoreId", "Unknown"}
	body := "{"
	for i := range g.Intn(6) {
		if i > 0 {
			body += ","
		}
		body += fmt.Sprintf("%q:%s", members[g.Intn(len(members))], g.value(0))
	}
	body += "}"
	if g.Intn(4) == 0 {
		body = string(g.mangle([]byte(body)))
	}
	return body
}

func (g *nonsense) value(depth int) string {
	switch n := g.Intn(16); {
	case n == 0:
		return "null"
	case n == 1:
		return [...]string{"true", "false"}[g.Intn(2)]
	case n == 2:
		return fmt.Sprint(g.Int63() >> g.Intn(63))
	case n == 3:
		return fmt.Sprint(g.NormFloat64() * 1e6)
	case n == 4 && depth < 40:
		return "[" + g.value(depth+1) + "]"
	case n == 5 && depth < 40:
		return `{"a":` + g.value(depth+1) + "}"
	case n == 6:
		return `"` + encode(g.mangle(append([]byte(nil), g.v.blob...))) + `"`
	case n == 7:
		return `"` + encode(g.v.blob) + `"`
	case n == 8:
		return `"` + g.v.keyARN + `"`
	case n == 9:
		return `"` + string(g.mangle([]byte(g.v.keyARN))) + `"`
	case n == 10:
		return `"` + encode(g.bytes(g.Intn(5000))) + `"`
	case n == 11:
		return pairsAB
	case n == 12:
		return string(fmt.Appendf(nil, "%q", g.bytes(g.Intn(40))))
	}
	return `"` + g.v.keyID + `"`
}
