package store

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/secret"
)

// KeyStoreName names a custom key store.
type KeyStoreName struct {
	Region  string
	Account keyid.Account
	ID      string // cks- and 17 lower-case hexadecimal digits
}

// KeyStore is the record of a custom key store.
type KeyStore struct {
	KeyStoreName
	CustomName string // CustomKeyStoreName, unique in account and Region
	Type       string // CloudHSM or ExternalKeyStore
	Created    time.Time
	State      string // ConnectionState
	Error      string // ConnectionErrorCode; "" unless State is FAILED

	Cluster     string // CloudHsmClusterId
	TrustAnchor string // TrustAnchorCertificate, PEM
	Roots       []byte // of the HSMs that it was connected to, rootLen bytes each: its keys are wrapped under them. nil: it never was

	Connectivity    string // XksProxyConnectivity: PublicEndpoint or VpcEndpointService
	Endpoint, Path  string // XksProxyUriEndpoint and XksProxyUriPath
	VpcService      string // XksProxyVpcEndpointServiceName
	VpcServiceOwner string // XksProxyVpcEndpointServiceOwner
	AccessKeyID     string // of XksProxyAuthenticationCredential

	// Secret is the KeyStorePassword or the RawSecretAccessKey, in a record that was opened: whoever has it opened wipes it. In etcd it is sealed, bound to the key
	// store's name and to where the secret is used.
	Secret   secret.Bytes
	Revision int64 // etcd mod revision; not part of the record
}

// Types of custom key stores.
const (
	CloudHSM         = "AWS_CLOUDHSM"
	ExternalKeyStore = "EXTERNAL_KEY_STORE"
)

// XksProxyConnectivity of external key stores.
const (
	PublicEndpoint     = "PUBLIC_ENDPOINT"
	VpcEndpointService = "VPC_ENDPOINT_SERVICE"
)

// ConnectionState of custom key stores.
const (
	Connected     = "CONNECTED"
	Connecting    = "CONNECTING"
	Failed        = "FAILED"
	Disconnected  = "DISCONNECTED"
	Disconnecting = "DISCONNECTING"
)

// What of one custom key store is another's already, or of its keys.
var (
	ErrKeyStoreLimit = errors.New("store: the account has the maximum of custom key stores")
	ErrKeyStoreName  = errors.New("store: another custom key store has the name")
	ErrClusterInUse  = errors.New("store: another custom key store has the cluster, or one with the same keys")
	ErrXksURI        = errors.New("store: another custom key store has the proxy's endpoint and path")
	ErrXksEndpoint   = errors.New("store: another custom key store has the proxy's endpoint")
	ErrXksVpcService = errors.New("store: another custom key store has the VPC endpoint service")
	ErrKeyStoreKeys  = errors.New("store: the custom key store has keys")
	ErrNoKeyStore    = errors.New("store: the key's custom key store does not exist")
	ErrUnconnected   = errors.New("store: the key's custom key store is not connected")
	ErrXksKey        = errors.New("store: another key has the external key")
)

const (
	keyStoreIDDigits = 17
	rootLen          = 8
)

// NewKeyStoreID makes the ID of a key store of random bytes.
func NewKeyStoreID(random [(keyStoreIDDigits + 1) / 2]byte) string {
	return keyStoreIDPrefix + hex.EncodeToString(random[:])[:keyStoreIDDigits]
}

const (
	keyStoreIDPrefix = "cks-"
	clusterPrefix    = root + "keystorecluster/"
)

// valid keeps IDs from reaching into other parts of the key space.
func (n KeyStoreName) valid() bool {
	digits, ok := strings.CutPrefix(n.ID, keyStoreIDPrefix)
	return ok && len(digits) == keyStoreIDDigits && strings.Trim(digits, "0123456789abcdef") == ""
}

func (n KeyStoreName) path() string      { return n.Region + "/" + n.Account.String() + "/" + n.ID }
func (n KeyStoreName) key() string       { return root + "keystore/" + n.path() }
func (n KeyStoreName) siblings() string  { return keyStoresPrefix(n.Region) + n.Account.String() + "/" }
func (n KeyStoreName) keysIndex() string { return root + "keystorekey/" + n.path() + "/" }

func keyStoresPrefix(region string) string { return root + "keystore/" + region + "/" }

// xksKey is the index entry that keeps another key of the key store from the external key. An XksKeyId has no byte that reaches elsewhere, but may be "..".
func (n KeyStoreName) xksKey(id string) string { return root + "xkskey/" + n.path() + "/" + id }

