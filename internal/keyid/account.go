package keyid

// AccountMax is the largest account ID.
const AccountMax Account = 999_999_999_999

const accountDigits = 12

// Account is a 12-digit account ID. The zero value is 000000000000, a well-formed ID.
type Account uint64

// ParseAccount reads exactly 12 decimal digits.
func ParseAccount(s []byte) (Account, bool) {
	if len(s) != accountDigits {
		return 0, false
	}
	var a Account
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, false
		}
		a = a*10 + Account(c-'0')
	}
	return a, true
}

// Append appends the 12 digits. An account above AccountMax is a programming error and panics, because two accounts would look alike.
func (a Account) Append(dst []byte) []byte {
	if a > AccountMax {
		panic("keyid: account ID of more than 12 digits")
	}
	// Two halves that do not wait for each other.
	var b [accountDigits]byte
	upper, lower := uint32(a/1_000_000), uint32(a%1_000_000)
	for i := len(b)/2 - 1; i >= 0; i-- {
		b[i], b[i+len(b)/2] = byte('0'+upper%10), byte('0'+lower%10)
		upper, lower = upper/10, lower/10
	}
	return append(dst, b[:]...)
}

// String is the 12 digits; it panics as Append does.
func (a Account) String() string { return string(a.Append(nil)) }
