package sigv4

import (
	"bytes"
	"crypto/sha256"
)

// appendCanonicalRequest appends the canonical request, with an empty query string:
//
//	method \n path \n \n  name:value \n …  \n names \n hex SHA-256 of the body
//
// order holds the indexes of the signed headers in r.Headers, ascending by name.
func appendCanonicalRequest(dst []byte, r *Request, order []uint8, bodyHash *[sha256.Size]byte) []byte {
	dst = append(dst, r.Method...)
	dst = append(dst, '\n')
	dst = appendPath(dst, r.Path)
	dst = append(dst, "\n\n"...)
	for _, i := range order {
		dst = append(dst, r.Headers[i].Name...)
		dst = append(dst, ':')
		dst = appendValue(dst, r.Headers[i].Value)
		dst = append(dst, '\n')
	}
	dst = append(dst, '\n')
	dst = appendNames(dst, r, order)
	dst = append(dst, '\n')
	return appendHex(dst, bodyHash)
}

func appendNames(dst []byte, r *Request, order []uint8) []byte {
	for n, i := range order {
		if n > 0 {
			dst = append(dst, ';')
		}
		dst = append(dst, r.Headers[i].Name...)
	}
	return dst
}

// appendPath encodes every byte but the unreserved ones of RFC 3986 §2.3 and the slash. A percent sign in the path is data like any other,
// so that a path that arrives encoded is encoded twice, as AWS has it for every service but S3.
func appendPath(dst, path []byte) []byte {
	const upper = "0123456789ABCDEF"
	for _, c := range path {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c == '~', c == '/':
			dst = append(dst, c)
		default:
			dst = append(dst, '%', upper[c>>4], upper[c&15])
		}
	}
	return dst
}

// appendValue trims blanks at both ends and keeps one space of each run of spaces.
func appendValue(dst, value []byte) []byte {
	value = trimBlanks(value)
	if bytes.IndexByte(value, ' ') < 0 { // most values
		return append(dst, value...)
	}
	for {
		i := bytes.Index(value, []byte("  "))
		if i < 0 {
			return append(dst, value...)
		}
		dst = append(dst, value[:i+1]...)
		for value = value[i+2:]; len(value) > 0 && value[0] == ' '; {
			value = value[1:]
		}
	}
}
