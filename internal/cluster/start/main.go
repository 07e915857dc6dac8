// Command start runs a keyplane cluster on this machine until it is told to end (`make cluster`): three etcd members, two control planes and three data nodes. Each control
// plane has a SoftHSM token of its own and each data node two, all with the same roots: a data node that loses one goes on with the other.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/keyplane/keyplane/internal/cluster"
)

func main() {
	keyplane := flag.String("keyplane", "bin/keyplane", "the keyplane `BINARY`")
	dir := flag.String("dir", "", "`DIR` of data and logs (default a new one, removed at the end)")
	bin := flag.String("bin", "bin", "`DIR` in which the etcd server is built, or is already")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *keyplane, *dir, *bin); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, keyplane, dir, bin string) error {
	if dir == "" {
		tmp, err := os.MkdirTemp("", "keyplane-cluster")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		dir = tmp
	}
	etcd, err := cluster.BuildEtcd(bin)
	if err != nil {
		return err
	}
	c, err := cluster.Start(ctx, cluster.Config{Dir: dir, Keyplane: keyplane, Etcd: etcd, Tokens: 2})
	if err != nil {
		return err
	}
	defer c.Close()
	c.Describe(os.Stdout)
	<-ctx.Done()
	fmt.Println("ending")
	return nil
}
