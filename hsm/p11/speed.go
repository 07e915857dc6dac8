package p11

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
	"github.com/miekg/pkcs11"
)

// SpeedOf measures the module itself: how many operations a second it does with one key in a plain loop of C_…Init and C_… on each of so many
// sessions, for about d. The key is a session object that is generated for it and not wrapped, so the token needs no roots.
func SpeedOf(uri string, s keyspec.Spec, m hsm.Mechanism, sessions int, d time.Duration) (perSecond float64, err error) {
	if sessions < 1 || !hasMechanism(s, m) {
		return 0, fmt.Errorf("p11: %w: mechanism %d with a key for %s on %d sessions", hsm.ErrNotOffered, m, s, sessions)
	}
	t, err := open(uri)
	if err != nil {
		return 0, err
	}
	defer t.Close()
	err = t.withKeySession(func(slot uint, session pkcs11.SessionHandle) error {
		public, private, err := t.generateKey(session, s)
		if err != nil {
			return err
		}
		var spki []byte
		if public != 0 {
			if spki, err = t.publicOf(session, public, s); err != nil {
				return err
			}
		}
		in, err := speedInput(s, m, spki)
		if err != nil {
			return err
		}
		loop := speedLoop{t: t, spec: s, mechanism: m, key: uint(private), in: in}
		// Where the module does not have the hash, what the layer above gets is the raw decryption.
		loop.raw = (m == hsm.DecryptOAEP1 || m == hsm.DecryptOAEP256) && !loop.works(slot)
		perSecond, err = loop.run(slot, sessions, d)
		return err
	})
	return perSecond, err
}

func hasMechanism(s keyspec.Spec, m hsm.Mechanism) bool {
	return slices.Contains(mechanismsOf(s), m)
}

// speedInput is an input that the mechanism takes. public is DER SubjectPublicKeyInfo, nil for HMAC.
func speedInput(s keyspec.Spec, m hsm.Mechanism, public []byte) ([]byte, error) {
	switch m {
	case hsm.MAC, hsm.EncryptBlocks:
		return bytes.Repeat([]byte{1}, 32), nil
	case hsm.SignEd25519ph:
		return bytes.Repeat([]byte{1}, 64), nil
	}
	key, err := pubkey.Parse(s, public)
	if err != nil {
		return nil, err
	}
	a := keyspec.OAEPSHA1
	switch m {
	case hsm.DeriveECDH:
		return key.Raw(), nil
	case hsm.DecryptOAEP256:
		a = keyspec.OAEPSHA256
		fallthrough
	case hsm.DecryptOAEP1:
		sealed := make([]byte, s.Info().Public)
		_, err := key.EncryptOAEP(a, macMessage, sealed)
		return sealed, err
	}
	in, ok := pubkey.Prepare(algorithmOf(s, m), pubkey.RAW, key, bytes.Repeat([]byte{1}, 32), make([]byte, pubkey.PreparedMax))
	if !ok {
		return nil, errors.New("p11: the message was refused")
	}
	return in, nil
}

// speedLoop is what each session does.
type speedLoop struct {
	t         *Token
	spec      keyspec.Spec
	mechanism hsm.Mechanism
	raw       bool
	key       uint
	in        []byte
}

func (l *speedLoop) use(session pkcs11.SessionHandle, out, block []byte) error {
	_, err := l.t.mod.fns.operate(uint(session), l.key, l.spec, l.mechanism, l.raw, l.in, out, block)
	return err
}

// works says whether the operation works, on a session of its own, which a refusal may spoil.
func (l *speedLoop) works(slot uint) bool {
	session, err := l.t.openKeySession(slot, false)
	if err != nil {
		return false
	}
	defer l.t.mod.ctx.CloseSession(session)
	return l.use(session, make([]byte, l.spec.Info().Result), make([]byte, l.spec.Info().Public)) == nil
}

// run has the sessions work until d is over and counts what they did.
func (l *speedLoop) run(slot uint, sessions int, d time.Duration) (float64, error) {
	var wg sync.WaitGroup
	var done atomic.Int64
	faults := make(chan error, sessions)
	handles := make([]pkcs11.SessionHandle, 0, sessions)
	defer func() {
		for _, session := range handles {
			_ = l.t.mod.ctx.CloseSession(session)
		}
	}()
	for range sessions {
		session, err := l.t.openKeySession(slot, false)
		if err != nil {
			return 0, err
		}
		handles = append(handles, session)
	}
	start := time.Now()
	for _, session := range handles {
		wg.Go(func() {
			out, block := make([]byte, l.spec.Info().Result), make([]byte, l.spec.Info().Public)
			n := int64(0)
			for ; n == 0 || time.Since(start) < d; n++ {
				if err := l.use(session, out, block); err != nil {
					faults <- err
					return
				}
			}
			done.Add(n)
		})
	}
	wg.Wait()
	select {
	case err := <-faults:
		return 0, err
	default:
		return float64(done.Load()) / time.Since(start).Seconds(), nil
	}
}
