package controlplane

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/keyplane/keyplane/internal/xks"
)

// The texts of the exceptions are those of the service model's documentation, where it has one.
const (
	keyStoreNotFound  = "The request was rejected because AWS KMS cannot find a custom key store with the specified key store name or ID."
	keyStoreNameInUse = "The request was rejected because the specified custom key store name is already assigned to another custom key store in the account. Try again with a custom key store name that is unique in the account."
	keyStoreHasKeys   = "The request was rejected because the custom key store contains AWS KMS keys. After verifying that you do not need to use the KMS keys, use the ScheduleKeyDeletion operation to delete the KMS keys. After they are deleted, you can delete the custom key store."
	clusterInUse      = "The request was rejected because the specified AWS CloudHSM cluster is already associated with a CloudHSM key store, or it has the keys of a cluster that is. Each CloudHSM key store must be associated with a different AWS CloudHSM cluster."
	clusterNotFound   = "The request was rejected because AWS KMS cannot find the AWS CloudHSM cluster with the specified cluster ID. Retry the request with a different cluster ID."
	clusterNotActive  = "The request was rejected because the AWS CloudHSM cluster associated with the CloudHSM key store is not active. Initialize and activate the cluster and try the command again."
	clusterNotRelated = "The request was rejected because the specified AWS CloudHSM cluster has a different cluster certificate than the original cluster. You cannot use the operation to specify an unrelated cluster for a CloudHSM key store."
	wrongTrustAnchor  = "The request was rejected because the trust anchor certificate in the request to create a CloudHSM key store is not the trust anchor certificate for the specified AWS CloudHSM cluster."
	xksURIInUse       = "The request was rejected because the concatenation of the XksProxyUriEndpoint and XksProxyUriPath is already associated with another external key store in this AWS Region. Each external key store in a Region must use a unique external key store proxy API address."
	xksEndpointInUse  = "The request was rejected because the XksProxyUriEndpoint is already associated with another external key store in this AWS Region. External key stores with VPC_ENDPOINT_SERVICE connectivity share their endpoint with no other."
	xksVpcInUse       = "The request was rejected because the specified Amazon VPC endpoint service is already associated with another external key store in this AWS Region. Each external key store in a Region must use a different Amazon VPC endpoint service."
)

type keyStoreIn struct{ CustomKeyStoreId *string }

func (in *keyStoreIn) check(v *kmsapi.Violations) { checkKeyStoreID(v, in.CustomKeyStoreId) }

// checkKeyStoreID is for a required member.
func checkKeyStoreID(v *kmsapi.Violations, s *string) {
	if s == nil {
		v.Null("customKeyStoreId")
	}
	checkLength(v, "customKeyStoreId", s, 1, kmsapi.CustomKeyStoreIDMax)
}

// noMembers is the output of operations that reply with an empty object.
type noMembers struct{}

// proxyIn are the members that say where the proxy of an external key store is and who may call it.
type proxyIn struct {
	XksProxyConnectivity             *string
	XksProxyUriEndpoint              *string
	XksProxyUriPath                  *string
	XksProxyVpcEndpointServiceName   *string
	XksProxyVpcEndpointServiceOwner  *string
	XksProxyAuthenticationCredential *credentialIn
}

type credentialIn struct {
	AccessKeyId        *string
	RawSecretAccessKey *string
}

// any says that one of them is there.
func (in *proxyIn) any() bool {
	return in.XksProxyConnectivity != nil || in.XksProxyUriEndpoint != nil || in.XksProxyUriPath != nil || in.XksProxyVpcEndpointServiceName != nil ||
		in.XksProxyVpcEndpointServiceOwner != nil || in.XksProxyAuthenticationCredential != nil
}

