package kmsapi

import "errors"

// Code names one exception of the wire protocol. The zero Code is success.
type Code uint8

// Exceptions of the service model, then those of the AWS front end (kms-api, "Front-end errors outside the model").
const (
	OK Code = iota

	AlreadyExists
	CloudHsmClusterInUse
	CloudHsmClusterInvalidConfiguration
	CloudHsmClusterNotActive
	CloudHsmClusterNotFound
	CloudHsmClusterNotRelated
	Conflict
	CustomKeyStoreHasCMKs
	CustomKeyStoreInvalidState
	CustomKeyStoreNameInUse
	CustomKeyStoreNotFound
	DependencyTimeout
	Disabled
	DryRunOperation
	ExpiredImportToken
	IncorrectKey
	IncorrectKeyMaterial
	IncorrectTrustAnchor
	InvalidAliasName
	InvalidArn
	InvalidCiphertext
	InvalidGrantID
	InvalidGrantToken
	InvalidImportToken
	InvalidKeyUsage
	InvalidMarker
	KMSInternal
	KMSInvalidMac
	KMSInvalidSignature
	KMSInvalidState
	KeyUnavailable
	LimitExceeded
	MalformedPolicyDocument
	NotFound
	Tag
	UnsupportedOperation
	XksKeyAlreadyInUse
	XksKeyInvalidConfiguration
	XksKeyNotFound
	XksProxyIncorrectAuthenticationCredential
	XksProxyInvalidConfiguration
	XksProxyInvalidResponse
	XksProxyUriEndpointInUse
	XksProxyUriInUse
	XksProxyUriUnreachable
	XksProxyVpcEndpointServiceInUse
	XksProxyVpcEndpointServiceInvalidConfiguration
	XksProxyVpcEndpointServiceNotFound

	AccessDenied
	ExpiredToken
	IncompleteSignature
	InvalidSignature
	MissingAuthenticationToken
	NotAuthorized
	RequestEntityTooLarge
	RequestHeaderTooLarge
	BadRequest
	RequestTimeout
	Serialization
	ServiceUnavailable
	Throttling
	UnknownOperation
	UnrecognizedClient
	Validation

	codeCount
)

// Retry says what a client may do with an error; the load generator and Retry-After go by it.
type Retry uint8

const (
	RetryNever     Retry = iota // the same request fails again
	RetryThrottle               // back off, then the same request may succeed
	RetryTransient              // a fault on our side
)

// info is one row of the error table.
type info struct {
	typ    string // what goes in __type; SDKs decide on this alone
	status int    // HTTP status: 400 for every client fault, 5xx for server faults, whatever the model says
	upper  bool   // body member is "Message", not "message"
	retry  Retry
	text   string // the message where the code has only one; "" where AWS sends none or callers supply it
	source string // "model", "front end" (the AWS JSON front end), or "http" (ours: below the AWS protocol)
}

