package cloudtrail

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/bytesconv"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/uuid"
)

// SizeMax bounds a record, its line end included.
const SizeMax = 65_535

// Lengths in the record, in bytes, escapes included.
const (
	textMax    = 1 << 10  // userAgent, errorMessage, ARNs and names of a caller
	arnMax     = 512      // of a resource
	hostMax    = 256      // clientProvidedHostHeader
	nameMax    = 128      // what has no other limit
	objectsMax = 46 << 10 // all objects together
	// Room that an object leaves for those after it, so that they can say at least that they were omitted.
	requestReserve, responseReserve, additionalReserve = 2 << 10, 1 << 10, 512
)

// Type is the eventType.
type Type uint8

const (
	AwsApiCall      Type = iota // a client asked for it
	AwsServiceEvent             // the service did it by itself: userIdentity, sourceIPAddress and userAgent are "AWS Internal"
	AwsInternalCall             // likewise, of what the service calls an AwsApiCall all the same
)

// Event sources.
const (
	KMS = "kms.amazonaws.com"
	STS = "sts.amazonaws.com"
	IAM = "iam.amazonaws.com"

	ServiceQuotas = "servicequotas.amazonaws.com"

	XKSProxy = "xks-proxy.keyplane" // no service of AWS: keys of ours, used by AWS KMS as those of an external key store
)

// UnknownEvent is the eventName of a request for an operation that does not exist.
const UnknownEvent = "Unknown"

// ResourcesMax is how many resources a record names.
const ResourcesMax = 4

// Resource is what a call concerned.
type Resource struct {
	ARN     []byte // up to 512 bytes
	Account keyid.Account
	Type    string // "": AWS::KMS::Key, of aliases too
}

// Record is one record. Its owner fills it; what it points to is borrowed until Append returns. The zero Record is an empty one.
type Record struct {
	Time        time.Time     // eventTime, in seconds
	Caller      *authz.Caller // nil: not known; ignored where the service did it by itself
	AccessKeyID string        // up to 128 bytes
	Source      string        // eventSource: KMS, STS, IAM, ServiceQuotas
	Name        string        // eventName, up to 128 bytes. Source, Region, ErrorCode and EventID are ours: not escaped
	Region      string        // awsRegion
	SourceIP    netip.Addr    // invalid: "unknown"
	UserAgent   []byte        // nil: left out

	ErrorCode    string // "": a success
	ErrorMessage []byte // empty: left out

	// JSON objects without blanks around them, made with AppendMember and its like. nil: the first two are null, the others left out.
	RequestParameters, ResponseElements, AdditionalEventData, ServiceEventDetails []byte

	RequestID []byte         // nil: left out
	EventID   [uuid.Len]byte // required
	ReadOnly  bool

	Resources [ResourcesMax]Resource // the first Count of them; without one KMS's records have [], others nothing
	Count     int

	Type          Type
	Recipient     keyid.Account // recipientAccountId. One that is not the Caller's sees of it what another account may see
	SharedEventID []byte        // nil: left out
	TLS           *TLSDetails   // nil: left out
}

// Reset makes r an empty record.
func (r *Record) Reset() { *r = Record{} }

// AddResource adds a resource; beyond ResourcesMax it is left out.
func (r *Record) AddResource(arn []byte, owner keyid.Account) {
	if r.Count < len(r.Resources) {
		r.Resources[r.Count] = Resource{ARN: arn, Account: owner}
		r.Count++
	}
}

