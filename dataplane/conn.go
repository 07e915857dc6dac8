package dataplane

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/internal/cloudtrail"
)

// listener wraps the connections it accepts and bounds how many may be open, in all and of one address. Connections beyond the bounds are closed
// unserved, here: fasthttp would answer them in its accept loop, which with TLS waits there for a handshake.
type listener struct {
	net.Listener
	s     *Server
	perIP *addrCount
}

// addrCount counts open connections, in all and by client address.
type addrCount struct {
	mu     sync.Mutex
	open   map[netip.Addr]int
	most   int // of one address
	all    int
	allMax int
}

func (a *addrCount) enter(ip netip.Addr) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open[ip] >= a.most || a.all >= a.allMax {
		return false
	}
	a.open[ip]++
	a.all++
	return true
}

func (a *addrCount) leave(ip netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all--
	if a.open[ip]--; a.open[ip] <= 0 {
		delete(a.open, ip)
	}
}

func (l listener) Accept() (net.Conn, error) {
	var pause time.Duration
	for {
		c, err := l.Listener.Accept()
		if exhausted(err) {
			// fasthttp would end the service. Connections that close give back what is missing.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			l.s.warn("no connection can be accepted now", err)
			time.Sleep(pause)
			continue
		}
		if err != nil {
			return nil, err
		}
		pause = 0
		wrapped := &conn{Conn: c, s: l.s, perIP: l.perIP, ip: clientOf(c.RemoteAddr()), addr: addrOf(c.RemoteAddr()), slack: l.s.deadlineSlack()}
		if !l.perIP.enter(wrapped.ip) {
			_ = c.Close()
			continue
		}
		// A TLS handshake reads and writes below this connection, before anybody has set a deadline for writing.
		wrapped.reads.wanted = time.Now().Add(l.s.cfg.ReadTimeout)
		wrapped.writes.wanted = wrapped.reads.wanted
		_ = wrapped.reads.arm(wrapped.slack, c.SetReadDeadline) // what fails here fails the first read or write too
		_ = wrapped.writes.arm(wrapped.slack, c.SetWriteDeadline)
		return wrapped, nil
	}
}

// exhausted says that the process or the host is out of descriptors or memory for now.
func exhausted(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)
}

// addrOf is the client's IP address, invalid if it has none.
func addrOf(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// clientOf is what connections are counted by: an IPv4 address, or the /64 that one IPv6 host usually has to itself.
func clientOf(a net.Addr) netip.Addr {
	ip := addrOf(a)
	if ip.Is6() {
		if p, err := ip.Prefix(64); err == nil {
			return p.Masked().Addr()
		}
	}
	return ip
}

// conn knows when a reply has left, so that no plaintext stays behind.
//
// fasthttp copies a reply from our buffer (SetBodyRaw) into its pooled write buffer and keeps that buffer as it is. Write therefore clears
// what it has written, and after an error all of it, because the rest is never sent. That bends the contract of io.Writer, which must not modify its argument; it is sound here because every slice
// written to this connection is a private copy: fasthttp's write buffer or a reply's own body, never a static or shared one.
//
// Our own buffer is free when fasthttp asks for the next bytes: it reads a connection only between requests, after the reply before was
// copied or written. One goroutine serves a connection, so pending needs no lock.
type conn struct {
	net.Conn
	s       *Server
	pending *request   // answered, and not released yet; owned by the serving goroutine
	ip      netip.Addr // what it is counted by
	addr    netip.Addr // of the client
	perIP   *addrCount
	tls     *cloudtrail.TLSDetails // set with the first record; nil where the connection is not encrypted
	closed  atomic.Bool

	dirty         int      // bytes of requests that fasthttp's read buffer may still have
	reads, writes deadline // the serving goroutine's
	writeSet      bool     // fasthttp has set a deadline for the next Write
	slack         time.Duration
}

// Read clears what is left of requests before it waits for the next one: fasthttp keeps one buffer for the connection, and asks with all of it when it has taken
// everything out. p may always be written to (io.Reader), so that nothing is lost where it is another buffer, a long body's.
func (c *conn) Read(p []byte) (int, error) {
	c.release()
	clear(p[:min(len(p), c.dirty)])
	if len(p) == readBufferSize {
		c.dirty = 0
	}
	if err := c.reads.arm(c.slack, c.Conn.SetReadDeadline); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	c.dirty += n
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	if !c.writeSet { // fasthttp sets none for what it says by itself: a refusal, 100 Continue, the second part of a long reply
		c.writes.wanted = time.Now().Add(writeTimeout)
	}
	c.writeSet = false
	err := c.writes.arm(c.slack, c.Conn.SetWriteDeadline)
	n := 0
	if err == nil {
		n, err = c.Conn.Write(p)
	}
	if err != nil {
		clear(p)
		return n, err
	}
	clear(p[:n])
	return n, nil
}

// deadline is when reads, or writes, are to fail. fasthttp sets three of them for every request, and each costs a timer of the runtime; most
// are replaced before anything waits for them. So one is kept here until there is something to wait for, and then handed on only where
// the one in force is later or more than the slack earlier.
type deadline struct {
	wanted, armed time.Time
}

func (d *deadline) arm(slack time.Duration, set func(time.Time) error) error {
	if d.wanted.Equal(d.armed) {
		return nil
	}
	if !d.wanted.IsZero() && !d.armed.IsZero() {
		if ahead := d.wanted.Sub(d.armed); ahead >= 0 && ahead <= slack {
			return nil
		}
	}
	if err := set(d.wanted); err != nil {
		return err
	}
	d.armed = d.wanted
	return nil
}

// deadlineSlack is how much too early a deadline may be: an eighth of the shortest one.
func (s *Server) deadlineSlack() time.Duration { return min(s.cfg.ReadTimeout, writeTimeout) / 8 }

// SetReadDeadline and its like are called by the serving goroutine only; they take effect with its next Read or Write.
func (c *conn) SetReadDeadline(t time.Time) error  { c.reads.wanted = t; return nil }
func (c *conn) SetWriteDeadline(t time.Time) error { c.writes.wanted, c.writeSet = t, true; return nil }
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// Close may come from Shutdown's goroutine while a request is in flight, so it does not release what is pending; connState does.
func (c *conn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.perIP.leave(c.ip)
	}
	return c.Conn.Close()
}

func (c *conn) release() {
	if r := c.pending; r != nil {
		c.pending = nil
		c.s.requests.release(r)
	}
}

// connState is fasthttp's hook; StateClosed comes from the serving goroutine after its last use of the connection.
func connState(nc net.Conn, state fasthttp.ConnState) {
	if c, ok := nc.(*conn); ok && state == fasthttp.StateClosed {
		c.release()
	}
}
