package apitest

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"slices"
	"testing"
)

// writer writes to keys and aliases that no other writer touches, and remembers what was acknowledged. At most one write of a writer has
// no answer when the process is killed: that one may be there or not.
type writer struct {
	name string
	rnd  *rand.Rand
	n    int // writes begun

	keys    []*writtenKey
	aliases map[string]string // alias → key ID
	blobs   []writtenBlob
	pending func(there func(op, body string, v any) bool) // settles the write without an answer
	unsure  int                                           // how many of those there were
}

type writtenKey struct {
	id          string
	description string
	tags        map[string]string
	disabled    bool
}

type writtenBlob struct {
	key         *writtenKey
	blob, plain []byte
}

// write does one write. It reports false when the process is gone.
func (w *writer) write(t *testing.T, c *Client) bool {
	w.n++
	label := fmt.Sprint(w.name, "-", w.n)
	if len(w.keys) == 0 {
		return w.createKey(t, c, label)
	}
	k := w.keys[w.rnd.Intn(len(w.keys))]
	switch p := w.rnd.Intn(10); {
	case p < 3:
		return w.createKey(t, c, label)
	case p < 5:
		return w.putAlias(t, c, "CreateAlias", "alias/"+label, k)
	case p == 5:
		if name := w.anAlias(); name != "" {
			return w.putAlias(t, c, "UpdateAlias", name, k)
		}
	case p == 6:
		if name := w.anAlias(); name != "" {
			return w.deleteAlias(t, c, name)
		}
	case p == 7:
		return w.encrypt(t, c, k, label)
	case p == 8:
		return w.enable(t, c, k, k.disabled)
	}
	return w.tag(t, c, k, fmt.Sprint("tag", w.rnd.Intn(5)), label)
}

// call sends one request. It is false if there was no answer; a refusal fails the test.
func (w *writer) call(t *testing.T, c *Client, op, body string, v any) bool {
	r, err := c.Try(op, body)
	if err != nil || r == nil {
		w.unsure++
		return false // killed
	}
	if r.Status != 200 {
		t.Errorf("%s %s: %d %s", op, body, r.Status, r.Body)
		return false
	}
	if v != nil {
		if err := json.Unmarshal(r.Body, v); err != nil {
			t.Errorf("%s: %v", op, err)
		}
	}
	return true
}

func (w *writer) anAlias() string {
	names := make([]string, 0, len(w.aliases))
	for name := range w.aliases {
		names = append(names, name)
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names) // or the seed would not repeat the run
	return names[w.rnd.Intn(len(names))]
}

func (w *writer) createKey(t *testing.T, c *Client, label string) bool {
	var out struct{ KeyMetadata struct{ KeyId string } }
	ok := w.call(t, c, "CreateKey", `{"Description":"`+label+`","Tags":[{"TagKey":"first","TagValue":"`+label+`"}]}`, &out)
	if ok {
		w.keys = append(w.keys, &writtenKey{id: out.KeyMetadata.KeyId, description: label, tags: map[string]string{"first": label}})
	}
	return ok // a key without an answer has no name to ask for; TestCrash counts it
}

func (w *writer) putAlias(t *testing.T, c *Client, op, name string, k *writtenKey) bool {
	ok := w.call(t, c, op, `{"AliasName":"`+name+`","TargetKeyId":"`+k.id+`"}`, nil)
	if ok {
		w.aliases[name] = k.id
		return true
	}
	w.pending = func(there func(string, string, any) bool) {
		if target := aliasTarget(there, name); target == k.id {
			w.aliases[name] = k.id
		}
	}
	return false
}

func (w *writer) deleteAlias(t *testing.T, c *Client, name string) bool {
	ok := w.call(t, c, "DeleteAlias", `{"AliasName":"`+name+`"}`, nil)
	if ok {
		delete(w.aliases, name)
		return true
	}
	w.pending = func(there func(string, string, any) bool) {
		if aliasTarget(there, name) == "" {
			delete(w.aliases, name)
		}
	}
	return false
}

// aliasTarget is the key ID that an alias names, "" if there is no such alias.
func aliasTarget(there func(string, string, any) bool, name string) string {
	var out struct{ KeyMetadata struct{ KeyId string } }
	there("DescribeKey", `{"KeyId":"`+name+`"}`, &out)
	return out.KeyMetadata.KeyId
}

func (w *writer) tag(t *testing.T, c *Client, k *writtenKey, key, value string) bool {
	ok := w.call(t, c, "TagResource", `{"KeyId":"`+k.id+`","Tags":[{"TagKey":"`+key+`","TagValue":"`+value+`"},{"TagKey":"`+key+`-twin","TagValue":"`+value+`"}]}`, nil)
	set := func() { k.tags[key], k.tags[key+"-twin"] = value, value }
	if ok {
		set()
		return true
	}
	w.pending = func(there func(string, string, any) bool) {
		if tagsOf(there, k.id)[key] == value {
			set() // the twin too: a write is there whole or not at all
		}
	}
	return false
}

func tagsOf(there func(string, string, any) bool, id string) map[string]string {
	var out struct {
		Tags []struct{ TagKey, TagValue string }
	}
	there("ListResourceTags", `{"KeyId":"`+id+`"}`, &out)
	m := make(map[string]string)
	for _, tag := range out.Tags {
		m[tag.TagKey] = tag.TagValue
	}
	return m
}

