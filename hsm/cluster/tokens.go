package cluster

import (
	"fmt"
	"strings"
	"sync"

	"github.com/keyplane/keyplane/hsm"
)

// Tokens are the tokens that a process has seen, and whose each is: that one HSM is in two clusters, or is the server's own too, does not show while URIs name it
// differently or by different modules. The zero value has none. Safe for concurrent use.
type Tokens struct {
	mu sync.Mutex
	of map[hsm.TokenInfo]string // guarded by mu
}

// Claim says that a token is the owner's from now on. ErrTwice if it is another's.
func (t *Tokens) Claim(owner string, info hsm.TokenInfo) error {
	return t.see(owner, info, true)
}

// check is Claim where the token remains whose it is.
func (t *Tokens) check(owner string, info hsm.TokenInfo) error { return t.see(owner, info, false) }

func (t *Tokens) see(owner string, info hsm.TokenInfo, claim bool) error {
	if t == nil || strings.Trim(info.Serial, "0 ") == "" { // some modules number nothing
		return nil
	}
	is := hsm.TokenInfo{Label: info.Label, Serial: info.Serial, Manufacturer: info.Manufacturer, Model: info.Model}
	t.mu.Lock()
	defer t.mu.Unlock()
	if other, ok := t.of[is]; ok && other != owner {
		return fmt.Errorf("%w: the token %q with serial number %s is one of %s", ErrTwice, info.Label, info.Serial, other)
	}
	if !claim {
		return nil
	}
	if t.of == nil {
		t.of = map[hsm.TokenInfo]string{}
	}
	t.of[is] = owner
	return nil
}
