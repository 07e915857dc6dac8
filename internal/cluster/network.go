package cluster

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	chunkMax  = 32 << 10
	chunksMax = 64 // that a link with a delay has under way, in one direction
	dialMax   = time.Second
)

// Client is what Network calls this process.
const Client = "client"

// Fault is what a link does to the connections of one process to another. The zero value is a good link.
type Fault struct {
	Delay     time.Duration // in each direction
	HoldThere bool          // nothing arrives of what the one who connected sends; it arrives when the fault ends, as TCP sends it again
	HoldBack  bool          // nor of what it is sent
}

// Network is TCP proxies in front of what processes listen on. A proxy knows which process a connection comes from, so that links of any two can be bad and no others.
// A connection that a link holds back is like one in a network that loses every packet: it stands, and nobody is told. A new one is made all the same, and held back.
type Network struct {
	pids func() map[string]int // of the processes that connect, by name

	mu      sync.Mutex
	links   map[[2]string]*link
	proxies []net.Listener
	conns   map[*proxied]bool
	ended   bool
}

// link is what happens between two processes: all connections of the one to the other.
type link struct {
	mu      sync.Mutex
	fault   Fault
	changed chan struct{} // closed and replaced with each change
}

func (l *link) now() (Fault, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fault, l.changed
}

func (l *link) set(f Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault = f
	close(l.changed)
	l.changed = make(chan struct{})
}

func newNetwork(pids func() map[string]int) *Network {
	return &Network{pids: pids, links: map[[2]string]*link{}, conns: map[*proxied]bool{}}
}

// front listens on an address in front of target, which is what the process to is reached at.
func (n *Network) front(addr, to, target string) error {
	ln, err := net.Listen("tcp4", addr)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.proxies = append(n.proxies, ln)
	n.mu.Unlock()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go n.serve(c.(*net.TCPConn), to, target)
		}
	}()
	return nil
}

func (n *Network) link(from, to string) *link {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.links[[2]string{from, to}]
	if l == nil {
		l = &link{changed: make(chan struct{})}
		n.links[[2]string{from, to}] = l
	}
	return l
}

// Set makes the link of one process to another as bad as f says.
func (n *Network) Set(from, to string, f Fault) { n.link(from, to).set(f) }

// Cut holds back everything between two processes, whoever connects to whom.
func (n *Network) Cut(a, b string) {
	n.Set(a, b, Fault{HoldThere: true, HoldBack: true})
	n.Set(b, a, Fault{HoldThere: true, HoldBack: true})
}

// Deaf holds back what a sends to b, whoever connects to whom; what b sends arrives.
func (n *Network) Deaf(a, b string) {
	n.Set(a, b, Fault{HoldThere: true})
	n.Set(b, a, Fault{HoldBack: true})
}

// Reset breaks every connection of one process to another.
func (n *Network) Reset(from, to string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for c := range n.conns {
		if c.from == from && c.to == to {
			c.abort()
			count++
		}
	}
	return count
}

// Heal makes every link good.
func (n *Network) Heal() {
	n.mu.Lock()
	all := make([]*link, 0, len(n.links))
	for _, l := range n.links {
		all = append(all, l)
	}
	n.mu.Unlock()
	for _, l := range all {
		l.set(Fault{})
	}
}

// Close ends all proxies and connections.
func (n *Network) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ended = true
	for _, p := range n.proxies {
		_ = p.Close()
	}
	for c := range n.conns {
		c.abort()
	}
}

// proxied is one connection through a proxy.
type proxied struct {
	from, to  string
	near, far *net.TCPConn
	done      chan struct{}
	once      sync.Once
}

// abort ends the connection with a reset at both ends.
func (c *proxied) abort() {
	c.once.Do(func() {
		close(c.done)
		for _, side := range []*net.TCPConn{c.near, c.far} {
			_ = side.SetLinger(0)
			_ = side.Close()
		}
	})
}

// from is the process that a connection comes from, "" if that cannot be told.
func (n *Network) from(c net.Conn) string {
	local, err1 := netip.ParseAddrPort(c.RemoteAddr().String())
	remote, err2 := netip.ParseAddrPort(c.LocalAddr().String())
	if err1 != nil || err2 != nil {
		return ""
	}
	inode := socketOf(local, remote)
	if inode == 0 {
		return ""
	}
	for name, pid := range n.pids() {
		if has(pid, inode) {
			return name
		}
	}
	return ""
}

func (n *Network) serve(near *net.TCPConn, to, target string) {
	far, err := net.DialTimeout("tcp4", target, dialMax)
	if err != nil {
		_ = near.SetLinger(0) // as if nobody listened
		_ = near.Close()
		return
	}
	from := n.from(near)
	c := &proxied{from: from, to: to, near: near, far: far.(*net.TCPConn), done: make(chan struct{})}
	n.mu.Lock()
	n.conns[c] = true
	ended := n.ended
	n.mu.Unlock()
	if ended {
		c.abort()
	}
	l := n.link(from, to)
	var halves atomic.Int32
	pump := func(src, dst *net.TCPConn, held func(Fault) bool) {
		c.pump(src, dst, l, held)
		if halves.Add(1) == 2 {
			c.abort()
			n.mu.Lock()
			delete(n.conns, c)
			n.mu.Unlock()
		}
	}
	go pump(c.near, c.far, func(f Fault) bool { return f.HoldThere })
	pump(c.far, c.near, func(f Fault) bool { return f.HoldBack })
}

// chunk is bytes on their way, and when they may arrive.
type chunk struct {
	b   []byte
	due time.Time
}

// pump carries one direction until its sender ends it, or either side breaks.
func (c *proxied) pump(src, dst *net.TCPConn, l *link, held func(Fault) bool) {
	under := make(chan chunk, chunksMax)
	go func() {
		defer close(under)
		buf := make([]byte, chunkMax)
		for {
			k, err := src.Read(buf)
			if k > 0 {
				f, _ := l.now()
				select {
				case under <- chunk{append([]byte(nil), buf[:k]...), time.Now().Add(f.Delay)}:
				case <-c.done:
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	for k := range under {
		if wait := time.Until(k.due); wait > 0 && !c.pause(wait) {
			return
		}
		for {
			f, changed := l.now()
			if !held(f) {
				break
			}
			select {
			case <-changed:
			case <-c.done:
				return
			}
		}
		if _, err := dst.Write(k.b); err != nil {
			c.abort()
			return
		}
	}
	// The end is held back like anything else: whoever hears of it knows that the other lives.
	for {
		f, changed := l.now()
		if !held(f) {
			break
		}
		select {
		case <-changed:
		case <-c.done:
			return
		}
	}
	_ = dst.CloseWrite()
}

func (c *proxied) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.done:
		return false
	}
}
