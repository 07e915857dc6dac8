package blob

// Lengths of what an external key adds, in bytes.
const (
	IVLen          = 12 // or
	IVLenLong      = 16
	OuterTagLen    = 16
	MetadataLenMax = 20

	outerMin = 1 + IVLen + OuterTagLen + 1
	outerMax = 1 + IVLenLong + OuterTagLen + 1 + MetadataLenMax

	ExternalLenMin = LenMin + outerMin // 116
	ExternalLenMax = LenMax + outerMax // 4235
)

// Outer is what follows the header of a blob of SuiteExternal: ciphertext || tag of our own, encrypted once more by an external key. The members are what the
// proxy of an external key store gives, and wants back (internal/xks).
type Outer struct {
	IV         []byte // 12 or 16 bytes
	Ciphertext []byte // of ciphertext || tag: 17 to 4112 bytes
	Tag        []byte // 16 bytes
	Metadata   []byte // at most 20 bytes
}

// Valid says whether o has an encoding.
func (o *Outer) Valid() bool {
	return (len(o.IV) == IVLen || len(o.IV) == IVLenLong) && len(o.Tag) == OuterTagLen && len(o.Metadata) <= MetadataLenMax &&
		len(o.Ciphertext) >= LenMin-HeaderLen && len(o.Ciphertext) <= LenMax-HeaderLen
}

// Append appends the encoding of o, which must be Valid: len(IV) (1) || IV || tag || len(metadata) (1) || metadata || ciphertext.
func (o *Outer) Append(dst []byte) []byte {
	if !o.Valid() {
		panic("blob: Append of an Outer without encoding")
	}
	dst = append(append(dst, byte(len(o.IV))), o.IV...)
	dst = append(append(dst, o.Tag...), byte(len(o.Metadata)))
	return append(append(dst, o.Metadata...), o.Ciphertext...)
}

// ParseOuter reads the rest of a blob of SuiteExternal. It accepts only what Append makes. The slices alias b; where it refuses, o is left as it was.
func ParseOuter(b []byte, o *Outer) bool {
	var p Outer
	var ok bool
	if p.IV, b, ok = counted(b); !ok || len(b) < OuterTagLen {
		return false
	}
	p.Tag, b = b[:OuterTagLen:OuterTagLen], b[OuterTagLen:]
	if p.Metadata, p.Ciphertext, ok = counted(b); !ok || !p.Valid() {
		return false
	}
	*o = p
	return true
}

// counted cuts off a value that follows its length, one byte.
func counted(b []byte) (value, rest []byte, ok bool) {
	if len(b) < 1 || len(b)-1 < int(b[0]) {
		return nil, nil, false
	}
	n := 1 + int(b[0])
	return b[1:n:n], b[n:], true
}
