package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// checkpointMax bounds a checkpoint in bytes: three lines, an extension line and a signature, which may be post-quantum.
const checkpointMax = 16 << 10

// Checkpoint is a signed state of the log.
type Checkpoint struct {
	Origin   string
	Size     uint64    // records
	Root     tlog.Hash // of the tree of them
	Previous tlog.Hash // SHA-256 of the checkpoint before this one; zero in the first
}

const previousPrefix = "previous "

// text is the signed part (c2sp.org/tlog-checkpoint).
func (c Checkpoint) text() string {
	text := fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, c.Root)
	if c.Previous != (tlog.Hash{}) {
		text += previousPrefix + c.Previous.String() + "\n"
	}
	return text
}

func (c Checkpoint) sign(s note.Signer) ([]byte, error) {
	return note.Sign(&note.Note{Text: c.text()}, s)
}

// ParseCheckpoint checks a checkpoint and its signature. It takes exactly what this package writes: one signature, canonical base64, no other
// extension lines; so no byte of it can be changed.
func ParseCheckpoint(msg []byte, v note.Verifier) (Checkpoint, error) {
	var c Checkpoint
	if len(msg) > checkpointMax {
		return c, fmt.Errorf("a checkpoint of %d bytes", len(msg))
	}
	n, err := note.Open(msg, note.VerifierList(v))
	if err != nil {
		return c, err
	}
	lines := strings.Split(strings.TrimSuffix(n.Text, "\n"), "\n")
	if len(lines) != 3 && len(lines) != 4 {
		return c, fmt.Errorf("a checkpoint of %d lines", len(lines))
	}
	c.Origin = lines[0]
	if c.Size, err = strconv.ParseUint(lines[1], 10, 63); err != nil {
		return c, err
	}
	if c.Root, err = tlog.ParseHash(lines[2]); err != nil {
		return c, err
	}
	if len(lines) == 4 {
		if c.Previous, err = tlog.ParseHash(strings.TrimPrefix(lines[3], previousPrefix)); err != nil {
			return c, err
		}
	}
	if !validOrigin(c.Origin) || c.text() != n.Text || len(n.Sigs) != 1 || len(n.UnverifiedSigs) != 0 {
		return c, errors.New("a checkpoint in a form that this log does not write")
	}
	sig, err := base64.StdEncoding.DecodeString(n.Sigs[0].Base64)
	if err != nil {
		return c, err
	}
	if want := n.Text + "\n— " + v.Name() + " " + base64.StdEncoding.EncodeToString(sig) + "\n"; want != string(msg) {
		return c, errors.New("a checkpoint in a form that this log does not write")
	}
	return c, nil
}

func checkpointHash(msg []byte) tlog.Hash { return sha256.Sum256(msg) }

// checkpointReader splits the file of all checkpoints: text, empty line, signature, empty line.
type checkpointReader struct {
	r      *bufio.Reader
	msg    []byte
	offset int64 // after the last complete checkpoint
}

func newCheckpointReader(r io.Reader) *checkpointReader {
	return &checkpointReader{r: bufio.NewReaderSize(r, checkpointMax)}
}

// next returns a checkpoint, valid until the next call, io.EOF at the end or errTorn if the last one is incomplete.
func (c *checkpointReader) next() ([]byte, error) {
	c.msg = c.msg[:0]
	for empty := 0; ; {
		line, err := c.r.ReadSlice('\n')
		if err == io.EOF {
			if len(line) > 0 || len(c.msg) > 0 {
				return nil, errTorn
			}
			return nil, io.EOF
		}
		if err != nil {
			return nil, err // bufio.ErrBufferFull: no line is that long
		}
		if len(line) == 1 {
			if empty++; empty == 2 {
				c.offset += int64(len(c.msg)) + 1
				return c.msg, nil
			}
		}
		if len(c.msg)+len(line) > checkpointMax {
			return nil, errors.New("a checkpoint that is too long")
		}
		c.msg = append(c.msg, line...)
	}
}

// lastCheckpoint finds the newest checkpoint of the file's end, given the one that the tip file has (nil: none). It returns the offset at which
// the file has to end, because what follows is an append that was cut short.
func lastCheckpoint(r io.ReaderAt, size int64, tip []byte) (newest []byte, end int64, err error) {
	from := max(0, size-4*checkpointMax)
	buf := make([]byte, size-from)
	if _, err := r.ReadAt(buf, from); err != nil && err != io.EOF {
		return nil, 0, err
	}
	if tip != nil {
		at := bytes.LastIndex(buf, append(bytes.Clone(tip), '\n'))
		if at < 0 {
			return nil, 0, errors.New("the newest checkpoint is not among all checkpoints")
		}
		from, buf = from+int64(at), buf[at:]
	} else if from > 0 {
		return nil, 0, errors.New("there are checkpoints, but no newest one")
	}
	c := newCheckpointReader(bytes.NewReader(buf))
	for {
		msg, err := c.next()
		if err == io.EOF || err == errTorn {
			return newest, from + c.offset, nil
		}
		if err != nil {
			return nil, 0, err
		}
		newest = bytes.Clone(msg)
	}
}