func (in *proxyIn) check(v *kmsapi.Violations) {
	checkEnum(v, "xksProxyConnectivity", in.XksProxyConnectivity, connectivities)
	checkLength(v, "xksProxyUriEndpoint", in.XksProxyUriEndpoint, 10, xks.EndpointMax)
	if s := in.XksProxyUriEndpoint; s != nil && !isEndpoint(*s) {
		v.Pattern("xksProxyUriEndpoint", []byte(*s), "^https://[a-zA-Z0-9.-]+$")
	}
	checkLength(v, "xksProxyUriPath", in.XksProxyUriPath, 10, xks.PathMax)
	if s := in.XksProxyUriPath; s != nil && !isProxyPath(*s) {
		v.Pattern("xksProxyUriPath", []byte(*s), `^(/[a-zA-Z0-9\/_-]+/kms/xks/v\d{1,2})$|^(/kms/xks/v\d{1,2})$`)
	}
	checkLength(v, "xksProxyVpcEndpointServiceName", in.XksProxyVpcEndpointServiceName, 20, 64)
	if s := in.XksProxyVpcEndpointServiceName; s != nil && !isVpcService(*s) {
		v.Pattern("xksProxyVpcEndpointServiceName", []byte(*s), `^(com|eu)\.amazonaws\.vpce\.([a-z]+-){2,3}\d+\.vpce-svc-[0-9a-z]+$`)
	}
	checkLength(v, "xksProxyVpcEndpointServiceOwner", in.XksProxyVpcEndpointServiceOwner, 12, 12)
	checkPattern(v, "xksProxyVpcEndpointServiceOwner", in.XksProxyVpcEndpointServiceOwner, "[0-9]{12}", func(r rune) bool { return r >= '0' && r <= '9' })
	if c := in.XksProxyAuthenticationCredential; c != nil {
		const path = "xksProxyAuthenticationCredential."
		checkSecret(v, path+"accessKeyId", c.AccessKeyId, xks.AccessKeyMin, xks.AccessKeyMax, "^[A-Z2-7]+$",
			func(r rune) bool { return r >= 'A' && r <= 'Z' || r >= '2' && r <= '7' })
		checkSecret(v, path+"rawSecretAccessKey", c.RawSecretAccessKey, xks.SecretMin, xks.SecretMax, `^[a-zA-Z0-9\/+=]+$`,
			func(r rune) bool { return isWord(r) && r != '_' || strings.ContainsRune("/+=", r) })
		if c.AccessKeyId == nil {
			v.Null(path + "accessKeyId")
		}
		if c.RawSecretAccessKey == nil {
			v.Null(path + "rawSecretAccessKey")
		}
	}
}

// apply edits what the members say. The names of those that are there and are not for such a key store are the error.
func (in *proxyIn) apply(k *store.KeyStore, account string) error {
	set := func(to *string, s *string) {
		if s != nil {
			*to = *s
		}
	}
	was := k.Connectivity
	set(&k.Connectivity, in.XksProxyConnectivity)
	set(&k.Endpoint, in.XksProxyUriEndpoint)
	set(&k.Path, in.XksProxyUriPath)
	if c := in.XksProxyAuthenticationCredential; c != nil {
		k.AccessKeyID, k.Secret = *c.AccessKeyId, secret.New([]byte(*c.RawSecretAccessKey))
	}
	if was != "" && was != k.Connectivity && in.XksProxyUriEndpoint == nil {
		return required("XksProxyUriEndpoint", "a change of XksProxyConnectivity")
	}
	if k.Connectivity == store.PublicEndpoint {
		if deref(in.XksProxyVpcEndpointServiceName) != "" || in.XksProxyVpcEndpointServiceOwner != nil {
			return kmsapi.New(kmsapi.Validation, "XksProxyVpcEndpointServiceName and XksProxyVpcEndpointServiceOwner are not valid with XksProxyConnectivity PUBLIC_ENDPOINT.")
		}
		k.VpcService, k.VpcServiceOwner = "", ""
	} else {
		set(&k.VpcService, in.XksProxyVpcEndpointServiceName)
		set(&k.VpcServiceOwner, in.XksProxyVpcEndpointServiceOwner)
		if k.VpcService == "" {
			return required("XksProxyVpcEndpointServiceName", "XksProxyConnectivity VPC_ENDPOINT_SERVICE")
		}
		if k.VpcServiceOwner == "" {
			k.VpcServiceOwner = account
		}
	}
	switch {
	case !xks.ValidEndpoint(k.Endpoint):
		return kmsapi.New(kmsapi.Validation, "XksProxyUriEndpoint must be https:// and the fully qualified name of a host.")
	case !xks.ValidPath(k.Path):
		return kmsapi.New(kmsapi.Validation, "XksProxyUriPath must end with "+xks.BasePath+".")
	}
	return nil
}

