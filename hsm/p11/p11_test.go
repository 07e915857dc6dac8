package p11

import (
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
)

func TestMain(m *testing.M) { hsmtest.Main(m) }

// opener makes the roots in a token and returns what opens it.
func opener(t testing.TB, uri string) func(t testing.TB) hsm.Token {
	t.Helper()
	if _, err := InitRoots(uri); err != nil {
		t.Fatal(err)
	}
	return func(t testing.TB) hsm.Token {
		t.Helper()
		token, err := Open(uri)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
}

func TestConformanceSoftHSM(t *testing.T) { hsmtest.TestToken(t, opener(t, hsmtest.SoftHSM(t))) }
func TestConformanceNSS(t *testing.T)     { hsmtest.TestToken(t, opener(t, hsmtest.NSS(t))) }
