package snapshot

import (
	"crypto/sha256"
	"errors"
	"testing"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// The hash input is written out by hand here.
func TestPrivateKeyIDLayout(t *testing.T) {
	for _, mrk := range []bool{false, true} {
		id := keyid.ID{MultiRegion: mrk}
		form := "\x00"
		if mrk {
			form = "\x01"
		}
		for i := range id.UUID {
			id.UUID[i] = byte(i)
		}
		in := "keyplane private key v1" +
			"\x00\x19\xdf\x6e\x41\x4d" + // six bytes of the account, big-endian
			form + "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f" +
			"RSA_2048\x00SIGN_VERIFY\x00" + "\x01\x02\x03\x04\x05\x06\x07\x08" + "\x01" +
			"\x00\x00\x00\x07wrapped" + "public"
		p := &PrivateKey{Root: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}, Software: true, Wrapped: []byte("wrapped"), Public: []byte("public")}
		if got, want := PrivateKeyID(0x0019df6e414d, id, "RSA_2048", "SIGN_VERIFY", p), sha256.Sum256([]byte(in)); got != want {
			t.Errorf("multi-Region %v: got %x, want %x", mrk, got, want)
		}
	}
	// What is wrapped and what is public cannot be exchanged for each other.
	of := func(wrapped, public string) [32]byte {
		return PrivateKeyID(1, keyid.ID{}, "RSA_2048", "SIGN_VERIFY", &PrivateKey{Wrapped: []byte(wrapped), Public: []byte(public)})
	}
	if of("ab", "c") == of("a", "bc") {
		t.Error("the boundary between the two is not in the ID")
	}
}

func TestRecordCheckPrivate(t *testing.T) {
	for _, s := range keyspec.All() {
		for u := keyspec.EncryptDecrypt; u <= keyspec.EncapsulateDecapsulate; u <<= 1 {
			p := &PrivateKey{Wrapped: []byte("wrapped")}
			if s.Info().Public > 0 {
				p.Public = []byte("public")
			}
			r := Record{ID: keyid.ID{UUID: [16]byte{1}}, Account: 111122223333, State: kmsapi.StateEnabled, Spec: s.String(), Usage: u.String(), Current: -1, Private: p}
			p.ID = PrivateKeyID(r.Account, r.ID, r.Spec, r.Usage, p)
			want := error(ErrDamaged)
			if s.Info().Usages&u != 0 {
				want = nil
			}
			if err := r.Check(); !errors.Is(err, want) {
				t.Errorf("%s for %s: %v", s, u, err)
			}
			r.ID.UUID[0]++
			if err := r.Check(); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s for %s under another key ID: %v", s, u, err)
			}
		}
	}
}
