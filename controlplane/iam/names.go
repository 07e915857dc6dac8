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

// withoutRegion is a service's name without the Region that is its second label: s3.us-east-1.amazonaws.com becomes s3.amazonaws.com.
func withoutRegion(service string) string {
	first, rest, _ := strings.Cut(service, ".")
	region, domain, ok := strings.Cut(rest, ".")
	if ok && isRegion(region) {
		return first + "." + domain
	}
	return service
}

// isRegion reports whether s is a Region's name: us-east-1, us-gov-west-1.
func isRegion(s string) bool {
	parts := strings.Split(s, "-")
	for i, p := range parts {
		for _, c := range []byte(p) {
			digit := c >= '0' && c <= '9'
			if i == len(parts)-1 != digit || !digit && (c < 'a' || c > 'z') {
				return false
			}
		}
		if p == "" {
			return false
		}
	}
	return len(parts) > 2
}