// keyStore names the key store of a key that is in one.
func (k *Key) keyStore() KeyStoreName {
	return KeyStoreName{Region: k.Region, Account: k.Account, ID: k.Store.ID}
}

// storeKeys are the entries of a key in the indexes of its key store; none of a key that is in none.
func (k *Key) storeKeys() (keys []string) {
	if k.Store == nil {
		return nil
	}
	n := k.keyStore()
	keys = append(keys, n.keysIndex()+k.ID.String())
	if k.Store.External() {
		keys = append(keys, n.xksKey(k.Store.XksKeyID))
	}
	return keys
}

type storedKeyStore struct {
	keyStoreProperties
	SealedSecret []byte `json:"sealedSecret"`
}

// keyStoreProperties are what a record says in clear. They can be compared.
type keyStoreProperties struct {
	Region          string `json:"region"`
	Account         string `json:"account"`
	ID              string `json:"id"`
	Name            string `json:"name"`
	Type            string `json:"type"`
	Created         int64  `json:"created"`
	State           string `json:"state"`
	Error           string `json:"error,omitzero"`
	Cluster         string `json:"cluster,omitzero"`
	TrustAnchor     string `json:"trustAnchor,omitzero"`
	Roots           string `json:"roots,omitzero"` // hexadecimal
	Connectivity    string `json:"connectivity,omitzero"`
	Endpoint        string `json:"endpoint,omitzero"`
	Path            string `json:"path,omitzero"`
	VpcService      string `json:"vpcService,omitzero"`
	VpcServiceOwner string `json:"vpcServiceOwner,omitzero"`
	AccessKeyID     string `json:"accessKeyId,omitzero"`
}

func (k *KeyStore) properties() keyStoreProperties {
	return keyStoreProperties{
		Region: k.Region, Account: k.Account.String(), ID: k.ID, Name: k.CustomName, Type: k.Type, Created: k.Created.UnixMilli(), State: k.State, Error: k.Error,
		Cluster: k.Cluster, TrustAnchor: k.TrustAnchor, Roots: hex.EncodeToString(k.Roots), Connectivity: k.Connectivity, Endpoint: k.Endpoint, Path: k.Path,
		VpcService: k.VpcService, VpcServiceOwner: k.VpcServiceOwner, AccessKeyID: k.AccessKeyID,
	}
}

// aad binds the sealed secret to the key store and to what it is shown to: in another record, or with another cluster or proxy in its own, it does not open.
func (st *storedKeyStore) aad() []byte {
	b := []byte("keyplane custom key store v1")
	for _, s := range []string{st.Region, st.Account, st.ID, st.Type, st.Cluster, st.Connectivity, st.Endpoint, st.Path, st.VpcService, st.VpcServiceOwner, st.AccessKeyID} {
		b = append(b, byte(len(s)>>8), byte(len(s)))
		b = append(b, s...)
	}
	return b
}

// check holds the record's own invariants, before it is written and after it is read.
func (k *KeyStore) check() error {
	ok := k.valid() && k.Region != "" && k.Account <= keyid.AccountMax && !k.Created.IsZero() && k.CustomName != "" && utf8.RuneCountInString(k.CustomName) <= 256 &&
		(k.State == Failed) == (k.Error != "") && len(k.Roots)%rootLen == 0
	switch k.State {
	case Connected, Connecting, Failed, Disconnected, Disconnecting:
	default:
		ok = false
	}
	cluster, external := k.Cluster != "" && !strings.Contains(k.Cluster, "/"), k.Endpoint != "" && k.Path != "" && k.AccessKeyID != ""
	switch k.Type {
	case CloudHSM:
		ok = ok && cluster && k.Connectivity == "" && k.Endpoint == "" && k.Path == "" && k.VpcService == "" && k.VpcServiceOwner == "" && k.AccessKeyID == ""
	case ExternalKeyStore:
		vpc := k.Connectivity == VpcEndpointService
		ok = ok && external && (vpc || k.Connectivity == PublicEndpoint) && vpc == (k.VpcService != "") && vpc == (k.VpcServiceOwner != "") && k.Cluster == "" && k.TrustAnchor == "" && k.Roots == nil
	default:
		ok = false
	}
	if !ok {
		return ErrDamaged
	}
	return nil
}

