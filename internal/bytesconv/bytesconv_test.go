package bytesconv

import "testing"

func TestRoundTrip(t *testing.T) {
	for _, s := range []string{"", "a", "kms:Decrypt", "é€"} {
		if got := Bytes(s); string(got) != s || len(got) != len(s) || cap(got) != len(s) {
			t.Errorf("Bytes(%q) = %q, cap %d", s, got, cap(got))
		}
		if got := String([]byte(s)); got != s {
			t.Errorf("String(%q) = %q", s, got)
		}
	}
	if String(nil) != "" || len(Bytes("")) != 0 {
		t.Error("nothing is not nothing")
	}
}

func TestNoAlloc(t *testing.T) {
	s, b, n := "some text that is longer than thirty-two bytes", []byte("some bytes that are longer than thirty-two"), 0
	if a := testing.AllocsPerRun(100, func() { n += len(Bytes(s)) + len(String(b)) }); a != 0 {
		t.Errorf("%v allocations", a)
	}
}
