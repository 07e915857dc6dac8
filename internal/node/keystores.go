package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/keyplane/keyplane/controlplane"
	"github.com/keyplane/keyplane/controlplane/keystores"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/dataplane"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/cluster"
	"github.com/keyplane/keyplane/internal/fence"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pkcs11uri"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/snapshot"
	"github.com/keyplane/keyplane/internal/xks"
	"github.com/keyplane/keyplane/internal/xksclient"
	"github.com/keyplane/keyplane/ratelimit"
)

// ClusterConfig is a CloudHSM cluster: what a custom key store of type AWS_CLOUDHSM can name.
type ClusterConfig struct {
	// ID is the CloudHsmClusterId, cluster- and 11 to 16 letters or digits 2 to 7.
	ID string `yaml:"id"`
	// HSMs are RFC 7512 URIs of PKCS#11 tokens, two at least, without a PIN: that is the KeyStorePassword. Each has had `keyplane hsm init`. Every key of the
	// key store is in all of them.
	HSMs []string `yaml:"hsms"`
	// TrustAnchor is the PEM file of the certificate that a key store of the cluster has to name (TrustAnchorCertificate). It is read at the start.
	TrustAnchor string `yaml:"trust_anchor"`
	// Accounts are those whose key stores can name the cluster; for the others there is none. One that names it, whatever password it has, keeps it from the others.
	// Default all.
	Accounts []string `yaml:"accounts"`
}

// XKSConfig is how the proxies of external key stores are reached.
type XKSConfig struct {
	// TrustedRoots is the PEM file of the roots that the proxies' certificates chain to. Default none: those of this host. It is read at the start.
	TrustedRoots string `yaml:"trusted_roots"`
	// SystemRoots trusts this host's roots besides those of TrustedRoots. Default false.
	SystemRoots bool `yaml:"system_roots"`
	// Hosts are, by the host of an XksProxyUriEndpoint, the addresses host:port that are dialled instead of its port 443. Proxies at addresses of this host, and of
	// its link, are called only if they are named here. Certificates are checked for the endpoint's name all the same. Default none.
	Hosts map[string]string `yaml:"hosts"`
	// ClientCert and ClientKey are the PEM files of the certificate chain and key that are shown to proxies that ask for one (mTLS); the key's file is private.
	// Default none. They are read at the start.
	ClientCert string `yaml:"client_cert"`
	ClientKey  string `yaml:"client_key"`
}

var clusterID = regexp.MustCompile(`^cluster-[2-7a-zA-Z]{11,16}$`)

// validateClusters refuses one HSM in two places too, as far as URIs show it: a key store's HSMs are its own, and tell apart what is in them by their login. taken
// are the URIs of the server's own.
func validateClusters(clusters []ClusterConfig, taken []string, bad func(string, ...any)) {
	var tokens []*tokenName
	var of []string
	// add says where the token is already, "" if nowhere.
	add := func(text, in string) (already string) {
		token := tokenOf(text)
		if i := slices.IndexFunc(tokens, token.is); i >= 0 {
			already = of[i]
		}
		tokens, of = append(tokens, token), append(of, in)
		return already
	}
	for _, text := range taken {
		add(text, "hsm")
	}
	for i, c := range clusters {
		if !clusterID.MatchString(c.ID) {
			bad("clusters[%d].id: %q is not cluster- and 11 to 16 letters or digits 2 to 7", i, c.ID)
		}
		if slices.ContainsFunc(clusters[:i], func(other ClusterConfig) bool { return other.ID == c.ID }) {
			bad("clusters[%d].id: %s is listed twice", i, c.ID)
		}
		if len(c.HSMs) < cluster.MembersMin {
			bad("clusters[%d].hsms: %d are less than %d", i, len(c.HSMs), cluster.MembersMin)
		}
		for k, text := range c.HSMs {
			switch u, err := pkcs11uri.Parse(text); {
			case err != nil:
				bad("clusters[%d].hsms[%d]: %v", i, k, err)
			case pkcs11uri.Has(u.Query, "pin-source") || pkcs11uri.Has(u.Query, "pin-value"):
				bad("clusters[%d].hsms[%d]: a PIN is not accepted: it is the KeyStorePassword of the key store", i, k)
			default:
				if already := add(text, fmt.Sprintf("clusters[%d].hsms", i)); already != "" {
					bad("clusters[%d].hsms[%d]: is in %s already", i, k, already)
				}
			}
		}
		if c.TrustAnchor == "" {
			bad("clusters[%d].trust_anchor: is missing", i)
		}
		for k, text := range c.Accounts {
			if _, ok := keyid.ParseAccount([]byte(text)); !ok {
				bad("clusters[%d].accounts[%d]: %q is not 12 digits", i, k, text)
			}
		}
	}
}

// tokenName is how a URI names a token: the PIN and what the module is initialised with are not of the token.
type tokenName struct {
	module string
	path   []pkcs11uri.Attr
}

