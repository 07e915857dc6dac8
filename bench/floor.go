package main

import (
	"fmt"
	"path/filepath"
	"slices"
)

// floorTable compares keyplane with the floor and with the way others do it, at the usual number of connections.
func (p *plan) floorTable() error {
	soft, err := startKeyplane(softName, p.keyplane, filepath.Join(p.tmp, "soft"), "")
	if err != nil {
		return err
	}
	defer soft.stop()
	hsm, err := p.startSoftHSM("floor")
	if err != nil {
		return err
	}
	defer hsm.stop()
	baseline, err := startBaseline(p.self, p.tmp, p.uri, benchSessions)
	if err != nil {
		return err
	}
	defer baseline.stop()

	var cells []cell
	for _, op := range p.ops {
		floor, response, err := p.startFloor(hsm, op)
		if err != nil {
			return err
		}
		defer floor.stop()
		for _, t := range []*target{floor, soft, hsm} {
			cells = append(cells, p.cell(t, op, "", p.conns))
		}
		if !slices.Contains(baselineOps, op) {
			continue
		}
		_, same, err := baseline.sample(op)
		if err != nil {
			return err
		}
		if len(same) != len(response) {
			return fmt.Errorf("%s: the baseline answers with %d bytes, keyplane with %d: not the same exchange", op, len(same), len(response))
		}
		cells = append(cells, p.cell(baseline, op, "", p.conns))
	}
	if err := p.alternate("floor", cells); err != nil {
		return err
	}
	for _, op := range p.ops {
		if op == "GenerateDataKey" || op == "Decrypt" {
			p.promise(fmt.Sprintf("%s on SoftHSM at %d connections, requests/s of the echo", op, p.conns), p.ratio("floor", op, "", hsmName, echoName, perSecond), atLeast, 0.85)
			p.promise(fmt.Sprintf("%s on SoftHSM, server CPU per request of the echo", op), p.ratio("floor", op, "", hsmName, echoName, cpuMicros), atMost, 1.30)
		}
		for _, t := range []string{softName, hsmName} {
			p.promise(fmt.Sprintf("%s on %s, allocations per request, the process's own included", op, t), p.median("floor", op, "", t, mallocs), atMost, mallocsMax)
		}
	}
	return nil
}

// startSoftHSM runs keyplane on the SoftHSM token in a data directory of its own, with more flags.
func (p *plan) startSoftHSM(name string, extra ...string) (*target, error) {
	return startKeyplane(hsmName, p.keyplane, filepath.Join(p.tmp, "hsm-"+name), p.uri, extra...)
}

// startFloor runs the echo of an operation as the server answers it, and prints the sizes.
func (p *plan) startFloor(t *target, op string, extra ...string) (floor *target, response []byte, err error) {
	request, response, err := t.sample(op)
	if err != nil {
		return nil, nil, err
	}
	fmt.Printf("%s: request body %d bytes, response body %d bytes\n", op, len(request), len(response))
	floor, err = startEcho(p.self, op, request, response, extra...)
	return floor, response, err
}
