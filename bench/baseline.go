package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/internal/awsjson"
	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/pkcs11uri"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// baseline answers the same requests the way they are usually served: an AES key per KMS key in the token, and for every request an
// AES-GCM operation of the token on a session out of a pool. HTTP server, signature check and JSON are keyplane's own, so that what differs
// is the use of the HSM. It keeps no state, checks no policy and has one principal.
//
//	blob: key ID(36) || nonce(12) || zeros, so that it is as long as keyplane's || ciphertext || tag(16)
type baseline struct {
	module   *pkcs11.Ctx
	sessions chan pkcs11.SessionHandle
	verifier *sigv4.Verifier
	access   *sigv4.AccessKey
	pool     sync.Pool // of *exchange

	mu   sync.RWMutex
	keys map[string]pkcs11.ObjectHandle // guarded by mu: by key ID
}

// baselineOps are the operations it answers.
var baselineOps = []string{"GenerateDataKey", "Encrypt", "Decrypt"}

const (
	baselineIDLen = 36
	gcmNonceLen   = 12
	gcmTagBits    = 128
	baselineARN   = "arn:aws:kms:" + benchRegion + ":" + benchAccount + ":key/"
)

var targetPrefix = []byte(kmsapi.TargetPrefix)

// exchange is the memory of one request and its reply.
type exchange struct {
	headers []sigv4.Header
	target  []byte
	scratch sigv4.Scratch
	json    awsjson.Scanner
	blob    []byte
	out     []byte

	keyID, plaintext, ciphertext []byte
	bytes                        int
}