var table = [codeCount]info{
	AlreadyExists:                       {"AlreadyExistsException", 400, false, RetryNever, "", "model"},
	CloudHsmClusterInUse:                {"CloudHsmClusterInUseException", 400, false, RetryNever, "", "model"},
	CloudHsmClusterInvalidConfiguration: {"CloudHsmClusterInvalidConfigurationException", 400, false, RetryNever, "", "model"},
	CloudHsmClusterNotActive:            {"CloudHsmClusterNotActiveException", 400, false, RetryNever, "", "model"},
	CloudHsmClusterNotFound:             {"CloudHsmClusterNotFoundException", 400, false, RetryNever, "", "model"},
	CloudHsmClusterNotRelated:           {"CloudHsmClusterNotRelatedException", 400, false, RetryNever, "", "model"},
	Conflict:                            {"ConflictException", 400, false, RetryNever, "", "model"},
	CustomKeyStoreHasCMKs:               {"CustomKeyStoreHasCMKsException", 400, false, RetryNever, "", "model"},
	CustomKeyStoreInvalidState:          {"CustomKeyStoreInvalidStateException", 400, false, RetryNever, "", "model"},
	CustomKeyStoreNameInUse:             {"CustomKeyStoreNameInUseException", 400, false, RetryNever, "", "model"},
	CustomKeyStoreNotFound:              {"CustomKeyStoreNotFoundException", 400, false, RetryNever, "", "model"},
	DependencyTimeout:                   {"DependencyTimeoutException", 503, false, RetryTransient, "The system timed out while trying to fulfill the request. You can retry the request.", "model"},
	Disabled:                            {"DisabledException", 400, false, RetryNever, "", "model"},
	DryRunOperation:                     {"DryRunOperationException", 400, false, RetryNever, "The request would have succeeded, but the DryRun option is set.", "model"},
	ExpiredImportToken:                  {"ExpiredImportTokenException", 400, false, RetryNever, "", "model"},
	IncorrectKey:                        {"IncorrectKeyException", 400, false, RetryNever, "The key ID in the request does not identify a CMK that can perform this operation.", "model"},
	IncorrectKeyMaterial:                {"IncorrectKeyMaterialException", 400, false, RetryNever, "", "model"},
	IncorrectTrustAnchor:                {"IncorrectTrustAnchorException", 400, false, RetryNever, "", "model"},
	InvalidAliasName:                    {"InvalidAliasNameException", 400, false, RetryNever, "", "model"},
	InvalidArn:                          {"InvalidArnException", 400, false, RetryNever, "", "model"},
	InvalidCiphertext:                   {"InvalidCiphertextException", 400, false, RetryNever, "", "model"},
	InvalidGrantID:                      {"InvalidGrantIdException", 400, false, RetryNever, "", "model"},
	InvalidGrantToken:                   {"InvalidGrantTokenException", 400, false, RetryNever, "", "model"},
	InvalidImportToken:                  {"InvalidImportTokenException", 400, false, RetryNever, "", "model"},
	InvalidKeyUsage:                     {"InvalidKeyUsageException", 400, false, RetryNever, "", "model"},
	InvalidMarker:                       {"InvalidMarkerException", 400, false, RetryNever, "The marker is not valid.", "model"},
	KMSInternal:                         {"KMSInternalException", 500, false, RetryTransient, "An internal error occurred. You can retry the request.", "model"},
	KMSInvalidMac:                       {"KMSInvalidMacException", 400, false, RetryNever, "", "model"},
	KMSInvalidSignature:                 {"KMSInvalidSignatureException", 400, false, RetryNever, "", "model"},
	KMSInvalidState:                     {"KMSInvalidStateException", 400, false, RetryNever, "", "model"},
	KeyUnavailable:                      {"KeyUnavailableException", 500, false, RetryTransient, "The key is not available now. You can retry the request.", "model"},
	LimitExceeded:                       {"LimitExceededException", 400, false, RetryNever, "", "model"},
	MalformedPolicyDocument:             {"MalformedPolicyDocumentException", 400, false, RetryNever, "", "model"},
	NotFound:                            {"NotFoundException", 400, false, RetryNever, "", "model"},
	Tag:                                 {"TagException", 400, false, RetryNever, "", "model"},
	UnsupportedOperation:                {"UnsupportedOperationException", 400, false, RetryNever, "", "model"},
	XksKeyAlreadyInUse:                  {"XksKeyAlreadyInUseException", 400, false, RetryNever, "", "model"},
	XksKeyInvalidConfiguration:          {"XksKeyInvalidConfigurationException", 400, false, RetryNever, "", "model"},
	XksKeyNotFound:                      {"XksKeyNotFoundException", 400, false, RetryNever, "", "model"},
	XksProxyIncorrectAuthenticationCredential:      {"XksProxyIncorrectAuthenticationCredentialException", 400, false, RetryNever, "", "model"},
	XksProxyInvalidConfiguration:                   {"XksProxyInvalidConfigurationException", 400, false, RetryNever, "", "model"},
	XksProxyInvalidResponse:                        {"XksProxyInvalidResponseException", 400, false, RetryNever, "", "model"},
	XksProxyUriEndpointInUse:                       {"XksProxyUriEndpointInUseException", 400, false, RetryNever, "", "model"},
	XksProxyUriInUse:                               {"XksProxyUriInUseException", 400, false, RetryNever, "", "model"},
	XksProxyUriUnreachable:                         {"XksProxyUriUnreachableException", 400, false, RetryNever, "", "model"},
	XksProxyVpcEndpointServiceInUse:                {"XksProxyVpcEndpointServiceInUseException", 400, false, RetryNever, "", "model"},
	XksProxyVpcEndpointServiceInvalidConfiguration: {"XksProxyVpcEndpointServiceInvalidConfigurationException", 400, false, RetryNever, "", "model"},
	XksProxyVpcEndpointServiceNotFound:             {"XksProxyVpcEndpointServiceNotFoundException", 400, false, RetryNever, "", "model"},

	AccessDenied:               {"AccessDeniedException", 400, true, RetryNever, "", "front end"},
	ExpiredToken:               {"ExpiredTokenException", 400, false, RetryNever, "The security token included in the request is expired", "front end"},
	IncompleteSignature:        {"IncompleteSignatureException", 400, false, RetryNever, "", "front end"},
	InvalidSignature:           {"InvalidSignatureException", 400, false, RetryNever, "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.", "front end"},
	MissingAuthenticationToken: {"MissingAuthenticationTokenException", 400, false, RetryNever, "Missing Authentication Token", "front end"},
	NotAuthorized:              {"NotAuthorizedException", 400, false, RetryNever, "", "front end"},
	RequestEntityTooLarge:      {"RequestEntityTooLargeException", 413, false, RetryNever, "The request body is larger than this service accepts.", "http"},
	RequestHeaderTooLarge:      {"RequestHeaderFieldsTooLargeException", 431, false, RetryNever, "The request headers are larger than this service accepts.", "http"},
	BadRequest:                 {"BadRequestException", 400, false, RetryNever, "The HTTP request is malformed.", "http"},
	RequestTimeout:             {"RequestTimeoutException", 408, false, RetryTransient, "The request was not received in time.", "http"},
	Serialization:              {"SerializationException", 400, true, RetryNever, "", "front end"},
	ServiceUnavailable:         {"ServiceUnavailableException", 503, false, RetryTransient, "The service is not available now. You can retry the request.", "front end"},
	Throttling:                 {"ThrottlingException", 400, false, RetryThrottle, "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.", "front end"},
	UnknownOperation:           {"UnknownOperationException", 400, false, RetryNever, "", "front end"},
	UnrecognizedClient:         {"UnrecognizedClientException", 400, false, RetryNever, "The security token included in the request is invalid.", "front end"},
	Validation:                 {"ValidationException", 400, false, RetryNever, "", "front end"},
}

