package sigv4

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/planted"
)

// Config says what a Verifier accepts.
type Config struct {
	Regions []string      // regions of the credential scope, 1 to RegionsMax + 1
	Service string        // service of the credential scope, kms where empty
	Others  []Service     // other services with Regions of their own, at most 3
	Skew    time.Duration // how far X-Amz-Date may be from now, whole minutes, 1 to 5; 0 is 5
	Keys    KeySource
	// SignedFew leaves it to the client which headers it signs, but for host and x-amz-date: the XKS proxy API asks for these two. Without it content-type and
	// every x-amz-* header have to be signed too.
	SignedFew bool
}

// Service is a service of the credential scope and its regions.
type Service struct {
	Name    string
	Regions []string // 1 to RegionsMax + 1
}

// Verifier checks signatures. It is immutable and safe for concurrent use.
type Verifier struct {
	services []Service // at least one; what is wrong with a scope is told of the first
	skew     time.Duration
	keys     KeySource
	few      bool       // Config.SignedFew
	dummy    *AccessKey // stands in for an access key that is unknown, with a secret nobody has
}

// Identity says who signed a request. Only Verify makes a valid one; the zero Identity is not valid. Its holder passes it on by value.
type Identity struct {
	key             *AccessKey
	service, region string
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

// Region is the region of the credential scope, one of the service's.
func (i Identity) Region() string { return i.region }

// Service is the service of the credential scope.
func (i Identity) Service() string { return i.service }

// New checks the configuration and draws the secret for unknown access keys.
func New(cfg Config) (*Verifier, error) {
	if cfg.Service == "" {
		cfg.Service = kmsapi.SigningName
	}
	if cfg.Skew == 0 {
		cfg.Skew = kmsapi.ClockSkew
	}
	if cfg.Skew < time.Minute || cfg.Skew > kmsapi.ClockSkew || cfg.Skew%time.Minute != 0 {
		return nil, errors.New("sigv4: the clock skew is 1 to 5 whole minutes")
	}
	if cfg.Keys == nil {
		return nil, errors.New("sigv4: no source of access keys")
	}
	services := append([]Service{{cfg.Service, cfg.Regions}}, cfg.Others...)
	if len(services) > servicesMax {
		return nil, errors.New("sigv4: more than 4 services")
	}
	for i := range services {
		for _, earlier := range services[:i] {
			if earlier.Name == services[i].Name {
				return nil, errors.New("sigv4: a service is named twice")
			}
		}
		if err := services[i].check(); err != nil {
			return nil, err
		}
		services[i].Regions = append([]string(nil), services[i].Regions...)
	}
	var noise [40]byte // as long as the secrets AWS makes
	_, _ = rand.Read(noise[:])
	dummy, err := NewAccessKey("unknown", noise[:], Principal{})
	clear(noise[:])
	if err != nil {
		return nil, err
	}
	return &Verifier{services: services, skew: cfg.Skew, keys: cfg.Keys, few: cfg.SignedFew, dummy: dummy}, nil
}

func (s *Service) check() error {
	switch {
	case len(s.Regions) == 0 || len(s.Regions) > regionsMax:
		return errors.New("sigv4: 1 to 9 regions are needed")
	case !validScopePart(s.Name, serviceMax):
		return errors.New("sigv4: the service has 1 to 32 lower-case letters, digits or hyphens")
	}
	for i, region := range s.Regions {
		if !validScopePart(region, regionMax) {
			return errors.New("sigv4: a region has 1 to 64 lower-case letters, digits or hyphens")
		}
		for _, earlier := range s.Regions[:i] {
			if earlier == region {
				return errors.New("sigv4: a region is named twice")
			}
		}
	}
	return nil
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
// The refusals are kmsapi.MissingAuthenticationToken, IncompleteSignature, InvalidSignature, UnrecognizedClient, ExpiredToken, and for what
// is no request this service could have been sent BadRequest and RequestHeaderTooLarge.
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
	signed, c := s.matchSigned(r, v.few)
	if c != kmsapi.OK {
		return Identity{}, c
	}
	if string(s.auth.algorithm) != algorithm {
		return Identity{}, s.refuseName(kmsapi.IncompleteSignature, "Unsupported AWS 'algorithm': '", s.auth.algorithm, "'.")
	}
	if c := s.auth.parseCredential(s); c != kmsapi.OK {
		return Identity{}, c
	}
	at, c := v.checkScope(s, date)
	if c != kmsapi.OK {
		return Identity{}, c
	}
	key, c := v.checkSignature(r, s, signed, date, unix, at)
	if c != kmsapi.OK {
		return Identity{}, c
	}
	if key.temporary && !now.Before(key.expires) {
		return Identity{}, s.refuse(kmsapi.ExpiredToken)
	}
	return Identity{key: key, service: at.service, region: at.region}, kmsapi.OK
}

// scope is a service and region of the verifier's, and the slot of the signing keys for it on even days.
type scope struct {
	service, region string
	slot            uint
}

// checkScope compares the credential scope with what this verifier serves and with the date of the request. All that is wrong is told in
// one text.
func (v *Verifier) checkScope(s *Scratch, date []byte) (scope, kmsapi.Code) {
	of, region := 0, -1
	for i := range v.services {
		if v.services[i].Name == string(s.auth.service) {
			of = i
		}
	}
	service := &v.services[of]
	for i := range service.Regions {
		if service.Regions[i] == string(s.auth.region) {
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
	if string(s.auth.service) != service.Name {
		separator()
		s.msg = append(s.msg, "Credential should be scoped to correct service: '"...)
		s.msg = append(s.msg, service.Name...)
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
		return scope{}, kmsapi.InvalidSignature
	}
	return scope{service.Name, service.Regions[region], 2 * uint(of*regionsMax+region)}, kmsapi.OK
}

// checkSignature computes the signature and compares. An access key that is unknown, or whose security token is missing, another's or one
// too many, takes the same way with the dummy's secret and is told apart only at the end.
func (v *Verifier) checkSignature(r *Request, s *Scratch, signed int, date []byte, unix int64, at scope) (*AccessKey, kmsapi.Code) {
	var key *AccessKey
	if validAccessKeyID(s.auth.accessKeyID) {
		key = v.keys.AccessKey(s.auth.accessKeyID)
	}
	known := key != nil && key.fits(r, s.at.token)
	if !known {
		key = v.dummy
	}
	slot := at.slot + uint(unix/86400)&1 // scope and day: today's key and that of the day next to it stay both
	words, ok := key.signingKey(slot, date[:8], at.region, at.service)
	if !ok { // wiped since the source returned it
		known = false
		words, _ = v.dummy.signingKey(slot, date[:8], at.region, at.service)
	}
	bodyHash := sha256.Sum256(r.Body)
	computed := s.sign(r, s.order[:signed], &bodyHash, &words, date, at.region, at.service)
	clear(words[:])

	var given [sha256.Size]byte
	wellFormed := parseHex(&given, s.auth.signature)
	equal := hmac.Equal(computed[:], given[:]) || planted.Is(planted.SignatureIgnored)
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
