package xks

import "github.com/keyplane/keyplane/internal/kmsapi"

// Failure is why a request to a proxy failed, as KMS tells failures apart: an error that the proxy names, or one that KMS finds itself. The zero Failure is
// success.
type Failure uint8

const (
	OK Failure = iota

	// Errors of proxies.
	Validation
	InvalidState
	InvalidCiphertext
	InvalidKeyUsage
	AuthenticationFailed
	AccessDenied
	KeyNotFound
	InvalidURIPath
	Throttling
	Internal
	UnsupportedOperation
	DependencyTimeout

	// Errors that KMS finds.
	Malformed     // an answer that is none of the API, also one with a wrong length or CDIV
	BadCiphertext // what the proxy decrypted is not what was given to it to encrypt
	Unreachable   // no TCP connection, or one that broke
	TLS           // no TLS connection: protocol, certificate
	TimedOut      // no answer in time
	NotConnected  // the key store is not CONNECTED
	Unhealthy     // every ekmFleetDetails is UNAVAILABLE
	UnfitKey      // the external key is not AES_256, enabled, for encryption and decryption

	failureCount
)

// Stage is what KMS was doing: the same failure is another exception, with the same text.
type Stage uint8

const (
	AtStore  Stage = iota // CreateCustomKeyStore, UpdateCustomKeyStore
	AtKey                 // CreateKey
	AtCrypto              // cryptographic operations

	stageCount
)

// row is one of the table of failures.
type row struct {
	name       string                  // errorName, "" of a failure that no proxy sends
	status     int                     // HTTP status that it comes with
	codes      [stageCount]kmsapi.Code // OK: at this stage the proxy has no business to answer so, which is Malformed
	connection string                  // ConnectionErrorCode of ConnectCustomKeyStore
	text       string
}

// ConnectionErrorCode of external key stores.
const (
	connCredentials   = "INVALID_CREDENTIALS"
	connDenied        = "XKS_PROXY_ACCESS_DENIED"
	connConfiguration = "XKS_PROXY_INVALID_CONFIGURATION"
	connResponse      = "XKS_PROXY_INVALID_RESPONSE"
	connTLS           = "XKS_PROXY_INVALID_TLS_CONFIGURATION"
	connUnreachable   = "XKS_PROXY_NOT_REACHABLE"
	connTimedOut      = "XKS_PROXY_TIMED_OUT"
)

