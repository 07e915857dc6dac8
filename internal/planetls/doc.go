// Package planetls makes the tls.Config of both ends of a connection between the parts of a cluster: control planes, data planes, etcd and clients of their
// listeners. A part shows a certificate of the cluster's own CA, whose one URI names it: keyplane://<role>/<node id>. TLS 1.3 only, no session tickets,
// X25519MLKEM768 first; Go prefers AES-GCM in TLS 1.3 wherever the processor has AES instructions, and lets nobody choose. Between our own parts only key exchanges with
// ML-KEM are taken: what is recorded today stays closed to who can break the rest later.
//
// Certificate, key and CA come from files, which are read again while the process runs: whoever replaces them restarts nothing, and connections that exist go
// on. The files are looked at when there is a handshake, at most once a second, and by Source.Reload. A set that does not fit together keeps the one before.
//
// The package knows no protocol: what a role may ask for is the handler's decision, who has Peer for it. Certificates are made by planeca.
package planetls
