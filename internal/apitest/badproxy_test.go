package apitest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"

	"github.com/keyplane/keyplane/internal/node"
)

// badProxy stands before an XKSProxy, with a certificate of its own for the same host, and does something bad to what goes through.
type badProxy struct {
	addr, caFile string
	real         *http.Transport
	does         atomic.Pointer[badness]
	asked        atomic.Int64
}

// badness is what happens to a request.
type badness struct {
	name    string
	latency time.Duration
	serve   func(w http.ResponseWriter, r *http.Request, forward func() []byte) // nil: it is forwarded
	tls     error                                                               // of handshakes
}

func newBadProxy(t *testing.T, p *XKSProxy) *badProxy {
	t.Helper()
	dir := t.TempDir()
	cert, key := xksCertificate(t, dir)
	pair := must(tls.LoadX509KeyPair(cert, key))(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(must(os.ReadFile(p.CAFile))(t))
	b := &badProxy{caFile: cert, real: &http.Transport{
		TLSClientConfig: &tls.Config{ServerName: XKSHost, RootCAs: roots}, MaxIdleConnsPerHost: 64,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", p.Addr)
		},
	}}
	t.Cleanup(b.real.CloseIdleConnections)
	b.set(badness{})
	ln := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	b.addr = ln.Addr().String()
	server := &http.Server{
		Handler: http.HandlerFunc(b.handle), ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return nil, b.does.Load().tls
		}},
	}
	go func() { _ = server.ServeTLS(ln, "", "") }()
	t.Cleanup(func() { _ = server.Close() })
	return b
}

// reached is an option for the server that calls this proxy.
func (b *badProxy) reached(c *node.Config) {
	c.XKS = node.XKSConfig{TrustedRoots: b.caFile, Hosts: map[string]string{XKSHost: b.addr}}
}

func (b *badProxy) set(does badness) { b.does.Store(&does) }

