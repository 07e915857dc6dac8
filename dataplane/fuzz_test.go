package dataplane

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// stream is a connection whose client has sent everything and reads the answer later.
type stream struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (s *stream) Read(p []byte) (int, error)       { return s.in.Read(p) }
func (s *stream) Write(p []byte) (int, error)      { return s.out.Write(p) }
func (s *stream) Close() error                     { return nil }
func (s *stream) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }
func (s *stream) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }
func (s *stream) SetDeadline(time.Time) error      { return nil }
func (s *stream) SetReadDeadline(time.Time) error  { return nil }
func (s *stream) SetWriteDeadline(time.Time) error { return nil }

// serve has a server read raw as it reads a connection and returns what it writes.
func serve(s *Server, raw []byte) []byte {
	c := &stream{in: bytes.NewReader(raw)}
	_ = s.http.ServeConn(&conn{Conn: c, s: s, perIP: &addrCount{open: map[netip.Addr]int{}, most: 1, allMax: 1}})
	return c.out.Bytes()
}

// in is the same world for one input of a fuzz target.
func (w *world) in(t *testing.T) *world {
	c := *w
	c.TB = t
	return &c
}

// FuzzPrecheck: whatever fasthttp and the pre-check let through, net/http reads as the same method, target, headers and body. Two readings
// of one request are how requests are smuggled.
func FuzzPrecheck(f *testing.F) {
	s, err := New(Config{Regions: []string{testRegion}, Ready: func() error { return nil }, Logger: quiet, KeyCacheBytes: 1 << 16, AliasCacheBytes: 1 << 16})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(s.Close)
	type seen struct {
		method, uri string
		headers     []sigv4.Header
		body        []byte
	}
	var first *seen
	served := 0
	s.http.Handler = func(ctx *fasthttp.RequestCtx) {
		r := s.requests.acquire()
		if served++; served == 1 && s.precheck(ctx, r) == kmsapi.OK {
			first = &seen{method: string(r.signed.Method), uri: string(ctx.Request.Header.RequestURI()), body: bytes.Clone(r.signed.Body)}
			for _, h := range r.signed.Headers {
				first.headers = append(first.headers, sigv4.Header{Name: bytes.Clone(h.Name), Value: bytes.Clone(h.Value)})
			}
		}
		s.requests.release(r)
		ctx.SetConnectionClose()
	}
	const post = "POST / HTTP/1.1\r\nHost: kms.test\r\n"
	for _, seed := range []string{
		post + "Content-Length: 2\r\n\r\n{}", post + "\r\n", "POST /?a=b HTTP/1.1\r\nHost: a\r\n\r\n", "POST / HTTP/1.0\r\nHost: a\r\n\r\n",
		post + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", post + "Content-Length: +2\r\n\r\n{}", post + "Content-Length: 02\r\n\r\n{}",
		post + "Content-Length: 2, 2\r\n\r\n{}", post + "Content-Length: -1\r\n\r\n", post + "Content-Length:\r\n\r\n", post + "Content-Length: 99999999999999999999\r\n\r\n",
		post + "content-length : 2\r\n\r\n{}", post + "a: b\r\n c: d\r\n\r\n", post + "a: b\nContent-Length: 2\r\n\r\n{}", "\r\n\r\n" + post + "\r\n",
		"POST http://other/ HTTP/1.1\r\nHost: a\r\n\r\n", "POST * HTTP/1.1\r\nHost: a\r\n\r\n", "POST //x HTTP/1.1\r\nHost: a\r\n\r\n", "post / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST  / HTTP/1.1\r\nHost: a\r\n\r\n", "POST / HTTP/2.0\r\nHost: a\r\n\r\n", "POST /\r\nHost: a\r\n\r\n", "POST / HTTP/1.1 \r\nHost: a\r\n\r\n",
		post + "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}", post + "Connection: close\r\nContent-Length: 3\r\n\r\nabcPOST / HTTP/1.1\r\n",
		post + "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 5\r\n\r\n--x--", post + "Upgrade: h2c\r\nPragma: no-cache\r\n\r\n", post + "x:\xff\t y \r\n\r\n",
		"POST /#f HTTP/1.1\r\nHost: a\r\n\r\n", "POST /%20 HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		first, served = nil, 0
		serve(s, raw)
		if first == nil {
			return
		}
		// Empty lines before the request line are to be ignored (RFC 9112 §2.2), which net/http leaves out.
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(bytes.TrimLeft(raw, "\r\n"))))
		if err != nil {
			t.Fatalf("net/http refuses what we accept: %v\n%q", err, raw)
		}
		body, err := io.ReadAll(req.Body)
		if err != nil || req.Method != first.method || req.RequestURI != first.uri || req.URL.Path != "/" || !bytes.Equal(body, first.body) {
			t.Fatalf("net/http reads %s %s %q (%v), we %s %s %q\n%q", req.Method, req.RequestURI, body, err, first.method, first.uri, first.body, raw)
		}
		ours := map[string][]string{}
		for _, h := range first.headers {
			name := http.CanonicalHeaderKey(string(h.Name))
			ours[name] = append(ours[name], string(h.Value))
		}
		if len(ours["Host"]) != 1 || ours["Host"][0] != req.Host {
			t.Fatalf("Host is %q here and %q there\n%q", ours["Host"], req.Host, raw)
		}
		delete(ours, "Host")
		if _, sent := ours["Cache-Control"]; !sent && ours["Pragma"] != nil {
			req.Header.Del("Cache-Control") // net/http makes it of Pragma: no-cache
		}
		if len(ours) != len(req.Header) {
			t.Fatalf("headers %q here, %q there\n%q", ours, req.Header, raw)
		}
		for name, values := range ours {
			if !slices.Equal(values, req.Header[name]) {
				t.Fatalf("%s is %q here and %q there\n%q", name, values, req.Header[name], raw)
			}
		}
	})
}

