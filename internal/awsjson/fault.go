package awsjson

import (
	"strconv"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// Fault says why a body was refused.
type Fault uint8

const (
	None      Fault = iota
	Syntax          // not RFC 8259
	Type            // a value of another JSON type than asked for
	Duplicate       // a name twice in one object
	UTF8            // invalid UTF-8, or a lone surrogate
	Range           // an integer of more than 64 bits
	Blob            // not base64
	Depth           // nested deeper than kmsapi.JSONDepthMax
	Members         // an object with more than kmsapi.JSONMembersMax members
)

// Code is the exception with which a body is refused: ValidationException beyond our limits, else SerializationException; OK for None.
func (f Fault) Code() kmsapi.Code {
	switch f {
	case None:
		return kmsapi.OK
	case Depth, Members:
		return kmsapi.Validation
	}
	return kmsapi.Serialization
}

// token is a JSON type as the front end's messages name it.
type token uint8

const (
	aString token = iota + 1
	aNumber
	aDecimal
	aTrue
	aFalse
	aList
	anObject
	anInteger // asked for
	aBool
	aBlob
)

// tokenNames has a token's name as a value found, or as the type asked for.
var tokenNames = [...]string{
	aString: "STRING_VALUE", aNumber: "NUMBER_VALUE", aDecimal: "DECIMAL_VALUE", aTrue: "TRUE_VALUE", aFalse: "FALSE_VALUE",
	anInteger: "an Integer", aBool: "a Boolean", aBlob: "a Blob",
}

// mismatch records that a value which begins with c was found where want was asked for.
func (s *Scanner) mismatch(c byte, want token) {
	var got token
	switch {
	case c == '"':
		got = aString
	case c == '{':
		got = anObject
	case c == '[':
		got = aList
	case c == 't':
		got = aTrue
	case c == 'f':
		got = aFalse
	case c == '-' || c >= '0' && c <= '9':
		got = aNumber
	default:
		s.fail(Syntax)
		return
	}
	s.fault, s.got, s.want = Type, got, want
}

// AppendFault appends the message of the exception for the fault; nothing for None. Where AWS's JSON front end has words for it they are
// used, as recorded from other services of the protocol; for malformed JSON it sends no message. No bytes of the body are repeated.
func (s *Scanner) AppendFault(dst []byte) []byte {
	switch s.fault {
	case Syntax:
		return strconv.AppendInt(append(dst, "Unexpected token at position "...), int64(s.pos), 10)
	case Type:
		return s.appendMismatch(dst)
	case Duplicate:
		return append(dst, "Duplicate field name"...)
	case UTF8:
		return append(dst, "The request body is not valid UTF-8"...)
	case Range:
		return append(dst, "NUMBER_VALUE can not be converted to a Long"...)
	case Blob:
		return append(dst, "STRING_VALUE can not be converted to a Blob"...)
	case Depth:
		dst = strconv.AppendInt(append(dst, "The request body is nested deeper than "...), kmsapi.JSONDepthMax, 10)
		return append(dst, " levels"...)
	case Members:
		dst = strconv.AppendInt(append(dst, "An object in the request body has more than "...), kmsapi.JSONMembersMax, 10)
		return append(dst, " members"...)
	}
	return dst
}

func (s *Scanner) appendMismatch(dst []byte) []byte {
	switch {
	case s.got == aList:
		return append(dst, "Start of list found where not expected"...)
	case s.got == anObject:
		return append(dst, "Start of structure or map found where not expected."...)
	case s.want == aList:
		return append(dst, "Expected list or null"...)
	case s.want == anObject:
		return append(dst, "Expected null"...)
	}
	dst = append(dst, tokenNames[s.got]...)
	dst = append(dst, " can not be converted to "...)
	if s.want == aString {
		return append(dst, "a String"...)
	}
	return append(dst, tokenNames[s.want]...)
}
