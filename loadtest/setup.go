package loadtest

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Clean-up has its own time: the context of what came before may be over.
const cleanupMax = 5 * time.Minute

// setup is what one run needs before it starts, and several runs in a row can share: endpoints, keys, signed requests. Runs that share one
// do not overlap and have configurations that differ in rates and times only.
type setup struct {
	op           *operation
	dialers      []*dialer // one per endpoint
	signer       *signer
	keys         int
	targets      []*target
	distribution *distribution
	again        time.Time // when the targets have to be signed again

	site    *site
	ring    *keyring
	cleanup bool
}

// prepare connects, finds or makes the keys and signs the requests. It writes into cfg what the AWS chain decided.
// After an error nothing is left but what clean-up, where it was asked for, could not remove.
func prepare(ctx context.Context, cfg *Config) (*setup, error) {
	at, err := connectSite(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s := &setup{op: findOperation(cfg.Operation), dialers: at.dialers, site: at, ring: &keyring{api: at.api}, cleanup: cfg.Cleanup}
	s.signer = &signer{credentials: at.credentials, region: cfg.Region, operation: s.op.name, now: time.Now}
	for _, d := range s.dialers {
		s.signer.hosts = append(s.signer.hosts, d.to.host)
	}
	err = s.fill(ctx, cfg)
	s.site.close() // servers limit the connections of one address; these would count
	if err != nil {
		_, cleanErr := s.clean(ctx)
		s.close()
		return nil, errors.Join(err, cleanErr)
	}
	return s, nil
}

// fill makes the signed requests.
func (s *setup) fill(ctx context.Context, cfg *Config) error {
	var keys []key
	var err error
	if s.op.keyed {
		if keys, err = s.ring.open(ctx, cfg.KeyIDs, cfg.Keys); err != nil {
			return err
		}
	}
	if s.targets, err = s.ring.targets(ctx, s.op, keys, cfg.Payload); err != nil {
		return err
	}
	s.keys, s.distribution = len(keys), newDistribution(cfg.KeyDistribution, len(s.targets))
	s.again, err = s.signer.signAll(ctx, s.targets)
	return err
}

// clean removes the keys that set-up created, if that was asked for.
func (s *setup) clean(ctx context.Context) (removed int, err error) {
	if !s.cleanup {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupMax)
	defer cancel()
	if removed, err = s.ring.clean(ctx); err != nil {
		err = fmt.Errorf("clean-up: %w", err)
	}
	return removed, err
}

// close forgets the credentials.
func (s *setup) close() {
	s.signer.wipe()
	s.site.close()
}
