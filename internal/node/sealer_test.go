package node

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
)

func TestSealer(t *testing.T) {
	s := sealerOn(t, tokenA)
	aad := []byte("/keyplane/accesskeys/AKIA")
	for _, n := range []int{1, 40, 4096} {
		plaintext := bytes.Repeat([]byte{7}, n)
		sealed, err := s.Seal(plaintext, aad)
		if err != nil {
			t.Fatal(err)
		}
		if len(sealed) != 8+85+n || !bytes.Equal(sealed[:8], s.primary[:]) {
			t.Errorf("%d bytes sealed are %d, root %x", n, len(sealed), sealed[:8])
		}
		if n > 16 && bytes.Contains(sealed, plaintext) {
			t.Error("the plaintext is in the sealed text")
		}
		got, err := s.Open(sealed, aad)
		if err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("%d bytes: %v", n, err)
		}
		again, err := s.Seal(plaintext, aad)
		if err != nil || bytes.Equal(again, sealed) {
			t.Error("sealing twice gives the same:", err)
		}
	}
}

func TestSealerRefuses(t *testing.T) {
	s := sealerOn(t, tokenA)
	aad := []byte("name")
	sealed, err := s.Seal([]byte("secret"), aad)
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(what string, b, aad []byte) {
		t.Helper()
		if got, err := s.Open(b, aad); !errors.Is(err, errSealed) || got != nil {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	for i := range sealed {
		for _, bit := range []byte{1, 0x80} {
			b := bytes.Clone(sealed)
			b[i] ^= bit
			refuse("bit flipped", b, aad)
		}
	}
	for n := range sealed {
		refuse("cut short", sealed[:n], aad)
	}
	refuse("longer", append(bytes.Clone(sealed), 0), aad)
	refuse("empty", nil, aad)
	refuse("of another record", sealed, []byte("Name"))
	refuse("of no record", sealed, nil)
	// The boundary between header and binding cannot be moved.
	refuse("binding and header mixed", sealed, append(sealed[8:77:77], aad...))
}

// Another token's secrets do not open, and say so; a token that fails is another matter.
func TestSealerRoots(t *testing.T) {
	a, b, both := sealerOn(t, tokenA), sealerOn(t, tokenB), sealerOn(t, tokenB, tokenA)
	sealed, err := a.Seal([]byte("secret"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Open(sealed, nil); !errors.Is(err, errSealed) {
		t.Error("under another root:", err)
	}
	forged := append(bytes.Clone(b.primary[:]), sealed[8:]...)
	if _, err := b.Open(forged, nil); !errors.Is(err, errSealed) {
		t.Error("under another root's name:", err)
	}
	if got, err := both.Open(sealed, nil); err != nil || string(got) != "secret" {
		t.Errorf("where both tokens are: %q, %v", got, err)
	}
	failing := &sealer{}
	failing.ready(func(*hsm.Job, time.Time) error { return hsm.ErrTimeout }, a.primary)
	if _, err := failing.Open(sealed, nil); !errors.Is(err, hsm.ErrTimeout) {
		t.Error("where the token does not answer:", err)
	}
	if _, err := failing.Seal([]byte("secret"), nil); !errors.Is(err, hsm.ErrTimeout) {
		t.Error("sealing where the token does not answer:", err)
	}
}
