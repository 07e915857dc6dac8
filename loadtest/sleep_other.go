//go:build !linux

package loadtest

import "time"

// preciseSleep is the runtime's sleep where there is nothing better.
type preciseSleep struct{}

func (preciseSleep) sleep(d time.Duration) { time.Sleep(d) }

// processorTime is not told here.
func processorTime() time.Duration { return 0 }

func (preciseSleep) close() {}
