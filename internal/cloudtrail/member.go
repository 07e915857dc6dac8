package cloudtrail

import (
	"math"
	"strconv"

	"github.com/keyplane/keyplane/internal/blob"
)

// Objects are built in the caller's buffer: '{', the members, '}'. Names are constants that need no escaping. A comma goes before every
// member but the first.

// AppendName appends the name of a member, whose value comes next.
func AppendName(dst []byte, name string) []byte {
	if n := len(dst); n > 0 && dst[n-1] != '{' {
		dst = append(dst, ',')
	}
	dst = append(dst, '"')
	dst = append(dst, name...)
	return append(dst, '"', ':')
}

// AppendString appends s, any bytes, as a JSON string.
func AppendString(dst, s []byte) []byte { return appendString(dst, s, math.MaxInt-len(dst)-1) }

// AppendMember appends a member with a text.
func AppendMember(dst []byte, name string, value []byte) []byte {
	return AppendString(AppendName(dst, name), value)
}

// AppendMemberInt appends a member with a number.
func AppendMemberInt(dst []byte, name string, value int64) []byte {
	return strconv.AppendInt(AppendName(dst, name), value, 10)
}

// AppendMemberBool appends a member that is true or false.
func AppendMemberBool(dst []byte, name string, value bool) []byte {
	return strconv.AppendBool(AppendName(dst, name), value)
}

// AppendMemberContext appends an encryption context, in ascending byte order of its keys; an empty one is left out.
func AppendMemberContext(dst []byte, name string, c *blob.Context) []byte {
	if c.Len() == 0 {
		return dst
	}
	dst = append(AppendName(dst, name), '{')
	for i := range c.Len() {
		key, value := c.Pair(i)
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = AppendString(append(AppendString(dst, key), ':'), value)
	}
	return append(dst, '}')
}

// AppendDate appends seconds since 1970 as CloudTrail words dates in requests and replies: "Apr 12, 2021, 6:58:30 PM", in UTC.
func AppendDate(dst []byte, unix int64) []byte {
	return append(appendDate(append(dst, '"'), unix), '"')
}
