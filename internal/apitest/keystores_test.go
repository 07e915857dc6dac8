package apitest

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// The key stores of these tests have a proxy that is in a VPC, and nowhere: it is not asked before they are connected, and does not answer then.
const (
	vpcService  = "com.amazonaws.vpce.us-east-1.vpce-svc-0123456789abcdef0"
	nowhere     = "https://proxy.nowhere.invalid"
	proxyKeyID  = "ABCDEFGHIJKLMNOPQRST"
	proxySecret = "bm90IGEgc2VjcmV0LCBidXQgbG9uZyBlbm91Z2ggdG8gYmUgb25l"
)

// testKeyStores is the life of a custom key store that does not come up, with AWS's SDK.
func testKeyStores(t *testing.T, w *world) {
	c, ctx := w.sdk(t), t.Context()
	made := must(c.CreateCustomKeyStore(ctx, &kms.CreateCustomKeyStoreInput{
		CustomKeyStoreName: aws.String("sdk"), CustomKeyStoreType: types.CustomKeyStoreTypeExternalKeyStore, XksProxyConnectivity: types.XksProxyConnectivityTypeVpcEndpointService,
		XksProxyUriEndpoint: aws.String(nowhere), XksProxyUriPath: aws.String("/sdk/kms/xks/v1"), XksProxyVpcEndpointServiceName: aws.String(vpcService),
		XksProxyAuthenticationCredential: &types.XksProxyAuthenticationCredentialType{AccessKeyId: aws.String(proxyKeyID), RawSecretAccessKey: aws.String(proxySecret)},
	}))(t)
	id := made.CustomKeyStoreId
	state := func() (types.ConnectionStateType, types.ConnectionErrorCodeType) {
		t.Helper()
		out := must(c.DescribeCustomKeyStores(ctx, &kms.DescribeCustomKeyStoresInput{CustomKeyStoreId: id}))(t)
		k := out.CustomKeyStores[0]
		if p := k.XksProxyConfiguration; *p.UriEndpoint != nowhere || *p.AccessKeyId != proxyKeyID || *p.VpcEndpointServiceName != vpcService || *p.VpcEndpointServiceOwner != Account {
			t.Errorf("described %+v", p)
		}
		return k.ConnectionState, k.ConnectionErrorCode
	}
	_, err := c.CreateKey(ctx, &kms.CreateKeyInput{Origin: types.OriginTypeExternalKeyStore, CustomKeyStoreId: id, XksKeyId: aws.String("key")})
	refusedAs[*types.CustomKeyStoreInvalidStateException](t, err)
	must(c.ConnectCustomKeyStore(ctx, &kms.ConnectCustomKeyStoreInput{CustomKeyStoreId: id}))(t)
	is, code := state()
	for end := time.Now().Add(15 * time.Second); is == types.ConnectionStateTypeConnecting && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		is, code = state()
	}
	equal(t, "ConnectionState", is, types.ConnectionStateTypeFailed)
	if !strings.HasPrefix(string(code), "XKS_PROXY_") {
		t.Errorf("ConnectionErrorCode %s", code)
	}
	_, err = c.ConnectCustomKeyStore(ctx, &kms.ConnectCustomKeyStoreInput{CustomKeyStoreId: id})
	refusedAs[*types.CustomKeyStoreInvalidStateException](t, err)
	must(c.DisconnectCustomKeyStore(ctx, &kms.DisconnectCustomKeyStoreInput{CustomKeyStoreId: id}))(t)
	is, _ = state()
	equal(t, "ConnectionState", is, types.ConnectionStateTypeDisconnected)
	must(c.UpdateCustomKeyStore(ctx, &kms.UpdateCustomKeyStoreInput{CustomKeyStoreId: id, NewCustomKeyStoreName: aws.String("renamed")}))(t)
	_, err = c.DescribeCustomKeyStores(ctx, &kms.DescribeCustomKeyStoresInput{CustomKeyStoreName: aws.String("sdk")})
	refusedAs[*types.CustomKeyStoreNotFoundException](t, err)
	must(c.DeleteCustomKeyStore(ctx, &kms.DeleteCustomKeyStoreInput{CustomKeyStoreId: id}))(t)
	_, err = c.DeleteCustomKeyStore(ctx, &kms.DeleteCustomKeyStoreInput{CustomKeyStoreId: id})
	refusedAs[*types.CustomKeyStoreNotFoundException](t, err)
}

