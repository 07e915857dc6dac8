//go:build cgo

package dataplane

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
	"github.com/keyplane/keyplane/hsm/p11"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// lies has something befall each n-th call that encrypts.
func lies(act slowhsm.Act, n int) slowhsm.Settings {
	var s slowhsm.Settings
	for _, f := range []string{"C_Encrypt", "C_EncryptUpdate"} {
		s.Faults = append(s.Faults, slowhsm.Fault{Function: f, Nth: n, Every: true, Act: act})
	}
	return s
}

// TestLyingHSM: an HSM that says CKR_OK and damages one block of a round, or exchanges two rounds' answers. With every round verified each ciphertext that was
// acknowledged opens afterwards, and a ciphertext that is good is never called bad. With the default the HSM is out of service after a bounded number of rounds.
func TestLyingHSM(t *testing.T) {
	const sampled = 16
	for _, act := range []slowhsm.Act{slowhsm.Nick, slowhsm.Swap} {
		for _, every := range []int{1, sampled} {
			t.Run(fmt.Sprintf("%s/%d", act, every), func(t *testing.T) {
				slow := slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{})
				w := newWorld(t, worldConfig{tokens: []hsm.Token{openP11(t, slow.URI())}, plain: true, verifyEvery: every})
				w.addKey("k", kmsapi.StateEnabled, 1)
				generate := w.call("GenerateDataKey", `{"KeyId":"`+keyID("k").String()+`","KeySpec":"AES_256"}`)
				good := field(t, w.do(generate), "CiphertextBlob")
				for range 4 * sampled { // the first rounds of a session are all verified
					field(t, w.do(generate), "CiphertextBlob")
				}
				before := w.shards.Stats()
				if err := slow.Set(lies(act, 3)); err != nil {
					t.Fatal(err)
				}
				var mu sync.Mutex
				acknowledged := map[string]string{}
				var clients sync.WaitGroup
				for range 4 {
					clients.Go(func() {
						for range 200 {
							if r := w.do(generate); r.status == 200 {
								mu.Lock()
								acknowledged[field(t, r, "CiphertextBlob")] = field(t, r, "Plaintext")
								mu.Unlock()
							}
							r := w.do(w.call("Decrypt", `{"CiphertextBlob":"`+good+`"}`))
							if r.status != 200 && strings.Contains(string(r.body), "InvalidCiphertext") {
								t.Errorf("a good ciphertext: %s", r.body)
							}
							if w.shards.Healthy() != nil {
								return
							}
						}
					})
				}
				clients.Wait()
				st := w.shards.Stats()
				if st.Slots[0].State.String() != "stopped" {
					t.Errorf("it serves: %+v", st.Slots[0])
				}
				for i, sh := range st.Shards { // a third of the calls of a session is damaged, of its rounds every 16th is verified
					if n := sh.Rounds - before.Shards[i].Rounds; n > 12*sampled {
						t.Errorf("%d rounds of one session", n)
					}
				}
				if err := slow.Clear(); err != nil {
					t.Fatal(err)
				}
				token, err := p11.Open(slow.URI())
				if err != nil {
					t.Fatal(err)
				}
				defer token.Close()
				after := newWorld(t, worldConfig{tokens: []hsm.Token{token}, plain: true})
				after.records.keys = w.records.keys
				lost := 0
				for blob, plaintext := range acknowledged {
					if r := after.do(after.call("Decrypt", `{"CiphertextBlob":"`+blob+`"}`)); r.status != 200 || field(t, r, "Plaintext") != plaintext {
						lost++
					}
				}
				t.Logf("%d of %d acknowledged are lost", lost, len(acknowledged))
				if lost > 0 && (every == 1 || act == slowhsm.Swap) {
					t.Errorf("%d acknowledged are lost", lost)
				}
			})
		}
	}
}

// TestDerivedWrongly: a ciphertext that does not open because the HSM was wrong once is opened after all, by another session, and the token does not serve again; one that
// does not open because it is bad costs nobody anything but the second look, of which there are only so many.
func TestDerivedWrongly(t *testing.T) {
	for _, at := range []int{0, 31, 32, 47} { // of the message key, and of the commitment
		var armed bool
		w := newWorld(t, worldConfig{tokens: []hsm.Token{softToken, softToken}, plain: true, verifyEvery: 1 << 16})
		w.job = func(j *hsm.Job) {
			if armed && j.N > 0 {
				armed = false
				j.Derive[0].Out[at] ^= 1
			}
		}
		w.addKey("k", kmsapi.StateEnabled, 1)
		blob := field(t, w.do(w.call("Encrypt", `{"KeyId":"`+keyID("k").String()+`","Plaintext":"aGVsbG8="}`)), "CiphertextBlob")
		decrypt := w.call("Decrypt", `{"CiphertextBlob":"`+blob+`"}`)
		reEncrypt := w.call("ReEncrypt", `{"CiphertextBlob":"`+blob+`","DestinationKeyId":"`+keyID("k").String()+`"}`)
		forged := w.call("Decrypt", `{"CiphertextBlob":"`+blob+`","EncryptionContext":{"a":"b"}}`)
		for range 50 {
			if r := w.do(forged); r.exception() != "InvalidCiphertextException" {
				t.Errorf("a wrong context: %d %s", r.status, r.body)
			}
		}
		jobs := uint64(0)
		for _, sh := range w.shards.Stats().Shards {
			jobs += sh.Jobs
		}
		if jobs > 50+50 { // those, and as many second looks as one account has at once and while they are sent
			t.Errorf("%d jobs", jobs)
		}
		for _, st := range w.shards.Stats().Slots {
			if st.State.String() != "serving" || st.Lies != 0 {
				t.Fatalf("%+v", st)
			}
		}
		w.secondLooks = secondLooks{}
		request := decrypt
		if at == 47 {
			request = reEncrypt
		}
		armed = true
		if r := w.do(request); r.status != 200 || at != 47 && field(t, r, "Plaintext") != "aGVsbG8=" {
			t.Errorf("byte %d derived wrongly: %d %s", at, r.status, r.body)
		}
		lies := uint64(0)
		for _, st := range w.shards.Stats().Slots {
			if lies += st.Lies; (st.Lies > 0) != (st.State.String() == "stopped") {
				t.Errorf("%+v", st)
			}
		}
		if lies != 1 {
			t.Errorf("byte %d: %d lies", at, lies)
		}
		if r := w.do(decrypt); field(t, r, "Plaintext") != "aGVsbG8=" {
			t.Errorf("the other token: %d %s", r.status, r.body)
		}
	}
}