// The columns are "Error Codes" of the specification, then its table of KMS's exceptions and messages. For what it leaves open: texts of UnfitKey and Unhealthy
// are of "Troubleshooting external key stores" in the KMS Developer Guide; connection codes are as "Connection error codes for external key stores" there words
// them.
var table = [failureCount]row{
	Validation: {"ValidationException", 400, [...]kmsapi.Code{kmsapi.XksProxyInvalidResponse, kmsapi.CustomKeyStoreInvalidState, kmsapi.KMSInvalidState}, connResponse, textMalformed},
	InvalidState: {"InvalidStateException", 400, [...]kmsapi.Code{kmsapi.OK, kmsapi.XksKeyInvalidConfiguration, kmsapi.KMSInvalidState}, connResponse,
		"The external key associated with this KMS key in an external key store is not enabled in the external HSM. Enable the external key in the external HSM and retry the request."},
	InvalidCiphertext: {"InvalidCiphertextException", 400, [...]kmsapi.Code{kmsapi.OK, kmsapi.OK, kmsapi.KMSInvalidState}, connResponse,
		"The external key store proxy rejected the request because the specified ciphertext or encryption context is corrupted, missing, or otherwise invalid."},
	InvalidKeyUsage: {"InvalidKeyUsageException", 400, [...]kmsapi.Code{kmsapi.OK, kmsapi.XksKeyInvalidConfiguration, kmsapi.KMSInvalidState}, connResponse,
		"The external key associated with this KMS key in an external key store does not support the requested operation. Enable the operation on the key in your external HSM, and try the request again."},
	AuthenticationFailed: {"AuthenticationFailedException", 401,
		[...]kmsapi.Code{kmsapi.XksProxyIncorrectAuthenticationCredential, kmsapi.CustomKeyStoreInvalidState, kmsapi.KMSInvalidState}, connCredentials,
		"The external key store proxy rejected the request because it could not authenticate AWS KMS. Verify the XKS proxy authentication credentials for your external key store and update if necessary."},
	AccessDenied: {"AccessDeniedException", 403, [...]kmsapi.Code{kmsapi.OK, kmsapi.KMSInvalidState, kmsapi.KMSInvalidState}, connDenied,
		"The external key store proxy denied access to the operation. Verify that the user and the external key are both authorized for this operation, and try the request again."},
	KeyNotFound: {"KeyNotFoundException", 404, [...]kmsapi.Code{kmsapi.OK, kmsapi.XksKeyNotFound, kmsapi.KMSInvalidState}, connResponse,
		"The external key associated with this KMS key in an external key store was not found in its external HSM. If the external key ID associated with this KMS key is incorrect, create a new KMS key with the correct external key ID."},
	InvalidURIPath: {"InvalidUriPathException", 404, [...]kmsapi.Code{kmsapi.XksProxyInvalidConfiguration, kmsapi.CustomKeyStoreInvalidState, kmsapi.KMSInvalidState}, connConfiguration,
		"The external key store proxy rejected the request because of an invalid URI path. Verify the URI path for your external key store and update if necessary."},
	Throttling: {"ThrottlingException", 429, [...]kmsapi.Code{kmsapi.XksProxyUriUnreachable, kmsapi.CustomKeyStoreInvalidState, kmsapi.KMSInvalidState}, connUnreachable,
		"The external key store proxy rejected the request due to a very high request rate. Reduce the frequency of your calls using KMS keys in this external key store."},
	Internal: {"InternalException", 500, [...]kmsapi.Code{kmsapi.XksProxyInvalidResponse, kmsapi.CustomKeyStoreInvalidState, kmsapi.KMSInvalidState}, connResponse,
		"The external key store proxy rejected the request because it cannot communicate with the external HSM. Verify that the external key store proxy configuration is correct and that the external HSM is available."},
	// The specification has an XksKeyInvalidResponseException, which the service model has not.
	UnsupportedOperation: {"UnsupportedOperationException", 501, [...]kmsapi.Code{kmsapi.OK, kmsapi.XksProxyInvalidResponse, kmsapi.KMSInvalidState}, connResponse,
		"The external key store proxy rejected the request because it does not support the requested operation. If you see this error repeatedly, report it to your external key store proxy administrator."},
	DependencyTimeout: {"DependencyTimeoutException", 503, [...]kmsapi.Code{kmsapi.XksProxyUriUnreachable, kmsapi.CustomKeyStoreInvalidState, kmsapi.KMSInvalidState}, connTimedOut,
		"The external key store proxy did not respond to the request in the time allotted. Retry the request. If you see this error repeatedly, report it to your external key store proxy administrator."},

	Malformed: {"", 0, [...]kmsapi.Code{kmsapi.XksProxyInvalidResponse, kmsapi.CustomKeyStoreInvalidState, kmsapi.KMSInvalidState}, connResponse, textMalformed},
	BadCiphertext: {"", 0, [...]kmsapi.Code{kmsapi.OK, kmsapi.OK, kmsapi.KMSInvalidState}, connResponse,
		"The ciphertext that the external key store proxy submitted for decryption, or the encryption context, is corrupted, missing, or otherwise invalid."},
	Unreachable: {"", 0, [...]kmsapi.Code{kmsapi.XksProxyUriUnreachable, kmsapi.CustomKeyStoreInvalidState, kmsapi.KMSInvalidState}, connUnreachable,
		"AWS KMS cannot communicate with the external key store proxy. This might be a transient network issue. If you see this error repeatedly, verify that your external key store proxy is active and is connected to the network, and that its endpoint URI is correct in your external key store."},
	TLS: {"", 0, [...]kmsapi.Code{kmsapi.XksProxyUriUnreachable, kmsapi.CustomKeyStoreInvalidState, kmsapi.KMSInvalidState}, connTLS,
		"AWS KMS cannot establish a TLS connection to the external key store proxy. Verify the TLS configuration, including its certificate."},
	TimedOut: {"", 0, [...]kmsapi.Code{kmsapi.XksProxyUriUnreachable, kmsapi.CustomKeyStoreInvalidState, kmsapi.KMSInvalidState}, connTimedOut,
		"AWS KMS rejected the request because the external key store proxy did not respond in time. Retry the request. If you see this error repeatedly, report it to your external key store proxy administrator."},
	NotConnected: {"", 0, [...]kmsapi.Code{kmsapi.OK, kmsapi.CustomKeyStoreInvalidState, kmsapi.KMSInvalidState}, connUnreachable,
		"This KMS key is in a custom key store that is not connected to its external key store proxy. Connect the external key store and try the request again."},
	Unhealthy: {"", 0, [...]kmsapi.Code{kmsapi.XksProxyUriUnreachable, kmsapi.CustomKeyStoreInvalidState, kmsapi.KMSInvalidState}, connUnreachable,
		"The external key store proxy is in an unhealthy state. If you see this message repeatedly, notify your external key store proxy administrator."},
	UnfitKey: {"", 0, [...]kmsapi.Code{kmsapi.OK, kmsapi.XksKeyInvalidConfiguration, kmsapi.KMSInvalidState}, connResponse, ""}, // KeyMetadata.Unfit has the text
}

