package sigv4

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// The signer of aws-sdk-go-v2 and this package agree: its signatures are accepted, and ours are the same bytes.
func TestSDKSigner(t *testing.T) {
	v, k := testVerifier(t)
	const small = `{"CiphertextBlob":"AQ=="}`
	for name, c := range map[string]struct {
		body string
		edit func(*http.Request)
	}{
		"plain":        {small, func(*http.Request) {}},
		"sdk headers":  {small, func(q *http.Request) { q.Header.Set("Amz-Sdk-Request", "attempt=1; max=3") }},
		"inner spaces": {small, func(q *http.Request) { q.Header.Set("X-Amz-Note", "  a   b  c   ") }},
		"payload hash": {small, func(q *http.Request) { q.Header.Set("X-Amz-Content-Sha256", bodyHash(small)) }},
		"port":         {small, func(q *http.Request) { q.Host = "127.0.0.1:4599" }},
		"long body":    {strings.Repeat("b", kmsapi.BodyMax), func(*http.Request) {}},
		"empty body":   {"", func(*http.Request) {}},
	} {
		t.Run(name, func(t *testing.T) {
			q, err := http.NewRequest("POST", "https://kms.eu-central-1.amazonaws.com/", nil)
			if err != nil {
				t.Fatal(err)
			}
			q.Header.Set("Content-Type", "application/x-amz-json-1.1")
			q.Header.Set("X-Amz-Target", "TrentService.Decrypt")
			q.Header.Set("User-Agent", "aws-sdk-go-v2/1.47")
			q.ContentLength = int64(len(c.body)) // all the SDK's signer reads of the body; the hash it is given
			c.edit(q)
			credentials := aws.Credentials{AccessKeyID: testID, SecretAccessKey: testSecret}
			if err := v4.NewSigner().SignHTTP(context.Background(), credentials, q, bodyHash(c.body), "kms", testRegion, testNow); err != nil {
				t.Fatal(err)
			}
			r := &Request{Method: []byte(q.Method), Path: []byte(q.URL.EscapedPath()), Query: []byte(q.URL.RawQuery), Body: []byte(c.body)}
			add(r, "host", q.Host)
			if len(c.body) > 0 {
				add(r, "content-length", strconv.Itoa(len(c.body)))
			}
			for name, values := range q.Header {
				for _, value := range values {
					add(r, strings.ToLower(name), value)
				}
			}
			id, code, message := verify(t, v, r, testNow.Add(time.Minute))
			if code != kmsapi.OK || id.AccessKeyID() != testID {
				t.Fatalf("%v %q for %s", code, message, get(r, "authorization"))
			}
			theirs := get(r, "authorization")
			del(r, "authorization")
			del(r, "user-agent")
			var s Scratch
			ours, err := AppendAuthorization(nil, k, testRegion, "kms", r, &s)
			if err != nil || string(ours) != theirs {
				t.Fatalf("%s, %v\nwant %s", ours, err, theirs)
			}
		})
	}
}

func bodyHash(body string) string {
	sum := sha256.Sum256([]byte(body))
	return hex.EncodeToString(sum[:])
}
