//go:build !testclock

package node

// testClock is nil: this machine's clocks.
func testClock() *Clock { return nil }
