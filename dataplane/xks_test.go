package dataplane

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp/fasthttputil"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/internal/xks"
	"github.com/keyplane/keyplane/ratelimit"
)

const (
	xksRegion    = "eu-west-1" // of AWS KMS
	xksOldID     = "AOLDKEYPLANETESTCREDENTIAL"
	xksNewID     = "ANEWKEYPLANETESTCREDENTIAL"
	xksSecret    = "FYtE5EFA5FT0mCc3DrGUe2sti527BitkQ0Zr9MO9fvE"
	xksPrincipal = "arn:aws:iam::123456789012:user/Alice"
	xksTestAAD   = "project=nile,department=marketing"
)

// proxy is an XKS on a world, with a listener of its own.
type proxy struct {
	*world
	xks    *XKS
	dialed func() (net.Conn, error)
	keys   map[string]*sigv4.AccessKey
	at     time.Time // of requests; zero: now
}

// newProxy offers, below /team-a, the keys of the world that tests call k1, off, gone, …; tests change the prefixes before.
func newProxy(w *world, change func(cfg *XKSConfig)) *proxy {
	w.Helper()
	p := &proxy{world: w, keys: map[string]*sigv4.AccessKey{}}
	for _, id := range []string{xksOldID, xksNewID} {
		k, err := sigv4.NewAccessKey(id, []byte(xksSecret), sigv4.Principal{})
		w.must(err)
		p.keys[id] = k
	}
	cfg := XKSConfig{
		Prefixes: []XKSPrefix{{Path: "/team-a", Region: xksRegion, Credentials: []*sigv4.AccessKey{p.keys[xksOldID], p.keys[xksNewID]}}},
		Fleet:    func() []xks.EKM { return []xks.EKM{{ID: "serial-1", Model: "SoftHSM \"2\"", Status: "ACTIVE"}} },
		Root:     func() hsm.RootID { return hsm.RootID(w.shards.Primary()) },
		Ready:    func() error { return nil },
		Version:  "test",
	}
	for _, name := range []string{"k1", "k2", "off", "going", "gone", "resident", "ec"} {
		cfg.Prefixes[0].Keys = append(cfg.Prefixes[0].Keys, XKSKey{ID: "ext." + name, Region: testRegion, Account: ours, Key: keyID(name)})
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	p.xks, err = w.NewXKS(cfg)
	w.must(err)
	var ln net.Listener
	if _, ok := w.ln.(*fasthttputil.InmemoryListener); ok {
		memory := fasthttputil.NewInmemoryListener()
		ln, p.dialed = memory, memory.Dial
	} else {
		ln, err = net.Listen("tcp", "127.0.0.1:0")
		w.must(err)
		p.dialed = func() (net.Conn, error) { return net.Dial("tcp", ln.Addr().String()) }
	}
	served := make(chan error, 1)
	go func() { served <- p.xks.Serve(ln) }()
	w.Cleanup(func() {
		_ = ln.Close()
		<-served
	})
	// Requests go to the proxy; what the world's own helpers do is on its records only.
	c := *w
	c.dial = p.dialed
	p.world = &c
	return p
}

// as is the proxy for a subtest.
func (p *proxy) as(t *testing.T) *proxy {
	c := *p
	c.world = p.in(t)
	return &c
}

// raw makes the bytes of a signed request.
func (p *proxy) raw(id, method, path string, body []byte, header ...string) []byte {
	p.Helper()
	at := p.at
	if at.IsZero() {
		at = time.Now()
	}
	signed := append([]string{"host: xks.test", "x-amz-date: " + string(sigv4.AppendDate(nil, at))}, header...)
	r := &sigv4.Request{Method: []byte(method), Path: []byte(path), Body: body}
	raw := []byte(method + " " + path + " HTTP/1.1\r\ncontent-type: application/json\r\n") // which KMS doesn't sign
	for _, l := range signed {
		name, value, _ := strings.Cut(l, ":")
		r.Headers = append(r.Headers, sigv4.Header{Name: []byte(name), Value: []byte(strings.TrimSpace(value))})
		raw = append(append(raw, l...), "\r\n"...)
	}
	var scratch sigv4.Scratch
	raw, err := sigv4.AppendAuthorization(append(raw, "authorization: "...), p.keys[id], xksRegion, xks.SigningName, r, &scratch)
	p.must(err)
	return append(fmt.Appendf(raw, "\r\ncontent-length: %d\r\n\r\n", len(body)), body...)
}

// members are those of a request; nil leaves one out.
type xksBody = map[string]any

func metadata(operation string, change xksBody) xksBody {
	m := xksBody{"awsPrincipalArn": xksPrincipal, "kmsKeyArn": "arn:aws:kms:us-east-2:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
		"kmsOperation": operation, "kmsRequestId": "4112f4d6-db54-4af4-ae30-c55a22a8dfae", "kmsViaService": "ebs"}
	return merged(m, change)
}

func merged(m, change xksBody) xksBody {
	m = maps.Clone(m)
	for name, value := range change {
		if value == nil {
			delete(m, name)
		} else {
			m[name] = value
		}
	}
	return m
}

func jsonOf(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const xksBasePath = "/team-a" + xks.BasePath

func (p *proxy) post(path string, body any) reply {
	p.Helper()
	return p.do(p.raw(xksOldID, "POST", xksBasePath+path, jsonOf(p, body)))
}

func encryptBody(plaintext string, change xksBody) xksBody {
	return merged(xksBody{"requestMetadata": metadata("Encrypt", nil), "plaintext": plaintext, "encryptionAlgorithm": "AES_GCM"}, change)
}

// sealedBody is the body of Decrypt for the reply to Encrypt.
func (p *proxy) sealedBody(r reply, change xksBody) xksBody {
	p.Helper()
	m := p.object(r)
	delete(m, "ciphertextDataIntegrityValue")
	m["requestMetadata"], m["encryptionAlgorithm"] = metadata("Decrypt", nil), "AES_GCM"
	return merged(m, change)
}

func (p *proxy) object(r reply) xksBody {
	p.Helper()
	m := xksBody{}
	if err := json.Unmarshal(r.body, &m); err != nil || r.status != 200 {
		p.Fatalf("%d %s: %v", r.status, r.body, err)
	}
	return m
}

// wants checks a refusal: its status, name, and that its message is what the API lets one be.
func (p *proxy) wants(r reply, status int, name string) {
	p.Helper()
	var e struct{ ErrorName, ErrorMessage string }
	if err := json.Unmarshal(r.body, &e); err != nil || r.status != status || e.ErrorName != name {
		p.Errorf("%d %s, want %d %s (%v)", r.status, r.body, status, name, err)
	}
	if len(e.ErrorMessage) > xks.ErrorMessageMax || strings.ContainsFunc(e.ErrorMessage, func(c rune) bool { return c < ' ' || c > '~' }) {
		p.Errorf("message %q", e.ErrorMessage)
	}
	if got := r.header.Get("Content-Type"); got != "application/json" {
		p.Errorf("content type %q", got)
	}
}

func (p *proxy) addKeys() {
	p.Helper()
	p.addKey("k1", kmsapi.StateEnabled, 1)
	p.addKey("k2", kmsapi.StateEnabled, 1)
	p.addKey("off", kmsapi.StateDisabled, 1)
	p.addKey("going", kmsapi.StatePendingDeletion, 1)
}

// TestXKSPublishedSteps goes the steps of aws-kms-xksproxy-test-client 1.0.4, in its order.
func TestXKSPublishedSteps(t *testing.T) {
	for _, kind := range tokenKinds {
		t.Run(kind.name, func(t *testing.T) {
			p := newProxy(newWorld(t, worldConfig{tokens: []hsm.Token{kind.open(t)}, plain: true}), nil)
			p.addKeys()
			testXKSPublishedSteps(t, p)
		})
	}
}

func testXKSPublishedSteps(t *testing.T, p *proxy) {
	wrongID, wrongSecret := newXKSKey(t, "INVALIDKEYPLANETESTKEY", xksSecret), newXKSKey(t, xksOldID, "Invalid"+xksSecret)
	badly := func(k *sigv4.AccessKey, path string, body xksBody) {
		t.Helper()
		c := *p
		c.keys = map[string]*sigv4.AccessKey{xksOldID: k}
		p.wants(c.post(path, body), 401, "AuthenticationFailedException")
	}
	elsewhere := func(path string, body xksBody) {
		t.Helper()
		p.wants(p.do(p.raw(xksOldID, "POST", "/team-a/invalid"+xks.BasePath+path, jsonOf(t, body))), 404, "InvalidUriPathException")
	}

	health := xksBody{"requestMetadata": xksBody{"kmsOperation": "CreateCustomKeyStore", "kmsRequestId": "1"}}
	if h, err := xks.ReadHealth(p.post("/health", health).body); err != nil || h.FleetSize != 1 || h.Vendor != "keyplane" || h.Model != "keyplane test" ||
		!slices.Equal(h.Fleet, []xks.EKM{{ID: "serial-1", Model: `SoftHSM "2"`, Status: "ACTIVE"}}) {
		t.Errorf("health %+v: %v", h, err)
	}
	badly(wrongID, "/health", health)
	badly(wrongSecret, "/health", health)
	elsewhere("/health", health)

	for _, operation := range []string{"DescribeKey", "CreateKey"} {
		m, err := xks.ReadKeyMetadata(p.post("/keys/ext.k1/metadata", xksBody{"requestMetadata": metadata(operation, nil)}).body)
		if err != nil || m.Spec != "AES_256" || m.Status != "ENABLED" || !slices.Equal(m.Usages, []string{"ENCRYPT", "DECRYPT"}) {
			t.Errorf("metadata %+v: %v", m, err)
		}
	}
	describe := xksBody{"requestMetadata": metadata("DescribeKey", nil)}
	p.wants(p.post("/keys/ext.k1/metadata", xksBody{}), 400, "ValidationException")
	p.wants(p.post("/keys/ext.k1/metadata", xksBody{"requestMetadata": xksBody{}}), 400, "ValidationException")
	p.wants(p.post("/keys/non_existing_key/metadata", describe), 404, "KeyNotFoundException")
	badly(wrongID, "/keys/ext.k1/metadata", describe)
	badly(wrongSecret, "/keys/ext.k1/metadata", describe)
	elsewhere("/keys/ext.k1/metadata", describe)

	aad := xksB64(xksTestAAD)
	body := encryptBody("cGxhaW50ZXh0Cg==", nil)
	p.wants(p.post("/keys/non_existing_key/encrypt", body), 404, "KeyNotFoundException")
	p.wants(p.post("/keys/ext.k1/encrypt", merged(body, xksBody{"plaintext": nil})), 400, "ValidationException")
	badly(wrongID, "/keys/ext.k1/encrypt", body)
	badly(wrongSecret, "/keys/ext.k1/encrypt", body)
	elsewhere("/keys/ext.k1/encrypt", body)
	sealed := p.post("/keys/ext.k1/encrypt", merged(body, xksBody{"additionalAuthenticatedData": aad}))
	p.wants(p.post("/keys/ext.k1/decrypt", p.sealedBody(sealed, nil)), 400, "InvalidCiphertextException")
	p.wants(p.post("/keys/ext.k1/decrypt", p.sealedBody(sealed, xksBody{"additionalAuthenticatedData": xksB64("project=blue,department=finance")})), 400, "InvalidCiphertextException")

	const hello = "SGVsbG8gV29ybGQh"
	for _, c := range []struct{ aad, cdiv any }{{nil, nil}, {aad, nil}, {aad, "SHA_256"}, {nil, "SHA_256"}} {
		sealed := p.post("/keys/ext.k1/encrypt", encryptBody(hello, xksBody{"additionalAuthenticatedData": c.aad, "ciphertextDataIntegrityValueAlgorithm": c.cdiv}))
		p.checkSealed(sealed, hello, c.aad, c.cdiv != nil)
		opened := p.post("/keys/ext.k1/decrypt", p.sealedBody(sealed, xksBody{"additionalAuthenticatedData": c.aad}))
		if got := field(t, opened, "plaintext"); got != hello {
			t.Errorf("%v: decrypted %q", c, got)
		}
	}
	large, largeAAD := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("p"), 4096)), base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("a"), 8192))
	sealed = p.post("/keys/ext.k1/encrypt", encryptBody(large, xksBody{"additionalAuthenticatedData": largeAAD}))
	opened := p.post("/keys/ext.k1/decrypt", p.sealedBody(sealed, xksBody{"additionalAuthenticatedData": largeAAD}))
	if field(t, opened, "plaintext") != large {
		t.Error("the largest plaintext comes back changed")
	}
}

