package apitest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/keyplane/keyplane/internal/node"
)

const (
	historyClients = 5
	historySteps   = 9 // of each client
	historyKeys    = 2 // between which an alias moves
	// historyTimeout bounds the check of one history. They are small: it takes milliseconds.
	historyTimeout = time.Minute
)

// lifeInput is one operation of a history.
type lifeInput struct {
	op  string
	key int // which key; of useAlias none
}

// lifeOutput is what came of it.
type lifeOutput struct {
	refused  string // exception, "" for success
	key      int    // that was used, or the state's
	material string // that a data key was made under
	version  int    // which of the key's materials that is
	state    string // that DescribeKey showed
}

// lifeState is what the model knows of both keys and the alias. It is comparable.
type lifeState struct {
	keys  [historyKeys]keyLifeState
	alias int // key that the alias points at
}

type keyLifeState struct {
	state   string
	version int
	asked   bool // a rotation was asked for and is not done yet
}

// worlds are the states that the keys may be in when an operation takes place: a rotation that was asked for is done at some moment at which the key is
// enabled, and nobody is told when.
func (s lifeState) worlds() []lifeState {
	all := []lifeState{s}
	for i := range s.keys {
		for _, w := range all {
			if k := &w.keys[i]; k.asked && k.state == enabled {
				k.asked, k.version = false, k.version+1
				all = append(all, w)
			}
		}
	}
	return all
}

// lifeRefusals are what a key's state means for an operation.
func (k *keyLifeState) refusal(op string) string {
	switch op {
	case "EnableKey", "DisableKey", "ScheduleKeyDeletion", "UpdateAlias":
		if k.state == pendingDeletion {
			return isState
		}
	case "CancelKeyDeletion":
		if k.state != pendingDeletion {
			return isState
		}
	case "RotateKeyOnDemand", "GenerateDataKey", "Decrypt":
		switch {
		case k.state == disabled:
			return isDisabled
		case k.state == pendingDeletion:
			return isState
		case op == "RotateKeyOnDemand" && k.asked:
			return isConflict
		case op == "RotateKeyOnDemand" && k.version >= 10:
			return isLimit
		}
	}
	return isFine
}

// step is the state after an operation in a world, false if it cannot have had that output there.
func (s lifeState) step(in lifeInput, out lifeOutput) (lifeState, bool) {
	at, op := in.key, in.op
	if op == "by alias" {
		at, op = s.alias, "GenerateDataKey"
	}
	k := &s.keys[at]
	if out.refused != k.refusal(op) {
		return s, false
	}
	if out.refused != isFine {
		return s, true
	}
	switch op {
	case "EnableKey":
		k.state = enabled
	case "DisableKey", "CancelKeyDeletion":
		k.state = disabled
	case "ScheduleKeyDeletion":
		k.state = pendingDeletion
	case "RotateKeyOnDemand":
		k.asked = true
	case "UpdateAlias":
		s.alias = at
	case "GenerateDataKey":
		return s, out.key == at && out.version == k.version
	case "DescribeKey":
		return s, out.state == k.state
	}
	return s, true
}

var lifeHistoryModel = porcupine.NondeterministicModel{
	Init: func() []any {
		s := lifeState{}
		for i := range s.keys {
			s.keys[i].state = enabled
		}
		return []any{s}
	},
	Step: func(state, input, output any) (next []any) {
		for _, w := range state.(lifeState).worlds() {
			if s, ok := w.step(input.(lifeInput), output.(lifeOutput)); ok {
				next = append(next, s)
			}
		}
		return next
	},
	Equal: func(a, b any) bool { return a.(lifeState) == b.(lifeState) },
	DescribeOperation: func(in, out any) string {
		return fmt.Sprintf("%+v -> %+v", in, out)
	},
}

// history is a server's answers to several clients at once.
type history struct {
	*Server
	t     *testing.T
	ids   [historyKeys]string
	blobs [historyKeys]any // made before it began
	alias string
	began time.Time

	mu         sync.Mutex
	operations []porcupine.Operation
}

