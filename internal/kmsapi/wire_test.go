package kmsapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestAppendString(t *testing.T) {
	for in, want := range map[string]string{
		"": `""`, "abc": `"abc"`, `a"b\c/`: `"a\"b\\c/"`, "\n\r\t\b\f": `"\n\r\t\u0008\u000c"`, "\x00\x1f\x7f": `"\u0000\u001f\u007f"`, "é€😀": `"é€😀"`,
		"a\xffb": "\"a\ufffdb\"", "\xed\xa0\x80": "\"\ufffd\ufffd\ufffd\"", "\xe2\x82": "\"\ufffd\ufffd\"", "\ufffd": "\"\ufffd\"", "\u2028": "\"\u2028\"",
	} {
		if got := string(AppendString([]byte("x"), in)); got != "x"+want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
		if got := string(AppendString(nil, []byte(in))); got != want {
			t.Errorf("%q as bytes: %s, want %s", in, got, want)
		}
	}
	for r := rune(0); r < 0x3000; r++ {
		var back string
		in := "a" + string(r) + "b"
		if err := json.Unmarshal(AppendString(nil, in), &back); err != nil || back != in {
			t.Fatalf("%q comes back as %q, %v", in, back, err)
		}
	}
}

func FuzzAppendString(f *testing.F) {
	for _, s := range []string{"", "abc", "\"\\\n\x00\x7f", "é😀", "a\xff\xc3", "\xed\xa0\x80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		out := AppendString(nil, in)
		if !utf8.Valid(out) || string(AppendString(nil, []byte(in))) != string(out) {
			t.Fatalf("%q: %q", in, out)
		}
		var back string
		// Ranging over a string replaces invalid bytes one by one, as AppendString does.
		if err := json.Unmarshal(out, &back); err != nil || back != string([]rune(in)) {
			t.Fatalf("%q comes back as %q, %v", in, back, err)
		}
	})
}

