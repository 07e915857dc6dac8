package dataplane

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// shapes are the ways to run the same requests: alone or in rounds, on one session or on many.
var shapes = []struct{ roundMax, sessions int }{{1, 1}, {64, 1}, {1, 8}, {64, 8}}

// metaCase is a request and the context that its ciphertext opens with.
type metaCase struct{ op, body, context string }

// TestShapesAgree sends the same requests, many at once, to data planes of all shapes over one token: the outcomes are the same. What is random
// is decrypted by the next shape.
func TestShapesAgree(t *testing.T) {
	for _, kind := range tokenKinds {
		t.Run(kind.name, func(t *testing.T) {
			token := kind.open(t)
			worlds := make([]*world, len(shapes))
			var own *snapshot.Record // the same in all worlds: its keys are new ones
			for i, s := range shapes {
				w := newWorld(t, worldConfig{tokens: []hsm.Token{token}, ring: true, roundMax: s.roundMax, sessions: s.sessions,
					roundTimeout: clientTimeout, queueTimeMax: clientTimeout, server: Config{ReadTimeout: clientTimeout}}) // nothing is refused because the machine is busy
				w.token.Add(hsmtest.Fault{Op: hsmtest.Round, Times: hsmtest.Forever, Delay: 500 * time.Microsecond}) // rounds form
				w.addKey("k1", kmsapi.StateEnabled, 2)
				w.addKey("k2", kmsapi.StateEnabled, 1)
				w.addKey("off", kmsapi.StateDisabled, 1)
				w.addKey("foreign", kmsapi.StateEnabled, 1)
				if i == 0 {
					own = w.addResidentKey("own", kmsapi.StateEnabled, 2)
				}
				w.records.keys[own.ID] = own
				w.records.aliases["alias/a"] = keyID("k1")
				worlds[i] = w
			}
			cases := metaCases(worlds[0])
			want := make([]string, len(cases))
			for i, w := range worlds {
				s := shapes[i]
				for _, o := range w.outcomes(cases, worlds[(i+1)%len(worlds)]) {
					if want[o.n] == "" {
						want[o.n] = o.text
					}
					if o.text != want[o.n] {
						t.Errorf("%s %s\n rounds of %d, %d sessions: %s\n before: %s", cases[o.n].op, cases[o.n].body, s.roundMax, s.sessions, o.text, want[o.n])
					}
				}
				stats, shards := w.batcher.Stats(), 0
				for _, sh := range w.shards.Stats().Shards {
					if sh.Jobs > 0 {
						shards++
					}
				}
				shared := stats.Jobs > stats.Rounds
				if s.roundMax == 1 && shared || s.roundMax > 1 && s.sessions == 1 && !shared || (shards > 1) != (s.sessions > 1) {
					t.Errorf("rounds of %d, %d sessions: %d jobs in %d rounds on %d shards", s.roundMax, s.sessions, stats.Jobs, stats.Rounds, shards)
				}
			}
		})
	}
}

