package dataplane

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// fakeConn takes what is written, at most `most` bytes a call.
type fakeConn struct {
	net.Conn
	written  []byte
	most     int
	err      error
	closed   int
	deadline time.Time // for writing
}

func (c *fakeConn) SetWriteDeadline(t time.Time) error { c.deadline = t; return nil }

func (f *fakeConn) Read(p []byte) (int, error) { return copy(p, "next"), nil }
func (f *fakeConn) Close() error               { f.closed++; return nil }
func (f *fakeConn) Write(p []byte) (int, error) {
	n := min(f.most, len(p))
	f.written = append(f.written, p[:n]...)
	return n, f.err
}

func TestConnWriteClears(t *testing.T) {
	failed := errors.New("reset")
	for _, c := range []struct {
		most int
		err  error
	}{{6, nil}, {100, nil}, {2, failed}, {0, failed}} {
		f := &fakeConn{most: c.most, err: c.err}
		p := []byte("secret")
		n, err := (&conn{Conn: f}).Write(p)
		if n != min(c.most, 6) || err != c.err || string(f.written) != "secret"[:n] {
			t.Errorf("wrote %d, %q, %v", n, f.written, err)
		}
		if string(p) != "\x00\x00\x00\x00\x00\x00" {
			t.Errorf("%q is left", p)
		}
	}
}

func TestConnReleasesPending(t *testing.T) {
	s := &Server{}
	pend := func() (*conn, *request) {
		r := s.requests.acquire()
		r.plain = append(r.plain, "secret"...)
		return &conn{Conn: &fakeConn{}, s: s, pending: r, perIP: &addrCount{open: map[netip.Addr]int{}, most: 1, allMax: 1}}, r
	}
	wiped := func(r *request) bool { return len(r.plain) == 0 && string(r.plain[:6]) == "\x00\x00\x00\x00\x00\x00" }

	c, r := pend()
	if n, err := c.Read(make([]byte, 4)); n != 4 || err != nil || c.pending != nil || !wiped(r) {
		t.Errorf("Read: %d, %v, pending %v, wiped %v", n, err, c.pending, wiped(r))
	}
	c, r = pend()
	for _, state := range []fasthttp.ConnState{fasthttp.StateNew, fasthttp.StateActive, fasthttp.StateIdle} {
		if connState(c, state); c.pending == nil {
			t.Errorf("released in state %v", state)
		}
	}
	if connState(c, fasthttp.StateClosed); c.pending != nil || !wiped(r) {
		t.Error("not released when the connection was closed")
	}
	connState(c, fasthttp.StateClosed) // nothing is pending
	connState(&fakeConn{}, fasthttp.StateClosed)

	// Close may come from another goroutine while the reply is still being written.
	c, r = pend()
	if err := c.Close(); err != nil || c.pending != r || wiped(r) {
		t.Error("Close released what is pending")
	}
}

// Pipelined requests: every reply is its own request's, though the replies before it were not flushed yet.
func TestConnPipelining(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true, tcp: true})
	w.addKey("k1", kmsapi.StateEnabled, 1)
	const n = 60
	var raw []byte
	plain := func(i int) []byte { return bytes.Repeat([]byte{byte(i), byte(i >> 8), 'p'}, 1+i*20) } // up to 3.6 KB: some replies outgrow the write buffer
	for i := range n {
		blob := w.blob("k1", 1, nil, plain(i))
		raw = append(raw, w.call("Decrypt", `{"CiphertextBlob":"`+base64.StdEncoding.EncodeToString(blob)+`"}`)...)
	}
	c, err := w.dial()
	w.must(err)
	defer c.Close()
	w.must(c.SetDeadline(time.Now().Add(10 * time.Second)))
	go func() { _, _ = c.Write(raw) }()
	br := bufio.NewReader(c)
	seen := map[string]bool{}
	for i := range n {
		r, err := readReply(br)
		w.must(err)
		want := fmt.Sprintf(`{"EncryptionAlgorithm":"SYMMETRIC_DEFAULT","KeyId":%q,"KeyMaterialId":%q,"Plaintext":%q}`, keyARN("k1"),
			w.records.keys[keyID("k1")].Versions[0].MaterialID[:], base64.StdEncoding.EncodeToString(plain(i)))
		if r.status != 200 || string(r.body) != want {
			t.Fatalf("reply %d: %d %s", i, r.status, r.body)
		}
		seen[r.header.Get("x-amzn-RequestId")] = true
	}
	if len(seen) != n {
		t.Errorf("%d different request IDs in %d replies", len(seen), n)
	}
}

