package softtoken

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/secret"
)

const (
	fileName      = "token.json"
	pinName       = "pin"
	version       = 2 // of a token that is made; 1 has no audit key
	versionCA     = 3 // that of a token with a CA key
	kdfName       = "PBKDF2-HMAC-SHA-256"
	iterations    = 600_000    // OWASP Password Storage Cheat Sheet, PBKDF2-HMAC-SHA256
	iterationsMax = 10_000_000 // a few seconds; a file that asks for more is not ours
	saltLen       = 32
	rootLen       = 32
	nonceLen      = 12
	pairLen       = 32 // of a private half: the audit key's, the CA key's
	keysLen       = 2*rootLen + pairLen
	keysLenCA     = keysLen + pairLen
	tagLen        = 16
	fileMax       = 4096 // bytes
	labelMax      = 32   // as in CK_TOKEN_INFO
	serialLen     = 16
)

// file is token.json. Sealed is AES-256-GCM(key, Nonce, R || W || A || C) under key = PBKDF2(PIN, Salt), with every other field as AAD. A is the
// audit key's private half, a P-256 scalar, which version 1 does not have; C is the CA key's, which only version 3 has.
type file struct {
	Version    int    `json:"version"`
	Label      string `json:"label"`
	Serial     string `json:"serial"`
	KDF        string `json:"kdf"`
	Iterations int    `json:"iterations"`
	Salt       []byte `json:"salt"`
	Nonce      []byte `json:"nonce"`
	Sealed     []byte `json:"sealed"`
}

// aad is unambiguous: fixed-width numbers, and a length before every string.
func (f *file) aad() []byte {
	b := []byte("keyplane soft token")
	b = binary.BigEndian.AppendUint32(b, uint32(f.Version))
	b = binary.BigEndian.AppendUint32(b, uint32(f.Iterations))
	for _, s := range []string{f.Label, f.Serial, f.KDF, string(f.Salt), string(f.Nonce)} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return b
}

// check refuses anything this version does not write, and a key derivation cheaper than cost.
func (f *file) check(cost int) error {
	switch {
	case f.Version < 1 || f.Version > versionCA:
		return fmt.Errorf("version %d, this build reads 1 to %d", f.Version, versionCA)
	case f.KDF != kdfName, f.Iterations < cost, f.Iterations > iterationsMax:
		return fmt.Errorf("key derivation %q with %d iterations is not accepted", f.KDF, f.Iterations)
	case len(f.Salt) != saltLen, len(f.Nonce) != nonceLen, len(f.Sealed) != f.keysLen()+tagLen,
		len(f.Label) > labelMax, len(f.Serial) != serialLen:
		return errors.New("a field has the wrong length")
	}
	return nil
}

// keysLen is how many bytes of keys are sealed.
func (f *file) keysLen() int {
	return []int{1: 2 * rootLen, version: keysLen, versionCA: keysLenCA}[f.Version]
}

// gcm derives the sealing key. crypto/pbkdf2 takes the PIN as a string: that copy cannot be wiped and stays until memory is reused.
func (f *file) gcm(pin secret.Bytes) (cipher.AEAD, error) {
	key, err := pbkdf2.Key(sha256.New, string(pin.Expose()), f.Salt, f.Iterations, 32)
	if err != nil {
		return nil, err
	}
	defer secret.Wipe(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// open unseals the keys: R || W || A || C, as many as there are. A wrong PIN and a damaged file look the same and are hsm.ErrPIN.
func (f *file) open(pin secret.Bytes) ([]byte, error) {
	gcm, err := f.gcm(pin)
	if err != nil {
		return nil, err
	}
	keys, err := gcm.Open(nil, f.Nonce, f.Sealed, f.aad())
	if err != nil {
		return nil, hsm.ErrPIN
	}
	return keys, nil
}

// newFile makes a token with random keys, or with the roots of another.
func newFile(label string, pin secret.Bytes, roots []byte, cost int) (*file, error) {
	keys := make([]byte, 2*rootLen, keysLen)
	defer secret.Wipe(keys[:keysLen])
	var serial [serialLen / 2]byte
	for _, b := range [][]byte{serial[:], keys} {
		if _, err := io.ReadFull(rand.Reader, b); err != nil {
			return nil, err
		}
	}
	copy(keys, roots)
	if err := drawPair(keys[2*rootLen : keysLen]); err != nil {
		return nil, err
	}
	return seal(label, hex.EncodeToString(serial[:]), pin, keys[:keysLen], cost)
}

// drawPair draws a pair and puts its private half into to.
func drawPair(to []byte) error {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	private, err := k.Bytes()
	if err != nil {
		return err
	}
	copy(to, private)
	secret.Wipe(private)
	return nil
}

// seal makes the file of a token that holds keys, R || W || A or R || W || A || C.
func seal(label, serial string, pin secret.Bytes, keys []byte, cost int) (*file, error) {
	v := version
	if len(keys) == keysLenCA {
		v = versionCA
	}
	f := &file{Version: v, Label: label, Serial: serial, KDF: kdfName, Iterations: cost,
		Salt: make([]byte, saltLen), Nonce: make([]byte, nonceLen)}
	for _, b := range [][]byte{f.Salt, f.Nonce} {
		if _, err := io.ReadFull(rand.Reader, b); err != nil {
			return nil, err
		}
	}
	gcm, err := f.gcm(pin)
	if err != nil {
		return nil, err
	}
	f.Sealed = gcm.Seal(nil, f.Nonce, keys, f.aad())
	return f, nil
}

// read parses <dir>/token.json; os.ErrNotExist if there is none.
func read(dir string, cost int) (*file, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := hsm.CheckPrivate(d); err != nil {
		return nil, err
	}
	r, err := os.Open(filepath.Join(dir, fileName))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if err := hsm.CheckPrivate(r); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, fileMax+1))
	if err != nil {
		return nil, err
	}
	if len(b) > fileMax {
		return nil, fmt.Errorf("%s: longer than %d bytes", r.Name(), fileMax)
	}
	f, err := parse(b, cost)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Name(), err)
	}
	return f, nil
}

