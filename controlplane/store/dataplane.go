package store

import (
	"context"
	"errors"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// KeyRecord reads what the data plane needs of one key, linearizably: a change that was answered is in it. The caller wipes the record.
// snapshot.ErrNotFound, or snapshot.ErrDamaged for a record that fails its checks (a salt that does not give its material ID included).
func (s *Store) KeyRecord(ctx context.Context, region string, a keyid.Account, id keyid.ID) (*snapshot.Record, error) {
	k, err := s.Key(ctx, KeyName{Region: region, Account: a, ID: id})
	if err != nil {
		return nil, snapshotError(err)
	}
	defer k.Wipe()
	return k.record(), nil
}

// AliasTarget reads which key an alias ("alias/…", a valid name) points at, linearizably. Errors as KeyRecord's.
func (s *Store) AliasTarget(ctx context.Context, region string, a keyid.Account, alias string) (keyid.ID, error) {
	id, _, err := s.AliasTargetAt(ctx, region, a, alias)
	return id, err
}

// AliasTargetAt is AliasTarget with the revision at which the alias was last written.
func (s *Store) AliasTargetAt(ctx context.Context, region string, a keyid.Account, alias string) (id keyid.ID, revision int64, err error) {
	record, err := s.Alias(ctx, region, a, alias)
	if err != nil {
		return keyid.ID{}, 0, snapshotError(err)
	}
	return record.Target, record.Revision, nil
}

func snapshotError(err error) error {
	switch {
	case errors.Is(err, ErrNotFound):
		return snapshot.ErrNotFound
	case errors.Is(err, ErrDamaged):
		return errors.Join(snapshot.ErrDamaged, err)
	}
	return err
}
