package xksclient

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/keyplane/keyplane/ratelimit"
)

const (
	idleMax      = 50 * time.Second      // that a connection waits for a request: below the minute after which load balancers close them
	dialsMax     = 16                    // connections that are made at once
	dialsEvery   = 5 * time.Millisecond  // and their rate, after as many as there can be calls: what they cost is ours, and a proxy may ask for one with every call
	nextAddress  = 50 * time.Millisecond // after which the next address of the proxy is tried too
	addressesMax = 8                     // of a proxy that are tried
	sessionsMax  = 4                     // TLS sessions that are kept
	readerBytes  = 4 << 10
)

// pool has the connections to one proxy that are idle, and makes more. HTTP/1.1 has one request at a time on each. Of those that are idle the one that was used last
// is used next: it is the one most likely to be alive, and those that the load does not need grow old.
type pool struct {
	mu    sync.Mutex
	idle  []*conn       // by since, the oldest first; mu
	ready chan struct{} // one in it for each of idle that nobody is about to take; sent to under mu
	dials chan struct{} // one in it for each that is being made
	rate  ratelimit.GCRA
	limit ratelimit.Limit // of rate
	start time.Time

	address string // host:port
	dialer  net.Dialer
	tls     tls.Config
}

// conn is a connection. It belongs to whoever got it from the pool.
type conn struct {
	socket  *socket
	tls     *tls.Conn     // over socket
	reader  *bufio.Reader // over limited, over this conn
	limited io.LimitedReader
	failed  error // of the last read
	used    bool  // a request was answered on it
	since   time.Time
}

// socket is a TCP connection of which a read, while probing is set, takes what is there and does not wait: where nothing is, it is as one that took too long, which does
// not end TLS.
type socket struct {
	*net.TCPConn
	raw     syscall.RawConn
	probing bool
}