// checkReply holds for every reply to one request: HTTP that a client can read, JSON, and for an error a __type with its status.
func checkReply(t *testing.T, out []byte) reply {
	t.Helper()
	r, err := readReply(bufio.NewReader(bytes.NewReader(out)))
	if err != nil {
		t.Fatalf("not a reply: %v\n%q", err, out)
	}
	if !json.Valid(r.body) {
		t.Fatalf("not JSON: %d %q", r.status, r.body)
	}
	if r.header.Get("Content-Type") != kmsapi.ContentType || !requestIDForm.MatchString(r.header.Get("x-amzn-RequestId")) {
		t.Fatalf("headers %v", r.header)
	}
	code := kmsapi.CodeOf(r.exception())
	if (code == kmsapi.OK) != (r.status == 200) || code != kmsapi.OK && code.Status() != r.status || code == kmsapi.KMSInternal {
		t.Fatalf("%d %s", r.status, r.body)
	}
	return r
}

// FuzzHandle: the whole way of a request with hostile bytes. Every second input is signed as it should be and gets past authentication;
// in the others a byte of the request is another one than was signed.
func FuzzHandle(f *testing.F) {
	w := newWorld(f, worldConfig{plain: true})
	w.addKey("k1", kmsapi.StateEnabled, 2)
	w.records.aliases["alias/a"] = keyID("k1")
	blob := base64.StdEncoding.EncodeToString(w.blob("k1", 1, map[string]string{"a": "1"}, []byte("hello")))
	id := keyID("k1").String()
	ext := w.inStore(w.addKey("ext", kmsapi.StateEnabled, 1), w.addExternalStore(externalID)).ID.String()
	extBlob := base64.StdEncoding.EncodeToString(w.blob("ext", 1, nil, []byte("hello")))
	w.addPrivateKey("ec", kmsapi.StateEnabled, keyspec.P256, keyspec.SignVerify)
	w.addPrivateKey("mac", kmsapi.StateEnabled, keyspec.HMAC256, keyspec.GenerateVerifyMAC)
	w.addPrivateKey("agree", kmsapi.StateEnabled, keyspec.P256, keyspec.KeyAgreement)
	w.addPrivateKey("kem", kmsapi.StateEnabled, keyspec.MLKEM768, keyspec.EncapsulateDecapsulate)
	w.addPrivateKey("rsa", kmsapi.StateEnabled, keyspec.RSA2048, keyspec.EncryptDecrypt)
	for i, body := range []string{
		`{"CiphertextBlob":"` + blob + `","EncryptionContext":{"a":"1"}}`, `{"KeyId":"` + id + `","Plaintext":"aGVsbG8=","EncryptionContext":{"\u00e9":"\ud83d\ude00"}}`,
		`{"KeyId":"alias/a","KeySpec":"AES_256"}`, `{"KeyId":"` + keyARN("k1") + `","NumberOfBytes":1024}`, `{"NumberOfBytes":1}`,
		`{"CiphertextBlob":"` + blob + `","SourceEncryptionContext":{"a":"1"},"DestinationKeyId":"` + id + `","DestinationEncryptionContext":{"b":"2"}}`,
		`{"CiphertextBlob":"` + extBlob + `"}`, `{"KeyId":"` + ext + `","Plaintext":"aGVsbG8="}`, `{"NumberOfBytes":1,"CustomKeyStoreId":"` + externalID + `"}`,
		`{"KeyId":"` + keyARN("ec") + `","Message":"aGVsbG8=","SigningAlgorithm":"ECDSA_SHA_256"}`, `{"KeyId":"` + keyARN("mac") + `","Message":"aGVsbG8=","MacAlgorithm":"HMAC_SHA_256","Mac":"AAAA"}`,
		`{"KeyId":"` + keyARN("agree") + `","KeyAgreementAlgorithm":"ECDH","PublicKey":"MFkw"}`, `{"KeyId":"` + keyARN("kem") + `","EncapsulationAlgorithm":"ML_KEM","SharedSecretCiphertextBlob":"AAAA"}`,
		`{"KeyId":"` + keyARN("rsa") + `","Plaintext":"aGVsbG8=","EncryptionAlgorithm":"RSAES_OAEP_SHA_1"}`, `{"KeyId":"` + id + `","KeyPairSpec":"ECC_NIST_P256"}`,
		``, `null`, `{`, `{"a":{"a":{"a":[[[]]]}}}`, `{"KeyId":"\u0000","GrantTokens":["\n"],"KeySpec":"\"","EncryptionAlgorithm":"\u2028"}`,
	} {
		f.Add(uint8(i), false, 0, uint8(0), []byte(body))
		f.Add(uint8(i), true, 97*i, uint8(255-i), []byte(body))
	}
	f.Fuzz(func(t *testing.T, op uint8, break_ bool, at int, with uint8, body []byte) {
		if len(body) > kmsapi.BodyMax {
			return
		}
		name := "NoSuchOperation"
		if int(op) < len(operations) {
			name = operations[op].Name
		}
		w := w.in(t)
		raw := w.call(name, string(body))
		if break_ && at >= 0 && at < len(raw) {
			raw[at] = with
		}
		out := serve(w.Server, raw)
		if len(out) == 0 && break_ {
			return // less than a request; the client hung up
		}
		if i := bytes.Index(out, []byte("HTTP/1.1 100 Continue\r\n\r\n")); i == 0 {
			out = out[len("HTTP/1.1 100 Continue\r\n\r\n"):]
		}
		if r := checkReplyOrHealth(t, out); !break_ && strings.Contains(r.exception(), "Signature") {
			t.Fatalf("%d %s", r.status, r.body)
		}
		if n := w.Panics(); n != 0 {
			t.Fatalf("%d panics", n)
		}
	})
}

