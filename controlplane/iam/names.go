package iam

import (
	"strings"

	"github.com/keyplane/keyplane/controlplane/store"
)

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
	label, _, domain := store.ServiceParts(service)
	return label + "." + domain
}
