package sigv4

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// Config says what a Verifier accepts.
type Config struct {
	Regions []string      // regions of the credential scope, 1 to 4
	Service string        // service of the credential scope, kms where empty
	Skew    time.Duration // how far X-Amz-Date may be from now, whole minutes, 1 to 5; 0 is 5
	Keys    KeySource
}

// Verifier checks signatures. It is immutable and safe for concurrent use.
type Verifier struct {
	regions []string
	service string
	skew    time.Duration
	keys    KeySource
	dummy   *AccessKey // stands in for an access key that is unknown, with a secret nobody has
}

// Identity says who signed a request. Only Verify makes a valid one; the zero Identity is not valid. Its holder passes it on by value.
type Identity struct {
	key    *AccessKey
	region string
}

// Valid reports whether the identity comes from a verified signature.
func (i Identity) Valid() bool { return i.key != nil }

// Principal is whom the signing key belongs to, nil if the identity is not valid. It is shared: read only.
func (i Identity) Principal() *Principal {
	if i.key == nil {
		return nil
	}
	return &i.key.principal
}

// AccessKeyID is the access key the request was signed with.
func (i Identity) AccessKeyID() string {
	if i.key == nil {
		return ""
	}
	return i.key.id
}

// Region is the region of the credential scope, one of Config.Regions.
func (i Identity) Region() string { return i.region }

// New checks the configuration and draws the secret for unknown access keys.
func New(cfg Config) (*Verifier, error) {
	if cfg.Service == "" {
		cfg.Service = kmsapi.SigningName
	}
	if cfg.Skew == 0 {
		cfg.Skew = kmsapi.ClockSkew
	}
	switch {
	case len(cfg.Regions) == 0 || len(cfg.Regions) > regionsMax:
		return nil, errors.New("sigv4: 1 to 4 regions are needed")
	case !validScopePart(cfg.Service, serviceMax):
		return nil, errors.New("sigv4: the service has 1 to 32 lower-case letters, digits or hyphens")
	case cfg.Skew < time.Minute || cfg.Skew > kmsapi.ClockSkew || cfg.Skew%time.Minute != 0:
		return nil, errors.New("sigv4: the clock skew is 1 to 5 whole minutes")
	case cfg.Keys == nil:
		return nil, errors.New("sigv4: no source of access keys")
	}
	for i, region := range cfg.Regions {
		if !validScopePart(region, regionMax) {
			return nil, errors.New("sigv4: a region has 1 to 64 lower-case letters, digits or hyphens")
		}
		for _, earlier := range cfg.Regions[:i] {
			if earlier == region {
				return nil, errors.New("sigv4: a region is named twice")
			}
		}
	}
	var noise [40]byte // as long as the secrets AWS makes
	_, _ = rand.Read(noise[:])
	dummy, err := NewAccessKey("unknown", noise[:], Principal{})
	clear(noise[:])
	if err != nil {
		return nil, err
	}
	return &Verifier{
		regions: append([]string(nil), cfg.Regions...),
		service: cfg.Service,
		skew:    cfg.Skew,
		keys:    cfg.Keys,
		dummy:   dummy,
	}, nil
}

func validScopePart(s string, most int) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return len(s) > 0 && len(s) <= most
}

// Verify checks the signature of r at now. Unless the code is OK the identity is invalid and s.Message has the text for the client.
// The refusals are kmsapi.MissingAuthenticationToken, IncompleteSignature, InvalidSignature, UnrecognizedClient, and for what is no
// request this service could have been sent BadRequest and RequestHeaderTooLarge.
func (v *Verifier) Verify(r *Request, s *Scratch, now time.Time) (Identity, kmsapi.Code) {
	s.Reset()
	if c := s.checkShape(r); c != kmsapi.OK {
		return Identity{}, c
	}
	if c := s.auth.parse(r.Headers[s.at.authorization].Value, s.at.date >= 0, s); c != kmsapi.OK {
		return Identity{}, c
	}
	date := trimBlanks(r.Headers[s.at.date].Value)
	unix, c := s.checkTime(date, now, v.skew)
	if c != kmsapi.OK {
		return Identity{}, c
	}
	signed, c := s.matchSigned(r)
	if c != kmsapi.OK {
		return Identity{}, c
	}
	if string(s.auth.algorithm) != algorithm {
		return Identity{}, s.refuseName(kmsapi.IncompleteSignature, "Unsupported AWS 'algorithm': '", s.auth.algorithm, "'.")
	}
	if c := s.auth.parseCredential(s); c != kmsapi.OK {
		return Identity{}, c
	}
	region, c := v.checkScope(s, date)
	if c != kmsapi.OK {
		return Identity{}, c
	}
	key, c := v.checkSignature(r, s, signed, date, unix, region)
	if c != kmsapi.OK {
		return Identity{}, c
	}
	return Identity{key: key, region: v.regions[region]}, kmsapi.OK
}