func required(member, of string) error {
	return kmsapi.New(kmsapi.Validation, member+" is required for "+of+".")
}

func unsuited(members, kind string) error {
	return kmsapi.New(kmsapi.Validation, members+" members are not valid for a custom key store of type "+kind+".")
}

type createCustomKeyStoreIn struct {
	CustomKeyStoreName     *string
	CloudHsmClusterId      *string
	TrustAnchorCertificate *string
	KeyStorePassword       *string
	CustomKeyStoreType     *string
	proxyIn
}

func (in *createCustomKeyStoreIn) check(v *kmsapi.Violations) {
	if in.CustomKeyStoreName == nil {
		v.Null("customKeyStoreName")
	}
	checkLength(v, "customKeyStoreName", in.CustomKeyStoreName, 1, 256)
	checkClusterID(v, in.CloudHsmClusterId)
	checkLength(v, "trustAnchorCertificate", in.TrustAnchorCertificate, 1, 5000)
	checkPassword(v, in.KeyStorePassword)
	checkEnum(v, "customKeyStoreType", in.CustomKeyStoreType, keyStoreTypes)
	in.proxyIn.check(v)
}

// record is the key store that is asked for, without what the members do not say. After an error it has no secret.
func (in *createCustomKeyStoreIn) record(account keyid.Account, now time.Time) (*store.KeyStore, error) {
	k := &store.KeyStore{CustomName: *in.CustomKeyStoreName, Type: store.CloudHSM, Created: now, State: store.Disconnected}
	if in.CustomKeyStoreType != nil {
		k.Type = *in.CustomKeyStoreType
	}
	of := "custom key stores of type " + k.Type
	if k.Type == store.CloudHSM {
		switch {
		case in.proxyIn.any():
			return nil, unsuited("XksProxy", k.Type)
		case in.CloudHsmClusterId == nil:
			return nil, required("CloudHsmClusterId", of)
		case in.KeyStorePassword == nil:
			return nil, required("KeyStorePassword", of)
		case in.TrustAnchorCertificate == nil:
			return nil, required("TrustAnchorCertificate", of)
		}
		k.Cluster, k.TrustAnchor, k.Secret = *in.CloudHsmClusterId, *in.TrustAnchorCertificate, secret.New([]byte(*in.KeyStorePassword))
		return k, nil
	}
	switch {
	case in.CloudHsmClusterId != nil || in.KeyStorePassword != nil || in.TrustAnchorCertificate != nil:
		return nil, unsuited("CloudHsmClusterId, TrustAnchorCertificate and KeyStorePassword", k.Type)
	case in.XksProxyConnectivity == nil:
		return nil, required("XksProxyConnectivity", of)
	case in.XksProxyUriEndpoint == nil:
		return nil, required("XksProxyUriEndpoint", of)
	case in.XksProxyUriPath == nil:
		return nil, required("XksProxyUriPath", of)
	case in.XksProxyAuthenticationCredential == nil:
		return nil, required("XksProxyAuthenticationCredential", of)
	}
	if err := in.proxyIn.apply(k, account.String()); err != nil {
		k.Secret.Wipe()
		return k, err
	}
	return k, nil
}

type createCustomKeyStoreOut struct{ CustomKeyStoreId string }