func parse(b []byte, cost int) (*file, error) {
	f := new(file)
	if err := json.Unmarshal(b, f); err != nil {
		return nil, err
	}
	if err := f.check(cost); err != nil {
		return nil, err
	}
	return f, nil
}

// create makes the directory, a PIN where pinFile is empty, and the token, with random roots where roots is nil. What is there is never overwritten.
func create(dir, pinFile, label string, roots []byte, cost int) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := hsm.CheckPrivate(d); err != nil {
		return err
	}
	if pinFile == "" {
		pinFile = filepath.Join(dir, pinName)
		// A PIN that an interrupted first start, or another process just now, has left is used: of two tokens sealed under it at the
		// same time only one gets its name.
		if _, err := os.Lstat(pinFile); errors.Is(err, os.ErrNotExist) {
			pin := append([]byte(rand.Text()), '\n')
			err := publish(dir, pinName, pin, os.Link)
			secret.Wipe(pin)
			if err != nil && !errors.Is(err, os.ErrExist) {
				return err
			}
		}
	}
	pin, err := hsm.ReadPIN(pinFile)
	if err != nil {
		return err
	}
	defer pin.Wipe()
	f, err := newFile(label, pin, roots, cost)
	if err != nil {
		return err
	}
	b, err := f.encode()
	if err != nil {
		return err
	}
	return publish(dir, fileName, b, os.Link)
}

func (f *file) encode() ([]byte, error) {
	b, err := json.MarshalIndent(f, "", "  ")
	return append(b, '\n'), err
}

// upgrade puts a file of a version with more keys in the place of one: the same token, with an audit key, and for versionCA with a CA key. Of several processes one
// does it, and the others find it done.
func upgrade(dir string, pin secret.Bytes, to, cost int) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err != nil { // until d is closed
		return fmt.Errorf("%s: lock: %w", dir, err)
	}
	old, err := read(dir, cost)
	if err != nil || old.Version >= to {
		return err
	}
	had, err := old.open(pin)
	if err != nil {
		return err
	}
	keys := make([]byte, (&file{Version: to}).keysLen())
	defer secret.Wipe(keys)
	n := copy(keys, had)
	secret.Wipe(had)
	for ; n < len(keys); n += pairLen {
		if err := drawPair(keys[n : n+pairLen]); err != nil {
			return err
		}
	}
	f, err := seal(old.Label, old.Serial, pin, keys, cost)
	if err != nil {
		return err
	}
	b, err := f.encode()
	if err != nil {
		return err
	}
	return publish(dir, fileName, b, os.Rename)
}

// publish makes dir/name appear whole and durable, or not at all. place is os.Link, which fails if the name exists, because another process
// has made it meanwhile, or os.Rename, which replaces it.
func publish(dir, name string, data []byte, place func(from, to string) error) (err error) {
	tmp, err := os.CreateTemp(dir, name+".new-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err = tmp.Write(data); err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = place(tmp.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
