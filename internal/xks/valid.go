package xks

import "strings"

// Limits on what says where a proxy is and who may call it, in bytes.
const (
	KeyIDMax     = 128
	AccessKeyMin = 20 // access key ID
	AccessKeyMax = 30
	SecretMin    = 43 // 256 bits in base64, without padding
	SecretMax    = 64
	EndpointMax  = 128
	PathMax      = 128
)

// BasePath is what every XksProxyUriPath ends with.
const BasePath = "/kms/xks/v1"

const scheme = "https://"

func only[T string | []byte](s T, shortest, longest int, allowed *[256]bool) bool {
	if len(s) < shortest || len(s) > longest {
		return false
	}
	for i := range len(s) {
		if !allowed[s[i]] {
			return false
		}
	}
	return true
}

const (
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	lower  = "abcdefghijklmnopqrstuvwxyz"
	digits = "0123456789"
)

func set(s string) *[256]bool {
	t := new([256]bool)
	for _, c := range []byte(s) {
		t[c] = true
	}
	return t
}

var (
	ofKeyID     = set(upper + lower + digits + "._-")
	ofAccessKey = set(upper + "234567")
	ofSecret    = set(upper + lower + digits + "/+=")
	ofPath      = set(upper + lower + digits + "/_-")
	ofLabel     = set(upper + lower + digits + "-")
	ofWord      = set(upper + lower + digits + "_-")
	ofText      = set(printable())
)

// printable is ASCII from space to tilde.
func printable() string {
	var b strings.Builder
	for c := byte(' '); c <= '~'; c++ {
		b.WriteByte(c)
	}
	return b.String()
}

// ValidKeyID: an XksKeyId, the name of an external key, is 1 to 128 of [A-Za-z0-9._-]. What goes into a URI path is not "." or "..", which the names of HTTP
// would resolve.
func ValidKeyID[T string | []byte](id T) bool {
	return only(id, 1, KeyIDMax, ofKeyID) && string(id) != "." && string(id) != ".."
}

// ValidAccessKeyID: the AccessKeyId of an XksProxyAuthenticationCredential is 20 to 30 of [A-Z2-7].
func ValidAccessKeyID[T string | []byte](id T) bool {
	return only(id, AccessKeyMin, AccessKeyMax, ofAccessKey)
}

// ValidSecret: its RawSecretAccessKey is 43 to 64 of [A-Za-z0-9/+=].
func ValidSecret[T string | []byte](secret T) bool {
	return only(secret, SecretMin, SecretMax, ofSecret)
}

// ValidPath: an XksProxyUriPath is BasePath, after a prefix of [A-Za-z0-9/_-] that begins with a slash, or none; 128 bytes in all.
func ValidPath(path string) bool {
	prefix, ok := strings.CutSuffix(path, BasePath)
	return ok && len(path) <= PathMax && only(prefix, 0, PathMax, ofPath) && (prefix == "" || prefix[0] == '/' && len(prefix) > 1)
}

// ValidEndpoint: an XksProxyUriEndpoint is "https://" and the fully qualified name of a host, without port, path or final dot; 128 bytes in all. An IP
// address is none.
func ValidEndpoint(endpoint string) bool {
	host, ok := strings.CutPrefix(endpoint, scheme)
	if !ok || len(endpoint) > EndpointMax || !strings.Contains(host, ".") {
		return false
	}
	last := ""
	for label := range strings.SplitSeq(host, ".") {
		if !only(label, 1, 63, ofLabel) || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		last = label
	}
	return strings.Trim(last, digits) != "" // top-level domains have letters (RFC 3696 §2), IPv4 addresses end in digits
}

// Host is the host of a valid endpoint, in lower case.
func Host(endpoint string) string { return strings.ToLower(strings.TrimPrefix(endpoint, scheme)) }