func newXKSKey(t testing.TB, id, secret string) *sigv4.AccessKey {
	t.Helper()
	k, err := sigv4.NewAccessKey(id, []byte(secret), sigv4.Principal{})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// checkSealed holds a reply of Encrypt against the lengths of the API, and its CDIV against one that is computed here.
func (p *proxy) checkSealed(r reply, plaintext string, aad any, cdiv bool) {
	p.Helper()
	part := func(name string) []byte {
		p.Helper()
		b, err := base64.StdEncoding.DecodeString(fmt.Sprint(p.object(r)[name]))
		p.must(err)
		return b
	}
	all := []byte{}
	if aad != nil {
		b, err := base64.StdEncoding.DecodeString(aad.(string))
		p.must(err)
		all = b
	}
	plain, err := base64.StdEncoding.DecodeString(plaintext)
	p.must(err)
	m, iv, ciphertext, tag := part("ciphertextMetadata"), part("initializationVector"), part("ciphertext"), part("authenticationTag")
	if len(m) > xks.MetadataMax || len(iv) != xks.IVMin || len(ciphertext) != len(plain) || len(tag) != xks.TagLen {
		p.Errorf("lengths: metadata %d, iv %d, ciphertext %d of %d, tag %d", len(m), len(iv), len(ciphertext), len(plain), len(tag))
	}
	got, has := p.object(r)["ciphertextDataIntegrityValue"]
	if has != cdiv {
		p.Errorf("CDIV: %v", got)
	}
	if sum := sha256.Sum256(slices.Concat(all, m, iv, ciphertext, tag)); cdiv && got != base64.StdEncoding.EncodeToString(sum[:]) {
		p.Errorf("CDIV %v is not that of the reply", got)
	}
}

// TestXKSRefusals: every member that is missing, wrong or too long, states and kinds of keys, methods and paths.
func TestXKSRefusals(t *testing.T) {
	p := newProxy(newWorld(t, worldConfig{}), nil)
	p.addKeys()
	p.addResidentKey("resident", kmsapi.StateEnabled, 1)
	p.addPrivateKey("ec", kmsapi.StateEnabled, keyspec.P256, keyspec.SignVerify)
	const hello = "SGVsbG8gV29ybGQh"
	aad := xksB64(xksTestAAD)
	long := func(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }
	sealed := p.post("/keys/ext.k1/encrypt", encryptBody(hello, xksBody{"additionalAuthenticatedData": aad}))
	decrypt := p.sealedBody(sealed, xksBody{"additionalAuthenticatedData": aad})
	flip := func(name string, at int) xksBody {
		b, err := base64.StdEncoding.DecodeString(decrypt[name].(string))
		p.must(err)
		b[at] ^= 1
		return merged(decrypt, xksBody{name: base64.StdEncoding.EncodeToString(b)})
	}
	requestMetadata := func(change xksBody) xksBody {
		return encryptBody(hello, xksBody{"requestMetadata": metadata("Encrypt", change)})
	}
	type step struct {
		path   string
		body   any
		status int
		name   string
	}
	steps := map[string]step{
		"no JSON":                       {"/keys/ext.k1/encrypt", json.RawMessage(`"text"`), 400, "ValidationException"},
		"no base64":                     {"/keys/ext.k1/encrypt", encryptBody("SGVsbG8gV29ybGQ", nil), 400, "ValidationException"},
		"plaintext of another type":     {"/keys/ext.k1/encrypt", encryptBody("", xksBody{"plaintext": 5}), 400, "ValidationException"},
		"empty plaintext":               {"/keys/ext.k1/encrypt", encryptBody("", nil), 400, "ValidationException"},
		"no principal":                  {"/keys/ext.k1/encrypt", requestMetadata(xksBody{"awsPrincipalArn": nil}), 400, "ValidationException"},
		"no operation":                  {"/keys/ext.k1/encrypt", requestMetadata(xksBody{"kmsOperation": nil}), 400, "ValidationException"},
		"no request ID":                 {"/keys/ext.k1/encrypt", requestMetadata(xksBody{"kmsRequestId": nil}), 400, "ValidationException"},
		"no key ARN":                    {"/keys/ext.k1/encrypt", requestMetadata(xksBody{"kmsKeyArn": nil}), 400, "ValidationException"},
		"ARN too long":                  {"/keys/ext.k1/encrypt", requestMetadata(xksBody{"kmsKeyArn": strings.Repeat("a", 2049)}), 501, "UnsupportedOperationException"},
		"no algorithm":                  {"/keys/ext.k1/encrypt", encryptBody(hello, xksBody{"encryptionAlgorithm": nil}), 400, "ValidationException"},
		"another algorithm":             {"/keys/ext.k1/encrypt", encryptBody(hello, xksBody{"encryptionAlgorithm": "AES_CBC"}), 400, "ValidationException"},
		"another CDIV":                  {"/keys/ext.k1/encrypt", encryptBody(hello, xksBody{"ciphertextDataIntegrityValueAlgorithm": "SHA_512"}), 400, "ValidationException"},
		"oversized plaintext":           {"/keys/ext.k1/encrypt", encryptBody(long(4301), nil), 501, "UnsupportedOperationException"},
		"oversized AAD":                 {"/keys/ext.k1/encrypt", encryptBody(hello, xksBody{"additionalAuthenticatedData": long(8193)}), 501, "UnsupportedOperationException"},
		"oversized ciphertext":          {"/keys/ext.k1/decrypt", merged(decrypt, xksBody{"ciphertext": long(4301)}), 501, "UnsupportedOperationException"},
		"health without an operation":   {"/health", xksBody{"requestMetadata": xksBody{"kmsRequestId": "1"}}, 400, "ValidationException"},
		"disabled":                      {"/keys/ext.off/encrypt", encryptBody(hello, nil), 400, "InvalidStateException"},
		"pending deletion":              {"/keys/ext.going/decrypt", decrypt, 400, "InvalidStateException"},
		"KMS key that is gone":          {"/keys/ext.gone/encrypt", encryptBody(hello, nil), 404, "KeyNotFoundException"},
		"metadata of a key that's gone": {"/keys/ext.gone/metadata", encryptBody(hello, nil), 404, "KeyNotFoundException"},
		"resident":                      {"/keys/ext.resident/encrypt", encryptBody(hello, nil), 501, "UnsupportedOperationException"},
		"asymmetric":                    {"/keys/ext.ec/metadata", encryptBody(hello, nil), 501, "UnsupportedOperationException"},

		"another key":          {"/keys/ext.k2/decrypt", decrypt, 400, "InvalidCiphertextException"},
		"bad tag":              {"/keys/ext.k1/decrypt", flip("authenticationTag", 15), 400, "InvalidCiphertextException"},
		"bad ciphertext":       {"/keys/ext.k1/decrypt", flip("ciphertext", 0), 400, "InvalidCiphertextException"},
		"bad IV":               {"/keys/ext.k1/decrypt", flip("initializationVector", 3), 400, "InvalidCiphertextException"},
		"bad AAD":              {"/keys/ext.k1/decrypt", flip("additionalAuthenticatedData", 3), 400, "InvalidCiphertextException"},
		"metadata: format":     {"/keys/ext.k1/decrypt", flip("ciphertextMetadata", 0), 400, "InvalidCiphertextException"},
		"metadata: version":    {"/keys/ext.k1/decrypt", flip("ciphertextMetadata", 4), 400, "InvalidCiphertextException"},
		"metadata: nonce":      {"/keys/ext.k1/decrypt", flip("ciphertextMetadata", 9), 400, "InvalidCiphertextException"},
		"no metadata":          {"/keys/ext.k1/decrypt", merged(decrypt, xksBody{"ciphertextMetadata": nil}), 400, "InvalidCiphertextException"},
		"metadata too long":    {"/keys/ext.k1/decrypt", merged(decrypt, xksBody{"ciphertextMetadata": long(18)}), 400, "InvalidCiphertextException"},
		"IV of 16 bytes":       {"/keys/ext.k1/decrypt", merged(decrypt, xksBody{"initializationVector": long(16)}), 400, "InvalidCiphertextException"},
		"no tag":               {"/keys/ext.k1/decrypt", merged(decrypt, xksBody{"authenticationTag": nil}), 400, "InvalidCiphertextException"},
		"no ciphertext":        {"/keys/ext.k1/decrypt", merged(decrypt, xksBody{"ciphertext": nil}), 400, "InvalidCiphertextException"},
		"metadata as AAD":      {"/keys/ext.k1/decrypt", merged(decrypt, xksBody{"additionalAuthenticatedData": decrypt["ciphertextMetadata"], "ciphertextMetadata": nil}), 400, "InvalidCiphertextException"},
		"AAD and metadata":     {"/keys/ext.k1/decrypt", merged(decrypt, xksBody{"additionalAuthenticatedData": xksB64(xksTestAAD + "\x11")}), 400, "InvalidCiphertextException"},
		"unknown operation":    {"/keys/ext.k1/sign", encryptBody(hello, nil), 404, "InvalidUriPathException"},
		"no operation at all":  {"/keys/ext.k1", encryptBody(hello, nil), 404, "InvalidUriPathException"},
		"more path":            {"/keys/ext.k1/encrypt/", encryptBody(hello, nil), 404, "InvalidUriPathException"},
		"no key ID":            {"/keys//encrypt", encryptBody(hello, nil), 404, "KeyNotFoundException"},
		"another version":      {"/../v2/keys/ext.k1/encrypt", encryptBody(hello, nil), 404, "InvalidUriPathException"},
		"root":                 {"/", encryptBody(hello, nil), 404, "InvalidUriPathException"},
		"health with more":     {"/health/x", encryptBody(hello, nil), 404, "InvalidUriPathException"},
		"keys without slashes": {"/keysext.k1/encrypt", encryptBody(hello, nil), 404, "InvalidUriPathException"},
	}
	for name, s := range steps {
		t.Run(name, func(t *testing.T) { p.as(t).wants(p.as(t).post(s.path, s.body), s.status, s.name) })
	}
	if got := field(t, p.post("/keys/ext.k1/decrypt", decrypt), "plaintext"); got != hello {
		t.Errorf("what the others are made of: %q", got)
	}
	if m, err := xks.ReadKeyMetadata(p.post("/keys/ext.off/metadata", decrypt).body); err != nil || m.Status != "DISABLED" {
		t.Errorf("a disabled key: %+v %v", m, err)
	}
	// Values that nobody knows yet are no fault.
	later := encryptBody(hello, xksBody{"requestMetadata": metadata("BulkEncrypt", xksBody{"sourceIdentity": "x", "kmsRequestId": "not a UUID"}), "more": []int{1}})
	if r := p.post("/keys/ext.k1/encrypt", later); r.status != 200 {
		t.Errorf("what KMS may send one day: %d %s", r.status, r.body)
	}
}

func TestXKSMethods(t *testing.T) {
	p := newProxy(newWorld(t, worldConfig{}), nil)
	p.addKeys()
	body := jsonOf(t, encryptBody("aGVsbG8=", nil))
	for _, method := range []string{"GET", "PUT", "DELETE", "PATCH"} {
		for _, path := range []string{"/health", "/keys/ext.k1/metadata", "/keys/ext.k1/encrypt", "/keys/ext.k1/decrypt"} {
			b := body
			if method == "GET" {
				b = nil
			}
			if r := p.do(p.raw(xksOldID, method, xksBasePath+path, b)); r.status != 405 || r.header.Get("Allow") != "POST" {
				t.Errorf("%s %s: %d %s", method, path, r.status, r.body)
			}
		}
	}
	p.wants(p.do(p.raw(xksOldID, "GET", "/team-b"+xks.BasePath+"/health", nil)), 404, "InvalidUriPathException")
	if r := p.do([]byte("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")); r.status != 200 {
		t.Errorf("a load balancer's check: %d", r.status)
	}
}

// TestXKSSignatures: what is signed, when, by whom and for what.
func TestXKSSignatures(t *testing.T) {
	p := newProxy(newWorld(t, worldConfig{}), func(cfg *XKSConfig) {
		alone := newXKSKey(t, xksNewID, xksSecret+"other")
		cfg.Prefixes = append(cfg.Prefixes, XKSPrefix{Path: "/team-b", Region: "eu-west-2", Credentials: []*sigv4.AccessKey{alone}, Keys: cfg.Prefixes[0].Keys})
	})
	p.addKeys()
	body := jsonOf(t, encryptBody("aGVsbG8=", nil))
	const path = xksBasePath + "/keys/ext.k1/encrypt"
	for _, id := range []string{xksOldID, xksNewID} {
		if r := p.do(p.raw(id, "POST", path, body)); r.status != 200 {
			t.Errorf("%s: %d %s", id, r.status, r.body)
		}
	}
	if r := p.do(p.raw(xksOldID, "POST", path, body, "x-amz-security-token: a", "x-amz-more: b")); r.status != 401 {
		t.Errorf("a session's token: %d %s", r.status, r.body)
	}
	if r := p.do(p.raw(xksOldID, "POST", path, body, "x-amz-more: b")); r.status != 200 {
		t.Errorf("more signed headers: %d %s", r.status, r.body)
	}
	for name, skew := range map[string]time.Duration{"late": -5*time.Minute - 2*time.Second, "early": 5*time.Minute + 2*time.Second} {
		c := *p
		c.at = time.Now().Add(skew)
		p.wants(c.do(c.raw(xksOldID, "POST", path, body)), 401, "AuthenticationFailedException")
		c.at = time.Now().Add(skew * 9 / 10)
		if r := c.do(c.raw(xksOldID, "POST", path, body)); r.status != 200 {
			t.Errorf("a little %s: %d %s", name, r.status, r.body)
		}
	}
	good := p.raw(xksOldID, "POST", path, body)
	for name, raw := range map[string][]byte{
		"body":           bytes.Replace(good, []byte("aGVsbG8="), []byte("aGVsbG9="), 1),
		"path":           bytes.Replace(good, []byte("/encrypt"), []byte("/decrypt"), 1),
		"host":           bytes.Replace(good, []byte("host: xks.test"), []byte("host: xks.tesu"), 1),
		"query":          bytes.Replace(good, []byte("/encrypt "), []byte("/encrypt?a=b "), 1),
		"region":         bytes.Replace(good, []byte("/"+xksRegion+"/"), []byte("/us-east-1/"), 1),
		"service":        bytes.Replace(good, []byte("/kms-xks-proxy/"), []byte("/kms/"), 1),
		"prefix":         bytes.Replace(good, []byte("/team-a/"), []byte("/team-b/"), 1),
		"date unsigned":  bytes.Replace(good, []byte("host;x-amz-date"), []byte("host"), 1),
		"host unsigned":  bytes.Replace(good, []byte("host;x-amz-date"), []byte("x-amz-date"), 1),
		"no signature":   bytes.Replace(good, []byte("authorization:"), []byte("authorisation:"), 1),
		"other prefix's": p.raw(xksOldID, "POST", "/team-b"+xks.BasePath+"/keys/ext.k1/encrypt", body),
	} {
		if bytes.Equal(raw, good) {
			t.Fatalf("%s: not changed", name)
		}
		t.Run(name, func(t *testing.T) { p.as(t).wants(p.do(raw), 401, "AuthenticationFailedException") })
	}
	// Two readings of one request are how requests are smuggled: the checks of the KMS endpoint hold here too.
	for name, raw := range map[string][]byte{
		"two hosts":   bytes.Replace(good, []byte("host: xks.test\r\n"), []byte("host: xks.test\r\nhost: xks.test\r\n"), 1),
		"two lengths": bytes.Replace(good, []byte("content-length:"), []byte("content-length: 0\r\ncontent-length:"), 1),
		"chunked":     bytes.Replace(good, []byte("content-length:"), []byte("transfer-encoding: chunked\r\ncontent-length:"), 1),
		"folded":      bytes.Replace(good, []byte("host: xks.test\r\n"), []byte("host: xks.test\r\n more\r\n"), 1),
	} {
		t.Run(name, func(t *testing.T) {
			if r := p.do(raw); r.status != 400 || !r.close {
				t.Errorf("%d %s, closed: %v", r.status, r.body, r.close)
			}
		})
	}
}

// TestXKSRate: a prefix serves as many requests about its keys as it may, whichever of its keys they are about and whatever is replaced meanwhile; another prefix,
// health checks and requests that are nobody's are no part of that.
func TestXKSRate(t *testing.T) {
	const burst = 3
	p := newProxy(newWorld(t, worldConfig{}), func(cfg *XKSConfig) {
		cfg.Prefixes[0].Rate = ratelimit.Limit{Interval: time.Hour, Burst: burst}
		other := cfg.Prefixes[0]
		other.Path, other.Rate = "/team-b", ratelimit.Limit{}
		cfg.Prefixes = append(cfg.Prefixes, other)
	})
	p.addKeys()
	body := jsonOf(t, encryptBody("aGVsbG8=", nil))
	ask := func(prefix, path string, body []byte) reply {
		return p.do(p.raw(xksNewID, "POST", prefix+xks.BasePath+path, body))
	}
	for range burst {
		stranger := p.raw(xksNewID, "POST", "/team-a"+xks.BasePath+"/keys/ext.k1/encrypt", body)
		stranger[len(stranger)-3] ^= 1
		p.wants(p.do(stranger), 401, "AuthenticationFailedException")
	}
	for i := range burst {
		if r := ask("/team-a", []string{"/keys/ext.k1/encrypt", "/keys/ext.k2/encrypt"}[i%2], body); r.status != 200 {
			t.Errorf("request %d: %d %s", i, r.status, r.body)
		}
	}
	p.wants(ask("/team-a", "/keys/ext.k1/encrypt", body), 429, "ThrottlingException")
	p.wants(ask("/team-a", "/keys/ext.k2/metadata", jsonOf(t, xksBody{"requestMetadata": metadata("CreateKey", nil)})), 429, "ThrottlingException")
	if r := ask("/team-a", "/health", jsonOf(t, xksBody{"requestMetadata": xksBody{"kmsRequestId": "id", "kmsOperation": "KmsHealthCheck"}})); r.status != 200 {
		t.Errorf("health: %d %s", r.status, r.body)
	}
	for range 2 * burst {
		if r := ask("/team-b", "/keys/ext.k1/encrypt", body); r.status != 200 {
			t.Errorf("another prefix: %d %s", r.status, r.body)
		}
	}
	p.must(p.xks.SetPrefixes(p.xks.cfg.Prefixes))
	p.wants(ask("/team-a", "/keys/ext.k1/encrypt", body), 429, "ThrottlingException")
	free := slices.Clone(p.xks.cfg.Prefixes)
	free[0].Rate = ratelimit.Limit{}
	p.must(p.xks.SetPrefixes(free))
	if r := ask("/team-a", "/keys/ext.k1/encrypt", body); r.status != 200 {
		t.Errorf("without a rate: %d %s", r.status, r.body)
	}
}

// TestXKSRotatesCredentials: prefixes change while the proxy runs; a secret that was wiped is nobody's.
func TestXKSRotatesCredentials(t *testing.T) {
	p := newProxy(newWorld(t, worldConfig{}), nil)
	p.addKeys()
	prefix := p.xks.cfg.Prefixes[0]
	prefix.Credentials = prefix.Credentials[1:]
	p.must(p.xks.SetPrefixes([]XKSPrefix{prefix}))
	body := jsonOf(t, encryptBody("aGVsbG8=", nil))
	const path = xksBasePath + "/keys/ext.k1/encrypt"
	p.wants(p.do(p.raw(xksOldID, "POST", path, body)), 401, "AuthenticationFailedException")
	if r := p.do(p.raw(xksNewID, "POST", path, body)); r.status != 200 {
		t.Errorf("the other credential: %d %s", r.status, r.body)
	}
	bad := []XKSPrefix{prefix, prefix}
	if err := p.xks.SetPrefixes(bad); err == nil {
		t.Error("one path twice is accepted")
	}
	for name, change := range map[string]func(q *XKSPrefix){
		"path": func(q *XKSPrefix) { q.Path = "/team a" },
		"key ID": func(q *XKSPrefix) {
			q.Keys = []XKSKey{{ID: "a/b", Region: testRegion, Account: ours, Key: keyID("k1")}}
		},
		"key Region": func(q *XKSPrefix) { q.Keys = []XKSKey{{ID: "a", Region: xksRegion, Account: ours, Key: keyID("k1")}} },
		"Region":     func(q *XKSPrefix) { q.Region = "" },
	} {
		q := prefix
		change(&q)
		if err := p.xks.SetPrefixes([]XKSPrefix{q}); err == nil {
			t.Errorf("a wrong %s is accepted", name)
		}
	}
	if r := p.do(p.raw(xksNewID, "POST", path, body)); r.status != 200 {
		t.Errorf("after refused changes: %d %s", r.status, r.body)
	}
}

func TestXKSAccess(t *testing.T) {
	p := newProxy(newWorld(t, worldConfig{}), func(cfg *XKSConfig) {
		k := func(id string, change func(k *XKSKey)) XKSKey {
			key := XKSKey{ID: id, Region: testRegion, Account: ours, Key: keyID("k1")}
			change(&key)
			return key
		}
		cfg.Prefixes[0].Keys = []XKSKey{
			k("alice", func(k *XKSKey) {
				k.Principals = []string{"arn:aws:iam::123456789012:user/Bob", "arn:aws:iam::*:user/Al?ce"}
			}),
			k("bob", func(k *XKSKey) { k.Principals = []string{"arn:aws:iam::123456789012:user/Bob"} }),
			k("data-keys", func(k *XKSKey) { k.Operations = []string{"GenerateDataKey*", "CreateKey"} }),
			k("s3", func(k *XKSKey) { k.Services = []string{"s3.*.amazonaws.com"} }),
			k("old", func(k *XKSKey) { k.ReadOnly = true }),
		}
	})
	p.addKeys()
	for _, c := range []struct {
		key, operation string
		change         xksBody
		refusal        string
	}{
		{"alice", "Encrypt", nil, ""},
		{"bob", "Encrypt", nil, "AccessDeniedException"},
		{"bob", "Encrypt", xksBody{"awsPrincipalArn": "arn:aws:iam::123456789012:user/Bob"}, ""},
		{"bob", "Encrypt", xksBody{"awsPrincipalArn": "arn:aws:iam::123456789012:user/Bobby"}, "AccessDeniedException"},
		{"data-keys", "Encrypt", nil, "AccessDeniedException"},
		{"data-keys", "GenerateDataKeyWithoutPlaintext", nil, ""},
		{"s3", "Encrypt", xksBody{"kmsViaService": nil}, "AccessDeniedException"},
		{"s3", "Encrypt", nil, "AccessDeniedException"},
		{"s3", "Encrypt", xksBody{"kmsViaService": "s3.eu-west-1.amazonaws.com"}, ""},
		{"old", "Encrypt", nil, "InvalidKeyUsageException"},
	} {
		r := p.post("/keys/"+c.key+"/encrypt", encryptBody("aGVsbG8=", xksBody{"requestMetadata": metadata(c.operation, c.change)}))
		switch {
		case c.refusal == "" && r.status != 200:
			t.Errorf("%+v: %d %s", c, r.status, r.body)
		case c.refusal == "AccessDeniedException":
			p.wants(r, 403, c.refusal)
		case c.refusal != "":
			p.wants(r, 400, c.refusal)
		}
	}
	p.wants(p.post("/keys/bob/metadata", xksBody{"requestMetadata": metadata("CreateKey", nil)}), 403, "AccessDeniedException")
	if m, err := xks.ReadKeyMetadata(p.post("/keys/old/metadata", xksBody{"requestMetadata": metadata("CreateKey", nil)}).body); err != nil || !slices.Equal(m.Usages, []string{"DECRYPT"}) {
		t.Errorf("a key for decryption only: %+v %v", m, err)
	}
	sealed := p.post("/keys/alice/encrypt", encryptBody("aGVsbG8=", nil))
	if got := field(t, p.post("/keys/old/decrypt", p.sealedBody(sealed, nil)), "plaintext"); got != "aGVsbG8=" {
		t.Errorf("decrypted %q", got)
	}
}

func TestGlobMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "abc", true}, {"a", "", false}, {"?", "", false}, {"?", "a", true}, {"a*c", "abbbc", true},
		{"a*c", "abbbcd", false}, {"*a*b*", "xxaxxbxx", true}, {"*a*b*", "xxbxxaxx", false}, {"a**", "a", true}, {"*.x", "a.x.x", true}, {"A", "a", false},
		{"*a?c*", "aabcabc", true}, {"aaa*", "aa", false},
	} {
		if got := globMatches(c.pattern, []byte(c.text)); got != c.want {
			t.Errorf("%q of %q: %v", c.pattern, c.text, got)
		}
	}
}

