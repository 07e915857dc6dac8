// Package replication is how the control planes of two Regions talk about multi-Region keys: messages, their one encoding, and an Endpoint that signs what
// it sends and refuses what was not sent to it by the peer that it says it is from, now, once (docs/replication.md). It does not know what messages are
// about: keys, the store and the HSM are the control plane's, and how bytes get to the other side is a function of the peer's.
//
//	Call      sign ── Peer.Send ──► Receive: verify, answer, sign
//	          verify the answer ◄──
//
// Reading order: message.go, envelope.go, endpoint.go. An Endpoint starts no goroutine.
package replication
