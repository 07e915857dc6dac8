// Package audit is a durable, tamper-evident log of records, each one line of JSON. It knows no operations, no principals and no HSM: records
// are bytes, the signer of checkpoints is a note.Signer. Only Search and the records that the log writes itself look into a record.
//
// One append, in log.go and writer.go:
//
//	Append copies the record into the group that is being filled, wakes the writer if it is idle, and waits
//	  writer   yields the processor once, takes the group, one write (and fdatasync)     meanwhile the next group fills
//	           settles the group: every Append of it returns with the same result
//	  watchdog settles it as failed when the write takes too long; then callers are refused at once until it is over
//
// Behind it, in integrate.go and keep.go:
//
//	integrator reads what was committed from the segments, hashes it into the tree and writes the hash files
//	keeper     signs and publishes checkpoints, compresses sealed segments, removes those that retention gives up
//
// The writer, the integrator and the keeper are three goroutines that Open starts and Close ends. A fourth, the reporter, hands their messages to
// the Logger, so that a Logger that hangs holds up nobody.
//
// # Files
//
//	segment-<first index, 20 digits>.log      entries: big-endian uint16 length ‖ record, as in an entry bundle of c2sp.org/tlog-tiles
//	segment-<…>.log.zst                       the same, sealed: one zstd frame, then a skippable frame with the SHA-256 of the bytes before it
//	segment-<…>.hashes                        leaf hashes of the segment (32 bytes a record): level-0 tiles back to back
//	tiles-1 … tiles-7                         hashes of subtrees of 256^L records: level-L tiles back to back
//	checkpoint                                newest checkpoint: a c2sp.org/tlog-checkpoint with one signature
//	checkpoints                               all of them in order, each followed by an empty line
//	lock                                      held by the process that writes
//
// The tree is that of RFC 6962, leaves are records. A checkpoint has an extension line "previous <base64>", the SHA-256 of the checkpoint before
// it. ExportTiles writes the layout of c2sp.org/tlog-tiles. A checkpoint covers a record only after the record and its hashes are on the disk.
//
// # What is found
//
// Open finds what it needs in order to go on: a damaged tip, missing files, a copy older than the checkpoint that is kept elsewhere. A record that was
// cut in the middle at the very end was never acknowledged and is removed. Verify finds everything else.
//
// Reading order: config.go log.go writer.go file.go segment.go tree.go hashes.go checkpoint.go integrate.go keep.go readback.go open.go verify.go search.go tiles.go.
package audit
