//go:build cgo

package node

import (
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/p11"
)

func openPKCS11(uri string) (hsm.Token, error) { return p11.Open(uri) }
