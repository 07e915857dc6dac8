package controlplane

import (
	"errors"
	"time"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/quota"
)

// charge takes one request out of the pool of the operation, of the account that calls, also where the key is another account's, and also of a
// dry run.
func (s *Server) charge(c *call) error {
	if s.quotas == nil {
		return nil
	}
	pool, ok := quota.PoolOf(c.op, "")
	if !ok {
		return errors.New("controlplane: an operation without a pool of requests")
	}
	// Rates are counted by the time that passes, whatever the clock says that dates are decided by.
	if !s.quotas.Charge(c.account(), pool, time.Now()) {
		return kmsapi.E(kmsapi.Throttling)
	}
	return nil
}

// quotaOf is the value of a resource quota of an account.
func (s *Server) quotaOf(a keyid.Account, name string) int {
	if s.quotas == nil {
		return int(quota.Find(name).Value(quota.Default, s.region))
	}
	return s.quotas.Max(a, name)
}
