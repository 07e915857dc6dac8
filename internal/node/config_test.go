package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDefaults(t *testing.T) {
	t.Setenv("AWS_REGION", "")
	var c Config
	c.Defaults()
	want := Config{
		Listen: "127.0.0.1:4599", DataDir: "./keyplane-data", Region: "us-east-1", Account: "111122223333",
		KeyHandlesMax: 4096, RoundMax: 256, QueueMax: 1024, QueueTimeMax: 50 * time.Millisecond, RoundTimeout: 2 * time.Second, VerifyRounds: 256,
		KeyCacheBytes: 256 << 20, ConnsMax: 20_000, ConnsPerIPMax: 1_000, ReadTimeout: 5 * time.Second, Quotas: "default", LogLevel: "info",
		Audit: AuditConfig{Dir: "keyplane-data/audit", Durability: "fsync", Timeout: 250 * time.Millisecond, SegmentBytes: 256 << 20, SegmentAge: 24 * time.Hour},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
	if err := c.Validate(); err != nil {
		t.Error("the defaults are not valid:", err)
	}

	t.Setenv("AWS_REGION", "eu-west-1")
	c = Config{HSM: []string{"pkcs11:token=a"}, RoundMax: 512}
	c.Defaults()
	if c.Region != "eu-west-1" || c.SessionsPerToken != 0 || c.QueueMax != 2048 {
		t.Errorf("Region %s, %d sessions, queue of %d", c.Region, c.SessionsPerToken, c.QueueMax)
	}

	c = Config{Regions: []string{"us-west-2", "eu-west-1"}}
	c.Defaults()
	if all := c.AllRegions(); c.Region != "us-west-2" || !slices.Equal(all, []string{"us-west-2", "eu-west-1"}) {
		t.Errorf("Region %s of %v", c.Region, all)
	}
	c = Config{Region: "eu-west-1", Regions: []string{"us-west-2", "eu-west-1", "a"}}
	if all := c.AllRegions(); !slices.Equal(all, []string{"eu-west-1", "us-west-2", "a"}) {
		t.Errorf("Regions %v", all)
	}

	// Nothing that is set is changed.
	full := Config{Listen: "[::1]:1", DataDir: "d", Region: "r", Regions: []string{"s"}, Account: "000000000001", HSM: []string{"u"}, SoftTokenPINFile: "p", SessionsPerToken: 3,
		KeySessionsPerToken: 6, KeyHandlesMax: 10, AllowSoftwareKeys: true, ImportInsideOnly: true,
		RoundMax: 5, QueueMax: 7, QueueTimeMax: time.Second, RoundTimeout: 3 * time.Second, VerifyRounds: 12, KeyCacheBytes: 1 << 20, ConnsMax: 9, ConnsPerIPMax: 8,
		ReadTimeout: time.Second, Quotas: "aws", PortableCrypto: true, TLSCert: "c", TLSKey: "k", AttestationRoots: "r", StatsSocket: "s", LogLevel: "debug",
		Audit: AuditConfig{Dir: "a", Durability: "off", Timeout: time.Second, SegmentBytes: 2 << 20, SegmentAge: time.Hour, RetainBytes: 1, RetainAge: 1, AcceptRollback: true}}
	c = full
	c.Defaults()
	if !reflect.DeepEqual(c, full) {
		t.Errorf("got  %+v\nwant %+v", c, full)
	}
}

// Each bound at its limit and one beyond.
func TestValidate(t *testing.T) {
	publicKey := func(curve elliptic.Curve) string {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKIXPublicKey(&k.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(der)
	}
	good := ReplicationPeer{Region: "us-west-2", URL: "http://west.example:4600", PublicKey: publicKey(elliptic.P384())}
	peers := func(change ...func(*ReplicationPeer)) func(*Config) { // one for each change
		if len(change) == 0 {
			change = append(change, func(*ReplicationPeer) {})
		}
		return func(c *Config) {
			for _, f := range change {
				p := good
				f(&p)
				c.Replication.Peers = append(c.Replication.Peers, p)
			}
		}
	}
	clusters := func(change ...func(*ClusterConfig)) func(*Config) {
		if len(change) == 0 {
			change = append(change, func(*ClusterConfig) {})
		}
		return func(c *Config) {
			for i, f := range change {
				uri := func(token string) string {
					return fmt.Sprintf("pkcs11:token=%s%d;serial=%d?module-path=/m", token, i, i)
				}
				k := ClusterConfig{ID: "cluster-234567abcde", HSMs: []string{uri("a"), uri("b")}, TrustAnchor: "ca.pem"}
				f(&k)
				c.Clusters = append(c.Clusters, k)
			}
		}
	}
	const badURL = "replication.peers[0].url: not http:// or https://"
	for _, c := range []struct {
		set  func(*Config)
		want string // part of the message, "" for valid
	}{
		{func(c *Config) { c.Listen = ":0" }, ""},
		{func(c *Config) { c.Listen = "localhost" }, `listen: "localhost" is not host:port`},
		{func(c *Config) { c.Account = "000000000000" }, `account: "000000000000" does not have 12 digits, or only zeros`},
		{func(c *Config) { c.Account = "1234567890" }, `account: "1234567890" does not have 12 digits`},
		{func(c *Config) { c.Account = "11112222333a" }, "account:"},
		{func(c *Config) { c.Region = strings.Repeat("r", 32) }, ""},
		{func(c *Config) { c.Region = strings.Repeat("r", 33) }, "region:"},
		{func(c *Config) { c.Audit.Durability = "write" }, ""},
		{func(c *Config) { c.Audit.Durability = "never" }, `audit.durability: "never" is not fsync, write or off`},
		{func(c *Config) { c.Audit.Timeout = time.Millisecond }, "audit.timeout: 1ms is not 10ms to 1m"},
		{func(c *Config) { c.Audit.SegmentBytes = 1<<20 - 1 }, "audit.segment_bytes"},
		{func(c *Config) { c.Audit.SegmentAge = time.Second }, "audit.segment_bytes and audit.segment_age"},
		{func(c *Config) { c.Audit.RetainBytes = -1 }, "audit.retain_bytes"},
		{func(c *Config) { c.TLSCert, c.TLSKey = "c", "k" }, ""},
		{func(c *Config) { c.TLSCert = "c" }, "tls_cert and tls_key: both or neither"},
		{func(c *Config) { c.TLSKey = "k" }, "tls_cert and tls_key: both or neither"},
		{func(c *Config) { c.Region = "" }, "region:"},
		{func(c *Config) { c.Region = "US" }, `region: "US" is not a Region name like us-east-1`},
		{func(c *Config) { c.Region = "a/b" }, "region:"},
		{func(c *Config) { c.Regions = []string{"eu-west-1", c.Region, "eu-west-2"} }, ""},
		{func(c *Config) { c.Regions = []string{"eu-west-1", "eu-west-1"} }, "regions: eu-west-1 is listed twice"},
		{func(c *Config) { c.Regions = []string{"EU"} }, `regions: "EU" is not a Region name like us-east-1`},
		{func(c *Config) { c.Regions = []string{"cn-north-1"} }, "regions: us-east-1 and cn-north-1 are of different partitions"},
		{func(c *Config) { c.Region, c.Regions = "cn-north-1", []string{"cn-northwest-1"} }, ""},
		{func(c *Config) { c.Regions = strings.Fields("a b c d e f g") }, ""},
		{func(c *Config) { c.Regions = strings.Fields("a b c d e f g us-east-1") }, ""},
		{func(c *Config) { c.Regions = strings.Fields("a b c d e f g h") }, "regions: 9 are more than 8"},
		{func(c *Config) { c.Replication.Listen = "[::1]:4600" }, ""},
		{func(c *Config) { c.Replication.Listen = "localhost" }, `replication.listen: "localhost" is not host:port`},
		{func(c *Config) { c.Replication.TLSCert = "c" }, "replication.tls_cert and tls_key: both or neither"},
		{func(c *Config) { c.Replication.TLSCert, c.Replication.TLSKey = "c", "k" }, ""},
		{peers(), ""},
		{peers(func(p *ReplicationPeer) { p.Region = "US" }), `replication.peers[0].region: "US" is not a Region name like us-east-1`},
		{peers(func(p *ReplicationPeer) { p.Region = "us-east-1" }), "replication.peers[0].region: us-east-1 is a Region of this process"},
		{peers(func(p *ReplicationPeer) { p.Region = "cn-north-1" }), "replication.peers[0].region: us-east-1 and cn-north-1 are of different partitions"},
		{peers(func(*ReplicationPeer) {}, func(*ReplicationPeer) {}), "replication.peers[1].region: us-west-2 is listed twice"},
		{peers(func(*ReplicationPeer) {}, func(p *ReplicationPeer) { p.Region = "us-west-1" }), ""},
		{peers(func(p *ReplicationPeer) { p.URL = "https://west.example:4600/" }), ""},
		{peers(func(p *ReplicationPeer) { p.URL = "" }), badURL},
		{peers(func(p *ReplicationPeer) { p.URL = "west.example:4600" }), badURL},
		{peers(func(p *ReplicationPeer) { p.URL = "ftp://west.example" }), badURL},
		{peers(func(p *ReplicationPeer) { p.URL = "http://" }), badURL},
		{peers(func(p *ReplicationPeer) { p.URL = "http://west.example?x" }), badURL},
		{peers(func(p *ReplicationPeer) { p.URL = "http://me@west.example" }), badURL},
		{peers(func(p *ReplicationPeer) { p.URL = "http://a b" }), badURL},
		{peers(func(p *ReplicationPeer) { p.PublicKey = "" }), "replication.peers[0].public_key: replication: not a public key"},
		{peers(func(p *ReplicationPeer) { p.PublicKey = "!" }), "replication.peers[0].public_key: not base64"},
		{peers(func(p *ReplicationPeer) { p.PublicKey = p.PublicKey[:40] }), "replication.peers[0].public_key: replication: not a public key"},
		{peers(func(p *ReplicationPeer) { p.PublicKey = publicKey(elliptic.P256()) }), "replication.peers[0].public_key: replication: not a public key on P-384"},
		{clusters(), ""},
		{clusters(func(*ClusterConfig) {}, func(c *ClusterConfig) { c.ID = "cluster-aaaaaaaaaaa" }), ""},
		{clusters(func(*ClusterConfig) {}, func(*ClusterConfig) {}), "clusters[1].id: cluster-234567abcde is listed twice"},
		{clusters(func(c *ClusterConfig) { c.Accounts = []string{"111122223333", "123456789012"} }), ""},
		{clusters(func(c *ClusterConfig) { c.Accounts = []string{"111122223333", "12345678901"} }), `clusters[0].accounts[1]: "12345678901" is not 12 digits`},
		{clusters(func(c *ClusterConfig) { c.ID = "" }), `clusters[0].id: "" is not cluster- and 11 to 16 letters or digits 2 to 7`},
		{clusters(func(c *ClusterConfig) { c.ID = "cluster-234567abc8d" }), "clusters[0].id:"},
		{clusters(func(c *ClusterConfig) { c.ID = "cluster-aaaaaaaaaa" }), "clusters[0].id:"},
		{clusters(func(c *ClusterConfig) { c.ID = "cluster-aaaaaaaaaaaaaaaaa" }), "clusters[0].id:"},
		{clusters(func(c *ClusterConfig) { c.HSMs = c.HSMs[:1] }), "clusters[0].hsms: 1 are less than 2"},
		{clusters(func(c *ClusterConfig) { c.HSMs[1] = c.HSMs[0] }), "clusters[0].hsms[1]: is in clusters[0].hsms already"},
		{clusters(func(c *ClusterConfig) { c.HSMs[1] = "pkcs11:serial=0;token=a0?x-init-args=a&module-path=/n/../m" }), "clusters[0].hsms[1]: is in clusters[0].hsms already"},
		{clusters(func(c *ClusterConfig) { c.HSMs[1] = strings.Replace(c.HSMs[0], "/m", "/n", 1) }), ""},
		{clusters(func(*ClusterConfig) {}, func(c *ClusterConfig) {
			c.ID, c.HSMs[1] = "cluster-aaaaaaaaaaa", "pkcs11:token=b0;serial=0?module-path=/m"
		}),
			"clusters[1].hsms[1]: is in clusters[0].hsms already"},
		{clusters(func(*ClusterConfig) {}, func(c *ClusterConfig) {
			c.ID, c.HSMs[1] = "cluster-aaaaaaaaaaa", "pkcs11:token=%620?module-path=/n/../m"
		}),
			"clusters[1].hsms[1]: is in clusters[0].hsms already"},
		{clusters(func(*ClusterConfig) {}, func(c *ClusterConfig) {
			c.ID, c.HSMs[1] = "cluster-aaaaaaaaaaa", "pkcs11:token=b0;serial=1?module-path=/m"
		}), ""},
		{func(c *Config) {
			c.HSM = []string{"pkcs11:token=b0;serial=0?module-path=/m&pin-source=file:/pin"}
			clusters()(c)
		}, "clusters[0].hsms[1]: is in hsm already"},
		{clusters(func(c *ClusterConfig) { c.HSMs[0] = "token=a" }), "clusters[0].hsms[0]: pkcs11 URI: the scheme is not pkcs11"},
		{clusters(func(c *ClusterConfig) { c.HSMs[0] += "&pin-source=file:/pin" }), "clusters[0].hsms[0]: a PIN is not accepted: it is the KeyStorePassword"},
		{clusters(func(c *ClusterConfig) { c.HSMs[1] += "&pin-value=1234" }), "clusters[0].hsms[1]: a PIN is not accepted"},
		{clusters(func(c *ClusterConfig) { c.TrustAnchor = "" }), "clusters[0].trust_anchor: is missing"},
		{func(c *Config) { c.XKS = XKSConfig{TrustedRoots: "r", SystemRoots: true} }, ""},
		{func(c *Config) { c.XKS.SystemRoots = true }, "xks.system_roots: is for trusted_roots"},
		{func(c *Config) { c.XKS = XKSConfig{ClientCert: "c", ClientKey: "k"} }, ""},
		{func(c *Config) { c.XKS.ClientCert = "c" }, "xks.client_cert, xks.client_key: one is of no use without the other"},
		{func(c *Config) { c.XKS.ClientKey = "k" }, "xks.client_cert, xks.client_key: one is of no use without the other"},
		{func(c *Config) { c.XKS.Hosts = map[string]string{"xks.example.com": "127.0.0.1:4443"} }, ""},
		{func(c *Config) { c.XKS.Hosts = map[string]string{"Xks.example.com": "127.0.0.1:4443"} }, `xks.hosts: "Xks.example.com" is not the name of a host, in lower case`},
		{func(c *Config) { c.XKS.Hosts = map[string]string{"localhost": "127.0.0.1:4443"} }, `xks.hosts: "localhost" is not the name of a host`},
		{func(c *Config) { c.XKS.Hosts = map[string]string{"xks.example.com": "127.0.0.1"} }, `xks.hosts: xks.example.com: "127.0.0.1" is not host:port`},
		{func(c *Config) { c.SessionsPerToken = -1 }, "sessions_per_token: -1 is not 0 to 64"},
		{func(c *Config) { c.SessionsPerToken = 0 }, ""},
		{func(c *Config) { c.SessionsPerToken = 64 }, ""},
		{func(c *Config) { c.SessionsPerToken = 65 }, "sessions_per_token:"},
		{func(c *Config) { c.KeySessionsPerToken = -1 }, "key_sessions_per_token: -1 is not 0 to 64"},
		{func(c *Config) { c.KeySessionsPerToken = 64 }, ""},
		{func(c *Config) { c.KeySessionsPerToken = 65 }, "key_sessions_per_token:"},
		{func(c *Config) { c.KeyHandlesMax = 0 }, "key_handles_max: 0 is not 1 to 1048576"},
		{func(c *Config) { c.KeyHandlesMax = 1 << 20 }, ""},
		{func(c *Config) { c.KeyHandlesMax = 1<<20 + 1 }, "key_handles_max:"},
		{func(c *Config) { c.RoundMax = 0 }, "round_max: 0 is not 1 to 1024"},
		{func(c *Config) { c.RoundMax = 1024 }, ""},
		{func(c *Config) { c.RoundMax = 1025 }, "round_max:"},
		{func(c *Config) { c.QueueMax = 0 }, "queue_max: 0 is not 1 to 1048576"},
		{func(c *Config) { c.QueueMax = 1 << 20 }, ""},
		{func(c *Config) { c.QueueMax = 1<<20 + 1 }, "queue_max:"},
		{func(c *Config) { c.QueueTimeMax = time.Millisecond - 1 }, "queue_time_max:"},
		{func(c *Config) { c.QueueTimeMax = time.Millisecond }, ""},
		{func(c *Config) { c.QueueTimeMax = time.Minute }, ""},
		{func(c *Config) { c.QueueTimeMax = time.Minute + 1 }, "queue_time_max:"},
		{func(c *Config) { c.RoundTimeout = 10*time.Millisecond - 1 }, "round_timeout:"},
		{func(c *Config) { c.RoundTimeout = 10 * time.Millisecond }, ""},
		{func(c *Config) { c.RoundTimeout = time.Minute }, ""},
		{func(c *Config) { c.RoundTimeout = time.Minute + 1 }, "round_timeout:"},
		{func(c *Config) { c.ReadTimeout = 10*time.Millisecond - 1 }, "read_timeout:"},
		{func(c *Config) { c.ReadTimeout = 10 * time.Millisecond }, ""},
		{func(c *Config) { c.ReadTimeout = time.Minute }, ""},
		{func(c *Config) { c.ReadTimeout = time.Minute + 1 }, "read_timeout:"},
		{func(c *Config) { c.KeyCacheBytes = 1<<20 - 1 }, "key_cache_bytes: 1048575 is less than 1048576"},
		{func(c *Config) { c.KeyCacheBytes = 1 << 20 }, ""},
		{func(c *Config) { c.ConnsMax = 0 }, "conns_max and conns_per_ip_max: at least 1"},
		{func(c *Config) { c.ConnsPerIPMax = -1 }, "conns_max and conns_per_ip_max"},
		{func(c *Config) { c.ConnsMax, c.ConnsPerIPMax = 1, 1 }, ""},
		{func(c *Config) { c.Quotas = "AWS" }, `quotas: "AWS" is not default, aws or off`},
		{func(c *Config) { c.Quotas = "off" }, ""},
		{func(c *Config) { c.LogLevel = "loud" }, `log_level: "loud" is not debug, info, warn or error`},
		{func(c *Config) { c.LogLevel = "WARN" }, ""},
	} {
		var cfg Config
		cfg.Defaults()
		c.set(&cfg)
		err := cfg.Validate()
		switch {
		case c.want == "" && err != nil:
			t.Errorf("refused: %v", err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
	// All faults at once.
	err := (&Config{Region: "-", SessionsPerToken: -1, LogLevel: "x"}).Validate()
	for _, field := range []string{"listen", "account", "sessions_per_token", "round_max", "queue_max", "queue_time_max", "round_timeout", "read_timeout", "key_cache_bytes", "conns_max", "log_level"} {
		if err == nil || !strings.Contains(err.Error(), field+":") && !strings.Contains(err.Error(), field+" and") {
			t.Errorf("%v does not tell of %s", err, field)
		}
	}
}

func TestReadConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keyplane.yaml")
	text := "listen: 0.0.0.0:80\nhsm:\n  - pkcs11:token=a\n  - pkcs11:token=b\nqueue_time_max: 20ms\nportable_crypto: true\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := ReadConfig(path)
	want := Config{Listen: "0.0.0.0:80", HSM: []string{"pkcs11:token=a", "pkcs11:token=b"}, QueueTimeMax: 20 * time.Millisecond, PortableCrypto: true}
	if err != nil || !reflect.DeepEqual(c, want) {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := ReadConfig(path + ".no"); !os.IsNotExist(err) {
		t.Error("no file:", err)
	}
	for name, bad := range map[string]string{
		"unknown field": "listen: a:1\nlisten_address: b:2\n", "wrong type": "round_max: many\n", "field twice": "listen: a:1\nlisten: b:2\n",
		"two documents": "listen: a:1\n---\nlisten: b:2\n", "not YAML": "\t{", "a list": "- a\n", "field's Go name": "DataDir: x\n", "duration without unit": "round_timeout: 2\n",
	} {
		if c, err := ParseConfig([]byte(bad)); err == nil && name != "duration without unit" {
			t.Errorf("%s: accepted as %+v", name, c)
		} else if err == nil { // nanoseconds: Validate finds it
			c.Defaults()
			if c.Validate() == nil {
				t.Errorf("%s: valid", name)
			}
		}
	}
	for _, empty := range []string{"", "\n# nothing\n", "---\n", "{}"} {
		if c, err := ParseConfig([]byte(empty)); err != nil || !reflect.DeepEqual(c, Config{}) {
			t.Errorf("%q: %+v, %v", empty, c, err)
		}
	}
}

// FuzzParseConfig: no text makes the parser, Defaults or Validate panic, and what is valid has its limits.
func FuzzParseConfig(f *testing.F) {
	for _, seed := range []string{"", "listen: 127.0.0.1:1\naccount: \"111122223333\"\nhsm: [a, b]\n", "round_max: 1024\nqueue_time_max: 1m\n", "a: &a [*a]\n", "listen: !!binary AAAA\n",
		"---\n---\n", "? {a: b}\n: c\n", "key_cache_bytes: 1e9\n", "region: \"\\ud800\"\n", "<<: {listen: x}\n", "conns_max: 0x10\nlog_level: ERROR+4\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConfig(b)
		if err != nil {
			return
		}
		c.Defaults()
		if c.Validate() == nil && (c.RoundMax < 1 || c.RoundMax > 1024 || len(c.Account) != 12 || c.Region == "" || c.ReadTimeout <= 0) {
			t.Errorf("valid: %+v", c)
		}
	})
}
