package cloudtrail

import (
	"strconv"
	"time"
)

// appendTime appends t in UTC as 2006-01-02T15:04:05Z. Years beyond 0 to 9999 are shown as the nearest of these.
func appendTime(dst []byte, t time.Time) []byte {
	const day = 24 * 60 * 60
	seconds := min(max(t.Unix(), unixYear0), unixYear9999)
	days, rest := seconds/day, seconds%day
	if rest < 0 {
		days, rest = days-1, rest+day
	}
	y, m, d := civil(days)
	h, rest := rest/3600, rest%3600
	return append(dst,
		digit(y/1000), digit(y/100), digit(y/10), digit(y), '-', digit(m/10), digit(m), '-', digit(d/10), digit(d), 'T',
		digit(h/10), digit(h), ':', digit(rest/600), digit(rest/60), ':', digit(rest/10%6), digit(rest), 'Z')
}

const (
	unixYear0    = -62167219200 // 0000-01-01T00:00:00Z
	unixYear9999 = 253402300799 // 9999-12-31T23:59:59Z
)

func digit(n int64) byte { return byte('0' + n%10) }

// civil is the date of a day counted from 1970-01-01, in the proleptic Gregorian calendar, from the year 0 on. Years are counted from March,
// so that a leap day is the last of its year, and in eras of 400 years, which are 146 097 days (H. Hinnant, "chrono-Compatible Low-Level
// Date Algorithms", civil_from_days).
func civil(days int64) (y, m, d int64) {
	days += 719468 // from 0000-03-01
	era := days / 146097
	if days < 0 {
		era = (days - 146096) / 146097
	}
	doe := days - era*146097
	yoe := (doe - doe/1460 + doe/36524 - doe/146096) / 365
	doy := doe - (365*yoe + yoe/4 - yoe/100)
	mp := (5*doy + 2) / 153
	d = doy - (153*mp+2)/5 + 1
	y = yoe + era*400
	if m = mp + 3; m > 12 {
		m, y = m-12, y+1
	}
	return y, m, d
}

const months = "JanFebMarAprMayJunJulAugSepOctNovDec"

// appendDate appends seconds since 1970 in UTC as Jan 2, 2006, 3:04:05 PM.
func appendDate(dst []byte, seconds int64) []byte {
	const day = 24 * 60 * 60
	seconds = min(max(seconds, unixYear0), unixYear9999)
	days, rest := seconds/day, seconds%day
	if rest < 0 {
		days, rest = days-1, rest+day
	}
	y, m, d := civil(days)
	dst = append(dst, months[3*m-3:3*m]...)
	dst = append(dst, ' ')
	dst = strconv.AppendInt(dst, d, 10)
	dst = append(dst, ',', ' ')
	dst = strconv.AppendInt(dst, y, 10)
	dst = append(dst, ',', ' ')
	h, half := rest/3600, byte('A')
	if h >= 12 {
		h, half = h-12, 'P'
	}
	if h == 0 {
		h = 12
	}
	dst = strconv.AppendInt(dst, h, 10)
	return append(dst, ':', digit(rest/600%6), digit(rest/60), ':', digit(rest/10%6), digit(rest), ' ', half, 'M')
}
