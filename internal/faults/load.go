package main

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/keyplane/keyplane/internal/cluster"
)

// sealed is something encrypted, and what it has to be when it is decrypted.
type sealed struct {
	key, context string
	blob, plain  []byte
}

// blobs are kept over faults: what was encrypted before one has to be decrypted after it.
type blobs struct {
	mu  sync.Mutex
	all []sealed
}

const blobsMax = 2000

func (b *blobs) keep(s sealed, at int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.all) < blobsMax {
		b.all = append(b.all, s)
	} else {
		b.all[at%blobsMax] = s
	}
}

func (b *blobs) pick(at int) (sealed, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.all) == 0 {
		return sealed{}, false
	}
	return b.all[at%len(b.all)], true
}

// check decrypts all that is kept.
func (b *blobs) check(r *run, c *client) error {
	for i, s := range b.all {
		var out blobReply
		o, err := r.insist(c, "Decrypt", m{"CiphertextBlob": s.blob, "EncryptionContext": m{"for": s.context}}, &out)
		switch {
		case err != nil:
			return err
		case !o.ok():
			r.found(lostWrite, "what was encrypted under %s is not decrypted: %v", s.key, &o)
		case !bytes.Equal(out.Plaintext, s.plain):
			r.found(wrongPlain, "what was encrypted under %s is decrypted to %x, not %x", s.key, out.Plaintext, s.plain)
		}
		if i%50 == 0 {
			c.next()
		}
	}
	return nil
}

// canary is a plaintext that says what it is of, and that there is once.
func canary(key string, n int) []byte {
	b := fmt.Appendf(nil, "canary %s %d ", key, n)
	tail := make([]byte, 16)
	_, _ = crand.Read(tail)
	return append(b, tail...)
}

// loadOnce encrypts and decrypts, each request once: what fails is counted.
func (r *run) loadOnce(n int) error {
	rnd := r.source(n)
	a, b := r.roaming(r.admin, n, onceTimeout), r.roaming(r.admin, n+1, onceTimeout)
	defer a.close()
	defer b.close()
	do := func(c *client, op string, in, out any) (outcome, bool) {
		o := c.do(op, in, out)
		r.tally.now.Load().add(false, o.ok())
		r.answered.add(op, &o)
		return o, o.ok()
	}
	for i := 0; !r.stopped(); i++ {
		r.rest(rnd)
		s := sealed{key: r.keys[rnd.IntN(len(r.keys))], context: fmt.Sprint(n, "-", i)}
		s.plain = canary(s.key, i)
		if rnd.IntN(4) == 0 {
			if old, ok := r.kept.pick(rnd.IntN(1 << 30)); ok {
				var out blobReply
				if _, ok := do(b, "Decrypt", m{"CiphertextBlob": old.blob, "EncryptionContext": m{"for": old.context}}, &out); ok && !bytes.Equal(out.Plaintext, old.plain) {
					r.found(wrongPlain, "Decrypt of an older ciphertext under %s: %x, not %x", old.key, out.Plaintext, old.plain)
				}
			}
			continue
		}
		var made, out blobReply
		if rnd.IntN(3) == 0 {
			if _, ok := do(a, "GenerateDataKey", m{"KeyId": s.key, "KeySpec": "AES_256", "EncryptionContext": m{"for": s.context}}, &made); !ok {
				continue
			}
			s.plain = made.Plaintext
		} else if _, ok := do(a, "Encrypt", m{"KeyId": s.key, "Plaintext": s.plain, "EncryptionContext": m{"for": s.context}}, &made); !ok {
			continue
		}
		s.blob = made.CiphertextBlob
		o, ok := do(b, "Decrypt", m{"CiphertextBlob": s.blob, "EncryptionContext": m{"for": s.context}}, &out)
		switch {
		case ok && !bytes.Equal(out.Plaintext, s.plain):
			r.found(wrongPlain, "%s decrypts to %x, not %x: request %s", s.key, out.Plaintext, s.plain, o.id)
		case !ok && !o.unsure() && !undecided(o.code):
			r.found(wrongPlain, "a ciphertext under %s that was made a moment before is refused: %v", s.key, &o)
		}
		if rnd.IntN(10) == 0 {
			r.kept.keep(s, rnd.IntN(blobsMax))
		}
		if rnd.IntN(20) == 0 {
			a.next()
			b.next()
		}
	}
	return nil
}