// runBaseline is the child process. The token is the one of a PKCS#11 URI; the module's own settings come with the environment.
func runBaseline(args []string) error {
	fs := flag.NewFlagSet("baseline", flag.ExitOnError)
	uri := fs.String("hsm", "", "PKCS#11 `URI` of the token")
	sessions := fs.Int("sessions", benchSessions, "sessions in the pool")
	_ = fs.Parse(args)
	b := &baseline{keys: map[string]pkcs11.ObjectHandle{}, sessions: make(chan pkcs11.SessionHandle, *sessions)}
	b.pool.New = func() any { return new(exchange) }
	var err error
	if b.access, err = benchAccessKey(); err != nil {
		return err
	}
	if b.verifier, err = sigv4.New(sigv4.Config{Regions: []string{benchRegion}, Keys: b}); err != nil {
		return err
	}
	if err := b.login(*uri, *sessions); err != nil {
		return err
	}
	s := &fasthttp.Server{
		Handler: b.handle, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, IdleTimeout: time.Minute,
		NoDefaultServerHeader: true, NoDefaultContentType: true, DisableHeaderNamesNormalizing: true, DisablePreParseMultipartForm: true,
		ReadBufferSize: kmsapi.HeadersMax, WriteBufferSize: 16 << 10, MaxRequestBodySize: kmsapi.BodyMax,
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("at http://%s\n", ln.Addr())
	return s.Serve(ln)
}

// AccessKey makes baseline the verifier's source of keys.
func (b *baseline) AccessKey(id []byte) *sigv4.AccessKey {
	if string(id) != b.access.ID() {
		return nil
	}
	return b.access
}

// login opens the sessions.
func (b *baseline) login(uri string, sessions int) error {
	u, err := pkcs11uri.Parse(uri)
	if err != nil {
		return err
	}
	pin, err := os.ReadFile(strings.TrimPrefix(pkcs11uri.Get(u.Query, "pin-source"), "file:"))
	if err != nil {
		return err
	}
	if b.module = pkcs11.New(pkcs11uri.Get(u.Query, "module-path")); b.module == nil {
		return errors.New("the PKCS#11 module cannot be loaded")
	}
	if err := b.module.Initialize(); err != nil {
		return err
	}
	slots, err := b.module.GetSlotList(true)
	if err != nil {
		return err
	}
	for _, slot := range slots {
		info, err := b.module.GetTokenInfo(slot)
		if err != nil || info.Label != pkcs11uri.Get(u.Path, "token") {
			continue
		}
		for i := range sessions {
			session, err := b.module.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
			if err != nil {
				return err
			}
			if i == 0 {
				if err := b.module.Login(session, pkcs11.CKU_USER, strings.TrimSpace(string(pin))); err != nil {
					return err
				}
			}
			b.sessions <- session
		}
		return nil
	}
	return errors.New("no token has the URI's label")
}

func (b *baseline) handle(ctx *fasthttp.RequestCtx) {
	x := b.pool.Get().(*exchange)
	defer b.pool.Put(x)
	ctx.Response.Header.SetContentTypeBytes(replyType)
	ctx.Response.Header.SetCanonical(requestIDHeader, requestID)
	if err := b.serve(ctx, x); err != nil {
		ctx.SetStatusCode(fasthttp.StatusBadRequest)
		ctx.SetBodyString(err.Error())
		return
	}
	ctx.Response.SetBody(x.out)
}

func (b *baseline) serve(ctx *fasthttp.RequestCtx, x *exchange) error {
	x.readHeaders(ctx.Request.Header.RawHeaders())
	body := ctx.Request.Body()
	r := sigv4.Request{Method: ctx.Method(), Path: ctx.Path(), Headers: x.headers, Body: body}
	if _, code := b.verifier.Verify(&r, &x.scratch, time.Now()); code != kmsapi.OK {
		return errors.New(string(x.scratch.Message()))
	}
	if err := x.readBody(body); err != nil {
		return err
	}
	switch string(bytes.TrimPrefix(x.target, targetPrefix)) {
	case "GenerateDataKey":
		return b.generateDataKey(x)
	case "Encrypt":
		return b.encrypt(x)
	case "Decrypt":
		return b.decrypt(x)
	case "CreateKey":
		return b.createKey(x)
	}
	return errors.New("no such operation here")
}

// readHeaders splits the header block; names become lower case in place.
func (x *exchange) readHeaders(raw []byte) {
	x.headers, x.target = x.headers[:0], nil
	for len(raw) > 0 {
		line, rest, _ := bytes.Cut(raw, []byte("\r\n"))
		raw = rest
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		for i, c := range name {
			if c >= 'A' && c <= 'Z' {
				name[i] = c + 'a' - 'A'
			}
		}
		value = bytes.TrimSpace(value)
		x.headers = append(x.headers, sigv4.Header{Name: name, Value: value})
		if string(name) == "x-amz-target" {
			x.target = value
		}
	}
}

func (x *exchange) readBody(body []byte) error {
	x.keyID, x.plaintext, x.ciphertext, x.bytes = nil, nil, nil, 32
	s := &x.json
	s.Reset(body)
	if s.Object() {
		for name, ok := s.Next(); ok; name, ok = s.Next() {
			switch string(name) {
			case "KeyId":
				x.keyID, _ = s.String()
			case "Plaintext":
				x.plaintext, _ = s.Base64()
			case "CiphertextBlob":
				x.ciphertext, _ = s.Base64()
			case "NumberOfBytes":
				n, _ := s.Int()
				x.bytes = int(n)
			}
		}
	}
	if s.End(); s.Fault() != awsjson.None {
		return errors.New("the body is not the JSON it should be")
	}
	if x.bytes < 1 || x.bytes > kmsapi.RandomBytesMax {
		return errors.New("NumberOfBytes is not 1 to 1024")
	}
	return nil
}

func (b *baseline) key(id []byte) (pkcs11.ObjectHandle, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	key, ok := b.keys[string(id)]
	if !ok {
		return 0, errors.New("no such key")
	}
	return key, nil
}

// createKey makes an AES key in the token: a session object, because SoftHSM reads a token object's file at every use.
func (b *baseline) createKey(x *exchange) error {
	var u [16]byte
	_, _ = rand.Read(u[:])
	id := fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
	session := <-b.sessions
	key, err := b.module.GenerateKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)}, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32),
	})
	b.sessions <- session
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.keys[id] = key
	b.mu.Unlock()
	x.out = fmt.Appendf(x.out[:0], `{"KeyMetadata":{"KeyId":%q}}`, id)
	return nil
}

