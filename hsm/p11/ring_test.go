package p11

import (
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
)

// ringKey is a key of a ring and its public half, nil for HMAC.
type ringKey struct {
	*hsm.Key
	public *pubkey.Key
}

// TestKeyRing: the key ring on real modules: more keys than may be loaded, from several callers at once, through a login that is lost in the
// middle.
func TestKeyRing(t *testing.T) {
	for name, uri := range map[string]func(testing.TB) string{"SoftHSM": hsmtest.SoftHSM, "NSS": hsmtest.NSS} {
		t.Run(name, func(t *testing.T) {
			token := opener(t, uri(t))(t)
			defer token.Close()
			ring, err := hsm.NewKeyRing(hsm.KeyRingConfig{
				Tokens: []hsm.Token{token}, SessionsPerToken: 2, RoundMax: 8, Timeout: 20 * time.Second, QueueTimeMax: 20 * time.Second, HandlesMax: 3, Full: batch.ErrFull,
				Batch: func(shards int, run func(int, []*hsm.KeyJob)) (func(int, *hsm.KeyJob, time.Time) error, error) {
					b, err := batch.New(batch.Config{Shards: shards, RoundMax: 8, QueueMax: 64}, run)
					if err != nil {
						return nil, err
					}
					return b.Do, nil
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer ring.Close()
			if m, _ := ring.Offers(keyspec.MLDSA44); m != 0 {
				t.Error("the module offers ML-DSA: this test knows nothing of that")
			}
			var keys []ringKey
			for i, s := range []keyspec.Spec{keyspec.RSA2048, keyspec.P256, keyspec.P384, keyspec.P521, keyspec.HMAC256, keyspec.HMAC512} {
				k, public, err := ring.Generate(s)
				if err != nil {
					t.Fatal(err)
				}
				k.ID = [32]byte{byte(i + 1)}
				r := ringKey{Key: k}
				if public != nil {
					if r.public, err = pubkey.Parse(s, public); err != nil {
						t.Fatal(err)
					}
				}
				keys = append(keys, r)
			}
			everything := func() {
				var wg sync.WaitGroup
				for g := range 3 {
					wg.Go(func() {
						for i := range keys {
							k := keys[(i+g)%len(keys)]
							offers, _ := ring.Offers(k.Spec)
							for m := hsm.NoMechanism + 1; m < 32; m++ {
								if !offers.Has(m) {
									continue
								}
								if err := hsmtest.CheckKey(k.Spec, m, k.public, func(in, out []byte) (int, error) {
									j := &hsm.KeyJob{Key: k.Key, Mechanism: m, In: in, Out: out}
									err := ring.Run(j, time.Now())
									return j.N, err
								}); err != nil {
									t.Errorf("%v, mechanism %d: %v", k.Spec, m, err)
								}
							}
						}
					})
				}
				wg.Wait()
			}
			everything()
			if err := token.Reset(); err != nil { // as the sessions of AES blocks do when they have lost the login
				t.Fatal(err)
			}
			everything()
			st := ring.Stats()
			if h := st.Handles[0]; h.Loaded > 3 || h.Evicted == 0 || h.Failed != 0 || st.Slots[0].Quarantines != 0 {
				t.Errorf("%+v", st)
			}
			// Bad data is the client's fault, and costs nobody the token.
			j := &hsm.KeyJob{Key: keys[0].Key, Mechanism: hsm.DecryptOAEP256, In: make([]byte, 256), Out: make([]byte, 256)}
			j.In[255] = 7
			for range 10 {
				if err := ring.Run(j, time.Now()); hsm.Outcome(err) != hsm.DataError {
					t.Errorf("a ciphertext of nothing: %v", err)
				}
			}
			damaged := *keys[1].Key
			damaged.ID, damaged.Wrapped = [32]byte{99}, append([]byte(nil), damaged.Wrapped...)
			damaged.Wrapped[len(damaged.Wrapped)/2] ^= 1
			j = &hsm.KeyJob{Key: &damaged, Mechanism: hsm.DeriveECDH, In: keys[1].public.Raw(), Out: make([]byte, 64)}
			if err := ring.Run(j, time.Now()); hsm.Outcome(err) != hsm.Unavailable {
				t.Errorf("a damaged key: %v", err)
			}
			everything()
			if st := ring.Stats(); st.Slots[0].Quarantines != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}
