//go:build !race

package sigv4

import (
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

const allocRuns = 20_000

// mallocs counts all allocations of the process over allocRuns calls of f. The runtime itself allocates now and then, so that the least of
// three counts is taken; one allocation in f would show as allocRuns in each.
func mallocs(f func()) uint64 {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	f()
	least := ^uint64(0)
	for range 3 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range allocRuns {
			f()
		}
		runtime.ReadMemStats(&after)
		least = min(least, after.Mallocs-before.Mallocs)
	}
	return least
}

func TestAllocVerify(t *testing.T) {
	v, k := testVerifier(t)
	for name, c := range map[string]struct {
		edit func(*Request)
		code kmsapi.Code
	}{
		"accepted":         {func(*Request) {}, kmsapi.OK},
		"wrong signature":  {func(r *Request) { r.Body = r.Body[1:] }, kmsapi.InvalidSignature},
		"unknown key":      {func(r *Request) { swap(t, r, testID, "AKIAI44QH8DHBEXAMPLE") }, kmsapi.UnrecognizedClient},
		"expired":          {func(r *Request) { set(r, "x-amz-date", "20261123T115459Z") }, kmsapi.InvalidSignature},
		"whole scope":      {func(r *Request) { swap(t, r, "/20261123/eu-central-1/kms/aws4_request", "/b/c/d/e") }, kmsapi.InvalidSignature},
		"unsigned header":  {func(r *Request) { add(r, "x-amz-new", "1") }, kmsapi.InvalidSignature},
		"no Authorization": {func(r *Request) { del(r, "authorization") }, kmsapi.MissingAuthenticationToken},
		"unparsable":       {func(r *Request) { set(r, "authorization", "AWS4-HMAC-SHA256 "+strings.Repeat("x", 500)) }, kmsapi.IncompleteSignature},
		"all missing":      {func(r *Request) { del(r, "x-amz-date"); set(r, "authorization", "AWS4-HMAC-SHA256") }, kmsapi.IncompleteSignature},
		"bad date":         {func(r *Request) { set(r, "x-amz-date", "today") }, kmsapi.IncompleteSignature},
		"folded":           {func(r *Request) { set(r, "user-agent", "a\n b") }, kmsapi.BadRequest},
	} {
		r := signWith(t, k, testRegion, "kms", unsigned(testNow))
		c.edit(r)
		var s Scratch
		n := mallocs(func() {
			if _, code := v.Verify(r, &s, testNow); code != c.code {
				t.Fatalf("%s: %v %s", name, code, s.Message())
			}
		})
		if n != 0 {
			t.Errorf("%s: %d allocations in %d calls", name, n, allocRuns)
		}
	}
}

func TestAllocAppendAuthorization(t *testing.T) {
	_, k := testVerifier(t)
	r := unsigned(testNow)
	var s Scratch
	var dst []byte
	n := mallocs(func() {
		var err error
		if dst, err = AppendAuthorization(dst[:0], k, testRegion, "kms", r, &s); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%d allocations in %d calls", n, allocRuns)
	}
}