// CreateCustomKeyStore: a record of a key store that is not connected yet. Nothing is made in the cluster, or asked of the proxy but how it is.
func (s *Server) createCustomKeyStore(ctx context.Context, c *call, in *createCustomKeyStoreIn) (createCustomKeyStoreOut, error) {
	if err := c.permitAccount(c.action, "*"); err != nil {
		return createCustomKeyStoreOut{}, err
	}
	k, err := in.record(c.account(), c.now)
	if err != nil {
		return createCustomKeyStoreOut{}, err
	}
	defer k.Secret.Wipe()
	if s.keyStores == nil {
		return createCustomKeyStoreOut{}, notOffered("CustomKeyStoreType " + k.Type)
	}
	k.Region, k.Account = s.region, c.account()
	var random [9]byte
	if err := s.random(random[:]); err != nil {
		return createCustomKeyStoreOut{}, fmt.Errorf("controlplane: random bytes for a custom key store: %w", err)
	}
	k.ID = store.NewKeyStoreID(random)
	if k.Type == store.CloudHSM {
		if err := s.trusted(k); err != nil {
			return createCustomKeyStoreOut{}, err
		}
	}
	limit := s.quotaOf(k.Account, quota.CustomKeyStoresPerAccount)
	related := func(cluster string) bool { return s.sameKeys(k.Cluster, cluster) }
	if err := s.store.CheckKeyStore(ctx, k, limit, related); err != nil {
		return createCustomKeyStoreOut{}, keyStoreError(err)
	}
	// The proxy of a store that is reached through a VPC is asked when it is connected.
	if k.Connectivity != store.VpcEndpointService {
		if err := s.try(ctx, c, k); err != nil {
			return createCustomKeyStoreOut{}, err
		}
	}
	err = s.store.CreateKeyStore(ctx, k, limit, related)
	s.publishKeyStore(k.KeyStoreName, err)
	if err != nil {
		return createCustomKeyStoreOut{}, keyStoreError(err)
	}
	return createCustomKeyStoreOut{k.ID}, nil
}

// trusted refuses a cluster that there is none of, or whose trust anchor is not the one given.
func (s *Server) trusted(k *store.KeyStore) error {
	cluster, err := s.cluster(k)
	if err != nil {
		return err
	}
	block, rest := pem.Decode([]byte(k.TrustAnchor))
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 || !bytes.Equal(block.Bytes, cluster.TrustAnchor) {
		return kmsapi.New(kmsapi.IncorrectTrustAnchor, wrongTrustAnchor)
	}
	return nil
}

// cluster is the cluster of a key store, refused if there is none for its account.
func (s *Server) cluster(k *store.KeyStore) (*Cluster, error) {
	c := s.keyStores.Cluster(k.Cluster)
	if c == nil || len(c.Accounts) > 0 && !slices.Contains(c.Accounts, k.Account) {
		return nil, kmsapi.New(kmsapi.CloudHsmClusterNotFound, clusterNotFound)
	}
	return c, nil
}

// sameKeys says that two clusters are known to hold the same keys.
func (s *Server) sameKeys(a, b string) bool {
	x, y := s.keyStores.Cluster(a), s.keyStores.Cluster(b)
	return x != nil && y != nil && SharesRoot(x.Roots, y.Roots)
}

// roots are those of a CloudHSM key store's record and those that its cluster is known to have, each once.
func (s *Server) roots(k *store.KeyStore) []byte {
	all := slices.Clone(k.Roots)
	if c := s.keyStores.Cluster(k.Cluster); c != nil {
		for root := range slices.Chunk(c.Roots, rootLen) {
			if !SharesRoot(all, root) {
				all = append(all, root...)
			}
		}
	}
	return all
}

// try asks whether a key store with these properties could be connected.
func (s *Server) try(ctx context.Context, c *call, k *store.KeyStore) error {
	return faultError(s.keyStores.Try(ctx, k, c.op.Name, c.request.RequestID))
}

// faultError words why a key store does not come up, for operations that model it.
func faultError(err error) error {
	if f, ok := errors.AsType[*StoreFault](err); ok && f.Code != kmsapi.OK {
		return kmsapi.New(f.Code, f.Text)
	}
	return err
}

