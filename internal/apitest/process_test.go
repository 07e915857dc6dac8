package apitest

import (
	"bufio"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// writePrivate writes a file that only its owner can read into a directory that it makes.
func writePrivate(t *testing.T, dir, name, text string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestSecondServe: a data directory has one process. The second one ends, where waiting for the first one's lock would never do.
func TestSecondServe(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	first := Command(t, dir)
	second := Launch(t, dir)
	if code := second.Wait(t); code != 1 {
		t.Errorf("the second process's exit status is %d", code)
	}
	said := second.Output()
	if !strings.Contains(said, dir) || !strings.Contains(said, "another") || strings.Contains(said, "goroutine ") {
		t.Errorf("the second process said: %s", said)
	}
	if r := first.Do(t, "CreateKey", "{}"); r.Status != 200 {
		t.Errorf("the first process: %d %s", r.Status, r.Body)
	}
	if code := stop(t, first); code != 0 {
		t.Errorf("the first process's exit status is %d", code)
	}
	Command(t, dir) // now it is free
}

// TestTerminate: SIGTERM lets the requests in flight finish, takes no others, and ends with status 0.
func TestTerminate(t *testing.T) {
	t.Parallel()
	p := Command(t, filepath.Join(t.TempDir(), "data"))
	var key struct{ KeyMetadata struct{ KeyId string } }
	p.Do(t, "CreateKey", "{}").Members(t, &key)
	body := `{"KeyId":"` + key.KeyMetadata.KeyId + `","KeySpec":"AES_256"}`

	// Requests of both planes of which a part has arrived: in flight in the plainest sense.
	type half struct {
		conn net.Conn
		rest []byte
	}
	var halves []half
	for _, op := range []string{"GenerateDataKey", "DescribeKey", "TagResource"} {
		in := body
		if op == "TagResource" {
			in = `{"KeyId":"` + key.KeyMetadata.KeyId + `","Tags":[{"TagKey":"last","TagValue":"words"}]}`
		}
		raw := must(p.Request(op, in).Bytes())(t)
		for _, at := range []int{20, len(raw) - len(in), len(raw) - 1} {
			h := half{conn: p.Dial(t), rest: raw[at:]}
			if _, err := h.conn.Write(raw[:at]); err != nil {
				t.Fatal(err)
			}
			halves = append(halves, h)
		}
	}
	// And others that come as fast as they can, each on a connection that stays. These may find their connection closed between two requests.
	var load sync.WaitGroup
	for range 4 {
		client := p.Client(t)
		load.Go(func() {
			for {
				r, err := client.Try("GenerateDataKey", body)
				if err != nil || r == nil {
					return
				}
				if r.Status != 200 {
					t.Errorf("%d %s", r.Status, r.Body)
					return
				}
			}
		})
	}
	for range 50 { // while these come and go the server reads what the others sent
		if !p.ready(t) {
			t.Fatal("not ready")
		}
	}

	p.Terminate(t)
	for deadline := time.Now().Add(exchangeTimeout); ; { // until no connection is taken
		c, err := net.Dial("tcp", p.Addr)
		if err != nil {
			break
		}
		c.Close()
		if time.Now().After(deadline) {
			t.Fatal("connections are taken after SIGTERM")
		}
	}
	for i, h := range halves {
		if _, err := h.conn.Write(h.rest); err != nil {
			t.Errorf("request %d: %v", i, err)
			continue
		}
		r, err := readReply(bufio.NewReader(h.conn))
		if err != nil || r == nil {
			t.Errorf("request %d was in flight and not answered: %v", i, err)
			continue
		}
		r.WellFormed(t)
		if r.Status != 200 {
			t.Errorf("request %d: %d %s", i, r.Status, r.Body)
		}
	}
	load.Wait()
	if code := p.Wait(t); code != 0 {
		t.Errorf("the exit status is %d", code)
	}
}

// TestTerminateWhileStarting: a process that is told to stop before it serves has not failed.
func TestTerminateWhileStarting(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	p := Launch(t, dir)
	for deadline := time.Now().Add(processStartMax); ; time.Sleep(time.Millisecond) { // until the store is being opened
		if _, err := os.Stat(filepath.Join(dir, "LOCK")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not start")
		}
	}
	if code := stop(t, p); code != 0 {
		t.Errorf("the exit status is %d:\n%s", code, p.Output())
	}
	Command(t, dir) // and nothing is left that stops the next one
}

// ready asks /readyz.
func (p *Process) ready(t *testing.T) bool {
	t.Helper()
	r := p.Exchange(t, []byte("GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"))
	return r != nil && r.Status == 200
}
