package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// ExternalConfig says which etcd cluster to use.
type ExternalConfig struct {
	Endpoints []string     // https://host:2379, …
	TLS       *tls.Config  // client certificate and roots; nil only for endpoints without TLS
	Logger    *slog.Logger // gets the client's warnings and errors; nil is slog.Default
	Sealer    Sealer       // nil: no access keys
}

const (
	dialTimeout      = 5 * time.Second
	keepAliveTime    = 10 * time.Second
	keepAliveTimeout = 5 * time.Second
)

// OpenExternal opens the store in an etcd cluster, after asking every endpoint for a version with the fixes that this store depends on.
func OpenExternal(ctx context.Context, cfg ExternalConfig) (*Store, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("store: no etcd endpoints")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	client, err := clientv3.New(clientv3.Config{
		Context: context.WithoutCancel(ctx), Endpoints: cfg.Endpoints, TLS: cfg.TLS, Logger: zapToSlog(cfg.Logger),
		DialTimeout: dialTimeout, DialKeepAliveTime: keepAliveTime, DialKeepAliveTimeout: keepAliveTimeout,
		RejectOldCluster: true,
	})
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	s := newStore(client, cfg.Sealer)
	for _, endpoint := range cfg.Endpoints {
		status, err := client.Status(ctx, endpoint)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("store: etcd at %s: %w", endpoint, err), s.Close())
		}
		if !supportedVersion(status.Version) {
			err := fmt.Errorf("store: etcd at %s is version %s; 3.5.28, 3.6.9, 3.7.0 or a later release of these is needed", endpoint, status.Version)
			return nil, errors.Join(err, s.Close())
		}
	}
	if err := s.checkFormat(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
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
