package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// ExternalConfig says which etcd cluster to use.
type ExternalConfig struct {
	Endpoints []string     // https://host:2379, …
	TLS       *tls.Config  // client certificate and roots; nil only for endpoints without TLS
	Logger    *slog.Logger // gets the client's warnings and errors; nil is slog.Default
	Sealer    Sealer       // nil: no access keys, no Authenticate and no Rebury
	// Dir is where this process, and no other, has what outlives the cluster: store-seen and deleted-keys. "": nothing is kept.
	Dir string
}

const (
	dialTimeout = 5 * time.Second
	// A connection on which nothing that was sent arrives is given up after keepAliveTimeout (TCP_USER_TIMEOUT, which gRPC sets to it): there is always something sent. An idle one
	// is asked for a sign of life every keepAliveTime, for which gRPC's own minimum is 10 seconds.
	keepAliveTime    = 10 * time.Second
	keepAliveTimeout = 2 * time.Second
)

// OpenExternal opens the store in an etcd cluster. It needs an answer from a majority of the endpoints, of versions with the fixes that this store depends on; the others
// are used when they answer (endpoints). One that answers with another version fails it.
func OpenExternal(ctx context.Context, cfg ExternalConfig) (*Store, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("store: no etcd endpoints")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	// The client is made for the first endpoint, and asks none before the store has set those that may be asked.
	client, err := clientv3.New(cfg.client(ctx, cfg.Endpoints[0]))
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	s := newStore(client, cfg.Sealer)
	s.log, s.remote = cfg.Logger, true
	if cfg.Dir != "" {
		if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
			return nil, errors.Join(fmt.Errorf("store: %w", err), s.Close())
		}
		unlock, err := lockDir(cfg.Dir)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.dir, s.closers = cfg.Dir, append(s.closers, unlock)
	}
	list, err := newEndpoints(ctx, &cfg, s)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.closers = append([]func() error{list.close}, s.closers...)
	if err := list.first(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.checkFormat(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (cfg *ExternalConfig) client(ctx context.Context, endpoint string) clientv3.Config {
	return clientv3.Config{
		Context: context.WithoutCancel(ctx), Endpoints: []string{endpoint}, TLS: cfg.TLS, Logger: zapToSlog(cfg.Logger),
		DialTimeout: dialTimeout, DialKeepAliveTime: keepAliveTime, DialKeepAliveTimeout: keepAliveTimeout,
		DialOptions: []grpc.DialOption{grpc.WithChainUnaryInterceptor(readAgain)},
	}
}

// supportedVersion reports whether an etcd server version is one of 3.5.28, 3.6.9, 3.7.0 and their later patch releases, or a later minor
// version of 3. Pre-releases count as older than their release; what is not three numbers is not supported.
func supportedVersion(version string) bool {
	version, _, _ = strings.Cut(version, "+") // build metadata does not order versions
	core, pre, isPre := strings.Cut(version, "-")
	if isPre && pre == "" {
		return false
	}
	parts := strings.Split(core, ".")
	if len(parts) != 3 {
		return false
	}
	var n [3]int
	for i, p := range parts {
		v, err := strconv.ParseUint(p, 10, 16)
		if err != nil || p != strconv.FormatUint(v, 10) {
			return false
		}
		n[i] = int(v)
	}
	if n[0] != 3 || n[1] < 5 {
		return false
	}
	least := map[int]int{5: 28, 6: 9}[n[1]]
	return n[2] > least || n[2] == least && !isPre
}
