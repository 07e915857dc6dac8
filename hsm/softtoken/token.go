package softtoken

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/secret"
)

// Config names a soft token.
type Config struct {
	Dir     string // holds token.json, 0700
	PINFile string // "" means <Dir>/pin
	Create  bool   // make the token, and without PINFile a random PIN, where Dir has no token, and the audit key where the token has none
	Label   string // of a token that is made; "" means "keyplane soft token"
}

// Token is an opened soft token.
type Token struct {
	info       hsm.TokenInfo
	root       cipher.Block // of R; safe for concurrent use; its key schedule cannot be wiped
	wrapping   cipher.Block // of W; the same
	id         hsm.RootID
	audit      *ecdsa.PrivateKey // nil: the file is of a version without; cannot be wiped either
	ca         *ecdsa.PrivateKey // the same
	generation atomic.Uint64
	closed     atomic.Bool
}

// Open opens the token, or makes it first. The error is hsm.ErrPIN where the PIN does not open the file.
func Open(cfg Config) (*Token, error) { return open(cfg, iterations) }

// open with another cost than Open's is for tests: under the race detector the real one takes seconds.
func open(cfg Config, cost int) (*Token, error) {
	f, err := read(cfg.Dir, cost)
	if errors.Is(err, os.ErrNotExist) && cfg.Create {
		label := cfg.Label
		if label == "" {
			label = "keyplane soft token"
		}
		if len(label) > labelMax {
			return nil, fmt.Errorf("softtoken: label longer than %d bytes", labelMax)
		}
		// If another process was faster, its token is the one to open.
		if err := create(cfg.Dir, cfg.PINFile, label, nil, cost); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("softtoken: %w", err)
		}
		f, err = read(cfg.Dir, cost)
	}
	if err != nil {
		return nil, fmt.Errorf("softtoken: %w", err)
	}
	pinFile := cfg.PINFile
	if pinFile == "" {
		pinFile = filepath.Join(cfg.Dir, pinName)
	}
	pin, err := hsm.ReadPIN(pinFile)
	if err != nil {
		return nil, fmt.Errorf("softtoken: %w", err)
	}
	defer pin.Wipe()
	if f.Version < version && cfg.Create {
		if err := upgrade(cfg.Dir, pin, version, cost); err != nil {
			return nil, fmt.Errorf("softtoken: %s: making the audit key: %w", cfg.Dir, err)
		}
		if f, err = read(cfg.Dir, cost); err != nil {
			return nil, fmt.Errorf("softtoken: %w", err)
		}
	}
	keys, err := f.open(pin)
	if err != nil {
		return nil, fmt.Errorf("softtoken: %s: %w", cfg.Dir, err)
	}
	defer secret.Wipe(keys)
	block, err := aes.NewCipher(keys[:rootLen])
	if err != nil {
		return nil, fmt.Errorf("softtoken: %w", err)
	}
	wrapping, err := aes.NewCipher(keys[rootLen : 2*rootLen])
	if err != nil {
		return nil, fmt.Errorf("softtoken: %w", err)
	}
	var audit, ca *ecdsa.PrivateKey
	if len(keys) >= keysLen {
		if audit, err = ecdsa.ParseRawPrivateKey(elliptic.P256(), keys[2*rootLen:keysLen]); err != nil {
			return nil, fmt.Errorf("softtoken: audit key: %w", err)
		}
	}
	if len(keys) == keysLenCA {
		if ca, err = ecdsa.ParseRawPrivateKey(elliptic.P256(), keys[keysLen:]); err != nil {
			return nil, fmt.Errorf("softtoken: CA key: %w", err)
		}
	}
	t := &Token{root: block, wrapping: wrapping, audit: audit, ca: ca, info: hsm.TokenInfo{
		Label: f.Label, Serial: f.Serial, Manufacturer: "keyplane", Model: "soft token", Module: "soft token",
		Software: true, InProcess: true,
	}}
	var image [aes.BlockSize]byte
	block.Encrypt(image[:], []byte(hsm.RootIDBlock))
	t.id = hsm.RootID(image[:8])
	return t, nil
}

// InitCA makes the CA key of a token that has none, and says whether it did. There has to be a token.
func InitCA(cfg Config) (made bool, err error) { return initCA(cfg, iterations) }

func initCA(cfg Config, cost int) (made bool, err error) {
	f, err := read(cfg.Dir, cost)
	if err != nil || f.Version == versionCA {
		return false, err
	}
	pinFile := cfg.PINFile
	if pinFile == "" {
		pinFile = filepath.Join(cfg.Dir, pinName)
	}
	pin, err := hsm.ReadPIN(pinFile)
	if err != nil {
		return false, fmt.Errorf("softtoken: %w", err)
	}
	defer pin.Wipe()
	if err := upgrade(cfg.Dir, pin, versionCA, cost); err != nil {
		return false, fmt.Errorf("softtoken: %s: making the CA key: %w", cfg.Dir, err)
	}
	return true, nil
}

