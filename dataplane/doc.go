// Package dataplane serves the cryptographic operations of AWS KMS over fasthttp and hands every other operation on to the control plane.
// It owns the client's socket. It does not know etcd, policies' storage, PKCS#11 or the control plane's code.
//
// One GenerateDataKey, from socket to HSM and back; read the files in this order:
//
//	server.go     the fasthttp server, its limits, /healthz and /readyz
//	handle.go     THE main path: pre-check → SigV4 → route → run → reply
//	fence.go      of several processes: whether this one may answer
//	precheck.go   the raw header block: what fasthttp accepts and this service refuses
//	request.go    everything one request needs, pooled; wiped when its reply has left
//	regions.go    what is of the Region that a request was signed for: names in the caches, and what the control plane tells of changes
//	input.go      scan (bytes → fields) and check (all constraints, one message)
//	keys.go       resolve key ID, ARN or alias to a snapshot, on lease from the cache; load; admit
//	generatedatakey.go, decrypt.go, encrypt.go, reencrypt.go, generaterandom.go
//	privatekey.go, sign.go, mac.go, sharedsecret.go, rsa.go, getpublickey.go, datakeypair.go
//	              keys that are not for symmetric encryption: a KeyJob of hsm.Keys for the private half, internal/pubkey for the public one
//	residentkey.go
//	              symmetric keys that are keys of their own in the HSM: a KeyJob for the message key
//	keystores.go, customkey.go, externalkey.go
//	              keys in custom key stores: what is asked of the connection; an external key around what is encrypted
//	xks.go, xkstable.go, xksinput.go, xkskey.go, xkshealth.go, xksaudit.go
//	              the other way round: keys of ours as external keys of AWS KMS, on a listener of its own
//	recipient.go  attestation documents: whom a reply is sealed for
//	envelope.go   derive (one round in the batcher), seal, open
//	conn.go       when a reply has left the process, and that nothing of it stays
//
// Every operation has the same five verbs: scan → check → admit → do → append. It returns a kmsapi.Code and leaves the message of a refusal
// in request.msg; only finish writes a response. In steady state nothing here allocates between the parsed header and the written reply, but for
// requests with a Recipient.
//
// Goroutines are fasthttp's, one per connection; a round runs in the goroutine of one of the connections it serves (package batch).
package dataplane
