package main

import (
	"strings"
	"testing"
)

func TestCountShares(t *testing.T) {
	const stacks = `
	ffff ksys_write ([kernel.kallsyms])
	4711 net.(*conn).Write (/usr/bin/keyplane)
	4712 github.com/keyplane/keyplane/dataplane.(*conn).Write (/usr/bin/keyplane)

	4713 crypto/sha256.Sum256 (/usr/bin/keyplane)
	4714 github.com/keyplane/keyplane/internal/sigv4.(*Verifier).Verify (/usr/bin/keyplane)
	4715 github.com/keyplane/keyplane/dataplane.(*Server).handle (/usr/bin/keyplane)

	4716 [unknown] (/usr/lib/libcrypto.so.3)

	4717 runtime.futex (/usr/bin/keyplane)
	4718 runtime.schedule (/usr/bin/keyplane)

	4719 main.main (/usr/bin/keyplane)
`
	counts, all, err := countShares(strings.NewReader(stacks))
	if err != nil || all != 5 {
		t.Fatalf("%d stacks, %v", all, err)
	}
	for _, name := range []string{shares[1].name, "SigV4", shares[4].name, shares[8].name, restShare} {
		if counts[name] != 1 {
			t.Errorf("%s: %d of 1; all: %v", name, counts[name], counts)
		}
	}
}