// sealKeyStore makes the value of a key store's record.
func (s *Store) sealKeyStore(k *KeyStore) (string, error) {
	if s.sealer == nil {
		return "", ErrNoSealer
	}
	if err := k.check(); err != nil {
		return "", err
	}
	if k.Secret.Len() == 0 {
		return "", fmt.Errorf("store: a custom key store without its secret: %w", ErrDamaged)
	}
	st := storedKeyStore{keyStoreProperties: k.properties()}
	var err error
	if st.SealedSecret, err = s.sealer.Seal(k.Secret.Expose(), st.aad()); err != nil {
		return "", fmt.Errorf("store: sealing the secret of a custom key store: %w", err)
	}
	value, err := encode(&st)
	return string(value), err
}

// openKeyStore is the inverse. open false leaves the secret out.
func (s *Store) openKeyStore(n KeyStoreName, value []byte, revision int64, open bool) (*KeyStore, error) {
	var st storedKeyStore
	if err := decode(value, &st); err != nil {
		return nil, fmt.Errorf("custom key store %s: %w", n.ID, err)
	}
	k := &KeyStore{
		KeyStoreName: n, CustomName: st.Name, Type: st.Type, Created: fromMilli(st.Created), State: st.State, Error: st.Error,
		Cluster: st.Cluster, TrustAnchor: st.TrustAnchor, Connectivity: st.Connectivity, Endpoint: st.Endpoint, Path: st.Path, VpcService: st.VpcService,
		VpcServiceOwner: st.VpcServiceOwner, AccessKeyID: st.AccessKeyID, Revision: revision,
	}
	var err error
	if st.Roots != "" {
		if k.Roots, err = hex.DecodeString(st.Roots); err != nil {
			return nil, fmt.Errorf("custom key store %s: %w", n.ID, ErrDamaged)
		}
	}
	if st.Region != n.Region || st.Account != n.Account.String() || st.ID != n.ID || k.check() != nil {
		return nil, fmt.Errorf("custom key store %s: %w", n.ID, ErrDamaged)
	}
	if !open {
		return k, nil
	}
	if s.sealer == nil {
		return nil, ErrNoSealer
	}
	plain, err := s.sealer.Open(st.SealedSecret, st.aad())
	if err != nil {
		return nil, fmt.Errorf("custom key store %s: %w", n.ID, unsealed(err))
	}
	k.Secret = secret.New(plain)
	return k, nil
}

// KeyStore reads the record of a custom key store, without its secret; ErrNotFound if there is none of that name.
func (s *Store) KeyStore(ctx context.Context, n KeyStoreName) (*KeyStore, error) {
	return s.readKeyStore(ctx, n, false)
}

// OpenKeyStore reads the record of a custom key store with its secret, which the caller wipes; ErrNotFound if there is none of that name.
func (s *Store) OpenKeyStore(ctx context.Context, n KeyStoreName) (*KeyStore, error) {
	return s.readKeyStore(ctx, n, true)
}

func (s *Store) readKeyStore(ctx context.Context, n KeyStoreName, open bool) (*KeyStore, error) {
	if !n.valid() {
		return nil, ErrNotFound
	}
	value, revision, err := s.get(ctx, n.key())
	if err != nil {
		return nil, err
	}
	return s.openKeyStore(n, value, revision, open)
}

