package xks

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

func unbase64(t testing.TB, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The example of the specification, Appendix C.
const (
	exampleAAD  = "project=nile,department=marketing"
	exampleCDIV = "qHA/ImC9h5HsLRXqCyPmWgYx7tzyoTplzILbP0fPXsc="
)

func example(t testing.TB) *Sealed {
	return &Sealed{IV: unbase64(t, "HMrlRw85cAJUd5Ax"), Ciphertext: unbase64(t, "ghxkK1txeDNn3q8Y"), Tag: unbase64(t, "vBxN2ncH1oEkR8WVXpmyYQ=="), Metadata: []byte("key_version=1")}
}

func TestCDIV(t *testing.T) {
	sum := CDIV(example(t), []byte(exampleAAD))
	if got := base64.StdEncoding.EncodeToString(sum[:]); got != exampleCDIV {
		t.Errorf("CDIV %s, want %s", got, exampleCDIV)
	}
}

func TestValid(t *testing.T) {
	for _, c := range []struct {
		what  string
		valid func(string) bool
		good  []string
		bad   []string
	}{
		{"key ID", ValidKeyID[string],
			[]string{"a", "key-1_2.3", strings.Repeat("Z", 128), "..."},
			[]string{"", ".", "..", "a/b", "a b", "a%2f", "é", "a\x00", strings.Repeat("Z", 129)}},
		{"access key ID", ValidAccessKeyID[string],
			[]string{"ABCDEFGHIJKLMNOPQRST", "234567QRSTUVWXYZABCD", strings.Repeat("A", 30)},
			[]string{"", strings.Repeat("A", 19), strings.Repeat("A", 31), "abcdefghijklmnopqrst", "ABCDEFGHIJKLMNOPQRS1", "ABCDEFGHIJKLMNOPQRS8", "ABCDEFGHIJKLMNOPQRS="}},
		{"secret", ValidSecret[string],
			[]string{strings.Repeat("a", 43), strings.Repeat("0/+=", 16)},
			[]string{"", strings.Repeat("a", 42), strings.Repeat("a", 65), strings.Repeat("a", 42) + "-", strings.Repeat("a", 42) + "\n"}},
		{"path", ValidPath,
			[]string{"/kms/xks/v1", "/a/kms/xks/v1", "/example-prefix/B_2/kms/xks/v1", "/" + strings.Repeat("p", 128-1-11) + "/kms/xks/v1"},
			[]string{"", "/", "kms/xks/v1", "/kms/xks/v2", "/kms/xks/v10", "/kms/xks/v1/", "a/kms/xks/v1", "//kms/xks/v1", "/a.b/kms/xks/v1", "/a?b/kms/xks/v1", "/a%/kms/xks/v1",
				"/" + strings.Repeat("p", 128-11) + "/kms/xks/v1"}},
		{"endpoint", ValidEndpoint,
			[]string{"https://xks.example.com", "https://a.b", "https://XKS.Example.COM", "https://1.2.3.example", "https://" + strings.Repeat("a.", 59) + "bc"},
			[]string{"", "https://", "http://xks.example.com", "https://xks.example.com:443", "https://xks.example.com/", "https://xks.example.com.", "https://localhost", "https://127.0.0.1",
				"https://[::1]", "https://a..b", "https://-a.b", "https://a-.b", "https://.a.b", "https://u@a.b", "https://a_b.c", "https://" + strings.Repeat("a", 64) + ".b",
				"https://" + strings.Repeat("a.", 60) + "b", "HTTPS://a.b"}},
	} {
		for _, s := range c.good {
			if !c.valid(s) {
				t.Errorf("%s %q is refused", c.what, s)
			}
		}
		for _, s := range c.bad {
			if c.valid(s) {
				t.Errorf("%s %q is taken", c.what, s)
			}
		}
	}
	if got := Host("https://XKS.Example.com"); got != "xks.example.com" {
		t.Errorf("host %q", got)
	}
}

// The specification's tables, written down a second time: "-" is what it leaves out.
const failures = `
ValidationException           400 XksProxyInvalidResponse                   CustomKeyStoreInvalidState KMSInvalidState XKS_PROXY_INVALID_RESPONSE
InvalidStateException         400 -                                         XksKeyInvalidConfiguration KMSInvalidState XKS_PROXY_INVALID_RESPONSE
InvalidCiphertextException    400 -                                         -                          KMSInvalidState XKS_PROXY_INVALID_RESPONSE
InvalidKeyUsageException      400 -                                         XksKeyInvalidConfiguration KMSInvalidState XKS_PROXY_INVALID_RESPONSE
AuthenticationFailedException 401 XksProxyIncorrectAuthenticationCredential CustomKeyStoreInvalidState KMSInvalidState INVALID_CREDENTIALS
AccessDeniedException         403 -                                         KMSInvalidState            KMSInvalidState XKS_PROXY_ACCESS_DENIED
KeyNotFoundException          404 -                                         XksKeyNotFound             KMSInvalidState XKS_PROXY_INVALID_RESPONSE
InvalidUriPathException       404 XksProxyInvalidConfiguration              CustomKeyStoreInvalidState KMSInvalidState XKS_PROXY_INVALID_CONFIGURATION
ThrottlingException           429 XksProxyUriUnreachable                    CustomKeyStoreInvalidState KMSInvalidState XKS_PROXY_NOT_REACHABLE
InternalException             500 XksProxyInvalidResponse                   CustomKeyStoreInvalidState KMSInvalidState XKS_PROXY_INVALID_RESPONSE
UnsupportedOperationException 501 -                                         XksProxyInvalidResponse    KMSInvalidState XKS_PROXY_INVALID_RESPONSE
DependencyTimeoutException    503 XksProxyUriUnreachable                    CustomKeyStoreInvalidState KMSInvalidState XKS_PROXY_TIMED_OUT
Malformed                     0   XksProxyInvalidResponse                   CustomKeyStoreInvalidState KMSInvalidState XKS_PROXY_INVALID_RESPONSE
BadCiphertext                 0   -                                         -                          KMSInvalidState XKS_PROXY_INVALID_RESPONSE
Unreachable                   0   XksProxyUriUnreachable                    CustomKeyStoreInvalidState KMSInvalidState XKS_PROXY_NOT_REACHABLE
TLS                           0   XksProxyUriUnreachable                    CustomKeyStoreInvalidState KMSInvalidState XKS_PROXY_INVALID_TLS_CONFIGURATION
TimedOut                      0   XksProxyUriUnreachable                    CustomKeyStoreInvalidState KMSInvalidState XKS_PROXY_TIMED_OUT
NotConnected                  0   -                                         CustomKeyStoreInvalidState KMSInvalidState XKS_PROXY_NOT_REACHABLE
Unhealthy                     0   XksProxyUriUnreachable                    CustomKeyStoreInvalidState KMSInvalidState XKS_PROXY_NOT_REACHABLE
UnfitKey                      0   -                                         XksKeyInvalidConfiguration KMSInvalidState XKS_PROXY_INVALID_RESPONSE
`

func TestFailures(t *testing.T) {
	rows := strings.Split(strings.TrimSpace(failures), "\n")
	if len(rows) != int(failureCount)-1 {
		t.Fatalf("%d rows for %d failures", len(rows), failureCount-1)
	}
	for i, row := range rows {
		f := Failure(i + 1)
		var name, connection string
		var status int
		var codes [stageCount]string
		if _, err := fmt.Sscan(row, &name, &status, &codes[AtStore], &codes[AtKey], &codes[AtCrypto], &connection); err != nil {
			t.Fatal(err)
		}
		if f.String() != name || f.Status() != status || f.Connection() != connection {
			t.Errorf("%s: %s, status %d, %s", name, f, f.Status(), f.Connection())
		}
		if status != 0 && (f.Name() != name || FailureOf(name) != f || FailureOf([]byte(name)) != f) {
			t.Errorf("%s: name %q, found as %s", name, f.Name(), FailureOf(name))
		}
		if status == 0 && (f.Name() != "" || FailureOf(name) != OK) {
			t.Errorf("%s: a proxy can send it", name)
		}
		for s, want := range codes {
			e := f.At(Stage(s))
			text := table[f].text
			if want == "-" {
				want, text = Malformed.At(Stage(s)).Code.Type(), textMalformed
			}
			if strings.TrimSuffix(e.Code.Type(), "Exception") != strings.TrimSuffix(want, "Exception") {
				t.Errorf("%s at stage %d: %s, want %s", name, s, e.Code.Type(), want)
			}
			if e.Message != text || text == "" && f != UnfitKey {
				t.Errorf("%s at stage %d: text %q", name, s, e.Message)
			}
		}
	}
	for _, name := range []string{"", "Validation", "validationException", "ValidationException ", "KMSInternalException"} {
		if f := FailureOf(name); f != OK {
			t.Errorf("%q is %s", name, f)
		}
	}
}

func TestError(t *testing.T) {
	cause := errors.New("broken pipe")
	var err error = Fail(Unreachable, AtCrypto, cause)
	if e := kmsapi.AsError(fmt.Errorf("encrypt: %w", err)); e != Unreachable.At(AtCrypto) {
		t.Errorf("the caller is told %v", e)
	}
	if !errors.Is(err, cause) || err.Error() != "external key store proxy: Unreachable: broken pipe" {
		t.Errorf("%v", err)
	}
	if err := Fail(Throttling, AtKey, nil); err.Error() != "external key store proxy: ThrottlingException" || kmsapi.AsError(err).Code != kmsapi.CustomKeyStoreInvalidState {
		t.Errorf("%v", err)
	}
}
