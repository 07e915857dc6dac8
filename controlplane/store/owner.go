package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	ownerPrefix = root + "owner/"

	// ownerTerm is how long ownership outlives its holder's last renewal, in whole seconds as etcd's leases are; it is renewed three times a term. Who waits
	// for it looks every ownerPause.
	ownerTerm  = 6 * time.Second
	ownerPause = time.Second

	// releaseMost bounds how long an owner tries to say that it is none any more. Where etcd does not answer, its process ends all the same.
	releaseMost = time.Second
)

// Own waits until this process owns the work of a Region, which one process does at a time. owned ends when it does not any more, at the latest when another can
// own it; release gives it up. What the work changes has to be right all the same when two do it: a process that was stopped for a while learns too late
// that it has lost it. An error is ctx's.
func (s *Store) Own(ctx context.Context, region string) (owned context.Context, release func(), err error) {
	for {
		lease, began, err := s.tryOwn(ctx, region)
		if err == nil && lease != 0 {
			owned, release = s.hold(ctx, lease, began)
			return owned, release, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-time.After(ownerPause): // an error is etcd's, which may be back then
		}
	}
}

// tryOwn takes the ownership if nobody has it, or returns 0. began is before the lease's term did.
func (s *Store) tryOwn(ctx context.Context, region string) (lease clientv3.LeaseID, began time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, ownerTerm)
	defer cancel()
	key := ownerPrefix + region
	if _, _, err := s.get(ctx, key); !errors.Is(err, ErrNotFound) {
		return 0, began, err
	}
	began = time.Now()
	granted, err := s.client.Grant(ctx, int64(ownerTerm/time.Second))
	if err != nil {
		return 0, began, fmt.Errorf("store: %w", err)
	}
	ok, _, err := s.commit(ctx, []clientv3.Cmp{absent(key)},
		[]clientv3.Op{clientv3.OpPut(key, strconv.Itoa(os.Getpid()), clientv3.WithLease(granted.ID))})
	if err != nil || !ok {
		return 0, began, err // a lease that holds nothing ends by itself
	}
	return granted.ID, began, nil
}

// disown removes what owners left that are gone: of a store that no other process can have open.
func (s *Store) disown(ctx context.Context) error {
	_, err := s.client.Delete(ctx, ownerPrefix, clientv3.WithPrefix())
	return err
}

// hold renews a lease until the returned context ends.
func (s *Store) hold(ctx context.Context, lease clientv3.LeaseID, began time.Time) (owned context.Context, release func()) {
	owned, lose := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer lose()
		until := began.Add(ownerTerm)
		for {
			select {
			case <-owned.Done():
				return
			case <-time.After(min(ownerTerm/3, time.Until(until))):
			}
			asked := time.Now()
			renewal, cancel := context.WithDeadline(owned, until)
			_, err := s.client.KeepAliveOnce(renewal, lease)
			cancel()
			switch {
			case err == nil:
				until = asked.Add(ownerTerm)
			case errors.Is(err, rpctypes.ErrLeaseNotFound), !time.Now().Before(until):
				return
			}
		}
	}()
	return owned, func() {
		lose()
		<-ended
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseMost)
		defer cancel()
		_, _ = s.client.Revoke(ctx, lease) // or it ends by itself
	}
}
