package kmsapi

import (
	"strings"
	"testing"
)

// TestViolationsAreBounded: beyond the bound failures are counted and not worded.
func TestViolationsAreBounded(t *testing.T) {
	var v Violations
	var at64 int
	for i := range 20000 {
		switch i % 3 {
		case 0:
			v.Null("tags.1.member.tagKey")
		case 1:
			v.Max("limit", 5000, 1000)
		default:
			v.MaxLength("keyId", []byte(strings.Repeat("k", 200)), 10)
		}
		if i+1 == violationsMax {
			at64 = len(v.AppendMessage(nil))
		}
	}
	m := string(v.AppendMessage(nil))
	if !strings.HasPrefix(m, "20000 validation errors detected: Value null at ") {
		t.Errorf("message begins %.80q", m)
	}
	if n := strings.Count(m, "failed to satisfy"); n != violationsMax {
		t.Errorf("%d failures are worded", n)
	}
	if len(m) > at64+3 { // the count has three more digits
		t.Errorf("%d bytes after 20000 failures, %d after %d", len(m), at64, violationsMax)
	}
}
