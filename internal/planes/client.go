package planes

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/planetls"
	"github.com/keyplane/keyplane/internal/planted"
	"github.com/keyplane/keyplane/internal/sigv4"
)

const (
	dialTimeout = time.Second
	// A control plane that has stopped answers no pings: what waits for it ends after the two.
	pingAfter, pingTimeout = 500 * time.Millisecond, time.Second

	probeEvery, probeTimeout = 250 * time.Millisecond, time.Second

	// patience is for how long a request that nobody has taken is tried, every roundPause.
	patience   = 1500 * time.Millisecond
	roundPause = 25 * time.Millisecond

	// requestTimeout bounds a request that a control plane has taken, which answers pings.
	requestTimeout = 45 * time.Second
)

var (
	// ErrUnavailable says that no control plane has taken a request. Nothing was done.
	ErrUnavailable = errors.New("planes: no control plane answers")
	// ErrUncertain says that a control plane has taken a request, and that its answer is lost: what was asked for may be done.
	ErrUncertain = errors.New("planes: the answer of a control plane is lost")
)

// ClientConfig is how a member reaches the control planes.
type ClientConfig struct {
	URLs    []string          // https://host:port, of all control planes
	TLS     *tls.Config       // planetls.Source.Client of role control
	Revoked *planetls.Revoked // certificates whose connections are cut; nil: none is
	Logger  *slog.Logger
}

// Client asks control planes. Run has it know which of them answer. Safe for concurrent use.
type Client struct {
	log     *slog.Logger
	targets []*target
	first   atomic.Int32 // the target that requests go to, if it answers
	owner   atomic.Int32 // the target that had leases last

	mu       sync.Mutex
	applied  int64
	changed  chan struct{} // closed when applied is another
	lifetime context.Context
	end      context.CancelFunc
}

// target is one control plane.
type target struct {
	url  string
	http *http.Client
	up   atomic.Bool // it answered the last probe, and every request since

	instance atomic.Value // string: which process that was
}

// CheckURL refuses what is not https://host:port.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Hostname() == "" || u.Port() == "" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("planes: not https://host:port")
	}
	return nil
}

// NewClient checks the configuration; nothing is dialled.
func NewClient(cfg ClientConfig) (*Client, error) {
	if len(cfg.URLs) == 0 || cfg.TLS == nil {
		return nil, errors.New("planes: a part of the configuration is missing")
	}
	c := &Client{log: cfg.Logger, changed: make(chan struct{})}
	if c.log == nil {
		c.log = slog.Default()
	}
	c.lifetime, c.end = context.WithCancel(context.Background())
	for _, text := range cfg.URLs {
		if err := CheckURL(text); err != nil {
			return nil, err
		}
		protocols := new(http.Protocols)
		protocols.SetHTTP2(true)
		c.targets = append(c.targets, &target{url: strings.TrimRight(text, "/"), http: &http.Client{
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &unrevoked{cfg.Revoked, &http.Transport{ // without a proxy of the environment
				DialContext:     (&net.Dialer{Timeout: dialTimeout, KeepAlive: 5 * time.Second}).DialContext,
				TLSClientConfig: cfg.TLS.Clone(), TLSHandshakeTimeout: dialTimeout, Protocols: protocols, MaxResponseHeaderBytes: 8 << 10, DisableCompression: true,
				HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
			}},
		}})
	}
	return c, nil
}

// unrevoked cuts a connection to a control plane whose certificate was revoked since the handshake, with all that is on it, where a request would use it: each probe looks.
type unrevoked struct {
	revoked *planetls.Revoked
	*http.Transport
}

func (u *unrevoked) RoundTrip(r *http.Request) (*http.Response, error) {
	if u.revoked == nil {
		return u.Transport.RoundTrip(r)
	}
	return u.Transport.RoundTrip(r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		if c, ok := i.Conn.(*tls.Conn); ok {
			if cs := c.ConnectionState(); u.revoked.Check(&cs) != nil {
				_ = c.NetConn().Close() // what is sent on it fails
			}
		}
	}})))
}

// Close ends the connections and what Run does.
func (c *Client) Close() {
	c.end()
	for _, t := range c.targets {
		t.http.CloseIdleConnections()
	}
}

