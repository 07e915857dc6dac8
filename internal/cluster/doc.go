// Package cluster runs keyplane's processes on this machine, as `make cluster` does and as the fault runner needs it: an etcd cluster, control planes and data nodes,
// or `keyplane serve` alone, each a process of its own with a data directory, a log and an HSM token of its own, and connections between them that can be made bad.
//
// Processes that end by themselves are started again, as a service manager would. Faults are a process killed, frozen or thawed (Process), a link that delays, holds
// back or breaks connections (Network), a system call that fails (Inject), a device that answers with errors (Node.HSM), and a clock that is set (Node.SetClock).
package cluster
