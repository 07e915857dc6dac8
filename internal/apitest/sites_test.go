package apitest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// site is one of two `keyplane serve` that replicate to each other: a Region, a data directory, and a process most of the time.
type site struct {
	*Process
	region, dir string
	listen      string   // where it hears of the other
	hsm         string   // URI of its token, "" for the soft token
	peer        string   // its configuration's peers, YAML
	args        []string // of keyplane serve, besides
}

// launch starts the process, with a failpoint unless that is "", and does not wait for it.
func (s *site) launch(t *testing.T, command, failpoint string) {
	t.Helper()
	text := patient + "replication:\n  listen: " + s.listen + "\n" + s.peer
	args := append([]string{"--config", writePrivate(t, t.TempDir(), "keyplane.yaml", text), "--region", s.region}, s.args...)
	if s.hsm != "" {
		args = append(args, "--hsm", s.hsm)
	}
	var env []string
	if failpoint != "" {
		env = append(env, "KEYPLANE_FAILPOINT="+failpoint)
	}
	s.Process = launch(t, command, env, s.dir, args...)
}

// start is launch without a failpoint, until it serves.
func (s *site) start(t *testing.T, command string) {
	t.Helper()
	s.launch(t, command, "")
	s.serve(t)
}

// knows has the site's next process replicate with the other one, whose line of keyplane replication public-key this is, and reach it at a URL.
func (s *site) knows(line, url string) {
	region, key, _ := strings.Cut(strings.TrimSpace(line), " ")
	s.peer = fmt.Sprintf("  peers: [{region: %s, url: %q, public_key: %s}]\n", region, url, key)
}

// replicationKey is what keyplane replication public-key prints.
func (s *site) replicationKey(t *testing.T, command string) string {
	t.Helper()
	out, err := exec.Command(command, "replication", "public-key", "--data-dir", s.dir, "--region", s.region).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// client is an SDK client for the process that runs now.
func (s *site) client(t *testing.T) *kms.Client {
	t.Helper()
	return s.KMS(t, in(s.region))
}

// ask sends one request and decodes the reply into v, unless that is nil. The reply is nil if the process died of it.
func (s *site) ask(t *testing.T, v any, op string, members map[string]any) *Reply {
	t.Helper()
	c := &Client{e: s.Endpoint}
	defer c.close()
	r, err := c.Try(op, marshal(t, members), func(r *Request) { r.Region = s.region })
	if err != nil && r != nil {
		t.Fatal(err)
	}
	if r != nil && v != nil {
		r.Members(t, v)
	}
	return r
}

// relatedKey is what a Region says of one of several related keys.
type relatedKey struct {
	State                types.KeyState
	Type                 types.MultiRegionKeyType
	Primary              string
	Replicas, Rotations  []string // ARNs; material IDs and dates
	CurrentKeyMaterialId string
}

// sees is what the site says of a key, the zero value if it has none.
func (s *site) sees(t *testing.T, id string) (k relatedKey) {
	t.Helper()
	var out struct {
		KeyMetadata struct {
			KeyState                 types.KeyState
			KeySpec                  types.KeySpec
			CurrentKeyMaterialId     string
			MultiRegionConfiguration struct {
				MultiRegionKeyType types.MultiRegionKeyType
				PrimaryKey         struct{ Arn string }
				ReplicaKeys        []struct{ Arn string }
			}
		}
	}
	r := s.ask(t, nil, "DescribeKey", map[string]any{"KeyId": id})
	if r == nil {
		t.Fatal("DescribeKey: no reply")
	}
	if r.Type == isNotFound {
		return k
	}
	r.Members(t, &out)
	m := &out.KeyMetadata
	k = relatedKey{State: m.KeyState, Type: m.MultiRegionConfiguration.MultiRegionKeyType, Primary: m.MultiRegionConfiguration.PrimaryKey.Arn, CurrentKeyMaterialId: m.CurrentKeyMaterialId}
	for _, other := range m.MultiRegionConfiguration.ReplicaKeys {
		k.Replicas = append(k.Replicas, other.Arn)
	}
	if m.KeySpec != types.KeySpecSymmetricDefault || k.State == types.KeyStateCreating {
		return k
	}
	var list struct {
		Rotations []struct {
			KeyMaterialId, KeyMaterialState, RotationType string
			RotationDate                                  float64
		}
	}
	s.ask(t, &list, "ListKeyRotations", map[string]any{"KeyId": id, "IncludeKeyMaterial": "ALL_KEY_MATERIAL"})
	for _, x := range list.Rotations {
		k.Rotations = append(k.Rotations, fmt.Sprint(x))
	}
	return k
}

// agreed waits until both sites have a key Enabled, the primary in one of them, no rotation under way, and say the same of it. It returns the number of versions.
func agreed(t *testing.T, primary, replica *site, id string) (versions int) {
	t.Helper()
	var p, r relatedKey
	defer func() {
		if t.Failed() {
			t.Logf("the primary: %+v\nthe replica: %+v", p, r)
		}
	}()
	eventually(t, "both Regions agree, and "+primary.region+" has the primary", func() bool {
		p, r = primary.sees(t, id), replica.sees(t, id)
		same := r
		same.Type = p.Type
		rotating := slices.ContainsFunc(p.Rotations, func(v string) bool { return strings.Contains(v, "PENDING_") })
		return !rotating && p.Type == types.MultiRegionKeyTypePrimary && r.Type == types.MultiRegionKeyTypeReplica && p.State == types.KeyStateEnabled &&
			strings.Contains(p.Primary, ":"+primary.region+":") && len(p.Replicas) == 1 && strings.Contains(p.Replicas[0], ":"+replica.region+":") &&
			reflect.DeepEqual(p, same)
	})
	return len(p.Rotations)
}

// seal encrypts a text that names the key; open fails the test unless ciphertexts of it decrypt.
func (s *site) seal(t *testing.T, id string) string {
	t.Helper()
	var out struct{ CiphertextBlob string }
	s.ask(t, &out, "Encrypt", map[string]any{"KeyId": id, "Plaintext": encode([]byte(id))})
	return out.CiphertextBlob
}

func (s *site) open(t *testing.T, id string, blobs ...string) {
	t.Helper()
	for i, blob := range blobs {
		var out struct{ Plaintext string }
		s.ask(t, &out, "Decrypt", map[string]any{"CiphertextBlob": blob, "KeyId": id})
		equal(t, fmt.Sprintf("ciphertext %d in %s", i, s.region), out.Plaintext, encode([]byte(id)))
	}
}

// copied is the site on a copy of its data directory, which no process has.
func (s *site) copied(t *testing.T) *site {
	t.Helper()
	c := *s
	c.dir = filepath.Join(t.TempDir(), "data")
	if err := os.CopyFS(c.dir, os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
	private(t, c.dir)
	c.listen = freeAddr(t)
	return &c
}
