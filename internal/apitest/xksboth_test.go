package apitest

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// TestXKSBothSides: one server's KMS with an external key store, whose proxy is another server: keys of the first encrypt twice, and not without the second.
func TestXKSBothSides(t *testing.T) {
	proxy := StartXKSProxy(t)
	arn := proxy.Offer(t, "orders")
	server := Start(t, proxy.Reached)
	client, ctx := server.KMS(t), context.Background()
	store, err := client.CreateCustomKeyStore(ctx, &kms.CreateCustomKeyStoreInput{
		CustomKeyStoreName: aws.String("elsewhere"), CustomKeyStoreType: types.CustomKeyStoreTypeExternalKeyStore, XksProxyConnectivity: types.XksProxyConnectivityTypePublicEndpoint,
		XksProxyUriEndpoint: aws.String(XKSEndpoint), XksProxyUriPath: aws.String(XKSPath),
		XksProxyAuthenticationCredential: &types.XksProxyAuthenticationCredentialType{AccessKeyId: aws.String(XKSAccessKeyID), RawSecretAccessKey: aws.String(XKSSecret)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.ConnectCustomKeyStore(ctx, &kms.ConnectCustomKeyStoreInput{CustomKeyStoreId: store.CustomKeyStoreId}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // connecting is asynchronous
		out, err := client.DescribeCustomKeyStores(ctx, &kms.DescribeCustomKeyStoresInput{CustomKeyStoreId: store.CustomKeyStoreId})
		if err != nil {
			t.Fatal(err)
		}
		state := out.CustomKeyStores[0].ConnectionState
		if state == types.ConnectionStateTypeConnected {
			break
		}
		if state == types.ConnectionStateTypeFailed || time.Now().After(deadline) {
			t.Fatalf("%s: %s", state, out.CustomKeyStores[0].ConnectionErrorCode)
		}
	}
	// A proxy that is late on a busy machine is what the API's users try again.
	retry := func(f func() error) {
		t.Helper()
		for n := 0; ; n++ {
			err := f()
			if err == nil {
				return
			}
			if n == 20 {
				t.Fatal(err)
			}
		}
	}
	var key *kms.CreateKeyOutput
	retry(func() (err error) {
		key, err = client.CreateKey(ctx, &kms.CreateKeyInput{Origin: types.OriginTypeExternalKeyStore, CustomKeyStoreId: store.CustomKeyStoreId, XksKeyId: aws.String("orders")})
		return err
	})
	id := key.KeyMetadata.KeyId
	pairs := map[string]string{"tenant": "t-1"}
	var sealed *kms.EncryptOutput
	retry(func() (err error) {
		sealed, err = client.Encrypt(ctx, &kms.EncryptInput{KeyId: id, Plaintext: []byte("hello"), EncryptionContext: pairs})
		return err
	})
	var data *kms.GenerateDataKeyOutput
	retry(func() (err error) {
		data, err = client.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: id, KeySpec: types.DataKeySpecAes256, EncryptionContext: pairs})
		return err
	})
	for name, c := range map[string]struct{ blob, want []byte }{"Encrypt": {sealed.CiphertextBlob, []byte("hello")}, "GenerateDataKey": {data.CiphertextBlob, data.Plaintext}} {
		retry(func() error {
			out, err := client.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: c.blob, EncryptionContext: pairs})
			if err == nil && !bytes.Equal(out.Plaintext, c.want) {
				t.Errorf("%s: decrypted to %d other bytes", name, len(out.Plaintext))
			}
			return err
		})
	}
	if _, err := client.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob}); err == nil {
		t.Error("it decrypts without its encryption context")
	}
	// The external key is switched off by its owner: nothing decrypts, and the KMS key itself stays enabled.
	if _, err := proxy.KMS(t).DisableKey(ctx, &kms.DisableKeyInput{KeyId: &arn}); err != nil {
		t.Fatal(err)
	}
	var state *types.KMSInvalidStateException
	if _, err := client.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob, EncryptionContext: pairs}); !errors.As(err, &state) {
		t.Errorf("the external key is disabled: %v", err)
	}
	if out, err := client.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: id}); err != nil || out.KeyMetadata.KeyState != types.KeyStateEnabled {
		t.Errorf("the KMS key: %v %v", out, err)
	}
}
