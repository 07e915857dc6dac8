package dataplane

import (
	"errors"
	"time"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/internal/xks"
	"github.com/keyplane/keyplane/ratelimit"
)

// XKSPrefix is one external key store as its proxy knows it: what is served below a path, and to whom.
type XKSPrefix struct {
	Path        string             // "" or "/team-a": XksProxyUriPath without xks.BasePath
	Region      string             // of AWS KMS: what requests are signed for
	Credentials []*sigv4.AccessKey // one, or two while they are rotated; their owner wipes them
	Keys        []XKSKey
	Rate        ratelimit.Limit // of requests about its keys; the zero Limit is none
}

// XKSKey is a KMS key of ours that is offered as an external key. Patterns have * for any bytes and ? for one. A list of none allows everything.
type XKSKey struct {
	ID      string // external key ID
	Region  string // of the KMS key, one of Config.Regions
	Account keyid.Account
	Key     keyid.ID

	Principals []string // patterns of awsPrincipalArn
	Operations []string // patterns of kmsOperation
	Services   []string // patterns of kmsViaService; a request that came through none has ""
	ReadOnly   bool     // it decrypts only
}

// xksPrefix is XKSPrefix as requests need it. It is not changed.
type xksPrefix struct {
	path     string
	verifier *sigv4.Verifier
	keys     map[string]*xksKey // by ID
	limit    ratelimit.Limit
	rate     *ratelimit.GCRA // of the path, whatever is replaced
}

// charge takes one request from the rate, false if it does not fit: neither when it arrived nor, since it may have waited and others have taken theirs, now.
func (p *xksPrefix) charge(start, arrived time.Time) bool {
	if p.limit.Interval == 0 {
		return true
	}
	ok, _ := p.rate.Take(p.limit, max(int64(arrived.Sub(start)), 0))
	if !ok {
		ok, _ = p.rate.Take(p.limit, int64(time.Since(start)))
	}
	return ok
}

type xksKey struct {
	XKSKey
	region *region
}

// SetPrefixes replaces the external key stores. Requests under way are served by what was there when they came.
func (x *XKS) SetPrefixes(prefixes []XKSPrefix) error {
	table := make(map[string]*xksPrefix, len(prefixes))
	var before map[string]*xksPrefix
	if t := x.table.Load(); t != nil {
		before = *t
	}
	for i := range prefixes {
		p := &prefixes[i]
		if !xks.ValidPath(p.Path+xks.BasePath) || table[p.Path] != nil {
			return errors.New("dataplane: a path of an XKS proxy is not valid, or there twice")
		}
		credentials := make(xksCredentials, len(p.Credentials))
		for _, c := range p.Credentials {
			credentials[c.ID()] = c
		}
		verifier, err := sigv4.New(sigv4.Config{Service: xks.SigningName, Regions: []string{p.Region}, Keys: credentials, SignedFew: true})
		if err != nil {
			return err
		}
		made := &xksPrefix{path: p.Path, verifier: verifier, keys: make(map[string]*xksKey, len(p.Keys)), limit: p.Rate, rate: new(ratelimit.GCRA)}
		if old := before[p.Path]; old != nil {
			made.rate = old.rate
		}
		for j := range p.Keys {
			k := &xksKey{XKSKey: p.Keys[j], region: x.s.region(p.Keys[j].Region)}
			if k.region == nil || !xks.ValidKeyID(k.ID) || made.keys[k.ID] != nil {
				return errors.New("dataplane: an external key's ID is not valid or there twice, or its Region is not this server's")
			}
			made.keys[k.ID] = k
		}
		table[p.Path] = made
	}
	x.table.Store(&table)
	return nil
}

// xksCredentials are those of one external key store.
type xksCredentials map[string]*sigv4.AccessKey

func (c xksCredentials) AccessKey(id []byte) *sigv4.AccessKey { return c[string(id)] }

// denies says why the key is not for this request, "" if it is: what the API calls secondary authorisation.
func (k *xksKey) denies(in *xksInput) string {
	switch {
	case !anyMatches(k.Principals, in.principal):
		return "The awsPrincipalArn is none of those that may use the external key."
	case !anyMatches(k.Operations, in.operation):
		return "The kmsOperation is none of those that the external key is for."
	case !anyMatches(k.Services, in.viaService):
		return "The kmsViaService is none of those that may use the external key."
	}
	return ""
}

func anyMatches(patterns []string, text []byte) bool {
	for _, p := range patterns {
		if globMatches(p, text) {
			return true
		}
	}
	return len(patterns) == 0
}

// globMatches says whether text is of a pattern with * and ?. Its time is at most that of len(pattern) × len(text) comparisons: a star that was passed is
// the only one that is ever gone back to.
func globMatches(pattern string, text []byte) bool {
	p, t := 0, 0
	star, from := -1, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, t
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			p++
			t++
		case star >= 0:
			from++
			p, t = star+1, from
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
