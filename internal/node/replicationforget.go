package node

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/keyplane/keyplane/controlplane"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// ReplicationForgetMain is keyplane replication forget: the multi-Region keys of a data directory do without a Region that is lost for good
// (controlplane.ForgetRegion). It prints a line with the ARN and the state of each key that it changed, and returns the exit status. No server may be running.
func ReplicationForgetMain(args []string, stdout, stderr io.Writer) int {
	const command = "keyplane replication forget"
	fs := flag.NewFlagSet(command, flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintf(stderr, "usage: %s [--config FILE] [--data-dir DIR] [--hsm URI]... REGION\n", command)
		fs.PrintDefaults()
	}
	file := fs.String("config", "", "YAML `FILE` of keyplane serve; flags win over it")
	dir := fs.String("data-dir", "", "`DIR` of all state (default ./keyplane-data)")
	var hsms []string
	fs.Func("hsm", "PKCS#11 `URI` of a token of the server, may be repeated (default: the file's, else the soft token)", func(uri string) error {
		hsms = append(hsms, uri)
		return nil
	})
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if fs.NArg() != 1 || !validRegion(fs.Arg(0)) {
		fmt.Fprintf(stderr, "%s: which Region is lost? One name like us-west-2\n", command)
		return 2
	}
	err := func() (err error) {
		var cfg Config
		if *file != "" {
			if cfg, err = ReadConfig(*file); err != nil {
				return fmt.Errorf("%s: %w", *file, err)
			}
		}
		if *dir != "" {
			cfg.DataDir = *dir
		}
		if hsms != nil {
			cfg.HSM = hsms
		}
		cfg.Defaults()
		return forgetRegion(context.Background(), &cfg, fs.Arg(0), stdout, stderr)
	}()
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", command, err)
		return 1
	}
	return 0
}

func forgetRegion(ctx context.Context, cfg *Config, lost string, stdout, stderr io.Writer) (err error) {
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	offline, err := OpenOffline(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, offline.Close()) }()
	st := offline.Store
	regions, err := st.KeyRegions(ctx)
	if err != nil {
		return err
	}
	for _, r := range cfg.AllRegions() {
		if !slices.Contains(regions, r) {
			regions = append(regions, r)
		}
	}
	changed := 0
	err = controlplane.ForgetRegion(ctx, st, regions, lost, time.Now().UTC().Truncate(time.Millisecond), func(n store.KeyName, state kmsapi.KeyState) {
		changed++
		fmt.Fprintf(stdout, "%s %s\n", keyid.AppendKeyARN(nil, keyid.Partition(n.Region), n.Region, n.Account, n.ID), state)
	})
	fmt.Fprintf(stderr, "%d keys had to do with Region %s and do without it now\n", changed, lost)
	return err
}
