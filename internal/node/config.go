package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// Config is the configuration of `keyplane serve`: the file given with --config, over which flags win. Every field has a default.
type Config struct {
	// Listen is the address of the one client endpoint, host:port. Default 127.0.0.1:4599. Without TLS, keep it on a network you trust.
	Listen string `yaml:"listen"`
	// TLSCert and TLSKey are PEM files of the endpoint's certificate chain and private key (mode 0600). Default none: plain HTTP. They are read
	// anew when they have changed; a pair that does not fit keeps the one before.
	TLSCert string `yaml:"tls_cert"`
	TLSKey  string `yaml:"tls_key"`
	// DataDir holds all state: etcd, the soft token, the administrator's credentials. Default ./keyplane-data, made with mode 0700.
	DataDir string `yaml:"data_dir"`
	// Region is the home Region: the one of the audit log's key, and of what belongs to none. A data directory keeps that of its first start. Default the first
	// of Regions, else AWS_REGION, else us-east-1.
	Region string `yaml:"region"`
	// Regions are the AWS Regions that this process is, at most 8 of one partition; Region is one of them, listed or not. Each has keys, aliases, grants and
	// quotas of its own, and the Region that a request is signed for chooses; accounts, users and roles are of all of them. More can be added at a later
	// start; one that has keys cannot be left out. Default Region alone.
	Regions []string `yaml:"regions"`
	// Account is the 12-digit account that the first start makes. Default 111122223333. It cannot change afterwards.
	Account string `yaml:"account"`
	// HSM are RFC 7512 URIs of PKCS#11 tokens. New keys are made under the first one's derivation root; tokens with the same root share its
	// load. Default none: the soft token, whose keys are protected by this host only.
	HSM []string `yaml:"hsm"`
	// SoftTokenPINFile is the file that unseals the soft token. Default <data_dir>/softtoken/pin, made at the first start; put it elsewhere
	// to keep the seal apart from what it seals. Without effect where HSM is set.
	SoftTokenPINFile string `yaml:"soft_token_pin_file"`
	// SessionsPerToken is the number of PKCS#11 sessions that work at the same time on one token, 1 to 64. Default 0: 4, or 2 where every token
	// is software of this host, whose sessions share its processors and make larger rounds when they are fewer.
	SessionsPerToken int `yaml:"sessions_per_token"`
	// KeySessionsPerToken is the number of sessions, besides those, on which private and HMAC keys work at the same time, 1 to 64. Default 0: 4,
	// or one for each processor, 2 to 8, of a token that is software of this host.
	KeySessionsPerToken int `yaml:"key_sessions_per_token"`
	// KeyHandlesMax bounds the private and HMAC keys that are loaded in one token at the same time, 1 to 1048576; the least recently used goes when
	// another is needed. Keep it below what the HSM has room for. Default 4096.
	KeyHandlesMax int `yaml:"key_handles_max"`
	// AllowSoftwareKeys lets keys of specs that no token offers be made and used in this process, sealed under the first token's derivation root: their
	// private halves are in this host's memory while they are in use. Where it is not set such specs are refused, and keys from a time
	// when it was are unavailable. Default false. The soft token offers every spec and needs no leave.
	AllowSoftwareKeys bool `yaml:"allow_software_keys"`
	// ImportInsideOnly refuses to import key material, from a client or another Region, that would be in clear in this process on its way into the HSM
	// (docs/hsm-modules.md). The soft token imports nothing then. Default false: it is unwrapped inside the HSM wherever the token can, and the log says where.
	ImportInsideOnly bool `yaml:"import_inside_only"`
	// RoundMax bounds the requests that share one call into the HSM, 1 to 1024. Default 256. 1 switches rounds off.
	RoundMax int `yaml:"round_max"`
	// QueueMax bounds the requests that wait for one session; more are throttled. Default 4 × RoundMax, at least 1024.
	QueueMax int `yaml:"queue_max"`
	// QueueTimeMax is how long a request should wait for its round. One that would wait longer, going by how long rounds take, is throttled as
	// it comes; the next round can always be filled. One that was let in waits for QueueTimeMax + RoundTimeout at most. Default
	// 50ms.
	QueueTimeMax time.Duration `yaml:"queue_time_max"`
	// RoundTimeout is how long one call into the HSM may take before its session counts as lost, and one with a private or HMAC key five times as
	// long. Default 2s.
	RoundTimeout time.Duration `yaml:"round_timeout"`
	// VerifyRounds has each n-th round of AES blocks of a session done again on another session, of another token if there is one with the same root, which has to give
	// the same: a device that says CKR_OK and gives something else is out of service before the results leave. 1 to 65536; 1 verifies every round, at twice the HSM's
	// work. The sessions for it come on top of SessionsPerToken: one, or as many again with 1. Default 256 (docs/hsm-modules.md, "A device that lies").
	VerifyRounds int `yaml:"verify_rounds"`
	// KeyCacheBytes bounds the cache of key snapshots; 100 000 keys need about 80 MB. Default 268435456.
	KeyCacheBytes int64 `yaml:"key_cache_bytes"`
	// ConnsMax and ConnsPerIPMax bound open connections, in all and of one client address. Defaults 20000 and 1000.
	ConnsMax      int `yaml:"conns_max"`
	ConnsPerIPMax int `yaml:"conns_per_ip_max"`
	// ReadTimeout is how long a client may take to send one request, header and body; slower ones are cut off. Default 5s.
	ReadTimeout time.Duration `yaml:"read_timeout"`
	// Quotas says which quotas accounts have that nobody set: default is AWS's highest rates for cryptographic operations and at least 1000 requests
	// a second for each management operation, aws is AWS's table for the Region exactly, off limits no rate. Default default.
	Quotas string `yaml:"quotas"`
	// PortableCrypto takes the constant-time software path for AES-GCM even where the CPU has AES instructions. Default false.
	PortableCrypto bool `yaml:"portable_crypto"`
	// AttestationRoots is the PEM file of the root certificates that attestation documents of enclaves and NitroTPM instances have to chain to: AWS's, which
	// docs/attestation.md says where to get, and no other that you do not trust with every key whose policy trusts an enclave. Default none: requests with
	// a Recipient are refused. It is read at the start.
	AttestationRoots string `yaml:"attestation_roots"`
	// Audit is the audit log: what every call leaves behind before its reply.
	Audit AuditConfig `yaml:"audit"`
	// Replication is how multi-Region keys come to Regions of other processes.
	Replication ReplicationConfig `yaml:"replication"`
	// XKSProxy is the proxy of external key stores of AWS KMS: keys of this server that AWS KMS encrypts with from outside (docs/xks-proxy.md).
	XKSProxy XKSProxyConfig `yaml:"xks_proxy"`
	// Clusters are the CloudHSM clusters that custom key stores can have. Default none.
	Clusters []ClusterConfig `yaml:"clusters"`
	// XKS says how the proxies of external key stores are reached.
	XKS XKSConfig `yaml:"xks"`
	// NodeID is the name of this process in its cluster. Default, and only choice, that of its certificate (planes.cert): it is for who wants to have it checked.
	NodeID string `yaml:"node_id"`
	// Etcd is the store of a cluster, which keyplane controlplane and keyplane dataplane share.
	Etcd EtcdConfig `yaml:"etcd"`
	// Planes is how the processes of a cluster reach each other.
	Planes PlanesConfig `yaml:"planes"`
	// StatsSocket is the path of a Unix socket on which GET /stats answers counters as JSON (Stats); only this user can open it. Default none.
	StatsSocket string `yaml:"stats_socket"`
	// AcceptPlainStore takes the records of a store that was written before records were authenticated as they are, once. Default false: such a store is refused.
	AcceptPlainStore bool `yaml:"accept_plain_store"`
	// AcceptOlderStore takes a store that is older than this process has seen it, and begins a new epoch with it (docs/backup.md). Default false: it is refused.
	AcceptOlderStore bool `yaml:"accept_older_store"`
	// LogLevel is debug, info, warn or error. Default info.
	LogLevel string `yaml:"log_level"`
	// Version is that of this program, as GetHealthStatus of the XKS proxy tells it. Default none.
	Version string `yaml:"-"`
	// Clock is for tests: what dates are decided by. Default nil: this machine's.
	Clock *Clock `yaml:"-"`
}

