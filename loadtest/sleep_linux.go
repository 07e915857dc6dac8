package loadtest

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// preciseSleep waits on a timerfd, timerfd_create(2), through the runtime's poller. The poller's own time-out is rounded up to whole
// milliseconds, which an open loop would report as latency; an event on a file descriptor wakes it at once. The zero value is ready.
type preciseSleep struct {
	file *os.File // nil until first used, or where the kernel gave none
	conn interface {
		Control(func(uintptr)) error
	}
}

func (p *preciseSleep) sleep(d time.Duration) {
	if p.file == nil && !p.open() {
		time.Sleep(d)
		return
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	var err error
	if controlErr := p.conn.Control(func(fd uintptr) { err = unix.TimerfdSettime(int(fd), 0, &spec, nil) }); controlErr != nil || err != nil {
		time.Sleep(d)
		return
	}
	var expirations [8]byte
	if _, err := p.file.Read(expirations[:]); err != nil {
		time.Sleep(d)
	}
}

func (p *preciseSleep) open() bool {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return false
	}
	file := os.NewFile(uintptr(fd), "timerfd")
	conn, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return false
	}
	p.file, p.conn = file, conn
	return true
}

func (p *preciseSleep) close() {
	if p.file != nil {
		p.file.Close()
	}
}