// KeyStores reads the custom key stores of a Region, without their secrets, in ascending order of account and ID. Damaged ones keep nobody from the others: with a
// list, ErrDamaged tells of them, each by its name.
func (s *Store) KeyStores(ctx context.Context, region string) ([]*KeyStore, error) {
	var list []*KeyStore
	var damaged []error
	prefix := keyStoresPrefix(region)
	err := s.walk(ctx, prefix, func(key string, value []byte, revision int64) error {
		account, id, _ := strings.Cut(key[len(prefix):], "/")
		a, ok := keyid.ParseAccount([]byte(account))
		if !ok {
			damaged = append(damaged, fmt.Errorf("%s: %w", key, ErrDamaged))
			return nil
		}
		k, err := s.openKeyStore(KeyStoreName{Region: region, Account: a, ID: id}, value, revision, false)
		if err != nil {
			damaged = append(damaged, err)
			return nil
		}
		list = append(list, k)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, errors.Join(damaged...)
}

// AccountKeyStores reads the custom key stores of an account in a Region, in ascending order of their IDs, without their secrets. damaged are the IDs of those whose
// records are.
func (s *Store) AccountKeyStores(ctx context.Context, region string, a keyid.Account) (list []*KeyStore, damaged []string, err error) {
	at, err := s.keyStoresAt(ctx, KeyStoreName{Region: region, Account: a})
	if err != nil {
		return nil, nil, err
	}
	return at.list, at.damaged, nil
}

// KeyStoreCount is how many custom key stores an account has in a Region, in every state.
func (s *Store) KeyStoreCount(ctx context.Context, region string, a keyid.Account) (int, error) {
	resp, err := s.client.Get(ctx, KeyStoreName{Region: region, Account: a}.siblings(), clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return 0, fmt.Errorf("store: %w", err)
	}
	return int(resp.Count), nil
}

// keyStoresAt is what a new or changed key store has to go with, all at one revision.
type keyStoresAt struct {
	list     []*KeyStore // of the account and Region, without secrets
	damaged  []string    // IDs of those that cannot be read: what they have keeps nobody else from it, but they count
	clusters []string    // that key stores have, of all accounts and Regions
	revision int64
}

func (s *Store) keyStoresAt(ctx context.Context, n KeyStoreName) (*keyStoresAt, error) {
	resp, err := s.client.Txn(ctx).Then(
		clientv3.OpGet(n.siblings(), clientv3.WithPrefix()),
		clientv3.OpGet(clusterPrefix, clientv3.WithPrefix(), clientv3.WithKeysOnly()),
	).Commit()
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	at := &keyStoresAt{revision: resp.Header.Revision}
	for _, kv := range resp.Responses[0].GetResponseRange().Kvs {
		n.ID = string(kv.Key[len(n.siblings()):])
		switch k, err := s.openKeyStore(n, kv.Value, kv.ModRevision, false); {
		case errors.Is(err, ErrDamaged):
			at.damaged = append(at.damaged, n.ID)
		case err != nil:
			return nil, err
		default:
			at.list = append(at.list, k)
		}
	}
	for _, kv := range resp.Responses[1].GetResponseRange().Kvs {
		at.clusters = append(at.clusters, string(kv.Key[len(clusterPrefix):]))
	}
	return at, nil
}

// has says that there is a key store with the ID.
func (at *keyStoresAt) has(id string) bool {
	return slices.Contains(at.damaged, id) || slices.ContainsFunc(at.list, func(k *KeyStore) bool { return k.ID == id })
}

// full says that the account has as many key stores as it may.
func (at *keyStoresAt) full(limit int) bool { return len(at.list)+len(at.damaged) >= limit }

// fits says whether k goes with the others. was is the cluster that k's record has already, related which clusters hold the same keys as k's.
func (at *keyStoresAt) fits(k *KeyStore, was string, related func(cluster string) bool) error {
	for _, other := range at.list {
		switch {
		case other.ID == k.ID:
		case other.CustomName == k.CustomName:
			return ErrKeyStoreName
		case k.Type != ExternalKeyStore || other.Type != ExternalKeyStore:
		case other.Endpoint == k.Endpoint && other.Path == k.Path:
			return ErrXksURI
		// Stores of public connectivity can have one endpoint with several paths.
		case other.Endpoint == k.Endpoint && (k.Connectivity == VpcEndpointService || other.Connectivity == VpcEndpointService):
			return ErrXksEndpoint
		case k.VpcService != "" && other.VpcService == k.VpcService:
			return ErrXksVpcService
		}
	}
	if k.Type != CloudHSM || k.Cluster == was {
		return nil
	}
	for _, c := range at.clusters {
		if c != was && (c == k.Cluster || related(c)) {
			return ErrClusterInUse
		}
	}
	return nil
}

// still compares that nothing was added to what was read, and nothing of it changed. What was removed takes no decision back.
func (at *keyStoresAt) still(k *KeyStore) []clientv3.Cmp {
	when := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(k.siblings()), "<", at.revision+1).WithPrefix()}
	if k.Type == CloudHSM {
		when = append(when, clientv3.Compare(clientv3.ModRevision(clusterPrefix), "<", at.revision+1).WithPrefix())
	}
	return when
}

// CheckKeyStore says whether a key store could be created now: CreateKeyStore decides again.
func (s *Store) CheckKeyStore(ctx context.Context, k *KeyStore, limit int, related func(cluster string) bool) error {
	at, err := s.keyStoresAt(ctx, k.KeyStoreName)
	if err != nil {
		return err
	}
	if err := at.fits(k, "", related); err != nil {
		return err
	}
	if at.full(limit) {
		return ErrKeyStoreLimit
	}
	return nil
}

