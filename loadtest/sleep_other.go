//go:build !linux

package loadtest

import "time"

// preciseSleep is the runtime's sleep where there is nothing better.
type preciseSleep struct{}

func (preciseSleep) sleep(d time.Duration) { time.Sleep(d) }
func (preciseSleep) close()                {}