// TestXKSVersions: what an older key version has encrypted decrypts after a rotation; new ciphertexts are of the new version.
func TestXKSVersions(t *testing.T) {
	p := newProxy(newWorld(t, worldConfig{}), nil)
	p.addKeys()
	body := encryptBody("aGVsbG8=", nil)
	old := p.post("/keys/ext.k1/encrypt", body)
	p.addKey("k1", kmsapi.StateEnabled, 3)
	p.KeyChanged(ours, keyID("k1"))
	rotated := p.post("/keys/ext.k1/encrypt", body)
	for i, r := range []reply{old, rotated} {
		m, err := base64.StdEncoding.DecodeString(field(t, r, "ciphertextMetadata"))
		if err != nil || m[4] != []byte{1, 3}[i] {
			t.Errorf("metadata %x of ciphertext %d", m, i)
		}
		if got := field(t, p.post("/keys/ext.k1/decrypt", p.sealedBody(r, nil)), "plaintext"); got != "aGVsbG8=" {
			t.Errorf("ciphertext %d: %q", i, got)
		}
	}
}

// TestXKSApart: what an external key has encrypted is no ciphertext of the KMS API, and the other way round, although the key versions are the same and both
// have the same nonce: their message keys differ. Here somebody has everything but keys, and puts the one into the other's form.
func TestXKSApart(t *testing.T) {
	w := newWorld(t, worldConfig{})
	p := newProxy(w, nil)
	p.addKeys()
	blobOf := w.blob("k1", 1, nil, []byte("hello")) // header (69) || ciphertext || tag, with AAD header || 0000
	n := blobOf[29:53]
	header := blobOf[:69]
	// The AAD of the external form would have to be that of the blob: length (2) || AAD || 11 || metadata (17). No AAD gives it; the nearest is tried all the same.
	sealed := xksBody{"requestMetadata": metadata("Decrypt", nil), "encryptionAlgorithm": "AES_GCM",
		"ciphertext": xksB64(string(blobOf[69:74])), "authenticationTag": xksB64(string(blobOf[74:])), "initializationVector": xksB64(string(n[12:])),
		"ciphertextMetadata":          xksB64("\x01\x00\x00\x00\x01" + string(n[:12])),
		"additionalAuthenticatedData": xksB64(string(header) + "\x00\x00")}
	p.wants(p.post("/keys/ext.k1/decrypt", sealed), 400, "InvalidCiphertextException")

	// The message keys themselves, from the two derivations of one nonce.
	derived := p.derive(n)
	if external := xksMessageKey(derived); bytes.Equal(external[:], derived[:32]) || bytes.Equal(external[:], derived[16:]) {
		t.Error("an external key's message key is one of the KMS API's")
	}
}

