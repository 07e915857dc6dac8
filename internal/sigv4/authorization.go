package sigv4

import (
	"bytes"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// Texts of ours, for what AWS has no text or for what this service refuses and AWS does not.
const (
	textQuery         = "This service accepts no query string. Sign the request with the Authorization header."
	textSignedOrder   = "The SignedHeaders of the AWS Authorization must be lower case, in ascending order and without repeats."
	textContentSHA256 = "The value of the header 'x-amz-content-sha256' is not the SHA-256 of the request body."
)

// authorization is a parsed Authorization header. Its slices alias the header's value.
type authorization struct {
	algorithm     []byte
	credential    []byte
	signedHeaders []byte
	signature     []byte

	// Elements of credential, set by parseCredential.
	accessKeyID, date, region, service, terminator []byte
}

// parse splits an Authorization header into its algorithm and its three parameters, comma separated, blanks around them allowed. Each must
// occur once and no other may occur. hasDate says whether the request has an X-Amz-Date, whose absence is told in the same text.
//
//	AWS4-HMAC-SHA256 Credential=<id>/<date>/<region>/<service>/aws4_request, SignedHeaders=<a;b;c>, Signature=<64 hex>
func (a *authorization) parse(value []byte, hasDate bool, s *Scratch) kmsapi.Code {
	value = trimBlanks(value)
	end := bytes.IndexByte(value, ' ')
	if end < 0 {
		end = len(value)
	}
	a.algorithm = value[:end]
	rest := trimBlanks(value[end:])
	for more := len(rest) > 0; more; {
		var part []byte
		part, rest, more = cut(rest, ',')
		if c := a.parameter(trimBlanks(part), value, s); c != kmsapi.OK {
			return c
		}
	}
	return a.complete(hasDate, s)
}

func (a *authorization) parameter(part, header []byte, s *Scratch) kmsapi.Code {
	name, value, ok := cut(part, '=')
	if !ok {
		return s.refuseNotPair(part, header)
	}
	var to *[]byte
	switch string(name) {
	case "Credential":
		to = &a.credential
	case "SignedHeaders":
		to = &a.signedHeaders
	case "Signature":
		to = &a.signature
	default:
		return s.refuseName(kmsapi.IncompleteSignature, "Authorization header has an unknown parameter '", name, "'.")
	}
	if *to != nil {
		return s.refuseName(kmsapi.IncompleteSignature, "Authorization header has more than one '", name, "' parameter.")
	}
	*to = value
	return kmsapi.OK
}

// complete tells everything that is missing in one text, as AWS does.
func (a *authorization) complete(hasDate bool, s *Scratch) kmsapi.Code {
	require := func(missing bool, text string) {
		if missing {
			if len(s.msg) > 0 {
				s.msg = append(s.msg, ' ')
			}
			s.msg = append(s.msg, "Authorization header requires "...)
			s.msg = append(s.msg, text...)
		}
	}
	require(len(a.credential) == 0, "'Credential' parameter.")
	require(len(a.signature) == 0, "'Signature' parameter.")
	require(len(a.signedHeaders) == 0, "'SignedHeaders' parameter.")
	require(!hasDate, "existence of either a 'X-Amz-Date' or a 'Date' header.")
	if len(s.msg) > 0 {
		return kmsapi.IncompleteSignature
	}
	return kmsapi.OK
}

func (s *Scratch) refuseNotPair(part, header []byte) kmsapi.Code {
	s.say("'", part, "' not a valid key=value pair (missing equal-sign) in Authorization header: '")
	s.say("", header, "'.")
	return kmsapi.IncompleteSignature
}

// parseCredential splits the credential into the access key ID and the four elements of its scope.
func (a *authorization) parseCredential(s *Scratch) kmsapi.Code {
	to := [...]*[]byte{&a.accessKeyID, &a.date, &a.region, &a.service, &a.terminator}
	rest, more := a.credential, true
	n := 0
	for ; more && n < len(to); n++ {
		*to[n], rest, more = cut(rest, '/')
	}
	if more || n < len(to) {
		return s.refuseName(kmsapi.IncompleteSignature,
			"Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '", a.credential, "'")
	}
	return kmsapi.OK
}

// matchSigned finds each name of SignedHeaders in the request, checks that nothing that must be signed is left out, and records the
// order. It returns the number of signed headers. few is Config.SignedFew.
func (s *Scratch) matchSigned(r *Request, few bool) (int, kmsapi.Code) {
	n := 0
	var signed uint64 // bit i: Headers[i] is signed
	host := false
	var last []byte
	for rest, more := s.auth.signedHeaders, true; more; {
		var name []byte
		name, rest, more = cut(rest, ';')
		if bytes.Compare(last, name) >= 0 {
			return 0, s.refuseText(kmsapi.InvalidSignature, textSignedOrder)
		}
		last = name
		found := -1
		for i := range r.Headers {
			h := &r.Headers[i]
			if len(h.Name) != len(name) || !bytes.Equal(h.Name, name) {
				continue
			}
			if found >= 0 {
				return 0, s.refuseDuplicate(name)
			}
			found = i
		}
		if found < 0 && !validName(name) { // the names that were found are valid, checkShape saw to it
			return 0, s.refuseText(kmsapi.InvalidSignature, textSignedOrder)
		}
		if found < 0 {
			return 0, s.refuseName(kmsapi.InvalidSignature, "The request has no header '", name, "', which is a 'SignedHeader' in the AWS Authorization.")
		}
		// Names differ from each other and each was found, so n stays below len(r.Headers) <= HeaderCountMax.
		s.order[n] = uint8(found)
		signed |= 1 << found
		n++
		host = host || string(name) == "host"
	}
	if !host {
		return 0, s.refuseText(kmsapi.InvalidSignature, "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	}
	for i := range r.Headers {
		if name := r.Headers[i].Name; signed&(1<<i) == 0 && mustBeSigned(name) && (!few || string(name) == "x-amz-date") {
			return 0, s.refuseName(kmsapi.InvalidSignature, "'", name, "' must be a 'SignedHeader' in the AWS Authorization.")
		}
	}
	return n, kmsapi.OK
}

// cut is bytes.Cut for a separator of one byte.
func cut(b []byte, separator byte) (before, after []byte, found bool) {
	if i := bytes.IndexByte(b, separator); i >= 0 {
		return b[:i], b[i+1:], true
	}
	return b, nil, false
}

const _ = uint(64 - kmsapi.HeaderCountMax) // the bits of signed