// Run probes the control planes until ctx ends, whose error it returns.
func (c *Client) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, t := range c.targets {
		all.Go(func() {
			for {
				c.probe(ctx, t)
				select {
				case <-ctx.Done():
					return
				case <-time.After(probeEvery):
				}
			}
		})
	}
	all.Wait()
	return ctx.Err()
}

func (c *Client) probe(ctx context.Context, t *target) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, t.url+"/readyz", nil)
	if err != nil {
		return
	}
	resp, err := t.http.Do(r)
	reason := ""
	if err == nil {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, shortMax))
		_ = resp.Body.Close()
		t.instance.Store(resp.Header.Get(headerInstance))
		if resp.StatusCode != http.StatusOK {
			reason = strings.TrimSpace(string(b))
		}
	} else {
		reason = err.Error()
	}
	up := reason == ""
	if was := t.up.Swap(up); was != up && !errors.Is(context.Cause(ctx), context.Canceled) {
		if up {
			c.log.Info("a control plane answers", "url", t.url)
		} else {
			c.log.Warn("a control plane does not answer", "url", t.url, "error", reason)
		}
	}
}

// Up is how many control planes answer.
func (c *Client) Up() (n int) {
	for _, t := range c.targets {
		if t.up.Load() {
			n++
		}
	}
	return n
}

// Ready returns nil if a control plane answers.
func (c *Client) Ready() error {
	if c.Up() == 0 {
		return ErrUnavailable
	}
	return nil
}

// order is in which order control planes are asked: those that answer, from the one that was last asked with success on, then the others.
func (c *Client) order(from *atomic.Int32) []int {
	n := len(c.targets)
	up, down := make([]int, 0, n), make([]int, 0, n)
	first := int(from.Load())
	for i := range n {
		at := (first + i) % n
		if c.targets[at].up.Load() {
			up = append(up, at)
		} else {
			down = append(down, at)
		}
	}
	return append(up, down...)
}

// post sends a message to one control plane after the other until one has taken it. again says that it can be sent to another where the answer is lost. What it
// returns belongs to the caller.
func (c *Client) post(ctx context.Context, from *atomic.Int32, path string, frame []byte, answerMax int, again bool) ([]byte, error) {
	until := time.Now().Add(patience)
	for {
		for _, at := range c.order(from) {
			b, taken, err := c.send(ctx, c.targets[at], path, frame, answerMax)
			switch {
			case err == nil:
				from.Store(int32(at))
				return b, nil
			case taken && !again && !planted.Is(planted.CreateRepeated):
				return nil, errors.Join(ErrUncertain, err)
			case ctx.Err() != nil:
				return nil, errors.Join(ErrUnavailable, ctx.Err())
			}
		}
		if time.Now().After(until) {
			return nil, ErrUnavailable
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ErrUnavailable, ctx.Err())
		case <-time.After(roundPause):
		}
	}
}

// errAnswer is an answer that is none: the control plane has taken the message, and what it did is not known.
var errAnswer = errors.New("planes: the control plane's answer cannot be read")

// send sends a message to one control plane. taken says, with an error, that it may have been taken.
func (c *Client) send(ctx context.Context, t *target, path string, frame []byte, answerMax int) (b []byte, taken bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var sent atomic.Bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { sent.Store(true) }})
	r, err := http.NewRequestWithContext(traced, http.MethodPost, t.url+path, bytes.NewReader(frame))
	if err != nil {
		return nil, false, err
	}
	r.Header.Set("Content-Type", "application/octet-stream")
	body := r.GetBody
	r.GetBody = func() (io.ReadCloser, error) { // the peer has said that it did not take it
		sent.Store(false)
		return body()
	}
	resp, err := t.http.Do(r)
	if err != nil {
		if ctx.Err() == nil {
			t.up.Store(false) // until the next probe
		}
		return nil, sent.Load(), err
	}
	defer resp.Body.Close()
	if why := resp.Header.Get(headerRefused); why != "" {
		if why == notReady {
			t.up.Store(false)
		}
		return nil, false, refused(why)
	}
	if resp.StatusCode != http.StatusOK || resp.ContentLength < 0 || resp.ContentLength > int64(answerMax) {
		return nil, true, errAnswer
	}
	b = make([]byte, resp.ContentLength)
	if _, err := io.ReadFull(resp.Body, b); err != nil {
		clear(b)
		return nil, true, err
	}
	return b, false, nil
}

