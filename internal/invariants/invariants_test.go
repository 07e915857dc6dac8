package invariants

import (
	"strings"
	"testing"
)

type inner struct {
	secret    [4]byte
	plaintext []byte
}

type node struct{ next *node }

type request struct {
	n       int
	name    string
	body    []byte
	out     []byte
	names   []string
	slots   [2][]byte
	decrypt inner
	job     *inner
	done    chan int
	seen    map[string]int
	run     func()
	any     any
	ring    *node
	inner   // embedded
}

var all = []string{"out", "names", "slots", "decrypt.plaintext", "job", "done", "seen", "run", "any", "ring"}

func TestWalk(t *testing.T) {
	dirty := func(n, at int) []byte {
		b := make([]byte, n)
		b[at] = 1
		return b
	}
	full := make(chan int, 1)
	full <- 1
	cycle := &node{}
	cycle.next = cycle
	for _, c := range []struct {
		name     string
		r        request
		reusable []string
		want     string // part of the problem; "" for none
	}{
		{"new", request{}, nil, ""},
		{"new, all reusable", request{}, all, ""},
		{"number", request{n: 1}, all, "n is not zero"},
		{"string", request{name: "x"}, all, "name is not zero"},
		{"a buffer that is not named", request{body: make([]byte, 0, 8)}, all, "body is not zero"},
		{"empty buffer", request{out: make([]byte, 0, 8)}, all, ""},
		{"the same, not named", request{out: make([]byte, 0, 8)}, nil, "out is not zero"},
		{"length", request{out: make([]byte, 1, 8)}, all, "out has a length"},
		{"first byte left", request{out: dirty(8, 0)[:0]}, all, "out is not zero up to its capacity"},
		{"last byte left", request{out: dirty(8, 7)[:0]}, all, "out is not zero up to its capacity"},
		{"string left", request{names: []string{"", "x"}[:0]}, all, "names[1] is not zero"},
		{"strings gone", request{names: []string{"", ""}[:0]}, all, ""},
		{"slot left", request{slots: [2][]byte{nil, dirty(3, 2)[:0]}}, all, "slots[1] is not zero up to its capacity"},
		{"nested buffer", request{decrypt: inner{plaintext: make([]byte, 0, 4)}}, all, ""},
		{"nested buffer dirty", request{decrypt: inner{plaintext: dirty(4, 1)[:0]}}, all, "decrypt.plaintext is not zero up to its capacity"},
		{"nested field", request{decrypt: inner{secret: [4]byte{1}, plaintext: make([]byte, 0, 4)}}, all, "decrypt.secret is not zero"},
		{"nested buffer not named", request{decrypt: inner{plaintext: make([]byte, 0, 4)}}, []string{"out"}, "decrypt is not zero"},
		{"pointee zero", request{job: &inner{}}, all, ""},
		{"pointee reusable", request{job: &inner{plaintext: make([]byte, 0, 4)}}, all, ""},
		{"pointee dirty", request{job: &inner{secret: [4]byte{3: 9}}}, all, "job.secret[3] is not zero"},
		{"pointer not named", request{job: &inner{}}, nil, "job is not zero"},
		{"empty chan", request{done: make(chan int, 1)}, all, ""},
		{"full chan", request{done: full}, all, "done is not empty"},
		{"empty map", request{seen: map[string]int{}}, all, ""},
		{"full map", request{seen: map[string]int{"a": 0}}, all, "seen is not empty"},
		{"func", request{run: func() {}}, all, ""},
		{"func not named", request{run: func() {}}, nil, "run is not zero"},
		{"interface", request{any: 1}, all, ""},
		{"cycle", request{ring: cycle}, all, "nested too deeply"},
		{"embedded", request{inner: inner{secret: [4]byte{1}}}, all, "inner is not zero"},
		{"embedded by path", request{inner: inner{plaintext: make([]byte, 0, 1)}}, []string{"inner.plaintext"}, ""},
		{"no such field", request{}, []string{"gone"}, "there is no field gone"},
		{"no such nested field", request{}, []string{"decrypt.gone"}, "there is no field decrypt.gone"},
		{"path through a buffer", request{}, []string{"out.x"}, "there is no field out.x"},
		{"promoted name", request{}, []string{"plaintext"}, "there is no field plaintext"},
	} {
		got := walk(&c.r, c.reusable)
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestWalkMisuse(t *testing.T) {
	n := 1
	for name, v := range map[string]any{"nil": nil, "struct": request{}, "pointer to int": &n, "nil pointer": (*request)(nil)} {
		if walk(v, nil) == "" {
			t.Errorf("%s is accepted", name)
		}
	}
}

// The messages go to logs: they name the field and never show what is in it.
func TestWalkHidesContents(t *testing.T) {
	r := request{out: []byte("hunter2")[:0], name: "hunter2"}
	for _, reusable := range [][]string{nil, {"out", "name"}} {
		if got := walk(&r, reusable); got == "" || strings.Contains(got, "hunter2") {
			t.Errorf("%q", got)
		}
	}
}

func TestBuilds(t *testing.T) {
	panics := func(f func()) (message any) {
		defer func() { message = recover() }()
		f()
		return nil
	}
	if got := panics(func() { Check(true, "fine") }); got != nil {
		t.Errorf("a true condition panics: %v", got)
	}
	if got := panics(func() { Zeroed(&request{}) }); got != nil {
		t.Errorf("a zero struct panics: %v", got)
	}
	wantCheck, wantZeroed := any(nil), any(nil)
	if Enabled {
		wantCheck, wantZeroed = "invariant broken: two is one", "invariant broken: n is not zero"
	}
	if got := panics(func() { Check(false, "two is one") }); got != wantCheck {
		t.Errorf("a false condition: %v, want %v", got, wantCheck)
	}
	if got := panics(func() { Zeroed(&request{n: 2}) }); got != wantZeroed {
		t.Errorf("a dirty struct: %v, want %v", got, wantZeroed)
	}
}
