//go:build !race

package awsjson

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/keyplane/keyplane/internal/alloctest"
)

const dataKeyBody = `{"KeyId":"arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab","KeySpec":"AES_256","EncryptionContext":{"tenant":"example \u0026 co","path":"/a/b"}}`

// input has what a data plane operation borrows from a body.
type input struct {
	keyID, spec, blob []byte
	n                 int64
	dryRun            bool
	pairs             [64][2][]byte
}

func (in *input) scan(s *Scanner, body []byte) Fault {
	s.Reset(body)
	if s.Object() {
		for name, ok := s.Next(); ok; name, ok = s.Next() {
			switch string(name) {
			case "KeyId":
				in.keyID, _ = s.String()
			case "KeySpec":
				in.spec, _ = s.String()
			case "CiphertextBlob":
				in.blob, _ = s.Base64()
			case "NumberOfBytes":
				in.n, _ = s.Int()
			case "DryRun":
				in.dryRun, _ = s.Bool()
			case "EncryptionContext":
				if s.Object() {
					n := 0
					for k, ok := s.Next(); ok; k, ok = s.Next() {
						in.pairs[n][0] = k
						in.pairs[n][1], _ = s.String()
						n++
					}
				}
			case "GrantTokens":
				if s.List() {
					for s.More() {
						s.String()
					}
				}
			}
		}
	}
	s.End()
	return s.Fault()
}

func TestNoAllocations(t *testing.T) {
	bodies := []string{
		dataKeyBody,
		`{"CiphertextBlob":"` + strings.Repeat("QUJD", 39) + `","DryRun":false,"GrantTokens":["a","b"],"NumberOfBytes":12,"Future":{"x":[1,2,null]}}`,
		``, `null`, `{"KeyId":1}`, `{"KeyId":"x","KeyId":"x"}`, `{"CiphertextBlob":"Zh=="}`, `{"DryRun":nul}`, "{\"KeyId\":\"\xff\"}", `{"NumberOfBytes":1e3}`, `{"NumberOfBytes":99999999999999999999}`,
		`{"x":` + strings.Repeat("[", 40), object(257),
	}
	buf := make([]byte, 8192)
	out := make([]byte, 0, 8192)
	var s Scanner
	var in input
	run := func() {
		for _, body := range bodies {
			in.scan(&s, buf[:copy(buf, body)])
			out = s.AppendFault(out[:0])
		}
		s.Reset(nil)
		out = AppendBase64(out, in.blob)
		out = AppendTimestamp(out, 1568290320263)
	}
	run()
	if n := alloctest.Mallocs(10_000, run); n != 0 {
		t.Errorf("%d allocations in 10000 runs", n)
	}
}

func BenchmarkScanGenerateDataKey(b *testing.B) {
	benchmarkScan(b, dataKeyBody)
}

// A blob of a 32-byte data key and of the largest plaintext.
func BenchmarkScanDecrypt(b *testing.B) {
	benchmarkScan(b, `{"CiphertextBlob":"`+base64.StdEncoding.EncodeToString(make([]byte, 117))+`","EncryptionContext":{"tenant":"example"}}`)
}

func BenchmarkScanDecrypt4096(b *testing.B) {
	benchmarkScan(b, `{"CiphertextBlob":"`+base64.StdEncoding.EncodeToString(make([]byte, 4181))+`"}`)
}

// The costliest body to look for duplicates in: as many full objects as fit 64 KiB.
func BenchmarkScanWidestObjects(b *testing.B) {
	benchmarkScan(b, `{"x":[`+strings.TrimSuffix(strings.Repeat(object(256)+",", 23), ",")+`]}`)
}

func benchmarkScan(b *testing.B, body string) {
	buf := make([]byte, len(body))
	var s Scanner
	var in input
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		copy(buf, body)
		if f := in.scan(&s, buf); f != None {
			b.Fatal(f)
		}
	}
}

func BenchmarkReferenceGenerateDataKey(b *testing.B) {
	var in struct {
		KeyID             string            `json:"KeyId"`
		KeySpec           string            `json:"KeySpec"`
		EncryptionContext map[string]string `json:"EncryptionContext"`
	}
	body := []byte(dataKeyBody)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if err := json.Unmarshal(body, &in); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBase64(b *testing.B) {
	text := []byte(base64.StdEncoding.EncodeToString(make([]byte, 4181)))
	buf := make([]byte, len(text))
	b.Run("ours", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		for b.Loop() {
			copy(buf, text)
			if _, ok := decodeBase64(buf); !ok {
				b.Fatal("refused")
			}
		}
	})
	b.Run("std", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		strict := base64.StdEncoding.Strict()
		for b.Loop() {
			copy(buf, text)
			if _, err := strict.Decode(buf, buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}
