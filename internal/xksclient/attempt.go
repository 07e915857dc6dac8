package xksclient

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/internal/xks"
)

// answerMax bounds an answer, status line, headers and body: the longest that the API knows, an Encrypt of 4300 bytes or ten HSMs, takes a fraction of it.
const answerMax = 32 << 10

// scratch is the working memory of a call.
type scratch struct {
	body  []byte // of the request
	sent  []byte // the request
	got   []byte // the body of the answer
	sigv4 sigv4.Scratch
}

// scratches are made long enough for the longest request, so that no copies are left where one grew.
var scratches = sync.Pool{New: func() any {
	return &scratch{body: make([]byte, 0, 28<<10), sent: make([]byte, 0, 30<<10), got: make([]byte, 0, answerMax)}
}}

// release wipes s and gives it back.
func (s *scratch) release() {
	for _, b := range []*[]byte{&s.body, &s.sent, &s.got} {
		clear((*b)[:cap(*b)])
		*b = (*b)[:0]
	}
	s.sigv4.Reset()
	scratches.Put(s)
}

// outcome is how an attempt ended.
type outcome struct {
	failure  xks.Failure
	cause    error
	status   int    // of the answer, 0 without one
	message  string // errorMessage
	answered bool   // something answered, whatever
	again    bool   // the same request may fare better
}

// attempt sends the request on one connection, and reads the answer. It ends when deadline or ctx says.
func (c *Client) attempt(ctx context.Context, r *request, s *scratch, deadline time.Time, read func([]byte) error) outcome {
	if err := c.write(r, s); err != nil {
		return outcome{failure: xks.Unreachable, cause: err}
	}
	began := time.Now()
	for {
		cn, err := c.pool.get(ctx, deadline)
		if err != nil {
			return lost(err)
		}
		used := cn.used
		o, broke := c.exchange(ctx, cn, s, deadline, read)
		switch {
		case !broke || !used:
			return o
		case o.failure == xks.TimedOut:
			if ctx.Err() == nil {
				// Something on the way may have forgotten its connections, without a word: those that nothing was answered on since are not tried one after the other.
				c.pool.drain(began)
			}
			return o
		} // else it was closed while it was idle, and tells so only now
	}
}

