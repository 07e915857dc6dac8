package dataplane

import (
	"strings"

	"github.com/keyplane/keyplane/internal/bytesconv"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// getPublicKey: the public half of an asymmetric key as DER SubjectPublicKeyInfo, also while the key is disabled. Errors in the order of test: docs/errors.md.
func (s *Server) getPublicKey(r *request) kmsapi.Code {
	var alias []byte
	var code kmsapi.Code
	if r.key, alias, code = s.resolve(r, r.in.keyID, r.op.action); code != kmsapi.OK {
		return code
	}
	if code = s.authorizeUse(r, r.key, alias); code != kmsapi.OK {
		return code
	}
	if code = s.admitTokens(r); code != kmsapi.OK {
		return code
	}
	k := r.key
	if k.spec.Info().Public == 0 {
		r.msg = append(append(emptied(r.msg), k.ARN...), " key spec is "...)
		r.msg = append(append(r.msg, k.Spec...), " which is not valid for GetPublicKey."...)
		return kmsapi.UnsupportedOperation
	}
	if code = s.admitPublic(r, k); code != kmsapi.OK {
		return code
	}
	r.beginBody()
	r.member("CustomerMasterKeySpec", bytesconv.Bytes(k.Spec))
	list := &algorithmLists[k.spec][k.usage]
	r.memberName(list.member)
	r.out = append(r.out, list.json...)
	r.member("KeyId", k.ARN)
	r.member("KeySpec", bytesconv.Bytes(k.Spec))
	r.member("KeyUsage", bytesconv.Bytes(k.Usage))
	r.memberBlob("PublicKey", k.public.SPKI())
	r.endBody()
	return kmsapi.OK
}

// admitPublic is the row of the key-state matrix for GetPublicKey.
func (s *Server) admitPublic(r *request, k *keyView) kmsapi.Code {
	state := k.StateAt(r.date)
	if state == kmsapi.StateDisabled || state == kmsapi.StatePendingImport && k.public != nil {
		return kmsapi.OK
	}
	code, text := usable(state)
	if code != kmsapi.OK {
		r.msg = append(append(emptied(r.msg), k.ARN...), text...)
	}
	return code
}

// algorithmList is the member of a reply that lists what a key can do.
type algorithmList struct{ member, json string }

var algorithmLists = func() (lists [keyspec.MLKEM1024 + 1][keyspec.EncapsulateDecapsulate + 1]algorithmList) {
	members := map[keyspec.Usage]string{keyspec.EncryptDecrypt: "EncryptionAlgorithms", keyspec.SignVerify: "SigningAlgorithms",
		keyspec.KeyAgreement: "KeyAgreementAlgorithms", keyspec.EncapsulateDecapsulate: "EncapsulationAlgorithms"}
	for _, s := range keyspec.All() {
		for u, member := range members {
			var names []string
			for _, a := range s.Algorithms(u) {
				names = append(names, `"`+a.String()+`"`)
			}
			lists[s][u] = algorithmList{member, "[" + strings.Join(names, ",") + "]"}
		}
	}
	return lists
}()
