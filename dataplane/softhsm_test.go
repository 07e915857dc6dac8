//go:build cgo

package dataplane

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
	"github.com/keyplane/keyplane/hsm/p11"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

func init() {
	tokenKinds = append(tokenKinds, tokenKind{"SoftHSM", func(t testing.TB) hsm.Token { return openP11(t, hsmtest.SoftHSM(t)) }})
}

// openP11 opens a token that has no roots yet and makes them.
func openP11(t testing.TB, uri string) hsm.Token {
	t.Helper()
	if _, err := p11.InitRoots(uri); err != nil {
		t.Fatal(err)
	}
	token, err := p11.Open(uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := token.Close(); err != nil {
			t.Error(err)
		}
	})
	return token
}

// TestResultsNeverCrossSlow: the same through a slow module, whose calls hang in C.
func TestResultsNeverCrossSlow(t *testing.T) {
	slow := slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{})
	testCrossing(t, openP11(t, slow.URI()), func(w *world, stop <-chan struct{}) {
		const hang = 2 * crossingTimeout
		all := []slowhsm.Settings{
			{Latency: time.Millisecond},
			{Faults: []slowhsm.Fault{{Function: "C_Encrypt", Nth: 5, CKR: hsm.CKR_DEVICE_MEMORY}}},
			{Latency: 200 * time.Microsecond, Faults: []slowhsm.Fault{{Function: "C_Encrypt", Nth: 5, Hang: hang}}},
			{Faults: []slowhsm.Fault{{Function: "C_GenerateRandom", Nth: 5, Hang: hang}}},
		}
		for n := 0; ; n++ {
			if err := slow.Set(all[n%len(all)]); err != nil {
				w.Error(err)
			}
			select {
			case <-stop:
				if err := slow.Set(slowhsm.Settings{}); err != nil {
					w.Error(err)
				}
				return
			case <-time.After(hang):
			}
		}
	})
}

// TestRootsApart: what was made under one token's root is of no use to a data plane over another; one over both decrypts either's and re-encrypts
// from root to root. Roots cannot be moved to a token on purpose, so tokens of two kinds never hold the same.
func TestRootsApart(t *testing.T) {
	tokens := []hsm.Token{softToken, openP11(t, hsmtest.SoftHSM(t))}
	var alone [2]*world
	for i, token := range tokens {
		alone[i] = newWorld(t, worldConfig{tokens: []hsm.Token{token}})
		alone[i].addKey(fmt.Sprint("k", i), kmsapi.StateEnabled, 1)
	}
	both := newWorld(t, worldConfig{tokens: tokens})
	encrypted := [2]string{}
	decrypt := func(w *world, n int) reply {
		return w.do(w.call("Decrypt", `{"CiphertextBlob":"`+encrypted[n]+`","EncryptionContext":{"n":"`+fmt.Sprint(n)+`"}}`))
	}
	for n, w := range alone {
		k := w.records.keys[keyID(fmt.Sprint("k", n))]
		r := w.do(w.call("Encrypt", `{"KeyId":"`+k.ID.String()+`","Plaintext":"aGVsbG8=","EncryptionContext":{"n":"`+fmt.Sprint(n)+`"}}`))
		encrypted[n] = field(t, r, "CiphertextBlob")

		other, liar := alone[1-n], *k
		other.records.keys[k.ID] = k
		if r := decrypt(other, n); r.exception() != "KeyUnavailableException" {
			t.Errorf("root %d on the other token: %d %s", n, r.status, r.body)
		}
		// A record that claims the other token's root gives another message key, which the commitment tells.
		liar.Versions = slices.Clone(k.Versions)
		liar.Versions[0].Root = other.shards.Primary()
		other.records.keys[k.ID] = &liar
		other.KeyChanged(ours, k.ID)
		if r := decrypt(other, n); r.exception() != "InvalidCiphertextException" {
			t.Errorf("root %d under the other's name: %d %s", n, r.status, r.body)
		}
		both.records.keys[k.ID] = k
	}
	for n := range alone {
		if r := decrypt(both, n); field(t, r, "Plaintext") != "aGVsbG8=" {
			t.Errorf("root %d beside the other: %s", n, r.body)
		}
		r := both.do(both.call("ReEncrypt", `{"CiphertextBlob":"`+encrypted[n]+`","SourceEncryptionContext":{"n":"`+fmt.Sprint(n)+`"},"DestinationKeyId":"`+
			keyID(fmt.Sprint("k", 1-n)).String()+`","DestinationEncryptionContext":{"n":"`+fmt.Sprint(1-n)+`"}}`))
		encrypted[1-n] = field(t, r, "CiphertextBlob")
		if r := decrypt(both, 1-n); field(t, r, "Plaintext") != "aGVsbG8=" {
			t.Errorf("re-encrypted from root %d: %s", n, r.body)
		}
	}
}

// field is a text member of a reply that must be a success.
func field(t *testing.T, r reply, name string) string {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(r.body, &m); err != nil || r.status != 200 {
		t.Fatalf("%d %s: %v", r.status, r.body, err)
	}
	text, _ := m[name].(string)
	return text
}
