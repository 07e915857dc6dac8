// Package backup is the file that a backup of the store is: every value at one revision, and at its end a manifest that the HSM signed. It does not know what the
// values are, nor where they come from or go to.
//
//	"keyplane backup 1\n"
//	'v' ‖ length (4) ‖ DEFLATE of key length (4) ‖ key ‖ value length (4) ‖ value, …    as often as it takes, the keys in ascending order
//	'm' ‖ length (4) ‖ the manifest, a signed note (golang.org/x/mod/sumdb/note)
//
// Lengths are big endian. Nothing follows. The manifest has the hash of every byte before its 'm', and the root of the Merkle tree (RFC 6962) of the values, so that no byte can be
// changed, left out or added; and each is signed by the key that signs the audit log. A reader uses nothing of a file before it has read all of it.
package backup

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// ErrFile says that a file is no backup, not a whole one, or not as it was written.
var ErrFile = errors.New("backup: not a backup as it was written")

const (
	magic = "keyplane backup 1\n"

	keyMax      = 4 << 10
	valueMax    = 2 << 20      // etcd takes 1.5 MiB
	blockBytes  = 256 << 10    // values that are compressed together
	blockMax    = 2 * valueMax // of what a block can be when it is not compressed, or cannot be
	manifestMax = 64 << 10     // with its signatures
	timeLayout  = time.RFC3339 // in UTC
)

// Manifest says what a backup is of.
type Manifest struct {
	Store      string // which store: 32 hexadecimal digits
	Epoch      uint64
	EpochName  string // 16 hexadecimal digits
	Revision   int64
	Time       time.Time // when it was made, to the second
	Tombstones int64     // how many of the values say that a key was deleted
	LeftOut    int64     // values that were damaged
	Tokens     []string  // the roots under which keys are: 16 hexadecimal digits each

	Values int64 // Writer and Read fill these in
	Root   [sha256.Size]byte
	Sum    [sha256.Size]byte
}

// text is what is signed.
func (m *Manifest) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%sstore %s\nepoch %d %s\nrevision %d\ntime %s\nvalues %d\ntombstones %d\nleft-out %d\nroot %s\nsha256 %x\n", magic, m.Store, m.Epoch, m.EpochName, m.Revision,
		m.Time.UTC().Format(timeLayout), m.Values, m.Tombstones, m.LeftOut, base64.StdEncoding.EncodeToString(m.Root[:]), m.Sum)
	for _, t := range m.Tokens {
		fmt.Fprintf(&b, "token %s\n", t)
	}
	return b.String()
}

var manifestText = regexp.MustCompile(`^` + magic + `store ([0-9a-f]{32})\nepoch ([0-9]{1,18}) ([0-9a-f]{16})\nrevision ([0-9]{1,18})\ntime ([0-9TZ:-]{20})\nvalues ([0-9]{1,18})\n` +
	`tombstones ([0-9]{1,18})\nleft-out ([0-9]{1,18})\nroot ([A-Za-z0-9+/]{43}=)\nsha256 ([0-9a-f]{64})\n((?:token [0-9a-f]{16}\n)+)$`)

func parseManifest(text string) (m Manifest, err error) {
	f := manifestText.FindStringSubmatch(text)
	if f == nil {
		return m, fmt.Errorf("%w: its manifest", ErrFile)
	}
	number := func(s string) int64 {
		n, _ := strconv.ParseInt(s, 10, 64)
		return n
	}
	m = Manifest{
		Store: f[1], Epoch: uint64(number(f[2])), EpochName: f[3], Revision: number(f[4]), Values: number(f[6]), Tombstones: number(f[7]), LeftOut: number(f[8]),
	}
	if m.Time, err = time.Parse(timeLayout, f[5]); err != nil {
		return m, fmt.Errorf("%w: its time", ErrFile)
	}
	root, _ := base64.StdEncoding.DecodeString(f[9])
	copy(m.Root[:], root)
	sum, _ := hex.DecodeString(f[10])
	copy(m.Sum[:], sum)
	for line := range strings.Lines(f[11]) {
		m.Tokens = append(m.Tokens, line[len("token "):len(line)-1])
	}
	if m.text() != text { // one form only
		return m, fmt.Errorf("%w: its manifest", ErrFile)
	}
	return m, nil
}

