package xksclient

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/internal/xks"
	"github.com/keyplane/keyplane/ratelimit"
)

const (
	attemptMax = 250 * time.Millisecond // connect, TLS, request and answer ("KMS Considerations" of every API)
	callMax    = 500 * time.Millisecond // two of them

	concurrencyDefault = 512 // the rate of a key store, quota.CustomKeyStoreRate, where each request takes attemptMax, and some more
	warningsEvery      = time.Second
	warningsBurst      = 10
)

// Config says where a proxy is and how it is called.
type Config struct {
	Endpoint    string // XksProxyUriEndpoint
	Path        string // XksProxyUriPath
	Region      string // that requests are signed for
	AccessKeyID string // of XksProxyAuthenticationCredential
	Secret      []byte // its RawSecretAccessKey. New copies it

	RootCAs     *x509.CertPool    // that the proxy's certificate chains to; nil: the system's
	Certificate *tls.Certificate  // shown to proxies that ask for one (mTLS); nil: none
	Dial        map[string]string // host of an endpoint, in lower case, to the host:port that is dialled instead of its port 443; TLS and signature are for the host all the same

	ConcurrencyMax int          // calls under way, above which others are refused at once; 0 is 512
	Logger         *slog.Logger // nil: none
}

// Client calls one proxy. Safe for concurrent use.
type Client struct {
	host, path, region  string
	attemptMax, callMax time.Duration

	key     *sigv4.AccessKey
	slots   chan struct{} // one in it for each call under way
	pool    pool
	breaker breaker
	log     *slog.Logger
	warned  ratelimit.Sampler
	start   time.Time

	running sync.RWMutex // read-locked by calls
	closed  bool         // running
}

// New makes a client. It connects with the first call.
func New(cfg Config) (*Client, error) {
	switch {
	case !xks.ValidEndpoint(cfg.Endpoint):
		return nil, errors.New("xksclient: the endpoint is not https:// and the name of a host")
	case !xks.ValidPath(cfg.Path):
		return nil, errors.New("xksclient: the path does not end in " + xks.BasePath)
	case cfg.ConcurrencyMax < 0:
		return nil, errors.New("xksclient: ConcurrencyMax is negative")
	}
	c := &Client{host: xks.Host(cfg.Endpoint), path: cfg.Path, region: cfg.Region, attemptMax: attemptMax, callMax: callMax, log: cfg.Logger, start: time.Now()}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.log = c.log.With("proxy", cfg.Endpoint+cfg.Path)
	if !xks.ValidAccessKeyID(cfg.AccessKeyID) || !xks.ValidSecret(cfg.Secret) {
		return nil, errors.New("xksclient: the access key ID or the secret is not of the form of an XksProxyAuthenticationCredential")
	}
	var err error
	if c.key, err = sigv4.NewAccessKey(cfg.AccessKeyID, cfg.Secret, sigv4.Principal{}); err != nil {
		return nil, err
	}
	if err := c.write(&request{api: xks.GetHealthStatus}, new(scratch)); err != nil {
		return nil, err // the Region
	}
	n := cfg.ConcurrencyMax
	if n == 0 {
		n = concurrencyDefault
	}
	c.slots = make(chan struct{}, n)
	c.warned.Limit = ratelimit.Limit{Interval: warningsEvery, Burst: warningsBurst}
	c.breaker = breaker{tripsAfter: tripsAfter, restsFor: restsFor}
	c.pool.init(&cfg, c.host, n)
	return c, nil
}

// Close waits for the calls that are under way, half a second at most, closes the connections and wipes the credential. Calls that come later fail as those of a
// key store that is not connected.
func (c *Client) Close() {
	c.running.Lock()
	defer c.running.Unlock()
	c.closed = true
	c.pool.drain(time.Now().Add(idleMax)) // all
	c.key.Wipe()
}

// Health asks how the proxy and its HSMs are (GetHealthStatus). operation is the KMS operation that wants to know, or xks.KmsHealthCheck. An error is an
// *xks.Error of the stage AtStore; that no HSM is available is one. Health is asked also while the breaker and the bulkhead let nothing through.
func (c *Client) Health(ctx context.Context, operation, requestID string) (h *xks.Health, err error) {
	m := &xks.Metadata{Operation: operation, RequestID: requestID}
	e := c.call(ctx, &request{api: xks.GetHealthStatus, stage: xks.AtStore, id: requestID}, func(b []byte) []byte { return xks.AppendRequest(b, m) },
		func(answer []byte) (err error) { h, err = xks.ReadHealth(answer); return err })
	if e == nil && !h.Available() {
		e = xks.Fail(xks.Unhealthy, xks.AtStore, nil)
	}
	if e != nil {
		return nil, e
	}
	return h, nil
}

// KeyMetadata asks whether an external key can be that of a KMS key (GetKeyMetadata, for CreateKey). An error that tells of it is an *xks.Error of the stage AtKey.
func (c *Client) KeyMetadata(ctx context.Context, key string, m *xks.Metadata) error {
	if !xks.ValidKeyID(key) {
		return errKeyID
	}
	var found *xks.KeyMetadata
	e := c.call(ctx, &request{api: xks.GetKeyMetadata, stage: xks.AtKey, key: key, id: m.RequestID}, func(b []byte) []byte { return xks.AppendRequest(b, m) },
		func(answer []byte) (err error) { found, err = xks.ReadKeyMetadata(answer); return err })
	if e == nil {
		e = found.Unfit()
	}
	if e != nil {
		return e
	}
	return nil
}

