package softtoken

import (
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
)

func TestConformance(t *testing.T) {
	dir := t.TempDir() + "/token"
	hsmtest.TestToken(t, func(t testing.TB) hsm.Token {
		t.Helper()
		token, err := Open(Config{Dir: dir, Create: true})
		if err != nil {
			t.Fatal(err)
		}
		return token
	})
}