// Writer writes a backup.
type Writer struct {
	w      io.Writer
	sum    hash.Hash
	tree   tree
	block  bytes.Buffer
	packed bytes.Buffer
	last   string
	began  bool
}

// NewWriter writes to w, which the caller buffers, makes durable and closes.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w, sum: sha256.New()} }

func (w *Writer) write(b []byte) error {
	w.sum.Write(b)
	_, err := w.w.Write(b)
	return err
}

// Add adds a value. Keys come in ascending order.
func (w *Writer) Add(key string, value []byte) error {
	if key <= w.last || len(key) > keyMax || len(value) > valueMax {
		return fmt.Errorf("backup: the value of %q is out of order or too large", key)
	}
	if w.last = key; !w.began {
		w.began = true
		if err := w.write([]byte(magic)); err != nil {
			return err
		}
	}
	w.tree.add(key, value)
	appendRecord(&w.block, key, value)
	if w.block.Len() < blockBytes {
		return nil
	}
	return w.flush()
}

func appendRecord(b *bytes.Buffer, key string, value []byte) {
	var n [4]byte
	b.Write(binary.BigEndian.AppendUint32(n[:0], uint32(len(key))))
	b.WriteString(key)
	b.Write(binary.BigEndian.AppendUint32(n[:0], uint32(len(value))))
	b.Write(value)
}

func (w *Writer) flush() error {
	if w.block.Len() == 0 {
		return nil
	}
	w.packed.Reset()
	w.packed.Write(make([]byte, 5))
	z, err := flate.NewWriter(&w.packed, flate.DefaultCompression)
	if err != nil {
		return err
	}
	if _, err := z.Write(w.block.Bytes()); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	clear(w.block.Bytes())
	w.block.Reset()
	b := w.packed.Bytes()
	b[0] = 'v'
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-5))
	return w.write(b)
}

// Close ends the backup with its manifest, which it completes and has signed.
func (w *Writer) Close(m Manifest, signer note.Signer) (Manifest, error) {
	if !w.began {
		return m, errors.New("backup: there is nothing in it")
	}
	if err := w.flush(); err != nil {
		return m, err
	}
	m.Values, m.Root, m.Sum = w.tree.n, w.tree.root(), [sha256.Size]byte(w.sum.Sum(nil))
	if _, err := parseManifest(m.text()); err != nil {
		return m, fmt.Errorf("backup: not a valid manifest: %q", m.text())
	}
	signed, err := note.Sign(&note.Note{Text: m.text()}, signer)
	if err != nil {
		return m, fmt.Errorf("backup: signing the manifest: %w", err)
	}
	b := binary.BigEndian.AppendUint32([]byte{'m'}, uint32(len(signed)))
	_, err = w.w.Write(append(b, signed...))
	return m, err
}

// Read reads a backup to its end and calls use, unless that is nil, for every value on the way: of a file that turns out to be none they are worth nothing. verifier says by
// whom it has to be signed. An error of use ends it and comes back as it is.
func Read(r io.Reader, verifier note.Verifier, use func(key string, value []byte) error) (Manifest, error) {
	return read(r, func(signed []byte) (*note.Note, error) { return note.Open(signed, note.VerifierList(verifier)) }, use)
}

// Unverified reads a backup as Read does, but for the signature, which may be anybody's.
func Unverified(r io.Reader) (Manifest, error) {
	return read(r, anybody, nil)
}

