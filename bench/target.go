package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/ratelimit"
)

// Names of targets, as they stand in the tables.
const (
	echoName     = "echo"
	softName     = "soft token"
	hsmName      = "SoftHSM"
	baselineName = "one operation per request"
)

const callsMax = 128 // of our own, at a time: keys of a table are made in parallel

// target is a server under measurement, a child process.
type target struct {
	name   string
	cmd    *exec.Cmd
	url    string            // http://127.0.0.1:port, or https
	key    *sigv4.AccessKey  // nil: requests are not signed
	keyID  string            // the KMS key that prepare made
	bodies map[string]string // request bodies by operation
	stats  string            // path of the stats socket; "" has none
	client *fasthttp.HostClient
}

const (
	benchRegion   = "us-east-1"
	benchAccount  = "111122223333"
	benchID       = "AKIAKEYPLANEBENCH000"
	benchSecret   = "keyplane-bench-secret-not-a-secret-0000000"
	benchSessions = 2 // PKCS#11 sessions of the baseline: as many as keyplane has on a software token; a table may set both
)

var addrLine = regexp.MustCompile(`at (https?)://(127\.0\.0\.1:\d+)`)

func benchAccessKey() (*sigv4.AccessKey, error) {
	account, _ := keyid.ParseAccount([]byte(benchAccount))
	return sigv4.NewAccessKey(benchID, []byte(benchSecret), sigv4.Principal{Account: account})
}

// start runs a child and waits for the line that says where it listens.
func start(name string, cmd *exec.Cmd) (*target, error) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	t := &target{name: name, cmd: cmd, bodies: map[string]string{}}
	found := make(chan [2]string, 1)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if m := addrLine.FindStringSubmatch(lines.Text()); m != nil {
				select {
				case found <- [2]string{m[1], m[2]}:
				default:
				}
			}
		}
		close(found)
	}()
	select {
	case at, ok := <-found:
		if !ok {
			_ = cmd.Wait()
			return nil, fmt.Errorf("%s ended before it served: %s", name, complaints.String())
		}
		t.url = at[0] + "://" + at[1]
		t.client = &fasthttp.HostClient{Addr: at[1], MaxConns: callsMax, ReadTimeout: 30 * time.Second, WriteTimeout: 30 * time.Second, NoDefaultUserAgentHeader: true}
		if at[0] == "https" {
			t.client.IsTLS, t.client.TLSConfig = true, &tls.Config{InsecureSkipVerify: true} // our own child, and a certificate of this run
		}
		return t, nil
	case <-time.After(60 * time.Second):
		t.stop()
		return nil, fmt.Errorf("%s did not serve within a minute", name)
	}
}

func (t *target) stop() {
	_ = t.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = t.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(15 * time.Second):
		_ = t.cmd.Process.Kill()
		<-done
	}
}

// startEcho runs the floor for one operation: it answers request bodies as long as request with as many bytes as response has.
func startEcho(self, op, request string, response []byte, extra ...string) (*target, error) {
	t, err := start(echoName, exec.Command(self, append([]string{"echo", "-size", fmt.Sprint(len(response))}, extra...)...))
	if err == nil {
		t.bodies[op] = strings.Repeat("a", len(request))
	}
	return t, err
}

// startKeyplane runs keyplane serve on a fresh data directory, with the soft token or a PKCS#11 URI. Requests are charged to a bucket that no
// machine empties; AWS's rate some would.
func startKeyplane(name, binary, dir, uri string, extra ...string) (*target, error) {
	cmd, stats := keyplaneCommand(binary, dir, uri, extra...)
	t, err := serve(name, cmd)
	if err != nil {
		return nil, err
	}
	t.stats = stats
	if err := t.setQuota(benchAccount, "Symmetric", ratelimit.RateMax); err != nil {
		t.stop()
		return nil, err
	}
	return t, nil
}

