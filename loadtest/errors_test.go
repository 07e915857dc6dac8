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
	p := mustRun(t, testConfig(k.url))
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
	if p.Requests.Succeeded != ok.Load() || p.Requests.Failed != throttled.Load()+denied.Load()+strange.Load()+empty.Load() {
		t.Errorf("requests %+v, want %d succeeded", p.Requests, ok.Load())
	}
}

// rawServer answers each request of each connection with what f writes; f returns whether the connection stays open.
func rawServer(t *testing.T, f func(conn net.Conn, request, connection int64) bool) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	var requests, connections atomic.Int64
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				connection, r := connections.Add(1), bufio.NewReader(conn)
				var request fasthttp.Request
				for request.Read(r) == nil && f(conn, requests.Add(1), connection) {
				}
			}()
		}
	}()
	return "http://" + listener.Addr().String()
}

const goodRandom = "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{\"Plaintext\":\"AAA=\"}"

// randomConfig needs no set-up calls, so that any server will do.
func randomConfig(t *testing.T, url string) Config {
	setAWSEnvironment(t)
	cfg := testConfig(url)
	cfg.Operation, cfg.Payload, cfg.Duration = "GenerateRandom", 2, 300*time.Millisecond
	return cfg
}

// What the client sees for itself is counted by kind.
func TestClientErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		want kind
		f    func(conn net.Conn, request, connection int64) bool
	}{
		{"reset", kindConnectionReset, func(net.Conn, int64, int64) bool { return false }},
		{"half an answer", kindConnectionReset, func(conn net.Conn, _, _ int64) bool { io.WriteString(conn, goodRandom[:50]); return false }},
		{"half a header", kindConnectionReset, func(conn net.Conn, _, _ int64) bool { io.WriteString(conn, goodRandom[:20]); return false }},
		{"no answer", kindTimeout, func(net.Conn, int64, int64) bool { time.Sleep(time.Second); return false }},
		{"slow answer", kindTimeout, func(conn net.Conn, _, _ int64) bool {
			io.WriteString(conn, goodRandom[:50])
			time.Sleep(time.Second)
			return false
		}},
		{"not HTTP", kindProtocol, func(conn net.Conn, _, _ int64) bool {
			io.WriteString(conn, "SSH-2.0-OpenSSH_9.2\r\n\r\n")
			return false
		}},
		{"too large", kindProtocol, func(conn net.Conn, _, _ int64) bool {
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", replyBytesMax+1, make([]byte, replyBytesMax+1))
			return false
		}},
		{"endless header", kindProtocol, func(conn net.Conn, _, _ int64) bool {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", readBufferBytes)+"\r\n\r\n")
			return false
		}},
		{"not JSON", kindBadReply, func(conn net.Conn, _, _ int64) bool {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			return true
		}},
		{"empty object", kindBadReply, func(conn net.Conn, _, _ int64) bool {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
			return true
		}},
		{"redirect", kindUnknownError, func(conn net.Conn, _, _ int64) bool {
			io.WriteString(conn, "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
			return true
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := randomConfig(t, rawServer(t, c.f))
			if c.want == kindTimeout {
				cfg.Timeout = 200 * time.Millisecond
			}
			p := mustRun(t, cfg)
			if p.Requests.Succeeded != 0 || p.Requests.Failed == 0 || len(p.Errors) != 1 || p.Errors[0].Type != c.want.String() {
				t.Fatalf("requests %+v, errors %+v, want %v", p.Requests, p.Errors, c.want)
			}
			if e := p.Errors[0]; e.Count != p.Requests.Failed || e.FromServer != (c.want == kindUnknownError) {
				t.Errorf("error %+v of %d", e, p.Requests.Failed)
			}
		})
	}
}

// A server that goes away in the middle: the workers keep trying, do not spin, and go on when it is back.
func TestServerRestart(t *testing.T) {
	handler := func(ctx *fasthttp.RequestCtx) {
		ctx.SetBodyString(`{"Plaintext":"AAA="}`)
		time.Sleep(time.Millisecond)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	first := &fasthttp.Server{Handler: handler, CloseOnShutdown: true, Logger: quiet{}}
	go first.Serve(listener)
	cfg := randomConfig(t, "http://"+address)
	cfg.Duration = 1500 * time.Millisecond
	var again *fasthttp.Server
	restarted := make(chan struct{})
	time.AfterFunc(300*time.Millisecond, func() {
		listener.Close()
		first.Shutdown()
		time.Sleep(300 * time.Millisecond)
		defer close(restarted)
		listener, err := net.Listen("tcp", address)
		if err != nil {
			t.Error(err)
			return
		}
		again = &fasthttp.Server{Handler: handler, CloseOnShutdown: true, Logger: quiet{}}
		go again.Serve(listener)
	})
	p := mustRun(t, cfg)
	<-restarted
	if again != nil {
		again.Shutdown()
	}
	refused := p.count(kindConnectionRefused)
	if refused < 4 || refused > 200 || p.Connections.Opened < 8 || p.Requests.Succeeded < 100 {
		t.Fatalf("%d refused, requests %+v, connections %+v, errors %+v", refused, p.Requests, p.Connections, p.Errors)
	}
}

// A connection that the server closed while it was idle costs no error: the request goes out again on a new one.
func TestIdleConnectionClosed(t *testing.T) {
	url := rawServer(t, func(conn net.Conn, _, _ int64) bool {
		io.WriteString(conn, goodRandom) // keep-alive is promised, and not kept
		return false
	})
	p := mustRun(t, randomConfig(t, url))
	if p.Requests.Failed > 0 || p.Requests.Succeeded < 10 || p.Connections.Retried+4 < p.Requests.Sent {
		t.Fatalf("requests %+v, connections %+v, errors %+v", p.Requests, p.Connections, p.Errors)
	}
}

// Connection: close is obeyed without a retry.
func TestConnectionClose(t *testing.T) {
	url := rawServer(t, func(conn net.Conn, _, _ int64) bool {
		io.WriteString(conn, strings.Replace(goodRandom, "\r\n", "\r\nConnection: close\r\n", 1))
		return false
	})
	p := mustRun(t, randomConfig(t, url))
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

func TestTLS(t *testing.T) {
	secured, caFile := selfSigned(t)
	k := newFakeKMS(t, secured)
	cfg := testConfig(k.url)
	cfg.CAFile, cfg.Operation = caFile, "Decrypt"
	if p := mustRun(t, cfg); p.Requests.Failed > 0 || p.Requests.Succeeded == 0 || uint64(k.calls.Load()) != p.Requests.Sent {
		t.Errorf("requests %+v, errors %+v", p.Requests, p.Errors)
	}
	t.Setenv("AWS_CA_BUNDLE", caFile)
	cfg.CAFile = ""
	if p := mustRun(t, cfg); p.Requests.Failed > 0 || p.Requests.Succeeded == 0 {
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
