package loadtest

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
)

const (
	testAccessKey = "AKIDLOADTEST"
	testSecret    = "wJalrXUtnFEMIK7MDENGbPxRfiCYloadtest"
	testRegion    = "eu-central-1"
)

// fakeKMS is a small KMS that verifies signatures with the verifier the real server uses and really encrypts.
type fakeKMS struct {
	t        testing.TB
	url      string
	verifier *sigv4.Verifier
	key      *sigv4.AccessKey
	aead     cipher.AEAD

	// fault, if set, sees each data-plane request (n counts them from 1) and may answer it itself; it returns whether it did.
	// It is set before the run.
	fault func(ctx *fasthttp.RequestCtx, op string, n int64) bool

	calls    atomic.Int64 // data-plane requests that verified, set-up's Encrypt not among them
	unsigned atomic.Int64 // requests that did not verify

	mu            sync.Mutex         // guards all below
	onCreateAlias func(keyID string) // if set, called before an alias is created
	onCreateKey   func()             // if set, called before a key is created
	keys          map[string]*fakeKey
	aliases       map[string]string // name -> key ID
	tokens        map[string]int    // session tokens seen
	byKey         map[string]int    // data-plane requests by key ID
	targets       map[string]int    // all requests by operation
}

type fakeKey struct {
	arn   string
	state string
}

type keyOf map[string]*sigv4.AccessKey

func (k keyOf) AccessKey(id []byte) *sigv4.AccessKey { return k[string(id)] }

// newFakeKMS listens on a loopback port; a TLS configuration makes it https. It points the AWS chain at static credentials of its own.
func newFakeKMS(t testing.TB, secured *tls.Config) *fakeKMS {
	t.Helper()
	setAWSEnvironment(t)
	key, err := sigv4.NewAccessKey(testAccessKey, []byte(testSecret), sigv4.Principal{})
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := sigv4.New(sigv4.Config{Regions: []string{testRegion}, Keys: keyOf{testAccessKey: key}})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := aes.NewCipher(make([]byte, 32))
	aead, _ := cipher.NewGCM(block)
	k := &fakeKMS{t: t, verifier: verifier, key: key, aead: aead, keys: map[string]*fakeKey{}, aliases: map[string]string{},
		tokens: map[string]int{}, byKey: map[string]int{}, targets: map[string]int{}}
	k.url = serve(t, secured, k.handle)
	return k
}

// serve runs a fasthttp server until the test ends and returns its URL.
func serve(t testing.TB, secured *tls.Config, handler fasthttp.RequestHandler) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + listener.Addr().String()
	if secured != nil {
		url, listener = "https://"+listener.Addr().String(), tls.NewListener(listener, secured)
	}
	server := &fasthttp.Server{Handler: handler, CloseOnShutdown: true, NoDefaultServerHeader: true, Logger: quiet{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(listener)
	}()
	t.Cleanup(func() {
		listener.Close()
		<-done
		server.Shutdown()
	})
	return url
}

type quiet struct{}

func (quiet) Printf(string, ...any) {}

func setAWSEnvironment(t testing.TB) {
	t.Helper()
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": testAccessKey, "AWS_SECRET_ACCESS_KEY": testSecret, "AWS_SESSION_TOKEN": "", "AWS_PROFILE": "",
		"AWS_REGION": testRegion, "AWS_DEFAULT_REGION": "", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": t.TempDir() + "/none",
		"AWS_SHARED_CREDENTIALS_FILE": t.TempDir() + "/none", "AWS_ENDPOINT_URL": "", "AWS_ENDPOINT_URL_KMS": "", "AWS_CA_BUNDLE": "",
	} {
		t.Setenv(name, value)
	}
}

func (k *fakeKMS) handle(ctx *fasthttp.RequestCtx) {
	op := strings.TrimPrefix(string(ctx.Request.Header.Peek("X-Amz-Target")), kmsapi.TargetPrefix)
	if code, text := k.authenticate(ctx); code != kmsapi.OK {
		k.unsigned.Add(1)
		refuse(ctx, code, text)
		return
	}
	generator := string(ctx.Request.Header.UserAgent()) == userAgent // not the SDK's set-up
	k.mu.Lock()
	k.targets[op]++
	k.tokens[string(ctx.Request.Header.Peek("X-Amz-Security-Token"))]++
	k.mu.Unlock()
	if generator {
		if n := k.calls.Add(1); k.fault != nil && k.fault(ctx, op, n) {
			return
		}
	}
	var in map[string]any
	if err := json.Unmarshal(ctx.Request.Body(), &in); err != nil {
		refuse(ctx, kmsapi.Serialization, err.Error())
		return
	}
	out, code := k.answer(op, in, generator)
	if code != kmsapi.OK {
		refuse(ctx, code, code.Text())
		return
	}
	reply(ctx, out)
}

