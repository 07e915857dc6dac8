package awsjson

import (
	"encoding/base64"
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"
)

func TestBase64(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "Zg==": "f", "Zm8=": "fo", "Zm9v": "foo", "Zm9vYg==": "foob", "Zm9vYmE=": "fooba", "Zm9vYmFy": "foobar", // RFC 4648 §10
		"++//": "\xfb\xef\xff", `Zm9v\u0059mFy`: "foobar", `\/\/\/\/`: "\xff\xff\xff",
	} {
		var s Scanner
		s.Reset([]byte(`"` + in + `"`))
		if v, ok := s.Base64(); !ok || string(v) != want || !s.End() {
			t.Errorf("%q: %q, %t, fault %d", in, v, ok, s.Fault())
		}
	}
	for _, in := range []string{
		"Z", "Zg", "Zg=", "Zm8", "Zm9vY", "=", "==", "===", "====", "Z===", "Zg==Zg==", "Zm8=Zm9v", "Zg=v", "Z=9v", "=m9v", "Zh==", "Zm9=", "Zm9v\\n", "Zm9v\\r\\n",
		" Zm9v", "Zm 9v", "-_--", "Zm9é", "Zm9v\\u0000\\u0000\\u0000\\u0000",
	} {
		var s Scanner
		s.Reset([]byte(`"` + in + `"`))
		if v, ok := s.Base64(); ok || v != nil || s.Fault() != Blob {
			t.Errorf("%q: %q, %t, fault %d", in, v, ok, s.Fault())
		}
	}
}

// Every wrong byte at every place of a quantum, first and last, is refused.
func TestBase64WrongBytes(t *testing.T) {
	for c := range 256 {
		good := c < 0x80 && strings.ContainsRune(alphabet, rune(c))
		for at := range 8 {
			b := []byte("AAAAAAAA")
			b[at] = byte(c)
			n, ok := decodeBase64(b)
			padding := c == '=' && at == 7
			if ok != (good || padding) || ok && n != 6-map[bool]int{true: 1}[padding] {
				t.Errorf("byte %#x at %d: %d, %t", c, at, n, ok)
			}
		}
	}
}

func FuzzBase64(f *testing.F) {
	for _, s := range []string{"", "Zg==", "Zm8=", "Zm9v", "Zm9vYmFyZm9vYmFy", "Zh==", "Zm9=", "Zm9v\n", "Zg==Zg==", "-_", "====", "A"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		want, err := base64.StdEncoding.Strict().DecodeString(string(in))
		// encoding/base64 skips line breaks wherever they are; we do not.
		accept := err == nil && !strings.ContainsAny(string(in), "\r\n")
		b := append([]byte(nil), in...)
		n, ok := decodeBase64(b)
		if ok != accept || ok && string(b[:n]) != string(want) {
			t.Fatalf("%q: %q, %t; encoding/base64: %q, %v", in, b[:n], ok, want, err)
		}
		text := AppendBase64(nil, in)
		var s Scanner
		s.Reset(text)
		if v, ok := s.Base64(); !ok || string(v) != string(in) || !s.End() {
			t.Fatalf("%q does not come back: %q, fault %d", in, v, s.Fault())
		}
	})
}

func TestAppendTimestamp(t *testing.T) {
	for in, want := range map[int64]string{
		0: "0", 1: "0.001", 10: "0.010", 999: "0.999", 1000: "1", 1568290320263: "1568290320.263", 1568290320200: "1568290320.200", 1568290320000: "1568290320",
		-1: "-0.001", -999: "-0.999", -1000: "-1", -1001: "-1.001",
		math.MaxInt64: "9223372036854775.807", math.MinInt64: "-9223372036854775.808",
	} {
		if got := string(AppendTimestamp([]byte("x"), in)); got != "x"+want {
			t.Errorf("%d: %q", in, got)
		}
	}
	at := time.Date(2026, 11, 23, 12, 0, 0, 123e6, time.UTC)
	var f float64
	if err := json.Unmarshal(AppendTimestamp(nil, at.UnixMilli()), &f); err != nil || math.Round(f*1000) != float64(at.UnixMilli()) {
		t.Error(f, err)
	}
}
