package loadtest

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/keyplane/keyplane/internal/sigv4"
)

const (
	// KMS refuses a signature that is more than five minutes old; a minute leaves room for a skewed clock and for failed renewals.
	resignEvery = time.Minute
	// Credentials that run out are replaced this long before.
	credentialsLead = 30 * time.Second

	userAgent = "keyplane-loadtest"
)

// target is one request of a run: immutable but for its signature.
type target struct {
	keyARN    string // what a reply's KeyId has to be; "" for operations without a key
	plaintext []byte // what Decrypt has to answer
	body      []byte

	signed []atomic.Pointer[[]byte] // the whole HTTP request, for each endpoint; replaced, never changed
}

// signer puts signatures on targets. It is used by one goroutine at a time.
type signer struct {
	credentials aws.CredentialsProvider // refreshes by itself
	region      string
	hosts       []string // Host headers of the endpoints; they are signed, so each endpoint has its own requests
	operation   string
	now         func() time.Time

	key     *sigv4.AccessKey // of the credentials last seen; nil before the first
	secret  secret.Bytes     // theirs, to see a change
	scratch sigv4.Scratch
}

// signAll signs every target and returns when they have to be signed again.
func (s *signer) signAll(ctx context.Context, targets []*target) (again time.Time, err error) {
	credentials, err := s.credentials.Retrieve(ctx)
	if err != nil {
		return time.Time{}, fmt.Errorf("AWS credentials: %w", err)
	}
	if err := s.use(&credentials); err != nil {
		return time.Time{}, err
	}
	at := s.now()
	for _, t := range targets {
		if t.signed == nil { // the first time, before any worker runs
			t.signed = make([]atomic.Pointer[[]byte], len(s.hosts))
		}
		for i, host := range s.hosts {
			request, err := s.appendRequest(nil, host, credentials.SessionToken, at, t.body)
			if err != nil {
				return time.Time{}, err
			}
			t.signed[i].Store(&request)
		}
	}
	again = at.Add(resignEvery)
	if credentials.CanExpire {
		again = earlier(again, later(credentials.Expires.Add(-credentialsLead), at.Add(time.Second)))
	}
	return again, nil
}

// use makes the credentials the ones that sign.
func (s *signer) use(credentials *aws.Credentials) error {
	secretKey := []byte(credentials.SecretAccessKey)
	if s.key != nil && s.key.ID() == credentials.AccessKeyID && s.secret.Equal(secretKey) {
		secret.Wipe(secretKey)
		return nil
	}
	key, err := sigv4.NewAccessKey(credentials.AccessKeyID, secretKey, sigv4.Principal{})
	if err != nil {
		secret.Wipe(secretKey)
		return fmt.Errorf("AWS credentials: %w", err)
	}
	s.wipe()
	s.key, s.secret = key, secret.New(secretKey)
	return nil
}

// wipe clears the credentials. The SDK keeps its own copy, in strings, which nobody can clear.
func (s *signer) wipe() {
	if s.key != nil {
		s.key.Wipe()
	}
	s.secret.Wipe()
	s.scratch.Reset()
}

// appendRequest appends a signed HTTP request. The signature covers every header but the last three.
func (s *signer) appendRequest(dst []byte, host, sessionToken string, at time.Time, body []byte) ([]byte, error) {
	r := sigv4.Request{Method: []byte("POST"), Path: []byte("/"), Body: body}
	header := func(name, value string) {
		r.Headers = append(r.Headers, sigv4.Header{Name: []byte(name), Value: []byte(value)})
	}
	header("host", host)
	header("content-type", kmsapi.ContentType)
	header("x-amz-date", string(sigv4.AppendDate(nil, at)))
	header("x-amz-target", kmsapi.TargetPrefix+s.operation)
	if sessionToken != "" {
		header("x-amz-security-token", sessionToken)
	}
	authorization, err := sigv4.AppendAuthorization(nil, s.key, s.region, kmsapi.SigningName, &r, &s.scratch)
	if err != nil {
		return dst, err
	}
	header("authorization", string(authorization))
	header("user-agent", userAgent)
	header("content-length", strconv.Itoa(len(body)))

	dst = append(dst, "POST / HTTP/1.1\r\n"...)
	for _, h := range r.Headers {
		dst = append(dst, h.Name...)
		dst = append(dst, ": "...)
		dst = append(dst, h.Value...)
		dst = append(dst, "\r\n"...)
	}
	dst = append(dst, "\r\n"...)
	return append(dst, body...), nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
