package p11

import (
	"bytes"
	"crypto/aes"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keyplane/keyplane/cache"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/miekg/pkcs11"
)

// handles makes AES session objects on one session, and destroys them there.
type handles struct {
	testing.TB
	ctx             *pkcs11.Ctx
	mu              sync.Mutex // a session is one thread's at a time
	session         pkcs11.SessionHandle
	made, destroyed atomic.Int64
}

const handlesLabel = "keyplane test of cached handles"

func valueOf(name int) []byte { return bytes.Repeat([]byte{byte(name + 1)}, 32) }

func (h *handles) make(name int) (*pkcs11.ObjectHandle, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o, err := h.ctx.CreateObject(h.session, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, handlesLabel),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE, valueOf(name)),
	})
	if err != nil {
		return nil, err
	}
	h.made.Add(1)
	return &o, nil
}

func (h *handles) destroy(o *pkcs11.ObjectHandle) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.destroyed.Add(1)
	if err := h.ctx.DestroyObject(h.session, *o); err != nil {
		h.Errorf("C_DestroyObject: %v", err)
	}
}

// inToken counts the objects that the token has.
func (h *handles) inToken() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.ctx.FindObjectsInit(h.session, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_LABEL, handlesLabel)}); err != nil {
		h.Fatal(err)
	}
	found, _, err := h.ctx.FindObjects(h.session, 1000)
	if err != nil {
		h.Fatal(err)
	}
	if err := h.ctx.FindObjectsFinal(h.session); err != nil {
		h.Fatal(err)
	}
	return len(found)
}

// Handles of session objects in package cache, with room for three: whoever has a lease can use its object, whatever the others evict and
// invalidate meanwhile, and what is not used any more is gone from the token.
func TestCachedHandles(t *testing.T) {
	const names, workers, turns, size = 40, 4, 400, 20_000
	token := mustOpen(t, hsmtest.SoftHSM(t))
	h := &handles{TB: t, ctx: token.mod.ctx}
	open := func() pkcs11.SessionHandle {
		s, err := h.ctx.OpenSession(token.slot, pkcs11.CKF_SERIAL_SESSION)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	h.session = open()
	c, err := cache.New(1<<16, 0, h.destroy)
	if err != nil {
		t.Fatal(err)
	}
	lend := func(n int) (cache.Lease[pkcs11.ObjectHandle], error) {
		name := fmt.Appendf(nil, "key %d", n)
		if l, ok := c.Get(name); ok {
			return l, nil
		}
		return c.Load(name, func() (*pkcs11.ObjectHandle, int64, error) {
			o, err := h.make(n)
			return o, size, err
		})
	}
	encrypt := func(s pkcs11.SessionHandle, o pkcs11.ObjectHandle) ([]byte, error) {
		if err := h.ctx.EncryptInit(s, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_ECB, nil)}, o); err != nil {
			return nil, err
		}
		return h.ctx.Encrypt(s, make([]byte, 16))
	}
	want := make([][]byte, names)
	for n := range want {
		block, err := aes.NewCipher(valueOf(n))
		if err != nil {
			t.Fatal(err)
		}
		want[n] = make([]byte, 16)
		block.Encrypt(want[n], want[n])
	}

	// The bound and the eighth by which it may be exceeded; what each worker loads, uses and gives up; what ristretto gives up.
	const most = (1<<16+1<<13)/size + 3*workers + 1
	var wg sync.WaitGroup
	for w := range workers {
		session := open()
		wg.Go(func() {
			for i := range turns {
				n := (i*(2*w+1) + w) % names
				if i%3 == 0 {
					n = 0 // one that everybody uses
				}
				l, err := lend(n)
				if err != nil {
					t.Error(err)
					return
				}
				if i%7 == 0 {
					c.Invalidate(fmt.Appendf(nil, "key %d", n)) // the lease is held
				}
				if got, err := encrypt(session, *l.Value()); err != nil || !bytes.Equal(got, want[n]) {
					t.Errorf("key %d: %x, %v", n, got, err)
				}
				if live := h.made.Load() - h.destroyed.Load(); live > most {
					t.Errorf("%d objects are in the token, at most %d are expected", live, most)
				}
				l.Release()
			}
		})
	}
	wg.Wait()

	// A lease outlives the cache.
	l, err := lend(1)
	if err != nil {
		t.Fatal(err)
	}
	stale := *l.Value()
	c.Close()
	if got, err := encrypt(h.session, stale); err != nil || !bytes.Equal(got, want[1]) || h.inToken() != 1 {
		t.Errorf("after Close: %x, %v, %d objects in the token", got, err, h.inToken())
	}
	l.Release()
	if n := h.inToken(); n != 0 {
		t.Errorf("%d objects are left in the token", n)
	}
	// The test would notice: a destroyed object cannot be used.
	if _, err := encrypt(h.session, stale); err == nil {
		t.Error("a destroyed object can be used")
	}
	made, destroyed := h.made.Load(), h.destroyed.Load()
	t.Logf("%d objects for %d uses", made, workers*turns+1)
	if made != destroyed || made < 100 {
		t.Errorf("%d objects were made and %d destroyed", made, destroyed)
	}
}
