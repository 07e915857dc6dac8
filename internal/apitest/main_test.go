package apitest

import (
	"testing"

	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/p11"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

func TestMain(m *testing.M) { hsmtest.Main(m) }

// tokens are what every set of tests over the SDK runs on.
var tokens = []struct {
	name string
	uri  func(testing.TB) string // nil: the soft token
}{
	{"softtoken", nil},
	{"SoftHSM", hsmtest.SoftHSM},
	{"NSS", hsmtest.NSS},
}

// startOn starts a node on a token that has the two roots and nothing else.
func startOn(t *testing.T, uri func(testing.TB) string, opts ...Option) *Server {
	t.Helper()
	if uri == nil {
		return Start(t, opts...)
	}
	u := uri(t)
	if _, err := p11.InitRoots(u); err != nil {
		t.Fatal(err)
	}
	return Start(t, append(opts, WithHSM(u))...)
}

// sets are the tests that run on every token, one node for all of them; each makes its own keys.
var sets = []struct {
	name string
	run  func(*testing.T, *world)
}{
	{"DataPlane", testDataPlane},
	{"ControlPlane", testControlPlane},
	{"Specs", testSpecs},
	{"Import", testImport},
	{"Related", testRelated},
	{"KeyStores", testKeyStores},
	{"Errors", testErrors},
	{"AtOnce", testAtOnce},
	{"Restart", testRestart}, // last: clients made before do not follow
}

// TestTokens: the round trips of every operation with AWS's SDK, on the soft token, SoftHSM and NSS softokn.
func TestTokens(t *testing.T) {
	for _, token := range tokens {
		t.Run(token.name, func(t *testing.T) {
			t.Parallel()
			s := &world{Server: startOn(t, token.uri, WithSoftwareKeys, withRegions)}
			for _, set := range sets {
				t.Run(set.name, func(t *testing.T) { set.run(t, s) })
			}
			for _, op := range kmsapi.Operations {
				if op.Built && !s.reached[op.Name] {
					t.Errorf("no test called %s with success", op.Name)
				}
			}
			if n := s.Stats().Panics; n != 0 {
				t.Errorf("%d requests ended in a panic", n)
			}
		})
	}
}