var errKeyID = errors.New("xksclient: what is to name an external key is no key ID")

// Encrypt has the external key encrypt 1 to xks.PlaintextMax bytes, with at most xks.AADMax bytes of additional authenticated data. A failure is an *xks.Error of
// the stage AtCrypto. The result is the caller's.
func (c *Client) Encrypt(ctx context.Context, key string, m *xks.Metadata, plaintext, aad []byte) (sealed xks.Sealed, err error) {
	if !xks.ValidKeyID(key) {
		return xks.Sealed{}, errKeyID
	}
	if len(plaintext) == 0 || len(plaintext) > xks.PlaintextMax || len(aad) > xks.AADMax {
		return xks.Sealed{}, fmt.Errorf("xksclient: %d bytes to encrypt with %d bytes of additional authenticated data", len(plaintext), len(aad))
	}
	e := c.call(ctx, &request{api: xks.Encrypt, stage: xks.AtCrypto, key: key, id: m.RequestID}, func(b []byte) []byte { return xks.AppendEncrypt(b, m, plaintext, aad) },
		func(answer []byte) (err error) {
			sealed, err = xks.ReadEncrypt(answer, len(plaintext), aad)
			return err
		})
	if e != nil {
		return xks.Sealed{}, e
	}
	return sealed, nil
}

// Decrypt is the inverse of Encrypt. What no Encrypt can have answered is refused without asking, as the proxy would. The result is the caller's.
func (c *Client) Decrypt(ctx context.Context, key string, m *xks.Metadata, sealed *xks.Sealed, aad []byte) (plaintext []byte, err error) {
	if !xks.ValidKeyID(key) {
		return nil, errKeyID
	}
	if !sealed.Valid() || len(aad) > xks.AADMax {
		return nil, xks.Fail(xks.InvalidCiphertext, xks.AtCrypto, errors.New("lengths that are none of the API"))
	}
	e := c.call(ctx, &request{api: xks.Decrypt, stage: xks.AtCrypto, key: key, id: m.RequestID}, func(b []byte) []byte { return xks.AppendDecrypt(b, m, sealed, aad) },
		func(answer []byte) (err error) {
			plaintext, err = xks.ReadDecrypt(answer, len(sealed.Ciphertext))
			return err
		})
	if e != nil {
		return nil, e
	}
	return plaintext, nil
}

// request is what a call is for.
type request struct {
	api   xks.API
	stage xks.Stage
	key   string
	id    string // kmsRequestId, for logs
}

var (
	errBusy    = errors.New("as many calls are under way as may be")
	errResting = errors.New("not asked, after calls that came to nothing")

	// busy is what the key store's rate answers too: SDKs try again. A proxy that throttles is a KMSInvalidStateException, which they do not.
	busy = kmsapi.New(kmsapi.Throttling, kmsapi.Throttling.Text())
)

// call is one call: it sends what write appends until there is an answer that read takes, but at most twice.
func (c *Client) call(ctx context.Context, r *request, write func([]byte) []byte, read func(answer []byte) error) *xks.Error {
	c.running.RLock()
	defer c.running.RUnlock()
	if c.closed {
		return xks.Fail(xks.NotConnected, r.stage, nil)
	}
	now := time.Now()
	p := passHealth
	if r.api != xks.GetHealthStatus {
		select {
		case c.slots <- struct{}{}:
			defer func() { <-c.slots }()
		default:
			return &xks.Error{Failure: xks.Throttling, Refusal: busy, Cause: errBusy}
		}
		var f xks.Failure
		if p, f = c.breaker.admit(now); f != xks.OK {
			return xks.Fail(f, r.stage, errResting)
		}
	}
	told := false
	defer func() {
		if !told { // the caller has gone, or it panics: that says nothing of the proxy
			c.breaker.abandoned(p)
		}
	}()

	s := scratches.Get().(*scratch)
	defer s.release()
	s.body = write(s.body[:0])
	end := now.Add(c.callMax)
	var o outcome
	for range 2 {
		o = c.attempt(ctx, r, s, earliest(time.Now().Add(c.attemptMax), end), read)
		if !o.again || ctx.Err() != nil || !time.Now().Before(end) {
			break
		}
	}
	changed := false
	switch {
	case o.failure == xks.OK || o.answered:
		told, changed = true, c.breaker.answered()
	case ctx.Err() == nil:
		told, changed = true, c.breaker.failed(p, time.Now(), o.failure)
	}
	if changed && o.answered {
		c.log.Info("external key store proxy answers again")
	}
	if changed && !o.answered {
		c.log.Warn("external key store proxy rests", "failure", o.failure.String(), "cause", o.cause)
	}
	if o.failure == xks.OK {
		return nil
	}
	if o.failure == xks.InvalidCiphertext && r.api != xks.Decrypt {
		o.failure = xks.Malformed
	}
	c.warn(r, &o, time.Since(now))
	return xks.Fail(o.failure, r.stage, o.cause)
}

// warn logs a failure; of many, some.
func (c *Client) warn(r *request, o *outcome, took time.Duration) {
	ok, skipped := c.warned.Take(int64(time.Since(c.start)))
	if !ok {
		return
	}
	c.log.Warn("external key store proxy failed", "api", r.api.String(), "key", r.key, "kmsRequestId", r.id, "failure", o.failure.String(), "cause", o.cause, "errorMessage", o.message,
		"status", o.status, "took", took, "more", skipped)
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
