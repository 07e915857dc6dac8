package p11

import (
	"bytes"
	"crypto/aes"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"errors"
	"fmt"
	"hash"
	"sync"
	"sync/atomic"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
	"github.com/miekg/pkcs11"
)

// knowledge is what has been found out about keys of one spec.
type knowledge struct {
	mu    sync.Mutex // single flight
	offer atomic.Pointer[keyOffer]
}

// keyOffer is what the token can do with keys of a spec.
type keyOffer struct {
	mechanisms hsm.Mechanisms
	raw        hsm.Mechanisms // those of them that are a raw decryption, and a decoding of ours
	missing    []string       // mechanism, or "keys": why not
}

// Keys tries, once: it makes a key, wraps and unwraps it, and uses it with every mechanism that keys of the spec could have. Larger RSA keys
// are said to do what those of 2048 bits do, if the token has the size. A token that was lost meanwhile has not answered and is asked again.
func (t *Token) Keys(s keyspec.Spec) hsm.Mechanisms {
	o, err := t.keyOffer(s)
	if err != nil {
		return 0
	}
	return o.mechanisms
}

// offers is nil for specs that Keys says something of.
func (t *Token) offers(s keyspec.Spec) error {
	o, err := t.keyOffer(s)
	if err == nil && o.mechanisms == 0 {
		return fmt.Errorf("%w: %s: %s", hsm.ErrNotOffered, s, o.missing)
	}
	return err
}

// knowledgeOf is that of None for a number that is no spec's.
func (t *Token) knowledgeOf(s keyspec.Spec) *knowledge {
	if int(s) >= len(t.known) {
		s = keyspec.None
	}
	return &t.known[s]
}

func (t *Token) keyOffer(s keyspec.Spec) (*keyOffer, error) {
	k := t.knowledgeOf(s)
	if o := k.offer.Load(); o != nil {
		return o, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if o := k.offer.Load(); o != nil {
		return o, nil
	}
	o, err := t.tryKeys(s)
	if err == nil {
		k.offer.Store(o)
	}
	return o, err
}

// passing says whether a refusal tells of the token's state and not of what it can do.
func passing(code hsm.CKR) bool {
	switch code {
	case hsm.CKR_HOST_MEMORY, hsm.CKR_DEVICE_ERROR, hsm.CKR_DEVICE_MEMORY, hsm.CKR_TOKEN_RESOURCE_EXCEEDED, hsm.CKR_FUNCTION_CANCELED:
		return true
	}
	return lost(code) || code >= hsm.CKR_VENDOR_DEFINED
}

// lost says whether a refusal tells that the token, the login, the session or a handle is not there any more, which no input brings about.
func lost(code hsm.CKR) bool {
	switch code {
	case hsm.CKR_DEVICE_REMOVED, hsm.CKR_TOKEN_NOT_PRESENT, hsm.CKR_TOKEN_NOT_RECOGNIZED, hsm.CKR_SLOT_ID_INVALID, hsm.CKR_SESSION_HANDLE_INVALID,
		hsm.CKR_SESSION_CLOSED, hsm.CKR_SESSION_COUNT, hsm.CKR_USER_NOT_LOGGED_IN, hsm.CKR_OPERATION_ACTIVE, hsm.CKR_PENDING,
		hsm.CKR_CRYPTOKI_NOT_INITIALIZED, hsm.CKR_OBJECT_HANDLE_INVALID, hsm.CKR_KEY_HANDLE_INVALID, hsm.CKR_WRAPPING_KEY_HANDLE_INVALID,
		hsm.CKR_UNWRAPPING_KEY_HANDLE_INVALID:
		return true
	}
	return false
}

// refuses says whether an error is the token's answer to what it was asked to do.
func refuses(err error) bool {
	if e, ok := errors.AsType[*hsm.Error](err); ok {
		return !passing(e.CKR)
	}
	return errors.Is(err, hsm.ErrWrong) || errors.Is(err, hsm.ErrKeyRefused)
}

func (t *Token) tryKeys(s keyspec.Spec) (*keyOffer, error) {
	switch {
	case mechanismsOf(s) == nil:
		return &keyOffer{missing: []string{"keys: there is no binding for their mechanisms"}}, nil
	case s.Info().Family == keyspec.RSA && s != keyspec.RSA2048:
		return t.largerRSA(s)
	}
	o := &keyOffer{}
	err := t.withKeySession(func(slot uint, session pkcs11.SessionHandle) error {
		root, err := t.findRoot(session, wrappingRoot)
		standIn := errors.Is(err, hsm.ErrNoRoots)
		if standIn {
			root, err = t.standIn(session)
		}
		if err != nil {
			return err
		}
		made, err := t.makeKey(slot, session, root, s)
		if err != nil {
			return err
		}
		if s == keyspec.RSA2048 && !standIn {
			t.probing.Store(&made)
		}
		key, err := t.unwrap(session, root, s, made.wrapped)
		if err != nil {
			return err
		}
		defer t.mod.ctx.DestroyObject(session, key)
		for _, m := range mechanismsOf(s) {
			if err := t.tryMechanism(slot, o, s, m, &made, key); err != nil {
				return err
			}
		}
		return nil
	})
	if refuses(err) {
		*o, err = keyOffer{missing: []string{"keys: " + err.Error()}}, nil
	}
	return o, err
}

// standIn is a session key that takes the place of a wrapping root that is not there yet.
func (t *Token) standIn(session pkcs11.SessionHandle) (pkcs11.ObjectHandle, error) {
	template := wrappingRoot.template(true, false)
	for i, a := range template {
		if a.Type == pkcs11.CKA_TOKEN {
			template[i] = pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false)
		}
	}
	root, err := t.mod.ctx.GenerateKey(session, mech(pkcs11.CKM_AES_KEY_GEN, nil), template)
	return root, failed("C_GenerateKey", err)
}

