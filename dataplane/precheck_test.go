package dataplane

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

func TestHeaderBlockParse(t *testing.T) {
	const host = "Host: kms.test\r\n"
	lines := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "x-%d: v\r\n", i)
		}
		return b.String()
	}
	twice := func(line string) string { return host + line + "\r\n" + line + "\r\n" }
	for _, c := range []struct {
		name, raw string
		want      kmsapi.Code
	}{
		{"least", host, kmsapi.OK},
		{"with the empty line", host + "\r\n", kmsapi.OK},
		{"nothing after the empty line counts", host + "\r\nHost: other\r\n", kmsapi.OK},
		{"no header", "", kmsapi.BadRequest},
		{"only the empty line", "\r\n", kmsapi.BadRequest},
		{"no Host", "X: y\r\n", kmsapi.BadRequest},
		{"empty Host", "Host:\r\n", kmsapi.OK}, // not signed as it is, or signed as empty: SigV4's matter

		{"64 headers", host + lines(kmsapi.HeaderCountMax-1), kmsapi.OK},
		{"65 headers", host + lines(kmsapi.HeaderCountMax), kmsapi.RequestHeaderTooLarge},
		{"name of 64 bytes", host + strings.Repeat("n", 64) + ": v\r\n", kmsapi.OK},
		{"name of 65 bytes", host + strings.Repeat("n", 65) + ": v\r\n", kmsapi.RequestHeaderTooLarge},
		{"Authorization of 2048 bytes", host + "Authorization: " + strings.Repeat("a", 2048) + "\r\n", kmsapi.OK},
		{"Authorization of 2049 bytes", host + "Authorization: " + strings.Repeat("a", 2049) + "\r\n", kmsapi.RequestHeaderTooLarge},
		{"blanks do not count", host + "Authorization:  \t" + strings.Repeat("a", 2048) + " \r\n", kmsapi.OK},

		{"two Host", twice("Host: kms.test"), kmsapi.BadRequest},
		{"Host in two spellings", host + "hOST: kms.test\r\n", kmsapi.BadRequest},
		{"two Content-Type", twice("Content-Type: a"), kmsapi.BadRequest},
		{"two X-Amz-Target", twice("X-Amz-Target: a"), kmsapi.BadRequest},
		{"two Authorization", twice("Authorization: a"), kmsapi.BadRequest},
		{"two X-Amz-Date", twice("X-Amz-Date: a"), kmsapi.BadRequest},
		{"two Content-Length", twice("Content-Length: 1"), kmsapi.BadRequest},
		{"two of any other", twice("Accept: a"), kmsapi.OK},

		{"Transfer-Encoding chunked", host + "Transfer-Encoding: chunked\r\n", kmsapi.BadRequest},
		{"Transfer-Encoding identity", host + "transfer-encoding: identity\r\n", kmsapi.BadRequest},
		{"Content-Encoding", host + "Content-Encoding: identity\r\n", kmsapi.BadRequest},

		{"bare LF", "Host: kms.test\n", kmsapi.BadRequest},
		{"bare LF in the middle", host + "a: b\nc: d\r\n", kmsapi.BadRequest},
		{"bare LF alone", host + "\n", kmsapi.BadRequest},
		{"no end of line", "Host: kms.test", kmsapi.BadRequest},
		{"CR in a value", host + "a: b\rc\r\n", kmsapi.BadRequest},
		{"CR CR LF", host + "a: b\r\r\n", kmsapi.BadRequest},
		{"NUL in a value", host + "a: b\x00c\r\n", kmsapi.BadRequest},
		{"folded with a space", host + "a: b\r\n c\r\n", kmsapi.BadRequest},
		{"folded with a tab", host + "a: b\r\n\tc: d\r\n", kmsapi.BadRequest},
		{"no colon", host + "a\r\n", kmsapi.BadRequest},
		{"no name", host + ": v\r\n", kmsapi.BadRequest},
		{"blank before the colon", host + "a : v\r\n", kmsapi.BadRequest},
		{"tab before the colon", host + "a\t: v\r\n", kmsapi.BadRequest},
		{"NUL in a name", host + "a\x00b: v\r\n", kmsapi.BadRequest},
		{"high byte in a name", host + "a\xffb: v\r\n", kmsapi.BadRequest},
		{"every token byte", host + "!#$%&'*+-.^_`|~09azAZ: v\r\n", kmsapi.OK},
		{"no value", host + "a:\r\n", kmsapi.OK},
		{"high bytes in a value", host + "a: \xc3\xa9\xff\r\n", kmsapi.OK},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h headerBlock
			if got := h.parse([]byte(c.raw)); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
	for _, c := range []byte("\"(),/:;<=>?@[\\]{} \x7f") {
		var h headerBlock
		if got := h.parse([]byte(host + "a" + string(rune(c)) + "b: v\r\n")); c != ':' && got != kmsapi.BadRequest {
			t.Errorf("%q in a name: %v", c, got)
		}
	}
}

// What parse keeps: names in lower case, values without the blanks at their ends, in the order they came.
func TestHeaderBlockFields(t *testing.T) {
	var h headerBlock
	raw := "HOST:  kms.test \r\nX-Amz-Target:TrentService.Encrypt\r\nContent-Type:\ta  b\t\r\nUser-Agent: me\r\nAccept: 1\r\nAccept: 2\r\n\r\n"
	if code := h.parse([]byte(raw)); code != kmsapi.OK {
		t.Fatal(code)
	}
	var got strings.Builder
	for _, l := range h.lines[:h.n] {
		fmt.Fprintf(&got, "%s=%s;", l.Name, l.Value)
	}
	const want = "host=kms.test;x-amz-target=TrentService.Encrypt;content-type=a  b;user-agent=me;accept=1;accept=2;"
	if got.String() != want {
		t.Errorf("got %s\nwant %s", &got, want)
	}
	if string(h.target) != "TrentService.Encrypt" {
		t.Errorf("target %q", h.target)
	}
	h.reset()
	for i, l := range h.lines {
		if l.Name != nil || l.Value != nil {
			t.Errorf("line %d outlives reset", i)
		}
	}
	if h.n != 0 || h.target != nil {
		t.Error("a field outlives reset")
	}
}
