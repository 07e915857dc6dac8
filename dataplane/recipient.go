package dataplane

import (
	"encoding/hex"
	"strconv"
	"time"

	"github.com/keyplane/keyplane/internal/attest"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/bytesconv"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
)

// Recipient: an enclave's attestation document → conditions for authorize, and a reply for that enclave alone. What is secret in a reply goes through
// memberSecret, which is all that an operation has to do.

// Texts of refusals. A client learns nothing of why its document is not valid; the log says it.
const (
	textNoRoots     = "Recipient is not offered by this server: it has no roots to verify attestation documents with. Its operator configures them as attestation_roots."
	textNoDocument  = "Recipient needs KeyEncryptionAlgorithm and AttestationDocument."
	textBadDocument = "The attestation document is not valid."
)

// recipient verifies the attestation document that the request has, for every operation that takes one. It comes before anything is said of the key: what
// a document says is a part of the question whether the key may be used, and a refusal of it says nothing of whether there is such a key.
func (s *Server) recipient(r *request) kmsapi.Code {
	in := &r.in
	refuse := func(code kmsapi.Code, text string) kmsapi.Code {
		r.msg = emptied(r.msg) // it may replace a longer text
		return r.refuseText(code, text)
	}
	switch {
	case s.cfg.AttestationRoots == nil:
		return refuse(kmsapi.UnsupportedOperation, textNoRoots)
	case in.recipientAlg == nil || in.recipientDoc == nil:
		return refuse(kmsapi.Validation, textNoDocument)
	case !s.beginVerify():
		return refuse(kmsapi.Throttling, kmsapi.Throttling.Text())
	}
	defer s.endVerify()
	d, err := attest.Verify(in.recipientDoc, s.cfg.AttestationRoots, r.date)
	r.renewNow() // the time in the queue of a round counts from here
	if err != nil {
		if ok, _ := s.refusals.Take(warningLimit, time.Now().UnixNano()); ok {
			s.cfg.Logger.Info("an attestation document was refused", "error", err, "request", string(r.id[:]))
		}
		return refuse(kmsapi.Validation, textBadDocument)
	}
	r.attested = d
	return kmsapi.OK
}

// verifyWaitMax is how long a request waits for its turn to have its document verified.
const verifyWaitMax = time.Second

// beginVerify takes one of the turns to verify a document, and reports whether there was one in time. A document takes milliseconds of a core, a hundred
// times what all else takes: whoever sends many gets half of the cores at most, and other requests the rest.
func (s *Server) beginVerify() bool {
	select {
	case s.verifying <- struct{}{}:
		return true
	default:
	}
	late := time.NewTimer(verifyWaitMax)
	defer late.Stop()
	select {
	case s.verifying <- struct{}{}:
		return true
	case <-late.C:
		return false
	}
}

func (s *Server) endVerify() { <-s.verifying }

// pcrNames are the names of registers in condition keys, behind kms:RecipientAttestation:.
var pcrNames, tpmNames = names("PCR"), names("NitroTPMPCR")

func names(prefix string) (n [attest.PCRs]string) {
	for i := range n {
		n[i] = prefix + strconv.Itoa(i)
	}
	return n
}

// attestation is what conditions can ask about the recipient: kms:RecipientAttestation:…, in lower-case hexadecimal.
func attestation(d *attest.Document) []authz.ExtraValue {
	names := &pcrNames
	if d.TPM {
		names = &tpmNames
	}
	values := make([]authz.ExtraValue, 0, attest.PCRs+1)
	add := func(name, pcr string) {
		values = append(values, authz.ExtraValue{Key: policy.KMSRecipientAttestation, Name: name, Value: hex.EncodeToString(bytesconv.Bytes(pcr))})
	}
	if !d.TPM && d.PCRs[0] != "" {
		add("ImageSha384", d.PCRs[0])
	}
	for i, v := range &d.PCRs {
		if v != "" {
			add(names[i], v)
		}
	}
	return values
}

// memberSecret appends the member of a reply that holds a secret. A recipient gets it encrypted, as CiphertextForRecipient; in clear it is in no reply to
// a request that has one.
func (r *request) memberSecret(name string, secret []byte) kmsapi.Code {
	if r.attested == nil {
		if r.in.has&mRecipient != 0 {
			r.out = emptied(r.out)
			return r.refuse(kmsapi.KMSInternal) // nobody verified the document: a bug
		}
		r.memberBlob(name, secret)
		return kmsapi.OK
	}
	sealed, err := attest.Seal(r.attested.PublicKey, secret)
	if err != nil {
		r.out = emptied(r.out)
		return r.refuse(kmsapi.KMSInternal) // Verify takes no key that this can happen with
	}
	r.memberBlob("CiphertextForRecipient", sealed)
	return kmsapi.OK
}

// memberMaterial appends KeyMaterialId, which replies to a recipient do not have.
func (r *request) memberMaterial(id []byte) {
	if r.attested == nil {
		r.member("KeyMaterialId", id)
	}
}

// Registers that records show, by the names they have there.
var (
	enclaveRecord = []recordedPCR{
		{0, "attestationDocumentEnclaveImageDigest"}, {1, "attestationDocumentEnclavePCR1"}, {2, "attestationDocumentEnclavePCR2"},
		{3, "attestationDocumentEnclavePCR3"}, {4, "attestationDocumentEnclavePCR4"}, {8, "attestationDocumentEnclavePCR8"},
	}
	tpmRecord = []recordedPCR{
		{4, "attestationDocumentNitroTPMPCR4"}, {7, "attestationDocumentNitroTPMPCR7"}, {8, "attestationDocumentNitroTPMPCR8"},
		{9, "attestationDocumentNitroTPMPCR9"}, {16, "attestationDocumentNitroTPMPCR16"}, {23, "attestationDocumentNitroTPMPCR23"},
	}
)

type recordedPCR struct {
	index int
	name  string
}

// appendRecipient appends the member of additionalEventData that says to whom a reply was sealed, or would have been: only of documents that were verified.
func appendRecipient(dst []byte, d *attest.Document) []byte {
	dst = append(cloudtrail.AppendName(dst, "recipient"), '{')
	dst = cloudtrail.AppendMember(dst, "attestationDocumentModuleId", bytesconv.Bytes(d.ModuleID))
	list := enclaveRecord
	if d.TPM {
		list = tpmRecord
	}
	for _, p := range list {
		if v := d.PCRs[p.index]; v != "" {
			dst = append(cloudtrail.AppendName(dst, p.name), '"')
			dst = append(hex.AppendEncode(dst, bytesconv.Bytes(v)), '"')
		}
	}
	return append(dst, '}')
}
