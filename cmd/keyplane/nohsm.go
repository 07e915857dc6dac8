//go:build !cgo

package main

import (
	"fmt"
	"io"
)

func hsmCommand(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "clone" {
		return cloneCommand(args[1:], stdout, stderr, func(string, []string, string, io.Writer) error { return errNoCgo })
	}
	fmt.Fprintln(stderr, "keyplane hsm: this keyplane was built without cgo and has the soft token only")
	return 1
}
