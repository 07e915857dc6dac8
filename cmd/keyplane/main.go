// Command keyplane is a key management service that speaks the AWS KMS wire protocol and keeps its keys in a PKCS#11 HSM.
//
// main.go chooses the subcommand; each has a file of its own and reads top-down.
package main

import (
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/keyplane/keyplane/internal/iamcli"
	"github.com/keyplane/keyplane/internal/node"
	"github.com/keyplane/keyplane/internal/quotacli"
	"github.com/keyplane/keyplane/loadtest"
)

// version is set by the Makefile; a plain `go build` leaves what the module knows of itself.
var version = ""

const usage = `keyplane is a key management service that speaks AWS KMS and keeps its keys in an HSM.

  keyplane serve                 serve AWS KMS; needs no configuration
  keyplane controlplane          a control plane of a cluster over etcd
  keyplane dataplane             a data node of it: serves AWS KMS
  keyplane xks-proxy             serve keys to AWS KMS as an external key store; the KMS API on this host only
  keyplane hsm init --hsm URI    make keyplane's root keys and audit key in a PKCS#11 token
  keyplane hsm probe --hsm URI   what a token can do, and what of KMS it therefore offers
  keyplane hsm clone             copy the roots of a token to others, wrapped
  keyplane ca COMMAND            certificates between the parts of a cluster: init, issue, renew, show
  keyplane iam COMMAND           accounts, users, roles, access keys and policies of a running server
  keyplane quota COMMAND         what accounts of a running server may use: show, set, reset
  keyplane audit COMMAND         verify, search and export the audit log
  keyplane replication COMMAND   public-key: what other servers' configurations need of this one's Regions; forget a lost one
  keyplane backup --out FILE     a signed backup of the store; backup verify FILE
  keyplane restore FILE          a backup into an empty store
  keyplane policy simulate       what a principal may do with a key, and which statement decides
  keyplane loadtest              drive load against any KMS endpoint and report latencies
  keyplane version               print the version

Each takes --help.
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run returns the exit status: 0 success, 1 failure, 2 usage.
func run(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return 2
	}
	switch args[0] {
	case "serve":
		return serve(args[1:], stdout, stderr)
	case "controlplane":
		return controlPlane(args[1:], stdout, stderr)
	case "dataplane":
		return dataPlane(args[1:], stdout, stderr)
	case "xks-proxy":
		return xksProxyCommand(args[1:], stdout, stderr)
	case "hsm":
		return hsmCommand(args[1:], stdout, stderr)
	case "ca":
		return caCommand(args[1:], stdout, stderr)
	case "iam":
		return iamcli.Main(args[1:], stdout, stderr)
	case "quota":
		return quotacli.Main(args[1:], stdout, stderr)
	case "audit":
		return auditCommand(args[1:], stdout, stderr)
	case "replication":
		return replicationCommand(args[1:], stdout, stderr)
	case "backup":
		return node.BackupMain(args[1:], stdout, stderr)
	case "restore":
		return node.RestoreMain(args[1:], stdout, stderr)
	case "policy":
		return policyCommand(args[1:], stdout, stderr)
	case "loadtest":
		return loadtest.Main(args[1:], stdout, stderr)
	case "version", "--version", "-version":
		fmt.Fprintln(stdout, "keyplane", versionText())
		return 0
	case "help", "--help", "-h":
		fmt.Fprint(stdout, usage)
		return 0
	}
	fmt.Fprintf(stderr, "keyplane: there is no command %q\n\n%s", args[0], usage)
	return 2
}

func versionText() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
