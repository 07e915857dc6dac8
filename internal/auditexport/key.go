package auditexport

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

const (
	keyBits = 3072
	pemMax  = 64 << 10 // bytes of a key file
)

// DigestKey reads the RSA key that signs digests from a PEM file that only its owner may read, PKCS #8 or PKCS #1, or makes it, mode 0600.
func DigestKey(file string) (*rsa.PrivateKey, error) {
	k, err := readKey(file)
	if errors.Is(err, os.ErrNotExist) {
		if err = makeKey(file); err == nil || errors.Is(err, os.ErrExist) {
			k, err = readKey(file)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("auditexport: digest key: %w", err)
	}
	return k, nil
}

func readKey(file string) (*rsa.PrivateKey, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: want a regular file with permissions 0600, not %s", file, info.Mode())
	}
	text, err := io.ReadAll(io.LimitReader(f, pemMax))
	if err != nil {
		return nil, err
	}
	defer clear(text)
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s: no PEM", file)
	}
	defer clear(block.Bytes)
	if k, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return k, nil
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: no private key", file) // the library's error may tell of the bytes
	}
	k, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: not an RSA key", file)
	}
	return k, nil
}

// makeKey writes a new key, if there is no such file.
func makeKey(file string) error {
	k, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	clear(der)
	defer clear(text)
	f, err := os.CreateTemp(filepath.Dir(file), "digest-key.new-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err = f.Write(text); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), file) // unlike a rename it replaces nothing
}
