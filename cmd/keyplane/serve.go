package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/keyplane/keyplane/internal/aesgcm"
	"github.com/keyplane/keyplane/internal/node"
)

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// split is what the flags say that take several values apart by commas.
func (l list) split() (all []string) {
	for _, text := range l {
		all = append(all, strings.Split(text, ",")...)
	}
	return all
}

// server is a command that serves.
type server struct {
	command  string
	flags    flagsOf
	validate func(*node.Config) error
	start    func(context.Context, node.Config, *slog.Logger) (*node.Node, error)
	announce func(io.Writer, node.Config, *node.Node)
}

// flagsOf says which flags a command has besides those that all have.
type flagsOf uint8

const (
	clientFlags  flagsOf = 1 << iota // of the client endpoint
	clusterFlags                     // of a process of a cluster
	controlFlags                     // of a control plane of one
)

// serve is `keyplane serve`: both planes in one process until SIGTERM or SIGINT.
func serve(args []string, stdout, stderr io.Writer) int {
	return wholeServer("serve").main(args, stdout, stderr)
}

func wholeServer(command string) server {
	return server{command, clientFlags, (*node.Config).Validate, node.Start, announce}
}

// main serves until SIGTERM or SIGINT. SIGHUP has it read the configuration again, for the XKS proxy's external key stores.
func (s server) main(args []string, stdout, stderr io.Writer) int {
	command := s.command
	config := func() (node.Config, bool, error) { return s.config(args, stdout, stderr) }
	cfg, done, err := config()
	if done {
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "keyplane %s: %v\n", command, err)
		return 2
	}
	cfg.Version = versionText()
	log := node.NewLogger(cfg.LogLevel)
	if err := harden(); err != nil {
		log.Warn("the process could not be protected against core dumps", "error", err)
	}
	setProcs()
	hangups := make(chan os.Signal, 1)
	if cfg.XKSProxy.Listen != "" {
		signal.Notify(hangups, syscall.SIGHUP) // one that comes while the node starts is answered when it has started
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	n, err := s.start(ctx, cfg, log)
	if err != nil && ctx.Err() != nil {
		log.Info("stopped before it served")
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "keyplane %s: %v\n", command, err)
		return 1
	}
	s.announce(stdout, cfg, n)
	if n.XKSAddr() != "" {
		go func() {
			for range hangups {
				now, _, err := config()
				if err == nil {
					err = n.ReloadXKS(ctx, now.XKSProxy)
				}
				if err != nil {
					log.Error("the XKS proxy's configuration was read again and is not taken", "error", err)
				}
			}
		}()
	}
	context.AfterFunc(ctx, func() {
		stop() // a second signal ends the process at once
		log.Info("draining: no new connections, requests in flight are answered")
		n.Close()
	})
	err = n.Wait()
	n.Close()
	if err != nil {
		fmt.Fprintf(stderr, "keyplane %s: %v\n", command, err)
		return 1
	}
	log.Info("stopped")
	return 0
}

// procsMore is how many threads more than it has processors the service lets run Go code. The operating system stops a thread in the middle of
// a write or a call into the HSM's module, and what was queued behind it then waits for the runtime to notice, which takes longer than
// the request. With six more, somebody else is there to take it: docs/ARCHITECTURE.md §9 has the figures.
const procsMore = 6

// setProcs leaves the variable GOMAXPROCS to the operator.
func setProcs() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + procsMore)
	}
}