// CheckKeyStoreUpdate says whether a key store could be changed to k now: UpdateKeyStore decides again. was is the cluster that it has.
func (s *Store) CheckKeyStoreUpdate(ctx context.Context, k *KeyStore, was string, related func(cluster string) bool) error {
	at, err := s.keyStoresAt(ctx, k.KeyStoreName)
	if err != nil {
		return err
	}
	return at.fits(k, was, related)
}

// mark is the value of entries that say all they have to say by being there.
var mark = string([]byte{recordFormat})

// CreateKeyStore writes a new custom key store. limit is the most that its account may have in the Region, related says which clusters hold the same keys as
// its own. ErrKeyStoreLimit, ErrKeyStoreName, ErrClusterInUse, ErrXksURI, ErrXksEndpoint, ErrXksVpcService; ErrExists if the ID is taken.
func (s *Store) CreateKeyStore(ctx context.Context, k *KeyStore, limit int, related func(cluster string) bool) error {
	value, err := s.sealKeyStore(k)
	if err != nil {
		return err
	}
	unlock, err := s.keyStores.lock(ctx, k.siblings())
	if err != nil {
		return err
	}
	defer unlock()
	return retry(ctx, func() (bool, error) {
		at, err := s.keyStoresAt(ctx, k.KeyStoreName)
		if err != nil {
			return false, err
		}
		if at.has(k.ID) {
			return false, ErrExists
		}
		if err := at.fits(k, "", related); err != nil {
			return false, err
		}
		if at.full(limit) {
			return false, ErrKeyStoreLimit
		}
		then := []clientv3.Op{clientv3.OpPut(k.key(), value)}
		if k.Type == CloudHSM {
			then = append(then, clientv3.OpPut(clusterPrefix+k.Cluster, mark))
		}
		ok, revision, err := s.commit(ctx, append(at.still(k), absent(k.key())), then)
		k.Revision = revision
		return ok, err
	})
}

// UpdateKeyStore changes a custom key store's record. change decides on the record as it is and edits it; it may run several times, each time on a fresh copy,
// and must not touch name, type or date. Its error ends the update and comes back as it is. A change that changes nothing is not written. The secret is there for
// change alone, and one that it puts there is wiped too: the record that comes back has none. Errors as CreateKeyStore's, and ErrNotFound; related is asked of what
// change left, and may be nil if that leaves the cluster alone.
func (s *Store) UpdateKeyStore(ctx context.Context, n KeyStoreName, change func(*KeyStore) error, related func(k *KeyStore, cluster string) bool) (*KeyStore, error) {
	if !n.valid() {
		return nil, ErrNotFound
	}
	unlock, err := s.keyStores.lock(ctx, n.siblings())
	if err != nil {
		return nil, err
	}
	defer unlock()
	var result *KeyStore
	err = retry(ctx, func() (bool, error) {
		old, err := s.OpenKeyStore(ctx, n)
		if err != nil {
			return false, err
		}
		defer old.Secret.Wipe()
		k := *old
		defer k.Secret.Wipe()
		if err := change(&k); err != nil {
			return false, err
		}
		result = &k
		was, is := old.properties(), k.properties()
		if is == was && k.Secret.Equal(old.Secret.Expose()) {
			return true, nil
		}
		value, err := s.sealKeyStore(&k)
		if err != nil {
			return false, err
		}
		when, then := []clientv3.Cmp{unchanged(k.key(), old.Revision)}, []clientv3.Op{clientv3.OpPut(k.key(), value)}
		// What state it is in, with which roots, and what its secret is, is nobody else's matter.
		was.State, was.Error, was.Roots = is.State, is.Error, is.Roots
		if is != was {
			at, err := s.keyStoresAt(ctx, n)
			if err != nil {
				return false, err
			}
			if err := at.fits(&k, old.Cluster, func(cluster string) bool { return related != nil && related(&k, cluster) }); err != nil {
				return false, err
			}
			when = append(when, at.still(&k)...)
		}
		if k.Cluster != old.Cluster {
			then = append(then, clientv3.OpDelete(clusterPrefix+old.Cluster), clientv3.OpPut(clusterPrefix+k.Cluster, mark))
		}
		ok, revision, err := s.commit(ctx, when, then)
		k.Revision = revision
		return ok, err
	})
	if err != nil {
		return nil, err
	}
	return result, nil
}

