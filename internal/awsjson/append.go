package awsjson

import (
	"encoding/base64"
	"strconv"
)

// AppendBase64 appends src as a JSON string of standard base64 with padding.
func AppendBase64(dst, src []byte) []byte {
	dst = append(dst, '"')
	dst = base64.StdEncoding.AppendEncode(dst, src)
	return append(dst, '"')
}

// AppendTimestamp appends a time, given in milliseconds since 1970, as a JSON number of seconds. The fraction has three digits, or is left
// out where it is zero.
func AppendTimestamp(dst []byte, unixMilli int64) []byte {
	seconds, millis := unixMilli/1000, unixMilli%1000
	if millis < 0 { // both are negative or zero; the sign is written once
		millis = -millis
		if seconds == 0 {
			dst = append(dst, '-')
		}
	}
	dst = strconv.AppendInt(dst, seconds, 10)
	if millis == 0 {
		return dst
	}
	return append(dst, '.', byte('0'+millis/100), byte('0'+millis/10%10), byte('0'+millis%10))
}
