// Package keywrap is AES Key Wrap with Padding, RFC 5649, which is CKM_AES_KEY_WRAP_KWP and NIST SP 800-38F's KWP. It is deterministic and
// authenticates what it wraps.
package keywrap

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
)

const (
	semiblock = 8
	kwpMagic  = 0xA65959A6
	kwpMax    = 1 << 16 // bytes: far more than any key
)

// Wrap appends the wrapped form of key, 1 to kwpMax bytes, under the block cipher.
func Wrap(dst []byte, block cipher.Block, key []byte) []byte {
	n := (len(key) + semiblock - 1) / semiblock
	at := len(dst)
	dst = append(dst, make([]byte, (n+1)*semiblock)...)
	out := dst[at:]
	binary.BigEndian.PutUint32(out, kwpMagic)
	binary.BigEndian.PutUint32(out[4:], uint32(len(key)))
	copy(out[semiblock:], key)
	if n == 1 {
		block.Encrypt(out, out)
		return dst
	}
	var b [2 * semiblock]byte
	copy(b[:semiblock], out)
	for t := 1; t <= 6*n; t++ {
		r := out[((t-1)%n+1)*semiblock:][:semiblock]
		copy(b[semiblock:], r)
		block.Encrypt(b[:], b[:])
		copy(r, b[semiblock:])
		a := binary.BigEndian.Uint64(b[:]) ^ uint64(t)
		binary.BigEndian.PutUint64(b[:], a)
	}
	copy(out, b[:semiblock])
	clear(b[:])
	return dst
}

// Unwrap is the key that was wrapped, false if nothing was, or not like this. The key is the caller's to clear.
func Unwrap(block cipher.Block, wrapped []byte) ([]byte, bool) {
	n := len(wrapped)/semiblock - 1
	if len(wrapped)%semiblock != 0 || n < 1 || len(wrapped) > kwpMax+2*semiblock {
		return nil, false
	}
	key := append([]byte(nil), wrapped[semiblock:]...)
	var b [2 * semiblock]byte
	copy(b[:], wrapped)
	if n == 1 {
		block.Decrypt(b[:], b[:])
		copy(key, b[semiblock:])
	} else {
		for t := 6 * n; t >= 1; t-- {
			r := key[(t-1)%n*semiblock:][:semiblock]
			copy(b[semiblock:], r)
			a := binary.BigEndian.Uint64(b[:]) ^ uint64(t)
			binary.BigEndian.PutUint64(b[:], a)
			block.Decrypt(b[:], b[:])
			copy(r, b[semiblock:])
		}
	}
	magic, size := binary.BigEndian.Uint32(b[:]), int64(binary.BigEndian.Uint32(b[4:]))
	clear(b[:])
	ok := magic == kwpMagic && size > int64(len(key)-semiblock) && size <= int64(len(key))
	if ok {
		var zero [semiblock]byte
		pad := key[size:]
		ok = subtle.ConstantTimeCompare(pad, zero[:len(pad)]) == 1
	}
	if !ok {
		clear(key)
		return nil, false
	}
	return key[:size], true
}
