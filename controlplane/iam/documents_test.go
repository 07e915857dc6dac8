package iam

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
)

// Documents with one text are compiled once, and forgotten when nobody has them any more.
func TestDocumentsAreShared(t *testing.T) {
	text := strings.Replace(allowAll, `"*"`, `"kms:TestDocumentsAreShared"`, 1)
	a, err := compile(text)
	if err != nil {
		t.Fatal(err)
	}
	b, err := compile(text)
	if err != nil || a != b {
		t.Errorf("compiled twice, %v", err)
	}
	if other, err := compile(text + " "); err != nil || other == a {
		t.Errorf("another text is the same, %v", err)
	}
	if _, err := compile(text + "x"); err == nil {
		t.Error("what does not parse compiles")
	}
	runtime.KeepAlive(a)
	runtime.KeepAlive(b)
	name := sha256.Sum256([]byte(text))
	there := func() bool {
		compiled.mu.Lock()
		defer compiled.mu.Unlock()
		_, ok := compiled.byText[name]
		return ok
	}
	for deadline := time.Now().Add(time.Minute); there() && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		runtime.GC()
	}
	if there() {
		t.Error("a document that nobody has stays")
	}
}

// Sessions of a role with one session policy have it once. Different ones are bounded for each account, and room comes back.
func TestSessionDocuments(t *testing.T) {
	e := newEnv(t)
	role := e.role("r", trustAccount(e.account))
	p := e.table.principals[role.PrincipalName]
	now := e.clock.now()
	begin := func(policies ...string) (*authz.Caller, error) {
		c, err := e.table.begin(t.Context(), p, role.PrincipalName, &store.Session{Name: "sess", Policies: policies, Issued: now, Expires: now.Add(time.Hour)}, now)
		if err != nil {
			return nil, err
		}
		return e.table.AccessKey([]byte(c.id)).Principal().Caller, nil
	}
	used := func() int {
		e.table.sessions.mu.Lock()
		defer e.table.sessions.mu.Unlock()
		if h := e.table.sessions.documents[e.account]; h != nil {
			return h.bytes
		}
		return 0
	}
	large := func(i int) string { return allowAll + strings.Repeat(" ", 20_000) + fmt.Sprintf("%*s", i, "") }
	one, err := begin(large(0), large(0))
	if err != nil {
		t.Fatal(err)
	}
	two, err := begin(large(0))
	if err != nil || one.Session[0] != two.Session[0] || one.Session[1] != two.Session[0] || used() != len(large(0)) {
		t.Errorf("not shared: %d bytes, %v", used(), err)
	}
	n := 1
	for ; err == nil && n < 400; n++ {
		_, err = begin(large(n))
	}
	if !errors.Is(err, ErrSessionDocuments) || used() > SessionDocumentsMax || used() < SessionDocumentsMax-2*len(large(400)) {
		t.Errorf("after %d documents of 20 kB %d bytes are counted, %v", n, used(), err)
	}
	if _, err := begin(large(0)); err != nil {
		t.Errorf("a session policy that there is already: %v", err)
	}
	if err := e.table.Load(t.Context()); err != nil || used() == 0 || used() > SessionDocumentsMax {
		t.Errorf("loaded again: %d bytes, %v", used(), err)
	}
	e.clock.add(2 * time.Hour)
	e.table.sessions.sweep(e.clock.now())
	if used() != 0 {
		t.Errorf("%d bytes are counted of no session", used())
	}
}
