package blob_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// add adds alternating keys and values, and stops at the first fault.
func add(c *blob.Context, pairs ...string) blob.Fault {
	for i := 0; i < len(pairs); i += 2 {
		if f := c.Add([]byte(pairs[i]), []byte(pairs[i+1])); f != blob.FaultNone {
			return f
		}
	}
	return blob.FaultNone
}

func canonical(t *testing.T, pairs ...string) []byte {
	t.Helper()
	var c blob.Context
	if f := add(&c, pairs...); f != blob.FaultNone {
		t.Fatalf("%q: %v", pairs, f)
	}
	b := c.AppendTo(nil)
	if len(b) != c.CanonicalLen() {
		t.Fatalf("%q: %d bytes, CanonicalLen says %d", pairs, len(b), c.CanonicalLen())
	}
	return b
}

func TestContextCanonical(t *testing.T) {
	for _, c := range []struct {
		pairs []string
		want  string
	}{
		{nil, "0000"},
		{[]string{"", ""}, "0001 0000 0000"},
		{[]string{"k", ""}, "0001 0001 6b 0000"},
		{[]string{"b", "2", "a", "1"}, "0002 0001 61 0001 31 0001 62 0001 32"},
		// Byte order, not length, case or Unicode order of another encoding: "" < "B" < "a" < "aa" < "b" < U+FF5E < U+10000.
		{[]string{"\U00010000", "7", "b", "5", "", "1", "aa", "4", "\uff5e", "6", "a", "3", "B", "2"},
			"0007 0000 0001 31 0001 42 0001 32 0001 61 0001 33 0002 6161 0001 34 0001 62 0001 35 0003 efbd9e 0001 36 0004 f0908080 0001 37"},
	} {
		want, err := hex.DecodeString(strings.ReplaceAll(c.want, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := canonical(t, c.pairs...); !bytes.Equal(got, want) {
			t.Errorf("%q: %x, want %x", c.pairs, got, want)
		}
	}
}

// Contexts that give one string when keys and values are run together, with or without usual separators.
func TestContextCollisions(t *testing.T) {
	contexts := [][]string{
		nil,
		{"", ""},
		{"a", "bc"},
		{"ab", "c"},
		{"abc", ""},
		{"", "abc"},
		{"a", "", "b", "c"},
		{"a", "b", "c", ""},
		{"a", "b", "", "c"},
		{"a", "b=c"},
		{"a=b", "c"},
		{"a", "b,c=d"},
		{"a", "b", "c", "d"},
		{"a", "b\x00c\x00d"},
		{"a\x00b", "c\x00d"},
		{"a", "b\x00\x01c\x00\x01d"}, // a value that spells the encoding of a further pair
		{"A", "bc"},
		{"\u00e9", "x"},       // é in one code point
		{"e\u0301", "x"},      // and in two: no normalisation
		{"k", "\u00a0"},       // no-break space
		{"k", " "},            //
		{"k", "\ufeff"},       // byte order mark
		{"k", "v", "k ", "v"}, //
		{"k", "v"},            //
	}
	seen := map[string][]string{}
	for _, c := range contexts {
		b := string(canonical(t, c...))
		if other, ok := seen[b]; ok {
			t.Errorf("%q and %q have the same form", c, other)
		}
		seen[b] = c
	}
}

func TestContextOrder(t *testing.T) {
	var keys []string
	for i := range kmsapi.ContextPairsMax {
		keys = append(keys, string(rune('!'+(i*37)%kmsapi.ContextPairsMax))) // a permutation: 37 is odd
	}
	forward, backward := new(blob.Context), new(blob.Context)
	for i := range keys {
		add(forward, keys[i], "v"+keys[i])
		j := len(keys) - 1 - i
		add(backward, keys[j], "v"+keys[j])
	}
	if !bytes.Equal(forward.AppendTo(nil), backward.AppendTo(nil)) {
		t.Error("the order of Add matters")
	}
	slices.Sort(keys)
	if forward.Len() != len(keys) {
		t.Fatalf("%d pairs, want %d", forward.Len(), len(keys))
	}
	for i, want := range keys {
		k, v := forward.Pair(i)
		if string(k) != want || string(v) != "v"+want {
			t.Errorf("pair %d is %q: %q, want %q", i, k, v, want)
		}
		if v, ok := forward.Value([]byte(want)); !ok || string(v) != "v"+want {
			t.Errorf("Value(%q) = %q, %v", want, v, ok)
		}
	}
	if v, ok := forward.Value([]byte("absent")); ok || v != nil {
		t.Error("an absent key has a value")
	}
}

func TestContextFaults(t *testing.T) {
	refuse := func(name string, c *blob.Context, want blob.Fault, key, value string) {
		t.Helper()
		before, n := c.AppendTo(nil), c.Len()
		if f := add(c, key, value); f != want {
			t.Errorf("%s: %v, want %v", name, f, want)
		}
		if !bytes.Equal(before, c.AppendTo(nil)) || c.Len() != n {
			t.Errorf("%s: the refused pair changed the context", name)
		}
	}
	c := new(blob.Context)
	add(c, "m", "1")
	refuse("the same pair", c, blob.FaultDuplicate, "m", "1")
	refuse("the key again", c, blob.FaultDuplicate, "m", "2")
	for _, bad := range []string{"\xff", "a\x80", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82"} {
		refuse("key that is no UTF-8", c, blob.FaultUTF8, bad, "v")
		refuse("value that is no UTF-8", c, blob.FaultUTF8, "k", bad)
	}

	c.Reset()
	for i := range kmsapi.ContextPairsMax {
		if f := add(c, string(rune('0'+i)), ""); f != blob.FaultNone {
			t.Fatalf("pair %d: %v", i+1, f)
		}
	}
	refuse("one pair more than allowed", c, blob.FaultPairs, "z", "")
	refuse("a duplicate in a full context", c, blob.FaultDuplicate, "0", "")

	// 8192 bytes of canonical form: 2 for the count and 4 for the lengths of each pair.
	fill := strings.Repeat("x", kmsapi.ContextBytesMax-2-4)
	for name, c := range map[string]struct {
		pairs []string
		want  blob.Fault
	}{
		"longest value":               {[]string{"", fill}, blob.FaultNone},
		"longest key":                 {[]string{fill, ""}, blob.FaultNone},
		"longest split":               {[]string{fill[:100], fill[100:]}, blob.FaultNone},
		"longest of two pairs":        {[]string{"a", fill[:2000], "b", fill[2000+4+2:]}, blob.FaultNone},
		"value one too long":          {[]string{"", fill + "x"}, blob.FaultLength},
		"key one too long":            {[]string{fill + "x", ""}, blob.FaultLength},
		"split one too long":          {[]string{fill[:100], fill[100:] + "x"}, blob.FaultLength},
		"two pairs one too long":      {[]string{"a", fill[:2000], "b", fill[2000+4+1:]}, blob.FaultLength},
		"no room for the lengths":     {[]string{"a", fill[1:], "b", ""}, blob.FaultLength},
		"lengths fit, the key not":    {[]string{"a", fill[1+4:], "b", ""}, blob.FaultLength},
		"lengths and the key fit":     {[]string{"a", fill[1+4+1:], "b", ""}, blob.FaultNone},
		"lengths beyond 16 bits":      {[]string{"a", strings.Repeat("x", 1<<16)}, blob.FaultLength},
		"lengths beyond 16 bits, key": {[]string{strings.Repeat("x", 1<<16+3), ""}, blob.FaultLength},
	} {
		ctx := new(blob.Context)
		if f := add(ctx, c.pairs...); f != c.want {
			t.Errorf("%s: %v, want %v", name, f, c.want)
		}
		if n := len(ctx.AppendTo(nil)); n > kmsapi.ContextBytesMax || c.want == blob.FaultNone && strings.HasPrefix(name, "longest") && n != kmsapi.ContextBytesMax {
			t.Errorf("%s: %d bytes", name, n)
		}
	}
}

func TestFaultString(t *testing.T) {
	seen := map[string]bool{}
	for f := blob.FaultNone; f <= blob.FaultLength; f++ {
		if s := f.String(); s == "" || s == "unknown" || seen[s] {
			t.Errorf("fault %d is named %q", f, s)
		} else {
			seen[s] = true
		}
	}
	if s := (blob.FaultLength + 1).String(); s != "unknown" {
		t.Errorf("the fault after the last is named %q", s)
	}
}

func TestContextReset(t *testing.T) {
	c := new(blob.Context)
	add(c, "b", "2", "a", "1")
	c.Reset()
	if !c.Zero() {
		t.Error("Reset leaves a slice")
	}
	if !bytes.Equal(c.AppendTo(nil), []byte{0, 0}) {
		t.Error("a reset context is not the empty one")
	}
	if f := add(c, "a", "1"); f != blob.FaultNone {
		t.Errorf("after Reset: %v", f)
	}
}

func TestPairOutOfRange(t *testing.T) {
	c := new(blob.Context)
	add(c, "a", "1")
	c.Reset()
	defer func() {
		if recover() == nil {
			t.Error("a pair beyond Len is given out")
		}
	}()
	c.Pair(0)
}

// FuzzContextInjective: two contexts have the same canonical form exactly where they are the same map. The maps are read from the input by
// encoding/json, which knows nothing of this package, and compared as maps and by a second encoding, JSON with sorted keys.
func FuzzContextInjective(f *testing.F) {
	f.Add([]byte(`{"a":"bc"}`), []byte(`{"ab":"c"}`))
	f.Add([]byte(`{"a":"1","b":"2"}`), []byte(`{"b":"2","a":"1"}`))
	f.Add([]byte(`{}`), []byte(`{"":""}`))
	f.Add([]byte(`{"a":"b\u0000\u0001c\u0000\u0001d"}`), []byte(`{"a":"b","c":"d"}`))
	f.Add([]byte(`{"\u00e9":"x"}`), []byte(`{"e\u0301":"x"}`))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var ma, mb map[string]string
		if json.Unmarshal(a, &ma) != nil || json.Unmarshal(b, &mb) != nil {
			return
		}
		ca, okA := collect(t, ma)
		cb, okB := collect(t, mb)
		if !okA || !okB {
			return
		}
		ja, errA := json.Marshal(ma)
		jb, errB := json.Marshal(mb)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		same := maps.Equal(ma, mb)
		if len(ma)+len(mb) > 0 && same != bytes.Equal(ja, jb) { // json tells nil from empty, the API does not
			t.Fatalf("%q and %q: the second encoding disagrees with the maps", ma, mb)
		}
		if same != bytes.Equal(ca, cb) {
			t.Fatalf("%q and %q: same map %v, forms %x and %x", ma, mb, same, ca, cb)
		}
	})
}

// collect gives the canonical form of m, added in the map's random order, unless m is over a limit.
func collect(t *testing.T, m map[string]string) ([]byte, bool) {
	var c blob.Context
	size := 2
	for k, v := range m {
		size += 4 + len(k) + len(v)
	}
	fits := len(m) <= kmsapi.ContextPairsMax && size <= kmsapi.ContextBytesMax
	for k, v := range m {
		switch f := c.Add([]byte(k), []byte(v)); {
		case f == blob.FaultNone:
		case (f == blob.FaultPairs || f == blob.FaultLength) && !fits:
			return nil, false
		default:
			t.Fatalf("%q: %v", m, f)
		}
	}
	if !fits {
		t.Fatalf("a context of %d pairs and %d bytes is taken", len(m), size)
	}
	b := c.AppendTo(nil)
	if len(b) != size {
		t.Fatalf("%q: %d bytes, want %d", m, len(b), size)
	}
	return b, true
}
