package dataplane

import (
	"sync"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/xks"
)

// healthFresh is how old a verdict may be to be given again at once, healthMax how old a good one may be to be given while the next is made: the API allows a minute.
// A bad one is not held on to: KMS disconnects a key store for it.
// KMS waits for a quarter of a second; healthWait leaves some of it for the way.
const (
	healthFresh = 5 * time.Second
	healthMax   = 50 * time.Second
	healthWait  = 200 * time.Millisecond
)

// healthCheck is the last verdict on whether the proxy can serve, and who makes the next.
type healthCheck struct {
	mu   sync.Mutex
	at   time.Time     // of the verdict; zero: there is none
	err  error         // the verdict
	next chan struct{} // closed when the next verdict is there; nil where nobody makes one
}

// getHealthStatus answers from a verdict that is less than a minute old.
func (x *XKS) getHealthStatus(r *request) xks.Failure {
	err, known := x.healthy()
	switch {
	case !known:
		return r.refuseXKS(xks.DependencyTimeout, "The key manager did not answer in time.")
	case err != nil:
		return r.xksFailure(x.s.fail(r, err))
	}
	fleet := x.cfg.Fleet()
	dst := append(r.out[:0], `{"xksProxyFleetSize":1,"xksProxyVendor":"keyplane","xksProxyModel":`...)
	dst = cloudtrail.AppendString(dst, []byte("keyplane "+x.cfg.Version))
	dst = append(dst, `,"ekmVendor":"keyplane","ekmFleetDetails":[`...)
	for i, m := range fleet[:min(len(fleet), xks.FleetMax)] {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = cloudtrail.AppendMember(append(dst, '{'), "id", []byte(m.ID))
		dst = cloudtrail.AppendMember(dst, "model", []byte(m.Model))
		dst = append(cloudtrail.AppendMember(dst, "healthStatus", []byte(m.Status)), '}')
	}
	r.out = append(dst, ']', '}')
	return xks.OK
}

// healthy is a verdict that is young enough, false if there is none in time. One goroutine at a time makes the next.
func (x *XKS) healthy() (err error, known bool) {
	h := &x.health
	h.mu.Lock()
	age := time.Since(h.at)
	if age > healthFresh && h.next == nil {
		h.next = make(chan struct{})
		go x.checkHealth(h.next)
	}
	next, err := h.next, h.err
	h.mu.Unlock()
	if age <= healthFresh || err == nil && age <= healthMax {
		return err, true
	}
	late := time.NewTimer(healthWait)
	defer late.Stop()
	select {
	case <-next:
	case <-late.C:
		return nil, false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err, true
}

func (x *XKS) checkHealth(done chan struct{}) {
	err := x.askHealth()
	h := &x.health
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at, h.err, h.next = time.Now(), err, nil
	close(done)
}

// askHealth has the HSM draw and encrypt, under a root and no key of anybody, and asks the other parts.
func (x *XKS) askHealth() error {
	if err := x.cfg.Ready(); err != nil {
		return err
	}
	var j hsm.Job
	defer j.Wipe()
	j.Random, j.Raw, j.Root = make([]byte, 16), true, x.cfg.Root()
	copy(j.RawIn[:], j.Random)
	return x.cfg.Run(&j, time.Now())
}
