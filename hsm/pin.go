package hsm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/keyplane/keyplane/internal/secret"
)

// pinMax bounds a PIN file, in bytes.
const pinMax = 256

// ReadPIN reads a PIN from a file that nobody but its owner, this user or root, can read. One trailing newline is not part of the PIN.
func ReadPIN(path string) (secret.Bytes, error) {
	f, err := os.Open(path)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("hsm: PIN file: %w", err)
	}
	defer f.Close()
	if err := CheckPrivate(f); err != nil {
		return secret.Bytes{}, fmt.Errorf("hsm: PIN file: %w", err)
	}
	buf := make([]byte, pinMax+2) // a newline, and one byte to see that it is too long
	n, err := io.ReadFull(f, buf)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		secret.Wipe(buf)
		return secret.Bytes{}, fmt.Errorf("hsm: PIN file: %w", err)
	}
	pin := bytes.TrimSuffix(buf[:n], []byte("\n"))
	if len(pin) == 0 || len(pin) > pinMax || bytes.ContainsAny(pin, "\n\x00") {
		secret.Wipe(buf)
		return secret.Bytes{}, fmt.Errorf("hsm: PIN file %s: want one line of 1 to %d bytes", path, pinMax)
	}
	return secret.New(pin), nil
}

// CheckPrivate refuses an open file or directory that its group or others may touch, or that belongs to somebody else than this user and
// root.
func CheckPrivate(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() && !info.IsDir() {
		return fmt.Errorf("%s: not a regular file", f.Name())
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		want := "0600"
		if info.IsDir() {
			want = "0700"
		}
		return fmt.Errorf("%s: permissions %04o let others in; want %s", f.Name(), perm, want)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Getuid() {
		return fmt.Errorf("%s: belongs to user %d, not to this one or root", f.Name(), st.Uid)
	}
	return nil
}
