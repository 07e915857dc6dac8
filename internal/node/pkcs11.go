//go:build cgo

package node

import (
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/p11"
)

func openPKCS11(uri string) (hsm.Token, error) { return p11.Open(uri) }

// openPKCS11PIN opens a token with a PIN, which is the caller's.
func openPKCS11PIN(uri string, pin []byte) (hsm.Token, error) { return p11.OpenPIN(uri, pin) }

// askPKCS11 says which token it is, without a login.
func askPKCS11(uri string) (hsm.TokenInfo, error) { return p11.Ask(uri) }