// sdk is a client of the official SDK with its standard retries. A name with one address for each node stands for what users have in front of nodes: a connection is
// made to the first address that takes one.
func (r *run) sdk(n int) *kms.Client { return r.sdkOver(r.named(n)) }

func (r *run) sdkOver(over *http.Client) *kms.Client {
	return kms.New(kms.Options{
		Region: cluster.Region, BaseEndpoint: aws.String("http://" + r.endpoints()[0]), HTTPClient: over,
		Credentials: credentials.NewStaticCredentialsProvider(r.AccessKeyID, r.Secret, ""),
	})
}

// named is a HTTP client for which every name is that of all nodes, the n-th first.
func (r *run) named(n int) *http.Client { return r.namedWhile(n, nil) }

// namedWhile is named for those nodes that are healthy (client.healthy).
func (r *run) namedWhile(n int, healthy func(endpoint string) bool) *http.Client {
	all := r.endpoints()
	at := n
	var mu sync.Mutex
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil
	transport.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		mu.Lock()
		first := at
		at++
		mu.Unlock()
		for range all {
			if healthy == nil || healthy(all[first%len(all)]) {
				break
			}
			first++
		}
		var errs []error
		for i := range all {
			d := net.Dialer{Timeout: onceTimeout}
			c, err := d.DialContext(ctx, network, all[(first+i)%len(all)])
			if err == nil {
				return c, nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(errs...)
	}
	return &http.Client{Transport: transport}
}

// loadRetried encrypts and decrypts with the official SDK: what fails although it was retried is counted.
func (r *run) loadRetried(ctx context.Context, n int) error {
	rnd := r.source(n)
	client := r.sdk(n)
	done := func(op string, metadata func() (string, bool), err error) bool {
		r.tally.now.Load().add(true, err == nil)
		o := outcome{err: err}
		var refused smithy.APIError
		var status *smithyhttp.ResponseError
		switch {
		case err == nil:
			o.status = http.StatusOK
			o.id, _ = metadata()
		case errors.As(err, &refused) && errors.As(err, &status):
			o.code, o.status = refused.ErrorCode(), status.HTTPStatusCode()
		}
		r.answered.add(op, &o)
		return err == nil
	}
	for i := 0; !r.stopped(); i++ {
		r.rest(rnd)
		key := r.keys[rnd.IntN(len(r.keys))]
		plain := canary(key, i)
		context_ := map[string]string{"for": fmt.Sprint(n, "-", i)}
		var blob []byte
		if rnd.IntN(3) == 0 {
			out, err := client.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &key, KeySpec: types.DataKeySpecAes256, EncryptionContext: context_})
			if !done("GenerateDataKey", func() (string, bool) { return awsmiddleware.GetRequestIDMetadata(out.ResultMetadata) }, err) {
				continue
			}
			plain, blob = out.Plaintext, out.CiphertextBlob
		} else {
			out, err := client.Encrypt(ctx, &kms.EncryptInput{KeyId: &key, Plaintext: plain, EncryptionContext: context_})
			if !done("Encrypt", func() (string, bool) { return awsmiddleware.GetRequestIDMetadata(out.ResultMetadata) }, err) {
				continue
			}
			blob = out.CiphertextBlob
		}
		out, err := client.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: context_})
		if done("Decrypt", func() (string, bool) { return awsmiddleware.GetRequestIDMetadata(out.ResultMetadata) }, err) && !bytes.Equal(out.Plaintext, plain) {
			r.found(wrongPlain, "%s decrypts to %x, not %x", key, out.Plaintext, plain)
		}
	}
	return nil
}

// latencies are durations of one sort.
type latencies struct {
	mu  sync.Mutex
	all []time.Duration
}

func (l *latencies) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, d)
}
