package xksclient

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/internal/xks"
	"github.com/keyplane/keyplane/internal/xks/xkstest"
	"github.com/keyplane/keyplane/ratelimit"
)

const (
	testKey = "key-1"
	margin  = 150 * time.Millisecond // for a machine that is busy with other things
)

var (
	testMetadata = &xks.Metadata{Principal: "arn:aws:iam::111122223333:user/alice", KeyARN: "arn:aws:kms:eu-west-1:111122223333:key/k", Operation: "Encrypt", RequestID: "r-1"}
	testPlain    = []byte("what our own key has encrypted already")
	testAAD      = []byte("department=marketing")
)

func configOf(p *xkstest.Proxy) Config {
	return Config{Endpoint: p.Endpoint, Path: xkstest.Path, Region: xkstest.Region, AccessKeyID: xkstest.AccessKeyID, Secret: []byte(xkstest.Secret), RootCAs: p.Roots, Dial: p.Dial}
}

func newClient(t testing.TB, cfg Config) *Client {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func newProxy(t testing.TB, configure func(*tls.Config)) (*xkstest.Proxy, *Client) {
	t.Helper()
	p := xkstest.New(t, configure, testKey)
	return p, newClient(t, configOf(p))
}

// tireless keeps the breaker of a client from tripping.
func tireless(c *Client) *Client {
	c.breaker.tripsAfter = 1 << 30
	return c
}

// patient gives the calls of a client time, for tests of what takes none: a machine may be busy.
func patient(c *Client) *Client {
	c.attemptMax, c.callMax = 10*time.Second, 20*time.Second
	return c
}

func encrypt(c *Client) (xks.Sealed, error) {
	return c.Encrypt(context.Background(), testKey, testMetadata, testPlain, testAAD)
}

// failure is the failure of an error, which has to come within half a second of start, and has to tell the caller what the table says.
func failure(t *testing.T, err error, start time.Time, stage xks.Stage) xks.Failure {
	t.Helper()
	if took := time.Since(start); took > callMax+margin {
		t.Errorf("it took %s", took)
	}
	if err == nil {
		return xks.OK
	}
	var e *xks.Error
	if !errors.As(err, &e) {
		t.Fatalf("%T %v", err, err)
	}
	want := e.Failure.At(stage)
	if errors.Is(err, errBusy) {
		want = busy
	}
	if e.Failure != xks.UnfitKey && kmsapi.AsError(err) != want {
		t.Errorf("%v: the caller is told %v, want %v", err, kmsapi.AsError(err), want)
	}
	return e.Failure
}

func TestCalls(t *testing.T) {
	p, c := newProxy(t, nil)
	patient(c)
	ctx := context.Background()
	for _, n := range []int{1, 32, xks.PlaintextMax} {
		plain := bytes.Repeat([]byte{7}, n)
		aad := bytes.Repeat([]byte{9}, min(n*2, xks.AADMax))
		sealed, err := c.Encrypt(ctx, testKey, testMetadata, plain, aad)
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		path, metadata := p.Last()
		if want := (map[string]any{"awsPrincipalArn": testMetadata.Principal, "kmsKeyArn": testMetadata.KeyARN, "kmsOperation": "Encrypt", "kmsRequestId": "r-1"}); path != xkstest.Path+"/keys/key-1/encrypt" ||
			!reflect.DeepEqual(metadata, want) {
			t.Errorf("%s, %v", path, metadata)
		}
		if len(sealed.Ciphertext) != n || bytes.Equal(sealed.Ciphertext, plain) {
			t.Errorf("ciphertext of %d bytes: %x", n, sealed.Ciphertext)
		}
		got, err := c.Decrypt(ctx, testKey, testMetadata, &sealed, aad)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %x, %v", n, got, err)
		}
		for what, change := range map[string]func(*xks.Sealed){
			"ciphertext": func(s *xks.Sealed) { s.Ciphertext = flipped(s.Ciphertext) }, "IV": func(s *xks.Sealed) { s.IV = flipped(s.IV) }, "tag": func(s *xks.Sealed) { s.Tag = flipped(s.Tag) },
			"metadata": func(s *xks.Sealed) { s.Metadata = flipped(s.Metadata) }, "no metadata": func(s *xks.Sealed) { s.Metadata = nil },
		} {
			other := sealed
			change(&other)
			start := time.Now()
			if _, err := c.Decrypt(ctx, testKey, testMetadata, &other, aad); failure(t, err, start, xks.AtCrypto) != xks.InvalidCiphertext {
				t.Errorf("another %s: %v", what, err)
			}
		}
		if _, err := c.Decrypt(ctx, testKey, testMetadata, &sealed, aad[1:]); failure(t, err, time.Now(), xks.AtCrypto) != xks.InvalidCiphertext {
			t.Errorf("another AAD: %v", err)
		}
	}
	if n := p.Connections.Load(); n != 1 {
		t.Errorf("%d connections for calls one after the other", n)
	}

	h, err := c.Health(ctx, "ConnectCustomKeyStore", "r-2")
	if err != nil || len(h.Fleet) != 1 || !h.Available() {
		t.Errorf("%+v, %v", h, err)
	}
	if path, metadata := p.Last(); path != xkstest.Path+"/health" || !reflect.DeepEqual(metadata, map[string]any{"kmsOperation": "ConnectCustomKeyStore", "kmsRequestId": "r-2"}) {
		t.Errorf("%s, %v", path, metadata)
	}

	creation := &xks.Metadata{Principal: "arn:aws:iam::111122223333:root", Operation: "CreateKey", RequestID: "r-3"}
	if err := c.KeyMetadata(ctx, testKey, creation); err != nil {
		t.Error(err)
	}
	p.AddKey(t, "rsa", "RSA_2048", "ENABLED", "ENCRYPT", "DECRYPT")
	p.AddKey(t, "off", "AES_256", "DISABLED", "ENCRYPT", "DECRYPT")
	p.AddKey(t, "one-way", "AES_256", "ENABLED", "ENCRYPT")
	for key, want := range map[string]string{"rsa": "RSA_2048.", "off": "DISABLED.", "one-way": "is ENCRYPT."} {
		err := c.KeyMetadata(ctx, key, creation)
		if e := kmsapi.AsError(err); failure(t, err, time.Now(), xks.AtKey) != xks.UnfitKey || e.Code != kmsapi.XksKeyInvalidConfiguration || !strings.HasSuffix(e.Message, want) {
			t.Errorf("%s: %v", key, err)
		}
	}
	if err := c.KeyMetadata(ctx, "unknown", creation); failure(t, err, time.Now(), xks.AtKey) != xks.KeyNotFound || kmsapi.AsError(err).Code != kmsapi.XksKeyNotFound {
		t.Errorf("unknown key: %v", err)
	}
	if _, err := c.Encrypt(ctx, "off", testMetadata, testPlain, nil); failure(t, err, time.Now(), xks.AtCrypto) != xks.InvalidState {
		t.Errorf("key that is not enabled: %v", err)
	}
}

