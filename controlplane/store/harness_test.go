package store

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"log"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// shared is one embedded etcd for the whole package; tests keep apart by Region.
var shared *Store

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "keyplane-store-")
	if err != nil {
		log.Fatal(err)
	}
	shared, err = OpenEmbedded(context.Background(), EmbeddedConfig{Dir: dir, Logger: quiet, Sealer: xorSealer{}})
	if err != nil {
		log.Fatal(err)
	}
	if err := shared.Authenticate(context.Background(), Trust{}); err != nil {
		log.Fatal(err)
	}
	code := m.Run()
	if err := errors.Join(shared.Close(), os.RemoveAll(dir)); err != nil {
		log.Print(err)
		code = 1
	}
	os.Exit(code)
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// xorSealer stands in for an authenticated cipher: a mask, and a hash over aad and plaintext.
type xorSealer struct{}

func (xorSealer) Seal(plaintext, aad []byte) ([]byte, error) {
	sum := sha256.Sum256(append(append([]byte{}, aad...), plaintext...))
	out := append([]byte{}, sum[:]...)
	for _, b := range plaintext {
		out = append(out, b^0x5a)
	}
	return out, nil
}

func (x xorSealer) Open(sealed, aad []byte) ([]byte, error) {
	if len(sealed) < 32 {
		return nil, ErrSealed
	}
	var plain []byte
	for _, b := range sealed[32:] {
		plain = append(plain, b^0x5a)
	}
	if again, _ := x.Seal(plain, aad); string(again) != string(sealed) {
		return nil, ErrSealed
	}
	return plain, nil
}

var t0 = time.Date(2026, 11, 23, 12, 0, 0, 123_000_000, time.UTC)

// newKey is a record that holds every invariant, not stored yet.
func newKey(region string) *Key {
	var random [48]byte
	rand.Read(random[:])
	k := &Key{
		KeyName:     KeyName{Region: region, Account: 111122223333, ID: keyid.NewID([16]byte(random[:16]), false)},
		Description: "d", State: kmsapi.StateEnabled, Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS", Created: t0,
		Policy: Policy{Document: []byte("{}")},
	}
	addVersion(k, 1)
	return k
}

func addVersion(k *Key, number uint32) {
	v := Version{Created: t0}
	v.Number, v.Root = number, [8]byte{1, 2, 3}
	rand.Read(v.Salt[:])
	v.MaterialID = snapshot.MaterialID(k.Account, k.ID, number, &v.Salt)
	k.Versions, k.Current = append(k.Versions, v), number
}

func mustCreate(t testing.TB, s *Store, region string) *Key {
	t.Helper()
	k := newKey(region)
	if err := s.CreateKey(t.Context(), k, 1_000_000); err != nil {
		t.Fatal(err)
	}
	return k
}

func allow(*Key) error { return nil }
