//go:build cgo

package main

const hasHSM = true
