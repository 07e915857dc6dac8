package dataplane

import (
	"github.com/keyplane/keyplane/internal/bytesconv"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/internal/xks"
)

// audit leaves the record of a call, durable when it returns (docs/audit.md). Where that fails nothing of the call's result may leave.
func (x *XKS) audit(c *conn, r *request, code xks.Failure) xks.Failure {
	s := x.s
	if s.parts.Audit == nil || r.recorded != recordNoise && r.recorded != recordCall {
		return code
	}
	v := &r.record
	var skipped uint64
	if r.recorded == recordNoise {
		var fits bool
		if fits, skipped = s.strangers.Take(r.now.UnixNano()); !fits {
			return code
		}
	}
	v.Time, v.AccessKeyID, v.Source, v.Name, v.Region = r.date, r.who.AccessKeyID(), cloudtrail.XKSProxy, r.event, r.region.name
	v.SourceIP, v.UserAgent, v.TLS = r.ip, r.header.userAgent, x.tlsOf(c, r)
	v.RequestID, v.ReadOnly = r.id[:], true
	s.ids.Fill(&v.EventID)
	if code != xks.OK {
		v.ErrorCode, v.ErrorMessage = code.Name(), bytesconv.Bytes(r.xks.reason)
	}
	if !r.who.Valid() {
		if id, _ := sigv4.Claimed(&r.signed); id != nil {
			v.AccessKeyID = bytesconv.String(id)
		}
	}
	r.params = append(r.xks.appendParameters(append(r.params[:0], '{'), r.scanned), '}')
	v.RequestParameters = r.params
	r.extra = append(r.extra[:0], '{')
	if skipped > 0 {
		r.extra = cloudtrail.AppendMemberInt(r.extra, "notRecorded", int64(skipped))
	}
	if k := r.xks.key; k != nil {
		v.Recipient = k.Account
	}
	if r.key != nil {
		v.AddResource(r.key.ARN, r.key.Account)
	}
	if code == xks.OK {
		if used := r.usedXKS(); used != nil {
			r.extra = cloudtrail.AppendMember(r.extra, "keyMaterialId", used)
		}
	}
	if len(r.extra) > 1 {
		r.extra = append(r.extra, '}')
		v.AdditionalEventData = r.extra
	}
	r.line = v.Append(r.line[:0])
	if err := s.parts.Audit(r.line); err != nil {
		s.strangers.Return(skipped)
		s.warn("a call could not be recorded and is refused", err, "request", string(r.id[:]))
		r.out = emptied(r.out)
		return r.refuseXKS(xks.Internal, "The call could not be recorded.")
	}
	return code
}

// usedXKS is the material ID of the key version that encrypted or decrypted, nil where none did.
func (r *request) usedXKS() []byte {
	switch r.xks.api {
	case xks.Encrypt:
		return current(r.key).MaterialID[:]
	case xks.Decrypt:
		return r.key.Version(xksVersion(&r.xks.metadata)).MaterialID[:]
	}
	return nil
}

// appendParameters appends the members of requestParameters: where the request went, and of one that was signed what KMS says of it. Neither plaintext nor
// ciphertext nor additional authenticated data.
func (q *xksRequest) appendParameters(dst []byte, scanned bool) []byte {
	dst = cloudtrail.AppendMember(dst, "uriPathPrefix", bytesconv.Bytes(q.prefix.path))
	if q.id != nil {
		dst = cloudtrail.AppendMember(dst, "externalKeyId", q.id)
	}
	if !scanned {
		return dst
	}
	text := func(name string, value []byte) {
		if value != nil {
			dst = cloudtrail.AppendMember(dst, name, value)
		}
	}
	in := &q.in
	text("awsPrincipalArn", in.principal)
	text("awsSourceVpc", in.sourceVpc)
	text("awsSourceVpce", in.sourceVpce)
	text("kmsKeyArn", in.keyARN)
	text("kmsOperation", in.operation)
	text("kmsRequestId", in.requestID)
	text("kmsViaService", in.viaService)
	return dst
}
