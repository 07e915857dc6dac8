package apitest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
	"github.com/keyplane/keyplane/internal/node"
)

// createStore makes a key store and returns its ID.
func createStore(t *testing.T, c *kms.Client, in *kms.CreateCustomKeyStoreInput) string {
	t.Helper()
	return *must(c.CreateCustomKeyStore(t.Context(), in))(t).CustomKeyStoreId
}

// ofStore is the key store as DescribeCustomKeyStores has it.
func ofStore(t *testing.T, c *kms.Client, id string) types.CustomKeyStoresListEntry {
	t.Helper()
	out := must(c.DescribeCustomKeyStores(t.Context(), &kms.DescribeCustomKeyStoresInput{CustomKeyStoreId: &id}))(t)
	if len(out.CustomKeyStores) != 1 {
		t.Fatalf("%d key stores are %s", len(out.CustomKeyStores), id)
	}
	return out.CustomKeyStores[0]
}

// connect connects a key store and waits for what comes of it: the ConnectionErrorCode, "" if it is connected.
func connect(t *testing.T, c *kms.Client, id string) types.ConnectionErrorCodeType {
	t.Helper()
	must(c.ConnectCustomKeyStore(t.Context(), &kms.ConnectCustomKeyStoreInput{CustomKeyStoreId: &id}))(t)
	var s types.CustomKeyStoresListEntry
	eventually(t, "the key store is connected, or not", func() bool {
		s = ofStore(t, c, id)
		return s.ConnectionState == types.ConnectionStateTypeConnected || s.ConnectionState == types.ConnectionStateTypeFailed
	})
	equal(t, "the state", s.ConnectionState == types.ConnectionStateTypeConnected, s.ConnectionErrorCode == "")
	return s.ConnectionErrorCode
}

// disconnect disconnects a key store; when that is answered its keys cannot be used.
func disconnect(t *testing.T, c *kms.Client, id string) {
	t.Helper()
	must(c.DisconnectCustomKeyStore(t.Context(), &kms.DisconnectCustomKeyStoreInput{CustomKeyStoreId: &id}))(t)
}

// roundTrips uses a key in a key store with every operation that it has; other is a key of another kind. wrong is the exception for another encryption context.
func roundTrips(t *testing.T, c *kms.Client, key, other *string, wrong string) (blob []byte) {
	t.Helper()
	ctx := t.Context()
	bound := map[string]string{"purpose": "test"}
	sealed := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: key, Plaintext: []byte("in a key store"), EncryptionContext: bound}))(t)
	opened := must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob, EncryptionContext: bound}))(t)
	equal(t, "Plaintext", string(opened.Plaintext), "in a key store")
	_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob})
	refusedWith(t, err, wrong)
	data := must(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key, KeySpec: types.DataKeySpecAes256}))(t)
	opened = must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: data.CiphertextBlob, KeyId: key}))(t)
	equal(t, "the data key", string(opened.Plaintext), string(data.Plaintext))
	without := must(c.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: key, NumberOfBytes: aws.Int32(48)}))(t)
	opened = must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: without.CiphertextBlob}))(t)
	equal(t, "the length of the data key", len(opened.Plaintext), 48)
	out := must(c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: sealed.CiphertextBlob, SourceEncryptionContext: bound, DestinationKeyId: other}))(t)
	back := must(c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: out.CiphertextBlob, DestinationKeyId: key, DestinationEncryptionContext: bound}))(t)
	opened = must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: back.CiphertextBlob, EncryptionContext: bound}))(t)
	equal(t, "Plaintext", string(opened.Plaintext), "in a key store")
	_, err = c.Encrypt(ctx, &kms.EncryptInput{KeyId: key, Plaintext: []byte("p"), DryRun: aws.Bool(true)})
	refusedAs[*types.DryRunOperationException](t, err)
	return sealed.CiphertextBlob
}

