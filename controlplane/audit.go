package controlplane

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/ratelimit"
)

// strangers bounds the records of requests that nobody is known to have sent, so that they cannot fill the disk: a hundred, and then one
// a second. The next record says in additionalEventData.notRecorded how many were left out.
var strangers = ratelimit.Limit{Interval: time.Second, Burst: 100}

// resource is a key or alias that a call concerns.
type resource struct {
	arn   string
	owner keyid.Account
}

// touch notes a resource for the call's record, in the order in which it was asked for.
func (c *call) touch(arn string, owner keyid.Account) {
	for _, r := range c.resources {
		if r.arn == arn {
			return
		}
	}
	c.resources = append(c.resources, resource{arn, owner})
}

// touchKey is touch for a key, whose ARN is the record's keyId.
func (c *call) touchKey(arn string, owner keyid.Account) {
	c.touch(arn, owner)
	c.keyARN = arn
}

// audit leaves the record of a call whose answer is resp. Nothing is left of a call that has no record but the error.
func (s *Server) audit(c *call, resp *Response, message string) error {
	if s.sink == nil {
		return nil
	}
	r := &c.record
	r.Time, r.Type, r.Region = c.now, cloudtrail.AwsApiCall, s.region
	r.RequestID, r.TLS = []byte(c.request.RequestID), c.request.TLS
	if addr, err := netip.ParseAddr(c.request.SourceIP); err == nil {
		r.SourceIP = addr
	}
	s.events.Fill(&r.EventID)
	signed := c.request.Signed
	if signed == nil {
		signed = &sigv4.Request{}
	}
	r.UserAgent = header(signed, "user-agent")
	if resp.Code != kmsapi.OK {
		r.ErrorCode, r.ErrorMessage = resp.Code.Type(), []byte(message)
	}
	service := c.caller.Service()
	skipped := uint64(0)
	if !c.caller.Valid() {
		var ok bool
		if ok, skipped = s.strangers.Take(c.now.UnixNano()); !ok {
			return nil
		}
		if resp.Code != kmsapi.OK {
			r.ErrorMessage = []byte(resp.Code.Text()) // the client's text repeats what it sent, which may be a credential
		}
		id, claimed := sigv4.Claimed(signed)
		r.AccessKeyID, service = string(id), string(claimed)
		if skipped > 0 {
			r.AdditionalEventData = append(cloudtrail.AppendMemberInt([]byte{'{'}, "notRecorded", int64(skipped)), '}')
		}
	} else {
		r.Caller, r.AccessKeyID, r.Recipient = c.principal(), c.caller.AccessKeyID(), c.account()
	}
	switch service {
	case "iam":
		r.Source, r.Region = cloudtrail.IAM, c.scopeRegion(s)
	case "sts":
		r.Source, r.Region = cloudtrail.STS, c.scopeRegion(s)
	case quota.SigningName:
		r.Source = cloudtrail.ServiceQuotas
	default:
		r.Source = cloudtrail.KMS
		s.describe(c, signed, resp)
	}
	if r.Name == "" && s.iam != nil && (service == "iam" || service == "sts") {
		r.Name, r.ReadOnly = s.iam.Event(service, signed.Body) // it was refused before it got there: say what was tried
	}
	if r.Name == "" {
		r.Name, r.ReadOnly = cloudtrail.UnknownEvent, true
	}
	err := s.sink(r.Append(nil))
	if err != nil && skipped > 0 {
		s.strangers.Return(skipped)
	}
	return err
}

// scopeRegion is the Region that a request to IAM or STS was signed for.
func (c *call) scopeRegion(s *Server) string {
	if region := c.caller.Region(); region != "" {
		return region
	}
	return s.region
}

// describe says of a call to KMS what it asked for and what came of it.
func (s *Server) describe(c *call, signed *sigv4.Request, resp *Response) {
	r, op := &c.record, c.op
	if op == nil { // not routed: refused before
		op = kmsapi.Route(header(signed, "x-amz-target"))
	}
	if op == nil {
		return
	}
	r.Name, r.ReadOnly = op.Name, !op.Write
	if !c.caller.Valid() {
		return
	}
	row := trails[op.Name]
	r.RequestParameters = objectOf(nil, signed.Body, row.request)
	if len(c.resources) == 0 && c.named.arn != "" {
		c.touch(c.named.arn, c.named.owner)
	}
	for _, v := range c.resources {
		r.AddResource([]byte(v.arn), v.owner)
	}
	if r.Caller != nil && r.Caller.Kind == policy.Service && len(c.resources) > 0 {
		r.Recipient = c.resources[0].owner // AWS's services have no account that records go to
	}
	if c.grant != "" {
		r.AdditionalEventData = append(cloudtrail.AppendMember([]byte{'{'}, "grantId", []byte(c.grant)), '}')
	}
	if c.details != nil {
		r.AdditionalEventData = append(c.details, '}')
	}
	if resp.Code != kmsapi.OK {
		return
	}
	var elements []byte
	if row.keyID && c.keyARN != "" {
		elements = cloudtrail.AppendMember([]byte{'{'}, "keyId", []byte(c.keyARN))
	}
	r.ResponseElements = objectOf(elements, resp.Body, row.reply)
}

