package dataplane

import (
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// operation is one row of this plane's table. The names are kmsapi's, where every operation of the service model has a row.
type operation struct {
	*kmsapi.Operation
	members  member // what it reads of the request; other members are ignored, as AWS does
	required member
	action   *authz.Action // on the operation's key; of ReEncrypt on the source
	pools    pools
	run      func(s *Server, r *request) kmsapi.Code
}

// What most operations read.
const (
	mCall     = mKeyID | mGrantTokens | mDryRun
	mMessages = mMessage | mMessageType | mSigningAlgorithm
)

var operations = [...]operation{
	row("Decapsulate", mCall|mSharedSecretBlob|mEncapsulationAlgorithm, mKeyID|mSharedSecretBlob|mEncapsulationAlgorithm, (*Server).decapsulate),
	row("Decrypt", mCiphertextBlob|mContext|mGrantTokens|mKeyID|mAlgorithm|mRecipient|mDryRun|mDryRunModifiers, 0, (*Server).decrypt),
	row("DeriveSharedSecret", mCall|mKeyAgreementAlgorithm|mPublicKey|mRecipient, mKeyID|mKeyAgreementAlgorithm|mPublicKey, (*Server).deriveSharedSecret),
	row("Encapsulate", mCall|mEncapsulationAlgorithm, mKeyID|mEncapsulationAlgorithm, (*Server).encapsulate),
	row("Encrypt", mKeyID|mPlaintext|mContext|mGrantTokens|mAlgorithm|mDryRun, mKeyID|mPlaintext, (*Server).encrypt),
	row("GenerateDataKey", mKeyID|mContext|mNumberOfBytes|mKeySpec|mGrantTokens|mRecipient|mDryRun, mKeyID, (*Server).generateDataKey),
	row("GenerateDataKeyPair", mCall|mContext|mKeyPairSpec|mRecipient, mKeyID|mKeyPairSpec, (*Server).generateDataKeyPair),
	row("GenerateDataKeyPairWithoutPlaintext", mCall|mContext|mKeyPairSpec, mKeyID|mKeyPairSpec, (*Server).generateDataKeyPair),
	row("GenerateDataKeyWithoutPlaintext", mKeyID|mContext|mNumberOfBytes|mKeySpec|mGrantTokens|mDryRun, mKeyID, (*Server).generateDataKeyWithoutPlaintext),
	row("GenerateMac", mCall|mMessage|mMacAlgorithm, mKeyID|mMessage|mMacAlgorithm, (*Server).generateMac),
	row("GenerateRandom", mNumberOfBytes|mCustomKeyStoreID|mRecipient, 0, (*Server).generateRandom),
	row("GetPublicKey", mKeyID|mGrantTokens, mKeyID, (*Server).getPublicKey),
	row("ReEncrypt", mCiphertextBlob|mSourceContext|mSourceKeyID|mDestKeyID|mDestContext|mSourceAlgorithm|mDestAlgorithm|mGrantTokens|mDryRun|mDryRunModifiers, mDestKeyID, (*Server).reEncrypt),
	row("Sign", mCall|mMessages, mKeyID|mMessage|mSigningAlgorithm, (*Server).sign),
	row("Verify", mCall|mMessages|mSignature, mKeyID|mMessage|mSignature|mSigningAlgorithm, (*Server).verify),
	row("VerifyMac", mCall|mMessage|mMacAlgorithm|mMac, mKeyID|mMessage|mMacAlgorithm|mMac, (*Server).verifyMac),
}

func row(name string, members, required member, run func(*Server, *request) kmsapi.Code) operation {
	op := kmsapi.Route([]byte(kmsapi.TargetPrefix + name))
	action := authz.Actions[name]
	if name == "ReEncrypt" {
		action = authz.Actions["ReEncryptFrom"]
	}
	return operation{Operation: op, members: members, required: required, action: action, pools: poolsOf(op), run: run}
}

// reEncryptTo is what ReEncrypt asks on its destination.
var reEncryptTo = authz.Actions["ReEncryptTo"]

// operationOf returns this plane's row of an operation, nil where there is none yet.
func operationOf(op *kmsapi.Operation) *operation {
	for i := range operations {
		if operations[i].Operation == op {
			return &operations[i]
		}
	}
	return nil
}