func read(r io.Reader, open func([]byte) (*note.Note, error), use func(string, []byte) error) (m Manifest, err error) {
	sum, tree, last := sha256.New(), tree{}, ""
	short := func(err error) error {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%w: it ends too early", ErrFile)
		}
		return err
	}
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(r, head); err != nil {
		return m, short(err)
	}
	if string(head) != magic {
		return m, fmt.Errorf("%w: it does not begin like one", ErrFile)
	}
	sum.Write(head)
	var packed []byte
	for {
		var b [5]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return m, short(err)
		}
		n := binary.BigEndian.Uint32(b[1:])
		if b[0] != 'v' && b[0] != 'm' || b[0] == 'v' && n > blockMax || b[0] == 'm' && n > manifestMax {
			return m, fmt.Errorf("%w: a block of kind %q with %d bytes", ErrFile, b[0], n)
		}
		if uint32(cap(packed)) < n {
			packed = make([]byte, n)
		}
		packed = packed[:n]
		if _, err := io.ReadFull(r, packed); err != nil {
			return m, short(err)
		}
		if b[0] == 'm' {
			break
		}
		sum.Write(b[:])
		sum.Write(packed)
		block, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(packed)), blockMax+1))
		if err != nil || len(block) > blockMax || len(block) == 0 {
			return m, fmt.Errorf("%w: a block does not unpack", ErrFile)
		}
		for rest := block; len(rest) > 0; {
			key, value, after, ok := cutRecord(rest)
			if !ok || key <= last {
				return m, fmt.Errorf("%w: a block has no values, or not in order", ErrFile)
			}
			tree.add(key, value)
			if rest, last = after, key; use != nil {
				if err := use(key, value); err != nil {
					return m, err
				}
			}
		}
		clear(block)
	}
	if n, err := r.Read(make([]byte, 1)); n > 0 || err == nil {
		return m, fmt.Errorf("%w: something follows its end", ErrFile)
	}
	signed, err := open(packed)
	if err != nil {
		return m, fmt.Errorf("%w: its signature: %w", ErrFile, err)
	}
	for _, sig := range append(signed.Sigs[:len(signed.Sigs):len(signed.Sigs)], signed.UnverifiedSigs...) {
		if _, err := base64.StdEncoding.Strict().DecodeString(sig.Base64); err != nil { // note takes several forms of it
			return m, fmt.Errorf("%w: the form of its signature", ErrFile)
		}
	}
	if m, err = parseManifest(signed.Text); err != nil {
		return m, err
	}
	if m.Sum != [sha256.Size]byte(sum.Sum(nil)) || m.Values != tree.n || tree.n == 0 || m.Root != tree.root() {
		return m, fmt.Errorf("%w: its values are not those that were signed", ErrFile)
	}
	return m, nil
}

func cutRecord(b []byte) (key string, value, rest []byte, ok bool) {
	k, b, ok := cut(b, keyMax)
	if !ok {
		return "", nil, nil, false
	}
	value, rest, ok = cut(b, valueMax)
	return string(k), value, rest, ok
}

func cut(b []byte, most uint32) (field, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if b = b[4:]; n > most || uint64(n) > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n:n], b[n:], true
}

// tree is the Merkle tree of RFC 6962 over records as they are in blocks: the roots of its whole subtrees, the largest first.
type tree struct {
	n     int64
	whole [][sha256.Size]byte
	buf   bytes.Buffer
}

func (t *tree) add(key string, value []byte) {
	t.buf.Reset()
	t.buf.WriteByte(0)
	appendRecord(&t.buf, key, value)
	node := sha256.Sum256(t.buf.Bytes())
	for n := t.n; n&1 == 1; n >>= 1 {
		node = join(t.whole[len(t.whole)-1], node)
		t.whole = t.whole[:len(t.whole)-1]
	}
	t.whole, t.n = append(t.whole, node), t.n+1
}

func (t *tree) root() [sha256.Size]byte {
	if t.n == 0 {
		return sha256.Sum256(nil)
	}
	node := t.whole[len(t.whole)-1]
	for i := len(t.whole) - 2; i >= 0; i-- {
		node = join(t.whole[i], node)
	}
	return node
}

func join(left, right [sha256.Size]byte) [sha256.Size]byte {
	return sha256.Sum256(append(append([]byte{1}, left[:]...), right[:]...))
}

// Signers reads a backup to its end and returns the names under which it says that it is signed.
func Signers(r io.Reader) (names []string, err error) {
	_, err = read(r, func(signed []byte) (*note.Note, error) {
		n, err := anybody(signed)
		if err == nil {
			for _, s := range n.UnverifiedSigs {
				names = append(names, s.Name)
			}
		}
		return n, err
	}, nil)
	return names, err
}

// anybody reads a note, whoever signed it.
func anybody(signed []byte) (*note.Note, error) {
	_, err := note.Open(signed, note.VerifierList())
	var u *note.UnverifiedNoteError
	if errors.As(err, &u) {
		return u.Note, nil
	}
	return nil, errors.Join(err, ErrFile)
}
