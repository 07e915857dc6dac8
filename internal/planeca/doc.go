// Package planeca is the CA of a cluster: it issues the certificates by which control planes, data planes, etcd and clients of their listeners know each other
// (planetls). Its key is an EC P-256 pair in the HSM, beside the audit key and on the same terms; its root certificate is a file.
//
//	ca.go      the root certificate, and certificates for members
//	renew.go   over the wire: a member with a valid certificate gets the next one, for a new key and the same name
//	keep.go    in a member: renews in time, and puts certificate and key where planetls finds them
//
// Several tokens need not hold the same CA key. Each control plane may have its own, never extractable: the file of CAs that members are given then has the root
// certificates of all, and whichever issues is known to all.
package planeca
