package main

import "fmt"

// What records survive, of `keyplane serve --audit-durability`; the names of the targets.
const (
	auditOffName   = "SoftHSM, no records"
	auditWriteName = "SoftHSM, records: write"
	auditFsyncName = "SoftHSM, records: fsync"
	noQuotasName   = "SoftHSM, records: write, quotas off"
)

// auditTable varies how durable the audit record of a call is before its reply leaves, whether quotas are charged, and the number of connections: what
// shares a commit.
func (p *plan) auditTable() error {
	var targets []*target
	for i, v := range []struct{ name, durability, quotas string }{
		{auditOffName, "off", "default"}, {auditWriteName, "write", "default"}, {auditFsyncName, "fsync", "default"}, {noQuotasName, "write", "off"},
	} {
		t, err := p.startSoftHSM(fmt.Sprint("audit-", i), "--audit-durability", v.durability, "--quotas", v.quotas)
		if err != nil {
			return err
		}
		defer t.stop()
		t.name = v.name
		targets = append(targets, t)
	}
	ops := []string{"GenerateDataKey", "Decrypt"}
	var cells []cell
	for _, op := range ops {
		floor, _, err := p.startFloor(targets[0], op)
		if err != nil {
			return err
		}
		defer floor.stop()
		for _, n := range []int{1, 64, 256} {
			for _, t := range append([]*target{floor}, targets...) {
				cells = append(cells, p.cell(t, op, conns(n), n))
			}
		}
	}
	if err := p.alternate("audit", cells); err != nil {
		return err
	}
	for _, op := range ops {
		for _, c := range []struct {
			n    int
			name string
		}{{64, auditWriteName}, {256, auditFsyncName}} {
			at := fmt.Sprintf("%s at %s on %s", op, conns(c.n), c.name)
			p.promise(at+", requests/s of the echo", p.ratio("audit", op, conns(c.n), c.name, echoName, perSecond), atLeast, 0.80)
			p.promise(at+", server CPU per request of the echo's", p.ratio("audit", op, conns(c.n), c.name, echoName, cpuMicros), atMost, 1.45)
			p.promise(at+", allocations per request, the process's own included", p.median("audit", op, conns(c.n), c.name, mallocs), atMost, mallocsMax)
		}
	}
	return nil
}