// DeleteKeyStore deletes a custom key store that has no keys (ErrKeyStoreKeys). decide is asked on the record as it is, and again if that has changed; its error
// ends the deletion and comes back as it is. ErrNotFound if there is no such key store.
func (s *Store) DeleteKeyStore(ctx context.Context, n KeyStoreName, decide func(*KeyStore) error) (*KeyStore, error) {
	if !n.valid() {
		return nil, ErrNotFound
	}
	unlock, err := s.keyStores.lock(ctx, n.siblings())
	if err != nil {
		return nil, err
	}
	defer unlock()
	var k *KeyStore
	err = retry(ctx, func() (bool, error) {
		resp, err := s.client.Txn(ctx).Then(clientv3.OpGet(n.key()), clientv3.OpGet(n.keysIndex(), clientv3.WithPrefix(), clientv3.WithCountOnly())).Commit()
		if err != nil {
			return false, fmt.Errorf("store: %w", err)
		}
		kvs := resp.Responses[0].GetResponseRange().Kvs
		if len(kvs) == 0 {
			return false, ErrNotFound
		}
		if k, err = s.openKeyStore(n, kvs[0].Value, kvs[0].ModRevision, false); err != nil {
			return false, err
		}
		if err := decide(k); err != nil {
			return false, err
		}
		if resp.Responses[1].GetResponseRange().Count > 0 {
			return false, ErrKeyStoreKeys
		}
		then := []clientv3.Op{clientv3.OpDelete(n.key())}
		if k.Cluster != "" {
			then = append(then, clientv3.OpDelete(clusterPrefix+k.Cluster))
		}
		// No entry has a create revision of 0, and where there is none the comparison is with one that has.
		noKeys := clientv3.Compare(clientv3.CreateRevision(n.keysIndex()), "=", 0).WithPrefix()
		ok, _, err := s.commit(ctx, []clientv3.Cmp{unchanged(n.key(), k.Revision), noKeys}, then)
		return ok, err
	})
	if err != nil {
		return nil, err
	}
	return k, nil
}

// KeysOf lists the IDs of a custom key store's keys in ascending order of their text, those after the one given (nil: from the start), at most limit. more says
// that there are others behind them.
func (s *Store) KeysOf(ctx context.Context, n KeyStoreName, after *keyid.ID, limit int) (ids []keyid.ID, more bool, err error) {
	from := ""
	if after != nil {
		from = after.String()
	}
	prefix := n.keysIndex()
	more, err = s.list(ctx, prefix, from, limit, func(key string, _ []byte, _ int64) error {
		id, ok := keyid.ParseID([]byte(key[len(prefix):]))
		if !ok {
			return ErrDamaged
		}
		ids = append(ids, id)
		return nil
	})
	return ids, more, err
}

// intoStore is the part of the transaction that creates a key which is that of its key store: it exists, is connected, and the external key is no other key's.
func (s *Store) intoStore(ctx context.Context, k *Key) (when []clientv3.Cmp, then []clientv3.Op, err error) {
	if k.Store == nil {
		return nil, nil, nil
	}
	n := k.keyStore()
	if !n.valid() {
		return nil, nil, ErrNoKeyStore
	}
	entries := k.storeKeys()
	resp, err := s.client.Txn(ctx).Then(clientv3.OpGet(n.key()), clientv3.OpGet(entries[len(entries)-1], clientv3.WithCountOnly())).Commit()
	if err != nil {
		return nil, nil, fmt.Errorf("store: %w", err)
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return nil, nil, ErrNoKeyStore
	}
	ks, err := s.openKeyStore(n, kvs[0].Value, kvs[0].ModRevision, false)
	switch {
	case err != nil:
		return nil, nil, err
	case ks.State != Connected:
		return nil, nil, ErrUnconnected
	case k.Store.External() && resp.Responses[1].GetResponseRange().Count > 0:
		return nil, nil, ErrXksKey
	}
	when = append(when, unchanged(n.key(), ks.Revision))
	for _, entry := range entries {
		when, then = append(when, absent(entry)), append(then, clientv3.OpPut(entry, mark))
	}
	return when, then, nil
}

// XksKeyTaken says whether a key of the external key store has the external key.
func (s *Store) XksKeyTaken(ctx context.Context, n KeyStoreName, xksKeyID string) (bool, error) {
	resp, err := s.client.Get(ctx, n.xksKey(xksKeyID), clientv3.WithCountOnly())
	if err != nil {
		return false, fmt.Errorf("store: %w", err)
	}
	return resp.Count > 0, nil
}
