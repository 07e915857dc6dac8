package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
)

// cell is something that one writer writes and nobody else. A write without a definite answer may take effect at any time after it, even after a later one: the cell is
// not written any more, and may have either value for ever.
type cell struct {
	value string // "": it is not there
	maybe []string
}

func (c *cell) sure() bool { return len(c.maybe) == 0 }

// may reports whether a value can be read from the cell.
func (c *cell) may(v string) bool { return v == c.value || slices.Contains(c.maybe, v) }

func (c *cell) String() string {
	if c.sure() {
		return fmt.Sprintf("%q", c.value)
	}
	return fmt.Sprintf("%q or any of %q", c.value, c.maybe)
}

// writtenKey is a key that a writer has made.
type writtenKey struct {
	id     string
	tags   map[string]*cell
	grants map[string]*cell // by grant ID: "there" or ""
}

// writer writes to keys and aliases of its own, each write once, and remembers what was acknowledged.
type writer struct {
	*run
	name    string
	n       int
	keys    []*writtenKey
	aliases map[string]*cell
	labels  map[string]bool // of keys: whether their creation was acknowledged
}

func (w *writer) work(n int) error {
	rnd := w.source(n)
	w.labels = map[string]bool{}
	c, other := w.roaming(w.admin, n, onceTimeout), w.roaming(w.admin, n+1, trialTimeout)
	defer c.close()
	defer other.close()
	for !w.stopped() {
		w.rest(rnd)
		if err := w.write(c, other, rnd); err != nil {
			return err
		}
		if rnd.IntN(10) == 0 {
			c.next()
			other.next()
		}
	}
	return nil
}

// put sends a write of a cell, and reports whether it was acknowledged.
func (w *writer) put(c *client, to *cell, value, op string, in any) bool {
	o := c.do(op, in, nil)
	w.answered.add(op, &o)
	switch {
	case o.ok():
		to.value = value
		return true
	case o.unsure():
		to.maybe = append(to.maybe, value)
	case !undecided(o.code):
		w.found(unexpected, "%s %v: %v", op, in, &o)
	}
	return false
}

func (w *writer) write(c, other *client, rnd *rand.Rand) error {
	w.n++
	label := fmt.Sprint(w.name, "-", w.n)
	if len(w.keys) < 2 || len(w.keys) < 40 && rnd.IntN(6) == 0 {
		var k keyReply
		w.labels[label] = false
		o := c.do("CreateKey", m{"Description": label, "Tags": []m{{"TagKey": "first", "TagValue": label}}}, &k)
		w.answered.add("CreateKey", &o)
		if o.ok() {
			w.labels[label] = true
			w.keys = append(w.keys, &writtenKey{id: k.KeyMetadata.KeyId, tags: map[string]*cell{"first": {value: label}}, grants: map[string]*cell{}})
		}
		return nil
	}
	k := w.keys[rnd.IntN(len(w.keys))]
	switch rnd.IntN(7) {
	case 0, 1: // a new alias, or another target for one
		name, op := "alias/"+label, "CreateAlias"
		if at := w.anAlias(rnd); at != "" && rnd.IntN(3) > 0 {
			name, op = at, "UpdateAlias"
		}
		a := w.aliases[name]
		if a == nil {
			a = &cell{}
			w.aliases[name] = a
		}
		if w.put(c, a, k.id, op, m{"AliasName": name, "TargetKeyId": k.id}) {
			return w.readAlias(other, name, a)
		}
	case 2:
		if name := w.anAlias(rnd); name != "" && w.put(c, w.aliases[name], "", "DeleteAlias", m{"AliasName": name}) {
			return w.readAlias(other, name, w.aliases[name])
		}
	case 3, 4:
		name := fmt.Sprint("tag", rnd.IntN(5))
		t := k.tags[name]
		if t == nil {
			t = &cell{}
			k.tags[name] = t
		}
		if t.sure() && w.put(c, t, label, "TagResource", m{"KeyId": k.id, "Tags": []m{{"TagKey": name, "TagValue": label}}}) {
			return w.readTags(other, k)
		}
	case 5:
		var g struct{ GrantId string }
		if len(k.grants) < 20 {
			o := c.do("CreateGrant", m{"KeyId": k.id, "GranteePrincipal": w.userARN, "Operations": []string{"Encrypt"}}, &g)
			w.answered.add("CreateGrant", &o)
			if o.ok() {
				k.grants[g.GrantId] = &cell{value: "there"}
				return w.readGrants(other, k)
			}
		}
	case 6:
		for id, g := range k.grants {
			if g.sure() && g.value != "" {
				if w.put(c, g, "", "RevokeGrant", m{"KeyId": k.id, "GrantId": id}) {
					return w.readGrants(other, k)
				}
				break
			}
		}
	}
	return nil
}