func (w *writer) enable(t *testing.T, c *Client, k *writtenKey, on bool) bool {
	op := "DisableKey"
	if on {
		op = "EnableKey"
	}
	ok := w.call(t, c, op, `{"KeyId":"`+k.id+`"}`, nil)
	if ok {
		k.disabled = !on
		return true
	}
	w.pending = func(there func(string, string, any) bool) {
		var out struct{ KeyMetadata struct{ Enabled bool } }
		there("DescribeKey", `{"KeyId":"`+k.id+`"}`, &out)
		k.disabled = !out.KeyMetadata.Enabled
	}
	return false
}

func (w *writer) encrypt(t *testing.T, c *Client, k *writtenKey, label string) bool {
	if k.disabled {
		return w.enable(t, c, k, true)
	}
	var out struct{ CiphertextBlob []byte }
	ok := w.call(t, c, "Encrypt", `{"KeyId":"`+k.id+`","Plaintext":"`+encode([]byte(label))+`","EncryptionContext":{"writer":"`+w.name+`"}}`, &out)
	if ok {
		w.blobs = append(w.blobs, writtenBlob{key: k, blob: out.CiphertextBlob, plain: []byte(label)})
	}
	return ok
}

// settle finds out about the write that had no answer and then holds everything that was acknowledged against what is there.
func (w *writer) settle(t *testing.T, e Endpoint) {
	t.Helper()
	c := e.Client(t)
	// there asks; a refusal leaves v as it is.
	there := func(op, body string, v any) bool {
		r := c.Do(t, op, body)
		return r.Status == 200 && json.Unmarshal(r.Body, v) == nil
	}
	if w.pending != nil {
		w.pending(there)
		w.pending = nil
	}
	for _, k := range w.keys {
		var out struct {
			KeyMetadata struct {
				KeyId, Description string
				Enabled            bool
			}
		}
		if !there("DescribeKey", `{"KeyId":"`+k.id+`"}`, &out) {
			t.Errorf("the key %s (%s) is gone", k.id, k.description)
			continue
		}
		equal(t, "Description", out.KeyMetadata.Description, k.description)
		equal(t, k.id+" is enabled", out.KeyMetadata.Enabled, !k.disabled)
		if got := tagsOf(there, k.id); fmt.Sprint(got) != fmt.Sprint(k.tags) {
			t.Errorf("the key %s has tags %v, want %v", k.id, got, k.tags)
		}
	}
	for name, id := range w.aliases {
		if got := aliasTarget(there, name); got != id {
			t.Errorf("%s names the key %q, want %s", name, got, id)
		}
	}
	for _, b := range w.blobs {
		r := c.Do(t, "Decrypt", `{"CiphertextBlob":"`+encode(b.blob)+`","EncryptionContext":{"writer":"`+w.name+`"}}`)
		if b.key.disabled {
			equal(t, "__type for a disabled key", r.Type, "DisabledException")
			continue
		}
		var out struct{ Plaintext []byte }
		if r.Status != 200 || json.Unmarshal(r.Body, &out) != nil || string(out.Plaintext) != string(b.plain) {
			t.Errorf("the blob %s: %d %s", b.plain, r.Status, r.Body)
		}
	}
}

type listedAlias struct{ AliasName, TargetKeyId string }

// checkAliases holds the account's list of aliases against the lists of its keys: the same, both ways.
func checkAliases(t *testing.T, e Endpoint) {
	t.Helper()
	c := e.Client(t)
	whole := listAliases(t, c, "")
	for id := range listKeys(t, c) {
		for name, target := range listAliases(t, c, id) {
			if target != id || whole[name] != id {
				t.Errorf("%s is on the list of key %s, names %s and is listed for %q", name, id, target, whole[name])
			}
			delete(whole, name)
		}
	}
	for name, target := range whole {
		t.Errorf("%s names %s, which does not list it", name, target)
	}
}

func listAliases(t *testing.T, c *Client, id string) map[string]string {
	t.Helper()
	names := make(map[string]string)
	for marker := ""; ; {
		body := `{"Limit":100`
		if id != "" {
			body += `,"KeyId":"` + id + `"`
		}
		if marker != "" {
			body += `,"Marker":"` + marker + `"`
		}
		var page struct {
			Aliases    []listedAlias
			NextMarker string
			Truncated  bool
		}
		c.Do(t, "ListAliases", body+"}").Members(t, &page)
		for _, a := range page.Aliases {
			names[a.AliasName] = a.TargetKeyId
		}
		if marker = page.NextMarker; !page.Truncated {
			return names
		}
	}
}

func listKeys(t *testing.T, c *Client) map[string]bool {
	t.Helper()
	ids := make(map[string]bool)
	for marker := ""; ; {
		body := `{"Limit":1000`
		if marker != "" {
			body += `,"Marker":"` + marker + `"`
		}
		var page struct {
			Keys       []struct{ KeyId string }
			NextMarker string
			Truncated  bool
		}
		c.Do(t, "ListKeys", body+"}").Members(t, &page)
		for _, k := range page.Keys {
			ids[k.KeyId] = true
		}
		if marker = page.NextMarker; !page.Truncated {
			return ids
		}
	}
}
