package sigv4

import (
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

func BenchmarkVerify(b *testing.B) {
	v, k := testVerifier(b)
	for name, body := range map[string]string{
		"body=41":   `{"KeyId":"alias/app","KeySpec":"AES_256"}`,
		"body=6144": strings.Repeat("b", 6144),
	} {
		r := unsigned(testNow)
		r.Body = []byte(body)
		signWith(b, k, testRegion, "kms", r)
		b.Run(name, func(b *testing.B) { benchmarkVerify(b, v, r, kmsapi.OK) })
		if name == "body=41" {
			b.Run(name+"/parallel", func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(p *testing.PB) {
					var s Scratch
					for p.Next() {
						if _, code := v.Verify(r, &s, testNow); code != kmsapi.OK {
							b.Fatal(code)
						}
					}
				})
			})
		}
	}
	r := signWith(b, k, testRegion, "kms", unsigned(testNow))
	swap(b, r, testID, "AKIAI44QH8DHBEXAMPLE")
	b.Run("key=unknown", func(b *testing.B) { benchmarkVerify(b, v, r, kmsapi.UnrecognizedClient) })
}

func benchmarkVerify(b *testing.B, v *Verifier, r *Request, want kmsapi.Code) {
	b.ReportAllocs()
	var s Scratch
	for b.Loop() {
		if _, code := v.Verify(r, &s, testNow); code != want {
			b.Fatal(code)
		}
	}
}

func BenchmarkAppendAuthorization(b *testing.B) {
	_, k := testVerifier(b)
	r := unsigned(testNow)
	var s Scratch
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		dst, _ = AppendAuthorization(dst[:0], k, testRegion, "kms", r, &s)
	}
}

func BenchmarkDeriveKey(b *testing.B) {
	prefixed, date := []byte("AWS4"+testSecret), []byte("20261123")
	for b.Loop() {
		deriveKey(prefixed, date, testRegion, "kms")
	}
}
