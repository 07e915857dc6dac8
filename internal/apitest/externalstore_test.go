package apitest

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"

	"github.com/keyplane/keyplane/internal/node"
)

// onBusyMachine has an SDK client ask again where a proxy, that of this machine, did not answer within the quarter of a second of the API.
func onBusyMachine(o *kms.Options) {
	o.Retryer = retry.NewStandard(func(so *retry.StandardOptions) {
		so.MaxAttempts, so.MaxBackoff, so.RateLimiter = 100, 300*time.Millisecond, ratelimit.None
		so.Retryables = []retry.IsErrorRetryable{retry.IsErrorRetryableFunc(func(err error) aws.Ternary {
			var e smithy.APIError
			return aws.BoolTernary(errors.As(err, &e) && (strings.Contains(e.ErrorMessage(), "did not respond") || strings.Contains(e.ErrorMessage(), "cannot communicate with the external key store proxy.") ||
				strings.Contains(e.ErrorMessage(), "very high request rate")))
		})}
	})
}

// proxied is the input that creates an external key store for an XKSProxy.
func proxied(name string, edit ...func(*kms.CreateCustomKeyStoreInput)) *kms.CreateCustomKeyStoreInput {
	in := &kms.CreateCustomKeyStoreInput{
		CustomKeyStoreName: &name, CustomKeyStoreType: types.CustomKeyStoreTypeExternalKeyStore, XksProxyConnectivity: types.XksProxyConnectivityTypePublicEndpoint,
		XksProxyUriEndpoint: str(XKSEndpoint), XksProxyUriPath: str(XKSPath), XksProxyAuthenticationCredential: credential(XKSSecret),
	}
	for _, e := range edit {
		e(in)
	}
	return in
}

func credential(secret string) *types.XksProxyAuthenticationCredentialType {
	return &types.XksProxyAuthenticationCredentialType{AccessKeyId: str(XKSAccessKeyID), RawSecretAccessKey: &secret}
}

// connectProxy is connect on a busy machine.
func connectProxy(t *testing.T, c *kms.Client, id string) types.ConnectionErrorCodeType {
	t.Helper()
	for n := 0; ; n++ {
		code := connect(t, c, id)
		if code != types.ConnectionErrorCodeTypeXksProxyTimedOut && code != types.ConnectionErrorCodeTypeXksProxyNotReachable || n == 20 {
			return code
		}
		disconnect(t, c, id)
	}
}

