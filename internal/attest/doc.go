// Package attest verifies the attestation documents of AWS Nitro Enclaves and NitroTPM instances, and encrypts what is meant for their eyes only. It knows
// neither the KMS API nor policies: a document goes in and facts come out, a key and a plaintext go in and a CMS message comes out.
//
//	Verify  cose.go      COSE_Sign1 → payload and signature, byte for byte as RFC 9052 would have them written
//	        document.go  payload → fields, within AWS's limits and fresh
//	        chain.go     certificate and cabundle → the configured roots
//	Seal    cms.go       RSA key and plaintext → EnvelopedData
//
// AWS describes the documents and how to check them in aws-nitro-enclaves-nsm-api, docs/attestation_process.md, and in the EC2 User Guide, "Validate a
// NitroTPM Attestation Document". What is decided otherwise here:
//
//   - Optional fields may be null, and the payload's map may have an indefinite length: Nitro hypervisors write both.
//   - A document is fresh for five minutes, and may be a minute ahead of this clock.
//   - The public key has to be there, and RSA of 2048 to 4096 bits.
package attest