// derive is K || C of docs/ciphertext.md §3 for a nonce under the first version of k1.
func (p *proxy) derive(n []byte) (out [48]byte) {
	p.Helper()
	r := p.requests.acquire()
	defer p.requests.release(r)
	r.region = &p.regions[0]
	view, err := p.key(r, ours, keyID("k1"))
	p.must(err)
	d := &r.job.Derive[0]
	d.Offset = view.Versions[0].Offset
	copy(d.Nonce[:], n)
	r.job.Root, r.job.N = hsm.RootID(view.Versions[0].Root), 1
	p.must(p.parts.Run(&r.job, time.Now()))
	return d.Out
}

// xksMessageKey is M of docs/xks-proxy.md.
func xksMessageKey(derived [48]byte) [32]byte {
	return sha256.Sum256(slices.Concat([]byte{0, 0, 0, 1}, derived[:], []byte("keyplane external key v1")))
}

// TestXKSFormat opens what Encrypt answers with the standard library's AES-GCM, by what docs/xks-proxy.md says and nothing of the server but the derivation.
func TestXKSFormat(t *testing.T) {
	p := newProxy(newWorld(t, worldConfig{}), nil)
	p.addKeys()
	for _, aad := range []any{xksB64(xksTestAAD), nil} {
		m := p.object(p.post("/keys/ext.k1/encrypt", encryptBody("SGVsbG8gV29ybGQh", xksBody{"additionalAuthenticatedData": aad})))
		part := func(name string) []byte {
			b, err := base64.StdEncoding.DecodeString(m[name].(string))
			p.must(err)
			return b
		}
		data, iv := part("ciphertextMetadata"), part("initializationVector")
		if len(data) != 17 || !bytes.Equal(data[:5], []byte{1, 0, 0, 0, 1}) {
			t.Fatalf("metadata %x", data)
		}
		key := xksMessageKey(p.derive(slices.Concat(data[5:], iv)))
		block, err := aes.NewCipher(key[:])
		p.must(err)
		gcm, err := cipher.NewGCM(block)
		p.must(err)
		all := append(append([]byte{0, 0}, 17), data...)
		if aad != nil {
			all = slices.Concat([]byte{0, byte(len(xksTestAAD))}, []byte(xksTestAAD), []byte{17}, data)
		}
		if got, err := gcm.Open(nil, iv, slices.Concat(part("ciphertext"), part("authenticationTag")), all); err != nil || string(got) != "Hello World!" {
			t.Errorf("AAD %v: %q %v", aad, got, err)
		}
	}
}

