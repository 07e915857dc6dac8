package hsm

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"sync"
	"time"

	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
	"github.com/keyplane/keyplane/internal/secret"
)

// ErrPeerKey says that the public key to wrap a key for is none that keys are wrapped for: RSA, of at least 3072 bits.
var ErrPeerKey = errors.New("hsm: no RSA public key of at least 3072 bits")

// Importable says whether there is such a thing as importing a key of the spec with the wrapping: ML-DSA and ML-KEM keys are not imported, and RSA keys
// do not fit into an RSA block.
func Importable(s keyspec.Spec, w keyspec.Wrapping) bool {
	switch w {
	case keyspec.WrapOAEP1, keyspec.WrapOAEP256, keyspec.WrapRSAAES1, keyspec.WrapRSAAES256:
	default:
		return false
	}
	switch s.Info().Family {
	case keyspec.AES, keyspec.HMAC, keyspec.EC, keyspec.Edwards:
		return true
	case keyspec.RSA:
		return Hybrid(w)
	}
	return false
}

// Hybrid says whether the material is wrapped under an AES key, and that under the RSA key.
func Hybrid(w keyspec.Wrapping) bool { return w == keyspec.WrapRSAAES1 || w == keyspec.WrapRSAAES256 }

// OAEPOf is the RSA part of a wrapping.
func OAEPOf(w keyspec.Wrapping) (keyspec.Algorithm, Mechanism) {
	if w == keyspec.WrapOAEP1 || w == keyspec.WrapRSAAES1 {
		return keyspec.OAEPSHA1, DecryptOAEP1
	}
	return keyspec.OAEPSHA256, DecryptOAEP256
}

// MaterialMax is more than material of any spec has: under a wrapping key of 4096 bits, that of an RSA_4096 key has about 2900 bytes.
const MaterialMax = 6144

// PeerKey reads the public key that a key is wrapped for. The error is ErrPeerKey.
func PeerKey(public []byte) (*pubkey.Key, error) {
	for _, s := range []keyspec.Spec{keyspec.RSA3072, keyspec.RSA4096} {
		if k, err := pubkey.Parse(s, public); err == nil {
			return k, nil
		}
	}
	return nil, ErrPeerKey
}

// Imports says whether Import does this, and whether the material is in clear only inside the token. It is what the first token does, or software
// where that is allowed and no token offers the spec. What a token answers is kept. It is asked on a goroutine of its own, one question at a time, for which
// callers wait as long as an operation may take; the error is ErrUnavailable while there is no answer.
func (r *KeyRing) Imports(s keyspec.Spec, w keyspec.Wrapping) (ok, inside bool, err error) {
	if !Importable(s, w) {
		return false, false, nil
	}
	if r.known(s) == 0 {
		if r.software == nil || r.anyIdle(s) {
			return false, false, nil
		}
		return r.cfg.Software.Imports(s, w)
	}
	kept := &r.imports[int(s)*wrappings+int(w)]
	if kept.Load() == 0 {
		r.askImports(s)
	}
	switch kept.Load() {
	case importsInside:
		return true, true, nil
	case importsOutside:
		return true, false, nil
	case importsNot:
		return false, false, nil
	}
	if errors.Is(r.heldBy(r.shards.slots[0].root, s), ErrNotOffered) {
		return false, false, nil // by a token with another root, under which nothing is made
	}
	return false, false, ErrUnavailable
}

// What a KeyRing keeps of an answer; 0 is none.
const (
	importsNot = iota + 1
	importsOutside
	importsInside
)

// importQuestion is the question to the first token what it imports.
type importQuestion struct {
	mu       sync.Mutex
	answered chan struct{} // closes with the answer; nil while there is no question
	at       time.Time     // of the last answer
}

