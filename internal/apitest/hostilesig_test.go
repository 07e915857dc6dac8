package apitest

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
)

const (
	invalidSignature    = "InvalidSignatureException"
	incompleteSignature = "IncompleteSignatureException"
	unrecognizedClient  = "UnrecognizedClientException"
	missingToken        = "MissingAuthenticationTokenException"
)

// testHostileSignature changes what a signature is made of, one part at a time, for an operation of each plane.
func testHostileSignature(t *testing.T, v *victim) {
	c := v.Client(t)
	for op, body := range map[string]string{"Decrypt": decryptBody(v.blob), "DescribeKey": `{"KeyId":"` + v.keyID + `"}`} {
		t.Run(op, func(t *testing.T) {
			do := func(edit ...func(*Request)) *Reply { return c.Do(t, op, body, edit...) }
			auth := func(from, to string) func(*Request) {
				return AfterSigning(func(r *Request) {
					a := r.Get("Authorization")
					if !strings.Contains(a, from) {
						t.Fatalf("there is no %q in %s", from, a)
					}
					r.Set("Authorization", strings.Replace(a, from, to, 1))
				})
			}
			at := func(d time.Duration) func(*Request) {
				return SetHeader("X-Amz-Date", string(sigv4.AppendDate(nil, time.Now().Add(d))))
			}
			today := time.Now().UTC().Format("20060102")

			// Signed with something else than what is known.
			refusal(t, "access key", do(func(r *Request) { r.AccessKeyID = "AKIAQQQQQQQQQQQQQQQQ" }), unrecognizedClient)
			refusal(t, "secret", do(func(r *Request) { r.SecretAccessKey += "x" }), invalidSignature)
			refusal(t, "Region", do(func(r *Request) { r.Region = "us-east-1" }), invalidSignature)
			refusal(t, "service", do(func(r *Request) { r.Service = "s3" }), invalidSignature)
			refusal(t, "security token", do(SetHeader("X-Amz-Security-Token", "x")), unrecognizedClient)

			// Changed after it was signed.
			refusal(t, "body", do(AfterSigning(func(r *Request) {
				r.Body = []byte(strings.Replace(body, `"`, ` "`, 1))
				r.Set("Content-Length", strconv.Itoa(len(r.Body)))
			})), invalidSignature)
			refusal(t, "target", do(AfterSigning(SetHeader("X-Amz-Target", kmsapi.TargetPrefix+"ListKeys"))), invalidSignature)
			refusal(t, "Host", do(AfterSigning(SetHeader("Host", "kms.example.com"))), invalidSignature)
			refusal(t, "Content-Type", do(AfterSigning(SetHeader("Content-Type", "application/json"))), invalidSignature)
			refusal(t, "X-Amz-Date", do(AfterSigning(SetHeader("X-Amz-Date", string(sigv4.AppendDate(nil, time.Now().Add(time.Second)))))), invalidSignature)
			refusal(t, "a header more", do(AfterSigning(AddHeader("X-Amz-Meta", "x"))), invalidSignature, incompleteSignature)
			refusal(t, "a header less", do(SetHeader("X-Amz-Meta", "x"), AfterSigning(DelHeader("X-Amz-Meta"))), invalidSignature, incompleteSignature)

			// Every part of the Authorization header.
			refusal(t, "access key ID", do(auth("Credential="+v.AccessKeyID, "Credential=AKIAQQQQQQQQQQQQQQQQ")), unrecognizedClient)
			for from, to := range map[string]string{
				"/" + today + "/": "/20200101/", "/" + Region + "/": "/eu-central-2/", "/kms/": "/sts/", "/aws4_request": "/aws5_request",
			} {
				refusal(t, from, do(auth(from, to)), invalidSignature)
			}
			for from, to := range map[string]string{
				"AWS4-HMAC-SHA256 ": "AWS4-HMAC-SHA512 ", "Credential=": "Credentials=", "SignedHeaders=": "Headers=", "Signature=": "Sig=",
				"Credential=" + v.AccessKeyID + "/": "Credential=", "/aws4_request,": "/aws4_request/x,", "SignedHeaders=content-type;host": "SignedHeaders=host;content-type",
				"content-type;host;": "content-type;", "x-amz-target": "", "x-amz-date;": "", "host;": "host;host;", ", SignedHeaders": " SignedHeaders", "x-amz-target,": "x-amz-target;,",
				"AWS4-HMAC-SHA256 Credential": "Bearer x AWS4-HMAC-SHA256 Credential", "AWS4-": "AWS3-",
			} {
				refusal(t, from+" → "+to, do(auth(from, to)), invalidSignature, incompleteSignature, missingToken, unrecognizedClient)
			}
			good := must(v.Request(op, body).authorization())(t)
			signature := good[strings.LastIndex(good, "=")+1:]
			for i := range signature {
				refusal(t, "digit of the signature", do(AfterSigning(func(r *Request) {
					a := []byte(r.Get("Authorization"))
					digit := &a[len(a)-len(signature)+i]
					*digit = "123456789abcdef0"[strings.IndexByte("0123456789abcdef", *digit)]
					r.Set("Authorization", string(a))
				})), invalidSignature)
			}
			cut := func(f func(a string) string) func(*Request) {
				return AfterSigning(func(r *Request) { r.Set("Authorization", f(r.Get("Authorization"))) })
			}
			refusal(t, "a digit less", do(cut(func(a string) string { return a[:len(a)-1] })), invalidSignature, incompleteSignature)
			refusal(t, "a digit more", do(cut(func(a string) string { return a + "0" })), invalidSignature, incompleteSignature)
			refusal(t, "no signature", do(cut(func(a string) string { return a[:len(a)-64] })), invalidSignature, incompleteSignature)
			refusal(t, "capital digits", do(cut(func(a string) string { return a[:len(a)-64] + strings.Repeat("A", 64) })), invalidSignature, incompleteSignature)
			refusal(t, "no Authorization", do(func(r *Request) { r.Unsigned = true }), missingToken)
			for _, a := range []string{"", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 ", "Basic dXNlcjpwdw==", "x", strings.Repeat(",", 100), "AWS4-HMAC-SHA256 Credential=,SignedHeaders=,Signature="} {
				refusal(t, "Authorization "+a, do(AfterSigning(SetHeader("Authorization", a))), invalidSignature, incompleteSignature, missingToken)
			}

			// Too old, too new, no date.
			refusal(t, "expired", do(at(-kmsapi.ClockSkew-5*time.Second)), invalidSignature)
			refusal(t, "of the future", do(at(kmsapi.ClockSkew+5*time.Second)), invalidSignature)
			for _, d := range []time.Duration{-kmsapi.ClockSkew + 20*time.Second, kmsapi.ClockSkew - 20*time.Second} {
				if r := do(at(d)); r.Status != 200 {
					t.Errorf("%v off: %d %s", d, r.Status, r.Body)
				}
			}
			refusal(t, "no date", do(AfterSigning(DelHeader("X-Amz-Date"))), incompleteSignature, invalidSignature, missingToken)
			for _, date := range []string{"", "x", "20260101", today + "T000000", "2026-01-01T00:00:00Z", today + "T246060Z", "Thu, 01 Jan 2026 00:00:00 GMT", today + "T000000Z "} {
				refusal(t, "date "+date, do(AfterSigning(SetHeader("X-Amz-Date", date))), incompleteSignature, invalidSignature)
			}

			// The hash of the body, where it is sent.
			sum := sha256.Sum256([]byte(body))
			if r := do(SetHeader("X-Amz-Content-Sha256", hex.EncodeToString(sum[:]))); r.Status != 200 {
				t.Errorf("with its hash: %d %s", r.Status, r.Body)
			}
			for _, hash := range []string{strings.Repeat("0", 64), "UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", ""} {
				refusal(t, "hash "+hash, do(SetHeader("X-Amz-Content-Sha256", hash)), invalidSignature)
			}
		})
	}
}
