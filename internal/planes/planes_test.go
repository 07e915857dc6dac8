package planes

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/planetls"
)

func managedAnswer(alias string) error {
	switch alias {
	case "alias/aws/refused":
		return kmsapi.New(kmsapi.KMSInvalidState, "it is so")
	case "alias/aws/broken":
		return errors.New("broken")
	}
	return nil
}

// A request comes to a control plane as it is, and its answer comes back.
func TestRequest(t *testing.T) {
	w := newWorld(t)
	c1 := w.control("c1", "")
	c := w.client(planetls.RoleData, "d1", c1.addr)
	var got *Request
	c1.answer = func(_ context.Context, node string, r *Request) (int, []byte) {
		b := appendRequest(nil, r)
		got, _ = parseRequest(b)
		return 400, []byte(node)
	}
	status, body, err := c.Request(t.Context(), testRequest(), false)
	if err != nil || status != 400 || string(body) != "d1" {
		t.Fatal(status, string(body), err)
	}
	if !bytes.Equal(appendRequest(nil, got), appendRequest(nil, testRequest())) {
		t.Errorf("%+v", got)
	}
	large := testRequest()
	large.Signed.Body = make([]byte, kmsapi.BodyMax)
	c1.answer = func(_ context.Context, _ string, r *Request) (int, []byte) { return 200, make([]byte, 1<<20) }
	if _, body, err := c.Request(t.Context(), large, false); err != nil || len(body) != 1<<20 {
		t.Error(len(body), err)
	}
	if err := c.Settled(t.Context(), 1<<40); err != nil || c1.settled.Load() != 1<<40 {
		t.Errorf("%v, %d was waited for", err, c1.settled.Load())
	}
	if err := c.Managed(t.Context(), testRequest(), "alias/aws/s3"); err != nil {
		t.Error(err)
	}
	var e *kmsapi.Error
	if err := c.Managed(t.Context(), testRequest(), "alias/aws/refused"); !errors.As(err, &e) || e.Code != kmsapi.KMSInvalidState || e.Message != "it is so" {
		t.Error(err)
	}
	if err := c.Managed(t.Context(), testRequest(), "alias/aws/broken"); !errors.As(err, &e) || e.Code != kmsapi.DependencyTimeout {
		t.Error(err)
	}
}