// askImports has a token asked what it imports, unless it has just been, and waits for the answer at most Timeout. The module may hang: the caller has no
// seat, and nobody asks a second time meanwhile.
func (r *KeyRing) askImports(s keyspec.Spec) {
	sl := r.importer(s)
	if sl == nil {
		return
	}
	q := &r.importing
	q.mu.Lock()
	answered := q.answered
	if answered == nil && (q.at.IsZero() || time.Since(q.at) >= askEvery) {
		answered = make(chan struct{})
		q.answered = answered
		r.asked.Add(1)
		go func() {
			defer r.asked.Done()
			r.keepImports(sl.token)
			q.mu.Lock()
			q.answered, q.at = nil, time.Now()
			q.mu.Unlock()
			close(answered)
		}()
	}
	q.mu.Unlock()
	if answered == nil {
		return
	}
	late := time.NewTimer(r.cfg.Timeout)
	defer late.Stop()
	select {
	case <-answered:
	case <-late.C:
	}
}

// keepImports asks a token for everything and keeps what it answers.
func (r *KeyRing) keepImports(t Token) {
	token, is := t.(ImportToken)
	for i := range r.imports {
		s, w := keyspec.Spec(i/wrappings), keyspec.Wrapping(i%wrappings)
		if !Importable(s, w) || r.imports[i].Load() != 0 || r.known(s) == 0 {
			continue
		}
		answer := uint32(importsNot)
		if is {
			ok, inside, err := token.Imports(s, w)
			switch {
			case err != nil:
				r.cfg.Logger.Warn("the token cannot say what it imports", "spec", s.String(), "wrapping", w.String(), "err", err)
				continue
			case ok && inside:
				answer = importsInside
			case ok:
				answer = importsOutside
			}
		}
		r.imports[i].Store(answer)
	}
}

// wrappings is more than the wrappings that there are.
const wrappings = int(keyspec.WrapRSAAES256) + 1

// importer is the first slot that serves, of those with the first one's root.
func (r *KeyRing) importer(s keyspec.Spec) *slot {
	for _, sl := range r.shards.slots {
		if sl.root == r.shards.slots[0].root && sl.offers.of(s) != 0 && sl.state.Load() == serving {
			return sl
		}
	}
	return nil
}

// Import brings a key in from outside, on a token whose root wraps the RSA key, or in software where that is allowed and either the RSA key is a software
// key or no token offers the spec: the RSA key of a token then opens its part there, and the rest is done in this process. ErrMaterial is all that is said
// of bad material. Since some modules say of it what they say when they are broken, the token's canary is asked every time.
func (r *KeyRing) Import(s keyspec.Spec, wrapping *Key, w keyspec.Wrapping, material []byte) (k *Key, public []byte, err error) {
	if !Importable(s, w) || wrapping == nil || wrapping.Spec.Info().Family != keyspec.RSA {
		return nil, nil, ErrNotOffered
	}
	if len(material) > MaterialMax {
		return nil, nil, ErrMaterial
	}
	timer := time.NewTimer(r.cfg.GenerateTimeout)
	defer timer.Stop()
	if r.known(s) == 0 && !r.ask(s, timer.C) {
		return nil, nil, errGenerateTimeout
	}
	material = bytes.Clone(material) // a call that hangs reads it after the caller has it again
	switch {
	case wrapping.Software:
		return r.importInSoftware(s, timer, func() (m made, err error) {
			m.wrapped, m.public, err = r.cfg.Software.ImportKey(s, wrapping.Spec, wrapping.Wrapped, w, material)
			return m, err
		})
	case r.shards == nil:
		return nil, nil, ErrUnavailable // a token has made it that is not here
	case r.known(s) != 0:
		return r.importInToken(s, timer, wrapping, w, material)
	case r.anyIdle(s):
		return nil, nil, ErrUnavailable
	}
	return r.importInSoftware(s, timer, func() (m made, err error) {
		opened, rest, err := r.open(wrapping, w, material)
		if err != nil {
			return made{}, err
		}
		defer secret.Wipe(opened)
		m.wrapped, m.public, err = r.cfg.Software.ImportOpened(s, w, opened, rest)
		return m, err
	})
}

func (r *KeyRing) importInSoftware(s keyspec.Spec, timer *time.Timer, call func() (made, error)) (*Key, []byte, error) {
	if r.software == nil {
		return nil, nil, ErrNotOffered
	}
	m, err := r.inSoftware(timer, call)
	switch {
	case classOf(err).Has(actD): // of the RSA key
		return nil, nil, &unusable{err}
	case err != nil:
		return nil, nil, err
	}
	return &Key{Spec: s, Root: r.cfg.Root, Software: true, Wrapped: m.wrapped}, m.public, nil
}