// keyStoreError words an error of the store about a custom key store.
func keyStoreError(err error) error {
	for _, e := range []struct {
		is   error
		code kmsapi.Code
		text string
	}{
		{store.ErrNotFound, kmsapi.CustomKeyStoreNotFound, keyStoreNotFound}, {store.ErrNoKeyStore, kmsapi.CustomKeyStoreNotFound, keyStoreNotFound},
		{store.ErrKeyStoreName, kmsapi.CustomKeyStoreNameInUse, keyStoreNameInUse}, {store.ErrKeyStoreKeys, kmsapi.CustomKeyStoreHasCMKs, keyStoreHasKeys},
		{store.ErrClusterInUse, kmsapi.CloudHsmClusterInUse, clusterInUse}, {store.ErrXksURI, kmsapi.XksProxyUriInUse, xksURIInUse},
		{store.ErrXksEndpoint, kmsapi.XksProxyUriEndpointInUse, xksEndpointInUse}, {store.ErrXksVpcService, kmsapi.XksProxyVpcEndpointServiceInUse, xksVpcInUse},
		{store.ErrKeyStoreLimit, kmsapi.LimitExceeded, "The account has reached the limit of custom key stores in this Region."},
		{store.ErrUnconnected, kmsapi.CustomKeyStoreInvalidState, notConnected}, {store.ErrXksKey, kmsapi.XksKeyAlreadyInUse, xksKeyInUse},
	} {
		if errors.Is(err, e.is) {
			return kmsapi.New(e.code, e.text)
		}
	}
	return err
}

// invalidState is the refusal of an operation that is not for key stores in their connection state.
func invalidState(k *store.KeyStore) error {
	return kmsapi.New(kmsapi.CustomKeyStoreInvalidState, "The request was rejected because of the ConnectionState of the custom key store, which is "+k.State+".")
}

// keyStoreName names a key store of the caller's account.
func (s *Server) keyStoreName(c *call, id string) store.KeyStoreName {
	return store.KeyStoreName{Region: s.region, Account: c.account(), ID: id}
}

// noteKeyStore is what the record of an operation on a key store says of it.
func (c *call) noteKeyStore(k *store.KeyStore) {
	c.details = cloudtrail.AppendMember([]byte{'{'}, "customKeyStoreName", []byte(k.CustomName))
	if k.Cluster != "" {
		c.details = cloudtrail.AppendMember(c.details, "clusterId", []byte(k.Cluster))
	}
}

type describeCustomKeyStoresIn struct {
	CustomKeyStoreId   *string
	CustomKeyStoreName *string
	Limit              *int32
	Marker             *string
}

func (in *describeCustomKeyStoresIn) check(v *kmsapi.Violations) {
	checkLength(v, "customKeyStoreId", in.CustomKeyStoreId, 1, kmsapi.CustomKeyStoreIDMax)
	checkLength(v, "customKeyStoreName", in.CustomKeyStoreName, 1, 256)
	checkPage(v, in.Limit, in.Marker, kmsapi.LimitMax)
}

type xksProxyConfiguration struct {
	Connectivity            string
	AccessKeyId             string
	UriEndpoint             string
	UriPath                 string
	VpcEndpointServiceName  string `json:",omitempty"`
	VpcEndpointServiceOwner string `json:",omitempty"`
}

type keyStoreEntry struct {
	CustomKeyStoreId       string
	CustomKeyStoreName     string `json:",omitempty"` // as CreationDate and CustomKeyStoreType, of a damaged record
	CloudHsmClusterId      string `json:",omitempty"`
	TrustAnchorCertificate string `json:",omitempty"`
	ConnectionState        string
	ConnectionErrorCode    string                 `json:",omitempty"`
	CreationDate           timestamp              `json:",omitzero"`
	CustomKeyStoreType     string                 `json:",omitempty"`
	XksProxyConfiguration  *xksProxyConfiguration `json:",omitempty"`
}

type describeCustomKeyStoresOut struct {
	CustomKeyStores []keyStoreEntry
	NextMarker      string `json:",omitempty"`
	Truncated       bool
}

