package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// target is a server under measurement, a child process.
type target struct {
	name   string
	cmd    *exec.Cmd
	url    string // http://127.0.0.1:port
	key    *sigv4.AccessKey
	bodies map[string]string // request bodies by operation
}

const (
	benchRegion = "us-east-1"
	benchID     = "AKIAKEYPLANEBENCH000"
	benchSecret = "keyplane-bench-secret-not-a-secret-0000000"
)

var addrLine = regexp.MustCompile(`at (http://127\.0\.0\.1:\d+)`)

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
	found := make(chan string, 1)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if m := addrLine.FindStringSubmatch(lines.Text()); m != nil {
				select {
				case found <- m[1]:
				default:
				}
			}
		}
		close(found)
	}()
	select {
	case url, ok := <-found:
		if !ok {
			_ = cmd.Wait()
			return nil, fmt.Errorf("%s ended before it served: %s", name, complaints.String())
		}
		t.url = url
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

func startEcho(self string, size int) (*target, error) {
	return start("echo", exec.Command(self, "echo", "-size", fmt.Sprint(size)))
}

// startKeyplane runs keyplane serve on a fresh data directory, with the soft token or a PKCS#11 URI.
func startKeyplane(name, binary, dir, uri string, extra ...string) (*target, error) {
	args := append([]string{"serve", "--listen", "127.0.0.1:0", "--data-dir", dir, "--region", benchRegion}, extra...)
	if uri != "" {
		args = append(args, "--hsm", uri)
	}
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "KEYPLANE_ADMIN_ACCESS_KEY_ID="+benchID, "KEYPLANE_ADMIN_SECRET_ACCESS_KEY="+benchSecret)
	if uri != "" {
		cmd.Env = append(cmd.Env, "SOFTHSM2_CONF="+filepath.Join(filepath.Dir(dir), "softhsm", "softhsm2.conf"))
	}
	t, err := start(name, cmd)
	if err != nil {
		return nil, err
	}
	account, _ := keyid.ParseAccount([]byte("111122223333"))
	if t.key, err = sigv4.NewAccessKey(benchID, []byte(benchSecret), sigv4.Principal{Account: account}); err == nil {
		err = t.prepare()
	}
	if err != nil {
		t.stop()
		return nil, err
	}
	return t, nil
}

// prepare makes a key and the request bodies of every operation.
func (t *target) prepare() error {
	var made struct{ KeyMetadata struct{ KeyId string } }
	if err := t.call("CreateKey", `{}`, &made); err != nil {
		return err
	}
	id := made.KeyMetadata.KeyId
	var blob struct{ CiphertextBlob string }
	if err := t.call("GenerateDataKey", `{"KeyId":"`+id+`","KeySpec":"AES_256"}`, &blob); err != nil {
		return err
	}
	t.bodies["GenerateDataKey"] = `{"KeyId":"` + id + `","KeySpec":"AES_256"}`
	t.bodies["GenerateDataKeyWithoutPlaintext"] = t.bodies["GenerateDataKey"]
	t.bodies["Encrypt"] = `{"KeyId":"` + id + `","Plaintext":"` + strings.Repeat("QUFB", 11) + `"}`
	t.bodies["Decrypt"] = `{"CiphertextBlob":"` + blob.CiphertextBlob + `"}`
	t.bodies["ReEncrypt"] = `{"CiphertextBlob":"` + blob.CiphertextBlob + `","DestinationKeyId":"` + id + `"}`
	t.bodies["GenerateRandom"] = `{"NumberOfBytes":32}`
	return nil
}

// headers signs a request and returns its headers in the order they are to be sent. The echo server gets them unsigned but as long.
func (t *target) headers(op, body string) ([][2]string, error) {
	host := strings.TrimPrefix(t.url, "http://")
	date := string(sigv4.AppendDate(nil, time.Now()))
	h := [][2]string{
		{"content-type", kmsapi.ContentType}, {"host", host}, {"x-amz-date", date}, {"x-amz-target", kmsapi.TargetPrefix + op},
	}
	authorization := strings.Repeat("A", 232)
	if t.key != nil {
		r := sigv4.Request{Method: []byte("POST"), Path: []byte("/"), Body: []byte(body)}
		for _, kv := range h {
			r.Headers = append(r.Headers, sigv4.Header{Name: []byte(kv[0]), Value: []byte(kv[1])})
		}
		var scratch sigv4.Scratch
		b, err := sigv4.AppendAuthorization(nil, t.key, benchRegion, kmsapi.SigningName, &r, &scratch)
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

func (t *target) post(op, body string) ([]byte, error) {
	headers, err := t.headers(op, body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest("POST", t.url+"/", strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	for _, kv := range headers {
		req.Header.Set(kv[0], kv[1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %d %s", op, resp.StatusCode, b)
	}
	return b, nil
}

// sample is one request and its response.
func (t *target) sample(op string) (request string, response []byte, err error) {
	request, ok := t.bodies[op]
	if !ok {
		return "", nil, errors.New("no such operation in this benchmark")
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
