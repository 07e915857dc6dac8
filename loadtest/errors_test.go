package loadtest

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// Every refusal is counted under the name the server gave it, and the first message of each is kept.
func TestErrorsByType(t *testing.T) {
	k := newFakeKMS(t, nil)
	var throttled, denied, strange, empty, ok atomic.Uint64
	k.fault = func(ctx *fasthttp.RequestCtx, _ string, n int64) bool {
		switch n % 8 {
		case 0, 1:
			throttled.Add(1)
			refuse(ctx, kmsapi.Throttling, "slow down")
		case 2:
			denied.Add(1)
			ctx.SetStatusCode(400)
			ctx.SetBodyString(`{"__type":"com.amazonaws.kms#AccessDeniedException","Message":"not \u0041llowed"}`)
		case 3:
			strange.Add(1)
			ctx.SetStatusCode(400)
			ctx.SetBodyString(`{"__type":"SomethingElseException","message":"x"}`)
		case 4:
			empty.Add(1)
			ctx.SetStatusCode(502)
			ctx.SetBodyString(`<html>bad gateway</html>`)
		default:
			ok.Add(1)
			return false
		}
		return true
	}
	p := k.runUntil(testConfig(k.url), atLeast(50))
	for _, want := range []ErrorCount{
		{"ThrottlingException", true, throttled.Load(), "slow down"},
		{"AccessDeniedException", true, denied.Load(), "not Allowed"},
		{"UnknownError", true, strange.Load() + empty.Load(), ""},
	} {
		found := false
		for _, e := range p.Errors {
			if e.Type == want.Type {
				found = true
				if e.Count != want.Count || e.FromServer != want.FromServer || (want.Example != "" && e.Example != want.Example) {
					t.Errorf("got %+v, want %+v", e, want)
				}
			}
		}
		if !found {
			t.Errorf("no %s in %+v", want.Type, p.Errors)
		}
	}
	if len(p.Errors) != 3 || p.Errors[0].Type != "ThrottlingException" && p.Errors[0].Type != "UnknownError" {
		t.Errorf("errors %+v", p.Errors)
	}
	if p.Requests.Refused != p.Requests.Failed || p.Timeline[0].Refused != p.Requests.Refused {
		t.Errorf("requests %+v, first interval %+v: all failures are refusals", p.Requests, p.Timeline[0])
	}
	if p.Requests.Succeeded != ok.Load() || p.Requests.Failed != throttled.Load()+denied.Load()+strange.Load()+empty.Load() {
		t.Errorf("requests %+v, want %d succeeded", p.Requests, ok.Load())
	}
}

// rawServer answers each request of each connection with what f writes; f returns whether the connection stays open.
func rawServer(t *testing.T, f func(conn net.Conn, request int64) bool) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	var requests atomic.Int64
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				r := bufio.NewReader(conn)
				var request fasthttp.Request
				for request.Read(r) == nil && f(conn, requests.Add(1)) {
				}
			}()
		}
	}()
	return "http://" + listener.Addr().String()
}

// runRaw runs against a rawServer until it got the given number of requests.
func runRaw(t *testing.T, requests int64, timeout time.Duration, f func(conn net.Conn) bool) *Report {
	t.Helper()
	var stop func()
	url := rawServer(t, func(conn net.Conn, request int64) bool {
		if request >= requests {
			stop()
		}
		return f(conn)
	})
	cfg := randomConfig(t, url)
	cfg.Timeout = timeout
	return untilStopped(t, cfg, func(s func()) { stop = s })
}

const goodRandom = "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{\"Plaintext\":\"AAA=\"}"

// randomConfig needs no set-up calls, so that any server will do.
func randomConfig(t *testing.T, url string) Config {
	setAWSEnvironment(t)
	cfg := testConfig(url)
	cfg.Operation, cfg.Payload = "GenerateRandom", 2
	return cfg
}

