package node

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/replication"
)

// listening is a listener for envelopes that answers with a function, and its URL.
func listening(t *testing.T, answer func(context.Context, string, []byte) ([]byte, error), header, body time.Duration) (l *replicationListener, url string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l = newReplicationListener(answer, header, body)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = l.server.Serve(ln)
	}()
	t.Cleanup(func() { l.server.Close(); <-ended })
	return l, "http://" + ln.Addr().String() + replicationPath
}

// TestReplicationLimits: a message is at most an envelope, and whoever is slow with it, or says more before it than a peer has to, is sent away.
func TestReplicationLimits(t *testing.T) {
	const header, body = 300 * time.Millisecond, 600 * time.Millisecond
	largest := 0
	_, url := listening(t, func(_ context.Context, _ string, b []byte) ([]byte, error) {
		largest = max(largest, len(b))
		return []byte("answer"), nil
	}, header, body)
	client := new(replicationTLS).client()
	defer client.CloseIdleConnections()
	send := post(client, url)
	if got, err := send(t.Context(), make([]byte, replication.EnvelopeMax)); err != nil || string(got) != "answer" {
		t.Errorf("the largest: %q %v", got, err)
	}
	if _, err := send(t.Context(), make([]byte, replication.EnvelopeMax+1)); err == nil {
		t.Error("a larger one was answered")
	}
	if largest != replication.EnvelopeMax {
		t.Errorf("%d bytes came in", largest)
	}
	address := strings.TrimSuffix(strings.TrimPrefix(url, "http://"), replicationPath)
	// said is what a connection gets that sends a text and nothing more, until it is closed.
	said := func(text string) string {
		t.Helper()
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, text)
		b, err := io.ReadAll(bufio.NewReader(c))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%.40q is waited for", text)
		}
		line, _, _ := strings.Cut(string(b), "\r")
		return line
	}
	start := "POST " + replicationPath + " HTTP/1.1\r\nHost: x\r\n"
	for text, want := range map[string]string{
		"":    "",
		start: "",
		start + "X: " + strings.Repeat("x", 16<<10) + "\r\n\r\n":                       "HTTP/1.1 431",
		start + "Content-Length: 5\r\n\r\nabc":                                         "HTTP/1.1 400",
		"GET " + replicationPath + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n": "HTTP/1.1 405",
		"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n":                      "HTTP/1.1 404",
	} {
		if got := said(text); !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("%.60q: %q, want %q", text, got, want)
		}
	}
}

// TestReplicationCloses: what is being answered when the server ends has its answer; what takes too long is cancelled, and not left behind.
func TestReplicationCloses(t *testing.T) {
	begun, finish := make(chan struct{}), make(chan struct{})
	l, url := listening(t, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
		close(begun)
		select {
		case <-finish:
			return []byte("answer"), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}, time.Minute, time.Minute)
	client := new(replicationTLS).client()
	defer client.CloseIdleConnections()
	answers, closed := make(chan string, 1), make(chan error, 1)
	go func() {
		b, err := post(client, url)(context.Background(), []byte("x"))
		answers <- fmt.Sprint(string(b), err)
	}()
	<-begun
	go func() { closed <- l.close(time.Minute) }()
	select {
	case err := <-closed:
		t.Fatalf("closed over an answer: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(finish)
	if got := <-answers; got != "answer<nil>" {
		t.Errorf("the answer is %q", got)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if _, err := post(client, url)(t.Context(), []byte("x")); err == nil {
		t.Error("answered after the end")
	}

	handled := false // when the handler is at its end
	started := make(chan struct{})
	l, url = listening(t, func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
		close(started)
		<-ctx.Done()
		time.Sleep(50 * time.Millisecond) // the HSM's call, which nothing cuts short
		handled = true
		return nil, ctx.Err()
	}, time.Minute, time.Minute)
	go func() { _, _ = post(client, url)(context.Background(), []byte("x")) }()
	<-started
	if err := l.close(10 * time.Millisecond); err == nil {
		t.Error("no error of an answer that was cut short")
	}
	if !handled {
		t.Error("an answer was left behind")
	}
}

// TestReplicationTLS: peers are verified by the CA that is configured, no proxy of the environment is asked, and files that cannot be used are an error before anything is.
func TestReplicationTLS(t *testing.T) {
	certFile, keyFile, _ := newCertificate(t)
	cfg := testConfig(t)
	cfg.Replication = ReplicationConfig{Listen: "127.0.0.1:0", TLSCert: certFile, TLSKey: keyFile, CA: certFile}
	n, err := Start(t.Context(), cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	url := "https://" + n.ReplicationAddr() + replicationPath
	if client := n.replicationTLS.client(); client.Transport.(*http.Transport).Proxy != nil {
		t.Error("the client asks a proxy")
	}
	for _, c := range []struct {
		ca   string
		want string
	}{{certFile, "it answers with status 403"}, {"", "certificate"}} { // 403: it is no envelope
		files, err := (&ReplicationConfig{CA: c.ca}).readTLS(quiet)
		if err != nil {
			t.Fatal(err)
		}
		client := files.client()
		if _, err := post(client, url)(t.Context(), []byte("x")); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("with the CA %q: %v", c.ca, err)
		}
		client.CloseIdleConnections()
	}
	other, _, _ := newCertificate(t)
	files, err := (&ReplicationConfig{CA: other}).readTLS(quiet)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := post(files.client(), url)(t.Context(), []byte("x")); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("with another CA: %v", err)
	}

	broken := filepath.Join(t.TempDir(), "broken.pem")
	if err := os.WriteFile(broken, bytes.Repeat([]byte("x"), 100), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, r := range []ReplicationConfig{
		{TLSCert: broken, TLSKey: keyFile}, {TLSCert: certFile, TLSKey: broken}, {TLSCert: "/nowhere", TLSKey: keyFile}, {CA: broken}, {CA: "/nowhere"}, {CA: keyFile},
	} {
		cfg := testConfig(t)
		r.Listen = "127.0.0.1:0"
		cfg.Replication = r
		if n, err := Start(t.Context(), cfg, quiet); err == nil {
			n.Close()
			t.Errorf("started with %+v", r)
		}
		if _, err := os.Stat(filepath.Join(cfg.DataDir, "etcd")); err == nil {
			t.Errorf("%+v: the store was made", r)
		}
	}
}
