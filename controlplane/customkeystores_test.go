package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/controlplane/store/storetest"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/quota"
)

// A key store of each type: what is shown of it, and that no secret is.
func TestCreateCustomKeyStore(t *testing.T) {
	e := newEnv(t)
	cluster := e.keyStore(clusterBody("CustomKeyStoreName", "my cluster", "CloudHsmClusterId", "cluster-abcdefgh234"))
	if got := e.stores.heard(); got != "try cluster-abcdefgh234 kmsPassword CreateCustomKeyStore test" {
		t.Errorf("asked %q", got)
	}
	public := e.keyStore(proxyBody("XksProxyUriEndpoint", "https://Proxy.example.com", "XksProxyUriPath", "/a/b-c/kms/xks/v1"))
	if got := e.stores.heard(); got != "try https://Proxy.example.com/a/b-c/kms/xks/v1 "+proxySecret+" CreateCustomKeyStore test" {
		t.Errorf("asked %q", got)
	}
	const service = "com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef0"
	vpc := e.keyStore(proxyBody("XksProxyConnectivity", "VPC_ENDPOINT_SERVICE", "XksProxyVpcEndpointServiceName", service))
	if got := e.stores.heard(); got != "" {
		t.Errorf("asked %q", got)
	}
	want := map[string]keyStoreWire{
		cluster: {cluster, "my cluster", "cluster-abcdefgh234", trustAnchor, "DISCONNECTED", "", "AWS_CLOUDHSM", 1795435200.123, nil},
		public: {public, "", "", "", "DISCONNECTED", "", "EXTERNAL_KEY_STORE", 1795435200.123,
			&xksProxyConfiguration{"PUBLIC_ENDPOINT", "ABCDEFGHIJKLMNOPQRST", "https://Proxy.example.com", "/a/b-c/kms/xks/v1", "", ""}},
		vpc: {vpc, "", "", "", "DISCONNECTED", "", "EXTERNAL_KEY_STORE", 1795435200.123,
			&xksProxyConfiguration{"VPC_ENDPOINT_SERVICE", "ABCDEFGHIJKLMNOPQRST", "", "/kms/xks/v1", service, e.account.String()}},
	}
	resp := e.call("DescribeCustomKeyStores", "{}")
	if body := string(resp.Body); strings.Contains(body, "kmsPassword") || strings.Contains(body, proxySecret) {
		t.Errorf("a secret is shown: %s", body)
	}
	var pages []keyStoreWire
	for marker := raw("null"); ; {
		var out keyStoresWire
		e.ok("DescribeCustomKeyStores", obj("Limit", 1, "Marker", marker), &out)
		if pages = append(pages, out.CustomKeyStores...); !out.Truncated {
			break
		}
		marker = raw(`"` + out.NextMarker + `"`)
	}
	if len(pages) != 3 {
		t.Fatalf("%d key stores", len(pages))
	}
	for i, got := range pages {
		w := want[got.CustomKeyStoreId]
		if w.CustomKeyStoreName == "" { // made up
			w.CustomKeyStoreName = got.CustomKeyStoreName
		}
		if w.XksProxyConfiguration != nil && w.XksProxyConfiguration.UriEndpoint == "" {
			w.XksProxyConfiguration.UriEndpoint = got.XksProxyConfiguration.UriEndpoint
		}
		if !reflect.DeepEqual(got, w) || i > 0 && got.CustomKeyStoreId <= pages[i-1].CustomKeyStoreId {
			t.Errorf("got  %+v\nwant %+v", got, w)
		}
		if k := e.stores.added[got.CustomKeyStoreId]; k == nil || k.Secret.Len() == 0 {
			t.Errorf("the connection of %s has %+v", got.CustomKeyStoreName, k)
		}
	}
	var named keyStoresWire
	e.ok("DescribeCustomKeyStores", obj("CustomKeyStoreName", "my cluster"), &named)
	if len(named.CustomKeyStores) != 1 || named.CustomKeyStores[0].CustomKeyStoreId != cluster {
		t.Errorf("by name: %+v", named)
	}
	for _, body := range []string{obj("CustomKeyStoreName", "My cluster"), obj("CustomKeyStoreId", "my cluster"), obj("CustomKeyStoreId", "../"+cluster)} {
		e.fails("DescribeCustomKeyStores", body, kmsapi.CustomKeyStoreNotFound, keyStoreNotFound)
	}
	e.fails("DescribeCustomKeyStores", obj("CustomKeyStoreName", "my cluster", "CustomKeyStoreId", cluster), kmsapi.Validation, "You can specify CustomKeyStoreId or CustomKeyStoreName, but not both.")
	e.fails("DescribeCustomKeyStores", obj("Marker", "x"), kmsapi.InvalidMarker, "*")

	// Another account sees none of it, and does nothing to it.
	other := e.elsewhere()
	var none keyStoresWire
	if other.ok("DescribeCustomKeyStores", "{}", &none); len(none.CustomKeyStores) != 0 {
		t.Errorf("another account sees %+v", none)
	}
	for _, op := range []string{"ConnectCustomKeyStore", "DisconnectCustomKeyStore", "DeleteCustomKeyStore", "DescribeCustomKeyStores"} {
		other.fails(op, obj("CustomKeyStoreId", cluster), kmsapi.CustomKeyStoreNotFound, keyStoreNotFound)
	}
	other.fails("UpdateCustomKeyStore", obj("CustomKeyStoreId", cluster, "NewCustomKeyStoreName", "theirs"), kmsapi.CustomKeyStoreNotFound, keyStoreNotFound)
}