func (b *baseline) generateDataKey(x *exchange) error {
	key, err := b.key(x.keyID)
	if err != nil {
		return err
	}
	session := <-b.sessions
	plaintext, err := b.module.GenerateRandom(session, x.bytes)
	if err == nil {
		err = b.seal(x, session, key, plaintext)
	}
	b.sessions <- session
	if err != nil {
		return err
	}
	x.member("{", "CiphertextBlob", x.blob)
	x.member(",", "Plaintext", plaintext)
	x.end(`","KeyMaterialId":"0000000000000000000000000000000000000000000000000000000000000000"}`)
	return nil
}

func (b *baseline) encrypt(x *exchange) error {
	key, err := b.key(x.keyID)
	if err != nil {
		return err
	}
	session := <-b.sessions
	err = b.seal(x, session, key, x.plaintext)
	b.sessions <- session
	if err != nil {
		return err
	}
	x.member("{", "CiphertextBlob", x.blob)
	x.end(`","EncryptionAlgorithm":"SYMMETRIC_DEFAULT"}`)
	return nil
}

// seal leaves the blob in x.
func (b *baseline) seal(x *exchange, session pkcs11.SessionHandle, key pkcs11.ObjectHandle, plaintext []byte) error {
	x.blob = append(append(x.blob[:0], x.keyID...), make([]byte, blob.HeaderLen-baselineIDLen)...)
	nonce := x.blob[baselineIDLen:][:gcmNonceLen]
	_, _ = rand.Read(nonce)
	params := pkcs11.NewGCMParams(nonce, x.keyID, gcmTagBits)
	defer params.Free()
	if err := b.module.EncryptInit(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, key); err != nil {
		return err
	}
	sealed, err := b.module.Encrypt(session, plaintext)
	x.blob = append(x.blob, sealed...)
	return err
}

func (b *baseline) decrypt(x *exchange) error {
	if len(x.ciphertext) < blob.LenMin {
		return errors.New("the blob is too short")
	}
	x.keyID = x.ciphertext[:baselineIDLen]
	key, err := b.key(x.keyID)
	if err != nil {
		return err
	}
	session := <-b.sessions
	plaintext, err := b.open(x, session, key)
	b.sessions <- session
	if err != nil {
		return err
	}
	x.member("{", "Plaintext", plaintext)
	x.end(`","KeyMaterialId":"0000000000000000000000000000000000000000000000000000000000000000","EncryptionAlgorithm":"SYMMETRIC_DEFAULT"}`)
	return nil
}

func (b *baseline) open(x *exchange, session pkcs11.SessionHandle, key pkcs11.ObjectHandle) ([]byte, error) {
	params := pkcs11.NewGCMParams(x.ciphertext[baselineIDLen:][:gcmNonceLen], x.keyID, gcmTagBits)
	defer params.Free()
	if err := b.module.DecryptInit(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, key); err != nil {
		return nil, err
	}
	return b.module.Decrypt(session, x.ciphertext[blob.HeaderLen:])
}

// member appends a blob; begin is what stands before its name, { at the reply's start.
func (x *exchange) member(begin, name string, value []byte) {
	if begin == "{" {
		x.out = x.out[:0]
	}
	x.out = append(append(append(append(x.out, begin...), '"'), name...), `":`...)
	x.out = awsjson.AppendBase64(x.out, value)
}

// end appends the key's ARN and what follows it.
func (x *exchange) end(rest string) {
	x.out = append(append(append(append(x.out, `,"KeyId":"`...), baselineARN...), x.keyID...), rest...)
}
