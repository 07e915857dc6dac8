package apitest

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keyplane/keyplane/internal/node"
	"github.com/keyplane/keyplane/internal/xks"
	"github.com/keyplane/keyplane/internal/xksclient"
)

// xksClient is the client that our KMS has of external key stores, for a proxy.
func xksClient(t *testing.T, p *XKSProxy, change func(c *xksclient.Config)) *xksclient.Client {
	t.Helper()
	pem, err := os.ReadFile(p.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	cfg := xksclient.Config{Endpoint: XKSEndpoint, Path: XKSPath, Region: Region, AccessKeyID: XKSAccessKeyID, Secret: []byte(XKSSecret),
		RootCAs: x509.NewCertPool(), Dial: map[string]string{XKSHost: p.Addr}}
	if !cfg.RootCAs.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate")
	}
	if change != nil {
		change(&cfg)
	}
	c, err := xksclient.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// TestXKSProxyClient: the two sides of the API as this repository has them, over HTTPS: a KMS key of one server is an external key, through its states and its
// rotation.
func TestXKSProxyClient(t *testing.T) {
	p := StartXKSProxy(t)
	arn := p.Offer(t, "external-key.1")
	p.Offer(t, "bobs", func(k *node.XKSKeyConfig) { k.Principals = []string{"arn:aws:iam::*:user/Bob"} })
	client, admin, ctx := xksClient(t, p, nil), p.KMS(t), context.Background()
	m := &xks.Metadata{Principal: "arn:aws:iam::123456789012:user/Alice", KeyARN: "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
		Operation: "GenerateDataKey", RequestID: "4112f4d6-db54-4af4-ae30-c55a22a8dfae", ViaService: "ebs"}
	failure := func(err error) xks.Failure {
		t.Helper()
		var e *xks.Error
		if !errors.As(err, &e) {
			return xks.OK
		}
		return e.Failure
	}
	// The first call may make the client's connection and the proxy's view of the key, within a quarter of a second on a busy machine: what the API's client
	// would try again is tried again.
	retry := func(f func() error) error {
		for n := 0; ; n++ {
			err := f()
			if got := failure(err); n == 20 || got != xks.TimedOut && got != xks.DependencyTimeout && got != xks.Throttling && got != xks.NotConnected {
				return err
			}
		}
	}
	if err := retry(func() error { _, err := client.Health(ctx, "CreateCustomKeyStore", "1"); return err }); err != nil {
		t.Fatal(err)
	}
	if err := retry(func() error { return client.KeyMetadata(ctx, "external-key.1", m) }); err != nil {
		t.Fatal(err)
	}
	plaintext, aad := bytes.Repeat([]byte("p"), xks.PlaintextMax), bytes.Repeat([]byte("a"), xks.AADMax)
	seal := func() (sealed xks.Sealed) {
		t.Helper()
		if err := retry(func() (err error) { sealed, err = client.Encrypt(ctx, "external-key.1", m, plaintext, aad); return err }); err != nil {
			t.Fatal(err)
		}
		return sealed
	}
	open := func(key string, s xks.Sealed, aad []byte) (got []byte, err error) {
		err = retry(func() (err error) { got, err = client.Decrypt(ctx, key, m, &s, aad); return err })
		return got, err
	}
	before := seal()
	if _, err := admin.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &arn}); err != nil {
		t.Fatal(err)
	}
	if err := p.node.Work(ctx); err != nil {
		t.Fatal(err)
	}
	after := seal()
	if bytes.Equal(before.Metadata[:5], after.Metadata[:5]) {
		t.Error("both ciphertexts are of one key version")
	}
	for _, s := range []xks.Sealed{before, after} {
		if got, err := open("external-key.1", s, aad); err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
	for name, c := range map[string]struct {
		key  string
		aad  []byte
		want xks.Failure
	}{
		"other AAD":     {"external-key.1", []byte("b"), xks.InvalidCiphertext},
		"no AAD":        {"external-key.1", nil, xks.InvalidCiphertext},
		"unknown key":   {"nobodys", aad, xks.KeyNotFound},
		"somebody else": {"bobs", aad, xks.AccessDenied},
	} {
		if _, err := open(c.key, before, c.aad); failure(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	// An external ciphertext in the form of the KMS API's is none of the API's, whatever is put around it.
	blob := append(append(append([]byte{1, 1}, make([]byte, 67)...), before.Ciphertext[:4096]...), before.Tag...)
	if _, err := admin.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, KeyId: &arn}); err == nil {
		t.Error("the KMS API decrypts what an external key has encrypted")
	}

	if _, err := admin.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &arn}); err != nil {
		t.Fatal(err)
	}
	if _, err := open("external-key.1", before, aad); failure(err) != xks.InvalidState {
		t.Errorf("a disabled key: %v", err)
	}
	if err := retry(func() error { return client.KeyMetadata(ctx, "external-key.1", m) }); failure(err) != xks.UnfitKey {
		t.Errorf("metadata of a disabled key: %v", err)
	}
	if _, err := admin.EnableKey(ctx, &kms.EnableKeyInput{KeyId: &arn}); err != nil {
		t.Fatal(err)
	}
	if got, err := open("external-key.1", before, aad); err != nil || !bytes.Equal(got, plaintext) {
		t.Errorf("enabled again: %v", err)
	}
	if _, err := admin.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &arn, PendingWindowInDays: aws.Int32(7)}); err != nil {
		t.Fatal(err)
	}
	if _, err := open("external-key.1", before, aad); failure(err) != xks.InvalidState {
		t.Errorf("a key that waits for its deletion: %v", err)
	}

	stranger := xksClient(t, p, func(c *xksclient.Config) { c.Secret = []byte("x" + XKSSecret) })
	if _, err := stranger.Health(ctx, "CreateCustomKeyStore", "1"); failure(err) != xks.AuthenticationFailed {
		t.Errorf("a stranger: %v", err)
	}
	lost := xksClient(t, p, func(c *xksclient.Config) { c.Path = "/team-b" + xks.BasePath })
	if _, err := lost.Health(ctx, "CreateCustomKeyStore", "1"); failure(err) != xks.InvalidURIPath {
		t.Errorf("another path: %v", err)
	}
	// The KMS endpoint is another one.
	if resp, err := http.Post("http://"+p.Server.Addr+XKSPath+"/health", "application/json", nil); err != nil || resp.StatusCode == http.StatusOK {
		t.Errorf("the KMS endpoint serves the proxy's paths: %v", err)
	} else {
		resp.Body.Close()
	}
}

