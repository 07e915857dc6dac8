package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/keyplane/keyplane/internal/node"
)

// controlPlane is `keyplane controlplane`: a control plane of a cluster, until SIGTERM or SIGINT.
func controlPlane(args []string, stdout, stderr io.Writer) int {
	return server{"controlplane", clusterFlags | controlFlags, (*node.Config).ValidateControl, node.StartControl, announceControl}.main(args, stdout, stderr)
}

// dataPlane is `keyplane dataplane`: a data node of a cluster, until SIGTERM or SIGINT.
func dataPlane(args []string, stdout, stderr io.Writer) int {
	return server{"dataplane", clientFlags | clusterFlags, (*node.Config).ValidateData, node.StartData, announceData}.main(args, stdout, stderr)
}

func announceControl(w io.Writer, cfg node.Config, n *node.Node) {
	fmt.Fprintf(w, "keyplane %s is control plane %s of account %s in %s, at https://%s for data nodes\n", versionText(), n.ID(), cfg.Account, strings.Join(cfg.AllRegions(), ", "), n.Addr())
	announceKeys(w, cfg, n)
	if _, err := os.Stat(n.CredentialsPath()); err == nil {
		fmt.Fprintf(w, "administrator's credentials: %s\n", n.CredentialsPath())
	}
}

func announceData(w io.Writer, cfg node.Config, n *node.Node) {
	scheme := "http://"
	if cfg.TLSCert != "" {
		scheme = "https://"
	}
	fmt.Fprintf(w, "keyplane %s serves AWS KMS for account %s in %s at %s, as data node %s\n", versionText(), cfg.Account, strings.Join(cfg.AllRegions(), ", "), scheme+n.Addr(), n.ID())
	announceXKS(w, cfg, n)
	announceKeys(w, cfg, n)
	announceNetwork(w, cfg, n)
}
