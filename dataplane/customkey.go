package dataplane

import (
	"errors"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// Keys in custom key stores, of both kinds: whose the store is to say that they can be used, and how often. Those of a CloudHSM key store are resident ones
// (residentkey.go), those of an external key store derived ones with an external key around them (externalkey.go).

// storeOf is the key store of a key that is in one, nil if this process knows of none: a view may have been made before the connection was.
func (s *Server) storeOf(k *keyView) KeyStore {
	if k.store != nil || s.parts.KeyStores == nil {
		return k.store
	}
	return s.parts.KeyStores.Store(k.Region, k.Account, k.Store.ID)
}

// chargeStore takes one request out of the rate of the key store that k is in, as charge does of an account's; once of a request whose two keys are in one store.
func (s *Server) chargeStore(r *request, k *keyView) kmsapi.Code {
	store := s.storeOf(k)
	if store == nil || store == r.charged {
		return kmsapi.OK
	}
	r.charged = store
	return r.chargeTo(store)
}

func (r *request) chargeTo(store KeyStore) kmsapi.Code {
	if store.Charge(r.now) {
		return kmsapi.OK
	}
	r.renewNow() // as in charge
	if store.Charge(r.now) {
		return kmsapi.OK
	}
	return r.refuse(kmsapi.Throttling)
}

// stateInStore is the state of a key in a custom key store whose own state is given: without the connection it cannot be used.
func (s *Server) stateInStore(k *keyView, state kmsapi.KeyState) kmsapi.KeyState {
	switch state {
	case kmsapi.StateEnabled, kmsapi.StateDisabled, kmsapi.StateUpdating:
		if store := s.storeOf(k); store == nil || store.External() != k.Store.External() || !store.Connected() {
			return kmsapi.StateUnavailable
		}
	}
	return state
}

// forgetCopies unloads the keys of a view in a CloudHSM key store.
func (s *Server) forgetCopies(k *keyView) {
	if k.resident == nil {
		return
	}
	store := s.storeOf(k)
	for i := range k.resident {
		if store != nil && k.resident[i].copies != nil {
			store.Forget(k.resident[i].copies)
		}
	}
}

// failStore is fail for an error of the key store of k, which may have an exception and a text of its own, or be disconnected meanwhile.
func (s *Server) failStore(r *request, k *keyView, err error) kmsapi.Code {
	if store := s.storeOf(k); store == nil || !store.Connected() {
		return r.unavailable(k)
	}
	return s.failNamed(r, err)
}

// failNamed is fail for an error that may be an exception.
func (s *Server) failNamed(r *request, err error) kmsapi.Code {
	var e *kmsapi.Error
	if errors.As(err, &e) {
		return r.refuseText(e.Code, e.Message)
	}
	return s.fail(r, err)
}

// unavailable refuses a key that could be used when the request arrived.
func (r *request) unavailable(k *keyView) kmsapi.Code {
	code, text := usable(kmsapi.StateUnavailable)
	r.msg = append(append(emptied(r.msg), k.ARN...), text...)
	return code
}

// refusedInStore refuses what no key in a custom key store does.
func (r *request) refusedInStore(k *keyView) kmsapi.Code {
	r.msg = append(append(emptied(r.msg), k.ARN...), " origin is "...)
	r.msg = append(append(r.msg, k.Facts.Origin...), " which is not valid for this operation."...)
	return kmsapi.UnsupportedOperation
}

// storeNamed finds the CloudHSM key store that a GenerateRandom names, one of the caller's account.
func (s *Server) storeNamed(r *request, id []byte) (KeyStore, kmsapi.Code) {
	var store KeyStore
	if s.parts.KeyStores != nil {
		store = s.parts.KeyStores.Store(r.region.name, r.who.Principal().Account, string(id))
	}
	if store == nil {
		return nil, r.refuseText(kmsapi.CustomKeyStoreNotFound, "The request was rejected because AWS KMS cannot find a custom key store with the specified key store name or ID.")
	}
	if code := r.chargeTo(store); code != kmsapi.OK {
		return nil, code
	}
	switch {
	case store.External():
		return nil, r.refuseText(kmsapi.UnsupportedOperation, "GenerateRandom is not supported by external key stores.")
	case !store.Connected():
		return nil, r.notConnected()
	}
	return store, kmsapi.OK
}

func (r *request) notConnected() kmsapi.Code {
	return r.refuseText(kmsapi.CustomKeyStoreInvalidState, "The request was rejected because the custom key store is not connected. Connect the custom key store and try the request again.")
}

// randomOf fills r.plain from a key store.
func (s *Server) randomOf(r *request, store KeyStore) kmsapi.Code {
	if code := s.likely(r); code != kmsapi.OK {
		return code
	}
	err := store.Random(r.plain)
	switch {
	case err == nil:
		return kmsapi.OK
	case !store.Connected():
		return r.notConnected()
	}
	return s.failNamed(r, err)
}
