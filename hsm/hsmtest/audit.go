package hsmtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
)

func mustAudit(t testing.TB, token hsm.Token) hsm.AuditSession {
	t.Helper()
	s, err := token.OpenAuditSession()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// mustSign signs and verifies, with the standard library's verification of DER.
func mustSign(t testing.TB, s hsm.AuditSession, text string) [64]byte {
	t.Helper()
	digest := sha256.Sum256([]byte(text))
	sig, err := s.Sign(digest)
	if err != nil {
		t.Fatal(err)
	}
	if !hsm.VerifyAudit(s.Public(), digest, sig) {
		t.Fatal("the signature does not verify")
	}
	if other := sha256.Sum256([]byte(text + ".")); hsm.VerifyAudit(s.Public(), other, sig) {
		t.Fatal("the signature verifies for another text")
	}
	return sig
}

// testAudit holds the audit key's sessions to what those of the roots are held to, and runs hsm.AuditKey on them.
func testAudit(t *testing.T, open func(t testing.TB) hsm.Token) {
	token := open(t)
	a, b := mustAudit(t, token), mustAudit(t, token)
	if a.Public().Curve != elliptic.P256() || !a.Public().Equal(b.Public()) {
		t.Error("two sessions tell different keys, or another curve")
	}
	for i := range 20 { // r or s begin with zeros now and then
		mustSign(t, a, fmt.Sprint("text ", i))
	}
	first := mustSign(t, a, "text")
	if second := mustSign(t, b, "text"); first == second {
		t.Log("signatures are deterministic")
	}

	// Rounds go on beside it.
	round := mustSession(t, token)
	want, _ := mustRound(t, round, pattern(2), 16)
	mustSign(t, a, "between")
	if out, _ := mustRound(t, round, pattern(2), 16); string(out) != string(want) {
		t.Error("a signature changed a round")
	}
	mustClose(t, round)

	mustClose(t, a)
	mustClose(t, a) // twice is once
	if _, err := a.Sign([32]byte{}); !errors.Is(err, hsm.ErrSessionClosed) {
		t.Errorf("signature on a closed session: %v", err)
	}
	if err := token.Reset(); err != nil {
		t.Fatal(err)
	}
	var e *hsm.Error
	if _, err := b.Sign([32]byte{}); !errors.As(err, &e) || e.CKR != hsm.CKR_SESSION_HANDLE_INVALID {
		t.Errorf("session of an old generation: %v", err)
	}
	_ = b.Close() // a dead session may or may not be closable
	testAuditKey(t, token, a.Public())
	mustClose(t, token)
	if s, err := token.OpenAuditSession(); err == nil {
		t.Errorf("session %v on a closed token", s)
	}

	again := open(t)
	defer mustClose(t, again)
	c := mustAudit(t, again)
	if !c.Public().Equal(a.Public()) {
		t.Error("another key after reopening")
	}
	mustSign(t, c, "again")
	mustClose(t, c)
}

func testAuditKey(t *testing.T, token hsm.Token, public *ecdsa.PublicKey) {
	k, err := hsm.OpenAuditKey([]hsm.Token{token}, nil, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if !k.Public().Equal(public) || k.Token() != token.Info() {
		t.Error("another key")
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 5 {
				digest := sha256.Sum256(fmt.Append(nil, i, j))
				der, err := k.Sign(digest[:])
				if err != nil {
					t.Error(err)
				} else if !ecdsa.VerifyASN1(public, digest[:], der) {
					t.Error("the signature does not verify")
				}
				if i == 0 && j == 2 { // sessions of the generation before are lost
					if err := token.Reset(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	mustClose(t, k)
	mustClose(t, k)
	if _, err := k.Sign(make([]byte, 32)); !errors.Is(err, hsm.ErrSessionClosed) {
		t.Errorf("signature of a closed key: %v", err)
	}
}