func cliKeyStores(t *testing.T, a *awsCLI) {
	var made struct{ CustomKeyStoreId string }
	a.ok(t, &made, "create-custom-key-store", "--custom-key-store-name", "cli", "--custom-key-store-type", "EXTERNAL_KEY_STORE", "--xks-proxy-connectivity", "VPC_ENDPOINT_SERVICE",
		"--xks-proxy-uri-endpoint", nowhere, "--xks-proxy-uri-path", "/kms/xks/v1", "--xks-proxy-vpc-endpoint-service-name", vpcService,
		"--xks-proxy-authentication-credential", "AccessKeyId="+proxyKeyID+",RawSecretAccessKey="+proxySecret)
	of := []string{"--custom-key-store-id", made.CustomKeyStoreId}
	a.ok(t, nil, append([]string{"update-custom-key-store", "--new-custom-key-store-name", "renamed"}, of...)...)
	a.ok(t, nil, append([]string{"connect-custom-key-store"}, of...)...)
	a.ok(t, nil, append([]string{"disconnect-custom-key-store"}, of...)...)
	var list struct {
		CustomKeyStores []struct{ CustomKeyStoreName, ConnectionState, CreationDate string }
	}
	a.ok(t, &list, "describe-custom-key-stores", "--page-size", "1")
	if len(list.CustomKeyStores) != 1 || list.CustomKeyStores[0].CustomKeyStoreName != "renamed" || list.CustomKeyStores[0].ConnectionState != "DISCONNECTED" || list.CustomKeyStores[0].CreationDate == "" {
		t.Errorf("describe-custom-key-stores: %+v", list)
	}
	a.fails(t, "CustomKeyStoreNameInUseException", "create-custom-key-store", "--custom-key-store-name", "renamed", "--custom-key-store-type", "EXTERNAL_KEY_STORE", "--xks-proxy-connectivity", "PUBLIC_ENDPOINT",
		"--xks-proxy-uri-endpoint", "https://public.nowhere.invalid", "--xks-proxy-uri-path", "/kms/xks/v1", "--xks-proxy-authentication-credential", "AccessKeyId="+proxyKeyID+",RawSecretAccessKey="+proxySecret)
	a.ok(t, nil, append([]string{"delete-custom-key-store"}, of...)...)
	a.fails(t, "CustomKeyStoreNotFoundException", append([]string{"delete-custom-key-store"}, of...)...)
}

// TestKeyStoreFailpoints kills keyplane with SIGKILL on the way of a key store's connection from one state to the next: the next process goes on.
func TestKeyStoreFailpoints(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds the command once more")
	}
	t.Parallel()
	program, tried := build(t, "failpoints"), 0
	for _, name := range failpoints(t) {
		if !strings.HasPrefix(name, "keystore.") {
			continue
		}
		tried++
		dir := filepath.Join(t.TempDir(), "data")
		p := launch(t, program, []string{"KEYPLANE_FAILPOINT=" + name}, dir)
		p.serve(t)
		var made struct{ CustomKeyStoreId string }
		p.Do(t, "CreateCustomKeyStore", marshal(t, map[string]any{
			"CustomKeyStoreName": name, "CustomKeyStoreType": "EXTERNAL_KEY_STORE", "XksProxyConnectivity": "VPC_ENDPOINT_SERVICE", "XksProxyUriEndpoint": nowhere, "XksProxyUriPath": "/kms/xks/v1",
			"XksProxyVpcEndpointServiceName": vpcService, "XksProxyAuthenticationCredential": map[string]string{"AccessKeyId": proxyKeyID, "RawSecretAccessKey": proxySecret},
		})).Members(t, &made)
		of := marshal(t, made)
		state := func() string {
			t.Helper()
			var list struct {
				CustomKeyStores []struct{ ConnectionState string }
			}
			p.Do(t, "DescribeCustomKeyStores", of).Members(t, &list)
			return list.CustomKeyStores[0].ConnectionState
		}
		until := func(want string) {
			t.Helper()
			for end := time.Now().Add(processStartMax); state() != want; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%s: the key store is %s, want %s", name, state(), want)
				}
			}
		}
		c := &Client{e: p.Endpoint}
		_, _ = c.Try("ConnectCustomKeyStore", of) // of keystore.connecting nobody has the reply
		want := "FAILED"
		if name == "keystore.disconnecting" {
			until(want)
			if r, _ := c.Try("DisconnectCustomKeyStore", of); r != nil {
				t.Errorf("%s: the request was answered: %d %s", name, r.Status, r.Body)
			}
			want = "DISCONNECTED"
		}
		c.close()
		p.killed(t)
		p = launch(t, program, nil, dir)
		p.serve(t)
		until(want)
		p.Kill(t)
	}
	if tried != 3 {
		t.Errorf("%d failpoints were tried", tried)
	}
}
