package controlplane

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

type tagReply struct {
	Tags       []tag
	NextMarker string
	Truncated  bool
}

func (e *env) tags(key string) []tag {
	e.Helper()
	var out tagReply
	e.ok("ListResourceTags", obj("KeyId", key), &out)
	return out.Tags
}

func TestTags(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	e.published.take()
	e.ok("TagResource", obj("KeyId", m.Arn, "Tags", tags("b", "2", "a", "1", "B", "upper")), nil)
	if got := e.published.take(); got != "key "+m.KeyId+"\n" {
		t.Errorf("published %q", got)
	}
	e.ok("TagResource", obj("KeyId", m.KeyId, "Tags", tags("a", "new", "é à/_.:=+-@", " ")), nil)
	if got, want := e.tags(m.KeyId), tags("B", "upper", "a", "new", "b", "2", "é à/_.:=+-@", " "); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	e.ok("TagResource", obj("KeyId", m.KeyId, "Tags", tags()), nil)
	e.ok("UntagResource", obj("KeyId", m.KeyId, "TagKeys", []string{"a", "never", "a", "B"}), nil)
	e.ok("UntagResource", obj("KeyId", m.KeyId, "TagKeys", []string{}), nil)
	if got, want := e.tags(m.Arn), tags("b", "2", "é à/_.:=+-@", " "); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestTagLimits(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	long := func(n int) string { return strings.Repeat("ü", n) }
	for _, c := range []struct{ key, value string }{
		{"k", ""}, {long(127), long(255)}, {long(128), long(256)}, {"aws", "aws:value"}, {"xaws:", ""},
	} {
		e.ok("TagResource", obj("KeyId", m.KeyId, "Tags", tags(c.key, c.value)), nil)
		if got := e.tags(m.KeyId); fmt.Sprint(got) != fmt.Sprint(tags(c.key, c.value)) {
			t.Errorf("%d, %d characters: %v", len(c.key), len(c.value), got)
		}
		e.ok("UntagResource", obj("KeyId", m.KeyId, "TagKeys", []string{c.key}), nil)
	}
	const tooLong = " failed to satisfy constraint: Member must have length less than or equal to "
	for _, c := range []struct {
		tags    any
		code    kmsapi.Code
		message string
	}{
		{raw("null"), kmsapi.Validation, "1 validation error detected: Value null at 'tags' failed to satisfy constraint: Member must not be null"},
		{tags("", "v"), kmsapi.Validation, "1 validation error detected: Value '' at 'tags.1.member.tagKey' failed to satisfy constraint: Member must have length greater than or equal to 1"},
		{tags("k", "v", long(129), long(257)), kmsapi.Validation, "2 validation errors detected: Value at 'tags.2.member.tagKey'" + tooLong + "128; " +
			"Value at 'tags.2.member.tagValue'" + tooLong + "256"},
		{tags("a", "", "b", "", "a", ""), kmsapi.Tag, "Duplicate tag keys"},
		{tags("aws:a", ""), kmsapi.Tag, "Tags beginning with aws: are reserved"},
		{tags("AWS:a", ""), kmsapi.Tag, "Tags beginning with aws: are reserved"},
		{tags("a;b", ""), kmsapi.Tag, "Invalid tag key"},
		{tags("a\n", ""), kmsapi.Tag, "Invalid tag key"},
		{tags("a", "<"), kmsapi.Tag, "Invalid tag value"},
	} {
		e.fails("TagResource", obj("KeyId", m.KeyId, "Tags", c.tags), c.code, c.message)
	}
	e.fails("UntagResource", obj("KeyId", m.KeyId), kmsapi.Validation,
		"1 validation error detected: Value null at 'tagKeys' failed to satisfy constraint: Member must not be null")
	e.fails("UntagResource", obj("KeyId", m.KeyId, "TagKeys", raw(`["",null]`)), kmsapi.Validation,
		"2 validation errors detected: Value '' at 'tagKeys.1.member' failed to satisfy constraint: Member must have length greater than or equal "+
			"to 1; Value null at 'tagKeys.2.member' failed to satisfy constraint: Member must not be null")
	e.fails("UntagResource", obj("KeyId", m.KeyId, "TagKeys", []string{"aWs:x"}), kmsapi.Tag, "Tags beginning with aws: are reserved")
	if got := e.tags(m.KeyId); len(got) != 0 {
		t.Errorf("refused tags were kept: %v", got)
	}
}

// Exactly kmsapi.TagsPerKeyMax tags fit, whichever way they come.
func TestTagsPerKeyLimit(t *testing.T) {
	e := newEnv(t)
	list := func(from, to int) []tag {
		l := []tag{}
		for i := from; i < to; i++ {
			l = append(l, tag{fmt.Sprintf("k%02d", i), "v"})
		}
		return l
	}
	full := e.create(obj("Tags", list(0, kmsapi.TagsPerKeyMax)))
	e.fails("CreateKey", obj("Tags", list(0, kmsapi.TagsPerKeyMax+1)), kmsapi.Tag, "Too many tags")
	e.fails("TagResource", obj("KeyId", full.KeyId, "Tags", list(50, 51)), kmsapi.Tag, "Too many tags")
	e.ok("TagResource", obj("KeyId", full.KeyId, "Tags", list(0, 50)), nil) // the same keys: replaced
	e.ok("UntagResource", obj("KeyId", full.KeyId, "TagKeys", []string{"k00"}), nil)
	e.ok("TagResource", obj("KeyId", full.KeyId, "Tags", list(50, 51)), nil)
	if got := e.tags(full.KeyId); fmt.Sprint(got) != fmt.Sprint(list(1, 51)) {
		t.Errorf("got %v", got)
	}
	empty := e.create("{}")
	e.fails("TagResource", obj("KeyId", empty.KeyId, "Tags", list(0, 51)), kmsapi.Tag, "Too many tags")

	for _, limit := range []int{1, 49, 50} {
		var names []string
		body := obj("KeyId", full.KeyId, "Limit", limit)
		for {
			var out tagReply
			e.ok("ListResourceTags", body, &out)
			for _, t := range out.Tags {
				names = append(names, t.TagKey)
			}
			if !out.Truncated {
				break
			}
			body = obj("KeyId", full.KeyId, "Limit", limit, "Marker", out.NextMarker)
		}
		if len(names) != 50 || names[0] != "k01" || names[49] != "k50" {
			t.Errorf("limit %d: %v", limit, names)
		}
	}
	for _, limit := range []int{0, 51} {
		e.fails("ListResourceTags", obj("KeyId", full.KeyId, "Limit", limit), kmsapi.Validation, "*")
	}
	// The longest position there can be still makes a marker that is no longer than a marker may be.
	wide := e.create(obj("Tags", tags(strings.Repeat("𝐀", kmsapi.TagKeyMax), "", strings.Repeat("𝐁", kmsapi.TagKeyMax), "")))
	var out tagReply
	e.ok("ListResourceTags", obj("KeyId", wide.KeyId, "Limit", 1), &out)
	if len(out.NextMarker) > kmsapi.MarkerMax {
		t.Errorf("marker of %d characters", len(out.NextMarker))
	}
	e.ok("ListResourceTags", obj("KeyId", wide.KeyId, "Limit", 1, "Marker", out.NextMarker), &out)
}

// No write is lost where a hundred change one key at once: 50 tags and 50 aliases, each from its own request.
func TestConcurrentChangesOfOneKey(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if resp := e.call("TagResource", obj("KeyId", m.KeyId, "Tags", tags(fmt.Sprintf("k%02d", i), "v"))); resp.Code != kmsapi.OK {
				t.Errorf("tag %d: %s", i, resp.Body)
			}
		})
		wg.Go(func() {
			if resp := e.call("CreateAlias", aliasBody(fmt.Sprintf("alias/%02d", i), m.KeyId)); resp.Code != kmsapi.OK {
				t.Errorf("alias %d: %s", i, resp.Body)
			}
		})
	}
	wg.Wait()
	if got := e.tags(m.KeyId); len(got) != 50 {
		t.Errorf("%d of 50 tags kept", len(got))
	}
	if got := e.aliases(obj("KeyId", m.KeyId)); len(got.Aliases) != 50 {
		t.Errorf("%d of 50 aliases kept", len(got.Aliases))
	}
}

// A hundred requests write 50 tags, two each: every tag is there with a value that somebody wrote.
func TestConcurrentTagResource(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			body := obj("KeyId", m.KeyId, "Tags", tags(fmt.Sprintf("k%02d", i%50), fmt.Sprint(i)))
			if resp := e.call("TagResource", body); resp.Code != kmsapi.OK {
				t.Errorf("%d: %s", i, resp.Body)
			}
		})
	}
	wg.Wait()
	got := e.tags(m.KeyId)
	if len(got) != 50 {
		t.Fatalf("%d of 50 tags kept", len(got))
	}
	for i, tag := range got {
		if tag.TagKey != fmt.Sprintf("k%02d", i) || tag.TagValue != fmt.Sprint(i) && tag.TagValue != fmt.Sprint(i+50) {
			t.Errorf("tag %d is %v", i, tag)
		}
	}
}
