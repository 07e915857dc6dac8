// Package hsmtest has what tests of and over tokens share: the conformance suite every hsm.Token must pass, a token that fails on a
// script, and fresh SoftHSM and NSS tokens. It is pure Go: modules are named by URI and opened by whoever imports hsm/p11. It starts no
// goroutine.
//
// SoftHSM and NSS need a TestMain that calls Main: SoftHSM reads its configuration when the process initialises the module.
package hsmtest