// authenticate verifies the request as it came over the wire.
func (k *fakeKMS) authenticate(ctx *fasthttp.RequestCtx) (kmsapi.Code, string) {
	r := sigv4.Request{Method: ctx.Method(), Path: ctx.Request.Header.RequestURI(), Body: ctx.Request.Body()}
	for line := range bytes.Lines(ctx.Request.Header.RawHeaders()) {
		name, value, ok := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(":"))
		if ok {
			r.Headers = append(r.Headers, sigv4.Header{Name: bytes.ToLower(name), Value: bytes.TrimSpace(value)})
		}
	}
	var s sigv4.Scratch
	if token := ctx.Request.Header.Peek("X-Amz-Security-Token"); len(token) > 0 {
		return k.resign(&r, &s, string(ctx.Request.Header.Peek("Authorization"))), "session token"
	}
	_, code := k.verifier.Verify(&r, &s, time.Now())
	return code, string(s.Message())
}

// resign checks a request with a session token, which the verifier refuses because keyplane issues none: signing the headers that were
// signed has to give the same Authorization, and the token has to be among them.
func (k *fakeKMS) resign(r *sigv4.Request, s *sigv4.Scratch, authorization string) kmsapi.Code {
	_, names, _ := strings.Cut(authorization, "SignedHeaders=")
	names, _, _ = strings.Cut(names, ",")
	signed := strings.Split(names, ";")
	r.Headers = slices.DeleteFunc(r.Headers, func(h sigv4.Header) bool { return !slices.Contains(signed, string(h.Name)) })
	want, err := sigv4.AppendAuthorization(nil, k.key, testRegion, kmsapi.SigningName, r, s)
	if err != nil || string(want) != authorization || !slices.Contains(signed, "x-amz-security-token") {
		return kmsapi.InvalidSignature
	}
	return kmsapi.OK
}

func refuse(ctx *fasthttp.RequestCtx, code kmsapi.Code, text string) {
	ctx.SetStatusCode(code.Status())
	ctx.SetContentType(kmsapi.ContentType)
	ctx.SetBody(kmsapi.AppendErrorBody(nil, code, []byte(text)))
}

func reply(ctx *fasthttp.RequestCtx, out any) {
	body, _ := json.Marshal(out)
	ctx.SetContentType(kmsapi.ContentType)
	ctx.SetBody(body)
}

// resolve finds a key by ID, ARN or alias.
func (k *fakeKMS) resolve(name string) (string, *fakeKey) {
	if id, ok := k.aliases[name]; ok {
		name = id
	}
	name = name[strings.LastIndexByte(name, '/')+1:]
	return name, k.keys[name]
}

func (k *fakeKMS) addKey(state string) string {
	id := fmt.Sprintf("00000000-0000-0000-0000-%012d", len(k.keys))
	k.keys[id] = &fakeKey{arn: "arn:aws:kms:" + testRegion + ":111122223333:key/" + id, state: state}
	return id
}

