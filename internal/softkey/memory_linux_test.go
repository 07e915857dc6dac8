package softkey

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// What the kernel says of the pages of a key: left out of core dumps, and locked if the key says so.
func TestPagesOfKeys(t *testing.T) {
	k, _ := must(t, keyspec.HMAC256)
	var address uint64
	if _, err := fmt.Sscanf(fmt.Sprintf("%p", k.raw), "0x%x", &address); err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skipf("the kernel does not say: %v", err)
	}
	inside := false
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		if n, _ := fmt.Sscanf(line, "%x-%x ", &from, &to); n == 2 {
			inside = address >= from && address < to
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && inside {
			has := func(flag string) bool { return slices.Contains(strings.Fields(flags), flag) }
			if !has("dd") || has("lo") != k.Locked() {
				t.Errorf("flags of the pages are %s; locked: %t", flags, k.Locked())
			}
			return
		}
	}
	t.Skip("the kernel does not tell the flags of pages")
}