// TestXKSFaults: what the HSM cannot do in time, what fails, and what was damaged on its way are told apart.
func TestXKSFaults(t *testing.T) {
	w := newWorld(t, worldConfig{})
	p := newProxy(w, nil)
	p.addKeys()
	body := encryptBody("aGVsbG8=", xksBody{"ciphertextDataIntegrityValueAlgorithm": "SHA_256"})
	if r := p.post("/keys/ext.k1/encrypt", body); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	run := p.xks.cfg.Run
	for _, c := range []struct {
		err    error
		status int
		name   string
	}{
		{batch.ErrFull, 429, "ThrottlingException"},
		{batch.ErrDeadline, 429, "ThrottlingException"},
		{batch.ErrClosed, 503, "DependencyTimeoutException"},
		{hsm.ErrTimeout, 503, "DependencyTimeoutException"},
		{hsm.ErrUnavailable, 500, "InternalException"},
		{errors.New("anything else"), 500, "InternalException"},
	} {
		p.xks.cfg.Run = func(*hsm.Job, time.Time) error { return c.err }
		p.wants(p.post("/keys/ext.k1/encrypt", body), c.status, c.name)
	}
	// The second derivation, that of the decryption before the reply, gives another key: the ciphertext must not leave.
	calls := 0
	p.xks.cfg.Run = func(j *hsm.Job, now time.Time) error {
		err := run(j, now)
		if calls++; calls == 2 {
			j.Derive[0].Out[5] ^= 1
		}
		return err
	}
	r := p.post("/keys/ext.k1/encrypt", body)
	p.wants(r, 500, "InternalException")
	if calls != 2 || bytes.Contains(r.body, []byte("ciphertext")) {
		t.Errorf("%d rounds, %s", calls, r.body)
	}
	// Without a CDIV there is one derivation.
	calls = 0
	if r := p.post("/keys/ext.k1/encrypt", encryptBody("aGVsbG8=", nil)); r.status != 200 || calls != 1 {
		t.Errorf("%d %s after %d rounds", r.status, r.body, calls)
	}
	p.xks.cfg.Run = run
	w.records.mu.Lock()
	w.records.err = errors.New("the store is away")
	w.records.mu.Unlock()
	p.wants(p.post("/keys/ext.k2/encrypt", body), 500, "InternalException")
}

