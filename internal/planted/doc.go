// Package planted has bugs for the fault runner to find (internal/faults): a runner that finds nothing in a program with a known bug proves nothing about one without.
// In a build without the tag plantedbugs Is is constantly false, and what it guards is not in the program.
package planted

// The bugs, each with what it does. The environment variable KEYPLANE_PLANTED_BUG names the one that is active.
const (
	BarrierAtOnce    = "barrier-at-once"   // a change is acknowledged although other processes have not applied it
	LeaseForever     = "lease-forever"     // a process goes on answering from a view of any age
	FollowerSkips    = "follower-skips"    // the follower drops some of the changes that it is told
	StaleLatest      = "stale-latest"      // the newest revision is read from one etcd member, which may be cut off
	AuditAfterReply  = "audit-after-reply" // the reply leaves, the record is written some time later
	AuditLost        = "audit-lost"        // some records are not written, their replies leave
	AliasCached      = "alias-cached"      // a moved alias is not forgotten by the cache
	GrantCached      = "grant-cached"      // a revoked grant is not forgotten by the cache
	EpochIgnored     = "epoch-ignored"     // a changed key stays in the cache
	CreateRepeated   = "create-repeated"   // a forwarded request whose answer was lost is sent to the next control plane whatever it is
	ResultSwapped    = "result-swapped"    // Decrypt returns what another job of its round was for
	DeletedEarly     = "deleted-early"     // a key is destroyed a day before its date
	SignatureIgnored = "signature-ignored" // the control plane believes a data node that a request was signed
	WriteLost        = "write-lost"        // the store says that it has written what it has not
)
