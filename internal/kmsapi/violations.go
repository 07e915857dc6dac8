package kmsapi

import "strconv"

// Constraint texts of ValidationException, in AWS's words.
const (
	NotNull = "Member must not be null"
)

// valueEchoMax bounds how much of a refused value a message repeats; a longer value is left out, as a sensitive one is.
const valueEchoMax = 256

// violationsMax is how many failures a message words; further ones are counted only, so that a body of 64 KiB cannot ask for megabytes.
const violationsMax = 64

// Violations collects the constraint failures of one request and words them as AWS does: all of them in one ValidationException.
// Paths are lowerCamel member names, list elements 1-based: tags.1.member.tagKey. The zero value is ready; it allocates only to grow.
type Violations struct {
	n   int
	buf []byte
}

// trim drops the text from mark on where enough failures are worded already.
func (v *Violations) trim(mark int) {
	if v.n > violationsMax {
		clear(v.buf[mark:])
		v.buf = v.buf[:mark]
	}
}

// Reset forgets all failures and keeps the memory, wiped.
func (v *Violations) Reset() {
	clear(v.buf[:cap(v.buf)])
	v.n, v.buf = 0, v.buf[:0]
}

// Any reports whether a constraint failed.
func (v *Violations) Any() bool { return v.n > 0 }

// begin starts a failure and returns the mark for trim.
func (v *Violations) begin() int {
	mark := len(v.buf)
	if v.n > 0 {
		v.buf = append(v.buf, "; "...)
	}
	v.n++
	return mark
}

func (v *Violations) end(path, constraint string) {
	v.buf = append(v.buf, " at '"...)
	v.buf = append(v.buf, path...)
	v.buf = append(v.buf, "' failed to satisfy constraint: "...)
	v.buf = append(v.buf, constraint...)
}

// Null records that a required member is missing.
func (v *Violations) Null(path string) {
	defer v.trim(v.begin())
	v.buf = append(v.buf, "Value null"...)
	v.end(path, NotNull)
}

// Value records that a member's value broke the constraint.
func (v *Violations) Value(path string, value []byte, constraint string) {
	defer v.trim(v.begin())
	v.value(value)
	v.end(path, constraint)
}

// Hidden records a failure of a sensitive member or a blob, whose value is never repeated.
func (v *Violations) Hidden(path, constraint string) {
	defer v.trim(v.begin())
	v.buf = append(v.buf, "Value"...)
	v.end(path, constraint)
}

// MinLength, MaxLength, Min and Max record a length or range failure with bound n. A nil value is hidden.
func (v *Violations) MinLength(path string, value []byte, n int) {
	v.bound(path, value, "Member must have length greater than or equal to ", n)
}

func (v *Violations) MaxLength(path string, value []byte, n int) {
	v.bound(path, value, "Member must have length less than or equal to ", n)
}

func (v *Violations) Min(path string, value int64, n int) {
	v.number(path, value, "Member must have value greater than or equal to ", n)
}

func (v *Violations) Max(path string, value int64, n int) {
	v.number(path, value, "Member must have value less than or equal to ", n)
}

// Pattern records a failure of the model's regular expression; Enum one of its value set, given as "[A, B]".
func (v *Violations) Pattern(path string, value []byte, re string) {
	defer v.trim(v.begin())
	v.value(value)
	v.end(path, "Member must satisfy regular expression pattern: ")
	v.buf = append(v.buf, re...)
}

func (v *Violations) Enum(path string, value []byte, set string) {
	defer v.trim(v.begin())
	v.value(value)
	v.end(path, "Member must satisfy enum value set: ")
	v.buf = append(v.buf, set...)
}

func (v *Violations) bound(path string, value []byte, text string, n int) {
	defer v.trim(v.begin())
	v.value(value)
	v.end(path, text)
	v.buf = strconv.AppendInt(v.buf, int64(n), 10)
}

func (v *Violations) number(path string, value int64, text string, n int) {
	defer v.trim(v.begin())
	v.buf = append(v.buf, "Value '"...)
	v.buf = strconv.AppendInt(v.buf, value, 10)
	v.buf = append(v.buf, '\'')
	v.end(path, text)
	v.buf = strconv.AppendInt(v.buf, int64(n), 10)
}

// value appends "Value '<value>'", or "Value" alone where the value is nil or too long to repeat.
func (v *Violations) value(value []byte) {
	v.buf = append(v.buf, "Value"...)
	if value != nil && len(value) <= valueEchoMax {
		v.buf = append(v.buf, " '"...)
		v.buf = append(v.buf, value...)
		v.buf = append(v.buf, '\'')
	}
}

// AppendMessage appends "<n> validation error(s) detected: …".
func (v *Violations) AppendMessage(dst []byte) []byte {
	dst = strconv.AppendInt(dst, int64(v.n), 10)
	if v.n == 1 {
		dst = append(dst, " validation error detected: "...)
	} else {
		dst = append(dst, " validation errors detected: "...)
	}
	return append(dst, v.buf...)
}

// Err is the ValidationException for the collected failures, or nil if there are none.
func (v *Violations) Err() error {
	if !v.Any() {
		return nil
	}
	return New(Validation, string(v.AppendMessage(nil)))
}