// TestXKSTimeMax: both rounds of a request have the time since it came together, also where a cold key was loaded in between, and after it no round starts.
func TestXKSTimeMax(t *testing.T) {
	p := newProxy(newWorld(t, worldConfig{}), func(cfg *XKSConfig) { cfg.TimeMax = time.Hour })
	p.addKeys()
	body := encryptBody("aGVsbG8=", xksBody{"ciphertextDataIntegrityValueAlgorithm": "SHA_256"})
	run := p.xks.cfg.Run
	var began []time.Time
	p.xks.cfg.Run = func(j *hsm.Job, now time.Time) error {
		began = append(began, now)
		return run(j, now)
	}
	var loaded time.Time
	p.records.mu.Lock()
	p.records.read = func() { loaded = time.Now() }
	p.records.mu.Unlock()
	if r := p.post("/keys/ext.k2/encrypt", body); r.status != 200 || len(began) != 2 || !began[0].Equal(began[1]) || began[0].After(loaded) || loaded.IsZero() {
		t.Errorf("%d %s: rounds count from %v, the key was loaded at %v", r.status, r.body, began, loaded)
	}
	began = nil
	p.xks.cfg.Run = func(j *hsm.Job, now time.Time) error {
		began = append(began, now)
		p.xks.cfg.TimeMax = 1 // all of it has gone by
		return run(j, now)
	}
	r := p.post("/keys/ext.k2/encrypt", body)
	p.wants(r, 503, "DependencyTimeoutException")
	if len(began) != 1 || bytes.Contains(r.body, []byte("ciphertext")) {
		t.Errorf("%d rounds, %s", len(began), r.body)
	}
	p.wants(p.post("/keys/ext.k2/encrypt", body), 503, "DependencyTimeoutException")
	if len(began) != 1 {
		t.Error("a round starts for a request that is late as it comes")
	}
}

