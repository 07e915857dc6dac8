package dataplane

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// memberTypes are the members as a general decoder needs them.
var memberTypes = []struct {
	name string
	m    member
	typ  any
}{
	{"KeyId", mKeyID, (*string)(nil)}, {"SourceKeyId", mSourceKeyID, (*string)(nil)}, {"DestinationKeyId", mDestKeyID, (*string)(nil)},
	{"Plaintext", mPlaintext, (*[]byte)(nil)}, {"CiphertextBlob", mCiphertextBlob, (*[]byte)(nil)},
	{"EncryptionContext", mContext, (*map[string]*string)(nil)}, {"SourceEncryptionContext", mSourceContext, (*map[string]*string)(nil)},
	{"DestinationEncryptionContext", mDestContext, (*map[string]*string)(nil)},
	{"EncryptionAlgorithm", mAlgorithm, (*string)(nil)}, {"SourceEncryptionAlgorithm", mSourceAlgorithm, (*string)(nil)},
	{"DestinationEncryptionAlgorithm", mDestAlgorithm, (*string)(nil)}, {"GrantTokens", mGrantTokens, (*[]*string)(nil)},
	{"DryRun", mDryRun, (*bool)(nil)}, {"DryRunModifiers", mDryRunModifiers, (*[]*string)(nil)}, {"KeySpec", mKeySpec, (*string)(nil)},
	{"NumberOfBytes", mNumberOfBytes, (*int64)(nil)}, {"CustomKeyStoreId", mCustomKeyStoreID, (*string)(nil)},
	{"Message", mMessage, (*[]byte)(nil)}, {"MessageType", mMessageType, (*string)(nil)}, {"SigningAlgorithm", mSigningAlgorithm, (*string)(nil)},
	{"Signature", mSignature, (*[]byte)(nil)}, {"MacAlgorithm", mMacAlgorithm, (*string)(nil)}, {"Mac", mMac, (*[]byte)(nil)},
	{"KeyAgreementAlgorithm", mKeyAgreementAlgorithm, (*string)(nil)}, {"PublicKey", mPublicKey, (*[]byte)(nil)},
	{"EncapsulationAlgorithm", mEncapsulationAlgorithm, (*string)(nil)}, {"SharedSecretCiphertextBlob", mSharedSecretBlob, (*[]byte)(nil)},
	{"KeyPairSpec", mKeyPairSpec, (*string)(nil)},
	{"Recipient", mRecipient, (*struct {
		KeyEncryptionAlgorithm *string
		AttestationDocument    *[]byte
	})(nil)},
}

// structOf is a type with the members of an operation, all of them pointers that stay nil for what is absent or null.
func structOf(op *operation) reflect.Type {
	var fields []reflect.StructField
	for _, m := range memberTypes {
		if op.members&m.m != 0 {
			fields = append(fields, reflect.StructField{Name: m.name, Type: reflect.TypeOf(m.typ)})
		}
	}
	return reflect.StructOf(fields)
}

// Every name that the plane knows has a type above, and the other way round.
func TestMemberTypes(t *testing.T) {
	var all member
	for _, m := range memberTypes {
		if memberOf([]byte(m.name)) != m.m || all&m.m != 0 {
			t.Errorf("%s is %b", m.name, memberOf([]byte(m.name)))
		}
		all |= m.m
	}
	for i := range operations {
		if extra := operations[i].members &^ all; extra != 0 {
			t.Errorf("%s has a member without a type: %b", operations[i].Name, extra)
		}
		if operations[i].required&^operations[i].members != 0 {
			t.Errorf("%s requires what it does not have", operations[i].Name)
		}
	}
}

