//go:build failpoints

package failpoint

import (
	"os"
	"syscall"
)

// Enabled says whether this build has failpoints.
const Enabled = true

// Here ends the process with SIGKILL if name is what KEYPLANE_FAILPOINT says.
func Here(name string) {
	if os.Getenv("KEYPLANE_FAILPOINT") == name {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