func TestXKSPanics(t *testing.T) {
	w := newWorld(t, worldConfig{})
	p := newProxy(w, nil)
	p.addKeys()
	run := p.xks.cfg.Run
	p.xks.cfg.Run = func(*hsm.Job, time.Time) error { panic("SGVsbG8gV29ybGQh") }
	w.audit.taken()
	r := p.post("/keys/ext.k1/encrypt", encryptBody("SGVsbG8gV29ybGQh", nil))
	p.wants(r, 500, "InternalException")
	if !r.close || w.Panics() != 1 {
		t.Errorf("closed: %v, %d panics", r.close, w.Panics())
	}
	if lines := w.audit.taken(); len(lines) != 1 || !strings.Contains(lines[0], `"eventSource":"xks-proxy.keyplane","eventName":"Encrypt"`) {
		t.Errorf("records %q", lines)
	}
	w.panics.Store(0)
	p.xks.cfg.Run = run
	if r := p.post("/keys/ext.k1/encrypt", encryptBody("aGVsbG8=", nil)); r.status != 200 {
		t.Errorf("the next request: %d %s", r.status, r.body)
	}
}

// TestXKSAudit: every call that somebody signed leaves a record before its reply, with what KMS says of it and none of its secrets.
func TestXKSAudit(t *testing.T) {
	w := newWorld(t, worldConfig{})
	p := newProxy(w, nil)
	p.addKeys()
	w.audit.taken()
	type record struct {
		EventSource, EventName, ErrorCode, ErrorMessage string
		ReadOnly                                        bool
		UserIdentity                                    struct {
			AccessKeyID string `json:"accessKeyId"`
		}
		RequestParameters   map[string]string
		AdditionalEventData map[string]any
		Resources           []struct{ ARN string }
	}
	last := func() (v record) {
		t.Helper()
		lines := w.audit.taken()
		if len(lines) != 1 {
			t.Fatalf("%d records", len(lines))
		}
		for _, secret := range []string{"SGVsbG8gV29ybGQh", "Hello World!", xksB64(xksTestAAD), xksSecret} {
			if strings.Contains(lines[0], secret) {
				t.Errorf("the record has %q", secret)
			}
		}
		if err := json.Unmarshal([]byte(lines[0]), &v); err != nil {
			t.Fatal(err)
		}
		if v.EventSource != "xks-proxy.keyplane" || !v.ReadOnly {
			t.Errorf("%+v", v)
		}
		return v
	}
	sealed := p.post("/keys/ext.k1/encrypt", encryptBody("SGVsbG8gV29ybGQh", xksBody{"additionalAuthenticatedData": xksB64(xksTestAAD)}))
	v := last()
	want := map[string]string{"uriPathPrefix": "/team-a", "externalKeyId": "ext.k1"}
	for name, value := range metadata("Encrypt", nil) {
		want[name] = value.(string)
	}
	material := w.records.keys[keyID("k1")].Versions[0].MaterialID
	if v.EventName != "Encrypt" || v.ErrorCode != "" || v.UserIdentity.AccessKeyID != xksOldID || !maps.Equal(v.RequestParameters, want) ||
		len(v.Resources) != 1 || v.Resources[0].ARN != keyARN("k1") || v.AdditionalEventData["keyMaterialId"] != string(material[:]) {
		t.Errorf("%+v", v)
	}
	p.post("/keys/ext.k1/decrypt", p.sealedBody(sealed, xksBody{"additionalAuthenticatedData": xksB64(xksTestAAD)}))
	if v = last(); v.EventName != "Decrypt" || v.RequestParameters["kmsOperation"] != "Decrypt" || v.AdditionalEventData["keyMaterialId"] != string(material[:]) {
		t.Errorf("%+v", v)
	}
	p.post("/keys/ext.off/encrypt", encryptBody("SGVsbG8gV29ybGQh", nil))
	if v = last(); v.ErrorCode != "InvalidStateException" || v.ErrorMessage == "" || len(v.AdditionalEventData) != 0 || v.Resources[0].ARN != keyARN("off") {
		t.Errorf("%+v", v)
	}
	p.post("/health", xksBody{"requestMetadata": xksBody{"kmsOperation": "KmsHealthCheck", "kmsRequestId": "health-1"}})
	if v = last(); v.EventName != "GetHealthStatus" || v.RequestParameters["kmsRequestId"] != "health-1" {
		t.Errorf("%+v", v)
	}
	c := *p
	c.keys = map[string]*sigv4.AccessKey{xksOldID: newXKSKey(t, xksOldID, xksSecret+"x")}
	c.post("/keys/ext.k1/encrypt", encryptBody("SGVsbG8gV29ybGQh", nil))
	if v = last(); v.ErrorCode != "AuthenticationFailedException" || v.RequestParameters["kmsRequestId"] != "" || v.UserIdentity.AccessKeyID != xksOldID {
		t.Errorf("what nobody signed: %+v", v)
	}
	p.do(p.raw(xksOldID, "POST", "/nowhere"+xks.BasePath+"/health", nil))
	if lines := w.audit.taken(); len(lines) != 0 {
		t.Errorf("what is no call: %q", lines)
	}

	w.audit.fail(errors.New("the disk is full"))
	r := p.post("/keys/ext.k1/encrypt", encryptBody("SGVsbG8gV29ybGQh", nil))
	p.wants(r, 500, "InternalException")
	if bytes.Contains(r.body, []byte("ciphertext")) {
		t.Errorf("a call without a record is answered: %s", r.body)
	}
}

