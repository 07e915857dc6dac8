package authztest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/policy"
)

// Compare puts r to both evaluators, policy by policy and as a whole, and says where they differ: "" if nowhere. The decision is the
// product's.
func Compare(ref *Reference, p *Product, r *Request) (difference string, reason string) {
	v := ref.Decide(r)
	d := p.Decide(r)
	name := reasonNames[d.Reason]
	var out strings.Builder
	if d.Reason.Allowed() != v.Allow {
		fmt.Fprintf(&out, "decision: product allows %t (%s), reference allows %t (%s)\n", d.Reason.Allowed(), name, v.Allow, strings.Join(v.Reasons, ", "))
	} else if !slices.Contains(v.Reasons, name) {
		fmt.Fprintf(&out, "reason: product %s, reference one of %s\n", name, strings.Join(v.Reasons, ", "))
	}
	if d.Reason == authz.AllowedByGrant && d.Grant.ID != grantID(v.Grant) {
		fmt.Fprintf(&out, "grant: product %s, reference %s\n", d.Grant.ID, grantID(v.Grant))
	}
	if ref.w.Caller.Deleted {
		return out.String(), name
	}
	_, req := p.question(r)
	one := func(what string, pol *policy.Policy, o *Opinion) {
		if pol == nil {
			return
		}
		got := pol.Evaluate(req)
		if diff := o.differs(got); diff != "" {
			fmt.Fprintf(&out, "%s: %s\n", what, diff)
		}
		if d.Policy == pol && !o.decided(&d) {
			fmt.Fprintf(&out, "%s: product says that statement %d decided (%s), reference has Deny %v, Allow %v\n", what, d.Statement, name, o.Deny, o.Allow)
		}
	}
	one("key policy", p.keyPolicy, &v.KeyPolicy)
	one("boundary", p.subject.Boundary, &v.Boundary)
	for i, pol := range p.subject.Identity {
		one(fmt.Sprintf("identity policy %d", i), pol, &v.Identity[i])
	}
	for i, pol := range p.caller.Session {
		one(fmt.Sprintf("session policy %d", i), pol, &v.Session[i])
	}
	return out.String(), name
}

// differs says where a policy's result is not what the reference found. Of a statement that names the caller in several ways the product may
// report the strongest alone.
func (o *Opinion) differs(got policy.Result) string {
	first := func(list []int) int {
		if len(list) == 0 {
			return 0
		}
		return list[0]
	}
	if got.Deny != first(o.Deny) {
		return fmt.Sprintf("product: statement %d denies, reference: %v do", got.Deny, o.Deny)
	}
	attached := got.Allow[policy.Attached] != 0
	for way, m := range [ways]policy.Match{byAnyone: policy.Anyone, byAccount: policy.Account, byRole: policy.Role, byItself: policy.Itself} {
		if way == notNamed {
			continue
		}
		n := got.Allow[m]
		if attached && way == byAnyone {
			n = got.Allow[policy.Attached]
		}
		switch {
		case n != 0 && !slices.Contains(o.Allow[way], n):
			return fmt.Sprintf("product: statement %d allows (way %d), reference: %v do", n, way, o.Allow[way])
		case n == 0:
			for _, s := range o.Allow[way] {
				if o.strongest(s) == way {
					return fmt.Sprintf("product: no statement allows (way %d), reference: %v do", way, o.Allow[way])
				}
			}
		}
	}
	return ""
}

// strongest is the strongest way in which statement s names the caller.
func (o *Opinion) strongest(s int) int {
	for way := ways - 1; way > notNamed; way-- {
		if slices.Contains(o.Allow[way], s) {
			return way
		}
	}
	return notNamed
}

// decided reports whether the statement of a decision is one that says so.
func (o *Opinion) decided(d *authz.Decision) bool {
	switch d.Reason {
	case authz.DeniedByKeyPolicy, authz.DeniedByIdentityPolicy, authz.DeniedByBoundary, authz.DeniedBySessionPolicy:
		return slices.Contains(o.Deny, d.Statement)
	case authz.AllowedByKeyPolicy, authz.AllowedByIdentityPolicy, authz.AllowedToRoot:
		return o.strongest(d.Statement) != notNamed
	}
	return true
}

// Dump is a case to read, and to keep.
func Dump(w *World, r *Request) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(Case{World: *w, Request: *r}); err != nil {
		panic(err)
	}
	return b.String()
}