// objectOf is the JSON object of what is shown of another, after what it begins with; nil for an empty one.
func objectOf(begin, object []byte, members []shown) []byte {
	if begin == nil {
		begin = []byte{'{'}
	}
	if len(members) > 0 {
		begin = appendShown(begin, object, members)
	}
	if len(begin) == 1 {
		return nil
	}
	return append(begin, '}')
}

// auditCreation leaves the record of an AWS managed key, before it is made (service event CreateKey): nobody's call makes one.
func (s *Server) auditCreation(arn string, owner keyid.Account, now time.Time) error {
	if err := s.auditEvent("CreateKey", arn, owner, now, nil, nil); err != nil {
		return fmt.Errorf("the creation of %s cannot be recorded: %w", arn, err)
	}
	return nil
}

// auditDeletion leaves the record of a key's deletion (service event DeleteKey), before it: without it the deletion is postponed. One that then
// fails has a record for each time it is tried. more is its additionalEventData, nil for none.
func (s *Server) auditDeletion(arn string, owner keyid.Account, now time.Time, more []byte) error {
	if err := s.auditEvent("DeleteKey", arn, owner, now, nil, more); err != nil {
		return fmt.Errorf("the deletion of %s cannot be recorded and is postponed: %w", arn, err)
	}
	return nil
}

// auditExpiry leaves the record of the expiry of key material (service event DeleteExpiredKeyMaterial), before it: without it the expiry is postponed. id is "" of
// material that has none.
func (s *Server) auditExpiry(n store.KeyName, id string, now time.Time) error {
	arn := s.keyARN(n)
	details := cloudtrail.AppendMember([]byte{'{'}, "keyId", []byte(arn))
	if id != "" {
		details = cloudtrail.AppendMember(details, "keyMaterialId", []byte(id))
	}
	if err := s.auditEvent("DeleteExpiredKeyMaterial", arn, n.Account, now, append(details, '}'), nil); err != nil {
		return fmt.Errorf("the expiry of key material of %s cannot be recorded and is postponed: %w", arn, err)
	}
	return nil
}

// auditRotation leaves the record of a rotation of k to a version (service event RotateKey), before it: without it the rotation is postponed. A rotation that then
// fails leaves a record of key material that the key does not have, or of which there is a second record when it succeeds: what the key has as
// currentKeyMaterialId is what was rotated to.
func (s *Server) auditRotation(k *store.Key, v *store.Version, how string, now time.Time) error {
	arn := s.keyARN(k.KeyName)
	details := cloudtrail.AppendMember([]byte{'{'}, "rotationType", []byte(how))
	details = cloudtrail.AppendMember(details, "keyOrigin", []byte(k.Origin))
	for i := range k.Versions {
		if old := &k.Versions[i]; old.Number == k.Current {
			details = cloudtrail.AppendMember(details, "previousKeyMaterialId", old.MaterialID[:])
		}
	}
	details = cloudtrail.AppendMember(details, "currentKeyMaterialId", v.MaterialID[:])
	details = append(cloudtrail.AppendMember(details, "keyId", []byte(arn)), '}')
	if err := s.auditEvent("RotateKey", arn, k.Account, now, details, nil); err != nil {
		return fmt.Errorf("the rotation of %s cannot be recorded and is postponed: %w", arn, err)
	}
	return nil
}

// auditEvent leaves the record of a service event. details are its serviceEventDetails and more its additionalEventData, nil for none.
func (s *Server) auditEvent(name, arn string, owner keyid.Account, now time.Time, details, more []byte) error {
	if s.sink == nil {
		return nil
	}
	r := &cloudtrail.Record{
		Time: now, Source: cloudtrail.KMS, Name: name, Region: s.region, Type: cloudtrail.AwsServiceEvent, Recipient: owner, ServiceEventDetails: details, AdditionalEventData: more,
	}
	s.events.Fill(&r.EventID)
	r.AddResource([]byte(arn), owner)
	if err := s.sink(r.Append(nil)); err != nil {
		s.unrecorded.Add(1)
		return err
	}
	return nil
}
