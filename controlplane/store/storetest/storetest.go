// Package storetest gives the tests of other packages a store: one embedded etcd for a whole package.
package storetest

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"io"
	"log"
	"log/slog"
	"os"

	"github.com/keyplane/keyplane/controlplane/store"
)

// Quiet is a logger that nobody hears.
var Quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// Run is for TestMain: it opens a store in a directory of its own, runs the tests and removes it again. It returns the exit status.
func Run(tests interface{ Run() int }, opened func(*store.Store)) int {
	dir, err := os.MkdirTemp("", "keyplane-store-")
	if err != nil {
		log.Print(err)
		return 1
	}
	s, err := store.OpenEmbedded(context.Background(), store.EmbeddedConfig{Dir: dir, Logger: Quiet, Sealer: NewSealer()})
	if err != nil {
		log.Print(err)
		return 1
	}
	if err := s.Authenticate(context.Background(), store.Trust{}); err != nil {
		log.Print(err)
		return 1
	}
	opened(s)
	code := tests.Run()
	if err := errors.Join(s.Close(), os.RemoveAll(dir)); err != nil {
		log.Print(err)
		code = 1
	}
	return code
}

// sealer is AES-256-GCM.
type sealer struct{ aead cipher.AEAD }

// NewSealer seals with AES-256-GCM under a new key of this process.
func NewSealer() store.Sealer {
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return sealer{aead}
}

func (s sealer) Seal(plaintext, aad []byte) ([]byte, error) {
	nonce := make([]byte, s.aead.NonceSize())
	rand.Read(nonce)
	return s.aead.Seal(nonce, nonce, plaintext, aad), nil
}

func (s sealer) Open(sealed, aad []byte) ([]byte, error) {
	if len(sealed) < s.aead.NonceSize() {
		return nil, store.ErrSealed
	}
	plaintext, err := s.aead.Open(nil, sealed[:s.aead.NonceSize()], sealed[s.aead.NonceSize():], aad)
	if err != nil {
		return nil, store.ErrSealed
	}
	return plaintext, nil
}
