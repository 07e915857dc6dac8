//go:build !cgo

package main

import (
	"errors"

	"github.com/keyplane/keyplane/hsm"
)

var errNoCgo = errors.New("this keyplane was built without cgo and has the soft token only")

func openHSM(string) (hsm.Token, error) { return nil, errNoCgo }

func initHSMCA(string) (bool, error) { return false, errNoCgo }
