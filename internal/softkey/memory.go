//go:build unix

package softkey

import (
	"os"

	"golang.org/x/sys/unix"
)

// memory is whole pages outside of Go's heap.
type memory struct {
	pages  []byte
	locked bool
}

// lock is the system's way to keep pages from being swapped out.
func lock(pages []byte) error { return unix.Mlock(pages) }

// newMemory maps pages for n bytes and locks them with lock, which the limit of locked memory may refuse.
func newMemory(n int, lock func([]byte) error) (memory, error) {
	page := os.Getpagesize()
	pages, err := unix.Mmap(-1, 0, (n+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return memory{}, err
	}
	leaveOutOfDumps(pages)
	return memory{pages, lock(pages) == nil}, nil
}

// free clears the pages and gives them back.
func (m *memory) free() {
	if m.pages == nil {
		return
	}
	clear(m.pages)
	_ = unix.Munmap(m.pages) // unlocks them too
	*m = memory{}
}