// Clock is what a node knows of the time, but for how long it waits for clients, files and the HSM.
type Clock struct {
	Now     func() time.Time     // the wall clock, which somebody may set
	Running func() time.Duration // since some moment, by a clock that nobody can set; it may begin anew with a process
	Work    time.Duration        // how often workers look for what is due; 0: as usual
}

// Defaults fills in what is not set.
func (c *Config) Defaults() {
	dflt(&c.Listen, "127.0.0.1:4599")
	dflt(&c.DataDir, "./keyplane-data")
	if len(c.Regions) > 0 {
		dflt(&c.Region, c.Regions[0])
	}
	dflt(&c.Region, os.Getenv("AWS_REGION"))
	dflt(&c.Region, "us-east-1")
	dflt(&c.Account, "111122223333")
	dflt(&c.KeyHandlesMax, 4096)
	dflt(&c.RoundMax, 256)
	dflt(&c.QueueMax, max(4*c.RoundMax, 1024))
	dflt(&c.QueueTimeMax, 50*time.Millisecond)
	dflt(&c.RoundTimeout, 2*time.Second)
	dflt(&c.VerifyRounds, 256)
	dflt(&c.KeyCacheBytes, 256<<20)
	dflt(&c.ConnsMax, 20_000)
	dflt(&c.ConnsPerIPMax, 1_000)
	dflt(&c.ReadTimeout, 5*time.Second)
	dflt(&c.Quotas, string(quota.Default))
	dflt(&c.LogLevel, "info")
	c.Audit.defaults(c.DataDir)
	if c.Clock == nil {
		c.Clock = testClock() // nil but in a build for the fault runner
	}
}