// TestXKSProxyHangup: a SIGHUP that comes while the proxy starts does not end it, and is answered when it has started.
func TestXKSProxyHangup(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile := xksCertificate(t, dir)
	ca, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	// The roots of clients' certificates come out of a pipe: until they are written, the process is starting.
	pipe := filepath.Join(dir, "ca.pem")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	secretFile := writePrivate(t, dir, "secret", XKSSecret+"\n")
	p := Launch(t, filepath.Join(dir, "data"), "xks-proxy", "--config", writePrivate(t, dir, "keyplane.yaml", patient+fmt.Sprintf(
		"xks_proxy: {listen: '127.0.0.1:0', tls_cert: %q, tls_key: %q, client_ca: %q, prefixes: [{path: /team-a, region: %s, credentials: [{access_key_id: %s, secret_file: %q}]}]}\n",
		certFile, keyFile, pipe, Region, XKSAccessKeyID, secretFile)))
	var w *os.File
	for deadline := time.Now().Add(processStartMax); w == nil; time.Sleep(10 * time.Millisecond) { // nobody can write before it reads
		if w, err = os.OpenFile(pipe, os.O_WRONLY|syscall.O_NONBLOCK, 0); err != nil && time.Now().After(deadline) {
			t.Fatalf("%v: %s", err, p.Output())
		}
	}
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(ca); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	p.serve(t)
	for deadline := time.Now().Add(time.Minute); strings.Count(p.Output(), "external key stores are offered") < 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the configuration is not read again: %s", p.Output())
		}
	}
	if code := stop(t, p); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// TestXKSProxyProcess: `keyplane xks-proxy` as an operator runs it: a credential of its making, the KMS API on loopback only, and SIGHUP for a key that is made later.
func TestXKSProxyProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile := xksCertificate(t, dir)
	secretFile := filepath.Join(dir, "team-a.secret")
	out, err := exec.Command(Binary(t), "xks-proxy", "credential", "--path", "/team-a", "--secret-file", secretFile).Output()
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(string(out))
	secret, err := os.ReadFile(secretFile)
	if err != nil {
		t.Fatal(err)
	}
	config := func(keys string) string {
		return writePrivate(t, dir, "keyplane.yaml", patient+fmt.Sprintf("xks_proxy: {listen: '127.0.0.1:0', tls_cert: %q, tls_key: %q, prefixes: [{path: /team-a, region: %s, credentials: [{access_key_id: %s, secret_file: %q}], keys: [%s]}]}\n",
			certFile, keyFile, Region, id, secretFile, keys))
	}
	p := Command(t, filepath.Join(dir, "data"), "xks-proxy", "--config", config(""))
	var addr []string
	for deadline := time.Now().Add(time.Minute); addr == nil; time.Sleep(10 * time.Millisecond) { // the line comes after the one that Command waits for
		if addr = regexp.MustCompile(`XKS proxy .* at https://(\S+)`).FindStringSubmatch(p.Output()); addr == nil && time.Now().After(deadline) {
			t.Fatalf("no address: %s", p.Output())
		}
	}
	client := xksClient(t, &XKSProxy{CAFile: certFile, Addr: addr[1]}, func(c *xksclient.Config) {
		c.AccessKeyID, c.Secret = id, bytes.TrimSpace(secret)
	})
	m := &xks.Metadata{Principal: "arn:aws:iam::123456789012:user/Alice", KeyARN: "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
		Operation: "Encrypt", RequestID: "1"}
	ctx := context.Background()
	encrypt := func() (err error) { _, err = client.Encrypt(ctx, "orders", m, []byte("hello"), nil); return err }
	var key struct{ KeyMetadata struct{ Arn string } }
	p.Do(t, "CreateKey", "{}").Members(t, &key)
	config("{id: orders, key: '" + key.KeyMetadata.Arn + "'}")
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // until the configuration is read again
		err := encrypt()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	config("{id: orders}")
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); !strings.Contains(p.Output(), "is not taken"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("nothing is said of a wrong configuration: %s", p.Output())
		}
	}
	if strings.Contains(p.Output(), string(bytes.TrimSpace(secret))) {
		t.Error("the secret is printed")
	}
	if code := stop(t, p); code != 0 {
		t.Errorf("exit status %d", code)
	}
	refused := Launch(t, filepath.Join(dir, "other"), "xks-proxy", "--config", filepath.Join(dir, "keyplane.yaml"), "--listen", "0.0.0.0:0")
	if code := refused.Wait(t); code != 2 {
		t.Errorf("the KMS API for everybody: exit status %d", code)
	}
}
