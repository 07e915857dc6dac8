package loadtest

import "time"

// coarseLead is how much of a wait is left to the precise sleep. The runtime's timers may be a millisecond late on an idle process.
const coarseLead = 2 * time.Millisecond

// sleeper waits for one worker.
type sleeper struct {
	timer   *time.Timer
	precise preciseSleep
}

func newSleeper() *sleeper {
	s := &sleeper{timer: time.NewTimer(time.Hour)}
	s.timer.Stop()
	return s
}

// until returns at t, or soon after the run was stopped.
func (s *sleeper) until(r *run, t time.Duration) {
	for {
		left := t - r.now()
		if left <= 0 {
			return
		}
		if left <= coarseLead {
			s.precise.sleep(left)
			return
		}
		s.timer.Reset(left - coarseLead/2)
		select {
		case <-s.timer.C:
		case <-r.stopped:
			s.timer.Stop()
			return
		}
	}
}

func (s *sleeper) close() {
	s.timer.Stop()
	s.precise.close()
}
