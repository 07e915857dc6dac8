package apitest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keyplane/keyplane/controlplane/replication"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/p11"
)

// wire is the network between two sites, of which it notes how material is wrapped on its way to one of them.
type wire struct {
	*httptest.Server
	mu        sync.Mutex
	wrappings []string
	malformed int
}

// newWire passes on what it gets to an address.
func newWire(t *testing.T, to string) *wire {
	w := &wire{}
	next := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: to})
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(b))
		w.note(b)
		next.ServeHTTP(rw, r)
	}))
	t.Cleanup(w.Close)
	return w
}

// note reads an envelope as docs/replication.md has it: magic, length, a line of sender and receiver, JSON, signature.
func (w *wire) note(envelope []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var m replication.Message
	const head = 12
	if len(envelope) < head || uint64(binary.BigEndian.Uint32(envelope[8:])) > uint64(len(envelope)-head) {
		w.malformed++
		return
	}
	_, message, _ := bytes.Cut(envelope[head:head+binary.BigEndian.Uint32(envelope[8:])], []byte{'\n'})
	if json.Unmarshal(message, &m) != nil {
		w.malformed++
		return
	}
	for _, x := range m.Material {
		w.wrappings = append(w.wrappings, x.Wrapping)
	}
}

// softHSMSites are two processes with SoftHSM tokens of their own, which were set up as an operator does it.
func softHSMSites(t *testing.T) (a, b *site, between *wire) {
	t.Helper()
	command := Binary(t)
	a, b = &site{region: Region}, &site{region: west}
	for _, s := range []*site{a, b} {
		s.dir, s.listen, s.hsm = filepath.Join(t.TempDir(), "data"), freeAddr(t), hsmtest.SoftHSM(t)
		if _, err := p11.InitRoots(s.hsm); err != nil {
			t.Fatal(err)
		}
		s.launch(t, command, "")
	}
	a.serve(t)
	b.serve(t)
	between = newWire(t, b.listen)
	a.knows(b.replicationKey(t, command), between.URL)
	b.knows(a.replicationKey(t, command), "http://"+a.listen)
	for _, s := range []*site{a, b} {
		if code := stop(t, s.Process); code != 0 {
			t.Errorf("%s: the exit status is %d", s.region, code)
		}
		s.launch(t, command, "")
	}
	a.serve(t)
	b.serve(t)
	return a, b, between
}

// TestReplicas: two processes with different SoftHSM tokens. Keys are replicated, what is encrypted or signed here is decrypted or verified there, before and
// after a rotation and a change of the primary; then the primary is lost, the replica still works, and when the primary is back they agree again.
func TestReplicas(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	a, b, between := softHSMSites(t)
	here, there := a.client(t), b.client(t)
	multi := true
	create := func(spec types.KeySpec, usage types.KeyUsageType) string {
		t.Helper()
		key := must(here.CreateKey(ctx, &kms.CreateKeyInput{MultiRegion: &multi, KeySpec: spec, KeyUsage: usage}))(t).KeyMetadata
		out := must(here.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: key.KeyId, ReplicaRegion: str(west)}))(t)
		equal(t, "the replica's state", out.ReplicaKeyMetadata.KeyState, types.KeyStateCreating)
		return *key.KeyId
	}
	id := create(types.KeySpecSymmetricDefault, types.KeyUsageTypeEncryptDecrypt)
	rsa := create(types.KeySpecRsa2048, types.KeyUsageTypeSignVerify)
	ec := create(types.KeySpecEccNistP256, types.KeyUsageTypeSignVerify)
	decrypting := create(types.KeySpecRsa2048, types.KeyUsageTypeEncryptDecrypt)
	for _, key := range []string{id, rsa, ec, decrypting} {
		agreed(t, a, b, key)
	}
	signing := func(key string, algorithm types.SigningAlgorithmSpec, from, to *kms.Client) {
		t.Helper()
		text := []byte("what both Regions can sign")
		signature := must(from.Sign(ctx, &kms.SignInput{KeyId: &key, Message: text, SigningAlgorithm: algorithm}))(t).Signature
		out := must(to.Verify(ctx, &kms.VerifyInput{KeyId: &key, Message: text, SigningAlgorithm: algorithm, Signature: signature}))(t)
		equal(t, "SignatureValid", out.SignatureValid, true)
	}
	var blobs []string
	crossing := func(from, to *site) {
		t.Helper()
		blobs = append(blobs, from.seal(t, id))
		to.open(t, id, blobs...)
		x, y := from.client(t), to.client(t)
		signing(rsa, types.SigningAlgorithmSpecRsassaPssSha256, x, y)
		signing(ec, types.SigningAlgorithmSpecEcdsaSha256, x, y)
		algorithm := types.EncryptionAlgorithmSpecRsaesOaepSha256
		blob := must(x.Encrypt(ctx, &kms.EncryptInput{KeyId: &decrypting, Plaintext: []byte("x"), EncryptionAlgorithm: algorithm}))(t).CiphertextBlob
		equal(t, "Plaintext", string(must(y.Decrypt(ctx, &kms.DecryptInput{KeyId: &decrypting, CiphertextBlob: blob, EncryptionAlgorithm: algorithm}))(t).Plaintext), "x")
	}
	rotate := func(primary, replica *site, client *kms.Client, want int) {
		t.Helper()
		before := primary.sees(t, id).CurrentKeyMaterialId
		must(client.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &id}))(t)
		eventually(t, "the key is rotated", func() bool { return primary.sees(t, id).CurrentKeyMaterialId != before })
		equal(t, "versions", agreed(t, primary, replica, id), want)
	}
	crossing(a, b)
	crossing(b, a)
	rotate(a, b, here, 2)
	crossing(a, b)
	crossing(b, a)
	must(here.UpdatePrimaryRegion(ctx, &kms.UpdatePrimaryRegionInput{KeyId: &id, PrimaryRegion: str(west)}))(t)
	agreed(t, b, a, id)
	rotate(b, a, there, 3)
	crossing(b, a)
	crossing(a, b)

	// The primary is lost, in the middle of what it had to tell.
	before := b.sees(t, id).CurrentKeyMaterialId
	must(there.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &id}))(t)
	b.Kill(t)
	crossing(a, a)
	b.start(t, Binary(t))
	eventually(t, "the key is rotated", func() bool { return b.sees(t, id).CurrentKeyMaterialId != before })
	equal(t, "versions", agreed(t, b, a, id), 4)
	crossing(b, a)
	crossing(a, b)

	between.mu.Lock()
	defer between.mu.Unlock()
	// Four keys and the version of the rotation; SoftHSM has no RSA_AES_KEY_WRAP_SHA_256.
	equal(t, "keys that crossed", len(between.wrappings), 5)
	if slices.ContainsFunc(between.wrappings, func(w string) bool { return w != "RSA_AES_KEY_WRAP_SHA_1" }) || between.malformed > 0 {
		t.Errorf("material crossed as %q, %d messages were not understood", between.wrappings, between.malformed)
	}
}
