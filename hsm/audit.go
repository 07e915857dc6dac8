package hsm

import (
	"crypto/ecdsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// AuditSession is one PKCS#11 session with the token's audit key: an EC P-256 pair of which the token keeps the private half. It is used by
// one goroutine at a time and by nobody who serves requests.
type AuditSession interface {
	// Public is the pair's public half as the token tells it; a signature that it verifies proves it.
	Public() *ecdsa.PublicKey
	// Sign is CKM_ECDSA over a SHA-256 digest: r || s. The error is an *Error unless the session is closed (ErrSessionClosed).
	Sign(digest [32]byte) ([64]byte, error)
	Close() error
}

// AuditKey signs with a token's audit key. It has its own session of the token, opens it anew after the token was lost, and verifies every
// signature before it gives it away. Methods are safe for concurrent use; calls into the token are made one at a time.
type AuditKey struct {
	name    string // for messages
	token   Token
	timeout time.Duration
	public  *ecdsa.PublicKey

	turn    chan struct{} // holds one token while nobody calls; a call that hangs keeps it
	session AuditSession  // of whoever has the turn; nil: to be opened
	gen     uint64        // the session's generation
	closed  bool
}

// auditProof is what a signature at the start signs: it can be no digest of a text, but by a 2^-256 chance.
var auditProof = [32]byte{31: 1}

// OpenAuditKey takes the first of the tokens that has an audit key, and where want is not nil the first that has this one. ErrNoAuditKey if
// none has; any other fault of a token on the way is an error, so that a log does not change its key because a token was not well.
// No call waits for a token longer than timeout. The tokens outlive the key.
func OpenAuditKey(tokens []Token, want *ecdsa.PublicKey, timeout time.Duration) (*AuditKey, error) {
	return openKey("audit key", tokens, want, timeout, ErrNoAuditKey)
}

// CAToken is a token that can hold the key of a cluster's CA: an EC P-256 pair as the audit key is, for certificates of the planes.
type CAToken interface {
	Token
	// OpenCASession is OpenAuditSession for the CA key. ErrNoCAKey if it is not there.
	OpenCASession() (AuditSession, error)
}

// caSide has a token's CA key in the place of its audit key.
type caSide struct{ CAToken }

func (t caSide) OpenAuditSession() (AuditSession, error) { return t.OpenCASession() }

// OpenCAKey is OpenAuditKey for CA keys. ErrNoCAKey if none has one, or none has this one.
func OpenCAKey(tokens []Token, want *ecdsa.PublicKey, timeout time.Duration) (*AuditKey, error) {
	var can []Token
	for _, t := range tokens {
		if t, ok := t.(CAToken); ok {
			can = append(can, caSide{t})
		}
	}
	return openKey("CA key", can, want, timeout, ErrNoCAKey)
}

func openKey(name string, tokens []Token, want *ecdsa.PublicKey, timeout time.Duration, none error) (*AuditKey, error) {
	for _, t := range tokens {
		k := &AuditKey{name: name, token: t, timeout: timeout, turn: make(chan struct{}, 1)}
		k.turn <- struct{}{}
		_, err := k.Sign(auditProof[:])
		switch {
		case err == nil && (want == nil || want.Equal(k.public)):
			return k, nil
		case err == nil:
			err = k.Close()
		case errors.Is(err, none):
			err = nil
		}
		if err != nil {
			return nil, fmt.Errorf("hsm: %s of token %q: %w", name, t.Info().Label, err)
		}
	}
	return nil, none
}

// Public is the public half.
func (k *AuditKey) Public() *ecdsa.PublicKey { return k.public }

// Token says which token signs.
func (k *AuditKey) Token() TokenInfo { return k.token.Info() }

// Sign signs a SHA-256 digest and returns the signature in ASN.1 DER. ErrTimeout where the token, for this or an earlier call, does not
// answer in time; what it answers later is not delivered.
func (k *AuditKey) Sign(digest []byte) ([]byte, error) {
	if len(digest) != 32 {
		return nil, fmt.Errorf("hsm: a SHA-256 digest has 32 bytes, not %d", len(digest))
	}
	timer := time.NewTimer(k.timeout)
	defer timer.Stop()
	select {
	case <-k.turn:
	case <-timer.C:
		return nil, ErrTimeout
	}
	type result struct {
		der []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		der, err := k.sign([32]byte(digest))
		k.turn <- struct{}{}
		done <- result{der, err}
	}()
	select {
	case r := <-done:
		return r.der, r.err
	case <-timer.C:
		return nil, ErrTimeout
	}
}

// sign needs the turn. A signature leaves nothing behind in the token, so it is tried once more on a new session whatever the error, unless
// that says to leave the token alone.
func (k *AuditKey) sign(digest [32]byte) (der []byte, err error) {
	for range 2 {
		if k.closed {
			return nil, ErrSessionClosed
		}
		if der, err = k.attempt(digest); err == nil {
			return der, nil
		}
		k.drop()
		if errors.Is(err, ErrNoAuditKey) || errors.Is(err, ErrNoCAKey) || classOf(err).Has(actX) {
			return nil, err
		}
	}
	return nil, err
}

// attempt signs on the session that is open, or on a new one.
func (k *AuditKey) attempt(digest [32]byte) ([]byte, error) {
	if k.session != nil && k.gen != k.token.Generation() {
		k.drop()
	}
	if k.session == nil {
		if err := k.open(); err != nil {
			return nil, err
		}
	}
	public := k.session.Public()
	if k.public != nil && !k.public.Equal(public) {
		return nil, fmt.Errorf("%w: the token's %s is another than at the start", ErrWrong, k.name)
	}
	raw, err := k.session.Sign(digest)
	if err != nil {
		return nil, err
	}
	if !VerifyAudit(public, digest, raw) {
		return nil, fmt.Errorf("%w: a signature of the %s does not verify", ErrWrong, k.name)
	}
	if k.public == nil {
		k.public = public // written by OpenAuditKey's call only, before anybody else has k
	}
	return derSignature(raw)
}

// open opens the session, with one re-login if the login turns out to be lost.
func (k *AuditKey) open() (err error) {
	k.gen = k.token.Generation()
	k.session, err = k.token.OpenAuditSession()
	if err == nil || !classOf(err).Has(actL) {
		return err
	}
	if k.token.Generation() == k.gen {
		if err := k.token.Reset(); err != nil {
			return err
		}
	}
	k.gen = k.token.Generation()
	k.session, err = k.token.OpenAuditSession()
	return err
}

func (k *AuditKey) drop() {
	if k.session != nil {
		_ = k.session.Close() // it may be lost already
		k.session = nil
	}
}

// Close closes the session. ErrTimeout if a call hangs in it: then it is left behind.
func (k *AuditKey) Close() error {
	timer := time.NewTimer(k.timeout)
	defer timer.Stop()
	select {
	case <-k.turn:
	case <-timer.C:
		return ErrTimeout
	}
	k.closed = true
	var err error
	if k.session != nil {
		err = k.session.Close()
		k.session = nil
	}
	k.turn <- struct{}{}
	return err
}

// VerifyAudit reports whether r || s is the public half's signature of a digest.
func VerifyAudit(public *ecdsa.PublicKey, digest [32]byte, raw [64]byte) bool {
	return ecdsa.Verify(public, digest[:], new(big.Int).SetBytes(raw[:32]), new(big.Int).SetBytes(raw[32:]))
}

// derSignature is the ECDSA-Sig-Value of r || s.
func derSignature(raw [64]byte) ([]byte, error) {
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:32]), new(big.Int).SetBytes(raw[32:])})
}