// config reads the flags and the file. Flags win. done says that the command is over (--help, --version).
func (s server) config(args []string, stdout, stderr io.Writer) (cfg node.Config, done bool, err error) {
	var flags node.Config
	var hsms, regions, etcd, controls list
	fs := flag.NewFlagSet("keyplane "+s.command, flag.ContinueOnError)
	fs.SetOutput(stderr)
	file := fs.String("config", "", "YAML `FILE`; flags win over it")
	if s.flags&clientFlags != 0 {
		fs.StringVar(&flags.Listen, "listen", "", "`HOST:PORT` of the client endpoint (default 127.0.0.1:4599)")
		fs.StringVar(&flags.TLSCert, "tls-cert", "", "PEM `FILE` of the certificate chain: serve HTTPS (default plain HTTP)")
		fs.StringVar(&flags.TLSKey, "tls-key", "", "PEM `FILE` of its private key, mode 0600")
		fs.StringVar(&flags.AttestationRoots, "attestation-roots", "", "PEM `FILE` of the roots of attestation documents: offer Recipient (default none)")
	}
	if s.flags&clusterFlags != 0 {
		fs.Var(&etcd, "etcd", "`URLS` of the etcd cluster's members, https://host:2379, apart by commas; may be repeated")
		fs.StringVar(&flags.Etcd.Cert, "etcd-cert", "", "PEM `FILE` of the certificate that etcd is shown (default that of --planes-cert)")
		fs.StringVar(&flags.Etcd.Key, "etcd-key", "", "PEM `FILE` of its private key, mode 0600")
		fs.StringVar(&flags.Etcd.CA, "etcd-ca", "", "PEM `FILE` of the CA of etcd's certificates, which need no role then (default that of --planes-ca, with the role etcd)")
		fs.Var(&controls, "control", "`URLS` of all control planes, https://host:port, apart by commas; may be repeated")
		fs.StringVar(&flags.Planes.Cert, "planes-cert", "", "PEM `FILE` of this process's certificate of keyplane ca: its role and node ID")
		fs.StringVar(&flags.Planes.Key, "planes-key", "", "PEM `FILE` of its private key, mode 0600")
		fs.StringVar(&flags.Planes.CA, "planes-ca", "", "PEM `FILE` of the CA of all processes of the cluster")
		fs.StringVar(&flags.NodeID, "node-id", "", "`NAME` of this process, to have its certificate checked for it")
	}
	if s.flags&controlFlags != 0 {
		fs.StringVar(&flags.Planes.Listen, "listen-planes", "", "`HOST:PORT` for data nodes and other control planes")
	}
	fs.StringVar(&flags.DataDir, "data-dir", "", "`DIR` of all state (default ./keyplane-data)")
	fs.Var(&regions, "region", "AWS `REGION`, may be repeated: what a request is signed for chooses; the first is the home Region (default AWS_REGION, else us-east-1)")
	fs.StringVar(&flags.Account, "account", "", "12-digit `ACCOUNT` (default 111122223333)")
	fs.Var(&hsms, "hsm", "PKCS#11 `URI` of a token (RFC 7512), may be repeated: pkcs11:token=LABEL;serial=S?module-path=/P&pin-source=file:/F\n(default: the soft token, whose keys are protected by this host only)")
	fs.StringVar(&flags.SoftTokenPINFile, "soft-token-pin-file", "", "`FILE` that unseals the soft token (default DATA-DIR/softtoken/pin)")
	fs.BoolVar(&flags.AllowSoftwareKeys, "allow-software-keys", false, "make and use keys in this process where the HSM does not offer their spec, sealed under its root")
	fs.BoolVar(&flags.PortableCrypto, "portable-crypto", false, "constant-time software AES-GCM even where the CPU has AES instructions")
	fs.StringVar(&flags.Audit.Dir, "audit-dir", "", "`DIR` of the audit log (default DATA-DIR/audit)")
	fs.StringVar(&flags.Audit.Durability, "audit-durability", "", "what records survive: fsync (a power cut), write (the end of the process), off (no records) (default fsync)")
	fs.BoolVar(&flags.Audit.AcceptRollback, "audit-accept-rollback", false, "start with an audit log that is older than the store knows it")
	fs.BoolVar(&flags.AcceptPlainStore, "accept-plain-store", false, "take the records of a store that was written before records were authenticated as they are, once")
	fs.BoolVar(&flags.AcceptOlderStore, "accept-older-store", false, "take a store that is older than this process has seen it, and begin a new epoch")
	fs.StringVar(&flags.Quotas, "quotas", "", "`PROFILE` of quotas: default, aws (the table of AWS exactly) or off (no rate is limited)")
	fs.StringVar(&flags.StatsSocket, "stats-socket", "", "`PATH` of a Unix socket that answers GET /stats with counters as JSON (default none)")
	fs.StringVar(&flags.LogLevel, "log-level", "", "debug, info, warn or error (default info)")
	showVersion := fs.Bool("version", false, "print the version and exit")
	if err := fs.Parse(args); err != nil {
		return cfg, errors.Is(err, flag.ErrHelp), err
	}
	if *showVersion {
		fmt.Fprintln(stdout, "keyplane", versionText())
		return cfg, true, nil
	}
	if fs.NArg() > 0 {
		return cfg, false, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if *file != "" {
		if cfg, err = node.ReadConfig(*file); err != nil {
			return cfg, false, fmt.Errorf("%s: %w", *file, err)
		}
	}
	fs.Visit(func(f *flag.Flag) { // the flags that were given, also with a zero value
		switch f.Name {
		case "listen":
			cfg.Listen = flags.Listen
		case "etcd":
			cfg.Etcd.Endpoints = etcd.split()
		case "etcd-cert":
			cfg.Etcd.Cert = flags.Etcd.Cert
		case "etcd-key":
			cfg.Etcd.Key = flags.Etcd.Key
		case "etcd-ca":
			cfg.Etcd.CA = flags.Etcd.CA
		case "control":
			cfg.Planes.Control = controls.split()
		case "planes-cert":
			cfg.Planes.Cert = flags.Planes.Cert
		case "planes-key":
			cfg.Planes.Key = flags.Planes.Key
		case "planes-ca":
			cfg.Planes.CA = flags.Planes.CA
		case "node-id":
			cfg.NodeID = flags.NodeID
		case "listen-planes":
			cfg.Planes.Listen = flags.Planes.Listen
		case "data-dir":
			cfg.DataDir = flags.DataDir
		case "region":
			cfg.Region, cfg.Regions = regions[0], nil
			if len(regions) > 1 {
				cfg.Regions = regions
			}
		case "account":
			cfg.Account = flags.Account
		case "hsm":
			cfg.HSM = hsms
		case "soft-token-pin-file":
			cfg.SoftTokenPINFile = flags.SoftTokenPINFile
		case "accept-plain-store":
			cfg.AcceptPlainStore = flags.AcceptPlainStore
		case "accept-older-store":
			cfg.AcceptOlderStore = flags.AcceptOlderStore
		case "allow-software-keys":
			cfg.AllowSoftwareKeys = flags.AllowSoftwareKeys
		case "portable-crypto":
			cfg.PortableCrypto = flags.PortableCrypto
		case "tls-cert":
			cfg.TLSCert = flags.TLSCert
		case "tls-key":
			cfg.TLSKey = flags.TLSKey
		case "attestation-roots":
			cfg.AttestationRoots = flags.AttestationRoots
		case "audit-dir":
			cfg.Audit.Dir = flags.Audit.Dir
		case "audit-durability":
			cfg.Audit.Durability = flags.Audit.Durability
		case "audit-accept-rollback":
			cfg.Audit.AcceptRollback = flags.Audit.AcceptRollback
		case "quotas":
			cfg.Quotas = flags.Quotas
		case "stats-socket":
			cfg.StatsSocket = flags.StatsSocket
		case "log-level":
			cfg.LogLevel = flags.LogLevel
		}
	})
	cfg.Defaults()
	return cfg, false, s.validate(&cfg)
}

// announce says what serves, and what to type next. It names the credentials file, never what is in it.
func announce(w io.Writer, cfg node.Config, n *node.Node) {
	url := "http://" + n.Addr()
	if cfg.TLSCert != "" {
		url = "https://" + n.Addr()
	}
	fmt.Fprintf(w, "keyplane %s serves AWS KMS for account %s in %s at %s\n", versionText(), cfg.Account, strings.Join(cfg.AllRegions(), ", "), url)
	announceXKS(w, cfg, n)
	announceKeys(w, cfg, n)
	announceNetwork(w, cfg, n)
	if _, err := os.Stat(n.CredentialsPath()); err != nil {
		fmt.Fprintf(w, "administrator's credentials: %s is not there; set %s and %s to make an access key\n", n.CredentialsPath(), node.EnvAdminID, node.EnvAdminSecret)
		return
	}
	fmt.Fprintf(w, "administrator's credentials: %s\n\nTry:\n", n.CredentialsPath())
	fmt.Fprintf(w, "  AWS_SHARED_CREDENTIALS_FILE=%s aws --endpoint-url %s --region %s kms create-key\n", n.CredentialsPath(), url, cfg.Region)
}

// announceKeys says where keys are.
func announceKeys(w io.Writer, cfg node.Config, n *node.Node) {
	for _, t := range n.Tokens() {
		if len(cfg.HSM) == 0 {
			fmt.Fprintf(w, "keys: the soft token, serial %s. This is the embedded default: keys are protected by this host only. Use --hsm for an HSM.\n", t.Serial)
			continue
		}
		fmt.Fprintf(w, "keys: token %q, serial %s, %s %s, through %s\n", t.Label, t.Serial, t.Manufacturer, t.Model, t.Module)
		if t.Software {
			fmt.Fprintln(w, "      The token says it has no hardware: its keys are protected by its host only.")
		}
	}
	if specs := n.SoftwareSpecs(); len(specs) > 0 {
		fmt.Fprintf(w, "keys of these specs, which the HSM does not offer, are made and used in this process: %s\n", strings.Join(specs, ", "))
	}
	fmt.Fprintf(w, "AES-GCM of envelope data: %s\n", aesgcm.Path())
}

func announceXKS(w io.Writer, cfg node.Config, n *node.Node) {
	if addr := n.XKSAddr(); addr != "" {
		scheme := "https://"
		if cfg.XKSProxy.TLSCert == "" {
			scheme = "http://"
		}
		fmt.Fprintf(w, "XKS proxy for AWS KMS, with external key stores: %d, at %s\n", len(cfg.XKSProxy.Prefixes), scheme+addr)
	}
}

func announceNetwork(w io.Writer, cfg node.Config, n *node.Node) {
	if host, _, err := net.SplitHostPort(n.Addr()); err == nil && cfg.TLSCert == "" && !netip.MustParseAddr(host).IsLoopback() {
		fmt.Fprintln(w, "Without --tls-cert plaintexts cross this network in the clear. Keep it one that you trust.")
	}
}
