//go:build !cgo

package main

import (
	"fmt"
	"io"
)

func hsmCommand(_ []string, _, stderr io.Writer) int {
	fmt.Fprintln(stderr, "keyplane hsm: this keyplane was built without cgo and has the soft token only")
	return 1
}