// anAlias is one that can be written.
func (w *writer) anAlias(rnd *rand.Rand) string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(w.aliases)) {
		if a := w.aliases[name]; a.sure() && a.value != "" {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return names[rnd.IntN(len(names))]
}

func (w *writer) readAlias(c *client, name string, a *cell) error {
	var k keyReply
	o, err := w.insist(c, "DescribeKey", m{"KeyId": name}, &k)
	if err != nil {
		return err
	}
	if !o.ok() && o.code != "NotFoundException" {
		w.found(unexpected, "DescribeKey %s: %v", name, &o)
	} else if got := k.KeyMetadata.KeyId; !a.may(got) {
		w.found(lostWrite, "%s points at %q, and was acknowledged as %v: request %s", name, got, a, o.id)
	}
	return nil
}

func (w *writer) readTags(c *client, k *writtenKey) error {
	var out struct {
		Tags []struct{ TagKey, TagValue string }
	}
	o, err := w.insist(c, "ListResourceTags", m{"KeyId": k.id}, &out)
	if err != nil {
		return err
	}
	if !o.ok() {
		w.found(lostWrite, "the tags of %s, whose creation was acknowledged: %v", k.id, &o)
		return nil
	}
	got := map[string]string{}
	for _, t := range out.Tags {
		got[t.TagKey] = t.TagValue
	}
	for name, t := range k.tags {
		if !t.may(got[name]) {
			w.found(lostWrite, "the tag %s of %s is %q, and was acknowledged as %v: request %s", name, k.id, got[name], t, o.id)
		}
	}
	return nil
}

func (w *writer) readGrants(c *client, k *writtenKey) error {
	got := map[string]string{}
	for marker := ""; ; {
		var out struct {
			Grants     []struct{ GrantId string }
			NextMarker string
		}
		in := m{"KeyId": k.id}
		if marker != "" {
			in["Marker"] = marker
		}
		o, err := w.insist(c, "ListGrants", in, &out)
		if err != nil {
			return err
		}
		if !o.ok() {
			w.found(lostWrite, "the grants of %s, whose creation was acknowledged: %v", k.id, &o)
			return nil
		}
		for _, g := range out.Grants {
			got[g.GrantId] = "there"
		}
		if marker = out.NextMarker; marker == "" {
			break
		}
	}
	for id, g := range k.grants {
		if !g.may(got[id]) {
			w.found(lostWrite, "the grant %s of %s is %q, and was acknowledged as %v", id, k.id, got[id], g)
		}
	}
	return nil
}

// check reads everything that was written, from one node after the other.
func (w *writer) check(c *client) error {
	for _, k := range w.keys {
		if err := w.readTags(c, k); err != nil {
			return err
		}
		if err := w.readGrants(c, k); err != nil {
			return err
		}
		c.next()
	}
	for name, a := range w.aliases {
		if err := w.readAlias(c, name, a); err != nil {
			return err
		}
		c.next()
	}
	return nil
}

// checkOnce looks at all keys there are: each that was acknowledged is there, and none twice.
func (r *run) checkOnce(c *client) error {
	there := map[string]int{}
	for marker := ""; ; {
		var out struct {
			Keys       []struct{ KeyId string }
			NextMarker string
		}
		in := m{"Limit": 1000}
		if marker != "" {
			in["Marker"] = marker
		}
		if err := r.must(c, "ListKeys", in, &out); err != nil {
			return err
		}
		for i, k := range out.Keys {
			var d keyReply
			if err := r.must(c, "DescribeKey", m{"KeyId": k.KeyId}, &d); err != nil {
				return err
			}
			if label := d.KeyMetadata.Description; label != "" {
				there[label]++
			}
			if i%100 == 0 {
				c.next()
			}
		}
		if marker = out.NextMarker; marker == "" {
			break
		}
	}
	for _, w := range r.writersOf {
		for label, acknowledged := range w.labels {
			if acknowledged && there[label] == 0 {
				r.found(lostWrite, "no key is described as %q, whose creation was acknowledged", label)
			}
			if there[label] > 1 {
				r.found(twice, "%d keys are described as %q, which was asked for once", there[label], label)
			}
		}
	}
	return nil
}