// TestXKSHealth: a verdict is made by the HSM and the parts, serves for less than a minute, and a slow one is no answer.
func TestXKSHealth(t *testing.T) {
	var ready error
	w := newWorld(t, worldConfig{})
	p := newProxy(w, func(cfg *XKSConfig) { cfg.Ready = func() error { return ready } })
	body := xksBody{"requestMetadata": xksBody{"kmsOperation": "KmsHealthCheck", "kmsRequestId": "1"}}
	run, rounds := p.xks.cfg.Run, 0
	p.xks.cfg.Run = func(j *hsm.Job, now time.Time) error {
		rounds++
		if !j.Raw || len(j.Random) == 0 {
			t.Error("the check draws and encrypts nothing")
		}
		return run(j, now)
	}
	for range 3 {
		if r := p.post("/health", body); r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
	}
	if rounds != 1 {
		t.Errorf("%d checks for three requests", rounds)
	}
	age := func(d time.Duration) {
		p.xks.health.mu.Lock()
		p.xks.health.at = time.Now().Add(-d)
		p.xks.health.mu.Unlock()
	}
	// A verdict of half a minute is given once more while the next is made.
	gate := make(chan struct{})
	p.xks.cfg.Run = func(*hsm.Job, time.Time) error { <-gate; return hsm.ErrUnavailable }
	age(30 * time.Second)
	if r := p.post("/health", body); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	age(2 * time.Minute)
	p.wants(p.post("/health", body), 503, "DependencyTimeoutException") // nobody has one that is young enough, in time
	close(gate)
	for deadline := time.Now().Add(10 * time.Second); ; {
		if err, known := p.xks.healthy(); known && err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the next verdict never comes")
		}
	}
	p.wants(p.post("/health", body), 500, "InternalException")
	p.xks.cfg.Run = run
	age(30 * time.Second)
	if r := p.post("/health", body); r.status != 200 {
		t.Errorf("a bad verdict of half a minute is given again: %d %s", r.status, r.body)
	}
	age(time.Hour)
	ready = errors.New("the store does not answer")
	p.wants(p.post("/health", body), 500, "InternalException")
	age(time.Hour)
	ready = nil
	if r := p.post("/health", body); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// TestXKSLimits: connections beyond the bound are closed unserved.
func TestXKSLimits(t *testing.T) {
	p := newProxy(newWorld(t, worldConfig{tcp: true}), func(cfg *XKSConfig) { cfg.ConnsMax = 2 })
	p.addKeys()
	raw := p.raw(xksOldID, "POST", xksBasePath+"/keys/ext.k1/encrypt", jsonOf(t, encryptBody("aGVsbG8=", nil)))
	buf := make([]byte, 4096)
	for range 2 {
		c, err := p.dial()
		p.must(err)
		defer c.Close()
		if firstReply(t, c, raw, buf) == 0 {
			t.Fatal("no reply")
		}
	}
	c, err := p.dial()
	p.must(err)
	defer c.Close()
	p.must(c.SetDeadline(time.Now().Add(20 * time.Second)))
	if n, err := c.Read(buf); err == nil {
		t.Errorf("a third connection is served: %q", buf[:n])
	}
}

func xksB64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
