package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
)

const (
	slowLatency  = time.Millisecond // of one call into the HSM
	slowConns    = 256
	slowSessions = 4

	nearName         = "SoftHSM, 0 ms a call"
	farName          = "SoftHSM, 1 ms a call"
	farBaselineName  = "one operation per request, 1 ms a call"
	slowOfNearMin    = 0.60
	slowOfPerCallMin = 20
)

// slowTable puts the slow module in front of SoftHSM, an HSM at the far end of a network: the same keyplane with and without its latency, and
// the way others do it through the same module with as many sessions.
func (p *plan) slowTable() error {
	slow, err := p.slowHSM("slow", slowhsm.Settings{})
	if err != nil {
		return err
	}
	config, err := p.config("slow", fmt.Sprintf("sessions_per_token: %d\n", slowSessions))
	if err != nil {
		return err
	}
	server, err := startThrough(slow, func() (*target, error) {
		return startKeyplane(nearName, p.keyplane, filepath.Join(p.tmp, "hsm-slow"), slow.URI(), config...)
	})
	if err != nil {
		return err
	}
	defer server.stop()
	baseline, err := startThrough(slow, func() (*target, error) { return startBaseline(p.self, p.tmp, slow.URI(), slowSessions) })
	if err != nil {
		return err
	}
	defer baseline.stop()

	at := func(latency time.Duration, name string, c cell) cell {
		run := c.run
		c.target, c.run = name, func(d time.Duration) (measurement, error) {
			if err := slow.Set(slowhsm.Settings{Latency: latency}); err != nil {
				return measurement{}, err
			}
			return run(d)
		}
		return c
	}
	var cells []cell
	in := conns(slowConns)
	for _, op := range p.ops {
		floor, _, err := p.startFloor(server, op)
		if err != nil {
			return err
		}
		defer floor.stop()
		cells = append(cells, p.cell(floor, op, in, slowConns), at(0, nearName, p.cell(server, op, in, slowConns)),
			at(slowLatency, farName, p.cell(server, op, in, slowConns)), at(slowLatency, farBaselineName, p.cell(baseline, op, in, slowConns)))
	}
	if err := p.alternate("slow", cells); err != nil {
		return err
	}
	for _, op := range p.ops {
		p.promise(fmt.Sprintf("%s, %s, HSM with 1 ms a call, requests/s of the HSM without latency", op, in), p.ratio("slow", op, in, farName, nearName, perSecond), atLeast, slowOfNearMin)
		p.promise(fmt.Sprintf("%s, %s, HSM with 1 ms a call, requests/s of one operation per request", op, in), p.ratio("slow", op, in, farName, farBaselineName, perSecond), atLeast, slowOfPerCallMin)
	}
	return nil
}

// slowHSM builds the slow module in front of the SoftHSM token, for one table.
func (p *plan) slowHSM(name string, s slowhsm.Settings) (*slowhsm.HSM, error) {
	dir := filepath.Join(p.tmp, "module-"+name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	return slowhsm.New(dir, p.uri, s)
}

// startThrough has f open the module, or start a child that does. The child inherits the module's settings, but not the report: that is a file
// mapped into memory, and on a busy disk a call that counts waits for the page to be written back, for seconds.
func startThrough[T any](slow *slowhsm.HSM, f func() (T, error)) (result T, err error) {
	for _, v := range slow.Env() {
		name, value, _ := strings.Cut(v, "=")
		if name == "KEYPLANE_SLOW_REPORT" {
			continue
		}
		if err := os.Setenv(name, value); err != nil {
			return result, err
		}
		defer os.Unsetenv(name)
	}
	return f()
}
