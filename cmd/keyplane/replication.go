package main

import (
	"fmt"
	"io"

	"github.com/keyplane/keyplane/internal/node"
)

const replicationUsage = `usage: keyplane replication public-key [--config FILE] [--data-dir DIR] [--region REGION ...]
       keyplane replication forget [--config FILE] [--data-dir DIR] REGION

public-key  the replication key of each Region of a server: a line "REGION KEY", which are region and public_key of a peer in the
            configuration of another server:

              replication:
                listen: HOST:PORT           # where the other server reaches this one
                peers:
                  - region: REGION          # of the other server
                    url: http://HOST:PORT   # its replication.listen
                    public_key: KEY         # printed there

            A server makes its keys when it starts with replication.listen, or with several Regions.

forget      takes a Region of another server that is lost for good out of all multi-Region keys whose primary is here, so that none waits for it.
            The server must not be running. Take the Region out of the peers in the configuration too.
`

// replicationCommand is `keyplane replication`.
func replicationCommand(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, replicationUsage)
		return 2
	}
	switch args[0] {
	case "public-key":
		return node.ReplicationPublicKeyMain(args[1:], stdout, stderr)
	case "forget":
		return node.ReplicationForgetMain(args[1:], stdout, stderr)
	case "help", "--help", "-h":
		fmt.Fprint(stdout, replicationUsage)
		return 0
	}
	fmt.Fprintf(stderr, "keyplane replication: there is no command %q\n%s", args[0], replicationUsage)
	return 2
}
