package policy

import (
	"math"
	"net/netip"
	"strconv"

	"github.com/keyplane/keyplane/internal/bytesconv"
)

// The parsers of condition values, of policies and requests alike. They allocate nothing, also where they refuse.

// parseNumber reads [+-]digits[.digits][e[+-]digits] of less than 10^308.
func parseNumber(s []byte) (float64, bool) {
	i := sign(s, 0)
	whole := digits(s, i)
	if whole == i {
		return 0, false
	}
	// The place of the first digit that is not 0 bounds the number; it is 10^(magnitude-1) or more and less than 10^magnitude.
	first, magnitude := i, 0
	for first < whole && s[first] == '0' {
		first++
	}
	zero := first == whole
	magnitude = whole - first
	i = whole
	if i < len(s) && s[i] == '.' {
		fraction := digits(s, i+1)
		if fraction == i+1 {
			return 0, false
		}
		for j := i + 1; zero && j < fraction; j++ {
			if s[j] != '0' {
				zero = false
				break
			}
			magnitude--
		}
		i = fraction
	}
	if i < len(s) && s[i]|0x20 == 'e' {
		j := sign(s, i+1)
		end := digits(s, j)
		if end == j {
			return 0, false
		}
		exponent := 0
		for _, c := range s[j:end] {
			exponent = min(exponent*10+int(c-'0'), 1<<30)
		}
		if s[i+1] == '-' {
			exponent = -exponent
		}
		magnitude += exponent
		i = end
	}
	if i != len(s) || !zero && magnitude > 308 {
		return 0, false
	}
	if zero {
		return 0, true
	}
	f, err := strconv.ParseFloat(bytesconv.String(s), 64)
	return f, err == nil && !math.IsInf(f, 0)
}

// sign is where what follows an optional sign at i begins.
func sign(s []byte, i int) int {
	if i < len(s) && (s[i] == '+' || s[i] == '-') {
		return i + 1
	}
	return i
}

// digits is where the digits that begin at i end.
func digits(s []byte, i int) int {
	for i < len(s) && s[i]-'0' < 10 {
		i++
	}
	return i
}

// instant is a point in time: seconds since 1970 and nanoseconds of the second.
type instant struct {
	sec  int64
	nano int32
}

func (a instant) compare(b instant) int {
	switch {
	case a.sec < b.sec, a.sec == b.sec && a.nano < b.nano:
		return -1
	case a == b:
		return 0
	}
	return 1
}

const epochDigitsMax = 15

// parseDate reads ISO 8601 (YYYY, YYYY-MM, YYYY-MM-DD, YYYY-MM-DDThh:mm[:ss[.fraction]] with Z or ±hh:mm), or seconds since 1970: an integer of
// up to 15 digits, but four digits alone are a year.
func parseDate(s []byte) (instant, bool) {
	if n := len(s); n != 4 || s[0] == '-' {
		i := 0
		if n > 0 && s[0] == '-' {
			i = 1
		}
		if end := digits(s, i); end == n && end > i {
			if end-i > epochDigitsMax {
				return instant{}, false
			}
			sec := int64(0)
			for _, c := range s[i:] {
				sec = sec*10 + int64(c-'0')
			}
			if i == 1 {
				sec = -sec
			}
			return instant{sec: sec}, true
		}
	}
	p := dateScanner{s: s, ok: true}
	year, month, day := p.number(4, 0, 9999), 1, 1
	if p.more() {
		p.byte('-')
		month = p.number(2, 1, 12)
	}
	if p.more() {
		p.byte('-')
		day = p.number(2, 1, daysIn(year, month))
	}
	t := instant{sec: daysSinceEpoch(year, month, day) * 86400}
	if p.more() {
		p.byte('T')
		hour := p.number(2, 0, 23)
		p.byte(':')
		minute := p.number(2, 0, 59)
		t.sec += int64(hour)*3600 + int64(minute)*60
		if p.is(':') {
			t.sec += int64(p.number(2, 0, 59))
			if p.is('.') {
				t.nano = p.fraction()
			}
		}
		t.sec -= int64(p.zone())
	}
	if !p.ok || p.i != len(s) {
		return instant{}, false
	}
	return t, true
}

// dateScanner reads the parts of a date; ok false after the first that is none.
type dateScanner struct {
	s  []byte
	i  int
	ok bool
}

func (p *dateScanner) more() bool { return p.ok && p.i < len(p.s) }

// is takes c, if it comes next.
func (p *dateScanner) is(c byte) bool {
	if p.more() && p.s[p.i] == c {
		p.i++
		return true
	}
	return false
}

func (p *dateScanner) byte(c byte) { p.ok = p.ok && p.is(c) }

// number takes exactly n digits, of a number from lo to hi.
func (p *dateScanner) number(n, lo, hi int) int {
	if !p.ok || digits(p.s[:min(p.i+n, len(p.s))], p.i) != p.i+n {
		p.ok = false
		return lo
	}
	v := 0
	for _, c := range p.s[p.i : p.i+n] {
		v = v*10 + int(c-'0')
	}
	p.i += n
	if v < lo || v > hi {
		p.ok = false
		return lo
	}
	return v
}

