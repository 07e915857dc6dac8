package node

import (
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/keyplane/keyplane/controlplane/replication"
)

// ReplicationPublicKeyMain is keyplane replication public-key: the replication key of each Region, a line with the Region's name and the key in base64, as the
// configurations of other processes have it. It returns the exit status. A server may be running; nothing is made. Of the configuration only the data
// directory is used, so that one whose peers are not filled in yet will do.
func ReplicationPublicKeyMain(args []string, stdout, stderr io.Writer) int {
	const command = "keyplane replication public-key"
	fs := flag.NewFlagSet(command, flag.ContinueOnError)
	fs.SetOutput(stderr)
	file := fs.String("config", "", "YAML `FILE` of keyplane serve; flags win over it")
	dir := fs.String("data-dir", "", "`DIR` of all state (default ./keyplane-data)")
	var regions []string
	fs.Func("region", "AWS `REGION` whose key is wanted, may be repeated (default all Regions of the server)", func(r string) error { regions = append(regions, r); return nil })
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(stderr, "%s: unexpected argument %q\n", command, fs.Arg(0))
		return 2
	}
	err := func() (err error) {
		var cfg Config
		if *file != "" {
			if cfg, err = ReadConfig(*file); err != nil {
				return fmt.Errorf("%s: %w", *file, err)
			}
		}
		if *dir != "" {
			cfg.DataDir = *dir
		}
		cfg.Defaults()
		lines, err := replicationKeys(cfg.DataDir, regions)
		if err == nil {
			_, err = io.WriteString(stdout, lines)
		}
		return err
	}()
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", command, err)
		return 1
	}
	return 0
}

// replicationKeys are the lines of a data directory's ReplicationKeysFile for the Regions, in their order; for all that it has if none is named.
func replicationKeys(dir string, regions []string) (string, error) {
	path := filepath.Join(dir, ReplicationKeysFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: keyplane serve writes it at a start with replication.listen, or with several Regions", err)
	}
	if err != nil {
		return "", err
	}
	all, found := "", map[string]string{}
	for line := range strings.Lines(string(b)) {
		region, key, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		der, err := base64.StdEncoding.DecodeString(key)
		if err == nil {
			_, err = replication.ParsePublicKey(der)
		}
		if err != nil || !validRegion(region) {
			return "", fmt.Errorf("%s is damaged: the next start of keyplane serve writes it again", path)
		}
		line = region + " " + key + "\n"
		found[region], all = line, all+line
	}
	if len(regions) == 0 {
		return all, nil
	}
	asked := ""
	for _, r := range regions {
		if found[r] == "" {
			return "", fmt.Errorf("%s has no key of Region %q", path, r)
		}
		asked += found[r]
	}
	return asked, nil
}
