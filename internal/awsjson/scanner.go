package awsjson

import (
	"bytes"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// namesKeepMax is how many name records Reset keeps the memory of; a hostile body can ask for JSONDepthMax × JSONMembersMax.
const namesKeepMax = 1024

// Scanner reads one request body in place. The zero Scanner reads an empty body. Slices it returns alias the body, where strings were
// unescaped and blobs decoded over their own bytes: they are valid until the body is reused, and the body is no longer the JSON text that
// was sent. Whoever signs or hashes it does that first.
type Scanner struct {
	body    []byte
	pos     int
	pending bool // a value stands at pos, and no method has read it yet
	fault   Fault
	got     token // of a Type fault
	want    token
	depth   int
	frames  [kmsapi.JSONDepthMax]frame
	names   []member // of all open objects, outermost first; the memory outlives Reset
}

// frame is an object or list that is being read.
type frame struct {
	base  uint16 // of an object: its first record in names, at most JSONDepthMax × JSONMembersMax
	close byte   // '}' or ']'
	some  bool   // an element was read, so a comma comes before the next
}

// member records the name of a member already read: body[off:off+n] after unescaping. The hash saves most comparisons, so that the
// widest object costs microseconds; finding names with equal hashes gains an attacker only the comparison of their bytes.
type member struct{ off, n, hash uint32 }

// Reset starts to scan body, which the Scanner will change. Reset(nil) drops the body and every trace of it.
func (s *Scanner) Reset(body []byte) {
	names := s.names[:cap(s.names)]
	if len(names) > namesKeepMax {
		names = nil
	}
	if body == nil {
		clear(names)
	}
	*s = Scanner{body: body, pending: len(body) > 0, names: names[:0]}
}

// Fault is the first fault met, None so far.
func (s *Scanner) Fault() Fault { return s.fault }

func (s *Scanner) fail(f Fault) {
	if s.fault == None {
		s.fault = f
	}
}

// Object enters the value at hand: the body's object or a nested one. It returns false for null, for an empty body and on a fault; only after
// true does Next read the object's members, and it must be called until it returns false.
func (s *Scanner) Object() bool { return s.enter('{', '}', anObject) }

// List enters a list. The rules of Object hold, with More.
func (s *Scanner) List() bool { return s.enter('[', ']', aList) }

func (s *Scanner) enter(open, close byte, want token) bool {
	switch c := s.value(); c {
	case 0:
		return false
	case open:
		return s.push(close)
	default:
		s.mismatch(c, want)
		return false
	}
}

func (s *Scanner) push(close byte) bool {
	if s.depth == len(s.frames) {
		s.fail(Depth)
		return false
	}
	s.pos++
	s.frames[s.depth] = frame{base: uint16(len(s.names)), close: close}
	s.depth++
	return true
}

// Next reads the name of the current object's next member; its value is then at hand. It returns false at the object's end, which leaves the
// object, and on a fault. A value that was not read is skipped.
func (s *Scanner) Next() (name []byte, ok bool) {
	if !s.element('}') {
		return nil, false
	}
	if s.pos == len(s.body) || s.body[s.pos] != '"' {
		s.fail(Syntax)
		return nil, false
	}
	off := s.pos + 1
	if name, ok = s.string(); !ok || !s.remember(off, name) {
		return nil, false
	}
	s.space()
	if s.pos == len(s.body) || s.body[s.pos] != ':' {
		s.fail(Syntax)
		return nil, false
	}
	s.pos++
	s.pending = true
	return name, true
}

// More moves to the current list's next element, which is then at hand. It returns false at the list's end, which leaves the list, and on a
// fault. An element that was not read is skipped.
func (s *Scanner) More() bool {
	s.pending = s.element(']')
	return s.pending
}

// element moves to the next element of the current frame, which must be one that ends with close, past a comma where one belongs.
func (s *Scanner) element(close byte) bool {
	if s.pending {
		s.Skip()
	}
	if s.fault != None || s.depth == 0 {
		return false
	}
	f := &s.frames[s.depth-1]
	if f.close != close {
		return false
	}
	s.space()
	if s.pos == len(s.body) {
		s.fail(Syntax)
		return false
	}
	switch c := s.body[s.pos]; {
	case c == close:
		s.pos++
		s.depth--
		s.names = s.names[:f.base]
		return false
	case f.some && c != ',':
		s.fail(Syntax)
		return false
	case f.some:
		s.pos++
		s.space()
	}
	f.some = true
	return true
}

// remember refuses the name at off if the current object has it already or has too many; else it records it.
func (s *Scanner) remember(off int, name []byte) bool {
	siblings := s.names[s.frames[s.depth-1].base:]
	if len(siblings) == kmsapi.JSONMembersMax {
		s.fail(Members)
		return false
	}
	m := member{off: uint32(off), n: uint32(len(name)), hash: 2166136261} // FNV-1a, 32 bits
	for _, c := range name {
		m.hash = (m.hash ^ uint32(c)) * 16777619
	}
	for _, o := range siblings {
		if o.hash == m.hash && bytes.Equal(s.body[o.off:o.off+o.n], name) {
			s.fail(Duplicate)
			return false
		}
	}
	s.names = append(s.names, m)
	return true
}

// Skip reads the value at hand, whatever it is, and holds it to the same rules as the others.
func (s *Scanner) Skip() {
	outer := s.depth
	s.skipOne()
	for s.depth > outer && s.fault == None {
		s.step()
	}
}

// step moves on by one element of the current frame, over its value or into it.
func (s *Scanner) step() {
	if s.frames[s.depth-1].close == '}' {
		s.Next()
	} else {
		s.More()
	}
	if s.pending {
		s.skipOne()
	}
}

// skipOne reads a scalar or enters an object or list.
func (s *Scanner) skipOne() {
	switch c := s.value(); c {
	case 0:
	case '"':
		s.string()
	case '{':
		s.push('}')
	case '[':
		s.push(']')
	case 't':
		s.literal("true")
	case 'f':
		s.literal("false")
	default:
		s.number()
	}
}

// End reads what is left and reports whether the whole body was JSON without a fault, with nothing but white space after it.
func (s *Scanner) End() bool {
	s.Skip()
	for s.depth > 0 && s.fault == None {
		s.step()
	}
	if s.fault != None {
		return false
	}
	if s.space(); s.pos != len(s.body) {
		s.fail(Syntax)
	}
	return s.fault == None
}

// value begins to read the value at hand and returns its first byte; 0 if there is none, because it is null, was read before, or on a fault.
func (s *Scanner) value() byte {
	if !s.pending || s.fault != None {
		return 0
	}
	s.pending = false
	s.space()
	if s.pos == len(s.body) || s.body[s.pos] == 0 {
		s.fail(Syntax)
		return 0
	}
	c := s.body[s.pos]
	if c == 'n' {
		s.literal("null")
		return 0
	}
	return c
}

func (s *Scanner) literal(word string) bool {
	if !bytes.HasPrefix(s.body[s.pos:], []byte(word)) {
		s.fail(Syntax)
		return false
	}
	s.pos += len(word)
	return true
}

func (s *Scanner) space() {
	for s.pos < len(s.body) {
		switch s.body[s.pos] {
		case ' ', '\n', '\r', '\t':
			s.pos++
		default:
			return
		}
	}
}
