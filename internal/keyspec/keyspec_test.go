package keyspec

import (
	"slices"
	"testing"
)

// Names find their rows and rows their names; Algorithms and Has say the same.
func TestTable(t *testing.T) {
	if n := len(All()); n != 18 {
		t.Fatalf("%d specs", n)
	}
	for _, s := range All() {
		if s.String() == "" || Of(s.String()) != s || Of([]byte(s.String())) != s {
			t.Errorf("%v: %q", uint8(s), s)
		}
		for i := range usageNames {
			u := Usage(1 << i)
			if UsageOf(u.String()) != u {
				t.Errorf("usage %v", u)
			}
			has := s.Algorithms(u)
			if (s.Info().Usages&u != 0) != (len(has) > 0) {
				t.Errorf("%v for %v: %v", s, u, has)
			}
			for a := NoAlgorithm; a <= algorithms; a++ {
				if s.Has(u, a) != slices.Contains(has, a) {
					t.Errorf("%v for %v: %v", s, u, a)
				}
			}
		}
	}
	for a := NoAlgorithm + 1; a < algorithms; a++ {
		if a.String() == "" || AlgorithmOf(a.String()) != a {
			t.Errorf("%v: %q", uint8(a), a)
		}
	}
	for _, none := range []string{"", "SYMMETRIC_DEFAULT", "RSA_1024"} {
		if Of(none) != None || AlgorithmOf(none) != NoAlgorithm || UsageOf(none) != 0 {
			t.Errorf("%q is something", none)
		}
	}
	if None.Info().Name != "" || Spec(200).Info().Name != "" || Algorithm(200).String() != "" || Usage(3).String() != "" {
		t.Error("what is not in the table has a name")
	}
}

// The limits of the AWS KMS developer guide.
func TestPlaintextMax(t *testing.T) {
	for s, want := range map[Spec][2]int{RSA2048: {214, 190}, RSA3072: {342, 318}, RSA4096: {470, 446}} {
		if got := [2]int{s.PlaintextMax(OAEPSHA1), s.PlaintextMax(OAEPSHA256)}; got != want {
			t.Errorf("%v: %v, want %v", s, got, want)
		}
	}
}