func metaCases(w *world) []metaCase {
	const none, pair, pairs = "{}", `{"a":"1"}`, `{"b":"2","a":"1"}`
	b64 := base64.StdEncoding.EncodeToString
	blob := func(key string, version int, context map[string]string, plaintext string) string {
		return b64(w.blob(key, version, context, []byte(plaintext)))
	}
	k1, k2, off, own := keyID("k1").String(), keyID("k2").String(), keyID("off").String(), keyID("own").String()
	ownOld, ownNow := blob("own", 1, nil, "resident, before rotation"), blob("own", 2, map[string]string{"a": "1"}, "resident")
	old, now := blob("k1", 1, nil, "made before rotation"), blob("k1", 2, map[string]string{"a": "1", "b": "2"}, "with a context")
	bad := []byte(now)
	bad[len(bad)/2] ^= 1
	large := b64([]byte(strings.Repeat("x", kmsapi.PlaintextMax)))
	return []metaCase{
		{"GenerateDataKey", `{"KeyId":"` + k1 + `","KeySpec":"AES_256"}`, none},
		{"GenerateDataKey", `{"KeyId":"alias/a","NumberOfBytes":1024,"EncryptionContext":` + pair + `}`, pair},
		{"GenerateDataKeyWithoutPlaintext", `{"KeyId":"` + k2 + `","KeySpec":"AES_128","EncryptionContext":` + pairs + `}`, pairs},
		{"Encrypt", `{"KeyId":"` + k1 + `","Plaintext":"aGVsbG8="}`, none},
		{"Encrypt", `{"KeyId":"` + keyARN("k2") + `","Plaintext":"` + large + `","EncryptionContext":` + pairs + `}`, pairs},
		{"Decrypt", `{"CiphertextBlob":"` + old + `"}`, none},
		{"Decrypt", `{"CiphertextBlob":"` + now + `","EncryptionContext":` + pairs + `,"KeyId":"` + k1 + `"}`, none},
		{"ReEncrypt", `{"CiphertextBlob":"` + old + `","DestinationKeyId":"` + k2 + `","DestinationEncryptionContext":` + pair + `}`, pair},
		{"ReEncrypt", `{"CiphertextBlob":"` + now + `","SourceEncryptionContext":` + pairs + `,"DestinationKeyId":"` + k1 + `"}`, none},
		{"GenerateRandom", `{"NumberOfBytes":1}`, none},
		{"GenerateRandom", `{"NumberOfBytes":1024}`, none},
		{"Decrypt", `{"CiphertextBlob":"` + now + `","EncryptionContext":` + pair + `}`, none},
		{"Decrypt", `{"CiphertextBlob":"` + string(bad) + `","EncryptionContext":` + pairs + `}`, none},
		{"Decrypt", `{"CiphertextBlob":"` + old + `","KeyId":"` + k2 + `"}`, none},
		{"Decrypt", `{"CiphertextBlob":"aGVsbG8="}`, none},
		{"ReEncrypt", `{"CiphertextBlob":"` + now + `","DestinationKeyId":"` + k2 + `"}`, none},
		{"ReEncrypt", `{"CiphertextBlob":"` + old + `","DestinationKeyId":"` + off + `"}`, none},
		{"Encrypt", `{"KeyId":"` + off + `","Plaintext":"aGVsbG8="}`, none},
		{"Encrypt", `{"KeyId":"` + k1 + `","Plaintext":""}`, none},
		{"GenerateDataKey", `{"KeyId":"` + keyARN("foreign") + `","KeySpec":"AES_256"}`, none},
		{"GenerateDataKey", `{"KeyId":"` + k1 + `","KeySpec":"AES_256","DryRun":true}`, none},
		{"GenerateRandom", `{"NumberOfBytes":1025}`, none},
		{"GenerateDataKey", `{"KeyId":"` + own + `","KeySpec":"AES_256"}`, none},
		{"GenerateDataKey", `{"KeyId":"` + own + `","NumberOfBytes":1024,"EncryptionContext":` + pair + `}`, pair},
		{"GenerateDataKeyWithoutPlaintext", `{"KeyId":"` + own + `","KeySpec":"AES_128","EncryptionContext":` + pairs + `}`, pairs},
		{"Encrypt", `{"KeyId":"` + own + `","Plaintext":"` + large + `","EncryptionContext":` + pairs + `}`, pairs},
		{"Decrypt", `{"CiphertextBlob":"` + ownOld + `"}`, none},
		{"Decrypt", `{"CiphertextBlob":"` + ownNow + `","EncryptionContext":` + pair + `,"KeyId":"` + own + `"}`, none},
		{"Decrypt", `{"CiphertextBlob":"` + ownNow + `"}`, none},
		{"Decrypt", `{"CiphertextBlob":"` + ownOld + `","KeyId":"` + k1 + `"}`, none},
		{"ReEncrypt", `{"CiphertextBlob":"` + ownOld + `","DestinationKeyId":"` + k2 + `","DestinationEncryptionContext":` + pair + `}`, pair},
		{"ReEncrypt", `{"CiphertextBlob":"` + now + `","SourceEncryptionContext":` + pairs + `,"DestinationKeyId":"` + own + `"}`, none},
		{"ReEncrypt", `{"CiphertextBlob":"` + ownOld + `","DestinationKeyId":"` + own + `","DestinationEncryptionContext":` + pair + `}`, pair},
		{"ReEncrypt", `{"CiphertextBlob":"` + ownNow + `","SourceEncryptionContext":` + pair + `,"DestinationKeyId":"` + own + `"}`, none},
		{"ReEncrypt", `{"CiphertextBlob":"` + ownNow + `","DestinationKeyId":"` + own + `"}`, none},
	}
}

