package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

const (
	historyClients = 5
	historySteps   = 9 // of each client
	historyKeys    = 2 // between which an alias moves
	// historyTimeout bounds the check of one history. What is not decided by then is counted, and is no violation.
	historyTimeout = 30 * time.Second
)

// lifeInput is one operation of a history.
type lifeInput struct {
	op  string
	key int // which key; of "by alias" none
}

// lifeOutput is what came of it.
type lifeOutput struct {
	unsure  bool   // whether it was done is not known
	refused string // exception, "" for success
	key     int    // that was used
	state   string // that DescribeKey showed
}

// lifeState is what the model knows of both keys and the alias. It is comparable.
type lifeState struct {
	keys  [historyKeys]string
	alias int
}

const (
	enabled         = "Enabled"
	disabled        = "Disabled"
	pendingDeletion = "PendingDeletion"

	isDisabled = "DisabledException"
	isState    = "KMSInvalidStateException"
)

// refusal is what a key's state means for an operation.
func refusal(state, op string) string {
	switch op {
	case "EnableKey", "DisableKey", "ScheduleKeyDeletion", "UpdateAlias":
		if state == pendingDeletion {
			return isState
		}
	case "CancelKeyDeletion":
		if state != pendingDeletion {
			return isState
		}
	case "Encrypt":
		switch state {
		case disabled:
			return isDisabled
		case pendingDeletion:
			return isState
		}
	}
	return ""
}

// after is the state after an operation that is not refused.
func (s lifeState) after(op string, at int) lifeState {
	switch op {
	case "EnableKey":
		s.keys[at] = enabled
	case "DisableKey", "CancelKeyDeletion":
		s.keys[at] = disabled
	case "ScheduleKeyDeletion":
		s.keys[at] = pendingDeletion
	case "UpdateAlias":
		s.alias = at
	}
	return s
}

// next are the states that may follow an operation with that output; none if it cannot have had it.
func (s lifeState) next(in lifeInput, out lifeOutput) []any {
	at, op := in.key, in.op
	if op == "by alias" {
		at, op = s.alias, "Encrypt"
	}
	want := refusal(s.keys[at], op)
	switch {
	case out.unsure && want == "":
		return []any{s, s.after(op, at)}
	case out.unsure:
		return []any{s}
	case out.refused != want, want == "" && op == "Encrypt" && out.key != at, want == "" && op == "DescribeKey" && out.state != s.keys[at]:
		return nil
	case want != "":
		return []any{s}
	}
	return []any{s.after(op, at)}
}

var lifeModel = porcupine.NondeterministicModel{
	Init: func() []any { return []any{lifeState{keys: [historyKeys]string{enabled, enabled}}} },
	Step: func(state, input, output any) []any {
		return state.(lifeState).next(input.(lifeInput), output.(lifeOutput))
	},
	Equal: func(a, b any) bool { return a.(lifeState) == b.(lifeState) },
	DescribeOperation: func(in, out any) string {
		return fmt.Sprintf("%+v -> %+v", in, out)
	},
}

// historiesOf makes histories until the run ends: what several clients see, at all nodes, who change the same two keys and an alias and use them meanwhile.
func (r *run) historiesOf(n int) error {
	rnd := r.source(n)
	c := r.roaming(r.admin, n, trialTimeout)
	defer c.close()
	for i := 0; !r.stopped(); i++ {
		h := history{run: r, alias: fmt.Sprint("alias/history-", i)}
		if err := h.make(c); err != nil {
			return err
		}
		h.play(rnd.Uint64())
		operations := h.whole()
		r.told.operations.Add(int64(len(operations)))
		switch porcupine.CheckOperationsTimeout(lifeModel.ToModel(), operations, historyTimeout) {
		case porcupine.Ok:
			r.told.checked.Add(1)
		case porcupine.Illegal:
			r.told.checked.Add(1)
			var text strings.Builder
			for _, o := range operations {
				fmt.Fprintf(&text, "\n  client %d, %d to %d: %s", o.ClientId, o.Call, o.Return, lifeModel.DescribeOperation(o.Input, o.Output))
			}
			r.found(notLinear, "history %d: %s", i, text.String())
		}
		c.next()
	}
	return nil
}

