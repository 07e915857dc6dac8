package authz_test

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/keyplane/keyplane/internal/authz/authztest"
)

// change makes another world of one, whose decisions then have a relation to the first's. ok false: it cannot be applied.
type change struct {
	name  string
	apply func(r *rand.Rand, w *authztest.World, q *authztest.Request) (ok bool)
	// may says whether a request that was allowed or refused before may be so after.
	may    func(before, after bool) bool
	steady bool // no decision turns
}

func neverGrants(before, after bool) bool { return before || !after }
func neverDenies(before, after bool) bool { return !before || after }
func same(before, after bool) bool        { return before == after }

// documents are pointers to all documents of a world, the key policy first if it has one.
func documents(w *authztest.World) (d []*authztest.Document, keyPolicy int) {
	if w.KeyPolicy != nil {
		d, keyPolicy = append(d, &w.KeyPolicy), 1
	}
	if w.Boundary != nil {
		d = append(d, &w.Boundary)
	}
	for i := range w.Identity {
		d = append(d, &w.Identity[i])
	}
	for i := range w.Session {
		d = append(d, &w.Session[i])
	}
	return d, keyPolicy
}

type document struct {
	Version   string `json:",omitempty"`
	Statement []json.RawMessage
}

// edit changes the statements of one document of the world, chosen at random.
func edit(r *rand.Rand, w *authztest.World, change func(statements []json.RawMessage, isKeyPolicy bool) []json.RawMessage) bool {
	all, keyPolicies := documents(w)
	if len(all) == 0 {
		return false
	}
	i := r.IntN(len(all))
	var d document
	if err := json.Unmarshal(*all[i], &d); err != nil {
		panic(err)
	}
	d.Statement = change(slices.Clone(d.Statement), i < keyPolicies)
	if d.Statement == nil {
		return false
	}
	b, err := json.Marshal(d)
	if err != nil {
		panic(err)
	}
	*all[i] = b
	return true
}

func effect(statement json.RawMessage) string {
	var s struct{ Effect string }
	if err := json.Unmarshal(statement, &s); err != nil {
		panic(err)
	}
	return s.Effect
}

// withEffect is a copy of the statement with the Effect.
func withEffect(statement json.RawMessage, effect string) json.RawMessage {
	var s map[string]json.RawMessage
	if err := json.Unmarshal(statement, &s); err != nil {
		panic(err)
	}
	delete(s, "Sid") // no two statements have the same
	s["Effect"] = json.RawMessage(`"` + effect + `"`)
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return b
}

// remove takes one statement of an effect away, but not the last of a policy.
func remove(r *rand.Rand, what string) func(statements []json.RawMessage, isKeyPolicy bool) []json.RawMessage {
	return func(statements []json.RawMessage, _ bool) []json.RawMessage {
		var at []int
		for i, s := range statements {
			if effect(s) == what {
				at = append(at, i)
			}
		}
		if len(at) == 0 || len(statements) == 1 {
			return nil
		}
		i := at[r.IntN(len(at))]
		return slices.Delete(statements, i, i+1)
	}
}