func TestAddrCount(t *testing.T) {
	a := &addrCount{open: map[netip.Addr]int{}, most: 2, allMax: 3}
	one, two, three := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("192.0.2.3")
	for i, step := range []struct {
		ip    netip.Addr
		enter bool
		want  bool
	}{{one, true, true}, {one, true, true}, {one, true, false}, {two, true, true}, {one, false, true}, {one, true, true}, {one, true, false}, {three, true, false}} {
		got := true
		if step.enter {
			got = a.enter(step.ip)
		} else {
			a.leave(step.ip)
		}
		if got != step.want {
			t.Errorf("step %d: %v", i, got)
		}
	}
	a.leave(one)
	a.leave(one)
	a.leave(two)
	if len(a.open) != 0 || a.all != 0 {
		t.Errorf("%v is still counted, %d in all", a.open, a.all)
	}
}

// healthy asks for /healthz on a new connection and keeps it open.
func (w *world) healthy() (net.Conn, error) {
	c, err := w.dial()
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte("GET /healthz HTTP/1.1\r\nHost: kms.test\r\n\r\n")); err != nil {
		return c, err
	}
	r, err := readReply(bufio.NewReader(c))
	if err == nil && r.status != 200 {
		err = fmt.Errorf("status %d, %s", r.status, r.body)
	}
	return c, err
}

func TestConnsPerIP(t *testing.T) {
	const most = 3
	w := newWorld(t, worldConfig{plain: true, tcp: true, server: Config{ConnsPerIPMax: most}})
	var open []net.Conn
	for range most {
		c, err := w.healthy()
		w.must(err)
		defer c.Close()
		open = append(open, c)
	}
	for range 2 {
		if c, err := w.healthy(); err == nil {
			c.Close()
			t.Fatal("a connection beyond the bound is served")
		}
	}
	w.must(open[0].Close())
	for deadline := time.Now().Add(5 * time.Second); ; {
		c, err := w.healthy()
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the place of a closed connection stays taken:", err)
		}
	}
}

// Connections beyond ConnsMax are closed unserved; one that closes makes room.
func TestConnsMax(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true, tcp: true, server: Config{ConnsMax: 1}})
	c, err := w.healthy()
	w.must(err)
	defer c.Close()
	for range 3 {
		c, err := w.dial()
		w.must(err)
		w.must(c.SetDeadline(time.Now().Add(5 * time.Second)))
		b, err := io.ReadAll(c)
		c.Close()
		if len(b) > 0 || os.IsTimeout(err) {
			t.Errorf("%q, %v", b, err)
		}
	}
	c.Close()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := w.healthy()
		if c != nil {
			c.Close()
		}
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("after the one connection was closed:", err)
		}
	}
}

// exhaustedListener gives EMFILE and its kin before it accepts.
type exhaustedListener struct {
	net.Listener
	errs []error
}

func (l *exhaustedListener) Accept() (net.Conn, error) {
	if len(l.errs) > 0 {
		err := l.errs[0]
		l.errs = l.errs[1:]
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
	}
	server, client := net.Pipe()
	_ = client.Close()
	return server, nil
}

// Running out of descriptors must not end the service: fasthttp gives up at the first error of Accept.
func TestAcceptOutlivesExhaustion(t *testing.T) {
	var log bytes.Buffer
	s := &Server{cfg: Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}}
	l := listener{&exhaustedListener{errs: []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM}}, s, &addrCount{open: map[netip.Addr]int{}, most: 1, allMax: 1}}
	if c, err := l.Accept(); err != nil || c == nil {
		t.Errorf("Accept: %v", err)
	}
	if n := strings.Count(log.String(), "no connection can be accepted now"); n != 4 {
		t.Errorf("%d warnings", n)
	}
	l = listener{&exhaustedListener{errs: []error{syscall.EBADF}}, s, &addrCount{open: map[netip.Addr]int{}, most: 1, allMax: 1}}
	if _, err := l.Accept(); !errors.Is(err, syscall.EBADF) {
		t.Errorf("a listener that is gone: %v", err)
	}
}

func TestClientOf(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.7:80": "192.0.2.7", "[::ffff:192.0.2.7]:80": "192.0.2.7", "[2001:db8:1:2:3:4:5:6]:80": "2001:db8:1:2::", "[2001:db8:1:2:ffff::1]:80": "2001:db8:1:2::",
	} {
		if got := clientOf(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))).String(); got != want {
			t.Errorf("%s counts as %s, want %s", addr, got, want)
		}
	}
}