func tokenOf(text string) *tokenName {
	u, err := pkcs11uri.Parse(text)
	if err != nil {
		return &tokenName{module: text}
	}
	module := filepath.Clean(pkcs11uri.Get(u.Query, "module-path"))
	if real, err := filepath.EvalSymlinks(module); err == nil {
		module = real
	}
	return &tokenName{module, u.Path}
}

// is says that two names are of one token, or can be: something that tells tokens apart is the same in both, and nothing differs. What they name by different
// attributes, or in different modules, is compared when it is connected (cluster.Tokens).
func (n *tokenName) is(other *tokenName) bool {
	same := false
	for _, a := range n.path {
		switch {
		case !pkcs11uri.Has(other.path, a.Name):
		case pkcs11uri.Get(other.path, a.Name) != a.Value:
			return false
		case a.Name == "token" || a.Name == "serial" || a.Name == "slot-id":
			same = true
		}
	}
	return n.module == other.module && (same || slices.Equal(n.path, other.path))
}

func (c *XKSConfig) validate(bad func(string, ...any)) {
	if c.SystemRoots && c.TrustedRoots == "" {
		bad("xks.system_roots: is for trusted_roots; without them the system's are trusted anyway")
	}
	if (c.ClientCert == "") != (c.ClientKey == "") {
		bad("xks.client_cert, xks.client_key: one is of no use without the other")
	}
	for host, addr := range c.Hosts {
		if !xks.ValidEndpoint("https://"+host) || host != xks.Host(host) {
			bad("xks.hosts: %q is not the name of a host, in lower case, as it stands in an XksProxyUriEndpoint", host)
		}
		if h, port, err := net.SplitHostPort(addr); err != nil || h == "" || port == "" {
			bad("xks.hosts: %s: %q is not host:port", host, addr)
		}
	}
}

// openKeyStores makes n.keyStores with the custom key stores that there are, and has those connected that were, without waiting for them.
func (n *Node) openKeyStores(ctx context.Context, now func() time.Time) error {
	cfg := keystores.Config{Code: dataplane.CodeOf, Failed: n.keyStoreFailed, Now: now, Logger: n.log}
	if quota.Profile(n.cfg.Quotas) != quota.Off {
		cfg.Rate = ratelimit.Limit{Interval: time.Second / quota.CustomKeyStoreRate, Burst: quota.CustomKeyStoreRate / 10}
	}
	for _, t := range n.tokens {
		if err := n.clusterTokens.Claim("hsm", t.Info()); err != nil {
			return fmt.Errorf("node: %w", err)
		}
	}
	for i := range n.cfg.Clusters {
		c, err := n.newCluster(&n.cfg.Clusters[i])
		if err != nil {
			return err
		}
		cfg.Clusters = append(cfg.Clusters, c)
	}
	roots, err := n.cfg.XKS.roots()
	if err != nil {
		return err
	}
	certificate, err := n.cfg.XKS.certificate()
	if err != nil {
		return err
	}
	cfg.Proxy = func(k *store.KeyStore) (keystores.Proxy, error) { return n.newProxy(k, roots, certificate) }
	if n.keyStores, err = keystores.New(cfg); err != nil {
		return err
	}
	n.onClose(n.keyStores.Close)
	for _, region := range n.cfg.AllRegions() {
		list, err := n.store.KeyStores(ctx, region)
		if errors.Is(err, store.ErrDamaged) {
			n.log.Error("custom key stores whose records are damaged are left out", "region", region, "error", err)
		} else if err != nil {
			return err
		}
		for _, k := range list {
			k, err := n.store.OpenKeyStore(ctx, k.KeyStoreName)
			if errors.Is(err, store.ErrDamaged) {
				n.log.Error("a custom key store whose record is damaged is left out", "region", region, "error", err)
				continue
			}
			if err != nil {
				return err
			}
			n.keyStores.Resume([]*store.KeyStore{k})
		}
	}
	return nil
}

// keyStoreFailed says in the record of a key store that was connected that it is not, and why. Somebody may have connected it meanwhile.
func (n *Node) keyStoreFailed(name store.KeyStoreName, f *controlplane.StoreFault) {
	if n.split != nil {
		return // what keeps this process from it need not be what keeps the others
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := n.store.UpdateKeyStore(ctx, name, func(k *store.KeyStore) error {
		if k.State == store.Connected && !n.keyStores.Connected(name) {
			k.State, k.Error = store.Failed, f.Connection
		}
		return nil
	}, nil)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		n.log.Error("the state of a key store is not kept", "key_store", name.ID, "error", err)
	}
}

