package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/ratelimit"
)

const (
	oneKeyName   = "SoftHSM, 1 key"
	manyKeysName = "SoftHSM, many keys"
	residentMax  = 700e6 // bytes, with 100 000 keys known, embedded etcd included
)

// keysTable compares one key with many equally busy ones. All requests of a run are made and signed before it, as many for one key as for
// many and for the echo, and sent in random order. All keys have been used once before: what is measured is not the first reading of a key.
func (p *plan) keysTable() error {
	hsm, err := p.startSoftHSM("keys")
	if err != nil {
		return err
	}
	defer hsm.stop()
	empty, err := residentBytes(hsm.cmd.Process.Pid)
	if err != nil {
		return err
	}
	if err := errors.Join(hsm.setQuota(benchAccount, "CreateKey", ratelimit.RateMax), hsm.setQuota(benchAccount, quota.KeysPerAccount, float64(p.keys+1))); err != nil {
		return err
	}
	keys, err := p.makeKeys(hsm)
	if err != nil {
		return err
	}
	var cells []cell
	for _, op := range p.ops {
		var bodies func(i int) string
		switch op {
		case "GenerateDataKey":
			bodies = func(i int) string { return dataKeyBody(keys[i].id, 32) }
		case "Decrypt":
			bodies = func(i int) string { return `{"CiphertextBlob":"` + keys[i].ciphertext + `"}` }
		default:
			continue
		}
		floor, _, err := p.startFloor(hsm, op)
		if err != nil {
			return err
		}
		defer floor.stop()
		many := func(t *target, name string, bodies func(int) string) cell {
			return cell{op, "", name, func(d time.Duration) (measurement, error) {
				return t.measureMany(op, bodies, p.keys, p.conns, d, p.tmp)
			}}
		}
		same := func(t *target) func(int) string { return func(int) string { return t.bodies[op] } }
		cells = append(cells, many(floor, echoName, same(floor)), many(hsm, oneKeyName, same(hsm)), many(hsm, manyKeysName, bodies))
	}
	if err := p.alternate("keys", cells); err != nil {
		return err
	}
	resident, err := residentBytes(hsm.cmd.Process.Pid)
	if err != nil {
		return err
	}
	fmt.Printf("resident memory of the server: %d MB with one key at the start, %d MB at the end with %d keys known and all of them in use\n", empty/1e6, resident/1e6, p.keys)
	for _, op := range p.ops {
		p.promise(fmt.Sprintf("%s, %d keys equally busy, requests/s of one key", op, p.keys), p.ratio("keys", op, "", manyKeysName, oneKeyName, perSecond), atLeast, 0.90)
	}
	p.promise(fmt.Sprintf("resident memory with %d keys known, embedded etcd included, MB", p.keys), float64(resident)/1e6, atMost, residentMax/1e6)
	return nil
}

// knownKey is a KMS key and a ciphertext under it.
type knownKey struct{ id, ciphertext string }

// makeKeys creates the keys over the API and has each make a data key. Both run over parallel connections: etcd writes what arrives together
// to the disk in one go.
func (p *plan) makeKeys(t *target) ([]knownKey, error) {
	keys := make([]knownKey, p.keys)
	began := time.Now()
	err := p.parallel(p.keys, func(i int) error {
		var made struct{ KeyMetadata struct{ KeyId string } }
		err := t.call("CreateKey", `{}`, &made)
		keys[i].id = made.KeyMetadata.KeyId
		return err
	})
	if err != nil {
		return nil, err
	}
	created := time.Since(began)
	fmt.Printf("CreateKey: %d keys in %.1f s, %.0f/s over %d connections\n", p.keys, created.Seconds(), float64(p.keys)/created.Seconds(), callsMax)
	began = time.Now()
	err = p.parallel(p.keys, func(i int) error {
		b, err := t.post("GenerateDataKey", dataKeyBody(keys[i].id, 32))
		if err != nil {
			return err
		}
		var made struct{ CiphertextBlob string }
		err = json.Unmarshal(b, &made)
		keys[i].ciphertext = made.CiphertextBlob
		return err
	})
	fmt.Printf("first use of each: %.1f s\n", time.Since(began).Seconds())
	return keys, err
}

// parallel calls do for 0 to n-1 from as many goroutines as there may be calls, and returns the first error.
func (p *plan) parallel(n int, do func(i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	var once sync.Once
	var failed error
	stop := make(chan struct{})
	fail := func(err error) { once.Do(func() { failed = err; close(stop) }) }
	for range callsMax {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-p.ctx.Done():
					fail(errors.New("interrupted"))
					return
				default:
				}
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := persistently(do, i); err != nil {
					fail(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return failed
}

// persistently calls do again after a transient refusal, as an SDK does: on a busy machine a few are throttled.
func persistently(do func(i int) error, i int) error {
	const attempts = 20
	for attempt := 1; ; attempt++ {
		err := do(i)
		if r, ok := errors.AsType[*refusal](err); !ok || !r.transient() || attempt == attempts {
			return err
		}
		time.Sleep(time.Duration(attempt) * 10 * time.Millisecond)
	}
}
