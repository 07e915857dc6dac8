//go:build cgo

package main

import (
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/p11"
)

func openHSM(uri string) (hsm.Token, error) { return p11.Open(uri) }

// initHSMCA makes the CA key of a token that has none.
func initHSMCA(uri string) (made bool, err error) {
	r, err := p11.InitCA(uri)
	return r.Made, err
}
