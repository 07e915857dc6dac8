// Package lastuse knows of every KMS key when it was last used for cryptography with success, by what request: what GetKeyLastUsage answers. It
// reads that from the audit records as they are written, in their order, and keeps it in a file from which it goes on after a restart: whoever
// feeds it gives it the records from Position on again.
//
// It is bounded: over Max keys the tenth that was not used for the longest time is forgotten, and Start, from which on the answer is complete,
// moves up to the newest of these uses.
package lastuse
