package attest

import (
	"crypto/rsa"
	"crypto/x509"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// Limits of documents. Those of lengths are AWS's but for moduleIDMax and bundleMax, which AWS leaves open.
const (
	DocumentMax = 262144 // bytes, of the KMS API
	payloadMax  = 16384
	moduleIDMax = 256
	bundleMax   = 8
	certMax     = 1024
	keyMax      = 1024
	dataMax     = 512 // user_data and nonce
	PCRs        = 32  // registers are numbered from 0 to PCRs-1

	AgeMax    = 5 * time.Minute // of a document, by its own timestamp
	AheadMax  = time.Minute     // of a document whose clock is ahead of ours
	keyBitMin = 2048
	keyBitMax = 4096
)

// Document is what a verified document says. Nothing in it aliases the bytes it was read from.
type Document struct {
	ModuleID  string // who attests: "i-…-enc…", "i-…-tpm…"
	Time      time.Time
	TPM       bool         // PCRs are of a NitroTPM, else of an enclave
	PCRs      [PCRs]string // the bytes of the registers: 32, 48 or 64; "" is not attested
	PublicKey *rsa.PublicKey
}

// Error is why a document was refused. The reason is for the operator's log; clients learn none.
type Error struct {
	Reason string // says nothing that the document says
	Err    error  // nil, or what a library said: it may quote the document
}

func (e *Error) Error() string {
	if e.Err != nil {
		return "attestation document refused: " + e.Reason + ": " + e.Err.Error()
	}
	return "attestation document refused: " + e.Reason
}

func (e *Error) Unwrap() error { return e.Err }

func refuse(reason string) error { return &Error{Reason: reason} }

// Verify reads a document and returns what it says, if a hypervisor whose certificate chains to one of the roots signed it, within AgeMax before now.
// Every error is an *Error.
func Verify(document []byte, roots *x509.CertPool, now time.Time) (*Document, error) {
	payload, signature, err := openEnvelope(document)
	if err != nil {
		return nil, err
	}
	p, err := parsePayload(payload)
	if err != nil {
		return nil, err
	}
	d := &Document{ModuleID: p.ModuleID, Time: time.UnixMilli(int64(p.Timestamp)), TPM: p.TPMPCRs != nil}
	if err = d.setPCRs(p); err != nil {
		return nil, err
	}
	if now.Sub(d.Time) > AgeMax {
		return nil, refuse("it is too old")
	}
	if d.Time.Sub(now) > AheadMax {
		return nil, refuse("its timestamp is in the future")
	}
	key, err := verifyChain(p, roots, now)
	if err != nil {
		return nil, err
	}
	if !verifySignature(key, payload, signature) {
		return nil, refuse("its signature is not valid")
	}
	if d.PublicKey, err = parseKey([]byte(p.PublicKey)); err != nil {
		return nil, err
	}
	return d, nil
}

// payload is the signed map. A field that is null is as one that is absent; cbor.ByteString takes byte strings only.
type payload struct {
	ModuleID    string                     `cbor:"module_id"`
	Digest      string                     `cbor:"digest"`
	Timestamp   uint64                     `cbor:"timestamp"` // milliseconds since 1970
	PCRs        map[uint64]cbor.ByteString `cbor:"pcrs"`
	TPMPCRs     map[uint64]cbor.ByteString `cbor:"nitrotpm_pcrs"`
	Certificate cbor.ByteString            `cbor:"certificate"`
	Bundle      []cbor.ByteString          `cbor:"cabundle"` // the root first
	PublicKey   cbor.ByteString            `cbor:"public_key"`
	UserData    cbor.ByteString            `cbor:"user_data"`
	Nonce       cbor.ByteString            `cbor:"nonce"`
}

// strict reads payloads. Duplicate keys, fields that are not known, tags and trailing bytes are errors, field names have to match exactly, and nothing is
// allocated by a length that the input does not have. MaxArrayElements and MaxMapPairs cannot be less than 16.
var strict = mode(cbor.DecOptions{
	DupMapKey:         cbor.DupMapKeyEnforcedAPF,
	IndefLength:       cbor.IndefLengthAllowed, // of the map itself: hypervisors of 2025 write it so
	TagsMd:            cbor.TagsForbidden,
	MaxNestedLevels:   4,
	MaxArrayElements:  16,
	MaxMapPairs:       PCRs,
	UTF8:              cbor.UTF8RejectInvalid,
	FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
	ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
})

func mode(o cbor.DecOptions) cbor.DecMode {
	m, err := o.DecMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return m
}

// parsePayload reads the payload and holds it against AWS's list of constraints, "Syntactical validation".
func parsePayload(data []byte) (*payload, error) {
	p := new(payload)
	if len(data) > 0 && data[0]>>5 != cborMap {
		return nil, refuse("the payload is not a map")
	}
	if err := strict.Unmarshal(data, p); err != nil {
		return nil, &Error{Reason: "the payload is not the CBOR of a document", Err: err}
	}
	switch {
	case p.ModuleID == "" || len(p.ModuleID) > moduleIDMax:
		return nil, refuse("module_id is missing or too long")
	case p.Digest != "SHA384":
		return nil, refuse("digest is not SHA384")
	case p.Timestamp == 0 || p.Timestamp > 1<<53:
		return nil, refuse("timestamp is missing or out of range")
	case (p.PCRs == nil) == (p.TPMPCRs == nil):
		return nil, refuse("one of pcrs and nitrotpm_pcrs has to be there")
	case len(p.Certificate) < 1 || len(p.Certificate) > certMax:
		return nil, refuse("certificate is missing or too long")
	case len(p.Bundle) < 1 || len(p.Bundle) > bundleMax:
		return nil, refuse("cabundle is missing or too long")
	case len(p.PublicKey) < 1 || len(p.PublicKey) > keyMax:
		return nil, refuse("public_key is missing or too long")
	case len(p.UserData) > dataMax:
		return nil, refuse("user_data is too long")
	case len(p.Nonce) > dataMax:
		return nil, refuse("nonce is too long")
	}
	for _, c := range p.Bundle {
		if len(c) < 1 || len(c) > certMax {
			return nil, refuse("a certificate of cabundle is empty or too long")
		}
	}
	return p, nil
}

// setPCRs takes the registers over.
func (d *Document) setPCRs(p *payload) error {
	pcrs := p.PCRs
	if d.TPM {
		pcrs = p.TPMPCRs
	}
	if len(pcrs) < 1 || len(pcrs) > PCRs {
		return refuse("the number of PCRs is out of range")
	}
	for i, v := range pcrs {
		switch {
		case i >= PCRs:
			return refuse("a PCR's index is out of range")
		case len(v) != 32 && len(v) != 48 && len(v) != 64:
			return refuse("a PCR does not have 32, 48 or 64 bytes")
		}
		d.PCRs[i] = string(v)
	}
	return nil
}

// parseKey reads the key to encrypt to, a SubjectPublicKeyInfo.
func parseKey(der []byte) (*rsa.PublicKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, &Error{Reason: "public_key is not a SubjectPublicKeyInfo", Err: err}
	}
	key, ok := parsed.(*rsa.PublicKey)
	switch {
	case !ok:
		return nil, refuse("public_key is not RSA")
	case key.N.BitLen() < keyBitMin || key.N.BitLen() > keyBitMax || key.N.Bit(0) == 0:
		return nil, refuse("public_key does not have 2048 to 4096 bits")
	case key.E < 65537 || key.E&1 == 0:
		return nil, refuse("the exponent of public_key is not an odd number from 65537 on")
	}
	return key, nil
}