// What the client sees for itself is counted by kind.
func TestClientErrors(t *testing.T) {
	ended := make(chan struct{})
	t.Cleanup(func() { close(ended) })
	for _, c := range []struct {
		name string
		want kind
		f    func(conn net.Conn) bool
	}{
		{"reset", kindConnectionReset, func(net.Conn) bool { return false }},
		{"half an answer", kindConnectionReset, func(conn net.Conn) bool { io.WriteString(conn, goodRandom[:50]); return false }},
		{"half a header", kindConnectionReset, func(conn net.Conn) bool { io.WriteString(conn, goodRandom[:20]); return false }},
		{"no answer", kindTimeout, func(net.Conn) bool { <-ended; return false }},
		{"slow answer", kindTimeout, func(conn net.Conn) bool {
			io.WriteString(conn, goodRandom[:50])
			<-ended
			return false
		}},
		{"not HTTP", kindProtocol, func(conn net.Conn) bool {
			io.WriteString(conn, "SSH-2.0-OpenSSH_9.2\r\n\r\n")
			return false
		}},
		{"too large", kindProtocol, func(conn net.Conn) bool {
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", replyBytesMax+1, make([]byte, replyBytesMax+1))
			return false
		}},
		{"endless header", kindProtocol, func(conn net.Conn) bool {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", readBufferBytes)+"\r\n\r\n")
			return false
		}},
		{"not JSON", kindBadReply, func(conn net.Conn) bool {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			return true
		}},
		{"empty object", kindBadReply, func(conn net.Conn) bool {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
			return true
		}},
		{"redirect", kindUnknownError, func(conn net.Conn) bool {
			io.WriteString(conn, "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
			return true
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			timeout := timeoutMax
			if c.want == kindTimeout {
				timeout = 500 * ms
			}
			p := runRaw(t, 8, timeout, c.f) // with four connections the first are answered by then
			if p.Requests.Succeeded != 0 || p.Requests.Failed == 0 || len(p.Errors) != 1 || p.Errors[0].Type != c.want.String() {
				t.Fatalf("requests %+v, errors %+v, want %v", p.Requests, p.Errors, c.want)
			}
			if e := p.Errors[0]; e.Count != p.Requests.Failed || e.FromServer != (c.want == kindUnknownError) || (p.Requests.Refused > 0) != e.FromServer {
				t.Errorf("error %+v of %d", e, p.Requests.Failed)
			}
		})
	}
}

// A server that goes away in the middle: the workers keep trying, do not spin, and go on when it is back.
func TestServerRestart(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	serve := func(listener net.Listener) (s *fasthttp.Server, hundred chan struct{}) {
		hundred = make(chan struct{}) // closed when so many requests were served
		var served atomic.Int64
		s = &fasthttp.Server{CloseOnShutdown: true, Logger: quiet{}, Handler: func(ctx *fasthttp.RequestCtx) {
			ctx.SetBodyString(`{"Plaintext":"AAA="}`)
			if served.Add(1) == 100 {
				close(hundred)
			}
		}}
		go s.Serve(listener)
		return s, hundred
	}
	server, hundred := serve(listener)
	// At most four of the errors that progress shows are connections that ended: the others are refused, by a server that is away.
	seen := make(progressErrors)
	cfg := randomConfig(t, "http://"+address)
	cfg.Progress = seen
	var away time.Duration
	done := make(chan struct{})
	p := untilStopped(t, cfg, func(stop func()) {
		go func() {
			defer close(done)
			defer stop()
			<-hundred
			start := time.Now()
			listener.Close()
			server.Shutdown()
			for <-seen < 12 {
			}
			listener, err := net.Listen("tcp", address)
			if err != nil {
				t.Error(err)
				return
			}
			away = time.Since(start)
			server, hundred = serve(listener)
			<-hundred
		}()
		go func() { // progress goes on after nobody wants to know
			<-done
			for range seen {
			}
		}()
	})
	<-done
	close(seen)
	server.Shutdown()
	// A worker waits 10 ms after the first failure, then twice as long each time up to a second: nine attempts in the first second and a half.
	refused, limit := p.count(kindConnectionRefused), uint64(4*(10+away/time.Second))
	if refused < 8 || refused > limit || p.Connections.Opened < 5 || p.Requests.Succeeded < 190 {
		t.Fatalf("%d refused in %v, at most %d; requests %+v, connections %+v, errors %+v", refused, away, limit, p.Requests, p.Connections, p.Errors)
	}
}

// progressErrors gets the number of errors from each line of progress.
type progressErrors chan int

func (c progressErrors) Write(line []byte) (int, error) {
	words := strings.Fields(string(line))
	if len(words) > 1 {
		if n, err := strconv.Atoi(words[len(words)-2]); err == nil {
			c <- n
		}
	}
	return len(line), nil
}

// A connection that the server closed while it was idle costs no error: the request goes out again on a new one.
func TestIdleConnectionClosed(t *testing.T) {
	p := runRaw(t, 40, timeoutMax, func(conn net.Conn) bool {
		io.WriteString(conn, goodRandom) // keep-alive is promised, and not kept
		return false
	})
	if p.Requests.Failed > 0 || p.Requests.Succeeded < 10 || p.Connections.Retried+4 < p.Requests.Sent {
		t.Fatalf("requests %+v, connections %+v, errors %+v", p.Requests, p.Connections, p.Errors)
	}
}

// Connection: close is obeyed without a retry.
func TestConnectionClose(t *testing.T) {
	p := runRaw(t, 40, timeoutMax, func(conn net.Conn) bool {
		io.WriteString(conn, strings.Replace(goodRandom, "\r\n", "\r\nConnection: close\r\n", 1))
		return false
	})
	if p.Requests.Failed > 0 || p.Connections.Retried > 0 || p.Connections.Opened < p.Requests.Sent {
		t.Fatalf("requests %+v, connections %+v, errors %+v", p.Requests, p.Connections, p.Errors)
	}
}

func TestNothingListens(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	_, err = Run(t.Context(), randomConfig(t, "http://"+listener.Addr().String()))
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("error %v", err)
	}
}

