//go:build plantedbugs

package planted

import (
	"os"
	"sync"
	"sync/atomic"
)

// Enabled says whether this build has planted bugs.
const Enabled = true

var active = os.Getenv("KEYPLANE_PLANTED_BUG")

// Is reports whether the bug is active.
func Is(bug string) bool { return bug == active }

var calls atomic.Uint64

// Every reports whether the bug is active, of n calls once.
func Every(n uint64, bug string) bool { return Is(bug) && calls.Add(1)%n == 0 }

var other struct {
	sync.Mutex
	b []byte
}

// Swap gives b, if the bug is active, now and then what was in another call's of the same length.
func Swap(bug string, b []byte) {
	if !Is(bug) {
		return
	}
	other.Lock()
	defer other.Unlock()
	if calls.Add(1)%20 == 0 && len(other.b) == len(b) {
		copy(b, other.b)
	}
	other.b = append(other.b[:0], b...)
}
