package aesgcm_test

import "runtime"

// lockUntilExit binds the goroutine to its thread; a goroutine that ends while bound takes the thread with it.
func lockUntilExit() { runtime.LockOSThread() }
