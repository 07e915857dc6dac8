package iamcli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"

	"github.com/keyplane/keyplane/internal/sigv4"
)

const (
	endpointDefault = "http://127.0.0.1:4599"
	regionDefault   = "us-east-1"
	requestTimeout  = 30 * time.Second
	replyMax        = 16 << 20 // bytes
)

// versions are those of the query APIs.
var versions = map[string]string{"sts": "2011-06-15", "iam": "2010-05-08"}

// Refused is an answer that is an error.
type Refused struct{ Code, Message string }

func (e *Refused) Error() string { return e.Code + ": " + e.Message }

// Client calls one server: the query APIs, and with CallJSON others.
type Client struct {
	endpoint    *url.URL
	region      string
	credentials aws.CredentialsProvider
	http        *http.Client
}

// NewClient finds the credentials where AWS's tools do. endpoint "" is AWS_ENDPOINT_URL or the default of `keyplane serve`; region "" is the AWS
// chain's, else us-east-1.
func NewClient(ctx context.Context, endpoint, region string) (*Client, error) {
	u, err := url.Parse(cmp.Or(endpoint, os.Getenv("AWS_ENDPOINT_URL"), endpointDefault))
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.User != nil {
		return nil, errors.New("the endpoint must be a URL such as " + endpointDefault)
	}
	u.Path = "/"
	var options []func(*awsconfig.LoadOptions) error
	if region != "" {
		options = append(options, awsconfig.WithRegion(region))
	}
	chain, err := awsconfig.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("AWS configuration: %w", err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil // secrets are in the answers: to the endpoint and nowhere else
	return &Client{
		endpoint: u, region: cmp.Or(chain.Region, regionDefault), credentials: chain.Credentials,
		http: &http.Client{
			Transport: transport, Timeout: requestTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// CallJSON sends one request of a JSON protocol, X-Amz-Target and its input, and decodes the answer into out. A refusal is a *Refused.
func (c *Client) CallJSON(ctx context.Context, service, target string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	status, reply, err := c.send(ctx, service, body, map[string]string{"content-type": "application/x-amz-json-1.1", "x-amz-target": target})
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		var e struct {
			Type    string `json:"__type"`
			Message string // also "message": encoding/json looks at no case
		}
		if json.Unmarshal(reply, &e) != nil || e.Type == "" {
			return fmt.Errorf("the answer of %s has status %d", c.endpoint.Host, status)
		}
		return &Refused{Code: e.Type, Message: e.Message}
	}
	if err := json.Unmarshal(reply, out); err != nil {
		return fmt.Errorf("the answer of %s is not one of %s", c.endpoint.Host, service)
	}
	return nil
}

// send signs and sends one request.
func (c *Client) send(ctx context.Context, service string, body []byte, headers map[string]string) (status int, reply []byte, err error) {
	r, err := c.sign(ctx, service, body, headers)
	if err != nil {
		return 0, nil, err
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	reply, err = io.ReadAll(io.LimitReader(resp.Body, replyMax))
	return resp.StatusCode, reply, err
}

// Call sends one request and returns the members of its result. A refusal is a *Refused.
func (c *Client) Call(ctx context.Context, service, action string, parameters url.Values) (map[string]any, error) {
	form := url.Values{"Action": {action}, "Version": {versions[service]}}
	for name, values := range parameters {
		form[name] = values
	}
	body := []byte(form.Encode())
	status, reply, err := c.send(ctx, service, body, map[string]string{"content-type": "application/x-www-form-urlencoded; charset=utf-8"})
	if err != nil {
		return nil, err
	}
	root, err := parse(reply)
	if err != nil {
		return nil, fmt.Errorf("the answer of %s, status %d, is not one of IAM or STS", c.endpoint.Host, status)
	}
	if status != http.StatusOK {
		e := root.child("Error")
		if root.name != "ErrorResponse" || e == nil {
			return nil, fmt.Errorf("the answer of %s has status %d", c.endpoint.Host, status)
		}
		return nil, &Refused{Code: e.child("Code").content(), Message: e.child("Message").content()}
	}
	result := root.child(action + "Result")
	if result == nil {
		return nil, fmt.Errorf("the answer of %s has no %sResult", c.endpoint.Host, action)
	}
	return result.members(), nil
}

func (c *Client) sign(ctx context.Context, service string, body []byte, headers map[string]string) (*http.Request, error) {
	credentials, err := c.credentials.Retrieve(ctx)
	if err != nil {
		return nil, fmt.Errorf("AWS credentials: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.endpoint.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	headers["x-amz-date"] = string(sigv4.AppendDate(nil, time.Now()))
	if credentials.SessionToken != "" {
		headers["x-amz-security-token"] = credentials.SessionToken
	}
	signed := sigv4.Request{Method: []byte(r.Method), Path: []byte("/"), Body: body, Headers: []sigv4.Header{{Name: []byte("host"), Value: []byte(strings.ToLower(r.Host))}}}
	r.Host = strings.ToLower(r.Host)
	for name, value := range headers {
		r.Header.Set(name, value)
		signed.Headers = append(signed.Headers, sigv4.Header{Name: []byte(name), Value: []byte(value)})
	}
	key, err := sigv4.NewAccessKey(credentials.AccessKeyID, []byte(credentials.SecretAccessKey), sigv4.Principal{})
	if err != nil {
		return nil, fmt.Errorf("AWS credentials: %w", err)
	}
	defer key.Wipe()
	var scratch sigv4.Scratch
	defer scratch.Reset()
	authorization, err := sigv4.AppendAuthorization(nil, key, c.region, service, &signed, &scratch)
	if err != nil {
		return nil, err
	}
	r.Header.Set("authorization", string(authorization))
	return r, nil
}