func (s *socket) Read(b []byte) (n int, err error) {
	if !s.probing {
		return s.TCPConn.Read(b)
	}
	if e := s.raw.Read(func(fd uintptr) bool {
		n, err = syscall.Read(int(fd), b)
		return true
	}); e != nil {
		return 0, e
	}
	switch {
	case err == syscall.EAGAIN:
		return 0, os.ErrDeadlineExceeded
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// cipherSuites are those of TLS 1.2 that the specification names. Those of TLS 1.3 are not ours to choose.
var cipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384}

func (p *pool) init(cfg *Config, host string, n int) {
	p.ready = make(chan struct{}, n)
	p.dials = make(chan struct{}, min(n, dialsMax))
	p.limit, p.start = ratelimit.Limit{Interval: dialsEvery, Burst: n}, time.Now()
	// Of the resolvers, Go's ends with its context.
	p.dialer = net.Dialer{Resolver: &net.Resolver{PreferGo: true}, ControlContext: refuseLocal}
	p.address = net.JoinHostPort(host, "443")
	if mapped := cfg.Dial[host]; mapped != "" {
		p.address, p.dialer.ControlContext = mapped, nil
	}
	p.tls = tls.Config{
		ServerName: host, RootCAs: cfg.RootCAs, MinVersion: tls.VersionTLS12, CipherSuites: cipherSuites, NextProtos: []string{"http/1.1"},
		ClientSessionCache: tls.NewLRUClientSessionCache(sessionsMax),
	}
	if cfg.Certificate != nil {
		p.tls.Certificates = []tls.Certificate{*cfg.Certificate}
	}
}

var (
	errLocal     = errors.New("an address of this host or link")
	errAddresses = errors.New("the name of the proxy has no addresses")
)

// metadata are the services of clouds for the instance that asks which have an address that is not link-local.
var metadata = []netip.Prefix{
	netip.MustParsePrefix("fd00:ec2::/32"),      // of AWS
	netip.MustParsePrefix("fd20:ce::254/128"),   // of Google
	netip.MustParsePrefix("168.63.129.16/32"),   // of Azure
	netip.MustParsePrefix("100.100.100.200/32"), // of Alibaba
}

// refuseLocal keeps key stores, whose endpoints customers choose, from services that trust this host: those on it, at whichever of its addresses, and on the link
// such as the metadata of instances. Config.Dial is the way to a proxy there.
func refuseLocal(_ context.Context, _, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	ip := at.Addr().Unmap()
	if ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() || ip.IsMulticast() || slices.ContainsFunc(metadata, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return errLocal
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, a := range own {
		if network, ok := a.(*net.IPNet); ok && network.IP.Equal(ip.AsSlice()) {
			return errLocal
		}
	}
	return nil
}

// get returns an idle connection or a new one, before deadline.
func (p *pool) get(ctx context.Context, deadline time.Time) (*conn, error) {
	p.drain(time.Now().Add(-idleMax))
	if p.claim() {
		return p.take(), nil
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	select {
	case <-p.ready: // another call's, which was faster than making one
		return p.take(), nil
	case p.dials <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-p.dials }()
	for {
		ok, wait := p.rate.Take(p.limit, int64(time.Since(p.start)))
		if ok {
			return p.dial(ctx)
		}
		timer := time.NewTimer(wait)
		select {
		case <-p.ready:
			timer.Stop()
			return p.take(), nil
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		}
	}
}

// dial makes a connection while ctx, which has a deadline, lets it.
func (p *pool) dial(ctx context.Context) (*conn, error) {
	tcp, err := p.connect(ctx)
	if err != nil {
		return nil, connectError{err}
	}
	cn := &conn{socket: &socket{TCPConn: tcp.(*net.TCPConn)}}
	if cn.socket.raw, err = cn.socket.SyscallConn(); err != nil {
		_ = tcp.Close()
		return nil, connectError{err}
	}
	cn.tls = tls.Client(cn.socket, &p.tls)
	cn.limited.R = cn
	cn.reader = bufio.NewReaderSize(&cn.limited, readerBytes)
	stop := context.AfterFunc(ctx, cn.abort)
	defer stop()
	if err := cn.tls.Handshake(); err != nil {
		cn.close()
		return nil, handshakeError{err}
	}
	return cn, nil
}

// connect makes the connection of TCP: with the first address of the proxy that takes one. The next address is tried when one fails, or has taken a while; net.Dialer
// would give the first all the time that there is.
func (p *pool) connect(ctx context.Context) (net.Conn, error) {
	host, port, err := net.SplitHostPort(p.address)
	if err != nil {
		return nil, err
	}
	found, err := p.dialer.Resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result)
	timer := time.NewTimer(0)
	defer timer.Stop()
	todo, running, err := inTurn(found), 0, errAddresses
	for first := true; len(todo) > 0 || running > 0; {
		var next <-chan time.Time
		if len(todo) > 0 {
			next = timer.C
		}
		select {
		case <-next:
			address := net.JoinHostPort(todo[0].String(), port)
			todo, running = todo[1:], running+1
			go func() {
				conn, err := p.dialer.DialContext(ctx, "tcp", address)
				results <- result{conn, err}
			}()
			timer.Reset(nextAddress)
		case r := <-results:
			if running--; r.err == nil {
				cancel()
				for range running { // they end at once
					if late := <-results; late.err == nil {
						_ = late.conn.Close()
					}
				}
				return r.conn, nil
			}
			if first {
				first, err = false, r.err
			}
			timer.Reset(0)
		}
	}
	return nil, err
}

// inTurn is the order in which addresses are tried: the resolver's, but with IPv6 and IPv4 in turn, as in RFC 8305.
func inTurn(found []netip.Addr) (all []netip.Addr) {
	var kinds [2][]netip.Addr // those of the family of the first, and the others
	for _, ip := range found {
		ip = ip.Unmap()
		k := 0
		if ip.Is4() != found[0].Unmap().Is4() {
			k = 1
		}
		kinds[k] = append(kinds[k], ip)
	}
	for i := range found {
		for _, kind := range kinds {
			if i < len(kind) && len(all) < addressesMax {
				all = append(all, kind[i])
			}
		}
	}
	return all
}

// take is for who has claimed one, or received from ready.
func (p *pool) take() *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	cn := p.idle[len(p.idle)-1]
	p.idle = slices.Delete(p.idle, len(p.idle)-1, len(p.idle))
	return cn
}

// put gives back a connection on which a request was answered.
func (p *pool) put(cn *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	cn.used, cn.since = true, time.Now()
	select {
	case p.ready <- struct{}{}:
		p.idle = append(p.idle, cn)
	default: // more calls than slots: those of Health have none
		cn.close()
	}
}

// drain closes what was idle before t already.
func (p *pool) drain(t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for n < len(p.idle) && p.idle[n].since.Before(t) && p.claim() {
		p.idle[n].close()
		n++
	}
	p.idle = slices.Delete(p.idle, 0, n)
}

// claim reports whether one of idle, which nobody else is about to take, is for the caller to take.
func (p *pool) claim() bool {
	select {
	case <-p.ready:
		return true
	default:
		return false
	}
}

// begin readies the connection for a request.
func (cn *conn) begin(deadline time.Time) {
	cn.limited.N, cn.failed = answerMax, nil
	_ = cn.tls.SetDeadline(deadline)
}

// spoke reports whether the other side has said something on a connection that was idle, if only that it closes it.
func (cn *conn) spoke() bool {
	cn.socket.probing = true
	_, err := cn.reader.Peek(1)
	cn.socket.probing = false
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// Read is what the reader reads from.
func (cn *conn) Read(b []byte) (int, error) {
	n, err := cn.tls.Read(b)
	if err != nil {
		cn.failed = err
	}
	return n, err
}

// abort ends whatever the connection does now.
func (cn *conn) abort() { _ = cn.socket.SetDeadline(time.Unix(1, 0)) }

// close does not wait for the other side to hear of it.
func (cn *conn) close() { _ = cn.socket.Close() }
