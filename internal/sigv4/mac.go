package sigv4

import (
	"crypto/sha256"
	"encoding/binary"
)

const (
	blockSize = 64 // of SHA-256, bytes

	regionMax  = 64 // bytes
	serviceMax = 32 // bytes

	// scopeMax bounds <yyyymmdd>/<region>/<service>/aws4_request, textMax the longest string that is authenticated: the string to sign.
	scopeMax = 8 + 1 + regionMax + 1 + serviceMax + 1 + len(terminator)
	textMax  = len(algorithm) + 1 + len(basicDate) + 1 + scopeMax + 1 + 2*sha256.Size
)

// mac is HMAC-SHA-256 (RFC 2104) over buffers of its own: each half is the padded key and what follows it in one piece, so that one call of
// sha256.Sum256 makes it and nothing is allocated. Wiped after use by whoever set the key.
type mac struct {
	inner [blockSize + textMax]byte     // key ^ ipad || text
	outer [blockSize + sha256.Size]byte // key ^ opad || inner hash
}

// signingKeyWords is a signing key as four big-endian words: the form in which AccessKey shares it between goroutines.
type signingKeyWords [sha256.Size / 8]uint64

const (
	ipad = 0x3636363636363636
	opad = 0x5c5c5c5c5c5c5c5c
)

// setWords sets a 32-byte key.
func (m *mac) setWords(key *signingKeyWords) {
	for i := range blockSize / 8 {
		var w uint64
		if i < len(key) {
			w = key[i]
		}
		binary.BigEndian.PutUint64(m.inner[8*i:], w^ipad)
		binary.BigEndian.PutUint64(m.outer[8*i:], w^opad)
	}
}

// setKey sets a key of any length.
func (m *mac) setKey(key []byte) {
	var block [blockSize]byte
	if len(key) > blockSize {
		h := sha256.Sum256(key)
		copy(block[:], h[:])
		clear(h[:])
	} else {
		copy(block[:], key)
	}
	for i, c := range block {
		m.inner[i] = c ^ ipad&0xff
		m.outer[i] = c ^ opad&0xff
	}
	clear(block[:])
}

// text is the empty slice to append the text to. Up to textMax bytes stay in place.
func (m *mac) text() []byte { return m.inner[blockSize:blockSize] }

// sum authenticates text, which must be what text() returned with at most textMax bytes appended.
func (m *mac) sum(text []byte) [sha256.Size]byte {
	if len(text) > textMax || len(text) > 0 && &text[0] != &m.inner[blockSize] {
		panic("sigv4: authenticated text outside its buffer")
	}
	h := sha256.Sum256(m.inner[:blockSize+len(text)])
	copy(m.outer[blockSize:], h[:])
	return sha256.Sum256(m.outer[:])
}

func (m *mac) wipe() { *m = mac{} }

// appendStringToSign appends the string to sign. date is the X-Amz-Date, canonical the hash of the canonical request.
func appendStringToSign(dst, date []byte, region, service string, canonical *[sha256.Size]byte) []byte {
	dst = append(dst, algorithm...)
	dst = append(dst, '\n')
	dst = append(dst, date...)
	dst = append(dst, '\n')
	dst = appendScope(dst, date, region, service)
	dst = append(dst, '\n')
	return appendHex(dst, canonical)
}

func appendScope(dst, date []byte, region, service string) []byte {
	dst = append(dst, date[:8]...)
	dst = append(dst, '/')
	dst = append(dst, region...)
	dst = append(dst, '/')
	dst = append(dst, service...)
	dst = append(dst, '/')
	return append(dst, terminator...)
}

// deriveKey makes the signing key: HMAC(HMAC(HMAC(HMAC("AWS4" || secret, date), region), service), "aws4_request"). prefixed is
// "AWS4" || secret, date has 8 digits.
func deriveKey(prefixed, date []byte, region, service string) (words signingKeyWords) {
	var m mac
	m.setKey(prefixed)
	k := m.sum(append(m.text(), date...))
	for _, step := range [...]string{region, service, terminator} {
		m.setKey(k[:])
		k = m.sum(append(m.text(), step...))
	}
	for i := range words {
		words[i] = binary.BigEndian.Uint64(k[8*i:])
	}
	m.wipe()
	clear(k[:])
	return words
}
