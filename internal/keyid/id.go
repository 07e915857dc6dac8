package keyid

const (
	idLen             = 36 // both forms
	multiRegionPrefix = "mrk-"
	hexDigits         = "0123456789abcdef"
	notHex            = 0xff
)

// unhex maps the lower-case hexadecimal digits to their values and every other byte to notHex.
var unhex = func() (t [256]byte) {
	for i := range t {
		t[i] = notHex
	}
	for i := range len(hexDigits) {
		t[hexDigits[i]] = byte(i)
	}
	return t
}()

// ID is a key ID: the 128 bits of a UUID, or of the 32 digits after mrk- for a multi-Region key. It is comparable, and a usable map key.
type ID struct {
	UUID        [16]byte
	MultiRegion bool
}

// NewID makes a key ID of 16 random bytes. A single-Region ID is a version 4 UUID (RFC 9562 §5.4); a multi-Region ID keeps all 128 bits.
func NewID(random [16]byte, multiRegion bool) ID {
	id := ID{UUID: random, MultiRegion: multiRegion}
	if !multiRegion {
		id.UUID[6] = id.UUID[6]&0x0f | 0x40
		id.UUID[8] = id.UUID[8]&0x3f | 0x80
	}
	return id
}

// ParseID reads a key ID: 8-4-4-4-12 hexadecimal digits, or mrk- and 32 of them. Only lower case is accepted, which is what KMS hands
// out: with both cases one key would have many names, and policies, caches and audit records compare names. The version and variant bits of
// a UUID are not looked at, because the key IDs of KMS do not keep to them.
func ParseID(s []byte) (ID, bool) {
	var id ID
	if len(s) != idLen {
		return ID{}, false
	}
	if string(s[:len(multiRegionPrefix)]) == multiRegionPrefix {
		id.MultiRegion = true
		if !decodeHex(id.UUID[:], s[len(multiRegionPrefix):]) {
			return ID{}, false
		}
		return id, true
	}
	if s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' ||
		!decodeHex(id.UUID[0:4], s[0:8]) || !decodeHex(id.UUID[4:6], s[9:13]) || !decodeHex(id.UUID[6:8], s[14:18]) ||
		!decodeHex(id.UUID[8:10], s[19:23]) || !decodeHex(id.UUID[10:16], s[24:36]) {
		return ID{}, false
	}
	return id, true
}

// decodeHex fills dst from 2*len(dst) digits of s.
func decodeHex(dst, s []byte) bool {
	for i := range dst {
		hi, lo := unhex[s[2*i]], unhex[s[2*i+1]]
		if hi|lo == notHex { // a digit is below 16, so only notHex sets the upper bits
			return false
		}
		dst[i] = hi<<4 | lo
	}
	return true
}

// Append appends the ID as KMS spells it.
func (id ID) Append(dst []byte) []byte {
	if id.MultiRegion {
		return appendHex(append(dst, multiRegionPrefix...), id.UUID[:])
	}
	dst = append(appendHex(dst, id.UUID[0:4]), '-')
	dst = append(appendHex(dst, id.UUID[4:6]), '-')
	dst = append(appendHex(dst, id.UUID[6:8]), '-')
	dst = append(appendHex(dst, id.UUID[8:10]), '-')
	return appendHex(dst, id.UUID[10:16])
}

// String is the ID as KMS spells it.
func (id ID) String() string { return string(id.Append(nil)) }

func appendHex(dst, b []byte) []byte {
	for _, c := range b {
		dst = append(dst, hexDigits[c>>4], hexDigits[c&15])
	}
	return dst
}
