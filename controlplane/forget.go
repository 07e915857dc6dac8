package controlplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// ForgetRegion has the multi-Region keys of a store's Regions do without another Region that is lost for good: it is none of their replicas any more, not one that is to be
// made, and not one that becomes or was the primary; a primary that waited for that replica to be deleted waits no longer. Nor is that Region told of replicas that were
// deleted here. Replicas of a primary there stay what they are. No Server works over the store meanwhile: other Regions are told by the next one. done is called for each key that
// was changed. A key whose primary is just changing to a third Region is an error, and does not keep the others from it.
func ForgetRegion(ctx context.Context, st *store.Store, regions []string, lost string, now time.Time, done func(store.KeyName, kmsapi.KeyState)) error {
	if slices.Contains(regions, lost) {
		return fmt.Errorf("controlplane: %s is a Region of this server", lost)
	}
	var errs []error
	for _, region := range regions {
		err := st.MultiRegionKeys(ctx, region, func(n store.KeyName) error {
			changed := false
			k, err := st.UpdateKey(ctx, n, func(k *store.Key) error {
				changed = forget(k, lost, now)
				return nil
			})
			switch {
			case errors.Is(err, store.ErrNotFound):
			case errors.Is(err, store.ErrFrozen):
				errs = append(errs, fmt.Errorf("%s: its primary Region is changing; let that end first: %w", n.ID, err))
			case err != nil:
				return err
			default:
				k.Wipe()
				if changed {
					done(n, k.State)
				}
			}
			return nil
		})
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := forgetFarewells(ctx, st, region, lost); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	return errors.Join(errs...)
}

// forget edits the record of one key, and says whether it had to.
func forget(k *store.Key, lost string, now time.Time) bool {
	m := k.MultiRegion
	intended := func(i store.Intent) bool { return i.Region == lost }
	if !k.IsPrimary() || !slices.Contains(m.Replicas, lost) && !slices.ContainsFunc(m.Intents, intended) && m.Former != lost {
		return false
	}
	r := *m
	r.Replicas, r.Intents = withoutRegion(r.Replicas, lost), slices.DeleteFunc(slices.Clone(r.Intents), intended)
	r.Have = slices.DeleteFunc(slices.Clone(r.Have), func(a store.Ack) bool { return a.Region == lost })
	k.MultiRegion = &r
	if r.Promoting == lost {
		r.Void = r.Revision // as in dropReplica
		stay(k, &r)
	}
	if r.Former == lost {
		r.Former = ""
		if k.State == kmsapi.StateUpdating && r.Promoting == "" {
			k.State, k.Resume = k.Resume, 0
		}
	}
	if allReplicasGone(k) {
		k.State, k.DeletionDate, k.DeletionSeen = kmsapi.StatePendingDeletion, now.Add(time.Duration(k.DeletionDays)*day), store.Unseen
	}
	return true
}

// forgetFarewells drops those to a Region.
func forgetFarewells(ctx context.Context, st *store.Store, region, lost string) error {
	var last *store.Farewell
	for {
		list, err := st.Farewells(ctx, region, last, replicationsPerTurn)
		if err != nil {
			return err
		}
		for i := range list {
			if last = &list[i]; last.Primary != lost {
				continue
			}
			if err := st.Redirect(ctx, *last, ""); err != nil {
				return err
			}
		}
		if len(list) < replicationsPerTurn {
			return nil
		}
	}
}
