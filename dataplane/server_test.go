package dataplane

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
)

func TestNewAndStartWantTheirParts(t *testing.T) {
	ready := func() error { return nil }
	for name, cfg := range map[string]Config{
		"no Region": {Ready: ready, Logger: quiet}, "a Region twice": {Regions: []string{testRegion, awayRegion, testRegion}, Ready: ready, Logger: quiet},
		"a Region without a name": {Regions: []string{testRegion, ""}, Ready: ready, Logger: quiet},
		"257 Regions":             {Regions: strings.Fields(strings.Repeat("x ", 257)), Ready: ready, Logger: quiet},
		"no Ready":                {Regions: []string{testRegion}, Logger: quiet}, "no Logger": {Regions: []string{testRegion}, Ready: ready},
		"key cache too small":   {Regions: []string{testRegion}, Ready: ready, Logger: quiet, KeyCacheBytes: 1},
		"alias cache too small": {Regions: []string{testRegion}, Ready: ready, Logger: quiet, AliasCacheBytes: 1},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	s, err := New(Config{Regions: []string{testRegion}, Ready: ready, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	run := func(*hsm.Job, time.Time) error { return nil }
	whole := Parts{Verifier: &sigv4.Verifier{}, Records: &records{}, Run: run, Load: run,
		Control: func(int, *sigv4.Request, string, string, *cloudtrail.TLSDetails) (int, []byte) { return 0, nil }}
	for name, drop := range map[string]func(*Parts){
		"Verifier": func(p *Parts) { p.Verifier = nil }, "Records": func(p *Parts) { p.Records = nil },
		"Run": func(p *Parts) { p.Run = nil }, "Load": func(p *Parts) { p.Load = nil }, "Control": func(p *Parts) { p.Control = nil },
	} {
		p := whole
		drop(&p)
		if err := s.Start(p); err == nil {
			t.Errorf("without %s: accepted", name)
		}
	}
	if err := s.Start(whole); err != nil {
		t.Error(err)
	}
}

// Before the parts stand there is an endpoint already: health, and a refusal that clients try again.
func TestServesBeforeStart(t *testing.T) {
	var reason error
	s, err := New(Config{Regions: []string{testRegion}, Ready: func() error { return reason }, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	ask := func(raw string) reply {
		t.Helper()
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Write([]byte(raw)); err != nil {
			t.Fatal(err)
		}
		r, err := readReply(bufio.NewReader(c))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	get := func(path string) reply { return ask("GET " + path + " HTTP/1.1\r\nHost: kms.test\r\n\r\n") }
	want := func(r reply, status int, body string) {
		t.Helper()
		if r.status != status || string(r.body) != body {
			t.Errorf("%d %q, want %d %q", r.status, r.body, status, body)
		}
	}
	reason = errors.New("starting: the store is not open")
	want(get("/healthz"), 200, "ok\n")
	want(get("/readyz"), 503, "starting: the store is not open\n")
	const post = "POST / HTTP/1.1\r\nHost: kms.test\r\nContent-Length: 0\r\n\r\n"
	if r := ask(post); r.status != 503 || r.exception() != "ServiceUnavailableException" {
		t.Errorf("%d %s", r.status, r.body)
	}
	reason = nil
	want(get("/readyz"), 200, "ready\n")
	if r := get("/metrics"); r.status != 400 || r.exception() != "BadRequestException" {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := ask("POST /healthz HTTP/1.1\r\nHost: kms.test\r\nContent-Length: 0\r\n\r\n"); r.status != 400 {
		t.Errorf("%d %s", r.status, r.body)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error("Serve:", err)
	}
}

// Shutdown answers what is in flight, and a connection that is open learns from /readyz that it should go elsewhere.
func TestShutdownDrains(t *testing.T) {
	inFlight, goOn := make(chan struct{}), make(chan struct{})
	w := newWorld(t, worldConfig{plain: true, tcp: true, control: func(*sigv4.Request, string, string, *cloudtrail.TLSDetails) (int, []byte) {
		close(inFlight)
		<-goOn
		return 200, []byte(`{"late":true}`)
	}})
	answer := make(chan reply, 1)
	raw := w.call("CreateKey", "{}")
	go func() { answer <- w.do(raw) }()
	<-inFlight
	ended := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		ended <- w.Shutdown(ctx)
	}()
	for !w.draining.Load() {
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-ended:
		t.Fatal("Shutdown did not wait:", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	if r := <-answer; r.status != 200 || string(r.body) != `{"late":true}` || !r.close {
		t.Errorf("%d %s, close %v", r.status, r.body, r.close)
	}
	w.must(<-ended)
}

// buffer is a log that tests read.
type buffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

// A panic is answered and counted, nothing of what it holds is logged, and the request is not used again.
func TestPanicIsAnswered(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true})
	var log buffer
	w.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	w.addKey("k1", kmsapi.StateEnabled, 1)
	raw := w.call("Encrypt", `{"KeyId":"`+keyID("k1").String()+`","Plaintext":"c2VjcmV0"}`)
	if r := w.do(raw); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	w.instead = func() error { panic("secret c2VjcmV0") }
	r := w.do(raw)
	if r.status != 500 || r.exception() != "KMSInternalException" || !r.close || !requestIDForm.MatchString(r.header.Get("x-amzn-RequestId")) {
		t.Errorf("%d %s, close %v, %v", r.status, r.body, r.close, r.header)
	}
	if n := w.panics.Swap(0); n != 1 {
		t.Errorf("%d panics are counted", n)
	}
	text := log.String()
	if !strings.Contains(text, "this is a bug") || !strings.Contains(text, r.header.Get("x-amzn-RequestId")) || !strings.Contains(text, "encrypt.go") {
		t.Errorf("the log is %s", text)
	}
	if strings.Contains(text, "c2VjcmV0") {
		t.Error("the log holds what was in the panic")
	}
	w.instead = nil
	if r := w.do(raw); r.status != 200 {
		t.Errorf("after a panic: %d %s", r.status, r.body)
	}
}

// The control plane gets the request as it was signed and its answer is passed on as it is.
func TestForward(t *testing.T) {
	var got sigv4.Request
	var ip, id string
	w := newWorld(t, worldConfig{plain: true, tcp: true, control: func(r *sigv4.Request, requestID, sourceIP string, tls *cloudtrail.TLSDetails) (int, []byte) {
		got = sigv4.Request{Method: bytes.Clone(r.Method), Path: bytes.Clone(r.Path), Body: bytes.Clone(r.Body)}
		for _, h := range r.Headers {
			got.Headers = append(got.Headers, sigv4.Header{Name: bytes.Clone(h.Name), Value: bytes.Clone(h.Value)})
		}
		ip, id = sourceIP, requestID
		return 400, []byte(`{"__type":"LimitExceededException"}`)
	}})
	r := w.do(w.call("CreateKey", `{"Description":"d"}`))
	if r.status != 400 || string(r.body) != `{"__type":"LimitExceededException"}` || r.header.Get("x-amzn-RequestId") != id {
		t.Errorf("%d %s, request ID %s", r.status, r.body, id)
	}
	if string(got.Method) != "POST" || string(got.Path) != "/" || string(got.Body) != `{"Description":"d"}` || ip != "127.0.0.1" {
		t.Errorf("%s %s %s from %s", got.Method, got.Path, got.Body, ip)
	}
	var scratch sigv4.Scratch
	if who, code := w.parts.Verifier.Verify(&got, &scratch, time.Now()); !who.Valid() {
		t.Errorf("the signature no longer verifies: %v %s", code, scratch.Message())
	}
}

// A request that no control plane answers is refused in the form of its service, and leaves its record here: nobody else has one.
func TestForwardUnanswered(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true, control: func(*sigv4.Request, string, string, *cloudtrail.TLSDetails) (int, []byte) { return 0, nil }})
	for _, c := range []struct{ op, readOnly string }{{"CreateKey", "false"}, {"DescribeKey", "true"}} {
		w.audit.taken()
		r := w.do(w.call(c.op, `{"KeyId":"k1"}`))
		if r.status != 503 || r.exception() != "DependencyTimeoutException" {
			t.Errorf("%s: %d %s", c.op, r.status, r.body)
		}
		lines := w.audit.taken()
		if len(lines) != 1 {
			t.Fatalf("%s: records %q", c.op, lines)
		}
		for _, want := range []string{`"eventName":"` + c.op + `"`, `"errorCode":"DependencyTimeoutException"`, `"readOnly":` + c.readOnly, `"eventSource":"kms.amazonaws.com"`,
			`"requestID":"` + r.header.Get("x-amzn-RequestId") + `"`} {
			if !strings.Contains(lines[0], want) {
				t.Errorf("%s: no %s in %s", c.op, want, lines[0])
			}
		}
	}
}

// A key that was changed is read again: no view of it from before KeyChanged is used after.
func TestKeyChangedBinds(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true})
	k := w.addKey("k1", kmsapi.StateEnabled, 1)
	w.records.aliases["alias/a"] = keyID("k1")
	call := w.call("GenerateDataKey", `{"KeyId":"alias/a","KeySpec":"AES_256"}`)
	set := func(f func()) {
		w.records.mu.Lock()
		defer w.records.mu.Unlock()
		f()
	}
	want := func(what, exception string) {
		t.Helper()
		if r := w.do(call); r.exception() != exception {
			t.Errorf("%s: %d %s", what, r.status, r.body)
		}
	}
	want("enabled", "")
	for range 20 {
		set(func() { k.State = kmsapi.StateDisabled })
		w.KeyChanged(ours, k.ID)
		want("disabled", "DisabledException")
		set(func() { k.State = kmsapi.StateEnabled })
		w.KeyChanged(ours, k.ID)
		want("enabled again", "")
		set(func() { delete(w.records.aliases, "alias/a") })
		w.AliasChanged(ours, "alias/a")
		want("alias deleted", "NotFoundException")
		set(func() { w.records.aliases["alias/a"] = keyID("k1") })
		w.AliasChanged(ours, "alias/a")
		want("alias made again", "")
		set(func() { delete(w.records.keys, k.ID) })
		w.KeyChanged(ours, k.ID)
		want("key deleted", "NotFoundException")
		set(func() { w.records.keys[k.ID] = k })
		w.KeyChanged(ours, k.ID)
		want("key made again", "")
	}
}
