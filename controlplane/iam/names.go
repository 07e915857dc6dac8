package iam

import "strings"

// validName is IAM's form of a name: letters, digits and +=,.@_-
func validName(name string, most int) bool {
	for _, c := range []byte(name) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("+=,.@_-", c) >= 0) {
			return false
		}
	}
	return len(name) > 0 && len(name) <= most
}

// withoutRegion is a service's name without the Region in it: s3.us-east-1.amazonaws.com becomes s3.amazonaws.com. A Region is the label
// between the first and amazonaws.com.
func withoutRegion(service string) string {
	first, rest, ok := strings.Cut(service, ".")
	_, domain, more := strings.Cut(rest, ".")
	if ok && more && strings.HasPrefix(domain, "amazonaws.com") {
		return first + "." + domain
	}
	return service
}