// fraction takes 1 to 9 digits, in nanoseconds.
func (p *dateScanner) fraction() int32 {
	end := digits(p.s, p.i)
	n := end - p.i
	if n < 1 || n > 9 {
		p.ok = false
		return 0
	}
	v := int32(0)
	for k := range 9 {
		v *= 10
		if k < n {
			v += int32(p.s[p.i+k] - '0')
		}
	}
	p.i = end
	return v
}

// zone takes Z or ±hh:mm, in seconds east of UTC.
func (p *dateScanner) zone() int {
	if p.is('Z') {
		return 0
	}
	east := 1
	if p.is('-') {
		east = -1
	} else {
		p.byte('+')
	}
	hour := p.number(2, 0, 23)
	p.byte(':')
	minute := p.number(2, 0, 59)
	return east * (hour*3600 + minute*60)
}

func daysIn(year, month int) int {
	switch month {
	case 4, 6, 9, 11:
		return 30
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	}
	return 31
}

// daysSinceEpoch counts in years that begin in March, so that the day of a leap year is a year's last.
func daysSinceEpoch(year, month, day int) int64 {
	y, m := year, month-3
	if m < 0 {
		y, m = y-1, m+12
	}
	if y < 0 { // January and February of year 0: one period of 400 years later
		return daysSinceEpoch(year+400, month, day) - 146097
	}
	return int64(y*365+y/4-y/100+y/400+(m*153+2)/5+day-1) - 719468
}

// parseBool reads true or false, in any case.
func parseBool(s []byte) (value, ok bool) {
	switch {
	case sameFold(s, "true"):
		return true, true
	case sameFold(s, "false"):
		return false, true
	}
	return false, false
}

// parseAddr reads an IP address without zone, as netip.ParseAddr does. An IPv4 address mapped into IPv6 is the IPv4 address.
func parseAddr(s []byte) (netip.Addr, bool) {
	if a, ok := parseIPv4(s); ok {
		return netip.AddrFrom4(a), true
	}
	a, ok := parseIPv6(s)
	return netip.AddrFrom16(a).Unmap(), ok
}

// parseIPv4 reads four numbers up to 255 without leading zeros.
func parseIPv4(s []byte) (a [4]byte, ok bool) {
	i := 0
	for k := range a {
		if k > 0 {
			if i == len(s) || s[i] != '.' {
				return a, false
			}
			i++
		}
		end := digits(s, i)
		if n := end - i; n < 1 || n > 3 || n > 1 && s[i] == '0' {
			return a, false
		}
		v := 0
		for ; i < end; i++ {
			v = v*10 + int(s[i]-'0')
		}
		if v > 255 {
			return a, false
		}
		a[k] = byte(v)
	}
	return a, i == len(s)
}

// parseIPv6 reads up to eight groups of four hexadecimal digits, one :: for the zeros that are left out, the last two groups as an IPv4 address
// perhaps.
func parseIPv6(s []byte) (a [16]byte, ok bool) {
	n, gap := 0, -1 // bytes of a filled; where :: stands
	i := 0
	if len(s) >= 2 && s[0] == ':' && s[1] == ':' {
		gap, i = 0, 2
	}
	for i < len(s) {
		if n == 16 {
			return a, false
		}
		end, v := i, 0
		for end < len(s) && end-i < 4 && hexValue(s[end]) >= 0 {
			v = v<<4 | hexValue(s[end])
			end++
		}
		if end == i {
			return a, false
		}
		if end < len(s) && s[end] == '.' {
			b, ok := parseIPv4(s[i:])
			if !ok || n > 12 {
				return a, false
			}
			n += copy(a[n:], b[:])
			break
		}
		a[n], a[n+1] = byte(v>>8), byte(v)
		n += 2
		i = end
		if i == len(s) {
			break
		}
		if s[i] != ':' || i+1 == len(s) {
			return a, false
		}
		i++
		if s[i] == ':' {
			if gap >= 0 {
				return a, false
			}
			gap = n
			i++
		}
	}
	switch {
	case gap < 0:
		return a, n == 16
	case n == 16:
		return a, false
	}
	copy(a[16-(n-gap):], a[gap:n])
	clear(a[gap : 16-(n-gap)])
	return a, true
}

func hexValue(c byte) int {
	switch {
	case c-'0' < 10:
		return int(c - '0')
	case c-'a' < 6:
		return int(c-'a') + 10
	case c-'A' < 6:
		return int(c-'A') + 10
	}
	return -1
}

// parseRange reads a CIDR range or an address, which is a range of one.
func parseRange(s string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, ok := parseAddr([]byte(s))
		if !ok {
			return netip.Prefix{}, false
		}
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), true
}