// notInStores are what no key in a custom key store does.
func notInStores(t *testing.T, c *kms.Client, store, key *string, origin types.OriginType) {
	t.Helper()
	ctx := t.Context()
	refused := func(what string, err error) {
		t.Helper()
		if e := (*types.UnsupportedOperationException)(nil); !errors.As(err, &e) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := c.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: key})
	refused("EnableKeyRotation", err)
	_, err = c.DisableKeyRotation(ctx, &kms.DisableKeyRotationInput{KeyId: key})
	refused("DisableKeyRotation", err)
	_, err = c.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: key})
	refused("GetKeyRotationStatus", err)
	_, err = c.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: key})
	refused("RotateKeyOnDemand", err)
	_, err = c.GetParametersForImport(ctx, &kms.GetParametersForImportInput{
		KeyId: key, WrappingAlgorithm: types.AlgorithmSpecRsaesOaepSha256, WrappingKeySpec: types.WrappingKeySpecRsa3072,
	})
	refused("GetParametersForImport", err)
	_, err = c.DeleteImportedKeyMaterial(ctx, &kms.DeleteImportedKeyMaterialInput{KeyId: key})
	refused("DeleteImportedKeyMaterial", err)
	_, err = c.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: key, KeyPairSpec: types.DataKeyPairSpecEccNistP256})
	refused("GenerateDataKeyPair", err)
	_, err = c.GenerateDataKeyPairWithoutPlaintext(ctx, &kms.GenerateDataKeyPairWithoutPlaintextInput{KeyId: key, KeyPairSpec: types.DataKeyPairSpecEccNistP256})
	refused("GenerateDataKeyPairWithoutPlaintext", err)
	make := func(edit func(*kms.CreateKeyInput)) error {
		in := &kms.CreateKeyInput{CustomKeyStoreId: store, Origin: origin}
		if origin == types.OriginTypeExternalKeyStore {
			in.XksKeyId = str("another")
		}
		edit(in)
		_, err := c.CreateKey(ctx, in)
		return err
	}
	refused("an RSA key", make(func(in *kms.CreateKeyInput) {
		in.KeySpec, in.KeyUsage = types.KeySpecRsa2048, types.KeyUsageTypeEncryptDecrypt
	}))
	refused("an HMAC key", make(func(in *kms.CreateKeyInput) {
		in.KeySpec, in.KeyUsage = types.KeySpecHmac256, types.KeyUsageTypeGenerateVerifyMac
	}))
	refused("a multi-Region key", make(func(in *kms.CreateKeyInput) { in.MultiRegion = aws.Bool(true) }))
	other := types.OriginTypeExternalKeyStore
	if origin == other {
		other = types.OriginTypeAwsCloudhsm
	}
	if err := make(func(in *kms.CreateKeyInput) {
		in.Origin, in.XksKeyId = other, nil
		if other == types.OriginTypeExternalKeyStore {
			in.XksKeyId = str("another")
		}
	}); err == nil {
		t.Error("a key of the other kind of key store was made")
	}
	refusedWith(t, make(func(in *kms.CreateKeyInput) { in.Origin, in.XksKeyId = types.OriginTypeAwsKms, nil }), "ValidationException")
	refusedWith(t, make(func(in *kms.CreateKeyInput) { in.CustomKeyStoreId = nil }), "ValidationException")
	_, err = c.CreateKey(ctx, &kms.CreateKeyInput{CustomKeyStoreId: str("cks-00000000000000000"), Origin: origin, XksKeyId: xksKeyOf(origin)})
	refusedAs[*types.CustomKeyStoreNotFoundException](t, err)
}

func xksKeyOf(origin types.OriginType) *string {
	if origin == types.OriginTypeExternalKeyStore {
		return str("another")
	}
	return nil
}

// unavailable fails the test unless a key cannot be used because of its key store, which says so.
func unavailable(t *testing.T, c *kms.Client, key *string, blob []byte) {
	t.Helper()
	equal(t, "KeyState", state(t, c, key), types.KeyStateUnavailable)
	_, err := c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: key, Plaintext: []byte("p")})
	refusedAs[*types.KMSInvalidStateException](t, err)
	_, err = c.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: map[string]string{"purpose": "test"}})
	refusedAs[*types.KMSInvalidStateException](t, err)
	_, err = c.GenerateDataKey(t.Context(), &kms.GenerateDataKeyInput{KeyId: key, KeySpec: types.DataKeySpecAes256})
	refusedAs[*types.KMSInvalidStateException](t, err)
}

func opens(t *testing.T, c *kms.Client, blob []byte) {
	t.Helper()
	out := must(c.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: map[string]string{"purpose": "test"}}))(t)
	equal(t, "Plaintext", string(out.Plaintext), "in a key store")
}

// impatient is for tests in which HSMs hang: a call is given up after a second. Rates, which a clock that stands still would never let rise again, are not limited.
func impatient(c *node.Config) { c.RoundTimeout, c.Quotas = time.Second, "off" }