// Type is the exception's name on the wire.
func (c Code) Type() string { return table[c].typ }

// Status is the HTTP status the exception travels with.
func (c Code) Status() int { return table[c].status }

// Retry says whether a client may try again.
func (c Code) Retry() Retry { return table[c].retry }

// Text is the exception's default message, "" where there is none.
func (c Code) Text() string { return table[c].text }

// String is Type, for logs.
func (c Code) String() string {
	if c == OK {
		return "OK"
	}
	return c.Type()
}

// CodeOf returns the code whose wire name is typ, or OK if there is none.
func CodeOf(typ string) Code {
	for c := range table {
		if table[c].typ == typ && typ != "" {
			return Code(c)
		}
	}
	return OK
}

// Error is a refusal on its way to the client. Message is what the client reads: it never holds request bytes of unknown length, file
// names, PKCS#11 codes or the text of an internal error.
type Error struct {
	Code    Code
	Message string
}

// Errorf-free on purpose: messages are built with kmsapi's own text functions or plain concatenation.
func (e *Error) Error() string {
	if e.Message == "" {
		return e.Code.Type()
	}
	return e.Code.Type() + ": " + e.Message
}

// Is compares codes, so that errors.Is(err, kmsapi.E(kmsapi.NotFound)) holds for any message.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// E is the error c with its default message.
func E(c Code) *Error { return &Error{Code: c, Message: c.Text()} }

// New is the error c with the given message.
func New(c Code, message string) *Error { return &Error{Code: c, Message: message} }

// AsError returns err's refusal; anything that is not one becomes KMSInternalException without detail.
func AsError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return E(KMSInternal)
}

// AppendErrorBody appends the JSON body of an exception: {"__type":"…","message":"…"}. An empty message is left out, as AWS does.
func AppendErrorBody(dst []byte, c Code, message []byte) []byte {
	dst = append(dst, `{"__type":"`...)
	dst = append(dst, c.Type()...)
	dst = append(dst, '"')
	if len(message) > 0 {
		if table[c].upper {
			dst = append(dst, `,"Message":`...)
		} else {
			dst = append(dst, `,"message":`...)
		}
		dst = AppendString(dst, message)
	}
	return append(dst, '}')
}
