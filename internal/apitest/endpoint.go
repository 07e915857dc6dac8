package apitest

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
)

// exchangeTimeout bounds one request, so that a server that hangs fails a test instead of stopping it. Longer than any limit of the server.
const exchangeTimeout = 90 * time.Second

// Endpoint is where a keyplane listens, and the account administrator's access key.
type Endpoint struct {
	Addr            string // host:port
	AccessKeyID     string
	SecretAccessKey string
	now             func() time.Time // what requests are signed with; nil: time.Now
}

// date is the date of a request that is made now.
func (e *Endpoint) date() time.Time {
	if e.now == nil {
		return time.Now()
	}
	return e.now()
}

func newEndpoint(t testing.TB, addr, credentialsFile string) Endpoint {
	t.Helper()
	e := Endpoint{Addr: addr}
	e.AccessKeyID, e.SecretAccessKey = readCredentials(t, credentialsFile)
	return e
}

// KMS is an SDK client as the administrator. It does not retry unless an option says so.
func (e Endpoint) KMS(t testing.TB, opts ...func(*kms.Options)) *kms.Client {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	if e.now != nil {
		opts = append([]func(*kms.Options){func(o *kms.Options) { o.HTTPSignerV4 = signer{e} }}, opts...)
	}
	return kms.New(kms.Options{
		Region:       Region,
		BaseEndpoint: aws.String("http://" + e.Addr),
		Credentials:  credentials.NewStaticCredentialsProvider(e.AccessKeyID, e.SecretAccessKey, ""),
		Retryer:      aws.NopRetryer{},
		HTTPClient:   &http.Client{Transport: transport, Timeout: exchangeTimeout},
	}, opts...)
}

// signer is the SDK's own, with the endpoint's date.
type signer struct{ e Endpoint }

func (s signer) SignHTTP(ctx context.Context, c aws.Credentials, r *http.Request, hash, service, region string, _ time.Time,
	opts ...func(*v4.SignerOptions),
) error {
	return v4.NewSigner().SignHTTP(ctx, c, r, hash, service, region, s.e.date(), opts...)
}

// Dial opens a connection that ends with the test and fails reads and writes after exchangeTimeout.
func (e Endpoint) Dial(t testing.TB) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", e.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(exchangeTimeout)); err != nil {
		t.Fatal(err)
	}
	return c
}

// Do sends one signed request on a connection of its own and returns the reply. edit changes the request before it is signed.
func (e Endpoint) Do(t testing.TB, op, body string, edit ...func(*Request)) *Reply {
	t.Helper()
	c := &Client{e: e}
	defer c.close()
	return c.Do(t, op, body, edit...)
}

// Exchange sends bytes as they are on a connection of its own and reads one reply; it is nil if the server closed without one.
func (e Endpoint) Exchange(t testing.TB, raw []byte) *Reply {
	t.Helper()
	c := &Client{e: e}
	defer c.close()
	return c.Exchange(t, raw)
}

// Client is a connection that is kept open over many requests, and opened again when the server has closed it. One goroutine uses it.
type Client struct {
	e    Endpoint
	conn net.Conn
	read *bufio.Reader
}

// Client makes a Client that ends with the test.
func (e Endpoint) Client(t testing.TB) *Client {
	c := &Client{e: e}
	t.Cleanup(c.close)
	return c
}

func (c *Client) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// Do is Endpoint.Do on the open connection.
func (c *Client) Do(t testing.TB, op, body string, edit ...func(*Request)) *Reply {
	t.Helper()
	r, err := c.Try(op, body, edit...)
	if err != nil {
		t.Fatal(err)
	}
	if r == nil {
		t.Fatalf("%s: the connection was closed without a reply", op)
	}
	return r
}

// Exchange is Endpoint.Exchange on the open connection.
func (c *Client) Exchange(t testing.TB, raw []byte) *Reply {
	t.Helper()
	r, err := c.exchange(raw)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Try is Do for goroutines that are not the test's.
func (c *Client) Try(op, body string, edit ...func(*Request)) (*Reply, error) {
	raw, err := c.e.Request(op, body, edit...).Bytes()
	if err != nil {
		return nil, err
	}
	return c.exchange(raw)
}

func (c *Client) exchange(raw []byte) (*Reply, error) {
	if c.conn == nil {
		conn, err := net.Dial("tcp", c.e.Addr)
		if err != nil {
			return nil, err
		}
		c.conn, c.read = conn, bufio.NewReader(conn)
	}
	if err := c.conn.SetDeadline(time.Now().Add(exchangeTimeout)); err != nil {
		return nil, err
	}
	// The server may refuse and close before it has read everything, so that this write may fail; its reply is what counts.
	_, _ = c.conn.Write(raw)
	r, err := readReply(c.read)
	if err != nil || r == nil || r.Close {
		c.close()
	}
	return r, err
}
