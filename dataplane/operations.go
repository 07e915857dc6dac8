package dataplane

import (
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/ratelimit"
)

// operation is one row of this plane's table. The names are kmsapi's, where every operation of the service model has a row.
type operation struct {
	*kmsapi.Operation
	members  member // what it reads of the request; other members are ignored, as AWS does
	required member
	action   *authz.Action // on the operation's key; of ReEncrypt on the source
	pool     ratelimit.Pool
	run      func(s *Server, r *request) kmsapi.Code
}

var operations = [...]operation{
	row("Decrypt", mCiphertextBlob|mContext|mGrantTokens|mKeyID|mAlgorithm|mRecipient|mDryRun|mDryRunModifiers, 0, (*Server).decrypt),
	row("Encrypt", mKeyID|mPlaintext|mContext|mGrantTokens|mAlgorithm|mDryRun, mKeyID|mPlaintext, (*Server).encrypt),
	row("GenerateDataKey", mKeyID|mContext|mNumberOfBytes|mKeySpec|mGrantTokens|mRecipient|mDryRun, mKeyID, (*Server).generateDataKey),
	row("GenerateDataKeyWithoutPlaintext", mKeyID|mContext|mNumberOfBytes|mKeySpec|mGrantTokens|mDryRun, mKeyID, (*Server).generateDataKeyWithoutPlaintext),
	row("GenerateRandom", mNumberOfBytes|mCustomKeyStoreID|mRecipient, 0, (*Server).generateRandom),
	row("ReEncrypt", mCiphertextBlob|mSourceContext|mSourceKeyID|mDestKeyID|mDestContext|mSourceAlgorithm|mDestAlgorithm|mGrantTokens|mDryRun|mDryRunModifiers, mDestKeyID, (*Server).reEncrypt),
}

func row(name string, members, required member, run func(*Server, *request) kmsapi.Code) operation {
	op := kmsapi.Route([]byte(kmsapi.TargetPrefix + name))
	action := authz.Actions[name]
	if name == "ReEncrypt" {
		action = authz.Actions["ReEncryptFrom"]
	}
	return operation{Operation: op, members: members, required: required, action: action, pool: symmetricPool(op), run: run}
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