// TestLinearizable: what several clients see who change the same two keys' lives, move an alias between them and use them meanwhile can all be explained by one
// order of their operations, in which each takes place between its request and its reply: a disabled key makes no data key, an alias that has moved is not followed to
// where it pointed, and a material that was rotated away from is used no more.
func TestLinearizable(t *testing.T) {
	t.Parallel()
	began := time.Now()
	s := Start(t, func(c *node.Config) { c.Quotas = "off" })
	seed := uint64(began.UnixNano())
	count, refused, rotated := 0, 0, 0
	for n := range *lifeHistories {
		h := newHistory(t, s, n)
		h.run(seed, uint64(n))
		h.number()
		for _, o := range h.operations {
			count++
			if out := o.Output.(lifeOutput); out.refused != isFine {
				refused++
			} else if out.version > 0 {
				rotated++
			}
		}
		model := lifeHistoryModel.ToModel()
		if result := porcupine.CheckOperationsTimeout(model, h.operations, historyTimeout); result != porcupine.Ok {
			for _, o := range h.operations {
				t.Logf("client %d, %d to %d: %s", o.ClientId, o.Call, o.Return, lifeHistoryModel.DescribeOperation(o.Input, o.Output))
			}
			t.Fatalf("history %d of seed %d is not linearizable: %s", n, seed, result)
		}
	}
	if count != *lifeHistories*historyClients*historySteps || refused < *lifeHistories || rotated < *lifeHistories/4 {
		t.Errorf("too little has happened: %d operations, %d refused, %d with a key that had rotated", count, refused, rotated)
	}
	t.Logf("life: %d histories of %d clients, %d operations, %d of them refused, %d data keys after a rotation: all linearizable; %.1f s",
		*lifeHistories, historyClients, count, refused, rotated, time.Since(began).Seconds())
}

func newHistory(t *testing.T, s *Server, n int) *history {
	t.Helper()
	h := &history{Server: s, t: t, alias: fmt.Sprintf("alias/history-%d", n)}
	c := s.Client(t)
	for i := range h.ids {
		var made struct{ KeyMetadata struct{ KeyId string } }
		c.Do(t, "CreateKey", "{}").Members(t, &made)
		h.ids[i] = made.KeyMetadata.KeyId
		var data struct{ CiphertextBlob string }
		c.Do(t, "GenerateDataKey", marshal(t, map[string]any{"KeyId": h.ids[i], "KeySpec": "AES_256"})).Members(t, &data)
		h.blobs[i] = data.CiphertextBlob
	}
	if r := c.Do(t, "CreateAlias", marshal(t, map[string]any{"AliasName": h.alias, "TargetKeyId": h.ids[0]})); r.Status != 200 {
		t.Fatalf("CreateAlias: %s", r.Body)
	}
	return h
}

// run lets all clients loose.
func (h *history) run(seed, n uint64) {
	h.began = time.Now()
	var all sync.WaitGroup
	for client := range historyClients {
		all.Go(func() {
			c := &Client{e: h.Endpoint}
			defer c.close()
			random := rand.New(rand.NewPCG(seed, n*historyClients+uint64(client)))
			for range historySteps {
				in := lifeInput{key: random.IntN(historyKeys), op: []string{
					"EnableKey", "EnableKey", "EnableKey", "DisableKey", "ScheduleKeyDeletion", "CancelKeyDeletion", "RotateKeyOnDemand", "RotateKeyOnDemand", "UpdateAlias",
					"GenerateDataKey", "GenerateDataKey", "by alias", "by alias", "Decrypt", "DescribeKey",
				}[random.IntN(15)]}
				call := time.Since(h.began).Nanoseconds()
				out, err := h.do(c, in)
				back := time.Since(h.began).Nanoseconds()
				if err != nil {
					h.t.Error(err)
					return
				}
				h.mu.Lock()
				h.operations = append(h.operations, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: back})
				h.mu.Unlock()
			}
		})
	}
	all.Wait()
	if h.t.Failed() {
		h.t.FailNow()
	}
}