var changes = []change{
	{"adding a Deny never grants", func(r *rand.Rand, w *authztest.World, q *authztest.Request) bool {
		return edit(r, w, func(statements []json.RawMessage, isKeyPolicy bool) []json.RawMessage {
			deny := `{"Effect":"Deny","Action":"` + q.Action + `","Resource":"*"}`
			if isKeyPolicy {
				deny = `{"Effect":"Deny","Principal":"*","Action":"` + q.Action + `","Resource":"*"}`
			}
			return slices.Insert(statements, r.IntN(len(statements)+1), json.RawMessage(deny))
		})
	}, func(_, after bool) bool { return !after }, false},
	{"adding a Deny with a condition never grants", func(r *rand.Rand, w *authztest.World, _ *authztest.Request) bool {
		return edit(r, w, func(statements []json.RawMessage, _ bool) []json.RawMessage {
			deny := withEffect(statements[r.IntN(len(statements))], "Deny")
			return slices.Insert(statements, r.IntN(len(statements)+1), deny)
		})
	}, neverGrants, false},
	{"removing an Allow never grants", func(r *rand.Rand, w *authztest.World, _ *authztest.Request) bool {
		return edit(r, w, remove(r, "Allow"))
	}, neverGrants, false},
	{"removing a Deny never denies", func(r *rand.Rand, w *authztest.World, _ *authztest.Request) bool {
		return edit(r, w, remove(r, "Deny"))
	}, neverDenies, false},
	{"adding an Allow never denies", func(r *rand.Rand, w *authztest.World, q *authztest.Request) bool {
		return edit(r, w, func(statements []json.RawMessage, isKeyPolicy bool) []json.RawMessage {
			allow := `{"Effect":"Allow","Action":"` + q.Action + `","Resource":"*"}`
			if isKeyPolicy {
				allow = `{"Effect":"Allow","Principal":"*","Action":"` + q.Action + `","Resource":"*"}`
			}
			return slices.Insert(statements, r.IntN(len(statements)+1), json.RawMessage(allow))
		})
	}, neverDenies, false},
	{"the order of statements does not matter", func(r *rand.Rand, w *authztest.World, _ *authztest.Request) bool {
		return edit(r, w, func(statements []json.RawMessage, _ bool) []json.RawMessage {
			r.Shuffle(len(statements), func(i, j int) { statements[i], statements[j] = statements[j], statements[i] })
			return statements
		})
	}, same, true},
	{"the order of identity policies, session policies and grants does not matter", func(_ *rand.Rand, w *authztest.World, _ *authztest.Request) bool {
		slices.Reverse(w.Identity)
		slices.Reverse(w.Session)
		slices.Reverse(w.Grants)
		return len(w.Identity) > 1 || len(w.Session) > 1 || len(w.Grants) > 1
	}, same, true},
	{"a statement twice is a statement once", func(r *rand.Rand, w *authztest.World, _ *authztest.Request) bool {
		return edit(r, w, func(statements []json.RawMessage, _ bool) []json.RawMessage {
			s := statements[r.IntN(len(statements))]
			return append(statements, withEffect(s, effect(s)))
		})
	}, same, true},
	{"adding a grant never denies", func(r *rand.Rand, w *authztest.World, _ *authztest.Request) bool {
		other, _ := authztest.Generate(authztest.FromSeed(r.Uint64()))
		w.Grants = append(w.Grants, other.Grants...)
		return len(other.Grants) > 0 && w.KeyPolicy != nil
	}, neverDenies, false},
	{"taking a grant away never grants", func(r *rand.Rand, w *authztest.World, _ *authztest.Request) bool {
		if len(w.Grants) == 0 {
			return false
		}
		i := r.IntN(len(w.Grants))
		w.Grants = slices.Delete(w.Grants, i, i+1)
		return true
	}, neverGrants, false},
	{"narrowing a grant never grants", func(r *rand.Rand, w *authztest.World, _ *authztest.Request) bool {
		if len(w.Grants) == 0 {
			return false
		}
		g := &w.Grants[r.IntN(len(w.Grants))]
		g.Operations = g.Operations[:len(g.Operations)-r.IntN(2)]
		if g.Subset == nil {
			g.Subset = map[string]string{"dept": "red"}
		}
		return true
	}, neverGrants, false},
	{"another session policy never grants", func(r *rand.Rand, w *authztest.World, _ *authztest.Request) bool {
		other, _ := authztest.Generate(authztest.FromSeed(r.Uint64()))
		if w.Caller.Kind != authztest.AssumedRole || len(other.Identity) == 0 {
			return false
		}
		w.Session = append(w.Session, other.Identity[0])
		return true
	}, neverGrants, false},
	{"narrowing a session policy never grants", func(r *rand.Rand, w *authztest.World, q *authztest.Request) bool {
		if len(w.Session) == 0 {
			return false
		}
		return edit(r, &authztest.World{Session: w.Session}, remove(r, "Allow"))
	}, neverGrants, false},
	{"a boundary never grants", func(r *rand.Rand, w *authztest.World, _ *authztest.Request) bool {
		other, _ := authztest.Generate(authztest.FromSeed(r.Uint64()))
		if w.Boundary != nil || len(other.Identity) == 0 || w.Caller.Kind != authztest.User && w.Caller.Kind != authztest.AssumedRole {
			return false
		}
		w.Boundary = other.Identity[0]
		return true
	}, neverGrants, false},
	{"a deleted principal may do nothing", func(_ *rand.Rand, w *authztest.World, _ *authztest.Request) bool {
		w.Caller.Deleted = true
		return true
	}, func(_, after bool) bool { return !after }, false},
}

// TestMetamorphic changes random worlds in ways of which the effect on decisions is known, whatever the decisions are.
func TestMetamorphic(t *testing.T) {
	worlds := 2000
	if testing.Short() {
		worlds = 400
	}
	for i, c := range changes {
		t.Run(c.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(i), 7))
			applied, allowed, turned := 0, 0, 0
			for seed := range uint64(worlds) {
				w, requests := authztest.Generate(authztest.FromSeed(seed + 1<<32))
				q := &requests[r.IntN(len(requests))]
				before := allows(t, w, q)
				was := authztest.Dump(w, q)
				if !c.apply(r, w, q) {
					continue
				}
				after := allows(t, w, q)
				applied++
				if before {
					allowed++
				}
				if before != after {
					turned++
				}
				if !c.may(before, after) {
					t.Fatalf("seed %d: allowed %t before, %t after\n%s\n%s", seed, before, after, was, authztest.Dump(w, q))
				}
			}
			// A change that never applies, or only where nothing is allowed, shows nothing; nor does one that never turns a decision.
			if testing.Short() {
				return // too few worlds for that
			}
			if applied < worlds/50 || allowed == 0 || turned == 0 && !c.steady {
				t.Errorf("applied to %d worlds of %d, %d allowed before, %d turned: too few to show anything", applied, worlds, allowed, turned)
			}
		})
	}
}

func allows(t *testing.T, w *authztest.World, q *authztest.Request) bool {
	product, err := authztest.NewProduct(w)
	if err != nil {
		t.Fatal(err)
	}
	d := product.Decide(q)
	return d.Reason.Allowed()
}
