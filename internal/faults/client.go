package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/internal/cluster"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// ahead is by how much the date is ahead of this machine's, for everybody who signs.
var ahead atomic.Int64

// date is the date by which requests are signed.
func date() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }

// outcome is what came of one request.
type outcome struct {
	status int    // 0: no reply
	code   string // the exception, "" for success
	id     string // of the request
	body   []byte
	err    error // why there is no reply
	began  time.Time
	ended  time.Time
	node   string // the endpoint that was asked
	reused bool   // on a connection that had answered a request before
}

func (o *outcome) ok() bool { return o.status == http.StatusOK }

// unsure reports whether what was asked for may have been done, or may still be: there was no reply, or one that says that the server failed.
func (o *outcome) unsure() bool { return o.status == 0 || o.status >= 500 }

func (o *outcome) String() string {
	if o.status == 0 {
		return fmt.Sprint("no reply: ", o.err)
	}
	return fmt.Sprintf("%d %s, request %s", o.status, o.code, o.id)
}

// identity signs requests.
type identity struct{ key *sigv4.AccessKey }

func newIdentity(id, secret string) (identity, error) {
	key, err := sigv4.NewAccessKey(id, []byte(secret), sigv4.Principal{})
	return identity{key}, err
}

// client sends requests, each once, on a connection that it keeps. After a failure it goes on to the next endpoint. One goroutine uses it.
type client struct {
	identity
	endpoints []string
	at        int
	timeout   time.Duration
	healthy   func(endpoint string) bool // whether a new connection may be made to it, while there are others; nil: to all

	conn    net.Conn
	read    *bufio.Reader
	scratch sigv4.Scratch
	raw     []byte
}

func (c *client) close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// next has the following request go to the next endpoint.
func (c *client) next() {
	c.close()
	c.at = (c.at + 1) % len(c.endpoints)
}

// connected makes a connection, to the first of the endpoints that takes one. A connection that the server has closed since is noticed before anything is sent on it.
func (c *client) connected() error {
	if c.conn != nil {
		_ = c.conn.SetReadDeadline(time.Now().Add(-time.Second))
		_, err := c.read.Peek(1)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			return nil
		}
		c.close()
	}
	var err error
	for range c.endpoints {
		if c.healthy == nil || c.healthy(c.endpoints[c.at]) {
			break
		}
		c.next()
	}
	for range c.endpoints {
		var conn net.Conn
		if conn, err = net.DialTimeout("tcp4", c.endpoints[c.at], c.timeout); err == nil {
			c.conn, c.read = conn, bufio.NewReader(conn)
			return nil
		}
		c.next()
	}
	return err
}

// afterFailure is how long a client waits after a failure of the server's. Two dozen clients that try again at once take the processors from what they wait for.
const afterFailure = 30 * time.Millisecond

// do sends one request of the KMS API and decodes a success into out, unless that is nil.
func (c *client) do(op string, in, out any) outcome {
	o := outcome{began: time.Now()}
	body, err := json.Marshal(in)
	if err == nil {
		err = c.exchange(op, body, &o)
	}
	o.ended = time.Now()
	if err == nil && o.ok() && out != nil {
		err = json.Unmarshal(o.body, out)
	}
	if err != nil {
		o.status, o.err = 0, err
		c.next()
	}
	if o.unsure() {
		time.Sleep(afterFailure)
	}
	return o
}

func (c *client) exchange(op string, body []byte, o *outcome) error {
	was := c.conn
	if err := c.connected(); err != nil {
		return err
	}
	o.node, o.reused = c.endpoints[c.at], c.conn == was
	host, target, now := c.endpoints[c.at], kmsapi.TargetPrefix+op, sigv4.AppendDate(nil, date())
	auth, err := sigv4.AppendAuthorization(nil, c.key, cluster.Region, kmsapi.SigningName, &sigv4.Request{
		Method: []byte("POST"), Path: []byte("/"), Body: body, Headers: []sigv4.Header{
			{Name: []byte("content-type"), Value: []byte(kmsapi.ContentType)}, {Name: []byte("host"), Value: []byte(host)},
			{Name: []byte("x-amz-date"), Value: now}, {Name: []byte("x-amz-target"), Value: []byte(target)},
		},
	}, &c.scratch)
	if err != nil {
		return err
	}
	b := append(c.raw[:0], "POST / HTTP/1.1\r\nHost: "+host+"\r\nContent-Type: "+kmsapi.ContentType+"\r\nX-Amz-Target: "+target+"\r\nX-Amz-Date: "...)
	b = append(append(append(b, now...), "\r\nAuthorization: "...), auth...)
	b = append(append(b, "\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"...), body...)
	c.raw = b
	if err := c.conn.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return err
	}
	if _, err := c.conn.Write(b); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.read, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if o.body, err = io.ReadAll(resp.Body); err != nil {
		return err
	}
	if resp.Close {
		defer c.next()
	}
	o.status, o.id = resp.StatusCode, resp.Header.Get("x-amzn-RequestId")
	if !o.ok() {
		var refusal struct {
			Type string `json:"__type"`
		}
		if err := json.Unmarshal(bytes.TrimSpace(o.body), &refusal); err != nil {
			return fmt.Errorf("%d with a body that is not JSON: %q", resp.StatusCode, o.body)
		}
		o.code = refusal.Type
	}
	return nil
}

// m is a request's body.
type m map[string]any

// Members of replies that are looked at.
type (
	keyReply  struct{ KeyMetadata keyMetadata }
	blobReply struct{ CiphertextBlob, Plaintext []byte }
)

type keyMetadata struct {
	KeyId, Arn, KeyState, Description string
	DeletionDate                      float64
}
