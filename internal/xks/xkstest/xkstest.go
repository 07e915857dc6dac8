// Package xkstest is the proxy of an external key store for tests: a server of TLS with a CA of its own, which checks signatures, has AES keys in memory, and fails
// as it is told to. It reads and writes JSON, signatures and AES-GCM with other code than package xks and its users, after the specification.
package xkstest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What a Proxy is called by, unless its fields say otherwise.
const (
	Host        = "xks.example.com"
	Path        = "/tests/kms/xks/v1"
	Region      = "eu-west-1"
	AccessKeyID = "ABCDEFGHIJKLMNOP2345"
	Secret      = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"
)

// Proxy is a server with the keys that were given to it.
type Proxy struct {
	Endpoint string         // https://Host
	Roots    *x509.CertPool // its CA
	Dial     map[string]string

	Requests    atomic.Int64 // that came, well signed or not
	Connections atomic.Int64 // of TCP

	fault    atomic.Pointer[Fault]
	server   *httptest.Server
	mu       sync.Mutex // over what follows
	secrets  map[string]string
	keys     map[string]*key
	last     map[string]any // requestMetadata of the last request
	lastPath string
}

// Fault sees a request before the proxy does, signed well or not, and reports whether it answered in its place.
type Fault func(w http.ResponseWriter, r *http.Request) bool

type key struct {
	aead   cipher.AEAD
	status string
	spec   string
	usages []string
}

// New starts a proxy with the keys, which ends with the test. configure may change how it talks TLS; nil leaves it.
func New(t testing.TB, configure func(*tls.Config), keys ...string) *Proxy {
	ca := NewCA(t)
	p := &Proxy{Endpoint: "https://" + Host, Roots: ca.Roots(), secrets: map[string]string{AccessKeyID: Secret}, keys: map[string]*key{}}
	for _, id := range keys {
		p.AddKey(t, id, "AES_256", "ENABLED", "ENCRYPT", "DECRYPT")
	}
	p.server = httptest.NewUnstartedServer(http.HandlerFunc(p.serve))
	p.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	p.server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			p.Connections.Add(1)
		}
	}
	p.server.TLS = &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, Host, time.Now().Add(time.Hour))}}
	if configure != nil {
		configure(p.server.TLS)
	}
	p.server.StartTLS()
	t.Cleanup(func() {
		p.server.CloseClientConnections()
		p.server.Close()
	})
	p.Dial = map[string]string{Host: p.server.Listener.Addr().String()}
	return p
}

// AddKey adds an external key, or replaces one.
func (p *Proxy) AddKey(t testing.TB, id, spec, status string, usages ...string) {
	t.Helper()
	secret := make([]byte, 32)
	_, _ = rand.Read(secret)
	block, err := aes.NewCipher(secret)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys[id] = &key{aead, status, spec, usages}
}

// AddCredential lets requests be signed with another credential too.
func (p *Proxy) AddCredential(accessKeyID, secret string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.secrets[accessKeyID] = secret
}

// SetFault has later requests fail; nil ends it.
func (p *Proxy) SetFault(f Fault) {
	if f == nil {
		p.fault.Store(nil)
		return
	}
	p.fault.Store(&f)
}

// CloseConnections closes every connection, idle or not.
func (p *Proxy) CloseConnections() { p.server.CloseClientConnections() }

// Last is the path and requestMetadata of the last request that was signed well.
func (p *Proxy) Last() (path string, metadata map[string]any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastPath, p.last
}

// Refuse answers with an error.
func Refuse(w http.ResponseWriter, status int, name, message string) {
	Answer(w, status, map[string]any{"errorName": name, "errorMessage": message})
}

// Answer answers with JSON.
func Answer(w http.ResponseWriter, status int, members map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(members)
}

// Slow has the proxy take its time.
func Slow(d time.Duration) Fault {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		wait := time.NewTimer(d)
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-r.Context().Done(): // the client has gone
		}
		return false
	}
}

// Always answers the same: status and body as they are.
func Always(status int, body string) Fault {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
		return true
	}
}

// Hijack gives the connection to f in place of an answer, and closes it then.
func Hijack(f func(c net.Conn)) Fault {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		c, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			f(c)
			_ = c.Close()
		}
		return true
	}
}

// body is a request of any API.
type body struct {
	Metadata   map[string]any `json:"requestMetadata"`
	Plaintext  []byte         `json:"plaintext"`
	Ciphertext []byte         `json:"ciphertext"`
	Extra      []byte         `json:"ciphertextMetadata"`
	IV         []byte         `json:"initializationVector"`
	Tag        []byte         `json:"authenticationTag"`
	AAD        []byte         `json:"additionalAuthenticatedData"`
	Algorithm  string         `json:"encryptionAlgorithm"`
	CDIV       string         `json:"ciphertextDataIntegrityValueAlgorithm"`
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	p.Requests.Add(1)
	raw, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(raw))
	if f := p.fault.Load(); f != nil && (*f)(w, r) {
		return
	}
	if why := p.unsigned(r, raw); why != "" {
		Refuse(w, http.StatusUnauthorized, "AuthenticationFailedException", why)
		return
	}
	var in body
	if err := json.Unmarshal(raw, &in); err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" || r.ProtoMajor != 1 {
		Refuse(w, http.StatusBadRequest, "ValidationException", fmt.Sprint("no JSON, or no POST of it by HTTP/1.1: ", err))
		return
	}
	p.mu.Lock()
	p.last, p.lastPath = in.Metadata, r.URL.Path
	p.mu.Unlock()
	rest, ok := strings.CutPrefix(r.URL.Path, Path)
	if ok && rest == "/health" {
		Answer(w, http.StatusOK, map[string]any{"xksProxyFleetSize": 1, "xksProxyVendor": "v", "xksProxyModel": "m", "ekmVendor": "e",
			"ekmFleetDetails": []any{map[string]any{"id": "1", "model": "m", "healthStatus": "ACTIVE"}}})
		return
	}
	parts := strings.Split(rest, "/")
	if !ok || len(parts) != 4 || parts[0] != "" || parts[1] != "keys" {
		Refuse(w, http.StatusNotFound, "InvalidUriPathException", "")
		return
	}
	p.mu.Lock()
	k := p.keys[parts[2]]
	p.mu.Unlock()
	if k == nil {
		Refuse(w, http.StatusNotFound, "KeyNotFoundException", "no such key")
		return
	}
	switch parts[3] {
	case "metadata":
		Answer(w, http.StatusOK, map[string]any{"keySpec": k.spec, "keyUsage": k.usages, "keyStatus": k.status})
	case "encrypt":
		k.encrypt(w, &in)
	case "decrypt":
		k.decrypt(w, &in)
	default:
		Refuse(w, http.StatusNotFound, "InvalidUriPathException", "")
	}
}

