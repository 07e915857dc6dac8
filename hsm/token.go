package hsm

import (
	"encoding/hex"
	"errors"
)

// RootID names a derivation root R: the first 8 bytes of E(RootIDBlock) under R. Two tokens with the same RootID hold the same key, and a
// job under that root may run on either.
type RootID [8]byte

// MarshalText and UnmarshalText make it hexadecimal in JSON.
func (r RootID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, r[:]), nil }
func (r *RootID) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(r) {
		return errors.New("hsm: a root ID has 16 hexadecimal digits")
	}
	_, err := hex.Decode(r[:], text)
	return err
}

// RootIDBlock is the one AES block that every token encrypts under its derivation root outside the key derivation: its image is the RootID
// and the known answer of self-tests and canaries.
//
// The image is no secret and gives nothing away. It would be half of a message-key block only if some message's KDF input were this very
// block, but those inputs are masked with the key version's offset (docs/ciphertext.md §3), 128 bits that come out of R itself over a
// salt made by the HSM: nobody can aim for it, and 2^40 key versions with 2^40 messages each meet it with probability 2^-46 and then
// without knowing where. The other direct inputs of R are the zero block (for K1) and salts, which the HSM draws.
const RootIDBlock = "keyplane root id"

// Handle is a PKCS#11 object handle, valid for one session generation.
type Handle uint64

// TokenInfo says which token this is and what it can do.
type TokenInfo struct {
	Label        string `json:"label"`
	Serial       string `json:"serial"`
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
	Module       string `json:"module"` // module path, or "soft token"
	Firmware     string `json:"firmware"`
	Software     bool   `json:"software"`   // keys are protected by this host only
	InProcess    bool   `json:"in_process"` // its calls are plain Go that always returns: nobody needs to watch over them
}

// Roots are the two AES keys every token of keyplane holds.
type Roots struct {
	ID RootID // of the derivation root
	// Clonable says that they can be copied to another token, wrapped, by whoever has the PINs of both the user and the Security Officer; else they never leave this one.
	Clonable bool
}

// Token is an opened token: logged in where it needs a login, its anchor session held. Methods are safe for concurrent use.
type Token interface {
	Info() TokenInfo
	// Roots reads the two roots' attributes back and refuses them unless they are sensitive, never extractable or clonable, and of the right usage.
	// ErrNoRoots if the token has none.
	Roots() (Roots, error)
	// OpenSession opens a session with the derivation root at hand. Sessions opened after a Reset belong to a new generation.
	// ErrNoRoots if the root is not there, CKR_USER_NOT_LOGGED_IN if the login is lost.
	OpenSession() (Session, error)
	// OpenAuditSession opens a session with the audit key at hand, whose attributes it reads back and refuses unless the private half is
	// sensitive, never extractable and for signatures only. ErrNoAuditKey if it is not there; else as OpenSession.
	OpenAuditSession() (AuditSession, error)
	// Reset re-establishes login and anchor session after the token was lost: single flight, bumps the generation. A wrong PIN is never
	// tried again: it returns ErrPIN at once from then on.
	Reset() error
	// Generation counts Resets; a session of an older generation is dead. It does not block: a Reset that hangs still answers it.
	Generation() uint64
	Close() error
}

// Session is one PKCS#11 session, used by one goroutine at a time.
type Session interface {
	// Round does, in one crossing: fill random (may be empty) from the token's generator; encrypt the blocks of in (a whole number of
	// 16-byte blocks, may be empty) with AES-ECB under the derivation root into out, which is as long as in and does not overlap it.
	// On an error both outputs are wiped. The error is an *Error unless the session is closed (ErrSessionClosed).
	Round(in, out, random []byte) error
	Close() error
}
