package dataplane

import (
	"crypto/tls"
	"time"

	"github.com/keyplane/keyplane/internal/bytesconv"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/ratelimit"
)

// recorded says who keeps the audit record of a request.
type recorded uint8

const (
	recordNone  recorded = iota // it is no call: it could not be read as one, or the service has not started
	recordNoise                 // nobody is known to have made it: some of these are recorded
	recordCall
	recordElsewhere // the control plane has recorded it
)

// audit leaves the record of a call, durable when it returns. Where that fails nothing of the call's result may leave: the client is told of an
// internal error.
func (s *Server) audit(c *conn, r *request, code kmsapi.Code) kmsapi.Code {
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
	v.Time, v.AccessKeyID, v.Source, v.Region = r.date, r.who.AccessKeyID(), cloudtrail.KMS, r.region.name
	v.SourceIP, v.UserAgent = r.ip, r.header.userAgent
	v.RequestID, v.ReadOnly = r.id[:], true
	s.ids.Fill(&v.EventID)
	if code != kmsapi.OK {
		v.ErrorCode, v.ErrorMessage = code.Type(), r.msg
		if r.recorded == recordNoise {
			v.ErrorMessage = bytesconv.Bytes(code.Text()) // the client's text repeats what it sent, which may be a credential
		}
	}
	v.Name = r.eventName()
	if r.unanswered {
		op := kmsapi.Route(r.header.target)
		v.Source, v.ReadOnly = sourceOf([]byte(r.who.Service())), op != nil && !op.Write
	}
	v.TLS = s.tlsOf(c, r)
	if w := r.who.Principal(); w != nil {
		v.Caller, v.Recipient = w.Caller, w.Account
	} else if id, service := sigv4.Claimed(&r.signed); id != nil {
		v.AccessKeyID, v.Source = bytesconv.String(id), sourceOf(service)
	}
	if skipped > 0 {
		r.extra = append(cloudtrail.AppendMemberInt(append(r.extra[:0], '{'), "notRecorded", int64(skipped)), '}')
		v.AdditionalEventData = r.extra
	}
	if r.scanned {
		r.params = r.appendParameters(append(r.params[:0], '{'))
		if len(r.params) > 1 {
			r.params = append(r.params, '}')
			v.RequestParameters = r.params
		}
	}
	s.recordKeys(r, code)
	r.line = v.Append(r.line[:0])
	if err := s.parts.Audit(r.line); err != nil {
		s.strangers.Return(skipped)
		s.warn("a call could not be recorded and is refused", err, "request", string(r.id[:]))
		r.out, r.msg = emptied(r.out), emptied(r.msg)
		return r.refuse(kmsapi.KMSInternal)
	}
	return code
}

// eventName is the operation that the request is for: a name of the model, never the client's text.
func (r *request) eventName() string {
	if r.event != "" {
		return r.event
	}
	if op := kmsapi.Route(r.header.target); op != nil {
		return op.Name
	}
	return cloudtrail.UnknownEvent
}

// strangers bounds the records of requests that nobody is known to have sent, so that they cannot fill the disk: a hundred, and then one a second.
// The next record says in additionalEventData.notRecorded how many were left out.
var strangers = ratelimit.Limit{Interval: time.Second, Burst: 100}

// sourceOf is the eventSource of a service as requests are signed for it.
func sourceOf(service []byte) string {
	switch string(service) {
	case "iam":
		return cloudtrail.IAM
	case "sts":
		return cloudtrail.STS
	case quota.SigningName:
		return cloudtrail.ServiceQuotas
	}
	return cloudtrail.KMS
}

// recordKeys says which keys the call is about, and of a success which key material. A caller that may not use another account's key does not learn from
// its own trail which one an alias or a ciphertext means.
func (s *Server) recordKeys(r *request, code kmsapi.Code) {
	if r.key == nil && r.attested == nil {
		return
	}
	v := &r.record
	r.extra = append(r.extra[:0], '{')
	for i, k := range [...]*keyView{r.key, r.dest} {
		if k == nil || k.Account != v.Recipient && code == kmsapi.AccessDenied {
			continue
		}
		v.AddResource(k.ARN, k.Account)
		if k.Store != nil {
			r.appendStore(k, i == 1)
		}
		if k.Account == v.Recipient {
			continue
		}
		if v.Caller != nil && v.Caller.Kind == policy.Service {
			v.Recipient = k.Account // a service has no trail of its own
		} else if v.SharedEventID == nil && code == kmsapi.OK {
			s.ids.Fill(&r.shared)
			v.SharedEventID = r.shared[:]
		}
	}
	if code == kmsapi.OK && (r.key != nil && r.key.symmetric() || r.dest != nil && r.dest.symmetric()) {
		r.appendMaterial()
	}
	if r.attested != nil {
		r.extra = appendRecipient(r.extra, r.attested) // of a refusal too: it is why a condition did not match
	}
	if len(r.extra) > 1 {
		r.extra = append(r.extra, '}')
		v.AdditionalEventData = r.extra
	}
}

// appendStore appends to r.extra in which custom key store a key is: whether the call succeeds can be up to that.
func (r *request) appendStore(k *keyView, dest bool) {
	store, external := "customKeyStoreId", "xksKeyId"
	switch {
	case dest:
		store, external = "destinationCustomKeyStoreId", "destinationXksKeyId"
	case r.op.members&mDestKeyID != 0:
		store, external = "sourceCustomKeyStoreId", "sourceXksKeyId"
	}
	r.extra = cloudtrail.AppendMember(r.extra, store, bytesconv.Bytes(k.Store.ID))
	if k.Store.External() {
		r.extra = cloudtrail.AppendMember(r.extra, external, bytesconv.Bytes(k.Store.XksKeyID))
	}
}