// write signs the request that stands in s.body and writes it to s.sent.
func (c *Client) write(r *request, s *scratch) error {
	path := r.api.Path(c.path, r.key)
	var date [len("20060102T150405Z")]byte
	now := sigv4.AppendDate(date[:0], time.Now())
	signed := sigv4.Request{
		Method: []byte(http.MethodPost), Path: []byte(path), Body: s.body,
		Headers: []sigv4.Header{{Name: []byte("host"), Value: []byte(c.host)}, {Name: []byte("x-amz-date"), Value: now}},
	}
	b := append(s.sent[:0], "POST "...)
	b = append(b, path...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, c.host...)
	b = append(b, "\r\nContent-Type: application/json\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(s.body)), 10)
	b = append(b, "\r\nX-Amz-Date: "...)
	b = append(b, now...)
	b = append(b, "\r\nAuthorization: "...)
	b, err := sigv4.AppendAuthorization(b, c.key, c.region, xks.SigningName, &signed, &s.sigv4)
	if err != nil {
		return err
	}
	b = append(b, "\r\n\r\n"...)
	s.sent = append(b, s.body...)
	return nil
}

var (
	errLong     = errors.New("an answer of more than 32 KiB")
	errNotHTTP  = errors.New("an answer that is not HTTP/1.1")
	errNoAnswer = errors.New("the connection was closed without an answer")
	errUnasked  = errors.New("an answer, or the end of the connection, before the request")
)

// exchange sends s.sent and reads the answer, and gives the connection back to the pool or closes it. broke says that the connection came to its end before the
// first byte of an answer to this request: of one that was idle also that something else came.
func (c *Client) exchange(ctx context.Context, cn *conn, s *scratch, deadline time.Time, read func([]byte) error) (o outcome, broke bool) {
	keep := false
	defer func() {
		if keep {
			c.pool.put(cn)
		} else {
			cn.close()
		}
	}()
	cn.begin(deadline)
	if cn.used && cn.spoke() {
		return outcome{failure: xks.Unreachable, cause: errUnasked, again: true}, true
	}
	stop := context.AfterFunc(ctx, cn.abort)
	defer stop()
	if _, err := cn.tls.Write(s.sent); err != nil {
		return lost(err), true
	}
	if _, err := cn.reader.Peek(1); err != nil {
		if errors.Is(err, io.EOF) {
			err = errNoAnswer
		}
		return lost(err), true
	}
	resp, err := http.ReadResponse(cn.reader, nil)
	if err != nil {
		return cn.unread(errNotHTTP), false
	}
	defer resp.Body.Close()
	s.got, err = readAll(s.got[:0], resp.Body)
	if err != nil {
		return cn.unread(errNotHTTP), false
	}
	if cn.used && resp.StatusCode == http.StatusRequestTimeout { // which load balancers send on a connection that was idle for too long, as the request comes
		return outcome{failure: xks.Unreachable, cause: errUnasked, again: true}, true
	}
	o = outcome{status: resp.StatusCode, answered: true}
	switch {
	case resp.StatusCode != http.StatusOK:
		o.failure, o.message = xks.ReadError(s.got)
		o.cause = errors.New("status " + strconv.Itoa(resp.StatusCode))
		o.again = resp.StatusCode >= 500 && o.failure != xks.UnsupportedOperation
	default:
		if o.cause = read(s.got); o.cause != nil {
			o.failure = xks.Malformed
		}
	}
	keep = stop() && !resp.Close && resp.ProtoAtLeast(1, 1) && resp.StatusCode >= 200 && cn.reader.Buffered() == 0 && o.failure != xks.Malformed
	return o, false
}

// readAll is io.ReadAll into memory that is there.
func readAll(dst []byte, r io.Reader) ([]byte, error) {
	for len(dst) < cap(dst) {
		n, err := r.Read(dst[len(dst):cap(dst)])
		dst = dst[:len(dst)+n]
		if err == io.EOF {
			return dst, nil
		}
		if err != nil {
			return dst, err
		}
	}
	return dst, errLong
}

// unread is the outcome of an answer that began and could not be read: because of the connection, or because it is none.
func (cn *conn) unread(err error) outcome {
	switch {
	case cn.limited.N <= 0:
		err = errLong
	case cn.failed != nil && !errors.Is(cn.failed, io.EOF):
		return lost(cn.failed)
	case cn.failed != nil:
		return outcome{failure: xks.Unreachable, cause: io.ErrUnexpectedEOF, again: true}
	}
	return outcome{failure: xks.Malformed, cause: err, answered: true}
}

// handshakeError is what comes of a TCP connection that does not become one of TLS.
type handshakeError struct{ error }

func (e handshakeError) Unwrap() error { return e.error }

// connectError is what comes of no TCP connection.
type connectError struct{ error }

func (e connectError) Unwrap() error { return e.error }

// lost is the outcome of an error of the connection.
func lost(err error) outcome {
	o := outcome{failure: xks.Unreachable, cause: err, again: true}
	var connect connectError
	var handshake handshakeError
	var op *net.OpError
	broken := errors.Is(err, io.EOF)
	if errors.As(err, &op) {
		broken = op.Op == "read" || op.Op == "write"
	}
	switch {
	case errors.As(err, &connect): // also when it took too long: a proxy that timed out is one that could be connected to
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled):
		o.failure = xks.TimedOut
	case errors.As(err, &handshake):
		o.failure, o.again = xks.TLS, broken // one that broke may hold the next time; what was said on it stays the same
	case op != nil && op.Op == "remote error": // an alert: with TLS 1.3 a proxy refuses the client's certificate after the handshake
		o.failure, o.again = xks.TLS, false
	}
	return o
}
