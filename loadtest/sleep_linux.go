package loadtest

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// preciseSleep waits on a timerfd, timerfd_create(2), through the runtime's poller. The poller's own time-out is rounded up to whole
// milliseconds, which an open loop would report as latency; an event on a file descriptor wakes it at once. BenchmarkPace measures both.
// The zero value is ready; it belongs to one goroutine.
type preciseSleep struct {
	file *os.File // nil until first used, or where the kernel gave none
	fd   int      // file's, valid as long as file is open

	spec        unix.ItimerSpec // here, not on the stack of sleep, because they would escape
	expirations [8]byte
}

func (p *preciseSleep) sleep(d time.Duration) {
	if p.file == nil && !p.open() {
		time.Sleep(d)
		return
	}
	p.spec.Value = unix.NsecToTimespec(int64(d))
	if unix.TimerfdSettime(p.fd, 0, &p.spec, nil) != nil {
		time.Sleep(d)
		return
	}
	if _, err := p.file.Read(p.expirations[:]); err != nil {
		time.Sleep(d)
	}
}

// processorTime is what this process has used so far.
func processorTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (p *preciseSleep) open() bool {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return false
	}
	p.file, p.fd = os.NewFile(uintptr(fd), "timerfd"), fd
	return true
}

func (p *preciseSleep) close() {
	if p.file != nil {
		p.file.Close()
		p.file = nil
	}
}