func (b *badProxy) handle(w http.ResponseWriter, r *http.Request) {
	b.asked.Add(1)
	does := b.does.Load()
	if does.tls != nil { // on a connection from before
		panic(http.ErrAbortHandler)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if does.latency > 0 {
		select {
		case <-time.After(does.latency):
		case <-r.Context().Done():
			return
		}
	}
	forward := func() (status int, answer []byte) {
		out, err := http.NewRequestWithContext(r.Context(), r.Method, "https://"+XKSHost+r.URL.Path, bytes.NewReader(body))
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		out.Header, out.Host = r.Header.Clone(), r.Host
		resp, err := b.real.RoundTrip(out)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer resp.Body.Close()
		if answer, err = io.ReadAll(resp.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		return resp.StatusCode, answer
	}
	if does.serve != nil {
		does.serve(w, r, func() []byte { _, answer := forward(); return answer })
		return
	}
	status, answer := forward()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(answer)
}

// answers is a badness that answers one text.
func answers(status int, text string) func(http.ResponseWriter, *http.Request, func() []byte) {
	return func(w http.ResponseWriter, _ *http.Request, _ func() []byte) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	}
}

// spoils is a badness that changes a member of the right answer.
func spoils(member string, spoil func([]byte) []byte) func(http.ResponseWriter, *http.Request, func() []byte) {
	return func(w http.ResponseWriter, _ *http.Request, forward func() []byte) {
		var members map[string]any
		if err := json.Unmarshal(forward(), &members); err != nil {
			panic(http.ErrAbortHandler)
		}
		if text, ok := members[member].(string); ok {
			b, _ := base64.StdEncoding.DecodeString(text)
			members[member] = base64.StdEncoding.EncodeToString(spoil(b))
		}
		_ = json.NewEncoder(w).Encode(members)
	}
}

func firstBitFlipped(b []byte) []byte {
	b[0] ^= 1
	return b
}

// The texts of the exceptions, as AWS KMS has them.
const (
	textAdmin           = " If you see this error repeatedly, report it to your external key store proxy administrator."
	textUninterpretable = "AWS KMS cannot interpret the response from the external key store proxy." + textAdmin
	textLate            = "AWS KMS rejected the request because the external key store proxy did not respond in time. Retry the request." + textAdmin
	textUnreachable     = "AWS KMS cannot communicate with the external key store proxy. This might be a transient network issue. If you see this error repeatedly, verify that " +
		"your external key store proxy is active and is connected to the network, and that its endpoint URI is correct in your external key store."
	textNoTLS         = "AWS KMS cannot establish a TLS connection to the external key store proxy. Verify the TLS configuration, including its certificate."
	textBadCiphertext = "The ciphertext that the external key store proxy submitted for decryption, or the encryption context, is corrupted, missing, or otherwise invalid."
	textRejected      = "The external key store proxy rejected the request because the specified ciphertext or encryption context is corrupted, missing, or otherwise invalid."
	textThrottled     = "The external key store proxy rejected the request due to a very high request rate. Reduce the frequency of your calls using KMS keys in this external key store."
	textNoHSM         = "The external key store proxy rejected the request because it cannot communicate with the external HSM. Verify that the external key store proxy " +
		"configuration is correct and that the external HSM is available."
)

// apiMessage is the text of an exception.
func apiMessage(err error) string {
	var e smithy.APIError
	if !errors.As(err, &e) {
		return ""
	}
	return e.ErrorMessage()
}

// TestBadProxy: whatever the proxy of an external key store does wrong is the documented exception, within half a second and a little.
func TestBadProxy(t *testing.T) {
	t.Parallel()
	p := StartXKSProxy(t)
	p.Offer(t, "external")
	bad := newBadProxy(t, p)
	s := Start(t, bad.reached)
	c, ctx := s.KMS(t, onBusyMachine), t.Context()
	id := createStore(t, c, proxied("bad"))
	equal(t, "ConnectionErrorCode", connectProxy(t, c, id), "")
	key := must(c.CreateKey(ctx, &kms.CreateKeyInput{CustomKeyStoreId: &id, Origin: types.OriginTypeExternalKeyStore, XksKeyId: str("external")}))(t).KeyMetadata.KeyId
	sealed := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: key, Plaintext: []byte("before")}))(t).CiphertextBlob
	impatient := s.KMS(t) // does not try again
	well := func() {
		t.Helper()
		bad.set(badness{})
		if got := must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed}))(t).Plaintext; string(got) != "before" {
			t.Errorf("the proxy is well again, and %q is decrypted", got)
		}
	}
	for _, b := range []struct {
		badness
		encrypt, decrypt string // texts of KMSInvalidStateException, "" for success
		late             bool   // they come after half a second
	}{
		{badness{name: "10 ms", latency: 10 * time.Millisecond}, "", "", false},
		{badness{name: "200 ms", latency: 200 * time.Millisecond}, "", "", false},
		{badness{name: "300 ms", latency: 300 * time.Millisecond}, textLate, textLate, true},
		{badness{name: "600 ms", latency: 600 * time.Millisecond}, textLate, textLate, true},
		{badness{name: "drops", serve: func(http.ResponseWriter, *http.Request, func() []byte) { panic(http.ErrAbortHandler) }}, textUnreachable, textUnreachable, false},
		{badness{name: "no JSON", serve: answers(200, "<html>nginx</html>")}, textUninterpretable, textUninterpretable, false},
		{badness{name: "other JSON", serve: answers(200, `{"ciphertext":"AAAA"}`)}, textUninterpretable, textUninterpretable, false},
		{badness{name: "an error that is none", serve: answers(418, `{"errorName":"TeapotException"}`)}, textUninterpretable, textUninterpretable, false},
		{badness{name: "endless", serve: func(w http.ResponseWriter, r *http.Request, _ func() []byte) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<10)); err != nil {
					return
				}
			}
		}}, textUninterpretable, textUninterpretable, false},
		{badness{name: "a ciphertext that is not that of the CDIV", serve: spoils("ciphertext", firstBitFlipped)}, textUninterpretable, "", false},
		{badness{name: "a tag of another length", serve: spoils("authenticationTag", func(b []byte) []byte { return b[:12] })}, textUninterpretable, "", false},
		{badness{name: "another plaintext", serve: spoils("plaintext", firstBitFlipped)}, "", textBadCiphertext, false},
		{badness{name: "a shorter plaintext", serve: spoils("plaintext", func(b []byte) []byte { return b[1:] })}, "", textUninterpretable, false},
		{badness{name: "without regard to the AAD", serve: answers(400, `{"errorName":"InvalidCiphertextException"}`)}, textUninterpretable, textRejected, false},
		{badness{name: "throttles", serve: answers(429, `{"errorName":"ThrottlingException"}`)}, textThrottled, textThrottled, false},
		{badness{name: "its HSM is away", serve: answers(500, `{"errorName":"InternalException"}`)}, textNoHSM, textNoHSM, false},
		{badness{name: "no TLS", tls: errors.New("no")}, textNoTLS, textNoTLS, false},
	} {
		for op, want := range map[string]string{"Encrypt": b.encrypt, "Decrypt": b.decrypt} {
			ask := func(client *kms.Client) (took time.Duration, err error) {
				well()
				bad.set(b.badness)
				begun := time.Now()
				if op == "Encrypt" {
					_, err = client.Encrypt(ctx, &kms.EncryptInput{KeyId: key, Plaintext: []byte("p")})
				} else {
					_, err = client.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed})
				}
				return time.Since(begun), err
			}
			if want == "" {
				if took, err := ask(c); err != nil {
					t.Errorf("%s, %s: %v after %v", b.name, op, err, took)
				}
				continue
			}
			took, err := ask(impatient)
			// On a busy machine whatever is to be answered may come too late; then that is the answer.
			for range 9 {
				if want == textLate || apiMessage(err) != textLate {
					break
				}
				took, err = ask(impatient)
			}
			t.Logf("%s, %s: %v, %v", b.name, op, took.Round(time.Millisecond), err)
			refusedWith(t, err, "KMSInvalidStateException")
			switch got := apiMessage(err); {
			case got != want:
				t.Errorf("%s, %s: %q, want %q", b.name, op, got, want)
			case took > 550*time.Millisecond+busy, b.late && took < 450*time.Millisecond:
				t.Errorf("%s, %s was refused after %v", b.name, op, took)
			}
		}
	}
	well()
	if n := s.Stats().Panics; n != 0 {
		t.Errorf("%d requests ended in a panic", n)
	}
}