const textMalformed = "AWS KMS cannot interpret the response from the external key store proxy. If you see this error repeatedly, report it to your external key store proxy administrator."

// Name is the errorName of a failure that proxies send, "" of others.
func (f Failure) Name() string { return table[f].name }

// Status is the HTTP status of a failure that proxies send, 0 of others.
func (f Failure) Status() int { return table[f].status }

// FailureOf is the failure that proxies send with an errorName, OK if it is none of the API.
func FailureOf[T string | []byte](name T) Failure {
	for f := Validation; f <= DependencyTimeout; f++ {
		if table[f].name == string(name) {
			return f
		}
	}
	return OK
}

// Connection is the ConnectionErrorCode of a key store that does not come up for this reason.
func (f Failure) Connection() string { return table[f].connection }

// refusals are what At answers.
var refusals = func() (e [failureCount][stageCount]kmsapi.Error) {
	for f := OK + 1; f < failureCount; f++ {
		for s := range stageCount {
			r := &table[f]
			if r.codes[s] == kmsapi.OK {
				r = &table[Malformed]
			}
			e[f][s] = kmsapi.Error{Code: r.codes[s], Message: r.text}
		}
	}
	return e
}()

// At is what the caller of KMS is told. It is shared and not changed.
func (f Failure) At(s Stage) *kmsapi.Error { return &refusals[f][s] }

// String is the failure's name, for logs and metrics.
func (f Failure) String() string {
	if name := f.Name(); name != "" {
		return name
	}
	return names[f]
}

var names = [failureCount]string{
	OK: "OK", Malformed: "Malformed", BadCiphertext: "BadCiphertext", Unreachable: "Unreachable", TLS: "TLS", TimedOut: "TimedOut", NotConnected: "NotConnected",
	Unhealthy: "Unhealthy", UnfitKey: "UnfitKey",
}

// Error is a failure on its way to the caller of KMS.
type Error struct {
	Failure Failure
	Refusal *kmsapi.Error // what the caller is told
	Cause   error         // for logs; nil if the failure says it all. It holds no secrets
}

// Fail is the failure at a stage.
func Fail(f Failure, s Stage, cause error) *Error {
	return &Error{Failure: f, Refusal: f.At(s), Cause: cause}
}

func (e *Error) Error() string {
	if e.Cause == nil {
		return "external key store proxy: " + e.Failure.String()
	}
	return "external key store proxy: " + e.Failure.String() + ": " + e.Cause.Error()
}

// Unwrap has the refusal first, so that errors.As finds it.
func (e *Error) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Refusal}
	}
	return []error{e.Refusal, e.Cause}
}
