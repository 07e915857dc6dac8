//go:build !linux

package main

import "errors"

func harden() error { return errors.New("not known how on this operating system") }
