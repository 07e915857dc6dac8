package store

import (
	"context"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// KeyRegions are the Regions that there are keys of, in whatever state.
func (s *Store) KeyRegions(ctx context.Context) (regions []string, err error) {
	const prefix = root + "key/"
	for from, end := prefix, clientv3.GetPrefixRangeEnd(prefix); ; {
		resp, err := s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(1), clientv3.WithKeysOnly())
		if err != nil {
			return nil, err
		}
		if len(resp.Kvs) == 0 {
			return regions, nil
		}
		region, _, ok := strings.Cut(strings.TrimPrefix(string(resp.Kvs[0].Key), prefix), "/")
		if !ok {
			return nil, fmt.Errorf("%w: the key %q is of no Region", ErrDamaged, resp.Kvs[0].Key)
		}
		regions = append(regions, region)
		from = clientv3.GetPrefixRangeEnd(prefix + region + "/")
	}
}

// MultiRegionKeys calls use for every multi-Region key of a Region, primaries and replicas. An error of use ends it.
func (s *Store) MultiRegionKeys(ctx context.Context, region string, use func(KeyName) error) error {
	const prefix = root + "key/"
	from := prefix + region + "/"
	for end := clientv3.GetPrefixRangeEnd(from); ; {
		resp, err := s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(walkPage), clientv3.WithKeysOnly())
		if err != nil {
			return fmt.Errorf("store: %w", err)
		}
		for _, kv := range resp.Kvs {
			n, ok := parsePath(strings.TrimPrefix(string(kv.Key), prefix))
			if !ok {
				return fmt.Errorf("%w: the key %q is of no Region", ErrDamaged, kv.Key)
			}
			if !n.ID.MultiRegion {
				continue
			}
			if err := use(n); err != nil {
				return err
			}
		}
		if !resp.More {
			return nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}
