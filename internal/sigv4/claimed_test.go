package sigv4

import (
	"strings"
	"testing"
)

func TestClaimed(t *testing.T) {
	for value, want := range map[string][2]string{
		"AWS4-HMAC-SHA256 Credential=AKIAX/20261126/us-east-1/kms/aws4_request, SignedHeaders=host, Signature=0": {"AKIAX", "kms"},
		"Credential=AKIAX/d/r/sts/": {"AKIAX", "sts"},
		"Credential=AKIAX/d/r/sts":  {}, // cut off
		"Credential=A\"B/d/r/kms/x": {},
		"Credential=/d/r/kms/x":     {},
		"Credential=" + strings.Repeat("A", accessKeyIDMax+1) + "/d/r/kms/x": {},
		"Credential=AKIAX/d/r/" + strings.Repeat("k", serviceMax+1) + "/x":   {},
		"Bearer x": {},
		"":         {},
	} {
		r := &Request{Headers: []Header{{Name: []byte("host"), Value: []byte("h")}, {Name: []byte("authorization"), Value: []byte(value)}}}
		if id, service := Claimed(r); string(id) != want[0] || string(service) != want[1] {
			t.Errorf("%s: %q %q, want %q", value, id, service, want)
		}
	}
	if id, _ := Claimed(&Request{}); id != nil {
		t.Errorf("nothing claims %q", id)
	}
}
