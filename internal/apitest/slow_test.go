package apitest

import (
	"bufio"
	"bytes"
	"net"
	"sync"
	"testing"
	"time"
)

// testSlowSenders: who does not finish a request in time is cut off, whatever it sends in between; who goes away early leaves nothing.
func testSlowSenders(t *testing.T, v *victim) {
	good := v.bytesOf(t, "Decrypt", decryptBody(v.blob))
	split := bytes.Index(good, []byte("\r\n\r\n")) + 4
	header, body := good[:split], good[split:]
	for name, s := range map[string]struct{ first, drops []byte }{
		"header":               {nil, header},
		"header after a while": {header[:split-10], nil},
		"body":                 {header, body},
		"no body":              {header, nil},
		"one byte less":        {good[:len(good)-1], nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := v.Dial(t)
			if _, err := c.Write(s.first); err != nil {
				t.Fatal(err)
			}
			stop := make(chan struct{})
			var sender sync.WaitGroup
			finished := false
			sender.Go(func() { // a byte at a time, each long before any single read would time out
				for i := 0; i < len(s.drops)-1; i++ {
					select {
					case <-stop:
						return
					case <-time.After(hostileReadTimeout / 20):
					}
					if _, err := c.Write(s.drops[i : i+1]); err != nil {
						return
					}
				}
				finished = len(s.drops) > 0
			})
			br := bufio.NewReader(c)
			r, err := readReply(br)
			if err != nil {
				t.Fatal(err)
			}
			closedOr(t, name, r, "RequestTimeoutException", badRequest)
			isClosed(t, c)
			close(stop)
			sender.Wait()
			// All bytes take many times the read timeout, however busy the machine is.
			if finished {
				t.Errorf("not cut off before all %d bytes were sent, read_timeout is %v", len(s.drops), hostileReadTimeout)
			}
		})
	}
	t.Run("early ends", func(t *testing.T) {
		t.Parallel()
		for n := 0; n <= len(good); n += 7 {
			c := v.Dial(t)
			if _, err := c.Write(good[:n]); err != nil {
				t.Fatal(err)
			}
			if n%2 == 0 { // a reset instead of a proper end
				_ = c.(*net.TCPConn).SetLinger(0)
			}
			c.Close()
		}
	})
	t.Run("half closed", func(t *testing.T) {
		t.Parallel()
		c := v.Dial(t).(*net.TCPConn)
		if _, err := c.Write(good); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		r := must(readReply(bufio.NewReader(c)))(t)
		if r == nil || r.Status != 200 {
			t.Errorf("a client that sends no more got %+v", r)
		}
	})
}
