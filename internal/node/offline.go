package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/hsm"
)

// Offline is a store as commands have it that are no servers, and the tokens that it is of.
type Offline struct {
	Store  *store.Store
	Tokens []hsm.Token
	Roots  []hsm.RootID // of Tokens

	sealer sealer
	close  []func() error
}

// OpenOffline opens the store of a data directory whose server is not running. There has to be one, and a token.
func OpenOffline(ctx context.Context, cfg *Config, log *slog.Logger) (*Offline, error) {
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "etcd")); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no data of keyplane serve in %s", err, cfg.DataDir)
	}
	return openAuthenticated(ctx, cfg, log, openEmbedded(cfg, log))
}

// openAuthenticated opens a store to read and change it.
func openAuthenticated(ctx context.Context, cfg *Config, log *slog.Logger, open opener) (*Offline, error) {
	o, err := openOffline(ctx, cfg, log, open)
	if err != nil {
		return nil, err
	}
	if err := o.Store.Authenticate(ctx, store.Trust{}); err != nil {
		return nil, errors.Join(err, o.Close())
	}
	return o, nil
}

// opener opens a store, whose sealer works later.
type opener func(context.Context, store.Sealer) (*store.Store, error)

func openEmbedded(cfg *Config, log *slog.Logger) opener {
	return func(ctx context.Context, s store.Sealer) (*store.Store, error) {
		return store.OpenEmbedded(ctx, store.EmbeddedConfig{Dir: cfg.DataDir, Logger: log, Sealer: s})
	}
}

// openOffline opens the tokens and a store, not authenticated.
func openOffline(ctx context.Context, cfg *Config, log *slog.Logger, open opener) (o *Offline, err error) {
	o = &Offline{}
	if err := o.openTokens(cfg, log); err != nil {
		return nil, errors.Join(err, o.Close())
	}
	if err := o.openStore(ctx, open); err != nil {
		return nil, err
	}
	return o, nil
}

// openStore closes everything again on an error.
func (o *Offline) openStore(ctx context.Context, open opener) (err error) {
	if o.Store, err = open(ctx, &o.sealer); err != nil {
		return errors.Join(err, o.Close())
	}
	o.close = append(o.close, o.Store.Close)
	return nil
}

// openTokens has the sealer work.
func (o *Offline) openTokens(cfg *Config, log *slog.Logger) (err error) {
	if len(cfg.HSM) == 0 {
		if _, err := os.Stat(filepath.Join(softTokenDir(cfg), "token.json")); err != nil {
			return fmt.Errorf("node: the data directory %s has no soft token: give the token's URI with --hsm: %w", cfg.DataDir, err)
		}
	}
	if o.Tokens, err = openTokens(cfg); err != nil {
		return err
	}
	o.close = append(o.close, func() error { return closeTokens(o.Tokens) })
	shards, err := hsm.NewShards(hsm.ShardsConfig{Tokens: o.Tokens, SessionsPerToken: 1, RoundMax: cfg.RoundMax, RoundTimeout: cfg.RoundTimeout, VerifyEvery: cfg.VerifyRounds, Logger: log})
	if err != nil {
		return err
	}
	o.close = append(o.close, func() error { shards.Close(); return nil })
	batcher, err := batch.New(batch.Config{Shards: shards.Len(), RoundMax: cfg.RoundMax, QueueMax: cfg.QueueMax, WaitMax: cfg.QueueTimeMax}, shards.Run)
	if err != nil {
		return err
	}
	o.close = append(o.close, func() error { batcher.Close(); return nil })
	o.Roots = shards.Roots()
	o.sealer.ready((&hsm.Dispatch{Shards: shards, Do: batcher.Insist, Full: batch.ErrFull, QueueTimeMax: insistTime}).Run, shards.Primary())
	return nil
}

// Close closes what was opened, the store first.
func (o *Offline) Close() error {
	var errs []error
	for i := len(o.close) - 1; i >= 0; i-- {
		errs = append(errs, o.close[i]())
	}
	o.close = nil
	return errors.Join(errs...)
}
