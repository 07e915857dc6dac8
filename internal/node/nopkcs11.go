//go:build !cgo

package node

import (
	"errors"

	"github.com/keyplane/keyplane/hsm"
)

var errNoPKCS11 = errors.New("node: this keyplane was built without cgo and has the soft token only")

func openPKCS11(string) (hsm.Token, error) { return nil, errNoPKCS11 }

func openPKCS11PIN(string, []byte) (hsm.Token, error) { return nil, errNoPKCS11 }

func askPKCS11(string) (hsm.TokenInfo, error) { return hsm.TokenInfo{}, errNoPKCS11 }