type metaOutcome struct {
	n    int // of the case
	text string
}

// outcomes sends every case from eight connections at once, each in another order, and brings the replies into a form without randomness.
func (w *world) outcomes(cases []metaCase, opener *world) []metaOutcome {
	w.Helper()
	const clients = 8
	raw := make([][]byte, len(cases))
	for i, c := range cases {
		raw[i] = w.call(c.op, c.body)
	}
	var mu sync.Mutex
	var all []metaOutcome
	var wg sync.WaitGroup
	for client := range clients {
		c := w.connect()
		wg.Go(func() {
			for i := range cases {
				n := (i + client*3) % len(cases)
				r, err := c.do(raw[n])
				if err != nil {
					w.Error(err)
					return
				}
				text := opener.normal(cases[n], r)
				mu.Lock()
				all = append(all, metaOutcome{n, text})
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(all) != clients*len(cases) {
		w.Fatalf("%d outcomes", len(all))
	}
	return all
}

// normal is what of a reply is the same each time. A ciphertext becomes what w decrypts it to.
func (w *world) normal(c metaCase, r reply) string {
	if r.status != 200 {
		return fmt.Sprintf("%d %s", r.status, r.body)
	}
	var m map[string]any
	if err := json.Unmarshal(r.body, &m); err != nil {
		return err.Error()
	}
	if blob, ok := m["CiphertextBlob"].(string); ok {
		conn := w.connect() // kept open and idle it would be closed
		defer conn.Close()
		back, err := conn.do(w.call("Decrypt", `{"CiphertextBlob":"`+blob+`","EncryptionContext":`+c.context+`}`))
		if err != nil {
			return err.Error()
		}
		var opened struct{ KeyId, KeyMaterialId, Plaintext string }
		if err := json.Unmarshal(back.body, &opened); err != nil || back.status != 200 {
			return fmt.Sprintf("what was made does not decrypt: %d %s", back.status, back.body)
		}
		m["CiphertextBlob"] = fmt.Sprintf("%d digits: %+v", len(blob), opened)
		if strings.HasPrefix(c.op, "GenerateDataKey") {
			if p, ok := m["Plaintext"]; ok && p != opened.Plaintext {
				return "the ciphertext holds another data key"
			}
			m["CiphertextBlob"] = fmt.Sprintf("%d digits: %d digits under %s %s", len(blob), len(opened.Plaintext), opened.KeyId, opened.KeyMaterialId)
		}
	}
	if p, ok := m["Plaintext"].(string); ok && strings.HasPrefix(c.op, "Generate") {
		m["Plaintext"] = len(p)
	}
	text, err := json.Marshal(m)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// clientTimeout is far beyond what anything takes.
const clientTimeout = 5 * time.Minute

// client is one keep-alive connection, used by one goroutine.
type client struct {
	net.Conn
	br *bufio.Reader
}

func (w *world) connect() client {
	w.Helper()
	c, err := w.dial()
	w.must(err)
	w.Cleanup(func() { c.Close() })
	return client{c, bufio.NewReader(c)}
}

func (c client) do(raw []byte) (reply, error) {
	if err := c.SetDeadline(time.Now().Add(clientTimeout)); err != nil {
		return reply{}, err
	}
	if _, err := c.Write(raw); err != nil {
		return reply{}, err
	}
	return readReply(c.br)
}
