package dataplane

import (
	"bufio"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// limited is a server with no parts, its limits changed by set, and a connection to it.
func limited(t *testing.T, set func(*Server)) (net.Conn, *bufio.Reader) {
	t.Helper()
	s, err := New(Config{Regions: []string{testRegion}, Ready: func() error { return nil }, Logger: quiet, KeyCacheBytes: 1 << 16, AliasCacheBytes: 1 << 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	set(s)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		if err := errors.Join(s.Shutdown(t.Context()), <-served); err != nil && !strings.Contains(err.Error(), "context canceled") {
			t.Error(err)
		}
	})
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

const aPost = "POST / HTTP/1.1\r\nHost: kms.test\r\nContent-Length: 2\r\n\r\n{}"

// ask sends requests and checks that each is answered; last says whether the last answer closes the connection.
func ask(t *testing.T, c net.Conn, br *bufio.Reader, n int, last bool) {
	t.Helper()
	for i := range n {
		if _, err := io.WriteString(c, aPost); err != nil {
			t.Fatal(err)
		}
		r, err := readReply(br)
		if err != nil {
			t.Fatalf("request %d: %v", i+1, err)
		}
		if want := last && i == n-1; r.exception() != "ServiceUnavailableException" || r.close != want {
			t.Errorf("request %d: %d %s, close %v, want %v", i+1, r.status, r.body, r.close, want)
		}
	}
}

// ended checks that the server closes the connection and says nothing more.
func ended(t *testing.T, br *bufio.Reader) {
	t.Helper()
	if b, err := io.ReadAll(br); err != nil || len(b) > 0 {
		t.Errorf("after the end: %q, %v", b, err)
	}
}

func TestConnLimits(t *testing.T) {
	t.Run("as they are", func(t *testing.T) {
		c, br := limited(t, func(s *Server) {
			h := s.http
			if h.ReadTimeout != 5*time.Second || h.WriteTimeout != 5*time.Second || h.IdleTimeout != time.Minute || h.MaxRequestsPerConn != 1e5 ||
				s.cfg.ConnsMax != 20_000 || h.Concurrency <= s.cfg.ConnsMax || s.connAgeMax != time.Hour || s.cfg.ConnsPerIPMax != 1000 {
				t.Errorf("the limits are %+v", h)
			}
		})
		ask(t, c, br, 3, false)
	})
	t.Run("requests", func(t *testing.T) {
		c, br := limited(t, func(s *Server) { s.http.MaxRequestsPerConn = 3 })
		ask(t, c, br, 3, true)
		ended(t, br)
	})
	t.Run("age", func(t *testing.T) {
		c, br := limited(t, func(s *Server) { s.connAgeMax = -time.Hour })
		ask(t, c, br, 1, true)
		ended(t, br)
	})
	t.Run("idle", func(t *testing.T) {
		c, br := limited(t, func(s *Server) { s.http.IdleTimeout = 100 * time.Millisecond })
		ask(t, c, br, 1, false)
		ended(t, br)
	})
	t.Run("nothing sent", func(t *testing.T) {
		_, br := limited(t, func(s *Server) { s.http.ReadTimeout = 100 * time.Millisecond })
		if r, err := readReply(br); err != nil || r.exception() != "RequestTimeoutException" || !r.close {
			t.Errorf("%d %s, %v", r.status, r.body, err)
		}
		ended(t, br)
	})
}

// A client that does not read its replies is let go: the goroutine that serves it ends.
func TestWriteTimeout(t *testing.T) {
	s, err := New(Config{Regions: []string{testRegion}, Ready: func() error { return nil }, Logger: quiet, KeyCacheBytes: 1 << 16, AliasCacheBytes: 1 << 16})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.http.WriteTimeout = 100 * time.Millisecond
	client, server := net.Pipe() // holds nothing: a write waits for its reader
	defer client.Close()
	ended := make(chan error, 1)
	go func() { ended <- s.http.ServeConn(server) }()
	if _, err := io.WriteString(client, aPost); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		var e net.Error
		if !errors.As(err, &e) || !e.Timeout() {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it waits for the client")
	}
}
