// Package secret holds key bytes that must not be printed, logged, compared with == or left behind.
//
// Wiping clears the slice it is given. It cannot reach copies that the caller made, stack slots that the runtime moved, or registers.
package secret

import (
	"crypto/subtle"
	"fmt"
	"log/slog"
)

// Redacted is what every printing path shows instead of secret bytes.
const Redacted = "REDACTED"

// Bytes are secret bytes. Printing, logging or marshalling them gives REDACTED; the bytes themselves need a call to Expose.
// The zero value is empty. Not comparable, so that == does not compile.
type Bytes struct {
	b []byte
	_ [0]func()
}

// New takes ownership of b: the caller does not keep it.
func New(b []byte) Bytes { return Bytes{b: b} }

// Expose returns the bytes themselves, valid until Wipe. Every call is a place to review.
func (s Bytes) Expose() []byte { return s.b }

// Len is the number of bytes.
func (s Bytes) Len() int { return len(s.b) }

// Wipe clears the bytes. The value is empty afterwards for its holder; copies of it see zeros.
func (s *Bytes) Wipe() {
	Wipe(s.b)
	s.b = nil
}

// Equal compares in time that depends on the lengths only.
func (s Bytes) Equal(b []byte) bool { return subtle.ConstantTimeCompare(s.b, b) == 1 }

func (s Bytes) String() string               { return Redacted }
func (s Bytes) GoString() string             { return Redacted }
func (s Bytes) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(Redacted)) }
func (s Bytes) LogValue() slog.Value         { return slog.StringValue(Redacted) }
func (s Bytes) MarshalText() ([]byte, error) { return []byte(Redacted), nil }
func (s Bytes) MarshalJSON() ([]byte, error) { return []byte(`"` + Redacted + `"`), nil }

// Wipe clears b up to its length.
func Wipe(b []byte) { clear(b) }