// largerRSA says of larger keys what is known of the smallest, if the token's generator makes them. Making one to see takes seconds.
func (t *Token) largerRSA(s keyspec.Spec) (*keyOffer, error) {
	smallest, err := t.keyOffer(keyspec.RSA2048)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	slot := t.slot
	t.mu.Unlock()
	t.mod.mu.RLock()
	info, err := t.mod.ctx.GetMechanismInfo(slot, mech(pkcs11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil))
	t.mod.mu.RUnlock()
	switch err = failed("C_GetMechanismInfo", err); {
	case err != nil && !refuses(err):
		return nil, err
	case err == nil && smallest.mechanisms != 0 && info.MaxKeySize < uint(s.Info().Bits):
		return &keyOffer{missing: []string{fmt.Sprintf("keys: the largest has %d bits", info.MaxKeySize)}}, nil
	}
	return smallest, nil
}

// tryMechanism notes whether the mechanism works. The error is one that is no answer. Each try has a session of its own, because a refused
// operation may stay active on its session and spoil the next.
func (t *Token) tryMechanism(slot uint, o *keyOffer, s keyspec.Spec, m hsm.Mechanism, made *madeKey, key pkcs11.ObjectHandle) error {
	var reason error
	for _, raw := range []bool{false, true} {
		if raw && m != hsm.DecryptOAEP1 && m != hsm.DecryptOAEP256 {
			break
		}
		session, err := t.openKeySession(slot, false)
		if err != nil {
			return err
		}
		err = t.checkUse(s, m, raw, made, uint(session), uint(key))
		_ = t.mod.ctx.CloseSession(session) // it may have an operation left
		switch {
		case err == nil:
			o.mechanisms = o.mechanisms.With(m)
			if raw {
				o.raw = o.raw.With(m)
			}
			return nil
		case !refuses(err):
			return err
		case reason == nil:
			reason = err
		}
	}
	o.missing = append(o.missing, fmt.Sprintf("%s: %v", mechanismNamesOf[m], reason))
	return nil
}

// mechanismNamesOf are for reports.
var mechanismNamesOf = map[hsm.Mechanism]string{
	hsm.SignPKCS1: "SignPKCS1", hsm.SignPSS256: "SignPSS256", hsm.SignPSS384: "SignPSS384", hsm.SignPSS512: "SignPSS512",
	hsm.SignECDSA: "SignECDSA", hsm.SignEd25519: "SignEd25519", hsm.SignEd25519ph: "SignEd25519ph", hsm.SignMLDSA: "SignMLDSA", hsm.MAC: "MAC",
	hsm.EncryptBlocks: "EncryptBlocks", hsm.DecryptOAEP1: "DecryptOAEP1", hsm.DecryptOAEP256: "DecryptOAEP256", hsm.DeriveECDH: "DeriveECDH", hsm.DecapsulateMLKEM: "DecapsulateMLKEM",
}

// checkUse does one operation with a key and holds the result to the public half; that of a secret key to what the key gave before it was
// wrapped. It needs mod.mu.
func (t *Token) checkUse(s keyspec.Spec, m hsm.Mechanism, raw bool, made *madeKey, session, key uint) error {
	out := make([]byte, s.Info().Result)
	defer clear(out)
	use := func(in []byte) ([]byte, error) {
		n, err := t.mod.fns.operate(session, key, s, m, raw, in, out, make([]byte, s.Info().Public))
		return out[:n], err
	}
	var good bool
	var err error
	if secretKey(s.Info().Family) {
		_, in := secretUse(s)
		var image []byte
		if image, err = use(in); err == nil && hmac.Equal(image, made.mac) {
			good, err = t.checkSecret(s, session)
		}
	} else {
		var public *pubkey.Key
		if public, err = pubkey.Parse(s, made.public); err != nil {
			return err
		}
		switch m {
		case hsm.DecryptOAEP1:
			good, err = checkOAEP(public, keyspec.OAEPSHA1, use)
		case hsm.DecryptOAEP256:
			good, err = checkOAEP(public, keyspec.OAEPSHA256, use)
		case hsm.DeriveECDH:
			good, err = checkECDH(public, use)
		default:
			good, err = checkSignature(public, m, use)
		}
	}
	if err == nil && !good {
		err = fmt.Errorf("p11: %w: %s by a key for %s", hsm.ErrWrong, mechanismNamesOf[m], s)
	}
	return err
}