// Append appends the record as one line of JSON that ends with '\n'. The members are in CloudTrail's order, always.
func (r *Record) Append(dst []byte) []byte {
	dst = append(dst, `{"eventVersion":"1.11","userIdentity":`...)
	dst = r.appendIdentity(dst)
	dst = append(dst, `,"eventTime":"`...)
	dst = appendTime(dst, r.Time)
	dst = append(dst, `","eventSource":"`...)
	dst = append(dst, r.Source...)
	dst = append(dst, `","eventName":`...)
	dst = appendText(dst, r.Name, nameMax)
	dst = append(dst, `,"awsRegion":"`...)
	dst = append(dst, r.Region...)
	dst = append(dst, `","sourceIPAddress":`...)
	dst = r.appendSource(dst)
	if r.ErrorCode != "" {
		dst = append(dst, `,"errorCode":"`...)
		dst = append(append(dst, r.ErrorCode...), '"')
		if len(r.ErrorMessage) > 0 {
			dst = append(dst, `,"errorMessage":`...)
			dst = appendString(dst, r.ErrorMessage, textMax)
		}
	}
	room := objectsMax
	dst = append(dst, `,"requestParameters":`...)
	dst = appendObject(dst, r.RequestParameters, "requestParameters", &room, requestReserve)
	dst = append(dst, `,"responseElements":`...)
	dst = appendObject(dst, r.ResponseElements, "responseElements", &room, responseReserve)
	if r.AdditionalEventData != nil {
		dst = append(dst, `,"additionalEventData":`...)
		dst = appendObject(dst, r.AdditionalEventData, "additionalEventData", &room, additionalReserve)
	}
	if r.RequestID != nil {
		dst = append(dst, `,"requestID":`...)
		dst = appendString(dst, r.RequestID, nameMax)
	}
	dst = append(dst, `,"eventID":"`...)
	dst = append(dst, r.EventID[:]...)
	if r.ReadOnly {
		dst = append(dst, `","readOnly":true`...)
	} else {
		dst = append(dst, `","readOnly":false`...)
	}
	dst = r.appendResources(dst)
	if r.Type == AwsServiceEvent {
		dst = append(dst, `,"eventType":"AwsServiceEvent","managementEvent":true,"recipientAccountId":"`...)
	} else {
		dst = append(dst, `,"eventType":"AwsApiCall","managementEvent":true,"recipientAccountId":"`...)
	}
	dst = append(r.Recipient.Append(dst), '"')
	if r.SharedEventID != nil {
		dst = append(dst, `,"sharedEventID":`...)
		dst = appendString(dst, r.SharedEventID, nameMax)
	}
	if r.ServiceEventDetails != nil {
		dst = append(dst, `,"serviceEventDetails":`...)
		dst = appendObject(dst, r.ServiceEventDetails, "serviceEventDetails", &room, 0)
	}
	dst = append(dst, `,"eventCategory":"Management"`...)
	if r.TLS != nil {
		dst = r.TLS.append(dst)
	}
	return append(dst, '}', '\n')
}

// appendSource appends sourceIPAddress, whose name is written, and userAgent.
func (r *Record) appendSource(dst []byte) []byte {
	if r.Type != AwsApiCall {
		return append(dst, `"AWS Internal","userAgent":"AWS Internal"`...)
	}
	if r.SourceIP.IsValid() {
		dst = append(dst, '"')
		dst = r.SourceIP.Unmap().WithZone("").AppendTo(dst)
		dst = append(dst, '"')
	} else {
		dst = append(dst, `"unknown"`...)
	}
	if r.UserAgent != nil {
		dst = append(dst, `,"userAgent":`...)
		dst = appendString(dst, r.UserAgent, textMax)
	}
	return dst
}

func (r *Record) appendResources(dst []byte) []byte {
	if r.Count == 0 {
		if r.Source == KMS {
			dst = append(dst, `,"resources":[]`...)
		}
		return dst
	}
	dst = append(dst, `,"resources":[`...)
	for i := range r.Resources[:r.Count] {
		s := &r.Resources[i]
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"accountId":"`...)
		dst = s.Account.Append(dst)
		if s.Type == "" {
			dst = append(dst, `","type":"AWS::KMS::Key","ARN":`...)
		} else {
			dst = append(dst, `","type":`...)
			dst = appendText(dst, s.Type, nameMax)
			dst = append(dst, `,"ARN":`...)
		}
		dst = append(appendString(dst, s.ARN, arnMax), '}')
	}
	return append(dst, ']')
}

// appendObject appends an object, null for nil. room is what is left of objectsMax.
func appendObject(dst, object []byte, name string, room *int, reserve int) []byte {
	if object == nil {
		return append(dst, "null"...)
	}
	if len(object) <= *room-reserve {
		*room -= len(object)
		return append(dst, object...)
	}
	start := len(dst)
	dst = append(dst, `{"omitted":true,"originalSize":`...)
	dst = strconv.AppendInt(dst, int64(len(object)), 10)
	dst = append(dst, `,"reason":"`...)
	dst = append(dst, name...)
	dst = append(dst, ` too large"}`...)
	*room -= len(dst) - start
	return dst
}

func appendText(dst []byte, s string, most int) []byte {
	return appendString(dst, bytesconv.Bytes(s), most)
}
