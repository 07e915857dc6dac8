// Package auditexport writes audit records as AWS CloudTrail's log files with a chain of signed digest files (CloudTrail user guide, "CloudTrail
// log file examples", "CloudTrail digest file structure", "Custom implementations of log file integrity validation"), and validates such a tree. It knows
// CloudTrail's record in JSON, and not where records come from.
//
//	Export   for every record: whose is it, whom else does it concern      record.go
//	           append to the open log file of that account and Region      writer.go
//	         every 5 minutes, or FileBytes: the log files are compressed
//	         every hour, and at the end: a digest file per account and Region, linked to the one before it    digest.go
//	           all of that is put in its place, then the state             publish.go
//	Validate newest digest to oldest, every log file                       validate.go
//
// # Layout
//
//	AWSLogs/<account>/CloudTrail/<region>/YYYY/MM/DD/<account>_CloudTrail_<region>_<YYYYMMDDTHHmmZ>_<16 characters>.json.gz
//	AWSLogs/<account>/CloudTrail-Digest/<region>/YYYY/MM/DD/<account>_CloudTrail-Digest_<region>_<trail>_<region>_<end>.json.gz
//	<digest file>.sig          the object metadata that S3 would keep: {"x-amz-meta-signature": …, "x-amz-meta-signature-algorithm": "SHA256withRSA"}
//	digest-public-keys.json    the keys that signed, as CloudTrail's ListPublicKeys answers: PKCS #1 DER, validity, fingerprint
//	export-state.json          how far the export is; a later run goes on from there
//
// The tree is a bucket: s3Bucket is Config.Bucket, s3Object the path below the directory. A file system has no object metadata, hence the .sig
// files; who uploads the tree sets them as metadata and leaves them out. A fingerprint is the SHA-256 of the key's PKCS #1 DER in hexadecimal.
//
// # Time
//
// CloudTrail files a record by when it is delivered. Here that is the log's order: a clock that is the latest eventTime so far, and never later than
// the export itself. Digests cover the clock's hours, also those without records between the first and the last; the last one of a run ends
// where its records end, and the next run's first begins there.
//
// # Calls across accounts
//
// The log has one record of a call, its recipient is the caller's account. Where it names a resource of another account, that account's files get
// a copy: its own recipientAccountId and eventID (derived from the original's, so that a repeated export gives the same), the same
// sharedEventID in both, and a userIdentity that is reduced to {"type":"AWSAccount","principalId","accountId"[,"invokedBy"]}: no ARN, no name, no
// access key, no session. All else is the same. A call that was refused has no copy, unless it has a sharedEventID already: the key that it names is what
// the caller wrote, and may not exist.
//
// Calls of nobody who could be verified have the recipient 000000000000.
package auditexport
