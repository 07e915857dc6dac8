//go:build !race

package cloudtrail

import (
	"testing"

	"github.com/keyplane/keyplane/internal/alloctest"
)

func TestNoAlloc(t *testing.T) {
	var r Record
	context, c := testContext(), session()
	objects, out := make([]byte, 0, 4<<10), make([]byte, 0, 8<<10)
	details, message := &TLSDetails{Version: "TLSv1.3", Host: testAgent}, []byte("\xff\x00é")
	if n := alloctest.Mallocs(1000, func() {
		objects = dataKey(&r, objects[:0], context, c)
		r.TLS, r.ErrorCode, r.ErrorMessage = details, "AccessDeniedException", message
		out = r.Append(out[:0])
	}); n != 0 {
		t.Errorf("%d allocations", n)
	}
}