// TestCloudHSM: a CloudHSM key store of two SoftHSM tokens and a slow HSM from its creation to its deletion, with every refusal on the way; one HSM is killed and
// brought back under load.
func TestCloudHSM(t *testing.T) {
	cluster := NewHSMCluster(t, 1, 2)
	for _, h := range cluster.Slow[1:] {
		if err := h.Set(slowhsm.Settings{Latency: time.Millisecond}); err != nil {
			t.Fatal(err)
		}
	}
	clock := NewClock(time.Now())
	s := Start(t, cluster.Configured, impatient, WithClock(clock))
	c, ctx := s.KMS(t), t.Context()
	good := func() *kms.CreateCustomKeyStoreInput {
		return &kms.CreateCustomKeyStoreInput{
			CustomKeyStoreName: str("hsms"), CloudHsmClusterId: str(ClusterID), TrustAnchorCertificate: &cluster.Anchor, KeyStorePassword: str("not the password"),
		}
	}

	// Creation.
	refusal := func(edit func(*kms.CreateCustomKeyStoreInput)) error {
		in := good()
		edit(in)
		_, err := c.CreateCustomKeyStore(ctx, in)
		return err
	}
	refusedAs[*types.CloudHsmClusterNotFoundException](t, refusal(func(in *kms.CreateCustomKeyStoreInput) { in.CloudHsmClusterId = str("cluster-77777777777") }))
	refusedAs[*types.IncorrectTrustAnchorException](t, refusal(func(in *kms.CreateCustomKeyStoreInput) { in.TrustAnchorCertificate = str(string(authority(t))) }))
	refusedWith(t, refusal(func(in *kms.CreateCustomKeyStoreInput) { in.KeyStorePassword = nil }), "ValidationException")
	away := func(down bool, hsms ...*slowhsm.HSM) {
		t.Helper()
		for _, h := range hsms {
			if err := h.Set(slowhsm.Settings{Down: down}); err != nil {
				t.Fatal(err)
			}
		}
	}
	away(true, cluster.Slow...)
	refusedAs[*types.CloudHsmClusterInvalidConfigurationException](t, refusal(func(in *kms.CreateCustomKeyStoreInput) { in.KeyStorePassword = str(ClusterPassword) }))
	away(false, cluster.Slow...)
	id := createStore(t, c, good())
	refusedAs[*types.CustomKeyStoreNameInUseException](t, refusal(func(*kms.CreateCustomKeyStoreInput) {}))
	refusedAs[*types.CloudHsmClusterInUseException](t, refusal(func(in *kms.CreateCustomKeyStoreInput) { in.CustomKeyStoreName = str("again") }))
	made := ofStore(t, c, id)
	equal(t, "ConnectionState", made.ConnectionState, types.ConnectionStateTypeDisconnected)
	equal(t, "CloudHsmClusterId", aws.ToString(made.CloudHsmClusterId), ClusterID)
	equal(t, "CustomKeyStoreType", made.CustomKeyStoreType, types.CustomKeyStoreTypeAwsCloudhsm)
	_, err := c.CreateKey(ctx, &kms.CreateKeyInput{CustomKeyStoreId: &id, Origin: types.OriginTypeAwsCloudhsm})
	refusedAs[*types.CustomKeyStoreInvalidStateException](t, err)
	_, err = c.GenerateRandom(ctx, &kms.GenerateRandomInput{CustomKeyStoreId: &id, NumberOfBytes: aws.Int32(8)})
	refusedAs[*types.CustomKeyStoreInvalidStateException](t, err)
	_, err = c.DisconnectCustomKeyStore(ctx, &kms.DisconnectCustomKeyStoreInput{CustomKeyStoreId: &id})
	refusedAs[*types.CustomKeyStoreInvalidStateException](t, err)

	// Connection.
	equal(t, "ConnectionErrorCode", connect(t, c, id), types.ConnectionErrorCodeTypeInvalidCredentials)
	_, err = c.ConnectCustomKeyStore(ctx, &kms.ConnectCustomKeyStoreInput{CustomKeyStoreId: &id})
	refusedAs[*types.CustomKeyStoreInvalidStateException](t, err)
	disconnect(t, c, id)
	must(c.UpdateCustomKeyStore(ctx, &kms.UpdateCustomKeyStoreInput{CustomKeyStoreId: &id, KeyStorePassword: str(ClusterPassword), NewCustomKeyStoreName: str("our HSMs")}))(t)
	equal(t, "ConnectionErrorCode", connect(t, c, id), "")
	_, err = c.UpdateCustomKeyStore(ctx, &kms.UpdateCustomKeyStoreInput{CustomKeyStoreId: &id, KeyStorePassword: str("another one")})
	refusedAs[*types.CustomKeyStoreInvalidStateException](t, err)
	_, err = c.DeleteCustomKeyStore(ctx, &kms.DeleteCustomKeyStoreInput{CustomKeyStoreId: &id})
	refusedAs[*types.CustomKeyStoreInvalidStateException](t, err)
	byName := must(c.DescribeCustomKeyStores(ctx, &kms.DescribeCustomKeyStoresInput{CustomKeyStoreName: str("our HSMs")}))(t).CustomKeyStores
	if len(byName) != 1 || *byName[0].CustomKeyStoreId != id {
		t.Errorf("by its name: %+v", byName)
	}

	// Keys.
	create := func() *types.KeyMetadata {
		t.Helper()
		return must(c.CreateKey(ctx, &kms.CreateKeyInput{CustomKeyStoreId: &id, Origin: types.OriginTypeAwsCloudhsm}))(t).KeyMetadata
	}
	key, ordinary := create(), newKey(t, c)
	equal(t, "Origin", key.Origin, types.OriginTypeAwsCloudhsm)
	equal(t, "CustomKeyStoreId", aws.ToString(key.CustomKeyStoreId), id)
	equal(t, "CloudHsmClusterId", aws.ToString(key.CloudHsmClusterId), ClusterID)
	equal(t, "KeyState", key.KeyState, types.KeyStateEnabled)
	blob := roundTrips(t, c, key.KeyId, ordinary.KeyId, "InvalidCiphertextException")
	notInStores(t, c, &id, key.KeyId, types.OriginTypeAwsCloudhsm)
	equal(t, "random bytes", len(must(c.GenerateRandom(ctx, &kms.GenerateRandomInput{CustomKeyStoreId: &id, NumberOfBytes: aws.Int32(24)}))(t).Plaintext), 24)

	// HSMs come and go.
	killed := underLoad(t, s, key.KeyId, cluster, create)
	if t.Failed() {
		return
	}
	away(true, cluster.Slow...)
	_, err = c.CreateKey(ctx, &kms.CreateKeyInput{CustomKeyStoreId: &id, Origin: types.OriginTypeAwsCloudhsm})
	refusedAs[*types.CloudHsmClusterInvalidConfigurationException](t, err)
	opens(t, c, blob) // one is enough
	away(false, cluster.Slow...)

	// Disconnected.
	disconnect(t, c, id)
	unavailable(t, c, key.KeyId, blob)
	opens := func(t *testing.T) {
		t.Helper()
		opens(t, s.KMS(t), blob)
	}
	must(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: killed.KeyId}))(t)
	equal(t, "KeyState", state(t, c, killed.KeyId), types.KeyStateUnavailable)
	equal(t, "ConnectionErrorCode", connect(t, c, id), "")
	opens(t)
	equal(t, "KeyState", state(t, c, killed.KeyId), types.KeyStateDisabled)

	// A new process connects what was connected, while its HSMs come.
	away(true, cluster.Slow...)
	s.Restart(t)
	c = s.KMS(t)
	equal(t, "ConnectionState", ofStore(t, c, id).ConnectionState, types.ConnectionStateTypeConnected)
	eventually(t, "the key serves after the restart", func() bool {
		st := state(t, c, key.KeyId)
		if st != types.KeyStateEnabled && st != types.KeyStateUnavailable {
			t.Fatalf("the key is %s", st)
		}
		return st == types.KeyStateEnabled
	})
	opens(t)
	away(false, cluster.Slow...)

	// Deletion.
	disconnect(t, c, id)
	_, err = c.DeleteCustomKeyStore(ctx, &kms.DeleteCustomKeyStoreInput{CustomKeyStoreId: &id})
	refusedAs[*types.CustomKeyStoreHasCMKsException](t, err)
	equal(t, "ConnectionErrorCode", connect(t, c, id), "")
	for _, k := range must(c.ListKeys(ctx, &kms.ListKeysInput{}))(t).Keys {
		if *k.KeyId != *ordinary.KeyId {
			must(c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: k.KeyId, PendingWindowInDays: aws.Int32(7)}))(t)
		}
	}
	disconnect(t, c, id)
	equal(t, "KeyState", state(t, c, key.KeyId), types.KeyStatePendingDeletion)
	clock.Advance(8 * 24 * time.Hour)
	s.Work(t)
	_, err = c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId})
	refusedAs[*types.NotFoundException](t, err)
	must(c.DeleteCustomKeyStore(ctx, &kms.DeleteCustomKeyStoreInput{CustomKeyStoreId: &id}))(t)
	_, err = c.DescribeCustomKeyStores(ctx, &kms.DescribeCustomKeyStoresInput{CustomKeyStoreId: &id})
	refusedAs[*types.CustomKeyStoreNotFoundException](t, err)
	if n := s.Stats().Panics; n != 0 {
		t.Errorf("%d requests ended in a panic", n)
	}
}