// Info says which token this is.
func (t *Token) Info() hsm.TokenInfo { return t.info }

// Roots names the derivation root. That it never leaves the token is this package's word, not an attribute.
func (t *Token) Roots() (hsm.Roots, error) { return hsm.Roots{ID: t.id}, nil }

// OpenSession opens a session; there is no limit to them.
func (t *Token) OpenSession() (hsm.Session, error) {
	if t.closed.Load() {
		return nil, &hsm.Error{CKR: hsm.CKR_CRYPTOKI_NOT_INITIALIZED, Function: "C_OpenSession"}
	}
	return &session{token: t, root: t.root, generation: t.generation.Load()}, nil
}

// OpenAuditSession opens a session with the audit key.
func (t *Token) OpenAuditSession() (hsm.AuditSession, error) {
	return t.openPair(t.audit, hsm.ErrNoAuditKey)
}

// OpenCASession opens a session with the CA key.
func (t *Token) OpenCASession() (hsm.AuditSession, error) { return t.openPair(t.ca, hsm.ErrNoCAKey) }

func (t *Token) openPair(key *ecdsa.PrivateKey, none error) (hsm.AuditSession, error) {
	switch {
	case t.closed.Load():
		return nil, &hsm.Error{CKR: hsm.CKR_CRYPTOKI_NOT_INITIALIZED, Function: "C_OpenSession"}
	case key == nil:
		return nil, none
	}
	return &pairSession{token: t, key: key, generation: t.generation.Load()}, nil
}

// Reset starts a new generation; there is no login to lose.
func (t *Token) Reset() error {
	t.generation.Add(1)
	return nil
}

// Generation counts Resets.
func (t *Token) Generation() uint64 { return t.generation.Load() }

// Close makes every session fail.
func (t *Token) Close() error {
	t.closed.Store(true)
	return nil
}

type session struct {
	token      *Token
	root       cipher.Block
	generation uint64
	closed     bool
}

// Round encrypts block by block: AES-ECB is what the KDF's blocks want, each of them a CMAC's last step.
func (s *session) Round(in, out, random []byte) error {
	if len(in)%aes.BlockSize != 0 || len(out) != len(in) {
		panic("softtoken: in is not whole blocks or out is not as long")
	}
	if err := s.alive(); err != nil {
		clear(out)
		clear(random)
		return err
	}
	if _, err := io.ReadFull(rand.Reader, random); err != nil {
		clear(out)
		clear(random)
		return &hsm.Error{CKR: hsm.CKR_RANDOM_NO_RNG, Function: "C_GenerateRandom"}
	}
	for i := 0; i < len(in); i += aes.BlockSize {
		s.root.Encrypt(out[i:i+aes.BlockSize], in[i:i+aes.BlockSize])
	}
	return nil
}

func (s *session) alive() error {
	if s.closed {
		return hsm.ErrSessionClosed
	}
	return s.token.alive(s.generation, "C_EncryptInit")
}

// alive is the error of a session of some generation, from a function.
func (t *Token) alive(generation uint64, function string) error {
	switch {
	case t.closed.Load():
		return hsm.ErrSessionClosed
	case generation != t.generation.Load():
		return &hsm.Error{CKR: hsm.CKR_SESSION_HANDLE_INVALID, Function: function}
	}
	return nil
}

func (s *session) Close() error {
	s.closed = true
	s.root = nil
	return nil
}

type pairSession struct {
	token      *Token
	key        *ecdsa.PrivateKey
	generation uint64
	closed     bool
}

func (s *pairSession) Public() *ecdsa.PublicKey { return &s.key.PublicKey }

func (s *pairSession) Sign(digest [32]byte) (sig [64]byte, err error) {
	if s.closed {
		return sig, hsm.ErrSessionClosed
	}
	if err := s.token.alive(s.generation, "C_SignInit"); err != nil {
		return sig, err
	}
	r, v, err := ecdsa.Sign(rand.Reader, s.key, digest[:])
	if err != nil {
		return sig, &hsm.Error{CKR: hsm.CKR_FUNCTION_FAILED, Function: "C_Sign"}
	}
	r.FillBytes(sig[:32])
	v.FillBytes(sig[32:])
	return sig, nil
}

func (s *pairSession) Close() error {
	s.closed = true
	return nil
}
