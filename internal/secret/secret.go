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
//
// The bytes are behind two pointers because fmt prints an unexported field of another struct without asking the methods of its type. It
// shows a pointer in such a field as an address, but for a verb that does not suit it follows one pointer to a slice; it never follows two.
type Bytes struct {
	p **[]byte
	_ [0]func()
}

// New takes ownership of b: the caller does not keep it.
func New(b []byte) Bytes {
	p := &b
	return Bytes{p: &p}
}

// Expose returns the bytes themselves, valid until Wipe. Every call is a place to review.
func (s Bytes) Expose() []byte {
	if s.p == nil {
		return nil
	}
	return **s.p
}

// Len is the number of bytes.
func (s Bytes) Len() int { return len(s.Expose()) }

// Wipe clears the bytes. The value is empty afterwards for its holder; copies of it see zeros.
func (s *Bytes) Wipe() {
	Wipe(s.Expose())
	s.p = nil
}

// Equal compares in time that depends on the lengths only.
func (s Bytes) Equal(b []byte) bool { return subtle.ConstantTimeCompare(s.Expose(), b) == 1 }

func (s Bytes) String() string               { return Redacted }
func (s Bytes) GoString() string             { return Redacted }
func (s Bytes) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(Redacted)) }
func (s Bytes) LogValue() slog.Value         { return slog.StringValue(Redacted) }
func (s Bytes) MarshalText() ([]byte, error) { return []byte(Redacted), nil }
func (s Bytes) MarshalJSON() ([]byte, error) { return []byte(`"` + Redacted + `"`), nil }

// Wipe clears b up to its length.
func Wipe(b []byte) { clear(b) }