// history is the answers to several clients at once.
type history struct {
	*run
	ids   [historyKeys]string
	alias string
	began time.Time

	mu         sync.Mutex
	operations []porcupine.Operation
}

func (h *history) make(c *client) error {
	for i := range h.ids {
		var k keyReply
		if err := h.must(c, "CreateKey", m{}, &k); err != nil {
			return err
		}
		h.ids[i] = k.KeyMetadata.KeyId
	}
	o, err := h.insist(c, "CreateAlias", m{"AliasName": h.alias, "TargetKeyId": h.ids[0]}, nil)
	if err == nil && !o.ok() && o.code != "AlreadyExistsException" { // of a first try that had no answer
		err = fmt.Errorf("CreateAlias: %v", &o)
	}
	return err
}

func (h *history) play(seed uint64) {
	h.began = time.Now()
	var all sync.WaitGroup
	for id := range historyClients {
		all.Go(func() {
			c := h.roaming(h.admin, id, trialTimeout)
			defer c.close()
			rnd := rand.New(rand.NewPCG(seed, uint64(id)))
			for range historySteps {
				in := lifeInput{key: rnd.IntN(historyKeys), op: []string{
					"EnableKey", "EnableKey", "EnableKey", "DisableKey", "ScheduleKeyDeletion", "CancelKeyDeletion", "UpdateAlias",
					"Encrypt", "Encrypt", "Encrypt", "by alias", "by alias", "DescribeKey",
				}[rnd.IntN(13)]}
				o := porcupine.Operation{ClientId: id, Input: in, Call: time.Since(h.began).Nanoseconds()}
				out, known := h.do(c, in)
				o.Output, o.Return = out, time.Since(h.began).Nanoseconds()
				if out.unsure {
					h.told.unsure.Add(1)
					o.Return = math.MaxInt64 // it may still be done
				}
				if known || out.unsure && in.op != "Encrypt" && in.op != "by alias" && in.op != "DescribeKey" {
					h.mu.Lock()
					h.operations = append(h.operations, o)
					h.mu.Unlock()
				}
				if rnd.IntN(2) == 0 {
					c.next()
				}
			}
		})
	}
	all.Wait()
}

// do sends an operation. It is not known of one that was refused before it was looked at.
func (h *history) do(c *client, in lifeInput) (out lifeOutput, known bool) {
	body, op := m{"KeyId": h.ids[in.key]}, in.op
	switch op {
	case "by alias":
		op, body = "Encrypt", m{"KeyId": h.alias, "Plaintext": []byte("history")}
	case "Encrypt":
		body["Plaintext"] = []byte("history")
	case "UpdateAlias":
		body = m{"AliasName": h.alias, "TargetKeyId": h.ids[in.key]}
	}
	var members struct {
		KeyId       string
		KeyMetadata struct{ KeyState string }
	}
	o := c.do(op, body, &members)
	h.answered.add(op, &o)
	switch {
	case o.unsure():
		return lifeOutput{unsure: true}, false
	case undecided(o.code):
		return lifeOutput{}, false
	case !o.ok():
		return lifeOutput{refused: o.code}, true
	}
	out.state = members.KeyMetadata.KeyState
	for i, id := range h.ids {
		if strings.HasSuffix(members.KeyId, id) {
			out.key = i
		}
	}
	return out, true
}

// whole is the history as the check wants it: a client of it has one operation at a time, and goes on as another one after one whose end is not known.
func (h *history) whole() []porcupine.Operation {
	ids := historyClients
	of := map[int]int{}
	var all []porcupine.Operation
	for _, o := range h.operations {
		client, renamed := of[o.ClientId]
		if !renamed {
			client = o.ClientId
		}
		if o.Return == math.MaxInt64 {
			of[o.ClientId] = ids
			ids++
		}
		o.ClientId = client
		all = append(all, o)
	}
	return all
}