func TestAppendErrorBody(t *testing.T) {
	for _, c := range []struct {
		code    Code
		message string
		want    string
	}{
		{NotFound, "Invalid keyId 'x'", `{"__type":"NotFoundException","message":"Invalid keyId 'x'"}`},
		{AccessDenied, "no", `{"__type":"AccessDeniedException","Message":"no"}`},
		{InvalidCiphertext, "", `{"__type":"InvalidCiphertextException"}`},
		{Validation, "a\"b\n\xff", "{\"__type\":\"ValidationException\",\"message\":\"a\\\"b\\n\ufffd\"}"},
	} {
		if got := string(AppendErrorBody(nil, c.code, []byte(c.message))); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
	for c := OK + 1; c < codeCount; c++ {
		var body map[string]string
		out := AppendErrorBody([]byte("x"), c, []byte("why"))
		if err := json.Unmarshal(out[1:], &body); err != nil || body["__type"] != c.Type() || body["message"]+body["Message"] != "why" || len(body) != 2 {
			t.Errorf("%v: %s, %v", c, out, err)
		}
	}
}

func TestErrorValues(t *testing.T) {
	err := fmt.Errorf("op: %w", New(NotFound, "Key 'x' does not exist"))
	if !errors.Is(err, E(NotFound)) || errors.Is(err, E(Disabled)) || errors.Is(err, errors.New("x")) {
		t.Error("errors.Is does not go by the code")
	}
	if got := AsError(err); got.Code != NotFound || got.Message != "Key 'x' does not exist" {
		t.Errorf("%+v", got)
	}
	if got := AsError(errors.New("CKR_DEVICE_ERROR at slot 3")); got.Code != KMSInternal || strings.Contains(got.Message, "CKR") {
		t.Errorf("%+v", got)
	}
	if got := E(DryRunOperation).Error(); got != "DryRunOperationException: The request would have succeeded, but the DryRun option is set." {
		t.Error(got)
	}
	if got := E(InvalidCiphertext).Error(); got != "InvalidCiphertextException" {
		t.Error(got)
	}
}

// The wording is the live service's: one exception lists every failure, members with the sensitive trait and blobs omit the value.
func TestViolationsWording(t *testing.T) {
	value := []byte("v")
	long := strings.Repeat("x", valueEchoMax)
	for _, c := range []struct {
		record func(*Violations)
		want   string
	}{
		{func(v *Violations) { v.Null("keyId") },
			"1 validation error detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null"},
		{func(v *Violations) { v.MinLength("keyId", []byte{}, 1) },
			"1 validation error detected: Value '' at 'keyId' failed to satisfy constraint: Member must have length greater than or equal to 1"},
		{func(v *Violations) { v.MaxLength("plaintext", nil, 4096) },
			"1 validation error detected: Value at 'plaintext' failed to satisfy constraint: Member must have length less than or equal to 4096"},
		{func(v *Violations) { v.Hidden("plaintext", NotNull) },
			"1 validation error detected: Value at 'plaintext' failed to satisfy constraint: Member must not be null"},
		{func(v *Violations) { v.Value("x", value, "Member must be so") },
			"1 validation error detected: Value 'v' at 'x' failed to satisfy constraint: Member must be so"},
		{func(v *Violations) { v.Min("limit", 0, 1) },
			"1 validation error detected: Value '0' at 'limit' failed to satisfy constraint: Member must have value greater than or equal to 1"},
		{func(v *Violations) { v.Max("limit", -1<<63, 1000) },
			"1 validation error detected: Value '-9223372036854775808' at 'limit' failed to satisfy constraint: Member must have value less than or equal to 1000"},
		{func(v *Violations) { v.Pattern("aliasName", value, "^[a-zA-Z0-9:/_-]+$") },
			"1 validation error detected: Value 'v' at 'aliasName' failed to satisfy constraint: Member must satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$"},
		{func(v *Violations) { v.Enum("keySpec", value, "[AES_256, AES_128]") },
			"1 validation error detected: Value 'v' at 'keySpec' failed to satisfy constraint: Member must satisfy enum value set: [AES_256, AES_128]"},
		{func(v *Violations) { v.Null("keyId"); v.MaxLength("tags.1.member.tagKey", value, 128) },
			"2 validation errors detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null; " +
				"Value 'v' at 'tags.1.member.tagKey' failed to satisfy constraint: Member must have length less than or equal to 128"},
		{func(v *Violations) { v.Pattern("x", []byte(long), "r") },
			"1 validation error detected: Value '" + long + "' at 'x' failed to satisfy constraint: Member must satisfy regular expression pattern: r"},
		{func(v *Violations) { v.Pattern("x", []byte(long+"x"), "r") },
			"1 validation error detected: Value at 'x' failed to satisfy constraint: Member must satisfy regular expression pattern: r"},
	} {
		var v Violations
		if v.Any() || v.Err() != nil {
			t.Error("failures before the first")
		}
		c.record(&v)
		if got := string(v.AppendMessage(nil)); got != c.want || !v.Any() {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
		if err := v.Err(); !errors.Is(err, E(Validation)) || err.Error() != "ValidationException: "+c.want {
			t.Errorf("Err: %v", err)
		}
		buf := v.buf[:cap(v.buf)]
		v.Reset()
		if v.Any() || v.Err() != nil || strings.Trim(string(buf), "\x00") != "" {
			t.Errorf("left after Reset: %q", buf)
		}
	}
}

func TestRoute(t *testing.T) {
	for i := range Operations {
		if got := Route([]byte("TrentService." + Operations[i].Name)); got != &Operations[i] {
			t.Errorf("%s is routed to %v", Operations[i].Name, got)
		}
	}
	for _, target := range []string{
		"", "TrentService", "TrentService.", "TrentService.decrypt", "TrentService.Decrypt ", " TrentService.Decrypt", "trentservice.Decrypt", "Decrypt",
		"TrentService..Decrypt", "TrentService.NoSuchOperation", "DynamoDB_20120810.GetItem", "TrentService.Decrypt\x00", "TrentService.Decrypt,TrentService.Encrypt",
	} {
		if got := Route([]byte(target)); got != nil {
			t.Errorf("%q is routed to %s", target, got.Name)
		}
	}
	if got := NotBuiltText(&Operation{Name: "Sign"}); got != "Sign is not offered by this version of keyplane." {
		t.Error(got)
	}
}

func FuzzRoute(f *testing.F) {
	for _, s := range []string{"TrentService.Decrypt", "TrentService.GenerateDataKeyWithoutPlaintext", "TrentService.", "TrentService", "Decrypt", "", "trentservice.Decrypt", "TrentService.Sign\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, target []byte) {
		got := Route(target)
		name, prefixed := strings.CutPrefix(string(target), TargetPrefix)
		known := false
		for _, op := range Operations {
			known = known || op.Name == name
		}
		if (got != nil) != (prefixed && known) || got != nil && got.Name != name {
			t.Fatalf("%q is routed to %v", target, got)
		}
	})
}
