package keyid

import "github.com/keyplane/keyplane/internal/kmsapi"

// echoMax bounds how many bytes of a refused identifier a message repeats; a longer one is left out.
const echoMax = 256

// Code is the exception with which an operation that uses a key refuses an identifier; OK for None.
func (f Fault) Code() kmsapi.Code {
	switch f {
	case None:
		return kmsapi.OK
	case BadARN:
		return kmsapi.InvalidArn
	}
	return kmsapi.NotFound
}

// AppendMessage appends the exception's message for the refused identifier s. It is not JSON-escaped. Nothing is appended for None.
func (f Fault) AppendMessage(dst, s []byte) []byte {
	switch f {
	case BadKeyID: // an ARN is shortened to its key ID, which KMS names alone
		if hasPrefix(s, arnPrefix) {
			for i := range s {
				if hasPrefix(s[i:], ":"+keyPrefix) {
					s = s[i+1+len(keyPrefix):]
					break
				}
			}
		}
		return appendQuoted(append(dst, "Invalid keyId"...), s)
	case BadARN:
		return appendQuoted(append(dst, "Invalid arn"...), s)
	case BadAlias:
		return append(appendQuoted(append(dst, "Alias"...), s), " is not found."...)
	}
	return dst
}

func appendQuoted(dst, s []byte) []byte {
	if len(s) > echoMax {
		return dst
	}
	dst = append(dst, " '"...)
	dst = append(dst, s...)
	return append(dst, '\'')
}