// TestExternalKeyStore: an external key store from its creation to its deletion, with every refusal on the way. Its proxy is another keyplane.
func TestExternalKeyStore(t *testing.T) {
	t.Parallel()
	p := StartXKSProxy(t)
	external := p.Offer(t, "external-1")
	p.Offer(t, "external-2")
	bobs := p.Offer(t, "bobs", func(k *node.XKSKeyConfig) { k.Principals = []string{"arn:aws:iam::*:user/Bob"} })
	clock := NewClock(time.Now())
	s := Start(t, p.Reached, WithClock(clock), func(c *node.Config) { c.Quotas = "off" })
	c, keys, ctx := s.KMS(t, onBusyMachine), p.KMS(t), t.Context()

	// Creation asks the proxy.
	create := func(edit ...func(*kms.CreateCustomKeyStoreInput)) error {
		_, err := c.CreateCustomKeyStore(ctx, proxied("elsewhere", edit...))
		return err
	}
	refusedAs[*types.XksProxyIncorrectAuthenticationCredentialException](t, create(func(in *kms.CreateCustomKeyStoreInput) {
		in.XksProxyAuthenticationCredential = credential("x" + XKSSecret)
	}))
	refusedAs[*types.XksProxyInvalidConfigurationException](t, create(func(in *kms.CreateCustomKeyStoreInput) { in.XksProxyUriPath = str("/team-b/kms/xks/v1") }))
	_, err := s.KMS(t).CreateCustomKeyStore(ctx, proxied("nowhere", func(in *kms.CreateCustomKeyStoreInput) { in.XksProxyUriEndpoint = str("https://proxy.nowhere.invalid") }))
	refusedAs[*types.XksProxyUriUnreachableException](t, err)
	for what, edit := range map[string]func(*kms.CreateCustomKeyStoreInput){
		"no path":       func(in *kms.CreateCustomKeyStoreInput) { in.XksProxyUriPath = nil },
		"no credential": func(in *kms.CreateCustomKeyStoreInput) { in.XksProxyAuthenticationCredential = nil },
		"a port":        func(in *kms.CreateCustomKeyStoreInput) { in.XksProxyUriEndpoint = str(XKSEndpoint + ":8443") },
		"a cluster":     func(in *kms.CreateCustomKeyStoreInput) { in.CloudHsmClusterId = str(ClusterID) },
	} {
		var e smithy.APIError
		if err := create(edit); !errors.As(err, &e) || e.ErrorCode() != "ValidationException" {
			t.Errorf("%s: %v", what, err)
		}
	}
	id := createStore(t, c, proxied("ours"))
	refusedAs[*types.CustomKeyStoreNameInUseException](t, create(func(in *kms.CreateCustomKeyStoreInput) { in.CustomKeyStoreName = str("ours") }))
	refusedAs[*types.XksProxyUriInUseException](t, create())
	made := ofStore(t, c, id)
	equal(t, "ConnectionState", made.ConnectionState, types.ConnectionStateTypeDisconnected)
	equal(t, "UriEndpoint and UriPath", *made.XksProxyConfiguration.UriEndpoint+*made.XksProxyConfiguration.UriPath, XKSEndpoint+XKSPath)
	equal(t, "AccessKeyId", *made.XksProxyConfiguration.AccessKeyId, XKSAccessKeyID)
	createKey := func(external string) (*types.KeyMetadata, error) {
		out, err := c.CreateKey(ctx, &kms.CreateKeyInput{CustomKeyStoreId: &id, Origin: types.OriginTypeExternalKeyStore, XksKeyId: &external})
		if err != nil {
			return nil, err
		}
		return out.KeyMetadata, nil
	}
	_, err = createKey("external-1")
	refusedAs[*types.CustomKeyStoreInvalidStateException](t, err)

	// Keys.
	equal(t, "ConnectionErrorCode", connectProxy(t, c, id), "")
	_, err = createKey("nobodys")
	refusedAs[*types.XksKeyNotFoundException](t, err)
	_, err = createKey("bobs")
	refusedAs[*types.KMSInvalidStateException](t, err)
	_, err = createKey("..")
	refusedWith(t, err, "ValidationException")
	key := must(createKey("external-1"))(t)
	equal(t, "Origin", key.Origin, types.OriginTypeExternalKeyStore)
	equal(t, "CustomKeyStoreId", aws.ToString(key.CustomKeyStoreId), id)
	equal(t, "XksKeyConfiguration", aws.ToString(key.XksKeyConfiguration.Id), "external-1")
	_, err = createKey("external-1")
	refusedAs[*types.XksKeyAlreadyInUseException](t, err)
	must(keys.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &bobs}))(t)
	ordinary := newKey(t, c)
	blob := roundTrips(t, c, key.KeyId, ordinary.KeyId, "KMSInvalidStateException")
	notInStores(t, c, &id, key.KeyId, types.OriginTypeExternalKeyStore)
	_, err = c.GenerateRandom(ctx, &kms.GenerateRandomInput{CustomKeyStoreId: &id, NumberOfBytes: aws.Int32(8)})
	refusedAs[*types.UnsupportedOperationException](t, err)

	// The external key's state, and the KMS key's.
	must(keys.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &external}))(t)
	_, err = c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("p")})
	if e := refusedAs[*types.KMSInvalidStateException](t, err); e != nil && !strings.Contains(e.ErrorMessage(), "not enabled in the external HSM") {
		t.Errorf("a disabled external key: %v", err)
	}
	equal(t, "KeyState", state(t, c, key.KeyId), types.KeyStateEnabled)
	must(keys.EnableKey(ctx, &kms.EnableKeyInput{KeyId: &external}))(t)
	opens(t, c, blob)
	must(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key.KeyId}))(t)
	_, err = c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("p")})
	refusedAs[*types.DisabledException](t, err)
	must(c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: key.KeyId}))(t)
	rotated := must(keys.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &external}))(t) // rotation is the external key's
	equal(t, "the rotated key", *rotated.KeyId, external)
	p.Work(t)
	opens(t, c, blob)

	// While it is connected its name, path and credential can be changed, to what the proxy takes.
	update := func(in *kms.UpdateCustomKeyStoreInput) error {
		in.CustomKeyStoreId = &id
		_, err := c.UpdateCustomKeyStore(ctx, in)
		return err
	}
	refusedAs[*types.XksProxyIncorrectAuthenticationCredentialException](t, update(&kms.UpdateCustomKeyStoreInput{XksProxyAuthenticationCredential: credential("x" + XKSSecret)}))
	refusedAs[*types.XksProxyInvalidConfigurationException](t, update(&kms.UpdateCustomKeyStoreInput{XksProxyUriPath: str("/team-b/kms/xks/v1")}))
	refusedAs[*types.CustomKeyStoreInvalidStateException](t, update(&kms.UpdateCustomKeyStoreInput{XksProxyUriEndpoint: str("https://other.keyplane.example")}))
	opens(t, c, blob)
	if err := update(&kms.UpdateCustomKeyStoreInput{NewCustomKeyStoreName: str("renamed"), XksProxyAuthenticationCredential: credential(XKSSecret)}); err != nil {
		t.Error(err)
	}
	opens(t, c, blob)

	// Disconnected, connected again, and in a new process, which does not ask first.
	disconnect(t, c, id)
	unavailable(t, c, key.KeyId, blob)
	equal(t, "ConnectionErrorCode", connectProxy(t, c, id), "")
	opens(t, c, blob)
	s.Restart(t)
	c = s.KMS(t, onBusyMachine)
	equal(t, "ConnectionState", ofStore(t, c, id).ConnectionState, types.ConnectionStateTypeConnected)
	equal(t, "KeyState", state(t, c, key.KeyId), types.KeyStateEnabled)
	opens(t, c, blob)

	// Deletion.
	_, err = c.DeleteCustomKeyStore(ctx, &kms.DeleteCustomKeyStoreInput{CustomKeyStoreId: &id})
	refusedAs[*types.CustomKeyStoreInvalidStateException](t, err)
	disconnect(t, c, id)
	_, err = c.DeleteCustomKeyStore(ctx, &kms.DeleteCustomKeyStoreInput{CustomKeyStoreId: &id})
	refusedAs[*types.CustomKeyStoreHasCMKsException](t, err)
	must(c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId, PendingWindowInDays: aws.Int32(7)}))(t)
	clock.Advance(8 * 24 * time.Hour)
	s.Work(t)
	must(c.DeleteCustomKeyStore(ctx, &kms.DeleteCustomKeyStoreInput{CustomKeyStoreId: &id}))(t)
	equal(t, "the external key's state", state(t, keys, &external), types.KeyStateEnabled)
	for _, n := range []uint64{s.Stats().Panics, p.Stats().Panics} {
		equal(t, "panics", n, 0)
	}
}
