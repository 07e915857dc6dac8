package cloudtrail

import (
	"strings"

	"github.com/keyplane/keyplane/internal/policy"
)

// appendIdentity appends userIdentity (CloudTrail user guide, "CloudTrail userIdentity element").
func (r *Record) appendIdentity(dst []byte) []byte {
	c := r.Caller
	switch {
	case r.Type != AwsApiCall:
		dst = append(dst, `{"accountId":"`...)
		dst = r.Recipient.Append(dst)
		return append(dst, `","invokedBy":"AWS Internal"}`...)
	case c == nil:
		dst = append(dst, `{"type":"Unknown"`...)
		return append(r.appendAccessKey(dst), '}')
	case c.Kind == policy.Service:
		dst = append(dst, `{"type":"AWSService","invokedBy":`...)
		dst = appendText(dst, c.ARN, textMax)
		return append(r.appendAccessKey(dst), '}')
	case c.Account != r.Recipient:
		// What another account's trail shows of a caller: no ARN, no name, no access key.
		dst = append(dst, `{"type":"AWSAccount","principalId":`...)
		dst = appendText(dst, c.UserID, textMax)
		dst = append(dst, `,"accountId":"`...)
		dst = append(c.Account.Append(dst), '"')
		return append(r.appendInvokedBy(dst), '}')
	}
	switch c.Kind {
	case policy.Root:
		dst = append(dst, `{"type":"Root","principalId":`...)
	case policy.AssumedRole:
		dst = append(dst, `{"type":"AssumedRole","principalId":`...)
	default:
		dst = append(dst, `{"type":"IAMUser","principalId":`...)
	}
	dst = appendText(dst, c.UserID, textMax)
	dst = append(dst, `,"arn":`...)
	dst = appendText(dst, c.ARN, textMax)
	dst = append(dst, `,"accountId":"`...)
	dst = append(c.Account.Append(dst), '"')
	dst = r.appendAccessKey(dst)
	if c.UserName != "" {
		dst = append(dst, `,"userName":`...)
		dst = appendText(dst, c.UserName, textMax)
	}
	if !c.TokenIssued.IsZero() {
		dst = r.appendSession(dst)
	}
	return append(r.appendInvokedBy(dst), '}')
}

func (r *Record) appendAccessKey(dst []byte) []byte {
	if r.AccessKeyID == "" {
		return dst
	}
	dst = append(dst, `,"accessKeyId":`...)
	return appendText(dst, r.AccessKeyID, nameMax)
}

// appendInvokedBy names the service that makes the request for the caller.
func (r *Record) appendInvokedBy(dst []byte) []byte {
	if r.Caller.ViaName == "" {
		return dst
	}
	dst = append(dst, `,"invokedBy":`...)
	return appendText(dst, r.Caller.ViaName, textMax)
}

// appendSession appends sessionContext, of temporary credentials. sessionIssuer is the role.
func (r *Record) appendSession(dst []byte) []byte {
	c := r.Caller
	dst = append(dst, `,"sessionContext":{`...)
	if c.Kind == policy.AssumedRole {
		dst = append(dst, `"sessionIssuer":{"type":"Role","principalId":`...)
		dst = appendText(dst, c.ID, textMax)
		dst = append(dst, `,"arn":`...)
		dst = appendText(dst, c.RoleARN, textMax)
		dst = append(dst, `,"accountId":"`...)
		dst = c.Account.Append(dst)
		dst = append(dst, `","userName":`...)
		dst = appendText(dst, c.RoleARN[strings.LastIndexByte(c.RoleARN, '/')+1:], textMax)
		dst = append(dst, `},`...)
	}
	dst = append(dst, `"attributes":{"creationDate":"`...)
	dst = appendTime(dst, c.TokenIssued)
	dst = append(dst, `","mfaAuthenticated":"false"}`...)
	if c.Source != "" {
		dst = append(dst, `,"sourceIdentity":`...)
		dst = appendText(dst, c.Source, textMax)
	}
	return append(dst, '}')
}