// DescribeCustomKeyStores lists the account's key stores in the order of their IDs, or the one that is named.
func (s *Server) describeCustomKeyStores(ctx context.Context, c *call, in *describeCustomKeyStoresIn) (describeCustomKeyStoresOut, error) {
	if err := c.permitAccount(c.action, "*"); err != nil {
		return describeCustomKeyStoresOut{}, err
	}
	if in.CustomKeyStoreId != nil && in.CustomKeyStoreName != nil {
		return describeCustomKeyStoresOut{}, kmsapi.New(kmsapi.Validation, "You can specify CustomKeyStoreId or CustomKeyStoreName, but not both.")
	}
	p := page{operation: c.op.Name, account: c.account(), region: s.region}
	position, err := p.position(in.Marker)
	if err != nil {
		return describeCustomKeyStoresOut{}, err
	}
	list, damaged, err := s.store.AccountKeyStores(ctx, s.region, c.account())
	if err != nil {
		return describeCustomKeyStoresOut{}, err
	}
	entries := make([]keyStoreEntry, 0, len(list)+len(damaged))
	for _, k := range list {
		entries = append(entries, entryOf(k))
	}
	if len(damaged) > 0 {
		s.log.Error("records of custom key stores are damaged", "account", c.account().String(), "keyStores", damaged)
		for _, id := range damaged { // nothing else of them can be said
			entries = append(entries, keyStoreEntry{CustomKeyStoreId: id, ConnectionState: store.Failed, ConnectionErrorCode: internalError})
		}
		slices.SortFunc(entries, func(a, b keyStoreEntry) int { return strings.Compare(a.CustomKeyStoreId, b.CustomKeyStoreId) })
	}
	out := describeCustomKeyStoresOut{}
	if in.CustomKeyStoreId != nil || in.CustomKeyStoreName != nil {
		for _, e := range entries {
			if in.CustomKeyStoreId != nil && e.CustomKeyStoreId == *in.CustomKeyStoreId || in.CustomKeyStoreName != nil && e.CustomKeyStoreName == *in.CustomKeyStoreName {
				out.CustomKeyStores = []keyStoreEntry{e}
				return out, nil
			}
		}
		return describeCustomKeyStoresOut{}, kmsapi.New(kmsapi.CustomKeyStoreNotFound, keyStoreNotFound)
	}
	out.CustomKeyStores, out.Truncated = cut(entries, func(e keyStoreEntry) string { return e.CustomKeyStoreId }, position, pageSize(in.Limit, kmsapi.LimitDefault))
	if out.Truncated {
		out.NextMarker = p.marker(out.CustomKeyStores[len(out.CustomKeyStores)-1].CustomKeyStoreId)
	}
	return out, nil
}

func entryOf(k *store.KeyStore) keyStoreEntry {
	e := keyStoreEntry{
		CustomKeyStoreId: k.ID, CustomKeyStoreName: k.CustomName, CloudHsmClusterId: k.Cluster, TrustAnchorCertificate: k.TrustAnchor,
		ConnectionState: k.State, ConnectionErrorCode: k.Error, CreationDate: timestamp{k.Created}, CustomKeyStoreType: k.Type,
	}
	if k.Type == store.ExternalKeyStore {
		e.XksProxyConfiguration = &xksProxyConfiguration{
			Connectivity: k.Connectivity, AccessKeyId: k.AccessKeyID, UriEndpoint: k.Endpoint, UriPath: k.Path,
			VpcEndpointServiceName: k.VpcService, VpcEndpointServiceOwner: k.VpcServiceOwner,
		}
	}
	return e
}

type updateCustomKeyStoreIn struct {
	CustomKeyStoreId      *string
	NewCustomKeyStoreName *string
	KeyStorePassword      *string
	CloudHsmClusterId     *string
	proxyIn
}

func (in *updateCustomKeyStoreIn) check(v *kmsapi.Violations) {
	checkKeyStoreID(v, in.CustomKeyStoreId)
	checkLength(v, "newCustomKeyStoreName", in.NewCustomKeyStoreName, 1, 256)
	checkPassword(v, in.KeyStorePassword)
	checkClusterID(v, in.CloudHsmClusterId)
	proxy := in.proxyIn
	if deref(proxy.XksProxyVpcEndpointServiceName) == "" {
		proxy.XksProxyVpcEndpointServiceName = nil // the empty name is for a key store that is to be PUBLIC_ENDPOINT
	}
	proxy.check(v)
}

