package main

import (
	"context"
	"fmt"
	"io"
	"iter"

	"github.com/keyplane/keyplane/internal/audit"
	"github.com/keyplane/keyplane/internal/auditcli"
	"github.com/keyplane/keyplane/internal/auditexport"
	"github.com/keyplane/keyplane/internal/node"
)

const auditUsage = `usage: keyplane audit public-key [--config FILE] [--data-dir DIR] [--hsm URI ...] [--region REGION] [--account ACCOUNT]
       keyplane audit export --log DIR|--records FILE --dir DIR --digest-key FILE [--bucket NAME] [--trail NAME]
       keyplane audit validate-export DIR [--public-keys FILE]

public-key       the key that signs the audit log: a verifier key (c2sp.org/signed-note) and PEM
export           the records of a log, or of a file of JSON lines, as CloudTrail's log files with a chain of signed digest files
validate-export  the hashes, signatures and links of an export, from its files and keys alone

` + auditcli.Usage

// auditSource is the records of a log's directory.
func auditSource(ctx context.Context, dir string) (auditexport.Source, error) {
	return func(from uint64) iter.Seq2[[]byte, error] { return audit.Records(ctx, dir, from) }, nil
}

// auditCommand is `keyplane audit`.
func auditCommand(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, auditUsage)
		return 2
	}
	switch args[0] {
	case "public-key":
		return node.PublicKeyMain(args[1:], stdout, stderr)
	case "verify", "search", "tiles":
		return auditcli.Main(args, stdout, stderr)
	case "export":
		return auditexport.Main(args[1:], stdout, stderr, auditSource)
	case "validate-export":
		return auditexport.MainValidate(args[1:], stdout, stderr)
	case "help", "--help", "-h":
		fmt.Fprint(stdout, auditUsage)
		return 0
	}
	fmt.Fprintf(stderr, "keyplane audit: there is no command %q\n%s", args[0], auditUsage)
	return 2
}
