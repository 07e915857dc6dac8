// Command faults loads keyplane, breaks parts of it, and looks at whether what is promised holds (`make faults`).
//
// A run starts the processes of internal/cluster, with HSMs, links, disks and clocks that it can make bad, and clients: some encrypt and decrypt, each plaintext with a
// canary of its own; some change keys, aliases, tags and grants of their own and remember what was acknowledged; some try, after an acknowledged change, to do at
// every node what it has ended; and some make histories for porcupine. Then it makes faults, one at a time, in an order of the seed. Each has a length of its own; when it is
// over, every node has to answer a cryptographic operation and a change again within five seconds.
//
// At the end everything acknowledged is read again, every ciphertext that was kept is decrypted, clocks are set forward to the eve of the deletion of keys that wait
// for it, and beyond, and every success has to have its record in an audit log that verifies. What was found goes into a report in JSON, with the seed. The seed repeats
// what is done to whom in which order; when it happens is up to the machine.
//
// With -bug the program has a bug that was planted (internal/planted), and a run that finds nothing has failed.
//
// With -measure it measures what losing a part costs clients, how long a change takes to be in force everywhere and what another node adds, or works out what a very large
// deployment needs (docs/scaling.md).
//
// Files, in reading order: main.go, run.go, kinds.go (faults); client.go, load.go, writers.go, trials.go, history.go (clients); doomed.go, audited.go (what is looked at in the
// end); findings.go, tally.go, report.go; bugs.go; measure.go, scaling.go.
package main
