package controlplane

import (
	"context"
	"errors"

	"github.com/keyplane/keyplane/controlplane/iam"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/awsquery"
	"github.com/keyplane/keyplane/internal/keyid"
)

// Simulated is the key that a reference with an account names, with all that decides about it: an iam.Keys.
func (s *Server) Simulated(ctx context.Context, ref keyid.Ref) (*iam.Key, error) {
	n := store.KeyName{Region: s.region, Account: ref.Account, ID: ref.ID}
	none := awsquery.NewError("NoSuchEntity", "The key cannot be found.")
	if ref.Kind == keyid.AliasARN {
		a, err := s.store.Alias(ctx, s.region, ref.Account, string(ref.Alias))
		if errors.Is(err, store.ErrNotFound) {
			return nil, none
		}
		if err != nil {
			return nil, err
		}
		n.ID = a.Target
	}
	k, err := s.store.Key(ctx, n)
	if errors.Is(err, store.ErrNotFound) {
		return nil, none
	}
	if err != nil {
		return nil, err
	}
	defer k.Wipe()
	return &iam.Key{ARN: s.keyARN(n), Facts: k.Facts(), Policy: s.keyPolicy(k), Grants: &keyGrants{ctx: ctx, store: s.store, key: n}}, nil
}