// edit is the change that is asked for, refused where the key store is not in a state for it.
func (in *updateCustomKeyStoreIn) edit(k *store.KeyStore, account string) error {
	cluster := in.KeyStorePassword != nil || in.CloudHsmClusterId != nil
	switch {
	case k.Type == store.CloudHSM && in.proxyIn.any():
		return unsuited("XksProxy", k.Type)
	case k.Type == store.ExternalKeyStore && cluster:
		return unsuited("CloudHsmClusterId and KeyStorePassword", k.Type)
	case in.NewCustomKeyStoreName == nil && !cluster && !in.proxyIn.any():
		return kmsapi.New(kmsapi.Validation, "At least one property of the custom key store must be specified.")
	}
	// The name, and of external key stores the credential and the path, can be changed while they are connected.
	standing := in.proxyIn
	standing.XksProxyUriPath, standing.XksProxyAuthenticationCredential = nil, nil
	if k.State != store.Disconnected && (k.State != store.Connected || cluster || standing.any()) {
		return invalidState(k)
	}
	if in.NewCustomKeyStoreName != nil {
		k.CustomName = *in.NewCustomKeyStoreName
	}
	if in.CloudHsmClusterId != nil {
		k.Cluster = *in.CloudHsmClusterId
	}
	if in.KeyStorePassword != nil {
		k.Secret = secret.New([]byte(*in.KeyStorePassword))
	}
	if k.Type == store.ExternalKeyStore {
		return in.proxyIn.apply(k, account)
	}
	return nil
}

// UpdateCustomKeyStore tries what it is given as CreateCustomKeyStore does. What the connection of a connected key store uses is what the reply promises.
func (s *Server) updateCustomKeyStore(ctx context.Context, c *call, in *updateCustomKeyStoreIn) (noMembers, error) {
	n, account := s.keyStoreName(c, *in.CustomKeyStoreId), c.account().String()
	if err := c.permitAccount(c.action, "*"); err != nil {
		return noMembers{}, err
	}
	old, err := s.store.OpenKeyStore(ctx, n)
	if err != nil {
		return noMembers{}, keyStoreError(err)
	}
	defer old.Secret.Wipe()
	c.noteKeyStore(old)
	k := *old
	defer k.Secret.Wipe()
	if err := in.edit(&k, account); err != nil {
		return noMembers{}, err
	}
	if s.keyStores == nil {
		return noMembers{}, notOffered("CustomKeyStoreType " + k.Type)
	}
	if k.Cluster != old.Cluster {
		if _, err := s.cluster(&k); err != nil {
			return noMembers{}, err
		}
	}
	related := func(k *store.KeyStore, cluster string) bool { return s.sameKeys(k.Cluster, cluster) }
	if err := s.store.CheckKeyStoreUpdate(ctx, &k, old.Cluster, func(cluster string) bool { return related(&k, cluster) }); err != nil {
		return noMembers{}, keyStoreError(err)
	}
	if k.Cluster != old.Cluster || in.proxyIn.any() && (k.Connectivity == store.PublicEndpoint || k.State == store.Connected) {
		if err := s.try(ctx, c, &k); err != nil {
			return noMembers{}, err
		}
	}
	if k.Cluster != old.Cluster {
		if err := s.replaces(old, &k); err != nil {
			return noMembers{}, err
		}
	}
	tried := k
	_, err = s.store.UpdateKeyStore(ctx, n, func(k *store.KeyStore) error {
		if err := in.edit(k, account); err != nil {
			return err
		}
		// Another update came between: what was tried is not what there would be.
		if k.Cluster != tried.Cluster || k.Connectivity != tried.Connectivity || k.Endpoint != tried.Endpoint || k.Path != tried.Path || k.AccessKeyID != tried.AccessKeyID || !k.Secret.Equal(tried.Secret.Expose()) {
			return store.ErrConflict
		}
		return nil
	}, related)
	s.publishKeyStore(n, err)
	return noMembers{}, keyStoreError(err)
}

// replaces refuses a cluster, which has been tried, that cannot take the place of another: it does not hold its keys. A key store that was never connected has none.
func (s *Server) replaces(was, is *store.KeyStore) error {
	next, err := s.cluster(is)
	if err != nil {
		return err
	}
	if next.Roots == nil {
		return kmsapi.New(kmsapi.CloudHsmClusterNotActive, clusterNotActive)
	}
	if roots := s.roots(was); roots != nil && !SharesRoot(roots, next.Roots) {
		return kmsapi.New(kmsapi.CloudHsmClusterNotRelated, clusterNotRelated)
	}
	return nil
}

