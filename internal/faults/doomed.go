package main

import (
	"bytes"
	"context"
	"fmt"
	"time"
)

const day = 24 * time.Hour

// doomedKey is a key whose deletion is scheduled: it is there until its date, and comes back if it is cancelled before.
type doomedKey struct {
	id    string
	date  time.Time
	blobs []sealed
}

// doom schedules the deletion of some keys in seven days, the shortest there is.
func (r *run) doom(c *client) error {
	for i := range 4 {
		var k keyReply
		if err := r.must(c, "CreateKey", m{}, &k); err != nil {
			return err
		}
		d := &doomedKey{id: k.KeyMetadata.KeyId}
		s := sealed{key: d.id, context: "doomed", plain: canary(d.id, i)}
		var made blobReply
		if err := r.must(c, "Encrypt", m{"KeyId": d.id, "Plaintext": s.plain, "EncryptionContext": m{"for": s.context}}, &made); err != nil {
			return err
		}
		s.blob = made.CiphertextBlob
		d.blobs = append(d.blobs, s)
		var out struct{ DeletionDate float64 }
		if err := r.must(c, "ScheduleKeyDeletion", m{"KeyId": d.id, "PendingWindowInDays": 7}, &out); err != nil {
			return err
		}
		d.date = time.UnixMilli(int64(out.DeletionDate * 1000))
		r.doomed = append(r.doomed, d)
	}
	return nil
}

// successionMax is for how long after a fault nobody may do the workers' work: the term of its owner in the store, 6 s, a second until another looks, and what an election of
// etcd's leader adds to both.
const successionMax = 12 * time.Second

// checkDoomed looks at the keys that wait for their deletion: now, and where clocks can be set, shortly before their date; then the last of them is destroyed
// after its date, or its being there before would prove nothing.
func (r *run) checkDoomed(ctx context.Context, c *client) error {
	if err := r.pending(c); err != nil {
		return err
	}
	if r.clocks() {
		// A jump that no worker sees counts for nothing (store.Elapsed): the last fault may have ended the process that did the workers' work.
		select {
		case <-time.After(time.Until(r.calm.Add(successionMax))):
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := r.advance(ctx, 7*day-6*time.Hour); err != nil {
			return err
		}
		if err := r.pending(c); err != nil {
			return err
		}
	}
	last := r.doomed[len(r.doomed)-1]
	for _, d := range r.doomed[:len(r.doomed)-1] {
		if err := r.must(c, "CancelKeyDeletion", m{"KeyId": d.id}, nil); err != nil {
			r.found(destroyed, "the deletion of %s cannot be cancelled before its date: %v", d.id, err)
			continue
		}
		if err := r.must(c, "EnableKey", m{"KeyId": d.id}, nil); err != nil {
			r.found(destroyed, "%s after its deletion was cancelled: %v", d.id, err)
			continue
		}
		for _, s := range d.blobs {
			var out blobReply
			if err := r.must(c, "Decrypt", m{"CiphertextBlob": s.blob, "EncryptionContext": m{"for": s.context}}, &out); err != nil || !bytes.Equal(out.Plaintext, s.plain) {
				r.found(destroyed, "%s after its deletion was cancelled does not decrypt: %v", d.id, err)
			}
		}
	}
	if !r.clocks() {
		return nil
	}
	if err := r.advance(ctx, 7*day+time.Hour); err != nil {
		return err
	}
	for began := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		o, err := r.insist(c, "DescribeKey", m{"KeyId": last.id}, nil)
		if err != nil || o.code == "NotFoundException" {
			return err
		}
		if time.Since(began) > 3*time.Minute {
			return fmt.Errorf("%s is there after its date: %v", last.id, &o)
		}
	}
}

// pending looks at the keys that wait for their deletion.
func (r *run) pending(c *client) error {
	for _, d := range r.doomed {
		var k keyReply
		o, err := r.insist(c, "DescribeKey", m{"KeyId": d.id}, &k)
		if err != nil {
			return err
		}
		if !o.ok() || k.KeyMetadata.KeyState != pendingDeletion {
			r.found(destroyed, "%s, to be deleted on %v, is at %v: %v, state %q", d.id, d.date.UTC(), date().UTC(), &o, k.KeyMetadata.KeyState)
		}
		c.next()
	}
	return nil
}

// advance has time pass for every process and for whoever signs. Workers look at what is due each minute, and at once when a key's date has come by their own clock's
// account; waiting for them is left to the caller.
func (r *run) advance(ctx context.Context, by time.Duration) error {
	for _, n := range r.Keyplanes() {
		if err := n.SetClock(by, by); err != nil {
			return err
		}
	}
	ahead.Store(int64(by))
	select {
	case <-time.After(r.workerPause()):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