// checkScope compares the credential scope with what this verifier serves and with the date of the request. All that is wrong is told in
// one text. It returns the index of the region.
func (v *Verifier) checkScope(s *Scratch, date []byte) (int, kmsapi.Code) {
	region := -1
	for i := range v.regions {
		if v.regions[i] == string(s.auth.region) {
			region = i
		}
	}
	separator := func() {
		if len(s.msg) > 0 {
			s.msg = append(s.msg, ' ')
		}
	}
	if region < 0 {
		s.say("Credential should be scoped to a valid region, not '", s.auth.region, "'.")
	}
	if string(s.auth.service) != v.service {
		separator()
		s.msg = append(s.msg, "Credential should be scoped to correct service: '"...)
		s.msg = append(s.msg, v.service...)
		s.msg = append(s.msg, "'."...)
	}
	if string(s.auth.terminator) != terminator {
		separator()
		s.say("Credential should be scoped with a valid terminator: 'aws4_request', not '", s.auth.terminator, "'.")
	}
	if string(s.auth.date) != string(date[:8]) {
		separator()
		s.say("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '", s.auth.date, "' != '")
		s.say("", date[:8], "', from '")
		s.say("", date, "'.")
	}
	if len(s.msg) > 0 {
		return 0, kmsapi.InvalidSignature
	}
	return region, kmsapi.OK
}

// checkSignature computes the signature and compares. An access key that is unknown, or long-term but sent with a security token, takes the
// same way with the dummy's secret and is told apart only at the end.
func (v *Verifier) checkSignature(r *Request, s *Scratch, signed int, date []byte, unix int64, region int) (*AccessKey, kmsapi.Code) {
	var key *AccessKey
	if validAccessKeyID(s.auth.accessKeyID) {
		key = v.keys.AccessKey(s.auth.accessKeyID)
	}
	// A temporary credential would come with a security token. None is issued yet, so a token is never valid.
	known := key != nil && s.at.token < 0
	if !known {
		key = v.dummy
	}
	slot := 2*uint(region) + uint(unix/86400)&1 // region and day: today's key and that of the day next to it stay both
	words, ok := key.signingKey(slot, date[:8], v.regions[region], v.service)
	if !ok { // wiped since the source returned it
		known = false
		words, _ = v.dummy.signingKey(slot, date[:8], v.regions[region], v.service)
	}
	bodyHash := sha256.Sum256(r.Body)
	computed := s.sign(r, s.order[:signed], &bodyHash, &words, date, v.regions[region], v.service)
	clear(words[:])

	var given [sha256.Size]byte
	wellFormed := parseHex(&given, s.auth.signature)
	equal := hmac.Equal(computed[:], given[:])
	switch {
	case !known:
		return nil, s.refuse(kmsapi.UnrecognizedClient)
	case !wellFormed || !equal:
		return nil, s.refuse(kmsapi.InvalidSignature)
	}
	if i := s.at.contentSHA256; i >= 0 {
		var sent [sha256.Size]byte
		if !parseHex(&sent, trimBlanks(r.Headers[i].Value)) || sent != bodyHash {
			return nil, s.refuseText(kmsapi.InvalidSignature, textContentSHA256)
		}
	}
	return key, kmsapi.OK
}

// sign computes the signature of r with a signing key. The key is wiped from s before it returns.
func (s *Scratch) sign(r *Request, order []uint8, bodyHash *[sha256.Size]byte, key *signingKeyWords, date []byte, region, service string) [sha256.Size]byte {
	s.canon = appendCanonicalRequest(s.canon[:0], r, order, bodyHash)
	canonical := sha256.Sum256(s.canon)
	s.mac.setWords(key)
	signature := s.mac.sum(appendStringToSign(s.mac.text(), date, region, service, &canonical))
	s.mac.wipe()
	return signature
}