func (h *history) do(c *Client, in lifeInput) (out lifeOutput, err error) {
	body, op := map[string]any{"KeyId": h.ids[in.key]}, in.op
	switch op {
	case "by alias":
		op, body["KeyId"], body["KeySpec"] = "GenerateDataKey", h.alias, "AES_256"
	case "GenerateDataKey":
		body["KeySpec"] = "AES_256"
	case "UpdateAlias":
		body = map[string]any{"AliasName": h.alias, "TargetKeyId": h.ids[in.key]}
	case "Decrypt":
		body["CiphertextBlob"] = h.blobs[in.key]
	}
	text, err := json.Marshal(body)
	if err != nil {
		return out, err
	}
	reply, err := c.Try(op, string(text))
	if err != nil || reply == nil {
		return out, fmt.Errorf("%s: no reply: %w", op, err)
	}
	if reply.Status != 200 {
		return lifeOutput{refused: reply.Type}, nil
	}
	var members struct {
		KeyId, KeyMaterialId string
		KeyMetadata          struct{ KeyState string }
	}
	if len(reply.Body) > 0 {
		if err := json.Unmarshal(reply.Body, &members); err != nil {
			return out, err
		}
	}
	out.state = members.KeyMetadata.KeyState
	if op == "GenerateDataKey" {
		out.material = members.KeyMaterialId
		for i, id := range h.ids {
			if members.KeyId == "arn:aws:kms:"+Region+":"+Account+":key/"+id {
				out.key = i
			}
		}
	}
	return out, nil
}

// number gives the materials of the outputs the numbers of the keys' versions.
func (h *history) number() {
	h.t.Helper()
	numbers := map[string]int{}
	for _, id := range h.ids {
		var list struct {
			Rotations []struct{ KeyMaterialId string }
		}
		h.Do(h.t, "ListKeyRotations", marshal(h.t, map[string]any{"KeyId": id, "IncludeKeyMaterial": "ALL_KEY_MATERIAL"})).Members(h.t, &list)
		for i, r := range list.Rotations {
			numbers[r.KeyMaterialId] = i
		}
	}
	for i := range h.operations {
		out := h.operations[i].Output.(lifeOutput)
		if out.material == "" {
			continue
		}
		number, known := numbers[out.material]
		if !known {
			h.t.Fatalf("a data key was made under %s, which is none of the keys' materials", out.material)
		}
		out.version = number
		h.operations[i].Output = out
	}
}

// TestLinearizableModel: the check finds what it is there to find.
func TestLinearizableModel(t *testing.T) {
	type op = porcupine.Operation
	at := func(client int, call, back int64, in lifeInput, out lifeOutput) op {
		return op{ClientId: client, Input: in, Call: call, Output: out, Return: back}
	}
	for name, c := range map[string]struct {
		history []op
		want    bool
	}{
		"a data key after DisableKey": {[]op{at(0, 0, 1, lifeInput{op: "DisableKey"}, lifeOutput{}), at(1, 2, 3, lifeInput{op: "GenerateDataKey"}, lifeOutput{})}, false},
		"one meanwhile":               {[]op{at(0, 0, 3, lifeInput{op: "DisableKey"}, lifeOutput{}), at(1, 1, 2, lifeInput{op: "GenerateDataKey"}, lifeOutput{})}, true},
		"an old alias":                {[]op{at(0, 0, 1, lifeInput{op: "UpdateAlias", key: 1}, lifeOutput{}), at(1, 2, 3, lifeInput{op: "by alias"}, lifeOutput{key: 0})}, false},
		"a rotation that is done some time": {[]op{at(0, 0, 1, lifeInput{op: "RotateKeyOnDemand"}, lifeOutput{}), at(1, 2, 3, lifeInput{op: "GenerateDataKey"}, lifeOutput{}),
			at(1, 4, 5, lifeInput{op: "GenerateDataKey"}, lifeOutput{version: 1})}, true},
		"and is not taken back": {[]op{at(0, 0, 1, lifeInput{op: "RotateKeyOnDemand"}, lifeOutput{}), at(1, 2, 3, lifeInput{op: "GenerateDataKey"}, lifeOutput{version: 1}),
			at(1, 4, 5, lifeInput{op: "GenerateDataKey"}, lifeOutput{})}, false},
		"a rotation that nobody asked for": {[]op{at(1, 2, 3, lifeInput{op: "GenerateDataKey"}, lifeOutput{version: 1})}, false},
		"a state that was never":           {[]op{at(0, 0, 1, lifeInput{op: "DescribeKey"}, lifeOutput{state: disabled})}, false},
	} {
		if got := porcupine.CheckOperations(lifeHistoryModel.ToModel(), c.history); got != c.want {
			t.Errorf("%s: linearizable is %v", name, got)
		}
	}
}
