package dataplane

import (
	"github.com/keyplane/keyplane/internal/awsjson"
	"github.com/keyplane/keyplane/internal/xks"
)

// xksInput holds the members of one request. The slices alias the body, which scanning changes; nil is absent.
type xksInput struct {
	// requestMetadata
	principal  []byte // awsPrincipalArn
	sourceVpc  []byte // awsSourceVpc
	sourceVpce []byte // awsSourceVpce
	keyARN     []byte // kmsKeyArn
	operation  []byte // kmsOperation
	requestID  []byte // kmsRequestId
	viaService []byte // kmsViaService

	plaintext     []byte
	aad           []byte // additionalAuthenticatedData
	algorithm     []byte // encryptionAlgorithm
	cdivAlgorithm []byte // ciphertextDataIntegrityValueAlgorithm
	ciphertext    []byte
	iv            []byte // initializationVector
	tag           []byte // authenticationTag
	metadata      []byte // ciphertextMetadata
}

// scan reads the body, false for what is no JSON or has a member of another type. It decodes strings and blobs over their own bytes. Members that it does not
// know are ignored: KMS may send more of them one day.
func (in *xksInput) scan(s *awsjson.Scanner, body []byte) bool {
	s.Reset(body)
	if s.Object() {
		for name, ok := s.Next(); ok; name, ok = s.Next() {
			switch string(name) {
			case "requestMetadata":
				in.scanMetadata(s)
			case "plaintext":
				in.plaintext, _ = s.Base64()
			case "additionalAuthenticatedData":
				in.aad, _ = s.Base64()
			case "encryptionAlgorithm":
				in.algorithm, _ = s.String()
			case "ciphertextDataIntegrityValueAlgorithm":
				in.cdivAlgorithm, _ = s.String()
			case "ciphertext":
				in.ciphertext, _ = s.Base64()
			case "initializationVector":
				in.iv, _ = s.Base64()
			case "authenticationTag":
				in.tag, _ = s.Base64()
			case "ciphertextMetadata":
				in.metadata, _ = s.Base64()
			}
		}
	}
	return s.End()
}

func (in *xksInput) scanMetadata(s *awsjson.Scanner) {
	if !s.Object() {
		return
	}
	for name, ok := s.Next(); ok; name, ok = s.Next() {
		switch string(name) {
		case "awsPrincipalArn":
			in.principal, _ = s.String()
		case "awsSourceVpc":
			in.sourceVpc, _ = s.String()
		case "awsSourceVpce":
			in.sourceVpce, _ = s.String()
		case "kmsKeyArn":
			in.keyARN, _ = s.String()
		case "kmsOperation":
			in.operation, _ = s.String()
		case "kmsRequestId":
			in.requestID, _ = s.String()
		case "kmsViaService":
			in.viaService, _ = s.String()
		}
	}
}

// check tests what the API says of the members of a request. That of requestMetadata is read, recorded and matched, and otherwise opaque.
func (in *xksInput) check(r *request, api xks.API) xks.Failure {
	crypto := api == xks.Encrypt || api == xks.Decrypt
	switch {
	case len(in.operation) == 0 || len(in.requestID) == 0:
		return r.refuseXKS(xks.Validation, "kmsOperation and kmsRequestId are required in requestMetadata.")
	case api != xks.GetHealthStatus && len(in.principal) == 0:
		return r.refuseXKS(xks.Validation, "awsPrincipalArn is required in requestMetadata.")
	case crypto && len(in.keyARN) == 0:
		return r.refuseXKS(xks.Validation, "kmsKeyArn is required in requestMetadata.")
	case crypto && string(in.algorithm) != xks.AlgorithmAESGCM:
		return r.refuseXKS(xks.Validation, "encryptionAlgorithm is required and has to be AES_GCM.")
	case crypto && len(in.aad) > xks.AADMax:
		return r.refuseXKS(xks.UnsupportedOperation, "additionalAuthenticatedData has more than 8192 bytes.")
	}
	for _, text := range [...][]byte{in.principal, in.sourceVpc, in.sourceVpce, in.keyARN, in.operation, in.requestID, in.viaService} {
		if len(text) > xks.ArnMax {
			return r.refuseXKS(xks.UnsupportedOperation, "A member of requestMetadata has more than 2048 bytes.")
		}
	}
	switch api {
	case xks.Encrypt:
		switch {
		case len(in.plaintext) == 0:
			return r.refuseXKS(xks.Validation, "plaintext is required.")
		case len(in.plaintext) > xks.PlaintextMax:
			return r.refuseXKS(xks.UnsupportedOperation, "plaintext has more than 4300 bytes.")
		case in.cdivAlgorithm != nil && string(in.cdivAlgorithm) != xks.AlgorithmCDIV:
			return r.refuseXKS(xks.Validation, "ciphertextDataIntegrityValueAlgorithm has to be SHA_256.")
		}
	case xks.Decrypt:
		switch {
		case len(in.ciphertext) > xks.PlaintextMax:
			return r.refuseXKS(xks.UnsupportedOperation, "ciphertext has more than 4300 bytes.")
		case len(in.ciphertext) == 0, len(in.iv) != len(r.xks.iv), len(in.tag) != xks.TagLen:
			return r.refuseXKS(xks.InvalidCiphertext, textXKSCiphertext)
		}
	}
	return xks.OK
}

// textXKSCiphertext never says what is wrong.
const textXKSCiphertext = "The ciphertext, its initialization vector, metadata or tag, or the additional authenticated data is missing or not valid."
