package keystores

import (
	"context"
	"testing"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/keyplane/keyplane/internal/xks"
)

// record is a record in a state, at a revision.
func record(k *store.KeyStore, state string, revision int64) *store.KeyStore {
	c := *k
	c.State, c.Revision = state, revision
	return &c
}

// A cluster that another process has connected is connected here by and by, and disconnected when the record says so: at once, also while it is tried.
func TestFollowCluster(t *testing.T) {
	r := newRig(t)
	k := ofCluster()
	n := k.KeyStoreName
	for _, m := range r.hsms {
		m.fail(&hsm.Error{CKR: hsm.CKR_DEVICE_REMOVED, Function: "C_OpenSession"})
	}
	r.Follow(record(k, store.Disconnected, 1))
	r.Follow(record(k, store.Connecting, 2))
	r.Follow(record(k, store.Connected, 3)) // it does not wait for the HSMs
	r.Follow(record(k, store.Connected, 3)) // and does not begin again
	eventually(t, "the HSMs are tried", func() bool { return r.hsms[0].opens.Load() > 1 })
	r.Follow(record(k, store.Disconnecting, 4))
	for _, m := range r.hsms {
		m.err.Store(nil)
	}
	r.Follow(record(k, store.Disconnected, 5))
	if r.Connected(n) {
		t.Error("connected after it was disconnected")
	}
	r.Follow(record(k, store.Connecting, 6))
	own := record(k, store.Connected, 7)
	own.Secret = secret.New([]byte(password))
	r.Follow(own)
	own.Secret.Wipe() // what goes on has its own
	eventually(t, "the cluster is connected", func() bool { return r.Connected(n) })
	r.Follow(record(k, store.Connected, 8))
	if !r.Connected(n) {
		t.Error("disconnected by a change that does not matter")
	}
	r.Follow(record(k, store.Failed, 9))
	if r.Connected(n) || r.cluster.Connected() {
		t.Error("connected where the record says FAILED")
	}
	// A password that is wrong here is tried once, and it is not said in the record.
	wrong := record(k, store.Connected, 10)
	wrong.Secret = secret.New([]byte("wrong password"))
	opens := r.hsms[0].opens.Load()
	r.Follow(wrong)
	eventually(t, "it is tried", func() bool { return r.hsms[0].opens.Load() > opens })
	r.Close()
	if len(r.failed) != 0 {
		t.Error("that it does not connect here is told of all")
	}
}

// Whose turn it is to connect hears of the changes that led to it too, some of them late: they end neither its attempt nor what came of it.
func TestFollowOwnTurn(t *testing.T) {
	r := newRig(t)
	k := external()
	n := k.KeyStoreName
	asked, goOn := make(chan struct{}), make(chan struct{})
	r.nextProxy(func(p *proxy) {
		p.health = func(context.Context) error { close(asked); <-goOn; return nil }
	})
	r.Follow(record(k, store.Disconnected, 1))
	done := make(chan error, 1)
	go func() { done <- r.Connect(t.Context(), record(k, store.Connecting, 2), "id") }()
	<-asked
	r.Follow(record(k, store.Disconnected, 1)) // it was read before
	r.Follow(record(k, store.Connecting, 2))
	close(goOn)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, c := range []*store.KeyStore{record(k, store.Disconnected, 1), record(k, store.Connecting, 2), record(k, store.Connected, 3)} {
		r.Follow(c)
		if !r.Connected(n) {
			t.Fatalf("%s of revision %d ends the connection", c.State, c.Revision)
		}
	}
	first := r.proxy(0)
	// Another credential is another client; an older record does not bring the old one back.
	renewed := record(k, store.Connected, 5)
	renewed.AccessKeyID = "ANOTHER"
	r.nextProxy(nil)
	r.Follow(renewed)
	r.Follow(record(k, store.Connected, 4))
	r.Add(record(k, store.Connected, 4))
	eventually(t, "the old client is closed", first.isClosed)
	if s := r.Connection(n).session.Load(); s == nil || s.proxy != Proxy(r.proxy(1)) || len(r.proxies) != 2 {
		t.Errorf("%d clients", len(r.proxies))
	}
	r.Follow(record(k, store.Disconnecting, 6))
	if r.Connected(n) {
		t.Error("in use where the record says that it is not to be")
	}
	eventually(t, "the clients are closed", func() bool { return r.proxy(0).isClosed() && r.proxy(1).isClosed() })
	if names := r.Names(); len(names) != 1 || names[0] != n {
		t.Errorf("names %v", names)
	}
}

// A call that hangs does not keep whoever follows from going on; it keeps the cluster from being connected anew until it is over.
func TestFollowHangs(t *testing.T) {
	r := newRig(t)
	k := external()
	r.nextProxy(func(p *proxy) { p.asked, p.answer = make(chan struct{}), make(chan struct{}) })
	r.Follow(record(k, store.Connected, 1))
	c, p := r.Connection(k.KeyStoreName), r.proxy(0)
	done := make(chan error, 1)
	go func() {
		_, err := c.Encrypt("there", new(xks.Metadata), []byte("p"), nil)
		done <- err
	}()
	<-p.asked
	r.Follow(record(k, store.Disconnecting, 2)) // the call is under way for as long as this test wants
	if c.Connected() {
		t.Error("it is connected")
	}
	r.Follow(record(k, store.Disconnected, 3))
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if c.left(over) {
		t.Error("a call is under way, and is not waited for")
	}
	close(p.answer)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !c.left(t.Context()) || !isClosed(c.closing[0]) {
		t.Error("it is not over")
	}
	r.Leave(k.KeyStoreName, true)
	if names := r.Names(); len(names) != 0 {
		t.Errorf("names %v", names)
	}
}