func flipped(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)-1] ^= 1
	return b
}

// What is out of the API's limits is not sent.
func TestLimits(t *testing.T) {
	p, c := newProxy(t, nil)
	patient(c)
	ctx := context.Background()
	for what, call := range map[string]func() error{
		"nothing":  func() error { _, err := c.Encrypt(ctx, testKey, testMetadata, nil, nil); return err },
		"too much": func() error { _, err := c.Encrypt(ctx, testKey, testMetadata, make([]byte, 4301), nil); return err },
		"AAD": func() error {
			_, err := c.Encrypt(ctx, testKey, testMetadata, testPlain, make([]byte, 8193))
			return err
		},
		"key":         func() error { _, err := c.Encrypt(ctx, "a/b", testMetadata, testPlain, nil); return err },
		"no key":      func() error { return c.KeyMetadata(ctx, "", testMetadata) },
		"decrypt key": func() error { _, err := c.Decrypt(ctx, "..", testMetadata, &xks.Sealed{}, nil); return err },
	} {
		err := call()
		var e *xks.Error
		if err == nil || errors.As(err, &e) || kmsapi.AsError(err).Code != kmsapi.KMSInternal {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, s := range map[string]*xks.Sealed{
		"nothing": {}, "no IV": {Ciphertext: testPlain, Tag: make([]byte, 16)}, "tag": {Ciphertext: testPlain, IV: make([]byte, 12), Tag: make([]byte, 15)},
		"metadata": {Ciphertext: testPlain, IV: make([]byte, 12), Tag: make([]byte, 16), Metadata: make([]byte, 21)},
		"too much": {Ciphertext: make([]byte, 4301), IV: make([]byte, 12), Tag: make([]byte, 16)},
	} {
		if _, err := c.Decrypt(ctx, testKey, testMetadata, s, nil); failure(t, err, time.Now(), xks.AtCrypto) != xks.InvalidCiphertext {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := p.Requests.Load(); n != 0 {
		t.Errorf("%d requests", n)
	}
	cfg := configOf(p)
	for what, change := range map[string]func(*Config){
		"endpoint": func(c *Config) { c.Endpoint = "https://127.0.0.1" }, "port": func(c *Config) { c.Endpoint += ":443" }, "path": func(c *Config) { c.Path = "/kms/xks/v2" },
		"access key": func(c *Config) { c.AccessKeyID = "AKIA" }, "secret": func(c *Config) { c.Secret = []byte("short") }, "Region": func(c *Config) { c.Region = "" },
		"concurrency": func(c *Config) { c.ConcurrencyMax = -1 },
	} {
		changed := cfg
		change(&changed)
		if c, err := New(changed); err == nil || c != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestLatency(t *testing.T) {
	p, c := newProxy(t, nil)
	tireless(c)
	for _, latency := range []time.Duration{10 * time.Millisecond, 200 * time.Millisecond, 300 * time.Millisecond, 600 * time.Millisecond} {
		p.SetFault(xkstest.Slow(latency))
		requests := p.Requests.Load()
		start := time.Now()
		_, err := encrypt(c)
		// One slip of a busy machine is no proof against 200 ms.
		for n := 0; n < 5 && err != nil && latency < attemptMax; n++ {
			start = time.Now()
			_, err = encrypt(c)
		}
		f := failure(t, err, start, xks.AtCrypto)
		if latency < attemptMax {
			if f != xks.OK {
				t.Errorf("%s: %v", latency, err)
			}
			continue
		}
		if took := time.Since(start); f != xks.TimedOut || took < callMax-5*time.Millisecond || p.Requests.Load() != requests+2 {
			t.Errorf("%s: %v after %s, %d requests", latency, err, took, p.Requests.Load()-requests)
		}
	}
}

// A proxy that was too slow once, or failed once, does not show.
func TestRetry(t *testing.T) {
	for what, fault := range map[string]xkstest.Fault{
		"slow":        xkstest.Slow(400 * time.Millisecond),
		"drop":        xkstest.Hijack(func(net.Conn) {}),
		"internal":    xkstest.Always(500, `{"errorName":"InternalException"}`),
		"dependency":  xkstest.Always(503, `{"errorName":"DependencyTimeoutException"}`),
		"bad gateway": xkstest.Always(502, `<html>`),
	} {
		p, c := newProxy(t, nil)
		var faults atomic.Int64
		p.SetFault(func(w http.ResponseWriter, r *http.Request) bool { return faults.Add(1) == 1 && fault(w, r) })
		start := time.Now()
		if _, err := encrypt(c); failure(t, err, start, xks.AtCrypto) != xks.OK || p.Requests.Load() != 2 {
			t.Errorf("%s: %v, %d requests", what, err, p.Requests.Load())
		}
	}
}

// Every error that a proxy can name, at every stage. What is the client's fault, or a request too many, is not asked again.
func TestProxyErrors(t *testing.T) {
	p, c := newProxy(t, nil)
	tireless(patient(c))
	var logged bytes.Buffer
	c.log = slog.New(slog.NewTextHandler(&logged, nil))
	ctx := context.Background()
	sealed, err := encrypt(c)
	if err != nil {
		t.Fatal(err)
	}
	for f := xks.Validation; f <= xks.DependencyTimeout; f++ {
		p.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
			xkstest.Refuse(w, f.Status(), f.Name(), "the proxy's own words")
			return true
		})
		for what, call := range map[string]struct {
			stage xks.Stage
			run   func() error
		}{
			"health":   {xks.AtStore, func() error { _, err := c.Health(ctx, "CreateCustomKeyStore", "r"); return err }},
			"metadata": {xks.AtKey, func() error { return c.KeyMetadata(ctx, testKey, testMetadata) }},
			"encrypt":  {xks.AtCrypto, func() error { _, err := encrypt(c); return err }},
			"decrypt":  {xks.AtCrypto, func() error { _, err := c.Decrypt(ctx, testKey, testMetadata, &sealed, testAAD); return err }},
		} {
			want, requests := f, int64(1)
			if f == xks.InvalidCiphertext && what != "decrypt" {
				want = xks.Malformed
			}
			if f == xks.Internal || f == xks.DependencyTimeout {
				requests = 2
			}
			before := p.Requests.Load()
			start := time.Now()
			err := call.run()
			if got := failure(t, err, start, call.stage); got != want || p.Requests.Load()-before != requests {
				t.Errorf("%s of %s: %v, %d requests", f, what, err, p.Requests.Load()-before)
			}
			if err != nil && strings.Contains(err.Error()+kmsapi.AsError(err).Message, "own words") {
				t.Errorf("%s of %s: the caller reads what the proxy wrote: %v", f, what, err)
			}
		}
	}
	if n := p.Connections.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	if !strings.Contains(logged.String(), `errorMessage="the proxy's own words"`) || !strings.Contains(logged.String(), "kmsRequestId=r-1") {
		t.Errorf("the log does not have the proxy's words:\n%s", logged.String())
	}
}

// Answers that are none.
func TestMalformedAnswers(t *testing.T) {
	p, c := newProxy(t, nil)
	tireless(patient(c))
	good, err := encrypt(c)
	if err != nil {
		t.Fatal(err)
	}
	enc := base64.StdEncoding.EncodeToString
	sealed := func(s xks.Sealed, aad []byte) xkstest.Fault {
		sum := xks.CDIV(&s, aad)
		return func(w http.ResponseWriter, _ *http.Request) bool {
			xkstest.Answer(w, 200, map[string]any{"ciphertext": enc(s.Ciphertext), "initializationVector": enc(s.IV), "authenticationTag": enc(s.Tag), "ciphertextMetadata": enc(s.Metadata),
				"ciphertextDataIntegrityValue": enc(sum[:])})
			return true
		}
	}
	with := func(change func(*xks.Sealed)) xkstest.Fault {
		s := good
		change(&s)
		return sealed(s, testAAD)
	}
	p.SetFault(with(func(*xks.Sealed) {}))
	if _, err := encrypt(c); err != nil {
		t.Fatalf("what the faults are made of: %v", err)
	}
	raw := func(s string) xkstest.Fault {
		return xkstest.Hijack(func(c net.Conn) { _, _ = io.WriteString(c, s) })
	}
	for what, fault := range map[string]xkstest.Fault{
		"empty":          xkstest.Always(200, ""),
		"no content":     xkstest.Always(204, ""),
		"HTML":           xkstest.Always(200, "<html>busy</html>"),
		"other JSON":     xkstest.Always(200, `{"ok":true}`),
		"gateway error":  xkstest.Always(502, "<html>bad gateway</html>"),
		"unknown error":  xkstest.Always(400, `{"errorName":"BusyException"}`),
		"forbidden HTML": xkstest.Always(403, "<html>forbidden</html>"),
		"redirect": func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "https://example.org/", http.StatusTemporaryRedirect)
			return true
		},
		"shorter":             with(func(s *xks.Sealed) { s.Ciphertext = s.Ciphertext[1:] }),
		"longer":              with(func(s *xks.Sealed) { s.Ciphertext = append(bytes.Clone(s.Ciphertext), 0) }),
		"IV":                  with(func(s *xks.Sealed) { s.IV = make([]byte, 13) }),
		"tag":                 with(func(s *xks.Sealed) { s.Tag = make([]byte, 12) }),
		"metadata":            with(func(s *xks.Sealed) { s.Metadata = make([]byte, 21) }),
		"CDIV of another AAD": sealed(good, nil),
		"no HTTP":             raw("SSH-2.0-OpenSSH_9.9\r\n"),
		"no HTTP, longer":     raw("HTTP/1.1 OK fine\r\n\r\n"),
		"HTTP/2":              raw("HTTP/2.0 200\r\n\r\n"),
		"bad header":          raw("HTTP/1.1 200 OK\r\nno colon\r\n\r\n"),
		"two lengths":         raw("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}"),
		"bad chunk":           raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
		"continue":            raw("HTTP/1.1 100 Continue\r\n\r\n"),
		"huge body":           xkstest.Always(200, `{"plaintext":"`+strings.Repeat("A", 4<<20)+`"}`),
		"huge header":         raw("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("A", 1<<20) + "\r\n\r\n{}"),
		"huge status line":    raw(strings.Repeat("A", 1<<20)),
		"endless chunks":      raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1\r\nA\r\n", 1<<16)),
	} {
		p.SetFault(fault)
		start := time.Now()
		s, err := encrypt(c)
		if f := failure(t, err, start, xks.AtCrypto); f != xks.Malformed || s.Ciphertext != nil {
			t.Errorf("%s: %s, %v", what, f, err)
		}
		if huge := strings.HasPrefix(what, "huge ") || what == "endless chunks"; huge != errors.Is(err, errLong) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// None of them spoils the next call.
	p.SetFault(nil)
	if _, err := encrypt(c); err != nil {
		t.Error(err)
	}

	// Nor does a second answer in advance.
	sum := xks.CDIV(&good, testAAD)
	body := fmt.Sprintf(`{"ciphertext":%q,"initializationVector":%q,"authenticationTag":%q,"ciphertextMetadata":%q,"ciphertextDataIntegrityValue":%q}`, enc(good.Ciphertext), enc(good.IV),
		enc(good.Tag), enc(good.Metadata), enc(sum[:]))
	head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(body))
	p.SetFault(raw(head + body + head + strings.Repeat(" ", len(body))))
	if _, err := encrypt(c); err != nil {
		t.Error(err)
	}
	p.SetFault(nil)
	if _, err := encrypt(c); err != nil {
		t.Error(err)
	}

	p.SetFault(xkstest.Always(200, `{"plaintext":"`+enc(testPlain[1:])+`"}`))
	if plain, err := c.Decrypt(context.Background(), testKey, testMetadata, &good, testAAD); failure(t, err, time.Now(), xks.AtCrypto) != xks.Malformed || plain != nil {
		t.Errorf("a shorter plaintext: %v", err)
	}
	p.SetFault(xkstest.Always(200, strings.ReplaceAll(`{"xksProxyFleetSize":1,"xksProxyVendor":"v","xksProxyModel":"m","ekmVendor":"e","ekmFleetDetails":[{"id":"1","model":"m","healthStatus":"?"}]}`,
		"?", "UNAVAILABLE")))
	if _, err := c.Health(context.Background(), "CreateCustomKeyStore", "r"); failure(t, err, time.Now(), xks.AtStore) != xks.Unhealthy {
		t.Errorf("no HSM: %v", err)
	}
}

// Connections that break, and answers that take too long, at every point of an answer.
func TestBrokenConnections(t *testing.T) {
	p, c := newProxy(t, nil)
	tireless(c)
	const head = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
	reset := func(c net.Conn) { _ = c.(*tls.Conn).NetConn().(*net.TCPConn).SetLinger(0) }
	drip := func(before string) xkstest.Fault {
		return xkstest.Hijack(func(c net.Conn) {
			_, err := io.WriteString(c, before)
			for i := 0; i < 100 && err == nil; i++ {
				_, err = io.WriteString(c, " ")
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	for what, c1 := range map[string]struct {
		fault xkstest.Fault
		want  xks.Failure
	}{
		"closed":           {xkstest.Hijack(func(net.Conn) {}), xks.Unreachable},
		"reset":            {xkstest.Hijack(reset), xks.Unreachable},
		"closed in status": {xkstest.Hijack(func(c net.Conn) { _, _ = io.WriteString(c, head[:10]) }), xks.Unreachable},
		"closed in body":   {xkstest.Hijack(func(c net.Conn) { _, _ = io.WriteString(c, head+"{") }), xks.Unreachable},
		"closed in chunk": {xkstest.Hijack(func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{")
		}), xks.Unreachable},
		"reset in body":       {xkstest.Hijack(func(c net.Conn) { _, _ = io.WriteString(c, head+"{"); reset(c) }), xks.Unreachable},
		"drips status":        {drip(""), xks.TimedOut},
		"drips a header":      {drip("HTTP/1.1 200 OK\r\nX:"), xks.TimedOut},
		"drips body":          {drip(head), xks.TimedOut},
		"drips endless chunk": {drip("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n"), xks.TimedOut},
	} {
		p.SetFault(c1.fault)
		requests := p.Requests.Load()
		start := time.Now()
		_, err := encrypt(c)
		if f := failure(t, err, start, xks.AtCrypto); f != c1.want || p.Requests.Load()-requests != 2 {
			t.Errorf("%s: %v, %d requests", what, err, p.Requests.Load()-requests)
		}
	}
}

// A proxy that starts anew closes idle connections: calls notice and make others, however many were idle.
func TestIdleConnectionsClosed(t *testing.T) {
	p, c := newProxy(t, nil)
	patient(c)
	const n = 8
	idle(t, p, c, n)
	for range 3 {
		p.CloseConnections()
		each(n, func(i int) {
			if _, err := encrypt(c); err != nil {
				t.Errorf("call %d: %v", i, err)
			}
		})
	}
	// Those that were idle for too long are not tried at all.
	for _, cn := range c.pool.idle {
		cn.since = time.Now().Add(-idleMax)
	}
	connections := p.Connections.Load()
	if _, err := encrypt(c); err != nil || p.Connections.Load() != connections+1 {
		t.Errorf("%v, %d new connections", err, p.Connections.Load()-connections)
	}
}

// idle has a client have n idle connections.
func idle(t *testing.T, p *xkstest.Proxy, c *Client, n int) {
	t.Helper()
	gate := make(chan struct{})
	var waiting atomic.Int64
	p.SetFault(func(http.ResponseWriter, *http.Request) bool {
		if waiting.Add(1) == int64(n) {
			close(gate)
		}
		select {
		case <-gate:
		case <-time.After(10 * time.Second):
		}
		return false
	})
	each(n, func(int) { _, _ = encrypt(c) })
	p.SetFault(nil)
	if len(c.pool.idle) != n {
		t.Fatalf("%d idle connections", len(c.pool.idle))
	}
}

// Something on the way forgets all connections, and says nothing: one attempt is lost with that, and no call. Of those that work the last is used again.
func TestIdleConnectionsForgotten(t *testing.T) {
	p := xkstest.New(t, nil, testKey)
	between := relay(t, p.Dial[xkstest.Host])
	cfg := configOf(p)
	cfg.Dial = map[string]string{xkstest.Host: between.addr}
	c := patient(newClient(t, cfg))
	const n = 6
	idle(t, p, c, n)
	last := c.pool.idle[n-1]
	if _, err := encrypt(c); err != nil || len(c.pool.idle) != n || c.pool.idle[n-1] != last {
		t.Errorf("%v, %d idle connections, or another one was used", err, len(c.pool.idle))
	}
	connections := p.Connections.Load()
	c.pool.drain(last.since)
	if _, err := encrypt(c); err != nil || len(c.pool.idle) != 1 || c.pool.idle[0] != last || p.Connections.Load() != connections {
		t.Errorf("%v, %d idle connections", err, len(c.pool.idle))
	}

	idle(t, p, c, n)
	between.forget()
	c.attemptMax = 2 * time.Second
	connections = p.Connections.Load()
	if _, err := encrypt(c); err != nil || p.Connections.Load() != connections+1 || len(c.pool.idle) != 1 {
		t.Errorf("%v, %d new connections, %d idle ones", err, p.Connections.Load()-connections, len(c.pool.idle))
	}
}

// between is a device on the way to a proxy.
type between struct {
	addr       string
	generation atomic.Int64
}

// forget has no more bytes pass on the connections that there are.
func (b *between) forget() { b.generation.Add(1) }

func relay(t *testing.T, to string) *between {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &between{addr: l.Addr().String()}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn // mu
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	pass := func(from, to net.Conn, generation int64) {
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			if generation == b.generation.Load() {
				_, _ = to.Write(buf[:n])
			}
		}
	}
	wg.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			mu.Lock()
			open = append(open, near, far)
			mu.Unlock()
			generation := b.generation.Load()
			wg.Go(func() { pass(near, far, generation) })
			wg.Go(func() { pass(far, near, generation) })
		}
	})
	return b
}

// What comes on an idle connection is no answer to the next request, which is made on another one.
func TestUnasked(t *testing.T) {
	const refused = "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 36\r\n\r\n{\"errorName\":\"KeyNotFoundException\"}"
	for what, unasked := range map[string]func(c net.Conn){
		"a timeout": func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
		},
		"an answer":      func(c net.Conn) { _, _ = io.WriteString(c, refused) },
		"half of one":    func(c net.Conn) { _, _ = io.WriteString(c, "H") },
		"no TLS":         func(c net.Conn) { _, _ = c.(*tls.Conn).NetConn().Write([]byte("HTTP/1.1 200 OK\r\n\r\n")) },
		"a goodbye":      func(c net.Conn) { _ = c.(*tls.Conn).CloseWrite() },
		"the end of TCP": func(c net.Conn) { _ = c.(*tls.Conn).NetConn().(*net.TCPConn).CloseWrite() },
		"an answer, and the end of TCP": func(c net.Conn) {
			_, _ = io.WriteString(c, refused)
			_ = c.(*tls.Conn).NetConn().(*net.TCPConn).CloseWrite()
		},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			p, c := newProxy(t, func(c *tls.Config) { c.MinVersion, c.MaxVersion = version, version })
			patient(c)
			now, said, end := make(chan struct{}), make(chan struct{}), make(chan struct{})
			p.SetFault(xkstest.Hijack(func(c net.Conn) {
				_, _ = io.WriteString(c, refused)
				<-now
				unasked(c)
				close(said)
				<-end
			}))
			start := time.Now()
			if _, err := encrypt(c); failure(t, err, start, xks.AtCrypto) != xks.KeyNotFound || len(c.pool.idle) != 1 {
				t.Fatalf("%s: %v", what, err)
			}
			close(now)
			<-said
			p.SetFault(nil)
			if _, err := encrypt(c); err != nil || p.Requests.Load() != 2 || p.Connections.Load() != 2 {
				t.Errorf("%s: %v, %d requests, %d connections", what, err, p.Requests.Load(), p.Connections.Load())
			}
			close(end)
		}
	}
}

// A load balancer's timeout that comes together with the request says that the connection was idle for too long; on a new connection it is an answer as any.
func TestRequestTimeout(t *testing.T) {
	p, c := newProxy(t, nil)
	tireless(patient(c))
	if _, err := encrypt(c); err != nil {
		t.Fatal(err)
	}
	timeout := xkstest.Always(http.StatusRequestTimeout, "")
	var timeouts atomic.Int64
	p.SetFault(func(w http.ResponseWriter, r *http.Request) bool { return timeouts.Add(1) == 1 && timeout(w, r) })
	if _, err := encrypt(c); err != nil || p.Requests.Load() != 3 || p.Connections.Load() != 2 {
		t.Errorf("%v, %d requests, %d connections", err, p.Requests.Load(), p.Connections.Load())
	}
	p.SetFault(timeout)
	if _, err := encrypt(c); failure(t, err, time.Now(), xks.AtCrypto) != xks.Malformed || p.Requests.Load() != 5 || p.Connections.Load() != 3 {
		t.Errorf("%v, %d requests, %d connections", err, p.Requests.Load(), p.Connections.Load())
	}
	if len(c.pool.idle) != 0 {
		t.Error("a connection is kept with an answer on it that is none")
	}
}

// A proxy that closes every connection, or is too slow for every other call, does not have us make connections without end.
func TestConnectionRate(t *testing.T) {
	p, c := newProxy(t, nil)
	tireless(c)
	c.pool.limit = ratelimit.Limit{Interval: time.Hour, Burst: 2}
	p.SetFault(func(w http.ResponseWriter, _ *http.Request) bool { w.Header().Set("Connection", "close"); return false })
	for range 2 {
		if _, err := encrypt(c); err != nil || len(c.pool.idle) != 0 {
			t.Fatalf("%v, %d idle connections", err, len(c.pool.idle))
		}
	}
	start := time.Now()
	if _, err := encrypt(c); failure(t, err, start, xks.AtCrypto) != xks.TimedOut || p.Connections.Load() != 2 {
		t.Errorf("%v, %d connections", err, p.Connections.Load())
	}
	// What another call gives back is taken meanwhile.
	c.pool.limit.Burst = 3
	p.SetFault(xkstest.Slow(50 * time.Millisecond))
	each(2, func(int) {
		if _, err := encrypt(c); err != nil {
			t.Error(err)
		}
	})
	if n := p.Connections.Load(); n != 3 {
		t.Errorf("%d connections", n)
	}
}

// each runs f n times at once.
func each(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

func TestTLSFailures(t *testing.T) {
	other := xkstest.NewCA(t)
	for _, c := range []struct {
		what      string
		configure func(*tls.Config)
		change    func(*Config)
		want      xks.Failure
	}{
		{"TLS 1.2", func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, nil, xks.OK},
		{"TLS 1.3", func(c *tls.Config) { c.MinVersion = tls.VersionTLS13 }, nil, xks.OK},
		{"TLS 1.2 and a cipher suite of the list", func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}
		}, nil, xks.OK},
		{"TLS 1.2 and another cipher suite", func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA}
		}, nil, xks.TLS},
		{"TLS 1.1", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, nil, xks.TLS},
		{"unknown CA", nil, func(c *Config) { c.RootCAs = other.Roots() }, xks.TLS},
		{"the system's CAs", nil, func(c *Config) { c.RootCAs = nil }, xks.TLS},
		{"no HTTP/1.1", func(c *tls.Config) { c.NextProtos = []string{"h3"} }, nil, xks.TLS},
		{"the proxy asks for a certificate", func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }, nil, xks.TLS},
		{"the proxy asks for a certificate, TLS 1.2", func(c *tls.Config) { c.ClientAuth, c.MaxVersion = tls.RequireAnyClientCert, tls.VersionTLS12 }, nil, xks.TLS},
		{"another host", nil, func(c *Config) {
			c.Endpoint, c.Dial = "https://other.example.com", map[string]string{"other.example.com": c.Dial[xkstest.Host]}
		}, xks.TLS},
	} {
		p := xkstest.New(t, c.configure, testKey)
		cfg := configOf(p)
		if c.change != nil {
			c.change(&cfg)
		}
		start := time.Now()
		_, err := encrypt(newClient(t, cfg))
		if f := failure(t, err, start, xks.AtCrypto); f != c.want {
			t.Errorf("%s: %v", c.what, err)
		}
	}

	for what, c := range map[string]struct {
		host     string
		notAfter time.Time
		want     xks.Failure
	}{
		"fine": {xkstest.Host, time.Now().Add(time.Hour), xks.OK}, "expired": {xkstest.Host, time.Now().Add(-time.Hour), xks.TLS}, "wrong host": {"xks.example.org", time.Now().Add(time.Hour), xks.TLS},
	} {
		ca := xkstest.NewCA(t)
		p := xkstest.New(t, func(s *tls.Config) { s.Certificates = []tls.Certificate{ca.Issue(t, c.host, c.notAfter)} }, testKey)
		cfg := configOf(p)
		cfg.RootCAs = ca.Roots()
		client := newClient(t, cfg)
		for range 2 * tripsAfter { // certificates are looked at every time, and the breaker repeats what it saw
			start := time.Now()
			_, err := encrypt(client)
			if f := failure(t, err, start, xks.AtCrypto); f != c.want {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

// mTLS: a proxy that asks for a certificate is shown it.
func TestClientCertificate(t *testing.T) {
	ca := xkstest.NewCA(t)
	const name = "cks.kms.eu-west-1.amazonaws.com"
	var seen atomic.Value
	p := xkstest.New(t, func(c *tls.Config) {
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, ca.Roots()
		c.VerifyConnection = func(s tls.ConnectionState) error {
			seen.Store(s.PeerCertificates[0].Subject.CommonName)
			return nil
		}
	}, testKey)
	cfg := configOf(p)
	certificate := ca.Issue(t, name, time.Now().Add(time.Hour))
	cfg.Certificate = &certificate
	if _, err := encrypt(newClient(t, cfg)); err != nil || seen.Load() != name {
		t.Errorf("%v, %v", err, seen.Load())
	}
	strange := xkstest.NewCA(t).Issue(t, name, time.Now().Add(time.Hour))
	cfg.Certificate = &strange
	start := time.Now()
	_, err := encrypt(newClient(t, cfg))
	if failure(t, err, start, xks.AtCrypto) != xks.TLS {
		t.Errorf("a certificate of another CA: %v", err)
	}
}

// Nobody there, nobody who answers, somebody who talks another protocol.
func TestUnreachable(t *testing.T) {
	p := xkstest.New(t, nil, testKey)
	listen := func(serve func(net.Conn)) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					serve(c)
					_ = c.Close()
				}()
			}
		}()
		return l.Addr().String()
	}
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = gone.Close()
	drain := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	for what, c := range map[string]struct {
		address string
		want    xks.Failure
	}{
		"refused":             {gone.Addr().String(), xks.Unreachable},
		"no such host":        {"xks.invalid:443", xks.Unreachable},
		"silent":              {listen(drain), xks.TimedOut},
		"closes":              {listen(func(c net.Conn) { _, _ = c.Read(make([]byte, 100)) }), xks.TLS},
		"HTTP":                {listen(func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n"); drain(c) }), xks.TLS},
		"alert":               {listen(func(c net.Conn) { _, _ = io.WriteString(c, "\x15\x03\x03\x00\x02\x02\x28"); drain(c) }), xks.TLS},
		"half of a handshake": {listen(func(c net.Conn) { _, _ = io.WriteString(c, "\x16\x03\x03\x40\x00\x02"); drain(c) }), xks.TimedOut},
	} {
		cfg := configOf(p)
		cfg.Dial = map[string]string{xkstest.Host: c.address}
		client := newClient(t, cfg)
		start := time.Now()
		_, err := encrypt(client)
		if f := failure(t, err, start, xks.AtCrypto); f != c.want {
			t.Errorf("%s: %v", what, err)
		}
		start = time.Now()
		if _, err := client.Health(context.Background(), "CreateCustomKeyStore", "r"); failure(t, err, start, xks.AtStore) != c.want {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// One address of several that takes connections is enough, wherever it stands.
func TestAddresses(t *testing.T) {
	p, c := newProxy(t, nil)
	patient(c)
	_, port, err := net.SplitHostPort(p.Dial[xkstest.Host])
	if err != nil {
		t.Fatal(err)
	}
	var tried atomic.Int64
	c.pool.dialer.ControlContext = func(ctx context.Context, _, address string, _ syscall.RawConn) error {
		tried.Add(1)
		switch {
		case strings.HasPrefix(address, "127.1.0."): // nobody answers
			<-ctx.Done()
			return ctx.Err()
		case strings.HasPrefix(address, "127.2.0."):
			return syscall.ECONNREFUSED
		}
		return nil
	}
	c.pool.address = net.JoinHostPort(xkstest.Host, port)
	var known atomic.Pointer[[]string]
	c.pool.dialer.Resolver = resolver(t, &known)
	ask := func(addresses ...string) error {
		known.Store(&addresses)
		c.pool.drain(time.Now().Add(time.Hour))
		tried.Store(0)
		_, err := encrypt(c)
		return err
	}
	before := runtime.NumGoroutine()
	for _, addresses := range [][]string{
		{"127.0.0.1"}, {"127.1.0.1", "127.0.0.1"}, {"127.1.0.1", "127.1.0.2", "127.1.0.3", "127.0.0.1"}, {"127.0.0.1", "127.1.0.1"},
		{"127.2.0.1", "127.0.0.1"}, {"127.2.0.1", "127.1.0.1", "127.2.0.2", "127.0.0.1"},
	} {
		start := time.Now()
		if err := ask(addresses...); err != nil || time.Since(start) > c.attemptMax/4 {
			t.Errorf("%v: %v after %s", addresses, err, time.Since(start))
		}
	}
	c.attemptMax, c.callMax = attemptMax, callMax
	for _, addresses := range [][]string{{"127.1.0.1", "127.1.0.2"}, {"127.2.0.1", "127.2.0.2"}, {"127.2.0.1", "127.1.0.1"}} {
		start := time.Now()
		if err := ask(addresses...); failure(t, err, start, xks.AtCrypto) != xks.Unreachable {
			t.Errorf("%v: %v", addresses, err)
		}
	}
	patient(c)
	many := slices.Repeat([]string{"127.2.0.1"}, 20)
	if err := ask(many...); err == nil || tried.Load() != 2*addressesMax {
		t.Errorf("%v, %d addresses of %d were tried", err, tried.Load(), len(many))
	}
	c.pool.drain(time.Now().Add(time.Hour))
	waitUntil(t, func() bool { return runtime.NumGoroutine() <= before })
}

// resolver knows these addresses of IPv4, of every name and in this order.
func resolver(t *testing.T, known *atomic.Pointer[[]string]) *net.Resolver {
	t.Helper()
	dns, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dns.Close() })
	go func() {
		b := make([]byte, 512)
		for {
			n, from, err := dns.ReadFrom(b)
			if err != nil {
				return
			}
			end := bytes.IndexByte(b[12:n], 0) + 17 // of the question: header, name, type, class
			kind := b[end-3]
			out := append(bytes.Clone(b[:2]), 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0)
			out = append(out, b[12:end]...)
			if kind == 1 { // A
				out[7] = byte(len(*known.Load()))
				for _, a := range *known.Load() {
					out = append(out, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4)
					out = append(out, netip.MustParseAddr(a).AsSlice()...)
				}
			}
			_, _ = dns.WriteTo(out, from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", dns.LocalAddr().String())
	}}
}

func TestInTurn(t *testing.T) {
	for in, want := range map[string]string{
		"2001:db8::1 2001:db8::2 192.0.2.1 192.0.2.2": "2001:db8::1 192.0.2.1 2001:db8::2 192.0.2.2", "192.0.2.1": "192.0.2.1",
		"192.0.2.1 192.0.2.2 ::ffff:192.0.2.3 2001:db8::1": "192.0.2.1 2001:db8::1 192.0.2.2 192.0.2.3",
		"::1 ::2 ::3 ::4 ::5 ::6 ::7 ::8 ::9 192.0.2.1":    "::1 192.0.2.1 ::2 ::3 ::4 ::5 ::6 ::7",
	} {
		var found []netip.Addr
		for _, s := range strings.Fields(in) {
			found = append(found, netip.MustParseAddr(s))
		}
		var got []string
		for _, a := range inTurn(found) {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

// An endpoint that resolves to this host or link is not dialled.
func TestLocalAddresses(t *testing.T) {
	for address, refused := range map[string]bool{
		"127.0.0.1:443": true, "127.8.9.1:443": true, "[::1]:443": true, "169.254.169.254:443": true, "[fe80::1%eth0]:443": true, "0.0.0.0:443": true, "[::]:443": true,
		"[::ffff:127.0.0.1]:443": true, "224.0.0.1:443": true, "10.0.0.1:443": false, "192.0.2.1:443": false, "[2001:db8::1]:443": false, "what:443": true,
		"[fd00:ec2::254]:443": true, "[fd20:ce::254]:443": true, "[fd00:ec3::254]:443": false, "168.63.129.16:443": true, "100.100.100.200:443": true,
	} {
		if err := refuseLocal(context.Background(), "tcp", address, nil); (err != nil) != refused {
			t.Errorf("%s: %v", address, err)
		}
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range own { // on a host with an address, more than the loopback
		ip := a.(*net.IPNet).IP
		if err := refuseLocal(context.Background(), "tcp", net.JoinHostPort(ip.String(), "443"), nil); err != errLocal {
			t.Errorf("%s: %v", ip, err)
		}
	}
	p := xkstest.New(t, nil, testKey)
	cfg := configOf(p)
	cfg.Dial = nil
	c := newClient(t, cfg)
	c.pool.address = p.Dial[xkstest.Host] // what the name would resolve to
	start := time.Now()
	if _, err := encrypt(c); failure(t, err, start, xks.AtCrypto) != xks.Unreachable || !errors.Is(err, errLocal) || p.Connections.Load() != 0 {
		t.Errorf("%v, %d connections", err, p.Connections.Load())
	}
}

func TestCredentials(t *testing.T) {
	p := xkstest.New(t, nil, testKey)
	const id, secret = "ZZZZZZZZZZZZZZZZ7777", "another+secret/another+secret/another+secret/another=secret====="
	cfg := configOf(p)
	cfg.AccessKeyID, cfg.Secret = id, []byte(secret)
	c := patient(newClient(t, cfg))
	clear(cfg.Secret)          // New has copied it
	for range 3 * tripsAfter { // it is an answer: the breaker does not trip
		if _, err := encrypt(c); failure(t, err, time.Now(), xks.AtCrypto) != xks.AuthenticationFailed {
			t.Fatalf("unknown credential: %v", err)
		}
	}
	p.AddCredential(id, secret)
	if _, err := encrypt(c); err != nil {
		t.Error(err)
	}
	for _, bad := range [][2]string{{"", secret}, {id, ""}, {id, secret + "x"}, {strings.ToLower(id), secret}} {
		cfg.AccessKeyID, cfg.Secret = bad[0], []byte(bad[1])
		if _, err := New(cfg); err == nil || strings.Contains(err.Error(), "secret/") {
			t.Errorf("%v", err)
		}
	}
	if text := fmt.Sprintf("%+v %#v", c, c); strings.Contains(text, secret) {
		t.Error("a printed client shows the secret")
	}
}

// signWith signs a request with a key.
func signWith(key *sigv4.AccessKey) error {
	r := &sigv4.Request{Method: []byte("POST"), Path: []byte("/"), Headers: []sigv4.Header{{Name: []byte("x-amz-date"), Value: sigv4.AppendDate(nil, time.Now())}}}
	_, err := sigv4.AppendAuthorization(nil, key, xkstest.Region, xks.SigningName, r, new(sigv4.Scratch))
	return err
}

// The breaker of a client opens after calls that came to nothing, answers at once then, and closes when the proxy answers again.
func TestBreakerOfClient(t *testing.T) {
	p, c := newProxy(t, nil)
	c.breaker.restsFor = 300 * time.Millisecond
	p.SetFault(xkstest.Hijack(func(net.Conn) {}))
	for i := range tripsAfter {
		if _, err := encrypt(c); failure(t, err, time.Now(), xks.AtCrypto) != xks.Unreachable || errors.Is(err, errResting) {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	requests := p.Requests.Load()
	_, err := encrypt(c)
	if !errors.Is(err, errResting) || failure(t, err, time.Now(), xks.AtCrypto) != xks.Unreachable || p.Requests.Load() != requests {
		t.Fatalf("%v, %d requests", err, p.Requests.Load()-requests)
	}
	// Of many, one tries.
	waitUntil(t, func() bool { return c.breakerAt(time.Now()) })
	var resting atomic.Int64
	p.SetFault(xkstest.Slow(600 * time.Millisecond))
	requests = p.Requests.Load()
	each(20, func(int) {
		if _, err := encrypt(c); errors.Is(err, errResting) {
			resting.Add(1)
		} else if err == nil {
			t.Error("an answer")
		}
	})
	if resting.Load() != 19 || p.Requests.Load() != requests+2 {
		t.Errorf("%d of 20 calls did not try, %d requests", resting.Load(), p.Requests.Load()-requests)
	}
	if _, err := encrypt(c); !errors.Is(err, errResting) || failure(t, err, time.Now(), xks.AtCrypto) != xks.TimedOut {
		t.Errorf("after the try: %v", err)
	}
	p.SetFault(nil)
	waitUntil(t, func() bool { return c.breakerAt(time.Now()) })
	for range 3 {
		if _, err := encrypt(c); err != nil {
			t.Error(err)
		}
	}

	// A health check closes it too.
	c.breaker.restsFor = time.Hour
	for range tripsAfter {
		c.breaker.failed(passClosed, time.Now(), xks.TimedOut)
	}
	if _, err := encrypt(c); !errors.Is(err, errResting) {
		t.Fatal(err)
	}
	if _, err := c.Health(context.Background(), xks.KmsHealthCheck, "r"); err != nil {
		t.Fatal(err)
	}
	if _, err := encrypt(c); err != nil {
		t.Error(err)
	}
}

// A call that panics while it tries whether the proxy answers leaves the next one to try.
func TestBreakerAfterPanic(t *testing.T) {
	_, c := newProxy(t, nil)
	patient(c)
	for range tripsAfter {
		c.breaker.failed(passClosed, time.Now().Add(-time.Minute), xks.TimedOut)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("it did not panic")
			}
		}()
		_ = c.call(context.Background(), &request{api: xks.Encrypt, stage: xks.AtCrypto, key: testKey}, func([]byte) []byte { panic("of who writes") }, nil)
	}()
	if _, err := encrypt(c); err != nil || len(c.slots) != 0 {
		t.Errorf("%v, %d slots are taken", err, len(c.slots))
	}
}

// breakerAt says whether the breaker would let a call try.
func (c *Client) breakerAt(now time.Time) bool {
	c.breaker.mu.Lock()
	defer c.breaker.mu.Unlock()
	return !now.Before(c.breaker.until)
}

func waitUntil(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not come")
		}
	}
}

// Many callers of a proxy that is gone: what is under way is bounded, the others are told at once, and nothing is left behind.
func TestDeadProxy(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // nobody accepts: connections come about, and nobody answers
	p := xkstest.New(t, nil)
	cfg := configOf(p)
	cfg.Dial = map[string]string{xkstest.Host: l.Addr().String()}
	cfg.ConcurrencyMax = 32
	c := newClient(t, cfg)
	before := runtime.NumGoroutine()
	const callers = 1000
	var busy, timedOut, resting atomic.Int64
	each(callers, func(int) {
		begin := time.Now()
		_, err := encrypt(c)
		switch f := failure(t, err, begin, xks.AtCrypto); {
		case errors.Is(err, errBusy) && f == xks.Throttling:
			if e := kmsapi.AsError(err); e.Code != kmsapi.Throttling {
				t.Errorf("the bulkhead refuses with %v", e)
			}
			busy.Add(1)
		case errors.Is(err, errResting):
			resting.Add(1)
		case f == xks.TimedOut || f == xks.Unreachable: // that, where the kernel's queue of connections is full
			timedOut.Add(1)
		default:
			t.Error(err)
		}
		if n := runtime.NumGoroutine(); n > before+callers+2*32 {
			t.Errorf("%d goroutines", n)
		}
	})
	if n := timedOut.Load(); n == 0 || busy.Load() == 0 || n+busy.Load()+resting.Load() != callers {
		t.Errorf("%d timed out, %d busy, %d resting", n, busy.Load(), resting.Load())
	}
	// Now the breaker is open, and everybody is told at once.
	start := time.Now()
	for range callers {
		if _, err := encrypt(c); err == nil {
			t.Fatal("an answer")
		}
	}
	if took := time.Since(start); took > callMax+margin {
		t.Errorf("%d calls of an open breaker took %s", callers, took)
	}
	waitUntil(t, func() bool { return runtime.NumGoroutine() <= before })
	if len(c.slots) != 0 || len(c.pool.dials) != 0 {
		t.Errorf("%d slots and %d dials are left", len(c.slots), len(c.pool.dials))
	}
}

// What the rate of a key store lets through finds room, however long a proxy takes for an answer that is in time.
func TestRoomForTheRate(t *testing.T) {
	_, c := newProxy(t, nil)
	const rate = 1800 // quota.CustomKeyStoreRate
	if n := int(rate * attemptMax.Seconds()); cap(c.slots) < n {
		t.Errorf("room for %d calls, want %d", cap(c.slots), n)
	}
}

// A caller who goes, goes at once, and says nothing of the proxy.
func TestCallerGoes(t *testing.T) {
	p, c := newProxy(t, nil)
	p.SetFault(xkstest.Slow(10 * time.Second))
	for range 2 * tripsAfter {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		start := time.Now()
		_, err := c.Encrypt(ctx, testKey, testMetadata, testPlain, testAAD)
		cancel()
		if took := time.Since(start); failure(t, err, start, xks.AtCrypto) != xks.TimedOut || took > 20*time.Millisecond+margin {
			t.Errorf("%v after %s", err, took)
		}
	}
	p.SetFault(nil)
	if _, err := encrypt(c); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	requests := p.Requests.Load()
	if _, err := c.Encrypt(ctx, testKey, testMetadata, testPlain, testAAD); err == nil || p.Requests.Load() > requests+1 {
		t.Errorf("%v, %d requests", err, p.Requests.Load()-requests)
	}
}

func TestClose(t *testing.T) {
	p, c := newProxy(t, nil)
	p.SetFault(xkstest.Slow(100 * time.Millisecond))
	var ended atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = encrypt(c)
		ended.Store(true)
	})
	waitUntil(t, func() bool { return p.Requests.Load() > 0 })
	c.Close()
	if !ended.Load() {
		waitUntil(t, ended.Load) // between the end of the call and that of the function
	}
	wg.Wait()
	if len(c.pool.idle) != 0 || !strings.Contains(fmt.Sprint(signWith(c.key)), "wiped") {
		t.Error("connections or the secret are left")
	}
	requests := p.Requests.Load()
	if _, err := encrypt(c); failure(t, err, time.Now(), xks.AtCrypto) != xks.NotConnected || p.Requests.Load() != requests {
		t.Errorf("after Close: %v", err)
	}
}

func TestWatch(t *testing.T) {
	p := xkstest.New(t, nil)
	cfg := configOf(p)
	logged := new(lines)
	cfg.Logger = slog.New(slog.NewTextHandler(logged, nil))
	c := newClient(t, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		c.Watch(ctx, 5*time.Millisecond)
		close(done)
	}()
	waitUntil(t, func() bool { return p.Requests.Load() >= 2 })
	_, metadata := p.Last()
	if metadata["kmsOperation"] != "KmsHealthCheck" || len(metadata["kmsRequestId"].(string)) != 36 {
		t.Errorf("%v", metadata)
	}
	p.SetFault(xkstest.Always(401, `{"errorName":"AuthenticationFailedException"}`))
	waitUntil(t, func() bool { return logged.has("from=OK to=AuthenticationFailedException") })
	p.SetFault(nil)
	waitUntil(t, func() bool { return logged.has("from=AuthenticationFailedException to=OK") })
	cancel()
	<-done
	if logged.has(xkstest.Secret) {
		t.Error("the log has the secret")
	}
}

// lines is a log that can be read while it is written.
type lines struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.all.String(), text)
}