// checkReplyOrHealth is checkReply, but for a broken request that came to be GET /healthz it would be text.
func checkReplyOrHealth(t *testing.T, out []byte) reply {
	t.Helper()
	if bytes.Contains(out, []byte("text/plain")) {
		r, err := readReply(bufio.NewReader(bytes.NewReader(out)))
		if err != nil || r.header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Fatalf("%v, %q", err, out)
		}
		return r
	}
	return checkReply(t, out)
}

// FuzzOpen changes a valid ciphertext with an idea of its parts. None of what comes out decrypts, unless it is what went in.
func FuzzOpen(f *testing.F) {
	w := newWorld(f, worldConfig{plain: true})
	w.addKey("k1", kmsapi.StateEnabled, 2)
	w.addKey("k2", kmsapi.StateEnabled, 1)
	store := w.addExternalStore(externalID)
	w.inStore(w.addKey("ext", kmsapi.StateEnabled, 1), store)
	w.inStore(w.addKey("ext2", kmsapi.StateEnabled, 1), store)
	context := map[string]string{"a": "1"}
	valid := [][]byte{w.blob("k1", 1, context, []byte("hello")), w.blob("k1", 2, context, []byte("hello")), w.blob("k1", 1, context, []byte("other")),
		w.blob("k2", 1, context, []byte("hello")), w.blob("k1", 1, nil, []byte("hello")), w.blob("k1", 1, context, make([]byte, 4096)),
		w.blob("ext", 1, context, []byte("hello")), w.blob("ext", 1, context, []byte("other")), w.blob("ext2", 1, context, []byte("hello")), w.blob("ext", 1, context, make([]byte, 4096))}
	// Offsets of the parts: version, suite, account, form, key ID, key version, nonce (two halves), commitment, ciphertext; of external keys then IV, tag,
	// metadata, ciphertext.
	parts := []int{0, 1, 2, 8, 9, 25, 29, 41, 53, 69, 70, 82, 98, 99}
	for how := range uint8(8) {
		for part := range uint8(len(parts)) {
			f.Add(how, uint8(0), part+how, part, uint16(part)*7, uint8(1)<<(part%8))
			f.Add(how, uint8(6), part+how, part, uint16(part)*8, uint8(1)<<(part%8))
		}
	}
	f.Fuzz(func(t *testing.T, how, from, other, part uint8, at uint16, bits uint8) {
		original := valid[int(from)%len(valid)]
		donor := valid[int(other)%len(valid)]
		b := bytes.Clone(original)
		start := min(parts[int(part)%len(parts)], len(b), len(donor))
		end := len(b)
		if next := int(part)%len(parts) + 1; next < len(parts) {
			end = min(parts[next], len(b))
		}
		offset := int(at) % len(b)
		switch how % 8 {
		case 0: // a byte
			b[offset] ^= bits
		case 1: // a part of another ciphertext
			copy(b[start:end], donor[start:])
		case 2: // everything from a part on
			b = append(b[:start], donor[start:]...)
		case 3: // shorter
			b = b[:offset]
		case 4: // longer
			b = append(b, bytes.Repeat([]byte{bits}, 1+int(at)%64)...)
		case 5: // a byte less in the middle, one more
			b = append(b[:offset], b[offset+1:]...)
		case 6: // a part in all the same bits
			for i := start; i < end; i++ {
				b[i] = bits
			}
		case 7: // the tag
			b[len(b)-1-offset%16] ^= bits
		}
		w := w.in(t)
		r := checkReply(t, serve(w.Server, w.call("Decrypt", `{"CiphertextBlob":"`+base64.StdEncoding.EncodeToString(b)+`","EncryptionContext":{"a":"1"}}`)))
		same := slices.ContainsFunc(valid, func(v []byte) bool { return bytes.Equal(v, b) }) && !bytes.Equal(b, valid[4]) // made without context
		if (r.status == 200) != same {
			t.Fatalf("%d %s for %x", r.status, r.body, b)
		}
		switch r.exception() {
		case "", "InvalidCiphertextException", "AccessDeniedException", "ValidationException", "KMSInvalidStateException":
		default:
			t.Fatalf("%d %s", r.status, r.body)
		}
	})
}
