package controlplane

import (
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/controlplane/keyring"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/softtoken"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// softHSM is a soft token with its key ring, for the tests that want real keys.
type softHSM struct {
	root  hsm.RootID
	keys  *hsm.KeyRing
	close func() error
}

// newSoftHSM makes a new token, of which there can be several: two Regions may have one each.
func newSoftHSM() (h *softHSM, err error) {
	dir, err := os.MkdirTemp("", "keyplane-controlplane-")
	if err != nil {
		return nil, err
	}
	undo := []func() error{func() error { return os.RemoveAll(dir) }}
	h = &softHSM{close: func() error {
		var errs []error
		for i := len(undo) - 1; i >= 0; i-- {
			errs = append(errs, undo[i]())
		}
		return errors.Join(errs...)
	}}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	token, err := softtoken.Open(softtoken.Config{Dir: dir + "/token", Create: true})
	if err != nil {
		return nil, err
	}
	undo = append(undo, token.Close)
	shards, err := hsm.NewShards(hsm.ShardsConfig{Tokens: []hsm.Token{token}, SessionsPerToken: 1, RoundMax: 8, Logger: quiet})
	if err != nil {
		return nil, err
	}
	h.root = shards.Primary()
	undo = append(undo, func() error { shards.Close(); return nil })
	var batcher *batch.Batcher[hsm.KeyJob]
	h.keys, err = hsm.NewKeyRing(hsm.KeyRingConfig{
		Tokens: []hsm.Token{token}, SessionsPerToken: 2, RoundMax: 8, QueueTimeMax: time.Minute, Timeout: time.Minute, Full: batch.ErrFull, Root: h.root, Logger: quiet,
		Batch: func(shards int, run func(int, []*hsm.KeyJob)) (func(int, *hsm.KeyJob, time.Time) error, error) {
			batcher, err = batch.New(batch.Config{Shards: shards, RoundMax: 8, QueueMax: 64, WaitMax: time.Minute}, run)
			if err != nil {
				return nil, err
			}
			return batcher.Do, nil
		},
	})
	if err != nil {
		return nil, err
	}
	undo = append(undo, func() error { h.keys.Close(); return nil }, func() error { batcher.Close(); return nil })
	return h, nil
}

// theHSM is the one that tests share: unsealing a soft token is dear on purpose.
var theHSM = sync.OnceValues(newSoftHSM)

var hsmUsed bool

func closeHSM() {
	if hsmUsed {
		if h, err := theHSM(); err == nil {
			_ = h.close()
		}
	}
}

// ring is the key ring as the control plane has it. What the HSM does not do for want of room or time is the data plane's to classify, and no test's here.
func (h *softHSM) ring() keyring.Ring {
	return keyring.New(h.keys, func(error) kmsapi.Code { return kmsapi.KMSInternal })
}

// useHSM gives the environment real keys.
func (e *env) useHSM() *softHSM {
	e.Helper()
	envMu.Lock()
	hsmUsed = true
	envMu.Unlock()
	h, err := theHSM()
	if err != nil {
		e.Fatal(err)
	}
	e.use(h)
	return h
}

// use gives the environment the keys of an HSM.
func (e *env) use(h *softHSM) {
	e.Server.keys, e.Server.root = h.ring(), func() [8]byte { return h.root }
}

// TestRealKeys: keys that CreateKey made are the HSM's, and images of key material are the material's and not the record's.
func TestRealKeys(t *testing.T) {
	e := newEnv(t)
	h := e.useHSM()
	key := e.create(`{"KeySpec":"HMAC_256","KeyUsage":"GENERATE_VERIFY_MAC"}`)
	k, err := e.store.Key(t.Context(), e.name(key.KeyId))
	if err != nil {
		t.Fatal(err)
	}
	if k.Private.Root != h.root {
		t.Errorf("the key is wrapped under %x, the token's root is %x", k.Private.Root, h.root)
	}
	first, err := e.keys.Images(keyspec.HMAC256, k.Private)
	if err != nil {
		t.Fatal(err)
	}
	again, err := e.keys.Images(keyspec.HMAC256, k.Private)
	if err != nil || *again != *first {
		t.Errorf("images differ from one time to the other: %v", err)
	}
	other, err := e.keys.New(keyspec.HMAC256)
	if err != nil {
		t.Fatal(err)
	}
	if images, err := e.keys.Images(keyspec.HMAC256, other); err != nil || *images == *first {
		t.Errorf("another key has the same images: %v", err)
	}
}
