package iam

import (
	"crypto/sha256"
	"runtime"
	"sync"
	"weak"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
)

// compiled shares compiled documents between all who have the same text, for as long as anybody has one: sessions of a role that were begun
// with the same session policy, users with the same inline policy.
var compiled = documents{byText: map[[sha256.Size]byte]weak.Pointer[policy.Policy]{}}

type documents struct {
	mu     sync.Mutex
	byText map[[sha256.Size]byte]weak.Pointer[policy.Policy] // by a hash of the text
}

// compile compiles an identity policy, a boundary or a session policy.
func compile(document string) (*policy.Policy, error) {
	d, name := &compiled, sha256.Sum256([]byte(document))
	d.mu.Lock()
	p := d.byText[name].Value()
	d.mu.Unlock()
	if p != nil {
		return p, nil
	}
	p, err := policy.Parse([]byte(document), policy.IdentityPolicy, nil)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if other := d.byText[name].Value(); other != nil {
		return other, nil
	}
	d.byText[name] = weak.Make(p)
	runtime.AddCleanup(p, d.forget, name)
	return p, nil
}

// forget takes away a document that nobody has any more.
func (d *documents) forget(name [sha256.Size]byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.byText[name].Value() == nil {
		delete(d.byText, name)
	}
}

// SessionDocumentsMax bounds the session policies of one account's sessions, in bytes of text, each different one counted once. Compiled they
// take up to thirty times as much.
const SessionDocumentsMax = 4 << 20

// held is the session policies of one account's sessions.
type held struct {
	bytes int
	of    map[*policy.Policy]*use
}

type use struct{ sessions, bytes int }

// hold counts the session policies of a caller, whose texts are given. Unless always is set, false is that they are too much for the account, and not counted.
func (s *sessions) hold(w *authz.Caller, texts []string, always bool) bool {
	if len(w.Session) == 0 {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.documents[w.Account]
	if h == nil {
		h = &held{of: map[*policy.Policy]*use{}}
		s.documents[w.Account] = h
	}
	for i, p := range w.Session {
		u := h.of[p]
		if u == nil {
			u = &use{bytes: len(texts[i])}
			h.of[p] = u
			h.bytes += u.bytes
		}
		u.sessions++
	}
	if always || h.bytes <= SessionDocumentsMax {
		return true
	}
	s.unhold(w.Account, w.Session)
	return false
}

// unhold is the inverse of hold. mu is held.
func (s *sessions) unhold(a keyid.Account, policies []*policy.Policy) {
	h := s.documents[a]
	for _, p := range policies {
		if u := h.of[p]; u != nil {
			if u.sessions--; u.sessions == 0 {
				delete(h.of, p)
				h.bytes -= u.bytes
			}
		}
	}
	if h != nil && len(h.of) == 0 {
		delete(s.documents, a)
	}
}