// appendMaterial appends to r.extra which key material the call used, of symmetric keys.
func (r *request) appendMaterial() {
	name := "keyMaterialId"
	if r.dest != nil {
		name = "sourceKeyMaterialId"
	}
	if r.key.symmetric() {
		used := current(r.key)
		if r.blob.Key == r.key.ID {
			used = r.key.Version(r.blob.KeyVersion)
		}
		r.extra = cloudtrail.AppendMember(r.extra, name, used.MaterialID[:])
	}
	if r.dest != nil && r.dest.symmetric() {
		r.extra = cloudtrail.AppendMember(r.extra, "destinationKeyMaterialId", current(r.dest).MaterialID[:])
	}
}

// appendParameters appends the members of requestParameters: what the client sent but for what must stay secret, and the algorithm and the key of a ciphertext
// where it sent none.
func (r *request) appendParameters(dst []byte) []byte {
	in, op := &r.in, r.op
	reEncrypt := op.members&mDestKeyID != 0
	text := func(name string, value []byte) {
		if value != nil {
			dst = cloudtrail.AppendMember(dst, name, value)
		}
	}
	algorithm := func(name string, value []byte) {
		if value == nil {
			value = symmetricDefault
		}
		dst = cloudtrail.AppendMember(dst, name, value)
	}
	keyID := in.keyID
	if keyID == nil && r.key != nil && r.key.Account == r.record.Recipient {
		keyID = r.key.ARN
	}
	switch {
	case reEncrypt:
		text("sourceKeyId", keyID)
		text("destinationKeyId", in.destKeyID)
		algorithm("sourceEncryptionAlgorithm", in.algorithm)
		algorithm("destinationEncryptionAlgorithm", in.destAlgorithm)
		dst = cloudtrail.AppendMemberContext(dst, "sourceEncryptionContext", &in.context)
		dst = cloudtrail.AppendMemberContext(dst, "destinationEncryptionContext", &in.destContext)
	default:
		text("keyId", keyID)
		switch {
		case op.members&mAlgorithm != 0:
			algorithm("encryptionAlgorithm", in.algorithm)
		case op.members&mSigningAlgorithm != 0:
			if in.messageType == nil {
				text("messageType", messageRaw)
			}
			text("messageType", in.messageType)
			text("signingAlgorithm", in.algorithm)
		case op.members&mMacAlgorithm != 0:
			text("macAlgorithm", in.algorithm)
		case op.members&mKeyAgreementAlgorithm != 0:
			text("keyAgreementAlgorithm", in.algorithm)
		case op.members&mEncapsulationAlgorithm != 0:
			text("encapsulationAlgorithm", in.algorithm)
		}
		text("keySpec", in.keySpec)
		text("keyPairSpec", in.keyPairSpec)
		if in.has&mNumberOfBytes != 0 {
			dst = cloudtrail.AppendMemberInt(dst, "numberOfBytes", in.numberOfBytes)
		}
		text("customKeyStoreId", in.customKeyStoreID)
		dst = cloudtrail.AppendMemberContext(dst, "encryptionContext", &in.context)
	}
	if in.dryRun {
		dst = cloudtrail.AppendMemberBool(dst, "dryRun", true)
	}
	return dst
}

// auditAbandoned leaves the record of a request that panicked, of what can be trusted of it.
func (s *Server) auditAbandoned(r *request) {
	defer func() { _ = recover() }()
	if s.parts.Audit == nil || r.recorded != recordCall {
		return
	}
	v := cloudtrail.Record{Time: r.date, Source: r.source(), Region: r.region.name, Name: r.eventName(), RequestID: r.id[:], ReadOnly: true, SourceIP: r.ip,
		ErrorCode: kmsapi.KMSInternal.Type(), AccessKeyID: r.who.AccessKeyID()}
	s.ids.Fill(&v.EventID)
	if w := r.who.Principal(); w != nil {
		v.Caller, v.Recipient = w.Caller, w.Account
	}
	_ = s.parts.Audit(v.Append(nil)) // the client hears of an internal error anyhow
}

// source is the eventSource of the request's record.
func (r *request) source() string {
	if r.xks.prefix != nil {
		return cloudtrail.XKSProxy
	}
	return cloudtrail.KMS
}

// tlsOf is what records say of the connection a request came over; nil where it is not encrypted.
func (s *Server) tlsOf(c *conn, r *request) *cloudtrail.TLSDetails {
	if !s.cfg.TLS || c == nil {
		return nil
	}
	return c.tlsOf(r)
}

// tlsOf is what records say of an encrypted connection and the request that came over it.
func (c *conn) tlsOf(r *request) *cloudtrail.TLSDetails {
	if c.tls == nil {
		c.tls = c.tlsDetails()
	}
	c.tls.Host = r.header.value("host")
	return c.tls
}

// tlsDetails is what records say of a connection. The handshake is done: a request has come over it.
func (c *conn) tlsDetails() *cloudtrail.TLSDetails {
	d := &cloudtrail.TLSDetails{}
	if t, ok := c.Conn.(*tls.Conn); ok {
		state := t.ConnectionState()
		d.SetState(&state)
	}
	return d
}
