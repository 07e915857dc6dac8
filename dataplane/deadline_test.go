package dataplane

import (
	"bufio"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

func TestDeadlineArm(t *testing.T) {
	at := time.Now()
	after := func(d time.Duration) time.Time { return at.Add(d) }
	const slack = time.Second
	for _, c := range []struct {
		armed, wanted time.Time
		set           bool
	}{
		{time.Time{}, time.Time{}, false},
		{time.Time{}, at, true},
		{at, time.Time{}, true},
		{at, at, false},
		{at, after(slack), false},
		{at, after(slack + 1), true},
		{at, after(-1), true}, // never later than wanted
	} {
		d := deadline{armed: c.armed, wanted: c.wanted}
		var got []time.Time
		if err := d.arm(slack, func(t time.Time) error { got = append(got, t); return nil }); err != nil {
			t.Fatal(err)
		}
		if c.set != (len(got) == 1 && got[0].Equal(c.wanted) && d.armed.Equal(c.wanted)) || !c.set && (len(got) > 0 || !d.armed.Equal(c.armed)) {
			t.Errorf("armed %v, wanted %v: set %v, now armed %v", c.armed, c.wanted, got, d.armed)
		}
	}
	d := deadline{wanted: at}
	if err := d.arm(slack, func(time.Time) error { return os.ErrClosed }); err != os.ErrClosed || !d.armed.IsZero() {
		t.Errorf("a deadline that could not be set: %v, armed %v", err, d.armed)
	}
}

// What fasthttp writes without setting a deadline, after an idle time, is not held to the deadline of the reply before.
func TestWriteDeadlineAfterIdle(t *testing.T) {
	fake := &fakeConn{}
	c := &conn{Conn: fake}
	past := time.Now().Add(-time.Minute)
	if err := c.SetWriteDeadline(past); err != nil {
		t.Fatal(err)
	}
	for i, late := range []bool{true, false, false} {
		if _, err := c.Write([]byte("reply")); err != nil {
			t.Fatal(err)
		}
		if fake.deadline.Equal(past) != late || !late && time.Until(fake.deadline) < writeTimeout/2 {
			t.Errorf("write %d: until %v", i, fake.deadline)
		}
	}
}

// countingListener counts the deadlines that reach its connections.
type countingListener struct {
	net.Listener
	set atomic.Int64
}

type countingConn struct {
	net.Conn
	l *countingListener
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countingConn{c, l}, nil
}

func (c countingConn) SetReadDeadline(t time.Time) error {
	c.l.set.Add(1)
	return c.Conn.SetReadDeadline(t)
}
func (c countingConn) SetWriteDeadline(t time.Time) error {
	c.l.set.Add(1)
	return c.Conn.SetWriteDeadline(t)
}

// A busy connection does not move the runtime's timers for every request.
func TestDeadlinesAreFew(t *testing.T) {
	var counted *countingListener
	w := newWorld(t, worldConfig{plain: true, tcp: true, wrap: func(ln net.Listener) net.Listener {
		counted = &countingListener{Listener: ln}
		return counted
	}})
	w.addKey("k1", kmsapi.StateEnabled, 1)
	raw := w.call("GenerateDataKey", `{"KeyId":"`+keyID("k1").String()+`","KeySpec":"AES_256"}`)
	c, err := w.dial()
	w.must(err)
	defer c.Close()
	w.must(c.SetDeadline(time.Now().Add(60 * time.Second)))
	br := bufio.NewReader(c)
	const n = 1000
	for range n {
		if _, err := c.Write(raw); err != nil {
			t.Fatal(err)
		}
		if r, err := readReply(br); err != nil || r.status != 200 {
			t.Fatal(r.status, err)
		}
	}
	if got := counted.set.Load(); got < 3 || got > n/10 {
		t.Errorf("%d deadlines in %d requests", got, n)
	}
}

// A request that stops half way is cut off after the read timeout, also on a connection that had the idle timeout in force before.
func TestDeadlineOfStalledRequest(t *testing.T) {
	const timeout = 400 * time.Millisecond
	w := newWorld(t, worldConfig{plain: true, tcp: true, server: Config{ReadTimeout: timeout}})
	w.addKey("k1", kmsapi.StateEnabled, 1)
	raw := w.call("GenerateDataKey", `{"KeyId":"`+keyID("k1").String()+`","KeySpec":"AES_256"}`)
	c, err := w.dial()
	w.must(err)
	defer c.Close()
	w.must(c.SetDeadline(time.Now().Add(30 * time.Second))) // half of the idle timeout
	br := bufio.NewReader(c)
	for range 3 {
		if _, err := c.Write(raw); err != nil {
			t.Fatal(err)
		}
		if r, err := readReply(br); err != nil || r.status != 200 {
			t.Fatal(r.status, err)
		}
	}
	began := time.Now()
	if _, err := c.Write(raw[:len(raw)-5]); err != nil {
		t.Fatal(err)
	}
	if r, err := readReply(br); err != nil || r.exception() != "RequestTimeoutException" {
		t.Errorf("%d %s, %v", r.status, r.body, err)
	}
	if _, err := io.ReadAll(br); err != nil {
		t.Error("the connection was not closed:", err)
	}
	if took := time.Since(began); took < timeout*7/8 {
		t.Errorf("cut off after %v", took)
	}
}
