package controlplane

import (
	"context"
	"strconv"
	"strings"
	"unicode"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
)

type tagIn struct {
	TagKey   *string
	TagValue *string
}

// tagOut is a tag in a reply.
type tagOut struct {
	TagKey   string
	TagValue string
}

func checkTags(v *kmsapi.Violations, tags []*tagIn) {
	for i, t := range tags {
		path := "tags." + strconv.Itoa(i+1) + ".member"
		if t == nil {
			v.Null(path)
			continue
		}
		if t.TagKey == nil {
			v.Null(path + ".tagKey")
		}
		checkLength(v, path+".tagKey", t.TagKey, 1, kmsapi.TagKeyMax)
		if t.TagValue == nil {
			v.Null(path + ".tagValue")
		}
		checkLength(v, path+".tagValue", t.TagValue, 0, kmsapi.TagValueMax)
	}
}

// tagsOf turns checked input into tags: no key twice, none of ours reserved, only characters that a tag can have.
func tagsOf(in []*tagIn) ([]store.Tag, error) {
	if len(in) > kmsapi.TagsPerKeyMax {
		return nil, errTooManyTags
	}
	tags := make([]store.Tag, 0, len(in))
	seen := make(map[string]bool, len(in))
	for _, t := range in {
		if seen[*t.TagKey] {
			return nil, kmsapi.New(kmsapi.Tag, "Duplicate tag keys")
		}
		seen[*t.TagKey] = true
		if err := checkTagKey(*t.TagKey); err != nil {
			return nil, err
		}
		if strings.ContainsFunc(*t.TagValue, notTagRune) {
			return nil, kmsapi.New(kmsapi.Tag, "Invalid tag value")
		}
		tags = append(tags, store.Tag{Key: *t.TagKey, Value: *t.TagValue})
	}
	return tags, nil
}

var errTooManyTags = kmsapi.New(kmsapi.Tag, "Too many tags")

const tagReservedPrefix = "aws:"

func checkTagKey(key string) error {
	if len(key) >= len(tagReservedPrefix) && strings.EqualFold(key[:len(tagReservedPrefix)], tagReservedPrefix) {
		return kmsapi.New(kmsapi.Tag, "Tags beginning with aws: are reserved")
	}
	if strings.ContainsFunc(key, notTagRune) {
		return kmsapi.New(kmsapi.Tag, "Invalid tag key")
	}
	return nil
}

// notTagRune is the complement of [\p{L}\p{Z}\p{N}_.:/=+\-@], what AWS's tagging allows.
func notTagRune(r rune) bool {
	return !unicode.In(r, unicode.L, unicode.Z, unicode.N) && !strings.ContainsRune("_.:/=+-@", r)
}

type tagResourceIn struct {
	KeyId *string
	Tags  []*tagIn
}

func (in *tagResourceIn) check(v *kmsapi.Violations) {
	checkKeyID(v, "keyId", in.KeyId)
	if in.Tags == nil {
		v.Null("tags")
	}
	checkTags(v, in.Tags)
}

// TagResource adds tags; one with a key that is there already replaces it.
func (s *Server) tagResource(ctx context.Context, c *call, in *tagResourceIn) (none, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return none{}, err
	}
	c.context.Extra = tagging(in.Tags)
	k, err := s.change(ctx, c, n, func(k *store.Key) error {
		tags, err := tagsOf(in.Tags)
		if err != nil {
			return err
		}
		for _, t := range tags {
			k.SetTag(t)
		}
		if len(k.Tags) > kmsapi.TagsPerKeyMax {
			return errTooManyTags
		}
		return nil
	})
	if err != nil {
		return none{}, err
	}
	k.Wipe()
	return none{}, nil
}

type untagResourceIn struct {
	KeyId   *string
	TagKeys []*string
}

func (in *untagResourceIn) check(v *kmsapi.Violations) {
	checkKeyID(v, "keyId", in.KeyId)
	if in.TagKeys == nil {
		v.Null("tagKeys")
	}
	for i, key := range in.TagKeys {
		path := "tagKeys." + strconv.Itoa(i+1) + ".member"
		if key == nil {
			v.Null(path)
		}
		checkLength(v, path, key, 1, kmsapi.TagKeyMax)
	}
}

// UntagResource removes tags. Keys that are not there are no error.
func (s *Server) untagResource(ctx context.Context, c *call, in *untagResourceIn) (none, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return none{}, err
	}
	for _, key := range in.TagKeys {
		c.context.Extra = append(c.context.Extra, authz.ExtraValue{Key: policy.AWSTagKeys, Value: *key})
	}
	k, err := s.change(ctx, c, n, func(k *store.Key) error {
		for _, key := range in.TagKeys {
			if err := checkTagKey(*key); err != nil {
				return err
			}
			k.RemoveTag(*key)
		}
		return nil
	})
	if err != nil {
		return none{}, err
	}
	k.Wipe()
	return none{}, nil
}

type listResourceTagsIn struct {
	KeyId  *string
	Limit  *int32
	Marker *string
}

func (in *listResourceTagsIn) check(v *kmsapi.Violations) {
	checkKeyID(v, "keyId", in.KeyId)
	checkPage(v, in.Limit, in.Marker, kmsapi.LimitTagsMax)
}

type listResourceTagsOut struct {
	Tags       []tagOut
	NextMarker string `json:",omitempty"`
	Truncated  bool
}

// ListResourceTags lists a key's tags in ascending order of their keys.
func (s *Server) listResourceTags(ctx context.Context, c *call, in *listResourceTagsIn) (listResourceTagsOut, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return listResourceTagsOut{}, err
	}
	k, err := s.view(ctx, c, n)
	if err != nil {
		return listResourceTagsOut{}, err
	}
	k.Wipe()
	p := page{operation: c.op.Name, account: n.Account, region: s.region, filter: n.ID.String()}
	position, err := p.position(in.Marker)
	if err != nil {
		return listResourceTagsOut{}, err
	}
	tags, more := cut(k.Tags, func(t store.Tag) string { return t.Key }, position, pageSize(in.Limit, kmsapi.LimitTagsMax))
	out := listResourceTagsOut{Tags: []tagOut{}, Truncated: more}
	for _, t := range tags {
		out.Tags = append(out.Tags, tagOut{TagKey: t.Key, TagValue: t.Value})
	}
	if more {
		out.NextMarker = p.marker(tags[len(tags)-1].Key)
	}
	return out, nil
}
