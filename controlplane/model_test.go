package controlplane

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// model is the reference: what a few keys and aliases are, by the API's rules and nothing else.
type model struct {
	keys    map[string]*modelKey // by key ID; a deleted key stays with gone set
	aliases map[string]string    // name to key ID
}

type modelKey struct {
	state, description string
	due                time.Time
	tags               map[string]string
	gone               bool
}

// do applies one operation to the model and says how it ends. other is the tag key or alias name, value the rest.
func (m *model) do(op, id, other, value string, now time.Time) kmsapi.Code {
	if op == "DeleteAlias" {
		if m.aliases[other] == "" {
			return kmsapi.NotFound
		}
		delete(m.aliases, other)
		return kmsapi.OK
	}
	if op == "UpdateAlias" && m.aliases[other] == "" {
		return kmsapi.NotFound
	}
	k := m.keys[id]
	if k == nil || k.gone {
		return kmsapi.NotFound
	}
	pending := k.state == "PendingDeletion"
	if op == "CancelKeyDeletion" != pending && op != "DescribeKey" {
		return kmsapi.KMSInvalidState
	}
	switch op {
	case "EnableKey":
		k.state = "Enabled"
	case "DisableKey", "CancelKeyDeletion":
		k.state = "Disabled"
	case "ScheduleKeyDeletion":
		k.state, k.due = "PendingDeletion", now.Add(7*24*time.Hour)
	case "UpdateKeyDescription":
		k.description = value
	case "TagResource":
		k.tags[other] = value
	case "UntagResource":
		delete(k.tags, other)
	case "CreateAlias":
		if m.aliases[other] != "" {
			return kmsapi.AlreadyExists
		}
		m.aliases[other] = id
	case "UpdateAlias":
		m.aliases[other] = id
	}
	return kmsapi.OK
}

// expire deletes what is due, with its aliases.
func (m *model) expire(now time.Time) {
	for id, k := range m.keys {
		if !k.gone && k.state == "PendingDeletion" && !k.due.After(now) {
			k.gone = true
			for name, target := range m.aliases {
				if target == id {
					delete(m.aliases, name)
				}
			}
		}
	}
}

// TestModel runs random lifecycle operations against the server and the model and compares every answer, and every so often everything
// there is to see. KEYPLANE_SEED repeats a run.
func TestModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("KEYPLANE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("KEYPLANE_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	e := newEnvIn(t, shared, "eu-test-5")
	m := &model{keys: map[string]*modelKey{}, aliases: map[string]string{}}
	ids := []string{"12345678-1234-4234-8234-123456789012"} // one that never was
	ops := []string{
		"EnableKey", "DisableKey", "ScheduleKeyDeletion", "CancelKeyDeletion", "CancelKeyDeletion", "UpdateKeyDescription", "TagResource",
		"UntagResource", "CreateAlias", "CreateAlias", "UpdateAlias", "UpdateAlias", "DeleteAlias", "DescribeKey",
	}
	for step := range 1500 {
		e.clock.add(time.Duration(r.IntN(4)) * time.Hour)
		if len(ids) < 5 || r.IntN(40) == 0 {
			w := e.create("{}")
			ids = append(ids, w.KeyId)
			m.keys[w.KeyId] = &modelKey{state: "Enabled", tags: map[string]string{}}
		}
		if r.IntN(10) == 0 {
			if err := e.deleteDue(t.Context()); err != nil {
				t.Fatal(err)
			}
			m.expire(e.clock.now())
		}
		op, id, value := ops[r.IntN(len(ops))], ids[r.IntN(len(ids))], fmt.Sprint(step)
		other := fmt.Sprintf("t%d", r.IntN(5))
		if op == "CreateAlias" || op == "UpdateAlias" || op == "DeleteAlias" {
			other = fmt.Sprintf("alias/a%d", r.IntN(8))
		}
		body := map[string]string{
			"ScheduleKeyDeletion":  obj("KeyId", id, "PendingWindowInDays", 7),
			"UpdateKeyDescription": obj("KeyId", id, "Description", value),
			"TagResource":          obj("KeyId", id, "Tags", tags(other, value)),
			"UntagResource":        obj("KeyId", id, "TagKeys", []string{other}),
			"CreateAlias":          aliasBody(other, id), "UpdateAlias": aliasBody(other, id), "DeleteAlias": obj("AliasName", other),
		}[op]
		if body == "" {
			body = obj("KeyId", id)
		}
		got, want := e.call(op, body), m.do(op, id, other, value, e.clock.now())
		if got.Code != want {
			t.Fatalf("seed %d, step %d: %s %s: got %s, the model says %s", seed, step, op, body, got.Body, want)
		}
		if op == "ScheduleKeyDeletion" {
			if err := e.seeDeletions(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if step%100 == 99 {
			e.compare(m, ids, seed, step)
		}
	}
}

func (e *env) compare(m *model, ids []string, seed uint64, step int) {
	e.Helper()
	listed := map[string]string{}
	for _, a := range e.aliases("{}").Aliases {
		listed[a.AliasName] = a.TargetKeyId
	}
	if fmt.Sprint(listed) != fmt.Sprint(m.aliases) {
		e.Fatalf("seed %d, step %d: aliases %v, the model has %v", seed, step, listed, m.aliases)
	}
	for _, id := range ids {
		k := m.keys[id]
		if k == nil || k.gone {
			e.fails("DescribeKey", obj("KeyId", id), kmsapi.NotFound, "*")
			continue
		}
		d := e.describe(id)
		tags := map[string]string{}
		for _, t := range e.tags(id) {
			tags[t.TagKey] = t.TagValue
		}
		var own []string
		for _, a := range e.aliases(obj("KeyId", id)).Aliases {
			own = append(own, a.AliasName)
		}
		var wantOwn []string
		for name, target := range m.aliases {
			if target == id {
				wantOwn = append(wantOwn, name)
			}
		}
		slices.Sort(wantOwn)
		if d.KeyState != k.state || d.Description != k.description || fmt.Sprint(tags) != fmt.Sprint(k.tags) || !slices.Equal(own, wantOwn) {
			e.Fatalf("seed %d, step %d: key %s is %+v %v %v, the model has %+v %v", seed, step, id, d, tags, own, *k, wantOwn)
		}
	}
}
