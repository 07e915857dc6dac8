//go:build !plantedbugs

package planted

// Enabled says whether this build has planted bugs.
const Enabled = false

// Is reports whether the bug is active.
func Is(string) bool { return false }

// Every reports whether the bug is active, of n calls once.
func Every(uint64, string) bool { return false }

// Swap gives b, if the bug is active, now and then what was in another call's.
func Swap(string, []byte) {}