// keyplaneCommand is keyplane serve, and the path of its stats socket.
func keyplaneCommand(binary, dir, uri string, extra ...string) (cmd *exec.Cmd, stats string) {
	stats = dir + ".stats"
	args := append([]string{"serve", "--listen", "127.0.0.1:0", "--data-dir", dir, "--region", benchRegion, "--account", benchAccount, "--stats-socket", stats}, extra...)
	if !slices.Contains(extra, "--audit-durability") {
		args = append(args, "--audit-durability", "write") // the table audit shows what a sync of the disk adds
	}
	if uri != "" {
		args = append(args, "--hsm", uri)
	}
	cmd = exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "KEYPLANE_ADMIN_ACCESS_KEY_ID="+benchID, "KEYPLANE_ADMIN_SECRET_ACCESS_KEY="+benchSecret)
	if uri != "" {
		cmd.Env = append(cmd.Env, "SOFTHSM2_CONF="+filepath.Join(filepath.Dir(dir), "softhsm", "softhsm2.conf"))
	}
	return cmd, stats
}

// startBaseline runs the one-operation-per-request server on a token. dir is the one beside which newSoftHSM's "softhsm" lies.
func startBaseline(self, dir, uri string, sessions int) (*target, error) {
	cmd := exec.Command(self, "baseline", "-hsm", uri, "-sessions", strconv.Itoa(sessions))
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+filepath.Join(dir, "softhsm", "softhsm2.conf"))
	return serve(baselineName, cmd)
}

// serve starts a keyplane, or what answers like one, and makes it ready to be measured.
func serve(name string, cmd *exec.Cmd) (*target, error) {
	t, err := start(name, cmd)
	if err != nil {
		return nil, err
	}
	if t.key, err = benchAccessKey(); err == nil {
		err = t.prepare()
	}
	if err != nil {
		t.stop()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return t, nil
}

// prepare makes a key and the request bodies of the operations.
func (t *target) prepare() error {
	var made struct{ KeyMetadata struct{ KeyId string } }
	if err := t.call("CreateKey", `{}`, &made); err != nil {
		return err
	}
	t.keyID = made.KeyMetadata.KeyId
	return t.payload(32)
}

// payload sets the request bodies: data keys, random bytes and plaintexts of n bytes. An operation that takes fewer has no body.
func (t *target) payload(n int) error {
	clear(t.bodies)
	plaintext := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{'A'}, n))
	var made struct{ CiphertextBlob string }
	encrypt := `{"KeyId":"` + t.keyID + `","Plaintext":"` + plaintext + `"}`
	if err := t.call("Encrypt", encrypt, &made); err != nil {
		return err
	}
	t.bodies["Encrypt"] = encrypt
	t.bodies["Decrypt"] = `{"CiphertextBlob":"` + made.CiphertextBlob + `"}`
	t.bodies["ReEncrypt"] = `{"CiphertextBlob":"` + made.CiphertextBlob + `","DestinationKeyId":"` + t.keyID + `"}`
	if n > kmsapi.RandomBytesMax {
		return nil
	}
	t.bodies["GenerateDataKey"] = dataKeyBody(t.keyID, n)
	t.bodies["GenerateDataKeyWithoutPlaintext"] = t.bodies["GenerateDataKey"]
	t.bodies["GenerateRandom"] = fmt.Sprintf(`{"NumberOfBytes":%d}`, n)
	return nil
}

func dataKeyBody(keyID string, n int) string {
	if n == 32 {
		return `{"KeyId":"` + keyID + `","KeySpec":"AES_256"}`
	}
	return fmt.Sprintf(`{"KeyId":%q,"NumberOfBytes":%d}`, keyID, n)
}

// headers signs a request to KMS and returns its headers in the order they are to be sent. The echo server gets them unsigned but as long.
func (t *target) headers(op, body string) ([][2]string, error) {
	return t.headersFor(kmsapi.SigningName, op, body)
}