const (
	loadClients = 4
	loadEvery   = 3 * time.Millisecond // of all clients together: well within the rate of a key store
	loadPhase   = 300                  // requests before something else happens
)

// underLoad kills HSMs of a cluster and brings them back while clients with the SDK's own retry use a key: no request fails. It returns a key that was made while one was
// away, and has come to that one since.
func underLoad(t *testing.T, s *Server, key *string, cluster *HSMCluster, create func() *types.KeyMetadata) *types.KeyMetadata {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ticker := time.NewTicker(loadEvery)
	defer ticker.Stop()
	var done, failed atomic.Int64
	var clients sync.WaitGroup
	for i := range loadClients {
		c := s.KMS(t, func(o *kms.Options) { o.Retryer = retry.NewStandard() })
		clients.Go(func() {
			for n := i; ; n++ {
				select {
				case <-ticker.C:
				case <-ctx.Done():
					return
				}
				if err := use(t.Context(), c, key, n); err != nil {
					failed.Add(1)
					t.Errorf("request %d: %v", done.Load(), err)
				}
				done.Add(1)
			}
		})
	}
	defer func() {
		stop()
		clients.Wait()
		t.Logf("%d requests while HSMs came and went, %d failed", done.Load(), failed.Load())
	}()
	phase := func(what string) {
		t.Helper()
		from := done.Load()
		eventually(t, "requests: "+what, func() bool { return done.Load() >= from+loadPhase })
	}
	jobs := func(h *slowhsm.HSM) uint64 {
		t.Helper()
		for _, m := range s.Stats().KeyStores[0].HSMs {
			if strings.Contains(h.URI(), "token="+m.Name+"?") || strings.Contains(h.URI(), "token="+m.Name+";") {
				return m.Jobs
			}
		}
		t.Fatalf("no HSM %s in %+v", h.URI(), s.Stats().KeyStores)
		return 0
	}
	serves := func(h *slowhsm.HSM) {
		t.Helper()
		from := jobs(h)
		eventually(t, "an HSM that came back serves", func() bool { return jobs(h) > from+10 })
	}
	victim := cluster.Slow[0]
	set := func(settings slowhsm.Settings) {
		t.Helper()
		if err := victim.Set(settings); err != nil {
			t.Fatal(err)
		}
	}
	phase("all HSMs are there")
	serves(victim)
	set(slowhsm.Settings{Down: true})
	phase("one was killed")
	made := create()
	phase("one is away")
	set(slowhsm.Settings{})
	serves(victim)
	s.Work(t) // the repair
	eventually(t, "the key that was made meanwhile has come to the HSM that was away", func() bool {
		from := jobs(victim)
		for n := range 20 {
			if err := use(t.Context(), s.KMS(t), made.KeyId, n); err != nil {
				t.Fatal(err)
			}
		}
		return jobs(victim) > from
	})
	set(slowhsm.Settings{Faults: []slowhsm.Fault{{Function: "C_Encrypt", Nth: 1, Onwards: true, Hang: 30 * time.Second}}})
	phase("one hangs")
	set(slowhsm.Settings{})
	phase("it does not hang any more")
	set(slowhsm.Settings{Faults: []slowhsm.Fault{{Function: "C_Encrypt", Nth: 1, Onwards: true, CKR: hsm.CKR_DEVICE_ERROR}}})
	phase("one fails")
	set(slowhsm.Settings{})
	phase("it serves again")
	return made
}

// use is one request with a key, another for each n.
func use(ctx context.Context, c *kms.Client, key *string, n int) error {
	plaintext := []byte(fmt.Sprint("request ", n))
	switch n % 4 {
	case 0:
		_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key, KeySpec: types.DataKeySpecAes256})
		return err
	case 1:
		_, err := c.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: key, KeySpec: types.DataKeySpecAes128})
		return err
	}
	sealed, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: key, Plaintext: plaintext})
	if err != nil {
		return err
	}
	opened, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob, KeyId: key})
	if err == nil && !slices.Equal(opened.Plaintext, plaintext) {
		err = fmt.Errorf("%q was decrypted to %q", plaintext, opened.Plaintext)
	}
	return err
}