func TestCustomKeyStoreRefusals(t *testing.T) {
	e := newEnv(t)
	first := e.keyStore(clusterBody("CustomKeyStoreName", "first", "CloudHsmClusterId", "cluster-firstfirstfi"))
	e.keyStore(proxyBody("CustomKeyStoreName", "second", "XksProxyUriEndpoint", "https://taken.example"))
	const service = "com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef0"
	vpc := []any{"XksProxyConnectivity", "VPC_ENDPOINT_SERVICE", "XksProxyVpcEndpointServiceName", service}
	e.keyStore(proxyBody(append(vpc, "XksProxyUriEndpoint", "https://private.example")...))
	e.stores.clusters["cluster-nowherenowhere"] = nil
	e.stores.clusters["cluster-relatedrelated"] = &Cluster{TrustAnchor: []byte("a certificate"), Roots: append(rootOf("one more"), rootOf("cluster-firstfirstfi")...)}
	e.stores.clusters["cluster-nobodynobody"] = &Cluster{TrustAnchor: []byte("a certificate"), Accounts: []keyid.Account{e.account + 1, e.account + 2}}
	e.stores.clusters["cluster-silentsilent"] = &Cluster{TrustAnchor: []byte("a certificate")}
	e.stores.heard()
	more := func(more []any, pairs ...any) []any { return append(pairs, more...) }
	const violation = " validation error detected: "
	for body, want := range map[string]struct {
		code kmsapi.Code
		text string
	}{
		"{}": {kmsapi.Validation, "1" + violation + "Value null at 'customKeyStoreName' failed to satisfy constraint: Member must not be null"},
		clusterBody("CustomKeyStoreName", "", "KeyStorePassword", "short"): {kmsapi.Validation, "2 validation errors detected: Value '' at 'customKeyStoreName' failed to satisfy " +
			"constraint: Member must have length greater than or equal to 1; Value at 'keyStorePassword' failed to satisfy constraint: Member must have length greater than or equal to 7"},
		clusterBody("CustomKeyStoreType", "HSM"):                                                   {kmsapi.Validation, "1" + violation + "Value 'HSM' at 'customKeyStoreType' failed to satisfy constraint: Member must satisfy enum value set: [AWS_CLOUDHSM, EXTERNAL_KEY_STORE]"},
		clusterBody("CloudHsmClusterId", "cluster-1bcdefghijk"):                                    {kmsapi.Validation, "1" + violation + "Value 'cluster-1bcdefghijk' at 'cloudHsmClusterId' failed to satisfy constraint: Member must satisfy regular expression pattern: cluster-[2-7a-zA-Z]{11,16}"},
		clusterBody("KeyStorePassword", strings.Repeat("x", 33)):                                   {kmsapi.Validation, "*"},
		clusterBody("TrustAnchorCertificate", ""):                                                  {kmsapi.Validation, "*"},
		clusterBody("CloudHsmClusterId", nil):                                                      {kmsapi.Validation, "CloudHsmClusterId is required for custom key stores of type AWS_CLOUDHSM."},
		clusterBody("KeyStorePassword", nil):                                                       {kmsapi.Validation, "KeyStorePassword is required for custom key stores of type AWS_CLOUDHSM."},
		clusterBody("TrustAnchorCertificate", nil):                                                 {kmsapi.Validation, "TrustAnchorCertificate is required for custom key stores of type AWS_CLOUDHSM."},
		clusterBody("XksProxyUriPath", "/kms/xks/v1"):                                              {kmsapi.Validation, "XksProxy members are not valid for a custom key store of type AWS_CLOUDHSM."},
		clusterBody("CustomKeyStoreName", "first"):                                                 {kmsapi.CustomKeyStoreNameInUse, keyStoreNameInUse},
		clusterBody("CloudHsmClusterId", "cluster-firstfirstfi"):                                   {kmsapi.CloudHsmClusterInUse, clusterInUse},
		clusterBody("CloudHsmClusterId", "cluster-relatedrelated"):                                 {kmsapi.CloudHsmClusterInUse, clusterInUse},
		clusterBody("CloudHsmClusterId", "cluster-nowherenowhere"):                                 {kmsapi.CloudHsmClusterNotFound, clusterNotFound},
		clusterBody("CloudHsmClusterId", "cluster-nobodynobody"):                                   {kmsapi.CloudHsmClusterNotFound, clusterNotFound},
		clusterBody("TrustAnchorCertificate", "no certificate"):                                    {kmsapi.IncorrectTrustAnchor, wrongTrustAnchor},
		clusterBody("TrustAnchorCertificate", trustAnchor+"more"):                                  {kmsapi.IncorrectTrustAnchor, wrongTrustAnchor},
		clusterBody("TrustAnchorCertificate", strings.Replace(trustAnchor, "YSBj", "YSBk", 1)):     {kmsapi.IncorrectTrustAnchor, wrongTrustAnchor},
		clusterBody("TrustAnchorCertificate", strings.ReplaceAll(trustAnchor, "CERTIFICATE", "X")): {kmsapi.IncorrectTrustAnchor, wrongTrustAnchor},

		proxyBody("XksProxyConnectivity", nil):             {kmsapi.Validation, "XksProxyConnectivity is required for custom key stores of type EXTERNAL_KEY_STORE."},
		proxyBody("XksProxyUriEndpoint", nil):              {kmsapi.Validation, "XksProxyUriEndpoint is required for custom key stores of type EXTERNAL_KEY_STORE."},
		proxyBody("XksProxyUriPath", nil):                  {kmsapi.Validation, "XksProxyUriPath is required for custom key stores of type EXTERNAL_KEY_STORE."},
		proxyBody("XksProxyAuthenticationCredential", nil): {kmsapi.Validation, "XksProxyAuthenticationCredential is required for custom key stores of type EXTERNAL_KEY_STORE."},
		proxyBody("KeyStorePassword", "kmsPassword"):       {kmsapi.Validation, "CloudHsmClusterId, TrustAnchorCertificate and KeyStorePassword members are not valid for a custom key store of type EXTERNAL_KEY_STORE."},
		proxyBody("XksProxyAuthenticationCredential", credential("abcdefghijklmnopqrst", "short!")): {kmsapi.Validation, "3 validation errors detected: Value at 'xksProxyAuthenticationCredential.accessKeyId' failed " +
			"to satisfy constraint: Member must satisfy regular expression pattern: ^[A-Z2-7]+$; Value at 'xksProxyAuthenticationCredential.rawSecretAccessKey' failed to satisfy constraint: Member must have length " +
			`greater than or equal to 43; Value at 'xksProxyAuthenticationCredential.rawSecretAccessKey' failed to satisfy constraint: Member must satisfy regular expression pattern: ^[a-zA-Z0-9\/+=]+$`},
		proxyBody("XksProxyAuthenticationCredential", raw("{}")): {kmsapi.Validation, "2 validation errors detected: Value null at 'xksProxyAuthenticationCredential.accessKeyId' failed to satisfy constraint: Member must not " +
			"be null; Value null at 'xksProxyAuthenticationCredential.rawSecretAccessKey' failed to satisfy constraint: Member must not be null"},
		proxyBody("XksProxyUriEndpoint", "http://proxy.example"):                                                                             {kmsapi.Validation, "1" + violation + "Value 'http://proxy.example' at 'xksProxyUriEndpoint' failed to satisfy constraint: Member must satisfy regular expression pattern: ^https://[a-zA-Z0-9.-]+$"},
		proxyBody("XksProxyUriEndpoint", "https://proxy.example:8443"):                                                                       {kmsapi.Validation, "*"},
		proxyBody("XksProxyUriEndpoint", "https://192.0.2.1"):                                                                                {kmsapi.Validation, "XksProxyUriEndpoint must be https:// and the fully qualified name of a host."},
		proxyBody("XksProxyUriPath", "kms/xks/v1"):                                                                                           {kmsapi.Validation, "*"},
		proxyBody("XksProxyUriPath", "/a.b/kms/xks/v1"):                                                                                      {kmsapi.Validation, `1` + violation + `Value '/a.b/kms/xks/v1' at 'xksProxyUriPath' failed to satisfy constraint: Member must satisfy regular expression pattern: ^(/[a-zA-Z0-9\/_-]+/kms/xks/v\d{1,2})$|^(/kms/xks/v\d{1,2})$`},
		proxyBody("XksProxyUriPath", "/kms/xks/v2"):                                                                                          {kmsapi.Validation, "XksProxyUriPath must end with /kms/xks/v1."},
		proxyBody("XksProxyVpcEndpointServiceName", service):                                                                                 {kmsapi.Validation, "XksProxyVpcEndpointServiceName and XksProxyVpcEndpointServiceOwner are not valid with XksProxyConnectivity PUBLIC_ENDPOINT."},
		proxyBody("XksProxyVpcEndpointServiceOwner", "111122223333"):                                                                         {kmsapi.Validation, "*"},
		proxyBody("XksProxyConnectivity", "VPC_ENDPOINT_SERVICE"):                                                                            {kmsapi.Validation, "XksProxyVpcEndpointServiceName is required for XksProxyConnectivity VPC_ENDPOINT_SERVICE."},
		proxyBody(more(vpc, "XksProxyVpcEndpointServiceOwner", "1")...):                                                                      {kmsapi.Validation, "*"},
		proxyBody("XksProxyConnectivity", "VPC_ENDPOINT_SERVICE", "XksProxyVpcEndpointServiceName", "com.amazonaws.vpce.nowhere.vpce-svc-1"): {kmsapi.Validation, "*"},
		proxyBody("XksProxyUriEndpoint", "https://taken.example"):                                                                            {kmsapi.XksProxyUriInUse, xksURIInUse},
		proxyBody("XksProxyUriEndpoint", "https://private.example", "XksProxyUriPath", "/x/kms/xks/v1"):                                      {kmsapi.XksProxyUriEndpointInUse, xksEndpointInUse},
		proxyBody(vpc...): {kmsapi.XksProxyVpcEndpointServiceInUse, xksVpcInUse},
	} {
		e.fails("CreateCustomKeyStore", body, want.code, want.text)
		if strings.Contains(string(e.call("CreateCustomKeyStore", body).Body), proxySecret) {
			t.Errorf("the secret is in the refusal of %s", body)
		}
	}
	if got := e.stores.heard(); got != "" {
		t.Errorf("what is refused anyway was tried: %q", got)
	}

	// What the cluster or the proxy is refused for.
	for _, code := range []kmsapi.Code{kmsapi.CloudHsmClusterNotActive, kmsapi.CloudHsmClusterInvalidConfiguration} {
		e.stores.err = fmt.Errorf("trying: %w", &StoreFault{"INSUFFICIENT_CLOUDHSM_HSMS", code, "why"})
		e.fails("CreateCustomKeyStore", clusterBody(), code, "why")
	}
	for _, code := range []kmsapi.Code{kmsapi.XksProxyUriUnreachable, kmsapi.XksProxyIncorrectAuthenticationCredential, kmsapi.XksProxyInvalidConfiguration, kmsapi.XksProxyInvalidResponse} {
		e.stores.err = &StoreFault{"XKS_PROXY_TIMED_OUT", code, "why"}
		e.fails("CreateCustomKeyStore", proxyBody(), code, "why")
	}
	e.stores.err = errors.New("CKR_DEVICE_ERROR")
	e.fails("CreateCustomKeyStore", proxyBody(), kmsapi.KMSInternal, kmsapi.KMSInternal.Text())
	e.stores.err = nil

	f := &fixedQuotas{max: map[string]int{quota.CustomKeyStoresPerAccount: 3}}
	e.quotas = f
	e.fails("CreateCustomKeyStore", clusterBody(), kmsapi.LimitExceeded, "The account has reached the limit of custom key stores in this Region.")
	e.ok("DeleteCustomKeyStore", obj("CustomKeyStoreId", first), &noMembers{})
	e.keyStore(clusterBody("CloudHsmClusterId", "cluster-relatedrelated"))
	if e.stores.added[first] != nil {
		t.Error("the connection of a key store that was deleted is there")
	}
	e.keyStores = nil
	f.max[quota.CustomKeyStoresPerAccount] = 9
	e.fails("CreateCustomKeyStore", clusterBody(), kmsapi.UnsupportedOperation, "CustomKeyStoreType AWS_CLOUDHSM is not offered by this version of keyplane.")
}