func dflt[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Validate reports everything that is wrong at once. Call it after Defaults.
func (c *Config) Validate() error { return c.validateIn(whole) }

func (c *Config) validateIn(s shape) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		bad("listen: %q is not host:port", c.Listen)
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		bad("tls_cert and tls_key: both or neither")
	}
	if a, ok := keyid.ParseAccount([]byte(c.Account)); !ok || a == 0 {
		bad("account: %q does not have 12 digits, or only zeros", c.Account)
	}
	if !validRegion(c.Region) {
		bad("region: %q is not a Region name like us-east-1", c.Region)
	}
	for i, r := range c.Regions {
		switch {
		case !validRegion(r):
			bad("regions: %q is not a Region name like us-east-1", r)
		case slices.Contains(c.Regions[:i], r):
			bad("regions: %s is listed twice", r)
		case keyid.Partition(r) != keyid.Partition(c.Region): // accounts are of one
			bad("regions: %s and %s are of different partitions", c.Region, r)
		}
	}
	if n := len(c.AllRegions()); n > sigv4.RegionsMax {
		bad("regions: %d are more than %d", n, sigv4.RegionsMax)
	}
	if c.SessionsPerToken < 0 || c.SessionsPerToken > 64 {
		bad("sessions_per_token: %d is not 0 to 64", c.SessionsPerToken)
	}
	if c.KeySessionsPerToken < 0 || c.KeySessionsPerToken > 64 {
		bad("key_sessions_per_token: %d is not 0 to 64", c.KeySessionsPerToken)
	}
	if c.KeyHandlesMax < 1 || c.KeyHandlesMax > 1<<20 {
		bad("key_handles_max: %d is not 1 to 1048576", c.KeyHandlesMax)
	}
	if c.RoundMax < 1 || c.RoundMax > 1024 {
		bad("round_max: %d is not 1 to 1024", c.RoundMax)
	}
	if c.QueueMax < 1 || c.QueueMax > 1<<20 {
		bad("queue_max: %d is not 1 to 1048576", c.QueueMax)
	}
	if c.QueueTimeMax < time.Millisecond || c.QueueTimeMax > time.Minute {
		bad("queue_time_max: %v is not 1ms to 1m", c.QueueTimeMax)
	}
	if c.VerifyRounds < 1 || c.VerifyRounds > 65536 {
		bad("verify_rounds: %d is not 1 to 65536", c.VerifyRounds)
	}
	if c.RoundTimeout < 10*time.Millisecond || c.RoundTimeout > time.Minute {
		bad("round_timeout: %v is not 10ms to 1m", c.RoundTimeout)
	}
	if c.KeyCacheBytes < 1<<20 {
		bad("key_cache_bytes: %d is less than 1048576", c.KeyCacheBytes)
	}
	if c.ConnsMax < 1 || c.ConnsPerIPMax < 1 {
		bad("conns_max and conns_per_ip_max: at least 1")
	}
	if c.ReadTimeout < 10*time.Millisecond || c.ReadTimeout > time.Minute {
		bad("read_timeout: %v is not 10ms to 1m", c.ReadTimeout)
	}
	c.Audit.validate(bad)
	c.validateCluster(s, bad)
	c.Replication.validate(c.AllRegions(), bad)
	c.XKSProxy.validate(c.AllRegions(), bad)
	validateClusters(c.Clusters, c.HSM, bad)
	c.XKS.validate(bad)
	if !quota.Profile(c.Quotas).Valid() {
		bad("quotas: %q is not default, aws or off", c.Quotas)
	}
	if _, err := logLevel(c.LogLevel); err != nil {
		bad("log_level: %q is not debug, info, warn or error", c.LogLevel)
	}
	return errors.Join(errs...)
}

// AllRegions are Region and the other Regions.
func (c *Config) AllRegions() []string {
	all := []string{c.Region}
	for _, r := range c.Regions {
		if r != c.Region {
			all = append(all, r)
		}
	}
	return all
}

func validRegion(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return len(s) > 0 && len(s) <= 32
}

// ReadConfig reads a YAML file. Unknown fields are an error.
func ReadConfig(path string) (Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Config{}, err
	}
	return ParseConfig(b)
}

// ParseConfig reads the text of a configuration file.
func ParseConfig(b []byte) (Config, error) {
	var c Config
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, err
	}
	if err := d.Decode(new(Config)); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("more than one YAML document")
	}
	return c, nil
}
