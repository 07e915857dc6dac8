//go:build !cgo

package node

import (
	"errors"

	"github.com/keyplane/keyplane/hsm"
)

func openPKCS11(string) (hsm.Token, error) {
	return nil, errors.New("node: this keyplane was built without cgo and has the soft token only")
}