func (r *KeyRing) importInToken(s keyspec.Spec, timer *time.Timer, wrapping *Key, w keyspec.Wrapping, material []byte) (*Key, []byte, error) {
	if err := r.heldBy(wrapping.Root, s); err != nil {
		return nil, nil, err
	}
	m, sl, err := r.inToken(s, timer, func(sl *slot) bool { return sl.root == wrapping.Root }, func(t KeyToken) (m made, err error) {
		token, ok := t.(ImportToken)
		if !ok {
			return made{}, ErrNotOffered
		}
		m.wrapped, m.public, err = token.ImportKey(s, wrapping.Spec, wrapping.Wrapped, w, material)
		return m, err
	})
	if f, ok := errors.AsType[*MaterialFault](err); ok && Final(f.Cause) == Throttled {
		err = f.Cause
	} else if errors.Is(err, ErrMaterial) {
		err = ErrMaterial
	}
	if err != nil {
		return nil, nil, err
	}
	return &Key{Spec: s, Root: sl.root, Wrapped: m.wrapped}, m.public, nil
}

// heldBy is nil if a token with the root offers the spec.
func (r *KeyRing) heldBy(root RootID, s keyspec.Spec) error {
	err := ErrNoRoot
	for _, sl := range r.shards.slots {
		if sl.root == root && sl.offers.of(s) != 0 {
			return nil
		} else if sl.root == root {
			err = ErrNotOffered
		}
	}
	return err
}

// open has a token's RSA key open its part of the material. opened is nil where the token refused it.
func (r *KeyRing) open(wrapping *Key, w keyspec.Wrapping, material []byte) (opened, rest []byte, err error) {
	size := wrapping.Spec.Info().Public
	if len(material) < size {
		return nil, nil, ErrMaterial
	}
	key := *wrapping
	key.ID = sha256.Sum256(wrapping.Wrapped) // it may have none
	defer r.Forget(key.ID)
	_, m := OAEPOf(w)
	j := &KeyJob{Key: &key, Mechanism: m, In: material[:size], Out: make([]byte, wrapping.Spec.Info().Result)}
	switch err := r.Run(j, time.Now()); {
	case err == nil:
		return j.Out[:j.N], material[size:], nil
	case Final(err) == DataError:
		return nil, material[size:], nil
	default:
		return nil, nil, err
	}
}

// Export wraps a key for another token's RSA public key, in a token whose root wraps it, or in software if it is a software key.
func (r *KeyRing) Export(k *Key, w keyspec.Wrapping, public []byte) (material []byte, err error) {
	if k == nil || !Importable(k.Spec, w) || !Hybrid(w) {
		return nil, ErrNotOffered
	}
	if _, err := PeerKey(public); err != nil {
		return nil, err
	}
	timer := time.NewTimer(r.cfg.GenerateTimeout)
	defer timer.Stop()
	var m made
	switch {
	case k.Software && r.software == nil:
		return nil, errSoftware
	case k.Software:
		m, err = r.inSoftware(timer, func() (m made, err error) {
			m.wrapped, err = r.cfg.Software.ExportKey(k.Spec, k.Wrapped, w, public)
			return m, err
		})
		if classOf(err).Has(actD) {
			err = &unusable{err}
		}
	case r.shards == nil:
		return nil, ErrUnavailable
	default:
		if err := r.heldBy(k.Root, k.Spec); err != nil {
			return nil, err
		}
		m, _, err = r.inToken(k.Spec, timer, func(sl *slot) bool { return sl.root == k.Root }, func(t KeyToken) (m made, err error) {
			token, ok := t.(ImportToken)
			if !ok {
				return made{}, ErrNotOffered
			}
			m.wrapped, err = token.ExportKey(k.Spec, k.Wrapped, w, public)
			return m, err
		})
	}
	return m.wrapped, err
}
