package apitest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keyplane/keyplane/internal/node"
)

// eventually waits for what a worker does, as a client does: it asks until it is so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(exchangeTimeout); !is(); {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// west is the Region of the other server, where there are two.
const west = "us-west-2"

// twoServers are two processes of servers in two Regions, with data directories and soft tokens of their own, that replicate over HTTP.
func twoServers(t *testing.T, opts ...Option) (a, b *Server) {
	t.Helper()
	listening := func(region string) []Option {
		return append(opts[:len(opts):len(opts)], func(c *node.Config) { c.Region, c.Replication.Listen = region, freeAddr(t) })
	}
	a, b = Start(t, listening(Region)...), Start(t, listening(west)...)
	for _, s := range []*Server{a, b} {
		s.Close()
	}
	for s, peer := range map[*Server]*Server{a: b, b: a} {
		keys, err := os.ReadFile(filepath.Join(peer.cfg.DataDir, node.ReplicationKeysFile))
		if err != nil {
			t.Fatal(err)
		}
		region, key, _ := strings.Cut(strings.TrimSpace(string(keys)), " ")
		s.cfg.Replication.Peers = []node.ReplicationPeer{{Region: region, URL: "http://" + peer.cfg.Replication.Listen, PublicKey: key}}
		if err := s.cfg.Validate(); err != nil {
			t.Fatal(err)
		}
	}
	a.start(t)
	b.start(t)
	return a, b
}

// TestReplication: two servers with different tokens. A key is replicated, what is encrypted here decrypts there, also after a rotation; the other becomes
// the primary; and when the first is gone, the replica still works.
func TestReplication(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	a, b := twoServers(t)
	here, there := a.KMS(t), b.KMS(t, in(west))
	multi := true
	key := must(here.CreateKey(ctx, &kms.CreateKeyInput{MultiRegion: &multi}))(t).KeyMetadata
	out := must(here.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: key.KeyId, ReplicaRegion: str(west)}))(t)
	equal(t, "KeyState", out.ReplicaKeyMetadata.KeyState, types.KeyStateCreating)
	state := func(c *kms.Client) *types.KeyMetadata {
		return must(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId}))(t).KeyMetadata
	}
	eventually(t, "the replica is Enabled", func() bool { return state(there).KeyState == types.KeyStateEnabled })
	var blobs [][]byte
	crossing := func(from, to *kms.Client) {
		t.Helper()
		blobs = append(blobs, must(from.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("across")}))(t).CiphertextBlob)
		for _, blob := range blobs {
			equal(t, "Plaintext", string(must(to.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob}))(t).Plaintext), "across")
		}
	}
	crossing(here, there)
	crossing(there, here)
	first := *state(here).CurrentKeyMaterialId
	must(here.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: key.KeyId}))(t)
	eventually(t, "both have rotated", func() bool {
		x, y := *state(here).CurrentKeyMaterialId, *state(there).CurrentKeyMaterialId
		return x != first && x == y
	})
	crossing(here, there)
	crossing(there, here)
	must(here.UpdatePrimaryRegion(ctx, &kms.UpdatePrimaryRegionInput{KeyId: key.KeyId, PrimaryRegion: str(west)}))(t)
	eventually(t, "the other is the primary", func() bool {
		x, y := state(here), state(there)
		return x.MultiRegionConfiguration.MultiRegionKeyType == types.MultiRegionKeyTypeReplica && x.KeyState == types.KeyStateEnabled &&
			y.MultiRegionConfiguration.MultiRegionKeyType == types.MultiRegionKeyTypePrimary && y.KeyState == types.KeyStateEnabled
	})
	crossing(there, here)
	b.Close()
	crossing(here, here)
}
