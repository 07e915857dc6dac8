//go:build testclock

package node

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/internal/fence"
)

const (
	testClockPoll = 10 * time.Millisecond  // how often the file is read
	testClockWork = 500 * time.Millisecond // how often workers look for what is due: often, where a clock may jump
)

// testClock is the clock of a process whose time somebody sets: the file that KEYPLANE_CLOCK_FILE names says how many nanoseconds the wall clock and the running time
// are ahead of this machine's. Go programs read the time without asking the C library, so that libfaketime does not reach them.
func testClock() *Clock {
	path := os.Getenv("KEYPLANE_CLOCK_FILE")
	if path == "" {
		return nil
	}
	var wall, running atomic.Int64
	read := func() {
		b, err := os.ReadFile(path)
		if err != nil {
			return
		}
		var w, r int64
		if _, err := fmt.Sscan(string(b), &w, &r); err == nil {
			wall.Store(w)
			running.Store(r)
		}
	}
	read()
	go func() { // lives as long as the process
		for {
			time.Sleep(testClockPoll)
			read()
		}
	}()
	return &Clock{
		Now:     func() time.Time { return time.Now().Add(time.Duration(wall.Load())) },
		Running: func() time.Duration { return fence.Now() + time.Duration(running.Load()) },
		Work:    testClockWork,
	}
}
