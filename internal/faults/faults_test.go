package main

import (
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// TestLifeModel: the check finds what it is there to find.
func TestLifeModel(t *testing.T) {
	type op = porcupine.Operation
	at := func(client int, call, back int64, in lifeInput, out lifeOutput) op {
		return op{ClientId: client, Input: in, Call: call, Output: out, Return: back}
	}
	for name, c := range map[string]struct {
		history []op
		want    porcupine.CheckResult
	}{
		"a use after DisableKey":                  {[]op{at(0, 0, 1, lifeInput{op: "DisableKey"}, lifeOutput{}), at(1, 2, 3, lifeInput{op: "Encrypt"}, lifeOutput{})}, porcupine.Illegal},
		"a use meanwhile":                         {[]op{at(0, 0, 3, lifeInput{op: "DisableKey"}, lifeOutput{}), at(1, 1, 2, lifeInput{op: "Encrypt"}, lifeOutput{})}, porcupine.Ok},
		"a use from before, after one from after": {[]op{at(0, 0, 9, lifeInput{op: "DisableKey"}, lifeOutput{}), at(1, 1, 2, lifeInput{op: "Encrypt"}, lifeOutput{refused: isDisabled}), at(2, 3, 4, lifeInput{op: "Encrypt"}, lifeOutput{})}, porcupine.Illegal},
		"a refusal without a cause":               {[]op{at(1, 2, 3, lifeInput{op: "Encrypt"}, lifeOutput{refused: isDisabled})}, porcupine.Illegal},
		"an old alias": {[]op{at(0, 0, 1, lifeInput{op: "UpdateAlias", key: 1}, lifeOutput{}), at(1, 2, 3, lifeInput{op: "by alias"}, lifeOutput{key: 0})},
			porcupine.Illegal},
		"DisableKey without an answer, done":       {[]op{at(0, 0, math.MaxInt64, lifeInput{op: "DisableKey"}, lifeOutput{unsure: true}), at(1, 2, 3, lifeInput{op: "Encrypt"}, lifeOutput{refused: isDisabled})}, porcupine.Ok},
		"DisableKey without an answer, not done":   {[]op{at(0, 0, math.MaxInt64, lifeInput{op: "DisableKey"}, lifeOutput{unsure: true}), at(1, 2, 3, lifeInput{op: "Encrypt"}, lifeOutput{})}, porcupine.Ok},
		"DisableKey without an answer, done late":  {[]op{at(0, 0, math.MaxInt64, lifeInput{op: "DisableKey"}, lifeOutput{unsure: true}), at(1, 2, 3, lifeInput{op: "Encrypt"}, lifeOutput{}), at(1, 4, 5, lifeInput{op: "Encrypt"}, lifeOutput{refused: isDisabled})}, porcupine.Ok},
		"DisableKey without an answer, undone":     {[]op{at(0, 0, math.MaxInt64, lifeInput{op: "DisableKey"}, lifeOutput{unsure: true}), at(1, 2, 3, lifeInput{op: "Encrypt"}, lifeOutput{refused: isDisabled}), at(1, 4, 5, lifeInput{op: "Encrypt"}, lifeOutput{})}, porcupine.Illegal},
		"a state that was never":                   {[]op{at(0, 0, 1, lifeInput{op: "DescribeKey"}, lifeOutput{state: disabled})}, porcupine.Illegal},
		"a deletion that is cancelled is disabled": {[]op{at(0, 0, 1, lifeInput{op: "ScheduleKeyDeletion"}, lifeOutput{}), at(0, 2, 3, lifeInput{op: "CancelKeyDeletion"}, lifeOutput{}), at(0, 4, 5, lifeInput{op: "DescribeKey"}, lifeOutput{state: enabled})}, porcupine.Illegal},
	} {
		if got := porcupine.CheckOperationsTimeout(lifeModel.ToModel(), c.history, time.Minute); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestWhole: after an operation without an end its client is another one, or it would have two at a time.
func TestWhole(t *testing.T) {
	h := history{operations: []porcupine.Operation{
		{ClientId: 0, Call: 0, Return: 1}, {ClientId: 0, Call: 2, Return: math.MaxInt64}, {ClientId: 1, Call: 3, Return: 4}, {ClientId: 0, Call: 5, Return: 6}, {ClientId: 0, Call: 7, Return: math.MaxInt64}, {ClientId: 0, Call: 8, Return: 9},
	}}
	var got []int
	for _, o := range h.whole() {
		got = append(got, o.ClientId)
	}
	for i, want := range []int{0, 0, 1, historyClients, historyClients, historyClients + 1} {
		if got[i] != want {
			t.Fatalf("clients %v", got)
		}
	}
}

func TestCell(t *testing.T) {
	c := cell{value: "a"}
	if !c.sure() || !c.may("a") || c.may("b") || c.may("") {
		t.Error("a value that is sure")
	}
	c.maybe = append(c.maybe, "b")
	if c.sure() || !c.may("a") || !c.may("b") || c.may("c") {
		t.Error("a value that is not")
	}
}

// TestFindings: what is found is counted for its invariant, and told a few times.
func TestFindings(t *testing.T) {
	var said strings.Builder
	f := findings{counts: map[string]int{}, examples: map[string][]string{}, tell: &said, fault: func() string { return "none" }}
	if f.any() {
		t.Error("nothing was found")
	}
	for range 10 {
		f.found(wrongPlain, "x")
	}
	if f.counts[wrongPlain] != 10 || strings.Count(said.String(), "\n") != examplesMax || !f.any() || f.violated()[0] != wrongPlain {
		t.Errorf("%v, %q", f.counts, said.String())
	}
	p := report{}
	p.print(io.Discard)
}

// TestKinds: names are unique, and as many fit either shape as are promised.
func TestKinds(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range kinds {
		if seen[k.name] || k.name == "" || k.inject == nil {
			t.Errorf("kind %q", k.name)
		}
		seen[k.name] = true
	}
	if _, err := (&run{options: options{kinds: []string{"no such kind"}}}).chosen(false); err == nil {
		t.Error("an unknown kind was taken")
	}
}

func TestQuantile(t *testing.T) {
	if quantile(nil, 0.5) != 0 || quantile([]time.Duration{1, 2, 3}, 0.5) != 2 || quantile([]time.Duration{1, 2, 3}, 1) != 3 {
		t.Error("quantiles")
	}
}

// TestQueue: a queue that is known. One core that is half busy keeps half of the requests waiting, and what comes once per service time waits for nobody among many cores.
func TestQueue(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	if p50, p99 := queue(rnd, 500, 1, time.Millisecond, 200_000); p50 > 100*time.Microsecond || p99 < 2*time.Millisecond || p99 > 5*time.Millisecond {
		t.Errorf("one core, half busy: p50 %v, p99 %v", p50, p99)
	}
	if p50, p99 := queue(rnd, 1000, 64, time.Millisecond, 10_000); p50 != 0 || p99 != 0 {
		t.Errorf("64 cores: p50 %v, p99 %v", p50, p99)
	}
	one, _ := slowest(rnd, 1, 20_000)
	many, _ := slowest(rnd, 50, 20_000)
	if one < tellP50*9/10 || one > tellP50*11/10 || many <= one {
		t.Errorf("the slowest of one %v, of fifty %v", one, many)
	}
}

// TestPerMillion: one loss among a million requests, whatever was sent.
func TestPerMillion(t *testing.T) {
	for _, c := range []struct {
		failed, far, n int64
		likely, most   float64
	}{
		{0, 0, 1_000_000, 0, 3},         // the rule of three
		{3, 0, 20_000, 3, 153},          // what fails with the loss does not become more with what is sent beside it
		{3, 0, 2_000_000, 1.5, 3},       // of one loss among two million half
		{5, 2, 100_000, 3 + 20, 3 + 63}, // what fails apart from it does: 6.3 with 95 % certainty
		{40, 40, 1_000_000, 40, 52.1},
		{0, 0, 0, 0, 3_000_000}, // nothing is known
		{300, 300, 1_000_000, 300, 330.03},
	} {
		likely, most := perMillion(c.failed, c.far, c.n)
		if math.Abs(likely-c.likely) > 0.001 || math.Abs(most-c.most) > 0.01*c.most {
			t.Errorf("%+v: %v, %v", c, likely, most)
		}
	}
}
