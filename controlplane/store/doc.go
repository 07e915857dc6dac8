// Package store keeps the control plane's state in etcd, the one state engine: embedded in this process (OpenEmbedded) or an external
// cluster (OpenExternal), with the same client code. It knows records, their keys in etcd and the transactions that keep them consistent.
// It does not know HTTP, the HSM, SigV4, or which operation is allowed in which key state: callers decide that in a function which the
// store runs inside the transaction.
//
//	/keyplane/1/meta/format                                  - what this layout is
//	/keyplane/1/meta/store                                   = which store it is, its epoch, and the key of all that is authenticated, sealed (identity.go)
//	/keyplane/1/meta/barrier                                 - written to learn that earlier writes have settled
//	/keyplane/1/meta/{account,region,root,audit-key}         + facts that hold for the whole store (Pin)
//	/keyplane/1/elapsed/<region>                             + for how long workers of the Region have run over this store (Elapsed)
//	/keyplane/1/owner/<region>                               p under a lease: the process ID of whose workers do the Region's work (Own)
//	/keyplane/1/member/<incarnation>                         p under a lease: a process that answers from its view of the store (Join)
//	/keyplane/1/revoked/<serial number>                      + a member's certificate that nobody takes any more (Revoke)
//	/keyplane/1/audit/checkpoint/<log>                       + the newest checkpoint of an audit log, a signed note as it is
//	/keyplane/1/key/<region>/<account>/<key ID>              + record: state, description, versions with salts, tags, alias names
//	/keyplane/1/policy/<region>/<account>/<key ID>           + key policy, as it was given, and whom its principals were then
//	/keyplane/1/grant/<region>/<account>/<key ID>/<grant ID>                            + record: who may do what under which constraints
//	/keyplane/1/grantee/<region>/<account>/<key ID>/<hash of grantee>/<grant ID>        + index by grantee: the grant as decisions need it
//	/keyplane/1/granteesize/<region>/<account>/<key ID>/<hash of grantee>               + how large these are together
//	/keyplane/1/grantname/<region>/<account>/<key ID>/<hash of name and all the rest>   + index of named grants, for idempotency
//	/keyplane/1/grantcount/<region>/<account>/<key ID>                                  + how many grants the key has
//	/keyplane/1/retiring/<region>/<hash of principal>/<account>/<key ID>/<grant ID>     p index by retiring principal
//	/keyplane/1/keycount/<region>/<account>/<digit>          + how many keys there are whose ID ends with the digit (keycount.go)
//	/keyplane/1/quota/<region>/<account>                     + record: what the account has instead of the usual quotas
//	/keyplane/1/keystore/<region>/<account>/<key store ID>   + record: custom key store, sealed secret
//	/keyplane/1/keystorekey/<region>/<account>/<key store ID>/<key ID>   p index of the keys that are in a custom key store
//	/keyplane/1/keystorecluster/<cluster ID>                 p there while a custom key store has the CloudHSM cluster
//	/keyplane/1/xkskey/<region>/<account>/<key store ID>/<XksKeyId>      p there while a key of the external key store has the external key
//	/keyplane/1/alias/<region>/<account>/<name>              + record: target, dates; <name> without "alias/"
//	/keyplane/1/deletion/<region>/<date>/<account>/<key ID>  p index of keys pending deletion, in order of their date
//	/keyplane/1/{rotation,expiry,expired}/…                  p the same of keys whose rotation is due, whose imported material expires, and has expired (Errand)
//	/keyplane/1/replication/…                                p the same of primary keys that have something to tell another Region, at AtOnce
//	/keyplane/1/farewell/<region>/<account>/<key ID>         + a deleted replica of which its primary does not know yet
//	/keyplane/1/tombstone/<region>/<account>/<key ID>        + a deleted key's ID, which can never come back, but as a replica, another one, of a primary that has it still
//	/keyplane/1/accesskey/<access key ID>                    + record: principal, sealed secret
//	/keyplane/1/iam/account/<account>                        + record: root user's access keys, how many users, roles and policies there are
//	/keyplane/1/iam/user/<account>/<name>                    + record: ID, inline policies, attached policies, tags, access keys; <name> in lower case
//	/keyplane/1/iam/role/<account>/<name>                    + likewise, with its trust policy
//	/keyplane/1/iam/policy/<account>/<name>                  + record: managed policy, how often it is in use
//	/keyplane/1/iam/service/<name>                           + record: registered service, the accounts it may act for
//	/keyplane/1/iam/session/<account>/<access key ID>        + record: temporary credentials, sealed secret; on a lease
//
// + is authenticated (auth.go): a value that this system did not write there, in this store and epoch, or that has been replaced since, is refused as damaged, and allows nothing.
// p is written the same, but only that it is there is ever asked, so that whoever can write to etcd can put one there: that has a worker look at a record which
// says that there is nothing to do, or refuses a name as taken, and allows nothing that the records do not. = is authenticated by itself, being sealed. - is not: the format has to agree with
// what meta/store and the process's own store-seen (floor.go) say, and a barrier says nothing. A prefix that is new belongs into this list, which a test reads.
//
// No trailer tells that a record is missing: who can write to etcd can delete. What that can do is bounded by what is decided on records that are there: a key without its record, policy or
// one grant serves fewer. A tombstone that is gone lets nothing back without the record itself, of which none can be made.
//
// A value, but for its trailer, is one format byte and strict JSON, but for a policy's (policy.go), a checkpoint and what is under meta; an unknown format, an unknown or duplicate member, or a record
// that names another key than its place in etcd is refused as damaged.
//
// A write is read, change, and one transaction that compares the mod revision of everything the decision was taken on; it is tried again
// on a conflict, a bounded number of times. Reads are linearizable. Who keeps what was read follows the changes (Follow), all of which are under one prefix.
//
// Deleting a key takes its record, policy, grants, aliases and index entry away in one transaction, but for the entries of its grants in the
// index by retiring principal, which are removed by whoever meets them; Compact then drops the old revisions. What that leaves: freed pages
// of etcd's database and old segments of its write-ahead log are reused and removed in etcd's own time, and a backup keeps what it has. A salt is therefore confidential, not secret: without the HSM's root it gives nothing (docs/ciphertext.md §5).
//
// Each process that writes also has two files beside etcd's: deleted-keys, so that a key that was deleted does not come back with an older copy of etcd's files or
// a backup (graves.go), its lines authenticated under the HSM's root; and store-seen, so that an older copy is not served from without anybody having said so (floor.go).
//
// The embedded etcd owns its goroutines from OpenEmbedded to Close. A failed fsync or a broken write-ahead log ends the process: etcd
// must not go on with a disk that it cannot trust.
package store
