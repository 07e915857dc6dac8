package authztest

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// question is a Request about a World.
type question struct {
	w *World
	r *Request
}

// values are what the request says of a condition key, written in lower case; none: the key is absent. multi says that the key is
// multi-valued, whatever it has.
func (q *question) values(key string) (values []string, multi bool) {
	c, r := &q.w.Caller, q.r
	one := func(v string) ([]string, bool) {
		if v == "" {
			return nil, false
		}
		return []string{v}, false
	}
	if prefix, name, ok := cutFamily(key); ok {
		switch prefix {
		case "aws:principaltag/":
			if v := tag(c.SessionTags, name); v != nil {
				return v, false
			}
			return tag(c.Tags, name), false
		case "aws:resourcetag/":
			if r.Key == nil {
				return nil, false
			}
			return tag(r.Key.Tags, name), false
		case "kms:encryptioncontext:":
			for k, v := range r.EncryptionContext {
				if strings.ToLower(k) == name {
					return []string{v}, false
				}
			}
			return nil, false
		}
	}
	now, _ := time.Parse(time.RFC3339, r.Now)
	switch key {
	case "aws:principalarn":
		switch c.Kind {
		case AssumedRole:
			return one(c.RoleARN)
		case Service:
			return nil, false
		}
		return one(c.ARN)
	case "aws:principalaccount":
		if c.Kind == Service {
			return nil, false
		}
		return one(c.Account)
	case "aws:principaltype":
		switch c.Kind {
		case Root:
			return one("Account")
		case User, AssumedRole:
			return one(c.Kind)
		}
	case "aws:principalisawsservice":
		return one(strconv.FormatBool(c.Kind == Service))
	case "aws:userid":
		switch c.Kind {
		case AssumedRole:
			return one(c.ID + ":" + c.Name)
		case User, Root:
			return one(c.ID)
		}
	case "aws:username":
		if c.Kind == User {
			return one(c.Name)
		}
	case "aws:sourceidentity":
		return one(c.Source)
	case "aws:tokenissuetime":
		return one(c.TokenIssued)
	case "aws:calledvia":
		v, _ := one(withoutRegion(c.Via))
		return v, true
	case "aws:calledviafirst", "aws:calledvialast":
		return one(withoutRegion(c.Via))
	case "aws:viaawsservice":
		return one(strconv.FormatBool(c.Via != ""))
	case "aws:sourceip":
		return one(r.SourceIP)
	case "aws:securetransport":
		return one(strconv.FormatBool(!r.Plain))
	case "aws:currenttime":
		return one(now.UTC().Format("2006-01-02T15:04:05Z"))
	case "aws:epochtime":
		return one(strconv.FormatInt(now.Unix(), 10))
	case "aws:useragent":
		return one(r.UserAgent)
	case "aws:requestedregion":
		return one(r.Region)
	case "aws:sourcearn":
		return one(r.SourceARN)
	case "aws:sourceaccount":
		return one(r.SourceAccount)
	case "aws:resourceaccount":
		return one(r.Owner)
	case "kms:encryptionalgorithm":
		return one(r.EncryptionAlgorithm)
	case "kms:requestalias":
		return one(r.RequestAlias)
	case "kms:reencryptonsamekey":
		if r.ReEncrypt {
			return one(strconv.FormatBool(r.SameKey))
		}
	case "kms:encryptioncontextkeys":
		for k := range r.EncryptionContext {
			values = append(values, k)
		}
		slices.Sort(values)
		return values, true
	case "aws:tagkeys", "kms:grantoperations":
		multi = true
	}
	if k := r.Key; k != nil {
		switch key {
		case "kms:calleraccount":
			if c.Kind != Service {
				return one(c.Account)
			}
		case "kms:viaservice":
			return one(c.Via)
		case "kms:keyspec", "kms:customermasterkeyspec":
			return one(k.Spec)
		case "kms:keyusage", "kms:customermasterkeyusage":
			return one(k.Usage)
		case "kms:keyorigin":
			return one(k.Origin)
		case "kms:multiregion":
			return one(strconv.FormatBool(k.MultiRegion))
		case "kms:multiregionkeytype":
			return one(k.MultiRegionKeyType)
		case "kms:resourcealiases":
			if len(k.Aliases) > 50 {
				return nil, true
			}
			return k.Aliases, true
		}
	}
	for _, e := range r.Extra {
		if strings.ToLower(e.Key) == key {
			values = append(values, e.Value)
		}
	}
	return values, multi
}

func cutFamily(key string) (prefix, name string, ok bool) {
	for _, prefix := range []string{"aws:principaltag/", "aws:resourcetag/", "kms:encryptioncontext:"} {
		if name, ok := strings.CutPrefix(key, prefix); ok {
			return prefix, name, true
		}
	}
	return "", "", false
}

func tag(tags []Tag, name string) []string {
	for _, t := range tags {
		if strings.ToLower(t.Key) == name {
			return []string{t.Value}
		}
	}
	return nil
}

// withoutRegion is the name of a service without its Region: s3.amazonaws.com of s3.us-east-1.amazonaws.com.
func withoutRegion(name string) string {
	labels := strings.Split(name, ".")
	if len(labels) < 4 {
		return name
	}
	region := strings.Split(labels[1], "-")
	last := region[len(region)-1]
	if len(region) < 3 || last == "" || strings.Trim(last, "0123456789") != "" {
		return name
	}
	return strings.Join(append(labels[:1:1], labels[2:]...), ".")
}
