package cluster

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// echo answers what it is sent, and returns its address.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
	return ln.Addr().String()
}

// through is a network with a proxy in front of an echo, and a connection through it.
func through(t *testing.T) (*Network, net.Conn) {
	t.Helper()
	n := newNetwork(func() map[string]int { return map[string]int{Client: os.Getpid()} })
	t.Cleanup(n.Close)
	c := Cluster{ports: map[int]bool{}}
	port, err := c.freePort()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.front(local(port), "echo", echo(t)); err != nil {
		t.Fatal(err)
	}
	return n, dial(t, local(port))
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// exchange sends a byte and reports whether it comes back within the time.
func exchange(conn net.Conn, within time.Duration) error {
	_ = conn.SetDeadline(time.Now().Add(within))
	if _, err := conn.Write([]byte{1}); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

const patience = 20 * time.Second // on a machine that does much else

func TestLinks(t *testing.T) {
	n, conn := through(t)
	if err := exchange(conn, patience); err != nil {
		t.Fatal(err)
	}
	n.Set(Client, "echo", Fault{Delay: 40 * time.Millisecond})
	began := time.Now()
	if err := exchange(conn, patience); err != nil || time.Since(began) < 80*time.Millisecond {
		t.Errorf("with a delay of 40 ms each way: %v, %v", time.Since(began), err)
	}
	n.Heal()
	for _, hold := range []Fault{{HoldThere: true}, {HoldBack: true}, {HoldThere: true, HoldBack: true}} {
		n.Set(Client, "echo", hold)
		if err := exchange(conn, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%+v: %v", hold, err)
		}
		n.Heal()
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil { // what was held back arrives
			t.Errorf("after %+v: %v", hold, err)
		}
	}
	n.Set("somebody else", "echo", Fault{HoldThere: true})
	if err := exchange(conn, patience); err != nil {
		t.Errorf("a fault of another link: %v", err)
	}
	if count := n.Reset(Client, "echo"); count != 1 {
		t.Errorf("%d connections were reset", count)
	}
	if err := exchange(conn, patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after a reset: %v", err)
	}
}

// TestCutAndDeaf: both directions of connecting.
func TestCutAndDeaf(t *testing.T) {
	n := newNetwork(nil)
	n.Cut("a", "b")
	for _, l := range []*link{n.link("a", "b"), n.link("b", "a")} {
		if f, _ := l.now(); !f.HoldThere || !f.HoldBack {
			t.Errorf("cut: %+v", f)
		}
	}
	n.Deaf("a", "b")
	if f, _ := n.link("a", "b").now(); !f.HoldThere || f.HoldBack {
		t.Errorf("a to b: %+v", f)
	}
	if f, _ := n.link("b", "a").now(); f.HoldThere || !f.HoldBack {
		t.Errorf("b to a: %+v", f)
	}
}