// Request has a control plane answer a client's request. again says that it changes nothing, and may be sent twice. Errors are ErrUnavailable and ErrUncertain.
func (c *Client) Request(ctx context.Context, r *Request, again bool) (status int, body []byte, err error) {
	frame := appendRequest(make([]byte, 0, 2<<10+len(r.Signed.Body)), r)
	defer clear(frame)
	b, err := c.post(ctx, &c.first, pathRequest, frame, answerMax, again)
	if err != nil {
		return 0, nil, err
	}
	if len(b) < 2 {
		return 0, nil, ErrUncertain
	}
	return int(binary.BigEndian.Uint16(b)), b[2:], nil
}

// Managed has a control plane make the AWS managed key of an alias that the request uses. That can be asked for twice.
func (c *Client) Managed(ctx context.Context, r *Request, alias string) error {
	frame := appendManaged(make([]byte, 0, 2<<10+len(r.Signed.Body)), r, alias)
	defer clear(frame)
	b, err := c.post(ctx, &c.first, pathManaged, frame, answerMax, true)
	if err != nil {
		return errors.Join(kmsapi.E(kmsapi.DependencyTimeout), err)
	}
	in := &reader{b: b}
	typ, message := in.text(shortMax), in.text(answerMax)
	switch code := kmsapi.CodeOf(typ); {
	case !in.end() || typ != "" && code == kmsapi.OK:
		return errAnswer
	case code != kmsapi.OK:
		return kmsapi.New(code, message)
	}
	return nil
}

// Settled returns nil when no process answers any more from before a revision. It can be asked twice.
func (c *Client) Settled(ctx context.Context, revision int64) error {
	_, err := c.post(ctx, &c.first, pathSettled, binary.BigEndian.AppendUint64(nil, uint64(revision)), 0, true)
	return err
}

// Applied says which revision this member has applied; Tell tells the control planes.
func (c *Client) Applied(revision int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if revision <= c.applied {
		return
	}
	c.applied = revision
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *Client) told() (int64, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.applied, c.changed
}

// Pauses between two streams to a control plane.
const streamPauseMin, streamPauseMax = 20 * time.Millisecond, time.Second

// Tell tells all control planes which revisions this member applies, at once, until ctx ends, whose error it returns. incarnation is its membership now, "" for none.
func (c *Client) Tell(ctx context.Context, incarnation func() string) error {
	var all sync.WaitGroup
	for _, t := range c.targets {
		all.Go(func() {
			pause := streamPauseMin
			for {
				began := time.Now()
				if now := incarnation(); now != "" && len(now) <= incarnationMax {
					c.stream(ctx, t, now, incarnation)
				} else {
					pause = streamPauseMin
				}
				if time.Since(began) > streamPauseMax {
					pause = streamPauseMin
				}
				select {
				case <-ctx.Done():
					return
				case <-time.After(pause):
				}
				pause = min(2*pause, streamPauseMax)
			}
		})
	}
	all.Wait()
	return ctx.Err()
}

// stream tells one control plane until the connection, or the membership, ends.
func (c *Client) stream(ctx context.Context, t *target, own string, incarnation func() string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, out := io.Pipe()
	var writing sync.WaitGroup
	writing.Go(func() {
		defer out.Close()
		b := append([]byte{byte(len(own))}, own...)
		for {
			revision, changed := c.told()
			if incarnation() != own { // what was applied since is the next one's to tell
				return
			}
			if _, err := out.Write(binary.BigEndian.AppendUint64(b, uint64(revision))); err != nil {
				return
			}
			b = b[:0]
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	})
	defer writing.Wait()
	defer in.Close()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = in.Close() })() // net/http waits for it
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url+pathApplied, in)
	if err != nil {
		return
	}
	resp, err := t.http.Do(r)
	if err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, shortMax)) // until the control plane ends it
	_ = resp.Body.Close()
}

// ReadOnly reports whether a request to the control plane changes nothing, as far as its target says.
func ReadOnly(r *Request) bool {
	i := slices.IndexFunc(r.Signed.Headers, func(h sigv4.Header) bool { return string(h.Name) == "x-amz-target" })
	if i < 0 {
		return false
	}
	op := kmsapi.Route(r.Signed.Headers[i].Value)
	return op != nil && !op.Write
}
