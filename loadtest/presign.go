package loadtest

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

const (
	// KMS refuses a signature that is more than five minutes old; four such periods leave room for a slow signing and a skewed clock.
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

	signed atomic.Pointer[[]byte] // the whole HTTP request; replaced, never changed
}

// signer puts signatures on targets.
type signer struct {
	credentials aws.CredentialsProvider // refreshes by itself
	region      string
	host        string
	operation   string
	now         func() time.Time
}

// signAll signs every target and returns when they have to be signed again.
func (s *signer) signAll(ctx context.Context, targets []*target) (again time.Time, err error) {
	credentials, err := s.credentials.Retrieve(ctx)
	if err != nil {
		return time.Time{}, fmt.Errorf("AWS credentials: %w", err)
	}
	at := s.now()
	for _, t := range targets {
		request, err := s.appendRequest(nil, &credentials, at, t.body)
		if err != nil {
			return time.Time{}, err
		}
		t.signed.Store(&request)
	}
	again = at.Add(resignEvery)
	if credentials.CanExpire {
		again = earlier(again, later(credentials.Expires.Add(-credentialsLead), at.Add(time.Second)))
	}
	return again, nil
}

// appendRequest appends a signed HTTP request. The signature covers every header but Content-Length and User-Agent.
func (s *signer) appendRequest(dst []byte, credentials *aws.Credentials, at time.Time, body []byte) ([]byte, error) {
	headers := [][2]string{
		{"Content-Type", kmsapi.ContentType},
		{"Host", s.host},
		{"X-Amz-Date", at.UTC().Format("20060102T150405Z")},
		{"X-Amz-Target", kmsapi.TargetPrefix + s.operation},
	}
	if credentials.SessionToken != "" {
		headers = append(headers, [2]string{"X-Amz-Security-Token", credentials.SessionToken})
	}
	authorization, err := authorize(credentials, s.region, at, headers, body)
	if err != nil {
		return dst, err
	}
	headers = append(headers, [2]string{"Authorization", authorization},
		[2]string{"User-Agent", userAgent}, [2]string{"Content-Length", strconv.Itoa(len(body))})

	dst = append(dst, "POST / HTTP/1.1\r\n"...)
	for _, h := range headers {
		dst = append(dst, h[0]...)
		dst = append(dst, ": "...)
		dst = append(dst, h[1]...)
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
