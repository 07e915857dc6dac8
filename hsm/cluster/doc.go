// Package cluster makes one key store of several HSMs that each hold a copy of every key: a CloudHSM cluster, whose members are PKCS#11 tokens with the roots of
// keyplane. It stands on hsm.Token and hsm.KeyRing, and knows neither modules nor the KMS API: who opens a token, and what joins jobs into rounds, is handed in.
//
//	Connect ──► each member: Open(PIN), a key ring, sessions for random bytes     one that comes up is enough; the others are tried again, till Disconnect
//	Ask ──► each member: which HSM it is, without a login          Learn ──► as Connect, for the roots, and it ends when enough are up
//	Run ──► the member that has the fewest jobs, of those with a copy of the key
//	          KeyRing.Run        a fault of the device goes to the next member, one of the data is the caller's
//	NewKey ──► a real call on every member, those that are away too; two at least must answer
//	             Generate on one, its images of the known blocks
//	             each other member: Export for an RSA key that was made in it, Import, and the same images of the blocks
//	             again, until every member that answers has proved its copy: one that came back meanwhile too
//
// Members may have the same roots, as tokens do that were cloned, or roots of their own. A key is stored once for each different root: those are its copies.
//
// cluster.go has the connection, member.go a member's coming, going and coming back, run.go the use of keys, keys.go their making.
//
// Goroutines, all of a connection: one that looks after each member from Connect to Disconnect, and one for each call that opens, tries or closes a token, since
// modules hang; one for each member whose root is not the others', which makes it ready for keys of theirs when it comes up. A call that hangs is waited for a
// bounded time and then left behind. Those who look after a member at the same time share one call, and who makes keys waits for a member that is away for a second
// at most.
package cluster