func TestUpdateCustomKeyStore(t *testing.T) {
	e := newEnv(t)
	cluster, proxy := e.keyStore(clusterBody("CustomKeyStoreName", "cluster", "CloudHsmClusterId", "cluster-updatedupdat")), e.keyStore(proxyBody("XksProxyUriEndpoint", "https://first.example"))
	other := e.keyStore(proxyBody("CustomKeyStoreName", "other", "XksProxyUriEndpoint", "https://other.example"))
	const service = "com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef0"
	e.stores.clusters["cluster-nowherenowhere"] = nil
	e.stores.clusters["cluster-updatedrelat"] = &Cluster{Roots: rootOf("cluster-updatedupdat")}
	e.stores.clusters["cluster-nobodynobody"] = &Cluster{Accounts: []keyid.Account{e.account + 1}, Roots: rootOf("cluster-updatedupdat")}
	e.stores.clusters["cluster-silentsilent"] = &Cluster{}
	on := func(id string, more ...any) string { return obj(append([]any{"CustomKeyStoreId", id}, more...)...) }
	for body, want := range map[string]struct {
		code kmsapi.Code
		text string
	}{
		"{}":        {kmsapi.Validation, "*"},
		on(cluster): {kmsapi.Validation, "At least one property of the custom key store must be specified."},
		on("cks-00000000000000000", "NewCustomKeyStoreName", "x"):                                               {kmsapi.CustomKeyStoreNotFound, keyStoreNotFound},
		on(cluster, "NewCustomKeyStoreName", "other"):                                                           {kmsapi.CustomKeyStoreNameInUse, keyStoreNameInUse},
		on(cluster, "XksProxyUriPath", "/kms/xks/v1"):                                                           {kmsapi.Validation, "XksProxy members are not valid for a custom key store of type AWS_CLOUDHSM."},
		on(cluster, "KeyStorePassword", "short"):                                                                {kmsapi.Validation, "*"},
		on(cluster, "CloudHsmClusterId", "cluster-nowherenowhere"):                                              {kmsapi.CloudHsmClusterNotFound, clusterNotFound},
		on(cluster, "CloudHsmClusterId", "cluster-nobodynobody"):                                                {kmsapi.CloudHsmClusterNotFound, clusterNotFound},
		on(cluster, "CloudHsmClusterId", "cluster-silentsilent"):                                                {kmsapi.CloudHsmClusterNotActive, clusterNotActive},
		on(cluster, "CloudHsmClusterId", "cluster-strangerstran"):                                               {kmsapi.CloudHsmClusterNotRelated, clusterNotRelated},
		on(proxy, "KeyStorePassword", "kmsPassword"):                                                            {kmsapi.Validation, "CloudHsmClusterId and KeyStorePassword members are not valid for a custom key store of type EXTERNAL_KEY_STORE."},
		on(proxy, "XksProxyUriEndpoint", "https://other.example"):                                               {kmsapi.XksProxyUriInUse, xksURIInUse},
		on(proxy, "XksProxyConnectivity", "VPC_ENDPOINT_SERVICE", "XksProxyVpcEndpointServiceName", service):    {kmsapi.Validation, "XksProxyUriEndpoint is required for a change of XksProxyConnectivity."},
		on(proxy, "XksProxyConnectivity", "VPC_ENDPOINT_SERVICE", "XksProxyUriEndpoint", "https://vpc.example"): {kmsapi.Validation, "XksProxyVpcEndpointServiceName is required for XksProxyConnectivity VPC_ENDPOINT_SERVICE."},
		on(proxy, "XksProxyVpcEndpointServiceName", service):                                                    {kmsapi.Validation, "XksProxyVpcEndpointServiceName and XksProxyVpcEndpointServiceOwner are not valid with XksProxyConnectivity PUBLIC_ENDPOINT."},
		on(proxy, "XksProxyConnectivity", "VPC_ENDPOINT_SERVICE", "XksProxyVpcEndpointServiceName", service, "XksProxyUriEndpoint", "https://other.example", "XksProxyUriPath", "/x/kms/xks/v1"): {kmsapi.XksProxyUriEndpointInUse, xksEndpointInUse},
	} {
		e.fails("UpdateCustomKeyStore", body, want.code, want.text)
	}
	e.stores.heard()
	update := func(body, asked string) {
		t.Helper()
		if resp := e.call("UpdateCustomKeyStore", body); resp.Code != kmsapi.OK || string(resp.Body) != "{}" {
			t.Errorf("%s: %s", body, resp.Body)
		}
		if got := e.stores.heard(); got != asked {
			t.Errorf("%s: asked %q, want %q", body, got, asked)
		}
	}
	has := func(id string, want func(*store.KeyStore) bool) {
		t.Helper()
		k, err := shared.OpenKeyStore(t.Context(), store.KeyStoreName{Region: e.region, Account: e.account, ID: id})
		if err != nil || !want(k) || !reflect.DeepEqual(e.stores.added[id], k) {
			t.Errorf("%v: the record is %+v, the connection has %+v", err, k, e.stores.added[id])
		}
	}
	update(on(cluster, "NewCustomKeyStoreName", "renamed"), "")
	update(on(cluster, "KeyStorePassword", "another password"), "")
	update(on(cluster, "CloudHsmClusterId", "cluster-updatedrelat"), "try cluster-updatedrelat another password UpdateCustomKeyStore test")
	has(cluster, func(k *store.KeyStore) bool {
		return k.CustomName == "renamed" && k.Secret.Equal([]byte("another password")) && k.Cluster == "cluster-updatedrelat"
	})
	update(on(proxy, "XksProxyConnectivity", "VPC_ENDPOINT_SERVICE", "XksProxyVpcEndpointServiceName", service, "XksProxyUriEndpoint", "https://vpc.example"), "")
	has(proxy, func(k *store.KeyStore) bool {
		return k.VpcService == service && k.VpcServiceOwner == e.account.String() && k.Endpoint == "https://vpc.example"
	})
	update(on(proxy, "XksProxyVpcEndpointServiceOwner", "111122223333"), "")
	has(proxy, func(k *store.KeyStore) bool { return k.VpcService == service && k.VpcServiceOwner == "111122223333" })
	update(on(proxy, "XksProxyConnectivity", "PUBLIC_ENDPOINT", "XksProxyVpcEndpointServiceName", "", "XksProxyUriEndpoint", "https://public.example"),
		"try https://public.example/kms/xks/v1 "+proxySecret+" UpdateCustomKeyStore test")
	has(proxy, func(k *store.KeyStore) bool { return k.VpcService == "" && k.VpcServiceOwner == "" })

	// Connected: the name, the credential and the path; and not what the proxy does not answer under.
	for _, id := range []string{cluster, proxy} {
		e.ok("ConnectCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
	}
	e.turns()
	e.stores.heard()
	connected := "The request was rejected because of the ConnectionState of the custom key store, which is CONNECTED."
	for _, body := range []string{
		on(cluster, "KeyStorePassword", "kmsPassword3"), on(cluster, "CloudHsmClusterId", "cluster-updatedupdat"), on(cluster, "NewCustomKeyStoreName", "n", "KeyStorePassword", "kmsPassword3"),
		on(proxy, "XksProxyUriEndpoint", "https://third.example"), on(proxy, "XksProxyConnectivity", "PUBLIC_ENDPOINT"), on(proxy, "XksProxyVpcEndpointServiceOwner", "111122223333"),
	} {
		e.fails("UpdateCustomKeyStore", body, kmsapi.CustomKeyStoreInvalidState, connected)
	}
	update(on(cluster, "NewCustomKeyStoreName", "again"), "")
	update(on(proxy, "NewCustomKeyStoreName", "another", "XksProxyUriPath", "/new/kms/xks/v1", "XksProxyAuthenticationCredential", credential("ZZZZZZZZZZZZZZZZZZZZ", proxySecret+"z")),
		"try https://public.example/new/kms/xks/v1 "+proxySecret+"z UpdateCustomKeyStore test")
	has(proxy, func(k *store.KeyStore) bool {
		return k.CustomName == "another" && k.Path == "/new/kms/xks/v1" && k.AccessKeyID == "ZZZZZZZZZZZZZZZZZZZZ" && k.Secret.Equal([]byte(proxySecret+"z")) && k.State == store.Connected
	})
	e.stores.err = &StoreFault{"INVALID_CREDENTIALS", kmsapi.XksProxyIncorrectAuthenticationCredential, "why"}
	e.fails("UpdateCustomKeyStore", on(proxy, "XksProxyUriPath", "/kms/xks/v1"), kmsapi.XksProxyIncorrectAuthenticationCredential, "why")
	has(proxy, func(k *store.KeyStore) bool { return k.Path == "/new/kms/xks/v1" })
	e.stores.err = nil
	for _, state := range []string{store.Connecting, store.Disconnecting, store.Failed} {
		e.forceStore(other, state)
		e.fails("UpdateCustomKeyStore", on(other, "NewCustomKeyStoreName", "n"), kmsapi.CustomKeyStoreInvalidState, strings.Replace(connected, "CONNECTED", state, 1))
	}
}

// Another cluster takes the place of the one that the keys are in if it has one of the roots that the key store was connected with, whatever process did that; its
// own are known when it has been tried.
func TestUpdateToAnotherCluster(t *testing.T) {
	e := newEnv(t)
	id := e.connected(store.CloudHSM)
	n, was := store.KeyStoreName{Region: e.region, Account: e.account, ID: id}, e.theKeyStore(id).CloudHsmClusterId
	e.ok("DisconnectCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
	for _, c := range []string{was, "cluster-foreignforei", "cluster-partpartpart", "cluster-speechlessone"} {
		e.stores.clusters[c] = &Cluster{ID: c, TrustAnchor: []byte("a certificate")} // as to a process that has opened none of them
	}
	e.stores.shown = map[string][]byte{"cluster-foreignforei": rootOf("a stranger"), "cluster-partpartpart": append(rootOf("one more"), rootOf(was)...)}
	update := func(cluster string) string { return obj("CustomKeyStoreId", id, "CloudHsmClusterId", cluster) }
	e.fails("UpdateCustomKeyStore", update("cluster-foreignforei"), kmsapi.CloudHsmClusterNotRelated, clusterNotRelated)
	e.fails("UpdateCustomKeyStore", update("cluster-speechlessone"), kmsapi.CloudHsmClusterNotActive, clusterNotActive)
	e.ok("UpdateCustomKeyStore", update("cluster-partpartpart"), &noMembers{})
	e.ok("ConnectCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
	e.turns()
	k, err := e.store.KeyStore(t.Context(), n)
	if want := append(rootOf(was), rootOf("one more")...); err != nil || k.State != store.Connected || !bytes.Equal(k.Roots, want) {
		t.Errorf("%v: it is %s, with the roots %x, want %x", err, k.State, k.Roots, want)
	}

	// A key store that was never connected has no keys to lose.
	e.stores.clusters["cluster-mineminemine"] = &Cluster{TrustAnchor: []byte("a certificate"), Accounts: []keyid.Account{e.account + 1, e.account}}
	id = e.keyStore(clusterBody("CloudHsmClusterId", "cluster-mineminemine"))
	e.ok("UpdateCustomKeyStore", update("cluster-foreignforei"), &noMembers{})
}

// What each operation is answered in each connection state, and what the key store becomes.
func TestConnectionStates(t *testing.T) {
	e := newEnv(t)
	id := e.keyStore(clusterBody())
	const no = "refused"
	for _, c := range []struct{ op, disconnected, connecting, connected, failed, disconnecting string }{
		{"ConnectCustomKeyStore", store.Connecting, store.Connecting, store.Connected, no, no},
		{"DisconnectCustomKeyStore", no, store.Disconnected, store.Disconnected, store.Disconnected, no},
		{"DeleteCustomKeyStore", "", no, no, no, no},
		{"UpdateCustomKeyStore", store.Disconnected, no, store.Connected, no, no},
		{"CreateKey", no, no, store.Connected, no, no},
	} {
		for state, want := range map[string]string{
			store.Disconnected: c.disconnected, store.Connecting: c.connecting, store.Connected: c.connected, store.Failed: c.failed, store.Disconnecting: c.disconnecting,
		} {
			if c.op == "DeleteCustomKeyStore" {
				id = e.keyStore(clusterBody())
			}
			e.forceStore(id, state)
			e.stores.set(id, state == store.Connected)
			body := obj("CustomKeyStoreId", id, "NewCustomKeyStoreName", "name of "+id)
			if c.op == "CreateKey" {
				body = obj("CustomKeyStoreId", id, "Origin", "AWS_CLOUDHSM")
			}
			if want == no {
				text := "The request was rejected because of the ConnectionState of the custom key store, which is " + state + "."
				if c.op == "CreateKey" {
					text = notConnected
				}
				e.fails(c.op, body, kmsapi.CustomKeyStoreInvalidState, text)
				want = state
			} else if resp := e.call(c.op, body); resp.Code != kmsapi.OK {
				t.Errorf("%s of one that is %s: %s", c.op, state, resp.Body)
			}
			if want == "" {
				e.fails("DescribeCustomKeyStores", obj("CustomKeyStoreId", id), kmsapi.CustomKeyStoreNotFound, keyStoreNotFound)
				continue
			}
			if got := e.theKeyStore(id).ConnectionState; got != want {
				t.Errorf("%s of one that is %s: it is %s, want %s", c.op, state, got, want)
			}
			if want == store.Disconnected && state != store.Disconnected && e.stores.Connected(store.KeyStoreName{ID: id}) {
				t.Errorf("%s of one that is %s was answered before it was done", c.op, state)
			}
			if c.op == "DeleteCustomKeyStore" {
				e.forceStore(id, store.Disconnected)
				e.ok("DeleteCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
			}
		}
		if c.op == "DeleteCustomKeyStore" {
			id = e.keyStore(clusterBody())
		}
	}
	e.forceStore(id, store.Disconnected)
	e.fails("DeleteCustomKeyStore", obj("CustomKeyStoreId", id), kmsapi.CustomKeyStoreHasCMKs, keyStoreHasKeys) // the one of CreateKey
}

// A connection that fails says why, and has to be disconnected first.
func TestConnectionFails(t *testing.T) {
	e := newEnv(t)
	id := e.keyStore(proxyBody())
	for code, err := range map[string]error{
		"XKS_PROXY_TIMED_OUT": fmt.Errorf("connecting: %w", &StoreFault{"XKS_PROXY_TIMED_OUT", kmsapi.XksProxyUriUnreachable, "why"}), "INTERNAL_ERROR": errors.New("why"),
	} {
		e.stores.err = err
		e.ok("ConnectCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
		e.storeState(id, store.Connecting, "")
		e.turns()
		e.storeState(id, store.Failed, code)
		e.fails("ConnectCustomKeyStore", obj("CustomKeyStoreId", id), kmsapi.CustomKeyStoreInvalidState, "*")
		e.ok("DisconnectCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
		e.storeState(id, store.Disconnected, "")
	}
	e.stores.err = nil
	e.stores.heard()
	e.ok("ConnectCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
	e.turns()
	e.storeState(id, store.Connected, "")
	if got := e.stores.heard(); got != "connect "+proxySecret+" test" {
		t.Errorf("asked %q", got)
	}
}

// A connection that fails while that cannot be written is not tried again, with its password, but the writing is; DisconnectCustomKeyStore does not wait for it.
func TestOutcomeThatCannotBeWritten(t *testing.T) {
	seals := &refusingSealer{Sealer: storetest.NewSealer()}
	st, err := store.OpenEmbedded(t.Context(), store.EmbeddedConfig{Dir: t.TempDir(), Logger: quiet, Sealer: seals})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	e := newEnvIn(t, st, "eu-outcome-1")
	id := e.keyStore(clusterBody())
	var connects atomic.Int32
	e.stores.connect = func(context.Context) error {
		connects.Add(1)
		seals.refuse.Store(true)
		return &StoreFault{"", kmsapi.CloudHsmClusterInvalidConfiguration, "a wrong PIN"}
	}
	defer e.running()()
	e.ok("ConnectCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
	for deadline := time.Now().Add(15 * time.Second); seals.refused.Load() < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the outcome is not written again")
		}
		e.connections.want() // of another key store
	}
	e.storeState(id, store.Connecting, "")
	seals.refuse.Store(false)
	e.until(id, store.Failed)
	e.storeState(id, store.Failed, "INTERNAL_ERROR")
	if n := connects.Load(); n != 1 {
		t.Errorf("connected %d times", n)
	}

	e.ok("DisconnectCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
	e.ok("ConnectCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
	for refused := seals.refused.Load(); seals.refused.Load() == refused; time.Sleep(time.Millisecond) {
	}
	seals.refuse.Store(false)
	e.ok("DisconnectCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
	e.storeState(id, store.Disconnected, "")
	if n := connects.Load(); n != 2 {
		t.Errorf("connected %d times", n)
	}
}

// refusingSealer seals nothing while it is told so, and counts what it refuses.
type refusingSealer struct {
	store.Sealer
	refuse  atomic.Bool
	refused atomic.Int32
}

func (s *refusingSealer) Seal(plaintext, aad []byte) ([]byte, error) {
	if s.refuse.Load() {
		s.refused.Add(1)
		return nil, errors.New("CKR_DEVICE_ERROR")
	}
	return s.Sealer.Seal(plaintext, aad)
}

// running has Run's goroutine for key stores until the function that it returns is called.
func (e *env) running() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { e.connecting(ctx) })
	return func() { cancel(); wg.Wait() }
}

// until waits for a state that something else brings about.
func (e *env) until(id, state string) {
	e.Helper()
	for deadline := time.Now().Add(15 * time.Second); e.theKeyStore(id).ConnectionState != state; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			e.Fatalf("the key store does not become %s: it is %s", state, e.theKeyStore(id).ConnectionState)
		}
	}
}

// A proxy that does not answer holds up neither DisconnectCustomKeyStore nor another key store, and is given up.
func TestDisconnectEndsAnAttempt(t *testing.T) {
	e := newEnv(t)
	slow, began := e.keyStore(proxyBody()), make(chan struct{})
	e.stores.connect = func(ctx context.Context) error { close(began); <-ctx.Done(); return ctx.Err() }
	defer e.running()()
	e.ok("ConnectCustomKeyStore", obj("CustomKeyStoreId", slow), &noMembers{})
	<-began
	e.stores.mu.Lock()
	e.stores.connect = nil
	e.stores.mu.Unlock()
	other := e.keyStore(proxyBody())
	e.ok("ConnectCustomKeyStore", obj("CustomKeyStoreId", other), &noMembers{})
	e.until(other, store.Connected)
	e.storeState(slow, store.Connecting, "")
	e.ok("DisconnectCustomKeyStore", obj("CustomKeyStoreId", slow), &noMembers{})
	e.storeState(slow, store.Disconnected, "")
	e.ok("ConnectCustomKeyStore", obj("CustomKeyStoreId", slow), &noMembers{})
	e.until(slow, store.Connected)
}

// Who is told that a key store is disconnected, or connected, finds it so, whoever else does what to it.
func TestConnectionsAtOnce(t *testing.T) {
	e := newEnv(t)
	stop := e.running()
	ids := []string{e.keyStore(proxyBody()), e.keyStore(clusterBody())}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 12 {
				id := ids[(g+i)%2]
				op := []string{"ConnectCustomKeyStore", "DisconnectCustomKeyStore", "UpdateCustomKeyStore"}[(g+i)%3]
				resp := e.call(op, obj("CustomKeyStoreId", id, "NewCustomKeyStoreName", fmt.Sprint("name ", id, g, i)))
				if resp.Code != kmsapi.OK && resp.Code != kmsapi.CustomKeyStoreInvalidState {
					t.Errorf("%s: %s", op, resp.Body)
				}
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		e.call("DisconnectCustomKeyStore", obj("CustomKeyStoreId", id))
		e.until(id, store.Disconnected)
		n := store.KeyStoreName{Region: e.region, Account: e.account, ID: id}
		if e.stores.Connected(n) {
			t.Error("a key store that is disconnected can be used")
		}
		e.ok("ConnectCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
		e.until(id, store.Connected)
		if !e.stores.Connected(n) {
			t.Error("a key store that is connected cannot be used")
		}
	}
	stop()
	if len(e.connections.turns) != 0 {
		t.Errorf("%d turns are left", len(e.connections.turns))
	}
}

// A turn that ends has what was asked for meanwhile looked at, and writes nothing where another process was faster.
func TestTurns(t *testing.T) {
	e := newEnv(t)
	id := e.keyStore(proxyBody())
	n := store.KeyStoreName{Region: e.region, Account: e.account, ID: id}
	if e.connections.begin(n, nil) != nil {
		t.Fatal("somebody has the turn")
	}
	e.ok("ConnectCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
	<-e.connections.wanted
	e.turns()
	e.storeState(id, store.Connecting, "")
	e.connections.finish(n)
	select {
	case <-e.connections.wanted:
	default:
		t.Error("nobody looks at what was asked for")
	}
	e.stores.connect = func(context.Context) error { e.forceStore(id, store.Disconnected); return nil }
	e.turns()
	e.storeState(id, store.Disconnected, "")
	if e.stores.Connected(n) {
		t.Error("the connection is there")
	}
}

// What a process left under way, the next one's start goes on with; one that ends lets go of what it was at.
func TestConnectionsAcrossRestarts(t *testing.T) {
	e := newEnv(t)
	connecting, disconnecting, began := e.keyStore(proxyBody()), e.keyStore(proxyBody()), make(chan struct{})
	e.stores.connect = func(ctx context.Context) error { close(began); <-ctx.Done(); return ctx.Err() }
	stop := e.running()
	e.ok("ConnectCustomKeyStore", obj("CustomKeyStoreId", connecting), &noMembers{})
	<-began
	stop()
	e.storeState(connecting, store.Connecting, "")
	e.forceStore(disconnecting, store.Disconnecting)
	e.stores.set(disconnecting, true)

	again := newEnvOf(t, shared, e.region, e.account, e.clock)
	again.stores.set(disconnecting, true)
	defer again.running()()
	again.until(connecting, store.Connected)
	again.until(disconnecting, store.Disconnected)
	if heard := again.stores.heard(); !uuidForm.MatchString(heard[strings.LastIndexByte(heard, ' ')+1:]) {
		t.Errorf("asked %q", heard)
	}
	if again.stores.Connected(store.KeyStoreName{ID: disconnecting}) {
		t.Error("it was not disconnected")
	}
}

// Every operation on key stores asks for its own permission, for all resources.
func TestKeyStorePermissions(t *testing.T) {
	e := newEnv(t)
	id := e.keyStore(clusterBody())
	for _, c := range []struct{ op, body string }{
		{"CreateCustomKeyStore", clusterBody()}, {"DescribeCustomKeyStores", "{}"}, {"UpdateCustomKeyStore", obj("CustomKeyStoreId", id, "NewCustomKeyStoreName", "new")},
		{"ConnectCustomKeyStore", obj("CustomKeyStoreId", id)}, {"DisconnectCustomKeyStore", obj("CustomKeyStoreId", id)}, {"DeleteCustomKeyStore", obj("CustomKeyStoreId", id)},
	} {
		denied := e.user("denied", statement("Allow", "*", anyResource), statement("Deny", "kms:"+c.op, anyResource))
		denied.fails(c.op, c.body, kmsapi.AccessDenied, "User: "+denied.who.ARN+" is not authorized to perform: kms:"+c.op+" on resource: * with an explicit deny in an identity-based policy")
		nothing := e.user("nothing")
		nothing.fails(c.op, strings.Replace(c.body, id, "cks-00000000000000000", 1), kmsapi.AccessDenied, "User: "+nothing.who.ARN+" is not authorized to perform: kms:"+c.op+
			" on resource: * because no identity-based policy allows the kms:"+c.op+" action")
		only := e.user("only", statement("Allow", "kms:"+c.op, anyResource))
		if resp := only.call(c.op, c.body); resp.Code != kmsapi.OK {
			t.Errorf("%s with its permission alone: %s", c.op, resp.Body)
		}
	}
}

// What is refused after the secret was taken from the request leaves none.
func TestRefusedKeyStoreHasNoSecret(t *testing.T) {
	text := func(s string) *string { return &s }
	in := createCustomKeyStoreIn{CustomKeyStoreName: text("x"), CustomKeyStoreType: text(store.ExternalKeyStore)}
	in.proxyIn = proxyIn{
		XksProxyConnectivity: text(store.PublicEndpoint), XksProxyUriEndpoint: text("https://nohost"), XksProxyUriPath: text("/kms/xks/v1"),
		XksProxyAuthenticationCredential: &credentialIn{AccessKeyId: text("ABCDEFGHIJKLMNOPQRST"), RawSecretAccessKey: text("secret")},
	}
	k, err := in.record(1, time.Time{})
	if err == nil || k == nil {
		t.Fatalf("%v, %v", k, err)
	}
	if k.Secret.Len() > 0 {
		t.Error("the secret is still there")
	}
}
