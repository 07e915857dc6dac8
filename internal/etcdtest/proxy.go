package etcdtest

import (
	"io"
	"net"
	"net/url"
	"sync"
)

// Proxy is between clients and a member: connections through it can be cut, and those that are made refused, or held up.
type Proxy struct {
	URL    string
	target string
	listen net.Listener

	mu    sync.Mutex
	state proxyState
	moved chan struct{} // closed when state changes
	conns map[net.Conn]bool
	ended sync.WaitGroup
}

type proxyState int

const (
	passing proxyState = iota
	cut                // connections are closed at once
	holding            // connections stay, and nothing comes through
	closed
)

// NewProxy makes a Proxy in front of a member's URL. TLS goes through it as it is, with the member's address in certificates being the Proxy's too.
func NewProxy(member string) (*Proxy, error) {
	u, err := url.Parse(member)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{URL: u.Scheme + "://" + l.Addr().String(), target: u.Host, listen: l, moved: make(chan struct{}), conns: map[net.Conn]bool{}}
	p.ended.Go(p.accept)
	return p, nil
}

// Cut closes all connections, and new ones at once.
func (p *Proxy) Cut() { p.set(cut) }

// Hold lets nothing through, as a network does that loses everything.
func (p *Proxy) Hold() { p.set(holding) }

// Heal lets everything through, also what was held up.
func (p *Proxy) Heal() { p.set(passing) }

// Close ends the Proxy.
func (p *Proxy) Close() error {
	p.set(closed)
	err := p.listen.Close()
	p.ended.Wait()
	return err
}

func (p *Proxy) set(s proxyState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == closed {
		return
	}
	p.state = s
	close(p.moved)
	p.moved = make(chan struct{})
	if s == cut || s == closed {
		for c := range p.conns {
			c.Close()
		}
	}
}

// add keeps a connection to be cut, or says that there are to be none.
func (p *Proxy) add(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == cut || p.state == closed {
		c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *Proxy) remove(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	c.Close()
}

// pass waits while everything is held up, and says whether it goes on.
func (p *Proxy) pass() bool {
	for {
		p.mu.Lock()
		state, moved := p.state, p.moved
		p.mu.Unlock()
		switch state {
		case holding:
			<-moved
		default:
			return state == passing
		}
	}
}

func (p *Proxy) accept() {
	for {
		c, err := p.listen.Accept()
		if err != nil {
			return
		}
		if p.add(c) {
			p.ended.Go(func() { p.serve(c) })
		}
	}
}

func (p *Proxy) serve(c net.Conn) {
	defer p.remove(c)
	if !p.pass() {
		return
	}
	out, err := net.Dial("tcp", p.target)
	if err != nil || !p.add(out) {
		return
	}
	defer p.remove(out)
	var ways sync.WaitGroup
	for _, way := range [][2]net.Conn{{c, out}, {out, c}} {
		ways.Go(func() {
			defer way[0].Close()
			defer way[1].Close()
			_, _ = io.Copy(&gate{way[1], p}, struct{ io.Reader }{way[0]}) // no splicing past the gate
		})
	}
	ways.Wait()
}

// gate writes what may pass.
type gate struct {
	net.Conn
	proxy *Proxy
}

func (g *gate) Write(b []byte) (int, error) {
	if !g.proxy.pass() {
		return 0, net.ErrClosed
	}
	return g.Conn.Write(b)
}

// ReadFrom is not the connection's own, which would copy past Write.
func (g *gate) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{g}, r)
}
