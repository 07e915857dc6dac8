package softkey

import "golang.org/x/sys/unix"

// leaveOutOfDumps is refused only by kernels before 3.4.
func leaveOutOfDumps(pages []byte) { _ = unix.Madvise(pages, unix.MADV_DONTDUMP) }
