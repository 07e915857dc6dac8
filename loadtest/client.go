package loadtest

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	readBufferBytes = 8 << 10
	replyBytesMax   = 64 << 10 // of a reply's body; the largest KMS answer sent here is about 9 KB
)

// dialer opens connections to one endpoint.
type dialer struct {
	to      endpoint
	roots   *tls.Config // nil for plain HTTP
	timeout time.Duration
}

// newDialer reads the roots of trust: caFile's where given, else the system's.
func newDialer(to endpoint, caFile string, timeout time.Duration) (*dialer, error) {
	d := &dialer{to: to, timeout: timeout}
	if !to.tls {
		return d, nil
	}
	d.roots = &tls.Config{ServerName: to.name, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	if caFile == "" {
		return d, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("CA file: %w", err)
	}
	d.roots.RootCAs = x509.NewCertPool()
	if !d.roots.RootCAs.AppendCertsFromPEM(pem) {
		return nil, errors.New("CA file: no PEM certificate in it")
	}
	return d, nil
}

func (d *dialer) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", d.to.address)
	if err != nil || d.roots == nil {
		return raw, err
	}
	secured := tls.Client(raw, d.roots)
	if err := secured.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return secured, nil
}

// client is one worker's connection. Only abort may be called by another goroutine.
type client struct {
	dialer   *dialer
	reader   *bufio.Reader
	response fasthttp.Response // body and headers valid until the next exchange
	deadline time.Time         // set on net; renewed only when it moved by an eighth of the timeout, which saves two calls per request
	answered bool              // this connection has carried an answer, so a failure to start another may be the server's idle timeout

	mu      sync.Mutex // guards net and aborted against abort; net is read without it by the owner, its only writer
	net     net.Conn
	aborted bool

	dialled  uint64 // connections opened
	retried  uint64 // requests sent again on a new connection
	sent     uint64 // bytes written
	received uint64 // bytes of answers: bodies and headers
}

func newClient(d *dialer) *client {
	return &client{dialer: d, reader: bufio.NewReaderSize(nil, readBufferBytes)}
}

var errAborted = errors.New("stopped before the answer")

// connect opens the connection unless it is open.
func (c *client) connect(ctx context.Context) error {
	if c.net != nil {
		return nil
	}
	conn, err := c.dialer.dial(ctx)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.aborted {
		conn.Close()
		return errAborted
	}
	c.net = conn
	c.reader.Reset(counting{conn, &c.received})
	c.deadline, c.answered = time.Time{}, false
	c.dialled++
	return nil
}

// close ends the connection; the next exchange opens another.
func (c *client) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.net != nil {
		c.net.Close()
		c.net = nil
	}
}

// abort makes the exchange under way, and all later ones, fail at once.
func (c *client) abort() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.aborted = true
	if c.net != nil {
		c.net.Close()
	}
}

// exchange writes one request as it is and reads the answer into c.response. After an error the connection is closed.
//
// A server may close an idle connection at the moment the next request is written. As every HTTP client does, exchange then sends the
// request once more on a new connection; that is safe because no operation sent here changes anything. Latency keeps counting.
func (c *client) exchange(ctx context.Context, request []byte) (status int, err error) {
	for first := true; ; first = false {
		if err := c.connect(ctx); err != nil {
			return 0, err
		}
		stale, err := c.roundTrip(request)
		if err == nil {
			if c.response.ConnectionClose() {
				c.close()
			}
			return c.response.StatusCode(), nil
		}
		c.close()
		if !first || !stale {
			return 0, err
		}
		c.retried++
	}
}

// roundTrip reports with an error whether the connection was a used one that ended before the first byte of an answer.
func (c *client) roundTrip(request []byte) (stale bool, err error) {
	if wanted := time.Now().Add(c.dialer.timeout); wanted.Sub(c.deadline) > c.dialer.timeout/8 {
		c.deadline = wanted.Add(c.dialer.timeout / 8)
		if err := c.net.SetDeadline(c.deadline); err != nil {
			return c.answered, err
		}
	}
	n, err := c.net.Write(request)
	c.sent += uint64(n)
	if err != nil {
		return c.answered && kindOfError(err) == kindConnectionReset, err
	}
	if _, err := c.reader.Peek(1); err != nil {
		return c.answered && kindOfError(err) == kindConnectionReset, err
	}
	if err := c.response.ReadLimitBody(c.reader, replyBytesMax); err != nil {
		return false, err
	}
	c.answered = true
	return false, nil
}

// counting adds the bytes read to a counter.
type counting struct {
	net.Conn
	n *uint64
}

func (c counting) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	*c.n += uint64(n)
	return n, err
}