// algorithmOf is an algorithm of the API for which a key of the spec uses the mechanism to sign.
func algorithmOf(s keyspec.Spec, m hsm.Mechanism) keyspec.Algorithm {
	switch m {
	case hsm.SignPKCS1:
		return keyspec.PKCS1SHA256
	case hsm.SignPSS256:
		return keyspec.PSSSHA256
	case hsm.SignPSS384:
		return keyspec.PSSSHA384
	case hsm.SignPSS512:
		return keyspec.PSSSHA512
	case hsm.SignEd25519ph:
		return keyspec.Ed25519PHSHA512
	}
	return s.Algorithms(keyspec.SignVerify)[0]
}

func checkSignature(public *pubkey.Key, m hsm.Mechanism, use func([]byte) ([]byte, error)) (bool, error) {
	a := algorithmOf(public.Spec(), m)
	message, kind := macMessage, pubkey.RAW
	if m == hsm.SignEd25519ph {
		message, kind = bytes.Repeat(macMessage, 64/len(macMessage)), pubkey.DIGEST
	}
	in, ok := pubkey.Prepare(a, kind, public, message, make([]byte, pubkey.PreparedMax))
	if !ok {
		return false, nil
	}
	sig, err := use(in)
	return err == nil && public.Verify(a, kind, message, pubkey.AppendSignature(nil, a, sig)), err
}

// checkOAEP has a ciphertext decrypted, and one that is none refused.
func checkOAEP(public *pubkey.Key, a keyspec.Algorithm, use func([]byte) ([]byte, error)) (bool, error) {
	sealed := make([]byte, public.Spec().Info().Public)
	if _, err := public.EncryptOAEP(a, macMessage, sealed); err != nil {
		return false, err
	}
	opened, err := use(sealed)
	if err != nil || !bytes.Equal(opened, macMessage) {
		return false, err
	}
	_, err = use(bytes.Repeat([]byte{1}, len(sealed)))
	if e, ok := errors.AsType[*hsm.Error](err); ok && e.Function == "C_Decrypt" && !passing(e.CKR) {
		return true, nil
	}
	return false, err
}

func checkECDH(public *pubkey.Key, use func([]byte) ([]byte, error)) (bool, error) {
	curve := map[keyspec.Spec]ecdh.Curve{keyspec.P256: ecdh.P256(), keyspec.P384: ecdh.P384(), keyspec.P521: ecdh.P521()}[public.Spec()]
	own, err := curve.NewPublicKey(public.Raw())
	if err != nil {
		return false, err
	}
	peer, err := curve.GenerateKey(rand.Reader)
	if err != nil {
		return false, err
	}
	want, err := peer.ECDH(own)
	if err != nil {
		return false, err
	}
	got, err := use(peer.PublicKey().Bytes())
	return subtle.ConstantTimeCompare(got, want) == 1, err
}

// checkSecret compares with a key whose value is known, because no generated one's is. A token that lets no key in cannot be asked.
func (t *Token) checkSecret(s keyspec.Spec, session uint) (bool, error) {
	value := bytes.Repeat([]byte{0x6b}, s.Info().Bits/8)
	template := append(keyTemplate(s, false), pkcs11.NewAttribute(pkcs11.CKA_VALUE, value))
	brought, err := t.mod.ctx.CreateObject(pkcs11.SessionHandle(session), template)
	if err != nil {
		if err = failed("C_CreateObject", err); refuses(err) {
			err = nil
		}
		return true, err
	}
	defer t.mod.ctx.DestroyObject(pkcs11.SessionHandle(session), brought)
	m, in := secretUse(s)
	out := make([]byte, s.Info().Result)
	n, err := t.mod.fns.operate(session, uint(brought), s, m, false, in, out, nil)
	if err != nil {
		return false, err
	}
	return hmac.Equal(out[:n], secretImage(s, value)), nil
}

// secretImage is what a secret key of a known value gives of what secretUse has it do.
func secretImage(s keyspec.Spec, value []byte) []byte {
	_, in := secretUse(s)
	if s.Info().Family == keyspec.AES {
		block, err := aes.NewCipher(value)
		if err != nil {
			return nil
		}
		image := make([]byte, aes.BlockSize)
		block.Encrypt(image, in)
		return image
	}
	h := hmac.New([]func() hash.Hash{sha256.New224, sha256.New, sha512.New384, sha512.New}[s-keyspec.HMAC224], value)
	h.Write(in)
	return h.Sum(nil)
}
