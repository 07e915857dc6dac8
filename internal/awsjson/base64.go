package awsjson

// alphabet is the standard base64 alphabet, RFC 4648 §4.
const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

// notBase64 marks bytes outside the alphabet; sixBits holds for all others.
const (
	notBase64 = 0xff
	sixBits   = 0x3f
)

var unbase64 = func() (t [256]byte) {
	for i := range t {
		t[i] = notBase64
	}
	for i := range len(alphabet) {
		t[alphabet[i]] = byte(i)
	}
	return t
}()

// decodeBase64 decodes b over itself and returns the decoded length. encoding/base64 is not used because it skips line breaks, allocates
// its error, and does not promise to work in place.
func decodeBase64(b []byte) (n int, ok bool) {
	if len(b) == 0 {
		return 0, true
	}
	if len(b)%4 != 0 {
		return 0, false
	}
	last := b[len(b)-4:]
	for r := 0; r < len(b)-4; r += 4 {
		q := b[r : r+4 : r+4]
		c0, c1, c2, c3 := unbase64[q[0]], unbase64[q[1]], unbase64[q[2]], unbase64[q[3]]
		if c0|c1|c2|c3 > sixBits {
			return 0, false
		}
		out := b[n : n+3 : n+3]
		out[0], out[1], out[2] = c0<<2|c1>>4, c1<<4|c2>>2, c2<<6|c3
		n += 3
	}
	c0, c1, c2, c3 := unbase64[last[0]], unbase64[last[1]], unbase64[last[2]], unbase64[last[3]]
	switch {
	case c0|c1|c2|c3 <= sixBits:
		b[n], b[n+1], b[n+2] = c0<<2|c1>>4, c1<<4|c2>>2, c2<<6|c3
		return n + 3, true
	case c0|c1|c2 <= sixBits && last[3] == '=' && c2&3 == 0:
		b[n], b[n+1] = c0<<2|c1>>4, c1<<4|c2>>2
		return n + 2, true
	case c0|c1 <= sixBits && last[2] == '=' && last[3] == '=' && c1&15 == 0:
		b[n] = c0<<2 | c1>>4
		return n + 1, true
	}
	return 0, false
}