// selfSigned makes a server certificate for 127.0.0.1 and the PEM file to trust it by.
func selfSigned(t *testing.T) (*tls.Config, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, file
}

// A server that speaks TLS 1.3 and nothing older, its root from --ca-file or AWS_CA_BUNDLE; set-up, requests and every connection use it.
func TestTLS(t *testing.T) {
	secured, caFile := selfSigned(t)
	secured.MinVersion = tls.VersionTLS13
	k := newFakeKMS(t, secured)
	cfg := testConfig(k.url)
	cfg.CAFile, cfg.Operation = caFile, "Decrypt"
	if p := k.runUntil(cfg, atLeast(20)); p.Requests.Failed > 0 || p.Requests.Succeeded == 0 || uint64(k.calls.Load()) != p.Requests.Sent {
		t.Errorf("requests %+v, errors %+v", p.Requests, p.Errors)
	}
	t.Setenv("AWS_CA_BUNDLE", caFile)
	cfg.CAFile = ""
	if p := k.runUntil(cfg, atLeast(20)); p.Requests.Failed > 0 || p.Requests.Succeeded == 0 {
		t.Errorf("AWS_CA_BUNDLE: requests %+v, errors %+v", p.Requests, p.Errors)
	}
	t.Setenv("AWS_CA_BUNDLE", "")
	cfg.Operation = "GenerateRandom"
	var unknown x509.UnknownAuthorityError
	if _, err := Run(t.Context(), cfg); !errors.As(err, &unknown) {
		t.Errorf("an unknown root: %v", err)
	} else if kindOfError(err) != kindTLS {
		t.Errorf("an unknown root is a %v", kindOfError(err))
	}
	for name, content := range map[string]string{"missing": "", "empty": "no certificate"} {
		cfg.CAFile = filepath.Join(t.TempDir(), name)
		if content != "" {
			os.WriteFile(cfg.CAFile, []byte(content), 0o600)
		}
		if _, err := Run(t.Context(), cfg); err == nil || !strings.HasPrefix(err.Error(), "CA file: ") {
			t.Errorf("%s CA file: %v", name, err)
		}
	}
}

// Each kind has a name of its own that is not empty.
func TestKindNames(t *testing.T) {
	seen := map[string]kind{}
	for k := clientKinds; k < kindCount; k++ {
		if other, taken := seen[k.String()]; taken || k.String() == "" || kmsapi.CodeOf(k.String()) != kmsapi.OK {
			t.Errorf("kinds %d and %d are both called %q", k, other, k)
		}
		seen[k.String()] = k
	}
	if kind(kmsapi.Validation).String() != "ValidationException" {
		t.Error(kind(kmsapi.Validation).String())
	}
}
