//go:build !race

package keyid

import (
	"testing"

	"github.com/keyplane/keyplane/internal/alloctest"
)

func TestNoAllocations(t *testing.T) {
	refs := [][]byte{
		[]byte(uuidText), []byte(mrkText), []byte("alias/x"), []byte(arnHead + "key/" + uuidText), []byte(arnHead + "alias/x"),
		[]byte("foo"), []byte("arn:aws"), []byte("alias/ "),
	}
	dst := make([]byte, 0, 512)
	run := func() {
		for _, in := range refs {
			r, fault := Parse(in)
			dst = r.Append(dst[:0])
			dst = fault.AppendMessage(dst, in)
		}
		dst = AppendKeyARN(dst[:0], "aws", "us-east-1", 1, NewID(bits, false))
		dst = AppendAliasARN(dst, "aws", "us-east-1", 1, refs[2])
	}
	run()
	if n := alloctest.Mallocs(20_000, run); n != 0 {
		t.Errorf("%d allocations in 20000 runs", n)
	}
}

func BenchmarkParseKeyARN(b *testing.B) {
	in := []byte(arnHead + "key/" + uuidText)
	for b.Loop() {
		if _, f := Parse(in); f != None {
			b.Fatal(f)
		}
	}
}

func BenchmarkAppendKeyARN(b *testing.B) {
	dst := make([]byte, 0, 128)
	for b.Loop() {
		dst = AppendKeyARN(dst[:0], "aws", "us-east-1", 111122223333, ID{UUID: bits})
	}
}
