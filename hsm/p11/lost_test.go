package p11

import (
	"errors"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/miekg/pkcs11"
)

// serve makes the roots in a token and shards over it.
func serve(t *testing.T, uri string) (*Token, *hsm.Shards) {
	t.Helper()
	if _, err := InitRoots(uri); err != nil {
		t.Fatal(err)
	}
	token := mustOpen(t, uri)
	token.streamAge = 0 // the next round notices a loss
	shards, err := hsm.NewShards(hsm.ShardsConfig{Tokens: []hsm.Token{token}, SessionsPerToken: 2, RoundMax: 8})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(shards.Close)
	return token, shards
}

// derive runs a fixed derivation and a drawn one and returns the first's result.
func derive(t *testing.T, s *hsm.Shards, shard int) (out [48]byte, err error) {
	t.Helper()
	j := &hsm.Job{N: 2, Root: s.Primary(), Random: make([]byte, 32)}
	j.Derive[0].Nonce[3] = 7
	j.Derive[1].Draw = true
	s.Run(shard, []*hsm.Job{j})
	return j.Derive[0].Out, j.Err
}

// TestLossIsHidden takes sessions and logins away behind the shards' back, through the module itself. Callers see nothing but results.
func TestLossIsHidden(t *testing.T) {
	for name, uri := range map[string]func(testing.TB) string{"SoftHSM": hsmtest.SoftHSM, "NSS": hsmtest.NSS} {
		for what, lose := range map[string]func(*Token) error{
			"CloseAllSessions": func(token *Token) error { return token.mod.ctx.CloseAllSessions(token.slot) },
			"Logout":           func(token *Token) error { return token.mod.ctx.Logout(token.anchor) },
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				token, shards := serve(t, uri(t))
				want, err := derive(t, shards, 0)
				if err != nil {
					t.Fatal(err)
				}
				for round := range 3 {
					if err := lose(token); err != nil && err != pkcs11.Error(pkcs11.CKR_USER_NOT_LOGGED_IN) {
						t.Fatal(err)
					}
					for shard := range shards.Len() {
						got, err := derive(t, shards, shard)
						if err != nil {
							t.Fatalf("loss %d, shard %d: %v", round, shard, err)
						}
						if got != want {
							t.Fatalf("loss %d, shard %d: another result", round, shard)
						}
					}
				}
				if err := shards.Healthy(); err != nil {
					t.Error(err)
				}
				if name == "NSS" && what == "Logout" {
					return // NSS keeps a session's private objects after C_Logout, so the rounds never notice
				}
				if st := shards.Stats(); st.Slots[0].Resets == 0 || st.Shards[0].Replaced == 0 {
					t.Errorf("nothing was lost: %+v", st)
				}
			})
		}
	}
}

// TestSessionKilled closes one session by its number, as another part of the process might.
func TestSessionKilled(t *testing.T) {
	token, shards := serve(t, hsmtest.SoftHSM(t))
	want, err := derive(t, shards, 0)
	if err != nil {
		t.Fatal(err)
	}
	// A probe session tells how far the module has counted: the shards' sessions are below.
	top, err := token.OpenSession()
	if err != nil {
		t.Fatal(err)
	}
	killed := 0
	for h := top.(*session).handle - 1; h > token.anchor; h-- {
		if token.mod.ctx.CloseSession(h) == nil {
			killed++
		}
	}
	if killed < 2 {
		t.Fatalf("%d sessions killed", killed)
	}
	for shard := range shards.Len() {
		if got, err := derive(t, shards, shard); err != nil || got != want {
			t.Errorf("shard %d: %v", shard, err)
		}
	}
	if st := shards.Stats(); st.Slots[0].Quarantines != 0 || st.Slots[0].Resets != 0 {
		t.Errorf("more than sessions were replaced: %+v", st.Slots[0])
	}
	top.Close()
}

// TestFinalizedModule finalises the module behind the shards' back. That cannot be hidden on the only token, but it heals by itself.
func TestFinalizedModule(t *testing.T) {
	token, shards := serve(t, hsmtest.SoftHSM(t))
	want, err := derive(t, shards, 0)
	if err != nil {
		t.Fatal(err)
	}
	token.mod.mu.Lock() // with a call in flight SoftHSM crashes
	err = token.mod.fns.finalize()
	token.mod.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := derive(t, shards, 0); err == nil {
		t.Fatal("a finalised module served")
	} else if hsm.Final(err) != hsm.Internal && hsm.Final(err) != hsm.Unavailable {
		t.Errorf("outcome of %v: %d", err, hsm.Final(err))
	}
	for deadline := time.Now().Add(20 * time.Second); shards.Healthy() != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(shards.Healthy())
		}
	}
	for shard := range shards.Len() {
		if got, err := derive(t, shards, shard); err != nil || got != want {
			t.Errorf("shard %d after healing: %v", shard, err)
		}
	}
}

// TestLastSessionLogout: the anchor keeps the login when the last working session is closed; without the anchor it would be lost.
func TestLastSessionLogout(t *testing.T) {
	token := mustOpen(t, hsmtest.SoftHSM(t))
	if _, err := token.initRoots(); err != nil {
		t.Fatal(err)
	}
	s, err := token.OpenSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = token.OpenSession(); err != nil {
		t.Fatalf("after the last working session was closed: %v", err)
	}
	s.Close()
	if err := token.mod.ctx.CloseSession(token.anchor); err != nil {
		t.Fatal(err)
	}
	_, err = token.OpenSession()
	var e *hsm.Error
	if !errors.As(err, &e) || e.CKR != hsm.CKR_USER_NOT_LOGGED_IN {
		t.Fatalf("without the anchor: %v", err)
	}
	if err := token.Reset(); err != nil {
		t.Fatal(err)
	}
	if s, err = token.OpenSession(); err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// TestLoginLossLeaksNoSessions: sessions that outlive a lost login are closed when they are replaced.
func TestLoginLossLeaksNoSessions(t *testing.T) {
	token, shards := serve(t, hsmtest.SoftHSM(t))
	open := func() uint {
		ti, err := token.mod.ctx.GetTokenInfo(token.slot)
		if err != nil {
			t.Fatal(err)
		}
		return ti.SessionCount
	}
	before := open()
	for range 10 {
		if err := token.mod.ctx.Logout(token.anchor); err != nil {
			t.Fatal(err)
		}
		for shard := range shards.Len() {
			if _, err := derive(t, shards, shard); err != nil {
				t.Fatal(err)
			}
		}
	}
	// A replaced session is closed by its lane's goroutine, a moment later.
	for deadline := time.Now().Add(5 * time.Second); open() > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d sessions are open after 10 lost logins, %d before", open(), before)
		}
	}
}
