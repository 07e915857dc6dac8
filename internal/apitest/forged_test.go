package apitest

import (
	"encoding/base64"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/p11"
	"github.com/keyplane/keyplane/internal/node"
)

// TestForgedCiphertexts: an account that sends nothing but forged ciphertexts, as fast as it can, takes no HSM from anybody, and costs another account's
// requests no more time than if its ciphertexts were right: its forgeries of symmetric keys' are found here, those of RSA keys' by the module, which says
// CKR_GENERAL_ERROR to them.
func TestForgedCiphertexts(t *testing.T) {
	uri := hsmtest.SoftHSM(t)
	if _, err := p11.InitRoots(uri); err != nil {
		t.Fatal(err)
	}
	s := Start(t, WithHSM(uri), func(c *node.Config) { c.SessionsPerToken = 2 })
	var root keyPair
	equal(t, "CreateAccount", s.query(t, aws.Credentials{AccessKeyID: s.AccessKeyID, SecretAccessKey: s.SecretAccessKey}, "iam", &root, "Action", "CreateAccount", "AccountId", "444455556666"), 200)
	other := s.Endpoint
	other.AccessKeyID, other.SecretAccessKey = root.AccessKeyID, root.SecretAccessKey

	victim, attacker := encrypted(t, s.Endpoint), encrypted(t, other)
	for i, kind := range []string{"symmetric", "RSA"} {
		t.Run(kind, func(t *testing.T) {
			// A busy machine makes any round bad: the best of the pairs tells what forgeries cost. The first request of each kind loads keys.
			best := 1e9
			for round := 0; round < 8 && best > 1.5; round++ {
				right := under(t, s.Endpoint, other, victim[i], attacker[i], false)
				forged := under(t, s.Endpoint, other, victim[i], attacker[i], true)
				best = min(best, float64(forged)/float64(right))
				t.Logf("p99 of the other account: %v beside right ciphertexts, %v beside forged ones", right, forged)
			}
			if best > 1.5 {
				t.Errorf("the other account's p99 is %.2f times as long", best)
			}
			st := s.Stats()
			for _, slot := range append(st.HSM.Slots, st.Keys.Slots...) {
				if slot.Quarantines != 0 || slot.State.String() != "serving" || slot.Hangs != 0 {
					t.Errorf("%+v", slot)
				}
			}
			if i == 1 && st.Keys.Slots[0].Canaries == 0 {
				t.Error("no canary was asked: the forgeries never came to the module")
			}
		})
	}
}

// sample is a ciphertext and what Decrypt is told besides.
type sample struct {
	blob    []byte
	members string
}

// encrypted makes a symmetric and an RSA key, and a ciphertext of each.
func encrypted(t *testing.T, e Endpoint) []sample {
	t.Helper()
	c := e.Client(t)
	var all []sample
	for _, spec := range []string{`{}`, `{"KeySpec":"RSA_2048","KeyUsage":"ENCRYPT_DECRYPT"}`} {
		var made struct{ KeyMetadata struct{ KeyId string } }
		c.Do(t, "CreateKey", spec).Members(t, &made)
		members := `"KeyId":"` + made.KeyMetadata.KeyId + `"`
		if spec != `{}` {
			members += `,"EncryptionAlgorithm":"RSAES_OAEP_SHA_1"`
		}
		var out struct{ CiphertextBlob []byte }
		c.Do(t, "Encrypt", `{`+members+`,"Plaintext":"eA=="}`).Members(t, &out)
		all = append(all, sample{out.CiphertextBlob, members})
	}
	return all
}

func (x sample) body(blob []byte) string {
	return `{` + x.members + `,"CiphertextBlob":"` + base64.StdEncoding.EncodeToString(blob) + `"}`
}

// under is the 99th percentile of 200 Decrypts of the victim's beside an attacker's on four connections.
func under(t *testing.T, e, other Endpoint, victim, attacker sample, forge bool) time.Duration {
	t.Helper()
	const requests = 200
	var stop atomic.Bool
	var sent atomic.Int64
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			c := other.Client(t)
			g := rand.New(rand.NewPCG(1, rand.Uint64()))
			want := 200
			if forge {
				want = 400
			}
			for !stop.Load() {
				blob := slices.Clone(attacker.blob)
				if forge { // behind the header, and below an RSA modulus
					blob[len(blob)-1-g.IntN(16)] ^= byte(1 + g.IntN(255))
				}
				r, err := c.Try("Decrypt", attacker.body(blob))
				switch {
				case err != nil:
					t.Error(err)
					return
				case r.Type == "ThrottlingException":
				case r.Status != want || forge && !strings.Contains(r.Type, "InvalidCiphertextException"):
					t.Errorf("%d %s", r.Status, r.Body)
					return
				}
				sent.Add(1)
			}
		})
	}
	c, body := e.Client(t), victim.body(victim.blob)
	for sent.Load() < 8 && !t.Failed() {
		time.Sleep(time.Millisecond)
	}
	var took []time.Duration
	for range requests {
		from := time.Now()
		r := c.Do(t, "Decrypt", body)
		took = append(took, time.Since(from))
		if r.Status != 200 {
			t.Errorf("the other account: %d %s", r.Status, r.Body)
			break
		}
	}
	stop.Store(true)
	clients.Wait()
	slices.Sort(took)
	return took[len(took)*99/100]
}