// Who may ask for what is a matter of the certificate.
func TestRoles(t *testing.T) {
	w := newWorld(t)
	c1 := w.control("c1", "")
	for role, allowed := range map[string]string{
		planetls.RoleData: "request managed lease uses applied", planetls.RoleControl: "lease applied", planetls.RoleClient: "", planetls.RoleEtcd: "",
	} {
		c := w.client(role, "x", c1.addr)
		for _, path := range []string{"request", "managed", "lease", "uses", "applied"} {
			resp, err := c.targets[0].http.Post(c.targets[0].url+prefix+path, "application/octet-stream", strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if got, want := resp.StatusCode != http.StatusForbidden, strings.Contains(allowed, path); got != want {
				t.Errorf("%s: role %s is answered with %d", path, role, resp.StatusCode)
			}
		}
		eventually(t, "a part of the role "+role+" sees that the control plane is ready", func() bool { return c.Up() == 1 })
	}
	stranger := newWorld(t).client(planetls.RoleData, "d1", c1.addr)
	if _, _, err := stranger.Request(t.Context(), testRequest(), true); !errors.Is(err, ErrUnavailable) {
		t.Error("with a certificate of another CA:", err)
	}
	if n := c1.asked.Load(); n != 0 {
		t.Errorf("%d requests were answered", n)
	}
}

// A request goes to another control plane if one has not taken it, and if one has, only where it changes nothing.
func TestFailover(t *testing.T) {
	w := newWorld(t)
	c1, c2 := w.control("c1", ""), w.control("c2", "")
	c := w.client(planetls.RoleData, "d1", c1.addr, c2.addr)
	ask := func(again bool) (string, error) {
		_, body, err := c.Request(t.Context(), testRequest(), again)
		name, _, _ := strings.Cut(string(body), " ")
		return name, err
	}
	must := func(when, want string, again bool) {
		t.Helper()
		if got, err := ask(again); err != nil || got != want {
			t.Errorf("%s: %q, %v", when, got, err)
		}
	}
	eventually(t, "both answer", func() bool { return c.Up() == 2 })
	must("at first", "c1", false)
	why := "starting"
	c1.ready.Store(&why)
	must("while it is not ready", "c2", false)
	c1.ready.Store(nil)

	// The answer of one that has taken it is lost.
	c1, c2 = w.control("c1", ""), w.control("c2", "")
	c = w.client(planetls.RoleData, "d1", c1.addr, c2.addr)
	eventually(t, "both answer", func() bool { return c.Up() == 2 })
	for _, again := range []bool{false, true} {
		c.first.Store(0)
		before := c2.asked.Load()
		c1.answer = func(context.Context, string, *Request) (int, []byte) { panic(http.ErrAbortHandler) }
		got, err := ask(again)
		switch {
		case again && (err != nil || got != "c2"):
			t.Errorf("what changes nothing is not asked again: %v", err)
		case !again && (!errors.Is(err, ErrUncertain) || c2.asked.Load() != before):
			t.Errorf("what may have changed something: %q, %v, and the other was asked %d times", got, err, c2.asked.Load()-before)
		}
		eventually(t, "both answer again", func() bool { return c.Up() == 2 })
	}
	c.first.Store(0)
	c1.stop()
	must("when it is gone", "c2", false)
	c2.stop()
	began := time.Now()
	if _, err := ask(false); !errors.Is(err, ErrUnavailable) || time.Since(began) < patience {
		t.Errorf("when all are gone: %v after %v", err, time.Since(began))
	}
	// One comes back while a request waits.
	answered := make(chan error, 1)
	go func() {
		_, err := ask(false)
		answered <- err
	}()
	w.control("c2", c2.addr)
	if err := <-answered; err != nil {
		t.Error("one came back:", err)
	}
}

// A control plane that has stopped, or is cut off, answers neither: what waits for it ends soon, and what comes after goes elsewhere.
func TestFrozenControlPlane(t *testing.T) {
	w := newWorld(t)
	c1, c2 := w.control("c1", ""), w.control("c2", "")
	f := w.freezable(c1.addr)
	c := w.client(planetls.RoleData, "d1", f.addr, c2.addr)
	eventually(t, "both answer", func() bool { return c.Up() == 2 })
	if _, body, err := c.Request(t.Context(), testRequest(), false); err != nil || !strings.HasPrefix(string(body), "c1") {
		t.Fatal(string(body), err)
	}
	f.frozen.Store(true)
	began := time.Now()
	if _, _, err := c.Request(t.Context(), testRequest(), false); !errors.Is(err, ErrUncertain) {
		t.Error(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("a request waited %v for a control plane that is frozen", took)
	}
	eventually(t, "it is known to be gone", func() bool { return c.Up() == 1 })
	if _, body, err := c.Request(t.Context(), testRequest(), false); err != nil || !strings.HasPrefix(string(body), "c2") {
		t.Error(string(body), err)
	}
	f.frozen.Store(false)
	eventually(t, "it is back", func() bool { return c.Up() == 2 })
}

// Every control plane is told what a member has applied, also one that was restarted; nobody tells for another.
func TestApplied(t *testing.T) {
	w := newWorld(t)
	c1, c2 := w.control("c1", ""), w.control("c2", "")
	d1, x := w.client(planetls.RoleData, "d1", c1.addr, c2.addr), w.client(planetls.RoleControl, "c9", c1.addr)
	d1.Applied(5)
	var incarnation atomic.Pointer[string]
	now := func(name string) { incarnation.Store(&name) }
	now("")
	w.run(func(ctx context.Context) error {
		return d1.Tell(ctx, func() string { return *incarnation.Load() })
	})
	w.run(func(ctx context.Context) error { return x.Tell(ctx, func() string { return "of data d1" }) })
	if time.Sleep(50 * time.Millisecond); w.appliedAt("c1", "of data d1") != 0 {
		t.Error("one that is no member has told")
	}
	now("of data d1")
	x.Applied(1000)
	at := func(control string, revision int64) func() bool {
		return func() bool { return w.appliedAt(control, "of data d1") == revision }
	}
	eventually(t, "both know 5", func() bool { return at("c1", 5)() && at("c2", 5)() })
	var slowest time.Duration
	for r := int64(6); r < 200; r++ {
		began := time.Now()
		d1.Applied(r)
		eventually(t, "both know it", func() bool { return at("c1", r)() && at("c2", r)() })
		slowest = max(slowest, time.Since(began))
	}
	t.Logf("the slowest of 194 took %v", slowest)
	d1.Applied(3) // never back
	c1.stop()
	w.control("c1", c1.addr)
	d1.Applied(200)
	eventually(t, "the one that came back knows 200", at("c1", 200))
	if got := w.appliedAt("c1", "of data d1"); got != 200 {
		t.Errorf("another has told for it, %d", got)
	}
	now("of data d1 again")
	d1.Applied(201)
	eventually(t, "the next membership tells", func() bool { return w.appliedAt("c1", "of data d1 again") == 201 })
	if got := w.appliedAt("c1", "of data d1"); got != 200 {
		t.Errorf("%d was told of a membership that had ended", got)
	}
}

// While it drains, a control plane answers what it has begun and takes nothing new.
func TestDrain(t *testing.T) {
	w := newWorld(t)
	c1, c2 := w.control("c1", ""), w.control("c2", "")
	c := w.client(planetls.RoleData, "d1", c1.addr, c2.addr)
	eventually(t, "both answer", func() bool { return c.Up() == 2 })
	begun, go_on := make(chan struct{}), make(chan struct{})
	c1.answer = func(context.Context, string, *Request) (int, []byte) {
		close(begun)
		<-go_on
		return 200, []byte("c1 late")
	}
	answered := make(chan string, 1)
	go func() {
		_, body, err := c.Request(context.Background(), testRequest(), false)
		if err != nil {
			body = []byte(err.Error())
		}
		answered <- string(body)
	}()
	<-begun
	c1.server.Drain()
	if _, body, err := c.Request(t.Context(), testRequest(), false); err != nil || !strings.HasPrefix(string(body), "c2") {
		t.Error(string(body), err)
	}
	close(go_on)
	if got := <-answered; got != "c1 late" {
		t.Error(got)
	}
}

// A message that is longer than its kind's, or of no known length, is refused before it is read; one that is not of its form too.
func TestServerIsStrict(t *testing.T) {
	w := newWorld(t)
	c1 := w.control("c1", "")
	c := w.client(planetls.RoleData, "d1", c1.addr)
	for name, want := range map[string]int{"long": http.StatusRequestEntityTooLarge, "unknown length": http.StatusRequestEntityTooLarge, "form": http.StatusBadRequest} {
		body := strings.NewReader("x")
		if name == "long" {
			body = strings.NewReader(strings.Repeat("x", requestMax+1))
		}
		r, err := http.NewRequest(http.MethodPost, c.targets[0].url+pathRequest, body)
		if err != nil {
			t.Fatal(err)
		}
		if name == "unknown length" {
			r.ContentLength = -1
		}
		resp, err := c.targets[0].http.Do(r)
		if err != nil {
			t.Fatal(name, err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: status %d, want %d", name, resp.StatusCode, want)
		}
	}
}

func TestCheckURL(t *testing.T) {
	for text, ok := range map[string]bool{
		"https://c1.example:7443": true, "https://127.0.0.1:7443/": true, "https://[::1]:7443": true,
		"": false, "http://c1.example:7443": false, "https://c1.example": false, "https://c1.example:7443/x": false, "https://u@c1.example:7443": false, "c1.example:7443": false,
	} {
		if err := CheckURL(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}
