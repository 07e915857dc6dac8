//go:build cgo

package dataplane

import (
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/p11"
)

func init() {
	tokenKinds = append(tokenKinds, tokenKind{"SoftHSM", func(t testing.TB) hsm.Token { return openP11(t, hsmtest.SoftHSM(t)) }})
}

// openP11 opens a token that has no roots yet and makes them.
func openP11(t testing.TB, uri string) hsm.Token {
	t.Helper()
	if _, err := p11.InitRoots(uri); err != nil {
		t.Fatal(err)
	}
	token, err := p11.Open(uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := token.Close(); err != nil {
			t.Error(err)
		}
	})
	return token
}