func (k *fakeKMS) answer(op string, in map[string]any, generator bool) (any, kmsapi.Code) {
	k.mu.Lock()
	defer k.mu.Unlock()
	text := func(name string) string { s, _ := in[name].(string); return s }
	switch op {
	case "CreateKey":
		if k.onCreateKey != nil {
			k.onCreateKey()
		}
		id := k.addKey("Enabled")
		return map[string]any{"KeyMetadata": k.metadata(id)}, kmsapi.OK
	case "CreateAlias":
		if k.onCreateAlias != nil {
			id, _ := k.resolve(text("TargetKeyId"))
			k.onCreateAlias(id)
		}
		if _, taken := k.aliases[text("AliasName")]; taken {
			return nil, kmsapi.AlreadyExists
		}
		k.aliases[text("AliasName")], _ = k.resolve(text("TargetKeyId"))
		return struct{}{}, kmsapi.OK
	case "DeleteAlias":
		delete(k.aliases, text("AliasName"))
		return struct{}{}, kmsapi.OK
	case "GenerateRandom":
		return map[string]any{"Plaintext": random(in)}, kmsapi.OK
	}
	id, key := k.resolve(text("KeyId"))
	if key == nil {
		return nil, kmsapi.NotFound
	}
	if generator {
		k.byKey[id]++
	}
	switch op {
	case "DescribeKey":
		return map[string]any{"KeyMetadata": k.metadata(id)}, kmsapi.OK
	case "ScheduleKeyDeletion":
		key.state = "PendingDeletion"
		return map[string]any{"KeyId": key.arn, "KeyState": key.state}, kmsapi.OK
	case "GenerateDataKey":
		dataKey := random(in)
		return map[string]any{"KeyId": key.arn, "Plaintext": dataKey, "CiphertextBlob": k.seal(id, dataKey)}, kmsapi.OK
	case "GenerateDataKeyWithoutPlaintext":
		return map[string]any{"KeyId": key.arn, "CiphertextBlob": k.seal(id, random(in))}, kmsapi.OK
	case "Encrypt":
		plaintext, err := decodeString(text("Plaintext"))
		if err != nil {
			return nil, kmsapi.Serialization
		}
		return map[string]any{"KeyId": key.arn, "CiphertextBlob": k.seal(id, plaintext), "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}, kmsapi.OK
	case "Decrypt":
		blob, err := decodeString(text("CiphertextBlob"))
		if err != nil || len(blob) < 12 {
			return nil, kmsapi.InvalidCiphertext
		}
		plaintext, err := k.aead.Open(nil, blob[:12], blob[12:], []byte(id))
		if err != nil {
			return nil, kmsapi.InvalidCiphertext
		}
		return map[string]any{"KeyId": key.arn, "Plaintext": plaintext, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}, kmsapi.OK
	}
	return nil, kmsapi.UnknownOperation
}

func (k *fakeKMS) metadata(id string) map[string]any {
	return map[string]any{"KeyId": id, "Arn": k.keys[id].arn, "KeyState": k.keys[id].state, "KeySpec": "SYMMETRIC_DEFAULT"}
}

func (k *fakeKMS) seal(id string, plaintext []byte) []byte {
	nonce := make([]byte, 12, 12+len(plaintext)+16)
	rand.Read(nonce)
	return k.aead.Seal(nonce, nonce, plaintext, []byte(id))
}

// random makes what GenerateDataKey and GenerateRandom ask for.
func random(in map[string]any) []byte {
	n := 32
	if f, ok := in["NumberOfBytes"].(float64); ok {
		n = int(f)
	}
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func decodeString(s string) (b []byte, err error) {
	err = json.Unmarshal([]byte(`"`+s+`"`), &b)
	return b, err
}

// count reads a map under the fake's lock.
func (k *fakeKMS) count(m map[string]int, name string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return m[name]
}

// testConfig is a short closed loop against url. Its time-outs outlast a machine that is suspended for a while.
func testConfig(url string) Config {
	cfg := DefaultConfig()
	cfg.Timeout = timeoutMax
	cfg.Endpoints, cfg.Concurrency, cfg.Warmup, cfg.Duration = []string{url}, 4, 0, 300*time.Millisecond
	return cfg
}

// untilStopped runs without an end of its own; start gets the function that stops it. What is sent then does not depend on how fast the
// machine is, as it would in a window of fixed length.
func untilStopped(t testing.TB, cfg Config, start func(stop func())) *Report {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	cfg.Duration, cfg.grace = time.Hour, timeoutMax
	start(stop)
	report, err := Run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// runUntil runs until enough says so; it sees each data-plane request's number in this run before the fault does. By then all but as many as
// there are connections are answered.
func (k *fakeKMS) runUntil(cfg Config, enough func(n int64) bool) *Report {
	k.t.Helper()
	fault, before := k.fault, k.calls.Load()
	defer func() { k.fault = fault }()
	return untilStopped(k.t, cfg, func(stop func()) {
		k.fault = func(ctx *fasthttp.RequestCtx, op string, n int64) bool {
			if enough(n - before) {
				stop()
			}
			return fault != nil && fault(ctx, op, n)
		}
	})
}

// atLeast is enough for runUntil.
func atLeast(requests int64) func(int64) bool { return func(n int64) bool { return n >= requests } }

// mustRun runs and fails the test on an error.
func mustRun(t testing.TB, cfg Config) *Report {
	t.Helper()
	report, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return report
}
