package aesgcm

import "testing"

// Use switches every message to path p until the end of the test.
func Use(t testing.TB, p string) {
	t.Helper()
	before := active.Load()
	t.Cleanup(func() { active.Store(before) })
	for _, q := range paths() {
		if q.name == p {
			active.Store(uint32(q.path))
			return
		}
	}
	t.Fatalf("there is no path %q here", p)
}

// Paths names the paths that this machine and build have. The go path is always among them.
func Paths() []string {
	var names []string
	for _, q := range paths() {
		names = append(names, q.name)
	}
	return names
}

type namedPath struct {
	name string
	path path
}

func paths() []namedPath {
	all := []namedPath{{"go", pathGo}}
	if loadLibcrypto() {
		all = append(all, namedPath{"libcrypto", pathLibcrypto})
	}
	if loadBearSSL() {
		all = append(all, namedPath{"bearssl", pathBearSSL})
	}
	return all
}
