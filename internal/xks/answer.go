package xks

import (
	"bytes"
	"strings"

	"github.com/keyplane/keyplane/internal/awsjson"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// wrong says what is wrong with an answer. The texts repeat nothing of it.
type wrong string

func (w wrong) Error() string { return string(w) }

// What follows reads the bodies of answers with status 200, and changes them: strings and blobs are decoded in place. The results are copies. Members that the
// API does not have are skipped; what else is not as the specification wants it is an error, which is a Malformed failure.

// Health is what GetHealthStatus answers.
type Health struct {
	FleetSize                int64 // of the proxy
	Vendor, Model, EKMVendor string
	Fleet                    []EKM // ekmFleetDetails, 1 to 10
}

// EKM is one HSM of the external key manager.
type EKM struct {
	ID, Model string
	Status    string // ACTIVE, DEGRADED or UNAVAILABLE
}

const unavailable = "UNAVAILABLE"

// Available says whether any HSM can be used.
func (h *Health) Available() bool {
	for i := range h.Fleet {
		if h.Fleet[i].Status != unavailable {
			return true
		}
	}
	return false
}

// ReadHealth reads the answer to GetHealthStatus.
func ReadHealth(body []byte) (*Health, error) {
	var s awsjson.Scanner
	s.Reset(body)
	h := new(Health)
	if s.Object() {
		for name, ok := s.Next(); ok; name, ok = s.Next() {
			switch string(name) {
			case "xksProxyFleetSize":
				h.FleetSize, _ = s.Int()
			case "xksProxyVendor":
				h.Vendor = text(&s)
			case "xksProxyModel":
				h.Model = text(&s)
			case "ekmVendor":
				h.EKMVendor = text(&s)
			case "ekmFleetDetails":
				h.Fleet = readFleet(&s)
			}
		}
	}
	switch {
	case !s.End():
		return nil, fault(&s)
	case h.FleetSize < 1:
		return nil, wrong("xksProxyFleetSize is not positive")
	case h.Vendor == "" || h.Model == "" || h.EKMVendor == "":
		return nil, wrong("xksProxyVendor, xksProxyModel or ekmVendor is missing")
	case len(h.Fleet) < 1 || len(h.Fleet) > FleetMax:
		return nil, wrong("ekmFleetDetails has not 1 to 10 entries")
	}
	for i := range h.Fleet {
		e := &h.Fleet[i]
		if e.ID == "" || e.Model == "" || e.Status != "ACTIVE" && e.Status != "DEGRADED" && e.Status != unavailable {
			return nil, wrong("an entry of ekmFleetDetails has no id, no model or no healthStatus of the API")
		}
	}
	return h, nil
}

// readFleet keeps one entry more than there may be.
func readFleet(s *awsjson.Scanner) (fleet []EKM) {
	if !s.List() {
		return nil
	}
	for s.More() {
		var e EKM
		if s.Object() {
			for name, ok := s.Next(); ok; name, ok = s.Next() {
				switch string(name) {
				case "id":
					e.ID = text(s)
				case "model":
					e.Model = text(s)
				case "healthStatus":
					e.Status = text(s)
				}
			}
		}
		if len(fleet) <= FleetMax {
			fleet = append(fleet, e)
		}
	}
	return fleet
}

// KeyMetadata is what GetKeyMetadata answers.
type KeyMetadata struct {
	Spec   string
	Usages []string // at most KeyUsagesMax
	Status string
}

const wordMax = 64 // bytes of what is repeated to the caller of CreateKey; ours

// ReadKeyMetadata reads the answer to GetKeyMetadata.
func ReadKeyMetadata(body []byte) (*KeyMetadata, error) {
	var s awsjson.Scanner
	s.Reset(body)
	m := new(KeyMetadata)
	if s.Object() {
		for name, ok := s.Next(); ok; name, ok = s.Next() {
			switch string(name) {
			case "keySpec":
				m.Spec = text(&s)
			case "keyStatus":
				m.Status = text(&s)
			case "keyUsage":
				if !s.List() {
					break
				}
				for s.More() {
					if usage := text(&s); len(m.Usages) <= KeyUsagesMax {
						m.Usages = append(m.Usages, usage)
					}
				}
			}
		}
	}
	switch {
	case !s.End():
		return nil, fault(&s)
	case len(m.Usages) == 0 || len(m.Usages) > KeyUsagesMax:
		return nil, wrong("keyUsage has not 1 to 10 entries")
	}
	for _, word := range append([]string{m.Spec, m.Status}, m.Usages...) {
		if !only(word, 1, wordMax, ofWord) {
			return nil, wrong("keySpec, keyUsage or keyStatus is no word")
		}
	}
	return m, nil
}

// Unfit says why the external key cannot be that of a KMS key, nil if it can. The texts are those of "External key requirements not met" in the KMS Developer
// Guide.
func (m *KeyMetadata) Unfit() *Error {
	var encrypts, decrypts bool
	for _, usage := range m.Usages {
		encrypts = encrypts || usage == UsageEncrypt
		decrypts = decrypts || usage == UsageDecrypt
	}
	text := ""
	switch {
	case m.Spec != KeySpecAES256:
		text = "The key spec of the external key must be AES_256. The key spec of specified external key is " + m.Spec + "."
	case m.Status != StatusEnabled:
		text = "The status of the external key must be ENABLED. The status of specified external key is " + m.Status + "."
	case !encrypts || !decrypts:
		text = "The key usage of the external key must include ENCRYPT and DECRYPT. The key usage of specified external key is " + strings.Join(m.Usages, ", ") + "."
	default:
		return nil
	}
	return &Error{Failure: UnfitKey, Refusal: kmsapi.New(UnfitKey.At(AtKey).Code, text)}
}

// ReadEncrypt reads the answer to an Encrypt of n bytes with the additional authenticated data, for which a CDIV was asked.
func ReadEncrypt(body []byte, n int, aad []byte) (Sealed, error) {
	var s awsjson.Scanner
	s.Reset(body)
	var in Sealed
	var cdiv []byte
	if s.Object() {
		for name, ok := s.Next(); ok; name, ok = s.Next() {
			switch string(name) {
			case "ciphertext":
				in.Ciphertext, _ = s.Base64()
			case "ciphertextMetadata":
				in.Metadata, _ = s.Base64()
			case "initializationVector":
				in.IV, _ = s.Base64()
			case "authenticationTag":
				in.Tag, _ = s.Base64()
			case "ciphertextDataIntegrityValue":
				cdiv, _ = s.Base64()
			}
		}
	}
	switch {
	case !s.End():
		return Sealed{}, fault(&s)
	case len(in.Ciphertext) != n:
		return Sealed{}, wrong("ciphertext is not as long as the plaintext")
	case len(in.IV) != IVMin && len(in.IV) != IVMax:
		return Sealed{}, wrong("initializationVector has not 12 or 16 bytes")
	case len(in.Tag) != TagLen:
		return Sealed{}, wrong("authenticationTag has not 16 bytes")
	case len(in.Metadata) > MetadataMax:
		return Sealed{}, wrong("ciphertextMetadata has more than 20 bytes")
	}
	if sum := CDIV(&in, aad); !bytes.Equal(sum[:], cdiv) {
		return Sealed{}, wrong("ciphertextDataIntegrityValue is missing or another")
	}
	return Sealed{IV: bytes.Clone(in.IV), Ciphertext: bytes.Clone(in.Ciphertext), Tag: bytes.Clone(in.Tag), Metadata: bytes.Clone(in.Metadata)}, nil
}

// ReadDecrypt reads the answer to a Decrypt of n bytes.
func ReadDecrypt(body []byte, n int) ([]byte, error) {
	var s awsjson.Scanner
	s.Reset(body)
	var plaintext []byte
	if s.Object() {
		for name, ok := s.Next(); ok; name, ok = s.Next() {
			if string(name) == "plaintext" {
				plaintext, _ = s.Base64()
			}
		}
	}
	switch {
	case !s.End():
		return nil, fault(&s)
	case len(plaintext) != n:
		return nil, wrong("plaintext is not as long as the ciphertext")
	}
	return bytes.Clone(plaintext), nil
}

// ReadError reads an answer whose status is not 200: the failure that it names, Malformed if it is none of the API's, and what the proxy says of it, "" if that
// is not printable ASCII of at most ErrorMessageMax bytes. The message is for logs, never for a caller of KMS.
func ReadError(body []byte) (f Failure, message string) {
	var s awsjson.Scanner
	s.Reset(body)
	if s.Object() {
		for name, ok := s.Next(); ok; name, ok = s.Next() {
			switch string(name) {
			case "errorName":
				value, _ := s.String()
				f = FailureOf(value)
			case "errorMessage":
				if value, _ := s.String(); only(value, 1, ErrorMessageMax, ofText) {
					message = string(value)
				}
			}
		}
	}
	if !s.End() || f == OK {
		return Malformed, ""
	}
	return f, message
}

func text(s *awsjson.Scanner) string {
	value, _ := s.String()
	return string(value)
}

func fault(s *awsjson.Scanner) error {
	return wrong(s.AppendFault([]byte("not the JSON of the API: ")))
}