// DeleteCustomKeyStore: of a key store that has no keys and is not connected. Nothing happens to the cluster, or to what is behind the proxy.
func (s *Server) deleteCustomKeyStore(ctx context.Context, c *call, in *keyStoreIn) (noMembers, error) {
	if err := c.permitAccount(c.action, "*"); err != nil {
		return noMembers{}, err
	}
	n := s.keyStoreName(c, *in.CustomKeyStoreId)
	_, err := s.store.DeleteKeyStore(ctx, n, func(k *store.KeyStore) error {
		c.noteKeyStore(k)
		if k.State != store.Disconnected {
			return invalidState(k)
		}
		return nil
	})
	s.publishKeyStore(n, err)
	return noMembers{}, keyStoreError(err)
}

var (
	keyStoreTypes  = []string{store.CloudHSM, store.ExternalKeyStore}
	connectivities = []string{store.PublicEndpoint, store.VpcEndpointService}
)

func checkClusterID(v *kmsapi.Violations, s *string) {
	checkLength(v, "cloudHsmClusterId", s, 19, 24)
	if s == nil {
		return
	}
	rest, ok := strings.CutPrefix(*s, "cluster-")
	if !ok || len(rest) < 11 || len(rest) > 16 || strings.ContainsFunc(rest, func(r rune) bool { return !isWord(r) || r == '_' || r == '0' || r == '1' || r == '8' || r == '9' }) {
		v.Pattern("cloudHsmClusterId", []byte(*s), "cluster-[2-7a-zA-Z]{11,16}")
	}
}

func checkPassword(v *kmsapi.Violations, s *string) {
	checkSecret(v, "keyStorePassword", s, 7, 32, "", func(rune) bool { return true })
}

// checkSecret is checkLength and checkPattern for a sensitive member.
func checkSecret(v *kmsapi.Violations, path string, s *string, least, most int, pattern string, ok func(rune) bool) {
	if s == nil {
		return
	}
	switch n := len([]rune(*s)); {
	case n < least:
		v.MinLength(path, nil, least)
	case n > most:
		v.MaxLength(path, nil, most)
	}
	if strings.ContainsFunc(*s, func(r rune) bool { return !ok(r) }) {
		v.Pattern(path, nil, pattern)
	}
}

// isEndpoint matches ^https://[a-zA-Z0-9.-]+$.
func isEndpoint(s string) bool {
	host, ok := strings.CutPrefix(s, "https://")
	return ok && host != "" && !strings.ContainsFunc(host, func(r rune) bool { return (!isWord(r) || r == '_') && r != '.' && r != '-' })
}

// isProxyPath matches ^(/[a-zA-Z0-9\/_-]+/kms/xks/v\d{1,2})$|^(/kms/xks/v\d{1,2})$.
func isProxyPath(s string) bool {
	at := strings.LastIndexByte(s, 'v')
	if at < 0 || len(s)-at < 2 || len(s)-at > 3 || strings.Trim(s[at+1:], "0123456789") != "" {
		return false
	}
	prefix, ok := strings.CutSuffix(s[:at], "/kms/xks/")
	return ok && (prefix == "" || len(prefix) > 1 && prefix[0] == '/' && !strings.ContainsFunc(prefix, func(r rune) bool { return !isWord(r) && r != '/' && r != '-' }))
}

// isVpcService matches ^(com|eu)\.amazonaws\.vpce\.([a-z]+-){2,3}\d+\.vpce-svc-[0-9a-z]+$.
func isVpcService(s string) bool {
	parts := strings.Split(s, ".")
	if len(parts) != 5 {
		return false
	}
	id, ok := strings.CutPrefix(parts[4], "vpce-svc-")
	return ok && (parts[0] == "com" || parts[0] == "eu") && parts[1] == "amazonaws" && parts[2] == "vpce" && isRegion(parts[3]) && id != "" &&
		strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyz") == ""
}