func (n *Node) newCluster(c *ClusterConfig) (keystores.Cluster, error) {
	fail := func(err error) (keystores.Cluster, error) {
		return keystores.Cluster{}, fmt.Errorf("node: clusters: %s: %w", c.ID, err)
	}
	anchors, err := readCertificates(c.TrustAnchor)
	if err != nil {
		return fail(fmt.Errorf("trust_anchor: %s: %w", c.TrustAnchor, err))
	}
	if len(anchors) != 1 {
		return fail(fmt.Errorf("trust_anchor: %s has %d certificates", c.TrustAnchor, len(anchors)))
	}
	cfg := cluster.Config{ID: c.ID, Ring: n.memberRing, Tokens: &n.clusterTokens, Blocks: snapshot.ResidentBlocks, CloseTimeout: n.closeTimeout(), Logger: n.log}
	names := map[string]bool{}
	for _, uri := range c.HSMs {
		cfg.Members = append(cfg.Members, cluster.Member{Name: memberName(uri, names), Open: func(pin []byte) (hsm.Token, error) {
			t, err := openPKCS11PIN(uri, pin)
			if err != nil {
				return nil, err
			}
			if importing, ok := t.(hsm.ImportToken); ok {
				t = memberToken{importing}
			}
			return t, nil
		}, Ask: func() (hsm.TokenInfo, error) { return askPKCS11(uri) }})
	}
	members, err := cluster.New(cfg)
	if err != nil {
		return fail(err)
	}
	at := keystores.Cluster{ID: c.ID, TrustAnchor: anchors[0].Raw, Cluster: members}
	for _, text := range c.Accounts {
		a, _ := keyid.ParseAccount([]byte(text)) // Validate has seen it
		at.Accounts = append(at.Accounts, a)
	}
	return at, nil
}

// closeTimeout is how long a key store's cluster is waited for when it is disconnected; what a call that hangs for longer gives is refused. A process that follows others takes
// in no change meanwhile, and must not lose its lease by it: one HSM that hangs would stop it for all keys. 0 is the default.
func (n *Node) closeTimeout() time.Duration {
	if n.split == nil {
		return 0
	}
	return fence.Term / 4
}

// memberName is the token's label, or its serial number, where no other member has it.
func memberName(uri string, taken map[string]bool) string {
	name := uri
	if u, err := pkcs11uri.Parse(uri); err == nil {
		for _, attribute := range []string{"serial", "token"} {
			if v := pkcs11uri.Get(u.Path, attribute); v != "" && !taken[v] {
				name = v
			}
		}
	}
	taken[name] = true
	return name
}

// memberToken is a token that is asked only for what a cluster needs of it: keys of AES, and those that they are wrapped for. To find out of all others whether it makes
// them takes seconds.
type memberToken struct{ hsm.ImportToken }

func (t memberToken) Keys(s keyspec.Spec) hsm.Mechanisms {
	if s != keyspec.AES256 && s != keyspec.RSA3072 {
		return 0
	}
	return t.ImportToken.Keys(s)
}

// memberRing is cluster.Config.Ring.
func (n *Node) memberRing(t hsm.Token) (*hsm.KeyRing, func(), error) {
	// An operation is one with an AES key: what takes longer than a round of AES blocks may is for the next member.
	keys, batcher, err := newRing(&n.cfg, hsm.KeyRingConfig{Tokens: []hsm.Token{t}, Timeout: n.cfg.RoundTimeout, HandlesMax: n.cfg.KeyHandlesMax, Logger: n.log})
	if err != nil {
		return nil, nil, err
	}
	return keys, func() {
		if batcher != nil {
			batcher.Close()
		}
		keys.Close()
	}, nil
}

// roots are those that proxies' certificates chain to; nil are the system's.
func (c *XKSConfig) roots() (*x509.CertPool, error) {
	if c.TrustedRoots == "" {
		return nil, nil
	}
	certificates, err := readCertificates(c.TrustedRoots)
	if err != nil {
		return nil, fmt.Errorf("node: xks.trusted_roots: %s: %w", c.TrustedRoots, err)
	}
	pool := x509.NewCertPool()
	if c.SystemRoots {
		if pool, err = x509.SystemCertPool(); err != nil {
			return nil, fmt.Errorf("node: xks.system_roots: %w", err)
		}
	}
	for _, certificate := range certificates {
		pool.AddCert(certificate)
	}
	return pool, nil
}

// certificate is the one that proxies are shown; nil for none.
func (c *XKSConfig) certificate() (*tls.Certificate, error) {
	if c.ClientCert == "" {
		return nil, nil
	}
	pair, err := keyPair(c.ClientCert, c.ClientKey)
	if err != nil {
		return nil, fmt.Errorf("node: xks.client_cert, xks.client_key: %w", err)
	}
	return &pair, nil
}

// dataKeyStores is a dataplane.KeyStores.
type dataKeyStores struct{ registry *keystores.Registry }

func (s dataKeyStores) Store(region string, a keyid.Account, id string) dataplane.KeyStore {
	if c := s.registry.Connection(store.KeyStoreName{Region: region, Account: a, ID: id}); c != nil {
		return c
	}
	return nil
}

// newProxy makes a client of an external key store's proxy.
func (n *Node) newProxy(k *store.KeyStore, roots *x509.CertPool, certificate *tls.Certificate) (keystores.Proxy, error) {
	return xksclient.New(xksclient.Config{
		Endpoint: k.Endpoint, Path: k.Path, Region: k.Region, AccessKeyID: k.AccessKeyID, Secret: k.Secret.Expose(), RootCAs: roots, Certificate: certificate, Dial: n.cfg.XKS.Hosts,
		Logger: n.log.With("key_store", k.ID),
	})
}