// extra is the ciphertextMetadata of this proxy.
var extra = []byte("v1")

// authenticated is the specification's recommendation for what AES-GCM authenticates.
func authenticated(aad, extra []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(aad)))
	b = append(b, aad...)
	b = append(b, byte(len(extra)))
	return append(b, extra...)
}

func (k *key) encrypt(w http.ResponseWriter, in *body) {
	if in.Algorithm != "AES_GCM" || in.CDIV != "SHA_256" || len(in.Plaintext) == 0 || len(in.Plaintext) > 4300 || len(in.AAD) > 8192 {
		Refuse(w, http.StatusBadRequest, "ValidationException", "")
		return
	}
	if k.status != "ENABLED" {
		Refuse(w, http.StatusBadRequest, "InvalidStateException", "")
		return
	}
	iv := make([]byte, 12)
	_, _ = rand.Read(iv)
	sealed := k.aead.Seal(nil, iv, in.Plaintext, authenticated(in.AAD, extra))
	ciphertext, tag := sealed[:len(in.Plaintext)], sealed[len(in.Plaintext):]
	h := sha256.New()
	for _, part := range [][]byte{in.AAD, extra, iv, ciphertext, tag} {
		h.Write(part)
	}
	enc := base64.StdEncoding.EncodeToString
	Answer(w, http.StatusOK, map[string]any{"ciphertext": enc(ciphertext), "initializationVector": enc(iv), "authenticationTag": enc(tag), "ciphertextMetadata": enc(extra),
		"ciphertextDataIntegrityValue": enc(h.Sum(nil))})
}

func (k *key) decrypt(w http.ResponseWriter, in *body) {
	if in.Algorithm != "AES_GCM" || len(in.IV) != 12 {
		Refuse(w, http.StatusBadRequest, "ValidationException", "")
		return
	}
	plaintext, err := k.aead.Open(nil, in.IV, append(bytes.Clone(in.Ciphertext), in.Tag...), authenticated(in.AAD, in.Extra))
	if err != nil {
		Refuse(w, http.StatusBadRequest, "InvalidCiphertextException", "the tag does not fit")
		return
	}
	Answer(w, http.StatusOK, map[string]any{"plaintext": base64.StdEncoding.EncodeToString(plaintext)})
}

// unsigned says what is wrong with the signature of a request, "" if nothing ("Appendix A: SigV4 signatures on XKS proxy requests").
func (p *Proxy) unsigned(r *http.Request, raw []byte) string {
	const credential, headers, terminator = "AWS4-HMAC-SHA256 Credential=", ", SignedHeaders=host;x-amz-date, Signature=", "/aws4_request"
	value, ok := strings.CutPrefix(r.Header.Get("Authorization"), credential)
	scoped, got, ok2 := strings.Cut(value, headers)
	id, scope, ok3 := strings.Cut(scoped, "/")
	date := r.Header.Get("X-Amz-Date")
	sent, err := time.Parse("20060102T150405Z", date)
	switch {
	case !ok || !ok2 || !ok3:
		return "the Authorization header is not of the form"
	case err != nil || time.Since(sent).Abs() > 5*time.Minute:
		return "the date is wrong"
	case scope != date[:8]+"/"+Region+"/kms-xks-proxy"+terminator:
		return "the scope is wrong"
	case r.URL.RawQuery != "" || r.Host != Host:
		return "a query, or another host"
	}
	p.mu.Lock()
	secret, ok := p.secrets[id]
	p.mu.Unlock()
	if !ok {
		return "an unknown access key"
	}
	sum := func(b []byte) string {
		h := sha256.Sum256(b)
		return hex.EncodeToString(h[:])
	}
	canonical := "POST\n" + r.URL.EscapedPath() + "\n\nhost:" + r.Host + "\nx-amz-date:" + date + "\n\nhost;x-amz-date\n" + sum(raw)
	mac := []byte("AWS4" + secret)
	for _, part := range []string{date[:8], Region, "kms-xks-proxy", "aws4_request", "AWS4-HMAC-SHA256\n" + date + "\n" + scope + "\n" + sum([]byte(canonical))} {
		h := hmac.New(sha256.New, mac)
		h.Write([]byte(part))
		mac = h.Sum(nil)
	}
	if !hmac.Equal([]byte(hex.EncodeToString(mac)), []byte(got)) {
		return "the signature is wrong"
	}
	return ""
}
