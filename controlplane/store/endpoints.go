package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// Each endpoint is asked every checkPause, and has checkTimeout to answer. At first a majority has to within firstTimeout.
	checkPause   = 500 * time.Millisecond
	checkTimeout = time.Second
	firstTimeout = 10 * time.Second
)

// endpoints decides which members of a cluster the client asks: those that answered the last time with a supported version and had a leader. A member whose process hangs,
// or that is cut off from the others, would be asked again and again otherwise, as its connections are in order. If it is none of them, it is those that were asked until
// then: to ask in vain is all that can be done. A member of another version is never asked, also one that was replaced by such a one.
type endpoints struct {
	client *clientv3.Client
	less   *atomic.Uint64 // counts how often an endpoint was one too many
	log    *slog.Logger
	all    []*endpoint
	used   []string
	mu     sync.Mutex // over the states
	stop   context.CancelFunc
	ended  sync.WaitGroup
}

// endpoint is one, with a client of its own: what answers is this one.
type endpoint struct {
	url     string
	client  *clientv3.Client
	state   endpointState
	back    bool   // it serves since the last use
	version string // that is not supported
}

type endpointState int

const (
	silent endpointState = iota
	serving
	unsupported
)

func newEndpoints(ctx context.Context, cfg *ExternalConfig, s *Store) (*endpoints, error) {
	e := &endpoints{client: s.client, less: &s.less, log: cfg.Logger}
	for _, url := range cfg.Endpoints {
		c, err := clientv3.New(cfg.client(ctx, url))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("store: %w", err), e.close())
		}
		e.all = append(e.all, &endpoint{url: url, client: c})
	}
	return e, nil
}

// close ends the checks.
func (e *endpoints) close() error {
	if e.stop != nil {
		e.stop()
	}
	e.ended.Wait()
	var errs []error
	for _, o := range e.all {
		if err := o.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
			errs = append(errs, err)
		}
	}
	e.all = nil
	return errors.Join(errs...)
}

// first asks all of them, until a majority serves, and goes on to ask in the background.
func (e *endpoints) first(ctx context.Context) error {
	deadline := time.Now().Add(firstTimeout)
	for {
		errs := e.ask(ctx)
		for _, o := range e.all {
			if o.state == unsupported {
				return fmt.Errorf("store: etcd at %s is version %s; 3.5.28, 3.6.9, 3.7.0 or a later release of these is needed", o.url, o.version)
			}
		}
		if e.use(); len(e.used) > len(e.all)/2 {
			break
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("store: of %d endpoints of etcd, %d answer: %w", len(e.all), len(e.used), errors.Join(append(errs, ctx.Err())...))
		}
		pause(ctx, checkPause/5)
	}
	ctx, e.stop = context.WithCancel(context.WithoutCancel(ctx))
	e.ended.Go(func() {
		for pause(ctx, checkPause) {
			e.ask(ctx)
			if ctx.Err() == nil {
				e.use()
			}
		}
	})
	return nil
}

// pause is over when ctx is, and says whether it was not.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// ask asks all of them, and says what was wrong with those that do not serve.
func (e *endpoints) ask(ctx context.Context) []error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	errs := make([]error, len(e.all))
	var asking sync.WaitGroup
	for i, o := range e.all {
		asking.Go(func() {
			conn := o.client.ActiveConnection()
			conn.ResetConnectBackoff() // or it would be tried again after minutes
			status, err := etcdserverpb.NewMaintenanceClient(conn).Status(ctx, &etcdserverpb.StatusRequest{})
			e.mu.Lock()
			defer e.mu.Unlock()
			switch {
			case err != nil:
				if o.state != unsupported { // what it was it may be still
					o.state = silent
				}
				errs[i] = fmt.Errorf("%s: %w", o.url, err)
			case !supportedVersion(status.Version):
				if o.state != unsupported {
					e.log.Error("a member of etcd is of a version that is not supported, and is not used", "endpoint", o.url, "version", status.Version)
				}
				o.state, o.version = unsupported, status.Version
			case status.Leader == 0:
				o.state = silent
				errs[i] = fmt.Errorf("%s: it has no leader", o.url)
			default:
				o.back = o.back || o.state != serving
				o.state = serving
			}
		})
	}
	asking.Wait()
	return errs
}

// use makes the client ask those that serve.
func (e *endpoints) use() {
	var serve, may []string
	back := false
	for _, o := range e.all {
		back, o.back = back || o.back, false
		if o.state == serving {
			serve = append(serve, o.url)
		}
		if o.state != unsupported && slices.Contains(e.used, o.url) {
			may = append(may, o.url)
		}
	}
	if len(serve) == 0 {
		serve = may
	}
	if back {
		e.client.ActiveConnection().ResetConnectBackoff()
	}
	if len(serve) == 0 || slices.Equal(serve, e.used) {
		return // an empty list would be the client's to make something of
	}
	if e.used != nil {
		e.log.Warn("the members of etcd that answer are others", "were", e.used, "are", serve)
	}
	gone := slices.ContainsFunc(e.used, func(url string) bool { return !slices.Contains(serve, url) })
	e.used = serve
	e.client.SetEndpoints(serve...)
	if gone {
		e.less.Add(1)
	}
}