// headersFor is headers for a service; IAM and STS take forms.
func (t *target) headersFor(service, op, body string) ([][2]string, error) {
	_, host, _ := strings.Cut(t.url, "://")
	date := string(sigv4.AppendDate(nil, time.Now()))
	h := [][2]string{
		{"content-type", kmsapi.ContentType}, {"host", host}, {"x-amz-date", date}, {"x-amz-target", kmsapi.TargetPrefix + op},
	}
	switch service {
	case kmsapi.SigningName:
	case quota.SigningName:
		h[3][1] = op
	default:
		h = [][2]string{{"content-type", "application/x-www-form-urlencoded"}, {"host", host}, {"x-amz-date", date}}
	}
	authorization := strings.Repeat("A", 232)
	if t.key != nil {
		r := sigv4.Request{Method: []byte("POST"), Path: []byte("/"), Body: []byte(body)}
		for _, kv := range h {
			r.Headers = append(r.Headers, sigv4.Header{Name: []byte(kv[0]), Value: []byte(kv[1])})
		}
		var scratch sigv4.Scratch
		b, err := sigv4.AppendAuthorization(nil, t.key, benchRegion, service, &r, &scratch)
		if err != nil {
			return nil, err
		}
		authorization = string(b)
	}
	return append(h, [2]string{"authorization", authorization}), nil
}

func (t *target) call(op, body string, out any) error {
	b, err := t.post(op, body)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, out)
}

func (t *target) post(op, body string) ([]byte, error) { return t.send(kmsapi.SigningName, op, body) }

func (t *target) send(service, op, body string) ([]byte, error) {
	headers, err := t.headersFor(service, op, body)
	if err != nil {
		return nil, err
	}
	req, resp := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(resp)
	req.SetRequestURI(t.url + "/")
	req.Header.SetMethod("POST")
	for _, kv := range headers {
		req.Header.Set(kv[0], kv[1])
	}
	req.SetBodyString(body)
	if err := t.client.Do(req, resp); err != nil {
		return nil, err
	}
	if resp.StatusCode() != fasthttp.StatusOK {
		return nil, &refusal{op, resp.StatusCode(), string(resp.Body())}
	}
	return bytes.Clone(resp.Body()), nil
}

// refusal is a reply that is not 200.
type refusal struct {
	op     string
	status int
	body   string
}

func (r *refusal) Error() string { return fmt.Sprintf("%s: %d %s", r.op, r.status, r.body) }

// transient reports whether an SDK would send the request again.
func (r *refusal) transient() bool {
	return r.status >= 500 || strings.Contains(r.body, "ThrottlingException")
}

// sample is one request and its response.
func (t *target) sample(op string) (request string, response []byte, err error) {
	request, ok := t.bodies[op]
	if !ok {
		return "", nil, fmt.Errorf("this benchmark has no %s", op)
	}
	response, err = t.post(op, request)
	return request, response, err
}

// newSoftHSM makes a SoftHSM token with keyplane's roots in dir and returns its URI. SOFTHSM2_CONF in this process's environment names it.
func newSoftHSM(binary, dir string) (string, error) {
	const module = "/usr/lib/softhsm/libsofthsm2.so"
	tokens := filepath.Join(dir, "tokens")
	if err := os.MkdirAll(tokens, 0o700); err != nil {
		return "", err
	}
	conf := filepath.Join(dir, "softhsm2.conf")
	pin := filepath.Join(dir, "pin")
	err := errors.Join(
		os.WriteFile(conf, []byte("directories.tokendir = "+tokens+"\nlog.level = ERROR\n"), 0o600),
		os.WriteFile(pin, []byte("1234"), 0o600),
	)
	if err != nil {
		return "", err
	}
	env := append(os.Environ(), "SOFTHSM2_CONF="+conf)
	uri := "pkcs11:token=bench?module-path=" + module + "&pin-source=file:" + pin
	for _, args := range [][]string{
		{"softhsm2-util", "--init-token", "--free", "--label", "bench", "--so-pin", "5678", "--pin", "1234"},
		{binary, "hsm", "init", "--hsm", uri},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = env
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w: %s", args[0], err, out)
		}
	}
	return uri, nil
}