// busy is what a busy machine adds to half a second.
const busy = 2 * time.Second

var proxyRounds = flag.Int("bad-proxy-rounds", 1, "for how many half seconds TestBesideBadProxy measures with each kind of proxy, and as many without")

// TestBesideBadProxy: keys of the default store are as fast beside a key store whose proxy is slow, dead or broken as without its requests, and as beside one whose
// proxy is well. The server is a process of its own; clients and proxies share its processors. make key-stores has the figures: a machine that is busy with other things
// allows no sharp bound here.
func TestBesideBadProxy(t *testing.T) {
	if testing.Short() {
		t.Skip("it measures")
	}
	proxy := StartXKSProxy(t)
	proxy.Offer(t, "external")
	bad := newBadProxy(t, proxy)
	dir := t.TempDir()
	config := fmt.Sprintf("%sxks: {trusted_roots: %q, hosts: {%s: %q}}\n", patient, bad.caFile, XKSHost, bad.addr)
	s := Command(t, filepath.Join(dir, "data"), "--config", writePrivate(t, dir, "keyplane.yaml", config))
	c := s.KMS(t, onBusyMachine)
	id := createStore(t, c, proxied("bad"))
	equal(t, "ConnectionErrorCode", connectProxy(t, c, id), "")
	external := must(c.CreateKey(t.Context(), &kms.CreateKeyInput{CustomKeyStoreId: &id, Origin: types.OriginTypeExternalKeyStore, XksKeyId: str("external")}))(t).KeyMetadata.KeyId
	ordinary := newKey(t, c).KeyId

	const ordinaries, others = 2, 8 // clients
	// measured is how long requests with the ordinary key take for half a second, with or without others with the external key.
	measured := func(withOthers bool) (took []time.Duration) {
		t.Helper()
		ctx, stop := context.WithTimeout(t.Context(), time.Second/2)
		defer stop()
		var clients sync.WaitGroup
		every := func(interval, first time.Duration, key *string, done func(time.Duration, *Reply)) {
			clients.Go(func() {
				client := &Client{e: s.Endpoint}
				defer client.close()
				next := time.NewTimer(first)
				defer next.Stop()
				for {
					select {
					case <-next.C:
						next.Reset(interval)
					case <-ctx.Done():
						return
					}
					begun := time.Now()
					r, err := client.Try("Encrypt", `{"KeyId":"`+*key+`","Plaintext":"AAAA"}`)
					if err != nil || r == nil {
						t.Errorf("no reply: %v", err)
						return
					}
					done(time.Since(begun), r)
				}
			})
		}
		var mu sync.Mutex
		for i := range ordinaries {
			every(4*time.Millisecond, time.Duration(i)*2*time.Millisecond, ordinary, func(d time.Duration, r *Reply) {
				mu.Lock()
				defer mu.Unlock()
				took = append(took, d)
				if r.Status != http.StatusOK {
					t.Errorf("%d %s", r.Status, r.Body)
				}
			})
		}
		if withOthers {
			for i := range others {
				every(40*time.Millisecond, time.Duration(i)*5*time.Millisecond, external, func(time.Duration, *Reply) {})
			}
		}
		clients.Wait()
		slices.Sort(took)
		return took
	}
	measured(true) // warm
	var alone, beside, besideBad []time.Duration
	kinds := []badness{
		{name: "300 ms", latency: 300 * time.Millisecond}, {name: "600 ms", latency: 600 * time.Millisecond},
		{name: "drops", serve: func(http.ResponseWriter, *http.Request, func() []byte) { panic(http.ErrAbortHandler) }},
		{name: "garbage", serve: answers(200, "garbage")}, {name: "no TLS", tls: errors.New("no")},
	}
	before := bad.asked.Load()
	for range *proxyRounds {
		for _, kind := range kinds {
			bad.set(badness{})
			alone = append(alone, measured(false)...)
			beside = append(beside, measured(true)...)
			bad.set(kind)
			besideBad = append(besideBad, measured(true)...)
		}
	}
	p99 := func(all []time.Duration) float64 {
		slices.Sort(all)
		return float64(all[len(all)*99/100]) / float64(time.Millisecond)
	}
	t.Logf("default store: p99 %.2f ms alone, %.2f ms beside a proxy that is well, %.2f ms beside a bad one: ratio %.2f to alone, %.2f to well (%d, %d and %d requests; the proxy was asked %d times)",
		p99(alone), p99(beside), p99(besideBad), p99(besideBad)/p99(alone), p99(besideBad)/p99(beside), len(alone), len(beside), len(besideBad), bad.asked.Load()-before)
	if limit := 3*p99(alone) + 100; p99(besideBad) > limit {
		t.Errorf("p99 %.2f ms is more than %.2f", p99(besideBad), limit)
	}
	if bad.asked.Load()-before < 50 {
		t.Error("the proxy was hardly asked")
	}
}
