package dataplane

import (
	"strconv"

	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/granttoken"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// member is a set of request members.
type member uint32

const (
	mKeyID member = 1 << iota
	mSourceKeyID
	mDestKeyID
	mPlaintext
	mCiphertextBlob
	mContext
	mSourceContext
	mDestContext
	mAlgorithm
	mSourceAlgorithm
	mDestAlgorithm
	mGrantTokens
	mDryRun
	mDryRunModifiers
	mKeySpec
	mNumberOfBytes
	mRecipient
	mCustomKeyStoreID
	mMessage
	mMessageType
	mSigningAlgorithm
	mSignature
	mMacAlgorithm
	mMac
	mKeyAgreementAlgorithm
	mPublicKey
	mEncapsulationAlgorithm
	mSharedSecretBlob
	mKeyPairSpec
)

// memberOf names the members of all operations of this plane.
func memberOf(name []byte) member {
	switch string(name) {
	case "KeyId":
		return mKeyID
	case "SourceKeyId":
		return mSourceKeyID
	case "DestinationKeyId":
		return mDestKeyID
	case "Plaintext":
		return mPlaintext
	case "CiphertextBlob":
		return mCiphertextBlob
	case "EncryptionContext":
		return mContext
	case "SourceEncryptionContext":
		return mSourceContext
	case "DestinationEncryptionContext":
		return mDestContext
	case "EncryptionAlgorithm":
		return mAlgorithm
	case "SourceEncryptionAlgorithm":
		return mSourceAlgorithm
	case "DestinationEncryptionAlgorithm":
		return mDestAlgorithm
	case "GrantTokens":
		return mGrantTokens
	case "DryRun":
		return mDryRun
	case "DryRunModifiers":
		return mDryRunModifiers
	case "KeySpec":
		return mKeySpec
	case "NumberOfBytes":
		return mNumberOfBytes
	case "Recipient":
		return mRecipient
	case "CustomKeyStoreId":
		return mCustomKeyStoreID
	case "Message":
		return mMessage
	case "MessageType":
		return mMessageType
	case "SigningAlgorithm":
		return mSigningAlgorithm
	case "Signature":
		return mSignature
	case "MacAlgorithm":
		return mMacAlgorithm
	case "Mac":
		return mMac
	case "KeyAgreementAlgorithm":
		return mKeyAgreementAlgorithm
	case "PublicKey":
		return mPublicKey
	case "EncapsulationAlgorithm":
		return mEncapsulationAlgorithm
	case "SharedSecretCiphertextBlob":
		return mSharedSecretBlob
	case "KeyPairSpec":
		return mKeyPairSpec
	}
	return 0
}

// input holds the members of one request. Slices alias the body, which scanning changes; nil is absent.
type input struct {
	members
	context     blob.Context // EncryptionContext, or ReEncrypt's SourceEncryptionContext
	destContext blob.Context
}

// members are what is cleared between requests in one go; the contexts, 3 KiB each, clear what they used.
type members struct {
	has              member
	keyID            []byte // KeyId, or ReEncrypt's SourceKeyId
	destKeyID        []byte
	plaintext        []byte
	ciphertextBlob   []byte     // or SharedSecretCiphertextBlob
	contextFault     blob.Fault // the first of either context
	contextFaultOf   member     // whose it is
	contextNull      member     // contexts that have a value of null
	algorithm        []byte     // EncryptionAlgorithm, or SourceEncryptionAlgorithm; of other operations the one algorithm that they name
	destAlgorithm    []byte
	message          []byte
	messageType      []byte
	signature        []byte
	mac              []byte
	publicKey        []byte
	keySpec          []byte
	keyPairSpec      []byte
	numberOfBytes    int64
	customKeyStoreID []byte
	dryRun           bool
	ignoreCiphertext bool
	grantTokens      int
	badToken         int  // position, from 1, of the first token of a length that is not allowed
	badTokenEmpty    bool // it is too short, not too long
	invalidToken     bool // one is no grant token of ours
	modifiers        int
	badModifier      []byte // the first that is no modifier
	badModifierAt    int    // its position, from 1
	recipientAlg     []byte
	recipientDoc     []byte
}

func (in *input) reset() {
	in.context.Reset()
	in.destContext.Reset()
	in.members = members{}
}

// scan reads the body. It decodes strings and blobs over their own bytes.
func (in *input) scan(r *request, body []byte) kmsapi.Code {
	s, op := &r.scan, r.op
	s.Reset(body)
	if s.Object() {
		for name, ok := s.Next(); ok; name, ok = s.Next() {
			if m := memberOf(name) & op.members; m != 0 {
				in.value(r, m)
			}
		}
	}
	s.End()
	if f := s.Fault(); f.Code() != kmsapi.OK {
		r.msg = s.AppendFault(r.msg[:0])
		return f.Code()
	}
	return kmsapi.OK
}

// value reads the value of one member. null is absent.
func (in *input) value(r *request, m member) {
	s := &r.scan
	var ok bool
	switch m {
	case mKeyID, mSourceKeyID:
		in.keyID, ok = s.String()
	case mDestKeyID:
		in.destKeyID, ok = s.String()
	case mPlaintext:
		in.plaintext, ok = s.Base64()
	case mCiphertextBlob, mSharedSecretBlob:
		in.ciphertextBlob, ok = s.Base64()
	case mMessage:
		in.message, ok = s.Base64()
	case mMessageType:
		in.messageType, ok = s.String()
	case mSignature:
		in.signature, ok = s.Base64()
	case mMac:
		in.mac, ok = s.Base64()
	case mPublicKey:
		in.publicKey, ok = s.Base64()
	case mKeyPairSpec:
		in.keyPairSpec, ok = s.String()
	case mContext, mSourceContext:
		ok = in.scanContext(r, m, &in.context)
	case mDestContext:
		ok = in.scanContext(r, m, &in.destContext)
	case mAlgorithm, mSourceAlgorithm, mSigningAlgorithm, mMacAlgorithm, mKeyAgreementAlgorithm, mEncapsulationAlgorithm:
		in.algorithm, ok = s.String()
	case mDestAlgorithm:
		in.destAlgorithm, ok = s.String()
	case mGrantTokens:
		if ok = s.List(); ok {
			for s.More() {
				token, _ := s.String()
				in.grantTokens++
				if _, ok := granttoken.Parse(token); !ok {
					in.invalidToken = true
				}
				if in.badToken == 0 && (len(token) == 0 || len(token) > kmsapi.GrantTokenMax) {
					in.badToken, in.badTokenEmpty = in.grantTokens, len(token) == 0
				}
			}
		}
	case mDryRun:
		in.dryRun, ok = s.Bool()
	case mDryRunModifiers:
		if ok = s.List(); ok {
			for s.More() {
				v, _ := s.String()
				in.modifiers++
				if string(v) == "IGNORE_CIPHERTEXT" {
					in.ignoreCiphertext = true
				} else if in.badModifierAt == 0 {
					in.badModifier, in.badModifierAt = v, in.modifiers
				}
			}
		}
	case mKeySpec:
		in.keySpec, ok = s.String()
	case mNumberOfBytes:
		in.numberOfBytes, ok = s.Int()
	case mCustomKeyStoreID:
		in.customKeyStoreID, ok = s.String()
	case mRecipient:
		if ok = s.Object(); ok {
			for name, more := s.Next(); more; name, more = s.Next() {
				switch string(name) {
				case "KeyEncryptionAlgorithm":
					in.recipientAlg, _ = s.String()
				case "AttestationDocument":
					in.recipientDoc, _ = s.Base64()
				}
			}
		}
	}
	if ok {
		in.has |= m
	}
}

func (in *input) scanContext(r *request, m member, c *blob.Context) bool {
	s := &r.scan
	if !s.Object() {
		return false
	}
	for key, ok := s.Next(); ok; key, ok = s.Next() {
		value, present := s.String()
		if !present {
			in.contextNull |= m
			continue
		}
		if f := c.Add(key, value); f != blob.FaultNone && in.contextFault == blob.FaultNone {
			in.contextFault, in.contextFaultOf = f, m
		}
	}
	return true
}

// Value sets, as messages show them.
const (
	algorithmSet = "[SYMMETRIC_DEFAULT, RSAES_OAEP_SHA_1, RSAES_OAEP_SHA_256, SM2PKE]"
	keySpecSet   = "[AES_256, AES_128]"
	modifierSet  = "[IGNORE_CIPHERTEXT]"
	mechanismSet = "[RSAES_OAEP_SHA_256]"

	messageTypeSet   = "[RAW, DIGEST, EXTERNAL_MU]"
	signingSet       = "[RSASSA_PSS_SHA_256, RSASSA_PSS_SHA_384, RSASSA_PSS_SHA_512, RSASSA_PKCS1_V1_5_SHA_256, RSASSA_PKCS1_V1_5_SHA_384, RSASSA_PKCS1_V1_5_SHA_512, ECDSA_SHA_256, ECDSA_SHA_384, ECDSA_SHA_512, SM2DSA, ML_DSA_SHAKE_256, ED25519_SHA_512, ED25519_PH_SHA_512]"
	macSet           = "[HMAC_SHA_224, HMAC_SHA_256, HMAC_SHA_384, HMAC_SHA_512]"
	agreementSet     = "[ECDH]"
	encapsulationSet = "[ML_KEM]"
	pairSet          = "[RSA_2048, RSA_3072, RSA_4096, ECC_NIST_P256, ECC_NIST_P384, ECC_NIST_P521, ECC_SECG_P256K1, SM2, ECC_NIST_EDWARDS25519, ML_KEM_512, ML_KEM_768, ML_KEM_1024]"
)

// check tests the constraints of the service model. All violations go into one message.
func (in *input) check(r *request) kmsapi.Code {
	v := &r.faults
	if missing := r.op.required &^ in.has; missing != 0 {
		for _, m := range requirable {
			if missing&m.m != 0 {
				v.Null(m.path)
			}
		}
	}
	in.checkLength(v, mKeyID, "keyId", in.keyID, kmsapi.KeyIDMax)
	in.checkLength(v, mSourceKeyID, "sourceKeyId", in.keyID, kmsapi.KeyIDMax)
	in.checkLength(v, mDestKeyID, "destinationKeyId", in.destKeyID, kmsapi.KeyIDMax)
	in.checkBlob(v, mPlaintext, "plaintext", in.plaintext, kmsapi.PlaintextMax)
	in.checkBlob(v, mCiphertextBlob, "ciphertextBlob", in.ciphertextBlob, kmsapi.CiphertextBlobMax)
	in.checkBlob(v, mMessage, "message", in.message, kmsapi.PlaintextMax)
	in.checkBlob(v, mSignature, "signature", in.signature, kmsapi.CiphertextBlobMax)
	in.checkBlob(v, mMac, "mac", in.mac, kmsapi.CiphertextBlobMax)
	in.checkBlob(v, mPublicKey, "publicKey", in.publicKey, kmsapi.PublicKeyMax)
	in.checkBlob(v, mSharedSecretBlob, "sharedSecretCiphertextBlob", in.ciphertextBlob, kmsapi.CiphertextBlobMax)
	in.checkLength(v, mCustomKeyStoreID, "customKeyStoreId", in.customKeyStoreID, kmsapi.CustomKeyStoreIDMax)
	in.checkAlgorithm(v, mAlgorithm, "encryptionAlgorithm", in.algorithm)
	in.checkAlgorithm(v, mSourceAlgorithm, "sourceEncryptionAlgorithm", in.algorithm)
	in.checkAlgorithm(v, mDestAlgorithm, "destinationEncryptionAlgorithm", in.destAlgorithm)
	in.checkNames(v)
	if in.has&mGrantTokens != 0 {
		switch {
		case in.grantTokens > kmsapi.GrantTokensMax:
			v.MaxLength("grantTokens", nil, kmsapi.GrantTokensMax)
		case in.badToken > 0 && in.badTokenEmpty:
			v.MinLength(elementPath("grantTokens", in.badToken), nil, 1)
		case in.badToken > 0:
			v.MaxLength(elementPath("grantTokens", in.badToken), nil, kmsapi.GrantTokenMax)
		}
	}
	if in.has&mKeySpec != 0 && string(in.keySpec) != "AES_256" && string(in.keySpec) != "AES_128" {
		v.Enum("keySpec", in.keySpec, keySpecSet)
	}
	if in.has&mNumberOfBytes != 0 {
		if in.numberOfBytes < 1 {
			v.Min("numberOfBytes", in.numberOfBytes, 1)
		} else if in.numberOfBytes > kmsapi.RandomBytesMax {
			v.Max("numberOfBytes", in.numberOfBytes, kmsapi.RandomBytesMax)
		}
	}
	if in.badModifierAt > 0 {
		v.Enum(elementPath("dryRunModifiers", in.badModifierAt), in.badModifier, modifierSet)
	}
	if in.has&mRecipient != 0 {
		if in.recipientAlg != nil && string(in.recipientAlg) != "RSAES_OAEP_SHA_256" {
			v.Enum("recipient.keyEncryptionAlgorithm", in.recipientAlg, mechanismSet)
		}
		switch n := len(in.recipientDoc); {
		case in.recipientDoc != nil && n < 1:
			v.MinLength("recipient.attestationDocument", nil, 1)
		case n > kmsapi.AttestationMax:
			v.MaxLength("recipient.attestationDocument", nil, kmsapi.AttestationMax)
		}
	}
	if in.contextNull&mContext != 0 {
		v.Null("encryptionContext.member")
	}
	if in.contextNull&mSourceContext != 0 {
		v.Null("sourceEncryptionContext.member")
	}
	if in.contextNull&mDestContext != 0 {
		v.Null("destinationEncryptionContext.member")
	}
	if v.Any() {
		r.msg = v.AppendMessage(r.msg[:0])
		return kmsapi.Validation
	}
	if in.contextFault == blob.FaultNone {
		return kmsapi.OK
	}
	name := "EncryptionContext"
	switch in.contextFaultOf {
	case mSourceContext:
		name = "SourceEncryptionContext"
	case mDestContext:
		name = "DestinationEncryptionContext"
	}
	r.msg = append(r.msg[:0], name...)
	switch in.contextFault {
	case blob.FaultPairs:
		r.msg = append(r.msg, " has more than 64 pairs."...)
	case blob.FaultLength:
		r.msg = append(r.msg, " is longer than 8192 bytes."...)
	default:
		r.msg = append(r.msg, " is not valid."...)
	}
	return kmsapi.Validation
}

// requirable are the members that an operation may require, in the order in which a message names them.
var requirable = [...]struct {
	m    member
	path string
}{
	{mKeyID, "keyId"}, {mDestKeyID, "destinationKeyId"}, {mPlaintext, "plaintext"}, {mMessage, "message"}, {mSignature, "signature"}, {mMac, "mac"},
	{mSigningAlgorithm, "signingAlgorithm"}, {mMacAlgorithm, "macAlgorithm"}, {mKeyAgreementAlgorithm, "keyAgreementAlgorithm"}, {mPublicKey, "publicKey"},
	{mSharedSecretBlob, "sharedSecretCiphertextBlob"}, {mEncapsulationAlgorithm, "encapsulationAlgorithm"}, {mKeyPairSpec, "keyPairSpec"},
}

// checkNames holds the names that only operations without SYMMETRIC_DEFAULT keys have against their sets. SM2, of Regions in China only, is in AWS's sets.
func (in *input) checkNames(v *kmsapi.Violations) {
	if in.has&(mMessageType|mSigningAlgorithm|mMacAlgorithm|mKeyAgreementAlgorithm|mEncapsulationAlgorithm|mKeyPairSpec) == 0 {
		return
	}
	check := func(m member, path string, value []byte, known bool, set string) {
		if in.has&m != 0 && !known {
			v.Enum(path, value, set)
		}
	}
	usage := keyspec.AlgorithmOf(in.algorithm).Info().Usage
	_, isType := messageTypeOf(in.messageType)
	check(mMessageType, "messageType", in.messageType, isType, messageTypeSet)
	check(mSigningAlgorithm, "signingAlgorithm", in.algorithm, usage == keyspec.SignVerify || string(in.algorithm) == "SM2DSA", signingSet)
	check(mMacAlgorithm, "macAlgorithm", in.algorithm, usage == keyspec.GenerateVerifyMAC, macSet)
	check(mKeyAgreementAlgorithm, "keyAgreementAlgorithm", in.algorithm, usage == keyspec.KeyAgreement, agreementSet)
	check(mEncapsulationAlgorithm, "encapsulationAlgorithm", in.algorithm, usage == keyspec.EncapsulateDecapsulate, encapsulationSet)
	check(mKeyPairSpec, "keyPairSpec", in.keyPairSpec, keyspec.Of(in.keyPairSpec).Info().Pair || string(in.keyPairSpec) == "SM2", pairSet)
}

// elementPath names an element of a list in a message, counted from 1.
func elementPath(list string, n int) string { return list + "." + strconv.Itoa(n) + ".member" }

func (in *input) checkLength(v *kmsapi.Violations, m member, path string, value []byte, most int) {
	switch {
	case in.has&m == 0:
	case len(value) < 1:
		v.MinLength(path, value, 1)
	case len(value) > most:
		v.MaxLength(path, value, most)
	}
}

// checkBlob is checkLength for a value that is never repeated in a message.
func (in *input) checkBlob(v *kmsapi.Violations, m member, path string, value []byte, most int) {
	switch {
	case in.has&m == 0:
	case len(value) < 1:
		v.MinLength(path, nil, 1)
	case len(value) > most:
		v.MaxLength(path, nil, most)
	}
}

func (in *input) checkAlgorithm(v *kmsapi.Violations, m member, path string, value []byte) {
	if in.has&m == 0 {
		return
	}
	switch string(value) {
	case "SYMMETRIC_DEFAULT", "RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "SM2PKE":
	default:
		v.Enum(path, value, algorithmSet)
	}
}
