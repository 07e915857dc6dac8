package sigv4

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/secret"
)

// RegionsMax is how many Regions a server can be of: one service more than these has the global us-east-1 besides.
const RegionsMax = 8

const (
	accessKeyIDMax = 128 // bytes, as in the IAM service model
	secretMax      = 128 // bytes; AWS makes 40

	servicesMax = 4                            // services one Verifier serves
	regionsMax  = RegionsMax + 1               // regions of each
	slotCount   = 2 * servicesMax * regionsMax // two days for each: the window reaches over midnight
)

// Principal is whom an access key belongs to.
type Principal struct {
	Account  keyid.Account
	ARN      string
	UserName string
	Root     bool // the account's root user

	Caller *authz.Caller // as decisions name it; nil for keys that only sign
}

// KeySource finds access keys. AccessKey returns nil for one that is unknown or inactive. It must not allocate, must not keep id, and is
// called by many goroutines at once.
type KeySource interface{ AccessKey(id []byte) *AccessKey }

// AccessKey is one access key: its ID, its secret and whom it belongs to; a temporary one has a security token and an end. It keeps the
// signing keys derived for the current days, so that a request costs one HMAC. Safe for concurrent use.
//
// The secret is behind a pointer because package fmt calls no method of an unexported field: a printed AccessKey shows an address there.
type AccessKey struct {
	id        string
	principal Principal

	temporary bool
	token     [sha256.Size]byte // SHA-256 of the security token
	expires   time.Time

	slots [slotCount]atomic.Pointer[signingKey]

	mu     sync.Mutex
	secret *secret.Bytes // "AWS4" || secret access key; mu; empty once wiped
}

// signingKey is a derived key. Scope and words do not change, except that kill clears the words: dead first, then the words, so that a
// reader that finds dead unset after it read the words has read all of the key.
type signingKey struct {
	date            [8]byte
	region, service string

	words [len(signingKeyWords{})]atomic.Uint64
	dead  atomic.Bool
}

// NewAccessKey makes an access key. id is 1 to 128 letters, digits or underscores, secretKey 1 to 128 bytes. It copies secretKey, which the
// caller still has to wipe.
func NewAccessKey(id string, secretKey []byte, p Principal) (*AccessKey, error) {
	if !validAccessKeyID([]byte(id)) {
		return nil, errors.New("sigv4: an access key ID has 1 to 128 letters, digits or underscores")
	}
	if len(secretKey) == 0 || len(secretKey) > secretMax {
		return nil, errors.New("sigv4: a secret access key has 1 to 128 bytes")
	}
	prefixed := secret.New(append(append(make([]byte, 0, len("AWS4")+len(secretKey)), "AWS4"...), secretKey...))
	return &AccessKey{id: id, principal: p, secret: &prefixed}, nil
}

// NewTemporaryKey is NewAccessKey for the credentials of a session: requests carry a security token whose SHA-256 is token, and are refused
// from expires on.
func NewTemporaryKey(id string, secretKey []byte, token [sha256.Size]byte, expires time.Time, p Principal) (*AccessKey, error) {
	k, err := NewAccessKey(id, secretKey, p)
	if err == nil {
		k.temporary, k.token, k.expires = true, token, expires
	}
	return k, err
}

// Temporary reports whether the key is a session's.
func (k *AccessKey) Temporary() bool { return k.temporary }

// Expires is when a temporary key ends, zero for others.
func (k *AccessKey) Expires() time.Time { return k.expires }

// fits reports whether a request has the security token that goes with the key, or none if the key is long-term. at is the index of the header
// in r.Headers, negative without one.
func (k *AccessKey) fits(r *Request, at int) bool {
	if at < 0 || !k.temporary {
		return at < 0 && !k.temporary
	}
	sum := sha256.Sum256(trimBlanks(r.Headers[at].Value))
	return subtle.ConstantTimeCompare(sum[:], k.token[:]) == 1
}

// ID is the access key ID.
func (k *AccessKey) ID() string { return k.id }

// Principal is whom the key belongs to. The caller does not change it.
func (k *AccessKey) Principal() *Principal { return &k.principal }

// Wipe clears the secret and every key derived from it. A Verify that runs meanwhile, and all that follow, treat the key as unknown.
func (k *AccessKey) Wipe() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.secret.Wipe()
	for i := range k.slots {
		k.slots[i].Swap(nil).kill()
	}
}

// String is the access key ID, which is not a secret.
func (k *AccessKey) String() string   { return k.id }
func (k *AccessKey) GoString() string { return k.id }

// signingKey returns the key for a scope, false once k is wiped. slot is any number that separates the scopes in use at one time: two
// scopes on one slot are correct but derive anew each time.
func (k *AccessKey) signingKey(slot uint, date []byte, region, service string) (signingKeyWords, bool) {
	if words, ok := k.slots[slot%slotCount].Load().read(date, region, service); ok {
		return words, true
	}
	return k.derive(slot%slotCount, date, region, service)
}

// derive fills a slot: once a day for each region.
func (k *AccessKey) derive(slot uint, date []byte, region, service string) (signingKeyWords, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if words, ok := k.slots[slot].Load().read(date, region, service); ok {
		return words, true
	}
	if k.secret.Len() == 0 {
		return signingKeyWords{}, false
	}
	words := deriveKey(k.secret.Expose(), date, region, service)
	sk := &signingKey{date: [8]byte(date), region: region, service: service}
	for i, w := range words {
		sk.words[i].Store(w)
	}
	k.slots[slot].Swap(sk).kill()
	return words, true
}

func (sk *signingKey) read(date []byte, region, service string) (words signingKeyWords, ok bool) {
	if sk == nil || string(sk.date[:]) != string(date) || sk.region != region || sk.service != service {
		return words, false
	}
	for i := range words {
		words[i] = sk.words[i].Load()
	}
	return words, !sk.dead.Load()
}

func (sk *signingKey) kill() {
	if sk == nil {
		return
	}
	sk.dead.Store(true)
	for i := range sk.words {
		sk.words[i].Store(0)
	}
}

func validAccessKeyID(id []byte) bool {
	for _, c := range id {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '_' {
			return false
		}
	}
	return len(id) > 0 && len(id) <= accessKeyIDMax
}