// FuzzInput: the decoder of each operation and a general one (encoding/json/v2) see the same in a body, or both refuse it.
func FuzzInput(f *testing.F) {
	for op := range operations {
		for _, body := range []string{
			``, `null`, `{}`, ` { "KeyId" : "k" , "DryRun" : true } `, `{"KeyId":"a\u0062\n","Plaintext":"aGVsbG8=","CiphertextBlob":"AAAA"}`,
			`{"EncryptionContext":{"b":"2","a":"1"},"SourceEncryptionContext":{"\u00e9":""},"DestinationEncryptionContext":{}}`,
			`{"EncryptionContext":{"a":null},"GrantTokens":["a",null,""],"DryRunModifiers":["IGNORE_CIPHERTEXT","x"]}`,
			`{"NumberOfBytes":1024,"KeySpec":"AES_256","CustomKeyStoreId":"c","DestinationKeyId":"d","SourceKeyId":"s"}`,
			`{"NumberOfBytes":-9223372036854775808}`, `{"NumberOfBytes":9223372036854775808}`, `{"NumberOfBytes":1.0}`, `{"NumberOfBytes":-0}`,
			`{"Recipient":{"KeyEncryptionAlgorithm":"RSAES_OAEP_SHA_256","AttestationDocument":"AAAA","x":[{}]}}`, `{"Recipient":null,"GrantTokens":null}`,
			`{"KeyId":"a","KeyId":"b"}`, `{"keyid":1,"X":{"KeyId":2}}`, `{"KeyId":"\ud83d\ude00"}`, `{"KeyId":"\ud800"}`, "{\"KeyId\":\"\xff\"}", `{"DryRun":"true"}`, `[]`, `{"a":1}{}`,
			`{"Message":"aGVsbG8=","MessageType":"DIGEST","SigningAlgorithm":"ECDSA_SHA_256","Signature":"AAAA","MacAlgorithm":null,"Mac":""}`,
			`{"MacAlgorithm":"HMAC_SHA_256","Mac":"AAAA","KeyAgreementAlgorithm":"ECDH","PublicKey":"MFkw","EncapsulationAlgorithm":"ML_KEM"}`,
			`{"SharedSecretCiphertextBlob":"AAAA","EncapsulationAlgorithm":"\u004dL_KEM","KeyPairSpec":"RSA_2048"}`,
			`{"EncryptionAlgorithm":"SYMMETRIC_DEFAULT","SourceEncryptionAlgorithm":"a","DestinationEncryptionAlgorithm":"b","DryRun":false}`,
		} {
			f.Add(uint8(op), []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, n uint8, body []byte) {
		if len(body) > kmsapi.BodyMax {
			return
		}
		r := (&requestPool{}).acquire()
		r.op = &operations[int(n)%len(operations)]
		code := r.in.scan(r, bytes.Clone(body))
		if code == kmsapi.Validation {
			return // a limit of ours that the other decoder does not have
		}
		want := reflect.New(structOf(r.op))
		var err error
		if len(body) > 0 { // an empty body is an empty object
			err = json.Unmarshal(body, want.Interface())
		}
		if (code == kmsapi.OK) != (err == nil) {
			t.Fatalf("%s: we say %v %s, the other decoder %v\n%q", r.op.Name, code, r.msg, err, body)
		}
		if code == kmsapi.OK {
			compareInput(t, &r.in, want.Elem())
		}
		r.in.check(r) // never panics
	})
}

func compareInput(t *testing.T, in *input, want reflect.Value) {
	t.Helper()
	text := map[member][]byte{mKeyID: in.keyID, mSourceKeyID: in.keyID, mDestKeyID: in.destKeyID, mPlaintext: in.plaintext, mCiphertextBlob: in.ciphertextBlob,
		mAlgorithm: in.algorithm, mSourceAlgorithm: in.algorithm, mDestAlgorithm: in.destAlgorithm, mKeySpec: in.keySpec, mCustomKeyStoreID: in.customKeyStoreID,
		mMessage: in.message, mMessageType: in.messageType, mSigningAlgorithm: in.algorithm, mSignature: in.signature, mMacAlgorithm: in.algorithm, mMac: in.mac,
		mKeyAgreementAlgorithm: in.algorithm, mPublicKey: in.publicKey, mEncapsulationAlgorithm: in.algorithm, mSharedSecretBlob: in.ciphertextBlob, mKeyPairSpec: in.keyPairSpec}
	for i := range want.NumField() {
		name := want.Type().Field(i).Name
		m := memberOf([]byte(name))
		if has := in.has&m != 0; has == want.Field(i).IsNil() {
			t.Fatalf("%s: present %v", name, has)
		}
		if want.Field(i).IsNil() {
			continue
		}
		ok := true
		switch v := want.Field(i).Elem().Interface().(type) {
		case string:
			ok = string(text[m]) == v
		case []byte:
			ok = bytes.Equal(text[m], v)
		case bool:
			ok = in.dryRun == v
		case int64:
			ok = in.numberOfBytes == v
		case map[string]*string:
			c := &in.context
			if m == mDestContext {
				c = &in.destContext
			}
			ok = equalContext(in, c, m, v)
		case []*string:
			ok = equalList(in, m, v)
		default:
			r := want.Field(i).Elem()
			ok = equalPointer(in.recipientAlg, r.Field(0)) && equalPointer(in.recipientDoc, r.Field(1))
		}
		if !ok {
			t.Fatalf("%s differs from %v", name, want.Field(i).Elem())
		}
	}
}

func equalContext(in *input, c *blob.Context, m member, want map[string]*string) bool {
	pairs := map[string]string{}
	for k, v := range want {
		if v != nil {
			pairs[k] = *v
		}
	}
	if null := len(pairs) < len(want); null != (in.contextNull&m != 0) {
		return false
	}
	// Pairs beyond the limits are not kept, and the request is refused for them.
	return in.contextFault != blob.FaultNone || bytes.Equal(c.AppendTo(nil), canonical(pairs))
}

func equalList(in *input, m member, want []*string) bool {
	if m == mDryRunModifiers {
		ignore, bad := false, 0
		for i, v := range want {
			if v != nil && *v == "IGNORE_CIPHERTEXT" {
				ignore = true
			} else if bad == 0 {
				bad = i + 1
			}
		}
		return in.ignoreCiphertext == ignore && in.badModifierAt == bad
	}
	bad := 0
	for i, v := range want {
		if bad == 0 && (v == nil || *v == "" || len(*v) > kmsapi.GrantTokenMax) {
			bad = i + 1
		}
	}
	return in.grantTokens == len(want) && in.badToken == bad
}

func equalPointer(got []byte, want reflect.Value) bool {
	if want.IsNil() {
		return got == nil
	}
	switch v := want.Elem().Interface().(type) {
	case string:
		return string(got) == v
	case []byte:
		return bytes.Equal(got, v)
	}
	return false
}
