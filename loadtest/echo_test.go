package loadtest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/valyala/fasthttp"
)

// echoVariable makes the test binary an echo server instead of running tests, so that a benchmark's server is a process of its own.
const echoVariable = "KEYPLANE_LOADTEST_ECHO"

// echoPayload is the number of random bytes that the echo server claims to return: its body is then 306 bytes, near that of GenerateDataKey.
const echoPayload = 219

func TestMain(m *testing.M) {
	if os.Getenv(echoVariable) != "" {
		echoServe()
	}
	os.Exit(m.Run())
}

// echoServe is fasthttp as plain as it comes: a fixed answer, but for a counter inside Plaintext, because the load test checks that random
// results do not repeat. It ends with its standard input.
func echoServe() {
	body := []byte(`{"Plaintext":"` + base64Of(echoPayload) + `"}`)
	var served atomic.Uint64
	server := &fasthttp.Server{Logger: quiet{}, Handler: func(ctx *fasthttp.RequestCtx) {
		ctx.SetContentType("application/x-amz-json-1.1")
		ctx.Response.SetBody(body)
		at := ctx.Response.Body()[20:]
		for n, i := served.Add(1), 0; i < 11; n, i = n>>6, i+1 {
			at[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[n&63]
		}
	}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("http://" + listener.Addr().String())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Fprintln(os.Stderr, server.Serve(listener))
	os.Exit(1)
}

// startEcho runs echoServe in a process of its own until the benchmark ends, and returns its URL.
func startEcho(t testing.TB) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), echoVariable+"=1")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}
