package sigv4

import (
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// basicDate is the only form of X-Amz-Date: ISO 8601 basic format, UTC, whole seconds.
const basicDate = "20060102T150405Z"

// AppendDate appends t as the value of an X-Amz-Date header.
func AppendDate(dst []byte, t time.Time) []byte { return t.UTC().AppendFormat(dst, basicDate) }

// parseDate reads YYYYMMDDThhmmssZ and nothing else: no other length, no blanks, no 60th second, no 31 April. The result is in seconds
// since 1970 UTC.
func parseDate(b []byte) (unix int64, ok bool) {
	if len(b) != len(basicDate) || b[8] != 'T' || b[15] != 'Z' {
		return 0, false
	}
	for i, c := range b {
		if i != 8 && i != 15 && (c < '0' || c > '9') {
			return 0, false
		}
	}
	two := func(i int) int { return int(b[i]-'0')*10 + int(b[i+1]-'0') }
	year, month, day := two(0)*100+two(2), two(4), two(6)
	hour, minute, second := two(9), two(11), two(13)
	if month < 1 || month > 12 || day < 1 || hour > 23 || minute > 59 || second > 59 {
		return 0, false
	}
	t := time.Date(year, time.Month(month), day, hour, minute, second, 0, time.UTC)
	return t.Unix(), t.Day() == day // time.Date turns 31 April into 1 May
}

// checkTime refuses a date that is malformed or further from now than skew. It works in whole seconds; both ends are inside the window.
func (s *Scratch) checkTime(date []byte, now time.Time, skew time.Duration) (unix int64, c kmsapi.Code) {
	unix, ok := parseDate(date)
	if !ok {
		return 0, s.refuseName(kmsapi.IncompleteSignature, "Date must be in ISO-8601 'basic format'. Got '", date[:min(len(date), 2*len(basicDate))],
			"'. See http://en.wikipedia.org/wiki/ISO_8601")
	}
	width := int64(skew / time.Second)
	first, last := now.Unix()-width, now.Unix()+width
	switch {
	case unix < first:
		s.windowText("Signature expired: ", date, " is now earlier than ", first, now, " - ", skew)
		return 0, kmsapi.InvalidSignature
	case unix > last:
		s.windowText("Signature not yet current: ", date, " is still later than ", last, now, " + ", skew)
		return 0, kmsapi.InvalidSignature
	}
	return unix, kmsapi.OK
}

// windowText words a refusal as AWS does: … 20150830T123600Z is now earlier than 20150830T124000Z (20150830T124500Z - 5 min.)
func (s *Scratch) windowText(what string, date []byte, relation string, bound int64, now time.Time, sign string, skew time.Duration) {
	s.msg = append(s.msg[:0], what...)
	s.msg = append(s.msg, date...)
	s.msg = append(s.msg, relation...)
	s.msg = AppendDate(s.msg, time.Unix(bound, 0))
	s.msg = append(s.msg, " ("...)
	s.msg = AppendDate(s.msg, now)
	s.msg = append(s.msg, sign...)
	s.msg = append(s.msg, byte('0'+skew/time.Minute)) // 1..5, New keeps it so
	s.msg = append(s.msg, " min.)"...)
}
