package loadtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/valyala/fasthttp"
)

type credentialsFunc func() (aws.Credentials, error)

func (f credentialsFunc) Retrieve(context.Context) (aws.Credentials, error) { return f() }

func testSigner(t testing.TB) *signer {
	s := &signer{region: testRegion, hosts: []string{"kms.example"}, operation: "Decrypt", now: time.Now,
		credentials: credentialsFunc(func() (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: testAccessKey, SecretAccessKey: testSecret}, nil
		})}
	t.Cleanup(s.wipe)
	return s
}

// Signatures are renewed every minute, and before credentials run out, but not more than once a second.
func TestSignAll(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	credentials := aws.Credentials{AccessKeyID: "AKID", SecretAccessKey: "secret"}
	s := testSigner(t)
	s.now, s.credentials = func() time.Time { return now }, credentialsFunc(func() (aws.Credentials, error) { return credentials, nil })
	one := &target{body: []byte(`{"CiphertextBlob":"AAA="}`)}
	sign := func(wantAgain time.Duration) []byte {
		t.Helper()
		again, err := s.signAll(t.Context(), []*target{one})
		if err != nil || again.Sub(now) != wantAgain {
			t.Fatalf("again after %v, want %v (%v)", again.Sub(now), wantAgain, err)
		}
		return *one.signed[0].Load()
	}
	first := sign(time.Minute)
	for _, part := range []string{"POST / HTTP/1.1\r\n", "host: kms.example\r\n", "x-amz-date: 20261123T120000Z\r\n", "x-amz-target: TrentService.Decrypt\r\n",
		"SignedHeaders=content-type;host;x-amz-date;x-amz-target,", "content-length: 25\r\n\r\n" + string(one.body)} {
		if !bytes.Contains(first, []byte(part)) {
			t.Errorf("no %q in\n%s", part, first)
		}
	}
	now = now.Add(time.Minute)
	if bytes.Equal(sign(time.Minute), first) {
		t.Error("the signature is the old one")
	}
	credentials.CanExpire, credentials.Expires, credentials.SessionToken = true, now.Add(45*time.Second), "token"
	if signed := sign(15 * time.Second); !bytes.Contains(signed, []byte("x-amz-security-token: token\r\n")) || !bytes.Contains(signed, []byte(";x-amz-security-token;")) {
		t.Errorf("the session token is not signed:\n%s", signed)
	}
	key := s.key
	credentials.Expires = now.Add(time.Second)
	sign(time.Second)
	if s.key != key {
		t.Error("unchanged credentials made a new key")
	}
	credentials.SecretAccessKey = "another"
	sign(time.Second)
	if s.key == key {
		t.Error("changed credentials are not used")
	}

	old := one.signed[0].Load()
	s.credentials = credentialsFunc(func() (aws.Credentials, error) { return aws.Credentials{}, errors.New("no") })
	if _, err := s.signAll(t.Context(), []*target{one}); err == nil || one.signed[0].Load() != old {
		t.Errorf("error %v", err)
	}
	s.wipe()
	if s.secret.Len() != 0 {
		t.Error("the secret is still there")
	}
}

// Credentials that change during a run are taken up: here those of a container's credential endpoint, a part of the AWS chain.
func TestCredentialsRefresh(t *testing.T) {
	k := newFakeKMS(t, nil)
	var served atomic.Int64
	provider := serve(t, nil, func(ctx *fasthttp.RequestCtx) {
		// The SDK asks anew once Expiration is past; the load test signs again before that, at the earliest after a second.
		ctx.SetBodyString(fmt.Sprintf(`{"AccessKeyId":%q,"SecretAccessKey":%q,"Token":"token-%d","Expiration":%q}`,
			testAccessKey, testSecret, served.Add(1), time.Now().Add(time.Second).UTC().Format(time.RFC3339)))
	})
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", provider+"/")
	var mu sync.Mutex
	tokens := make(map[string]bool) // of the run's requests, not of set-up's; guarded by mu
	k.fault = func(ctx *fasthttp.RequestCtx, _ string, _ int64) bool {
		time.Sleep(time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		tokens[string(ctx.Request.Header.Peek("X-Amz-Security-Token"))] = true
		return false
	}
	p := k.runUntil(testConfig(k.url), func(int64) bool {
		mu.Lock()
		defer mu.Unlock()
		return len(tokens) >= 3
	})
	if p.Requests.Failed > 0 || k.unsigned.Load() > 0 {
		t.Fatalf("requests %+v, errors %+v", p.Requests, p.Errors)
	}
	if k.tokens[""] != 0 || tokens[""] {
		t.Errorf("session tokens seen: %v and %v", k.tokens, tokens)
	}
}
