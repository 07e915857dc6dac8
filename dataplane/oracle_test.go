package dataplane

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"slices"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// The envelope a second time, written from docs/ciphertext.md with the standard library's AES-GCM and the token's AES-ECB, and none of the
// packages blob, kdf and aesgcm: the tests read and make blobs with it.

// ecb encrypts one block under the derivation root.
func (w *world) ecb(block [16]byte) (out [16]byte) {
	w.Helper()
	s, err := w.bare.OpenSession()
	w.must(err)
	defer s.Close()
	w.must(s.Round(block[:], out[:], nil))
	return out
}

func xor(a, b [16]byte) (out [16]byte) {
	subtle.XORBytes(out[:], a[:], b[:])
	return out
}

// cmac is CMAC (SP 800-38B §6.2) of a message of whole blocks.
func (w *world) cmac(message []byte) [16]byte {
	k1 := w.ecb([16]byte{})
	carry := k1[0]&0x80 != 0
	for i := range k1 {
		k1[i] <<= 1
		if i < 15 && k1[i+1]&0x80 != 0 {
			k1[i] |= 1
		}
	}
	if carry {
		k1[15] ^= 0x87
	}
	var c [16]byte
	for ; len(message) > 16; message = message[16:] {
		c = w.ecb(xor(c, [16]byte(message)))
	}
	return w.ecb(xor(xor(c, [16]byte(message)), k1))
}

// keyOf derives message key and commitment of §3 for a key version and nonce.
func (w *world) keyOf(v *snapshot.VersionRecord, nonce []byte) (aead cipher.AEAD, commitment []byte) {
	w.Helper()
	var b []byte
	for i := byte(1); i <= 3; i++ {
		block := w.cmac(slices.Concat(v.Salt[:], []byte{0, i, 'X', 0}, nonce[:12]))
		b = append(b, block[:]...)
	}
	block, err := aes.NewCipher(b[:32])
	w.must(err)
	aead, err = cipher.NewGCM(block)
	w.must(err)
	return aead, b[32:]
}

// canonical is the encryption context of §2.
func canonical(context map[string]string) []byte {
	var keys []string
	for k := range context {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	b := binary.BigEndian.AppendUint16(nil, uint16(len(keys)))
	for _, k := range keys {
		for _, s := range []string{k, context[k]} {
			b = append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
		}
	}
	return b
}

// blob makes a blob of plaintext under version number (from 1) of the key called name.
func (w *world) blob(name string, number int, context map[string]string, plaintext []byte) []byte {
	w.Helper()
	w.records.mu.Lock()
	k := w.records.keys[keyID(name)]
	w.records.mu.Unlock()
	var nonce [24]byte
	_, _ = rand.Read(nonce[:])
	aead, commitment := w.keyOf(&k.Versions[number-1], nonce[:])
	account := binary.BigEndian.AppendUint64(nil, uint64(k.Account))
	form := byte(0)
	if k.ID.MultiRegion {
		form = 1
	}
	h := slices.Concat([]byte{1, 1}, account[2:], []byte{form}, k.ID.UUID[:], binary.BigEndian.AppendUint32(nil, uint32(number)), nonce[:], commitment)
	return aead.Seal(bytes.Clone(h), nonce[12:], plaintext, append(h, canonical(context)...))
}

// open reads a blob of any key of the table.
func (w *world) open(b []byte, context map[string]string) (key keyid.ID, number uint32, plaintext []byte, ok bool) {
	w.Helper()
	if len(b) < 86 || b[0] != 1 || b[1] != 1 {
		return key, 0, nil, false
	}
	account := keyid.Account(binary.BigEndian.Uint64(append(make([]byte, 2), b[2:8]...)))
	key = keyid.ID{UUID: [16]byte(b[9:25]), MultiRegion: b[8] == 1}
	number = binary.BigEndian.Uint32(b[25:29])
	w.records.mu.Lock()
	k := w.records.keys[key]
	w.records.mu.Unlock()
	if k == nil || k.Account != account || number == 0 || int(number) > len(k.Versions) {
		return key, number, nil, false
	}
	aead, commitment := w.keyOf(&k.Versions[number-1], b[29:53])
	if !bytes.Equal(commitment, b[53:69]) {
		return key, number, nil, false
	}
	plaintext, err := aead.Open(nil, b[41:53], b[69:], append(bytes.Clone(b[:69]), canonical(context)...))
	return key, number, plaintext, err == nil
}
