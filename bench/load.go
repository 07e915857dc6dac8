package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/keyplane/keyplane/loadtest"
)

// load is a keyplane loadtest, a child process.
type load struct {
	cmd      *exec.Cmd
	out, err bytes.Buffer
	failed   error
	once     sync.Once
}

// startLoad offers requests open loop, or without a rate closed loop, as the administrator.
func (p *plan) startLoad(t *target, rate float64, conns int, d, warmup time.Duration) *load {
	return p.startLoadAs(t, benchID, benchSecret, rate, conns, d, warmup)
}

// startLoadAs is startLoad with an access key.
func (p *plan) startLoadAs(t *target, id, secretKey string, rate float64, conns int, d, warmup time.Duration) *load {
	l := &load{cmd: exec.CommandContext(p.ctx, p.keyplane, "loadtest", "--json", "--endpoint", t.url, "--region", benchRegion, "--op", overloadOp, "--key-id", t.keyID,
		"--concurrency", strconv.Itoa(conns), "--duration", d.String(), "--warmup", warmup.String(), "--rate", strconv.FormatFloat(rate, 'f', 1, 64))}
	l.cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+id, "AWS_SECRET_ACCESS_KEY="+secretKey)
	l.cmd.Stdout, l.cmd.Stderr = &l.out, &l.err
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	l.failed = l.cmd.Start()
	return l
}

// wait returns the report.
func (l *load) wait() (*loadtest.Report, error) {
	if l.failed != nil {
		return nil, l.failed
	}
	l.once.Do(func() { l.failed = l.cmd.Wait() })
	if l.failed != nil {
		return nil, fmt.Errorf("keyplane loadtest: %w: %s", l.failed, l.err.Bytes())
	}
	r := new(loadtest.Report)
	return r, json.Unmarshal(l.out.Bytes(), r)
}

// stop ends a load that nobody waits for any more.
func (l *load) stop() {
	if l.failed != nil {
		return
	}
	l.once.Do(func() {
		_ = l.cmd.Process.Kill()
		l.failed = l.cmd.Wait()
	})
}

// watcher samples a server's memory, goroutines and threads.
type watcher struct {
	done, ended chan struct{}
	once        sync.Once
	samples     []state
	err         error
}

// errStill: the whole machine stood still, as virtual ones do while they are moved. Every request on its way then runs into its time limit.
var errStill = errors.New("the machine stood still")

const stillMin = 2 * time.Second

// state is a server at one moment.
type state struct {
	at                  time.Time
	resident            int64
	goroutines, threads int
	jobs, rounds        uint64
}

const sampleEvery = 200 * time.Millisecond

func watch(t *target) *watcher {
	w := &watcher{done: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			before := time.Now()
			select {
			case <-w.done:
				return
			case <-tick.C:
			}
			if late := time.Since(before); late > stillMin {
				w.err = fmt.Errorf("%w for %v", errStill, late)
				return
			}
			resident, err := residentBytes(t.cmd.Process.Pid)
			stats, statsErr := readStats(t.stats)
			if w.err = errors.Join(err, statsErr); w.err != nil {
				return
			}
			if stats.Panics > 0 {
				w.err = fmt.Errorf("the server has recovered %d panics", stats.Panics)
				return
			}
			w.samples = append(w.samples, state{time.Now(), resident, stats.Go.Goroutines, stats.Go.Threads, stats.Batch.Jobs, stats.Batch.Rounds})
		}
	}()
	return w
}

// end stops the sampling; then the watcher may be read.
func (w *watcher) end() {
	w.once.Do(func() { close(w.done) })
	<-w.ended
}

// sum reads the samples of an overload from then to then.
func (w *watcher) sum(s *surge, from, to time.Time) {
	var first, last []float64 // resident bytes in the first and the last quarter
	quarter := to.Sub(from) / 4
	var begin, end state
	for _, v := range w.samples {
		switch {
		case v.at.Before(from):
			s.ResidentBefore, s.GoroutinesBefore = v.resident, v.goroutines
			continue
		case v.at.After(to):
			s.ResidentAfter, s.GoroutinesAfter = v.resident, v.goroutines
			continue
		case v.at.Before(from.Add(quarter)):
			first = append(first, float64(v.resident))
		case v.at.After(to.Add(-quarter)):
			last = append(last, float64(v.resident))
		}
		if begin.at.IsZero() {
			begin = v
		}
		end = v
		s.ResidentPeak, s.GoroutinesPeak, s.Threads = max(s.ResidentPeak, v.resident), max(s.GoroutinesPeak, v.goroutines), max(s.Threads, v.threads)
	}
	s.MeanRound = float64(end.jobs-begin.jobs) / float64(end.rounds-begin.rounds)
	s.ResidentGrowth = middle(last) / middle(first)
}
