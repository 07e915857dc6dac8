package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/node"
)

func TestRunUsage(t *testing.T) {
	for _, c := range []struct {
		args           string
		status         int
		stdout, stderr string // parts of the output
	}{
		{"", 2, "", "keyplane serve"},
		{"nonsense", 2, "", `there is no command "nonsense"`},
		{"help", 0, "keyplane serve", ""},
		{"--help", 0, "keyplane serve", ""},
		{"-h", 0, "keyplane hsm probe", ""},
		{"version", 0, "keyplane ", ""},
		{"--version", 0, "keyplane ", ""},
		{"serve --version", 0, "keyplane ", ""},
		{"serve --help", 0, "", "-data-dir"},
		{"serve --nonsense", 2, "", "not defined: -nonsense"},
		{"serve extra", 2, "", `unexpected argument "extra"`},
		{"serve --account 1", 2, "", `account: "1" does not have 12 digits`},
		{"serve --config /nowhere/keyplane.yaml", 2, "", "/nowhere/keyplane.yaml"},
		{"serve --log-level loud", 2, "", "log_level"},
		{"xks-proxy", 2, "", "xks_proxy.listen: missing"},
		{"xks-proxy --help", 0, "", "-data-dir"},
		{"xks-proxy help", 0, "keyplane xks-proxy credential", ""},
		{"xks-proxy --listen :1", 2, "", "keyplane xks-proxy: "},
		{"xks-proxy credential", 2, "", "--secret-file is missing"},
		{"xks-proxy credential --path a --secret-file /nowhere/f", 2, "", "--path"},
		{"xks-proxy credential --secret-file /nowhere/f", 1, "", "/nowhere/f"},
		{"xks-proxy credential extra", 2, "", `unexpected argument "extra"`},
		{"hsm", 2, "", "keyplane hsm"},
		{"hsm nonsense --hsm pkcs11:token=x", 2, "", ""},
		{"hsm init", 2, "", ""},
		{"hsm probe extra", 2, "", ""},
		{"loadtest --nonsense", 2, "", ""},
		{"iam", 2, "", "keyplane iam COMMAND"},
		{"iam --help", 0, "create-access-key [--user-name VALUE] [--service-name VALUE] [--credentials-file PATH]", ""},
		{"iam nonsense", 2, "", `there is no command "nonsense"`},
		{"iam create-user", 2, "", "--user-name is missing"},
		{"iam create-user --help", 0, "usage: keyplane iam create-user --user-name VALUE", ""},
		{"iam create-user extra", 2, "", `unexpected argument "extra"`},
		{"iam create-user --user-name a b", 2, "", "it takes one value"},
		{"iam create-user --user-name a --user-name b", 2, "", "given twice"},
		{"iam create-user --user-name a --nonsense b", 2, "", "no flag --nonsense"},
		{"iam create-user --user-name a --credentials-file b", 2, "", "no flag --credentials-file"},
		{"iam create-user --user-name a --tags team=red", 2, "", "Key=K,Value=V"},
		{"iam list-policies --only-attached true", 2, "", "it takes no value"},
		{"iam list-users --endpoint nowhere", 1, "", "the endpoint must be a URL"},
		{"audit", 2, "", "keyplane audit public-key"},
		{"audit help", 0, "keyplane audit validate-export", ""},
		{"audit nonsense", 2, "", `there is no command "nonsense"`},
		{"audit public-key --data-dir /nowhere", 1, "", "no such file"},
		{"audit export", 2, "", "--digest-key"},
		{"audit validate-export", 2, "", "validate-export DIR"},
		{"audit --help", 0, "verify --dir DIR --public-key FILE|KEY", ""},
		{"audit verify --dir x", 2, "", "--public-key is missing"},
		{"audit verify --help", 0, "--public-key FILE|KEY", ""},
		{"audit search --dir /nowhere", 1, "", "/nowhere"},
		{"audit tiles", 2, "", "--dir is missing"},
		{"replication", 2, "", "keyplane replication public-key"},
		{"replication help", 0, "public_key: KEY", ""},
		{"replication nonsense", 2, "", `there is no command "nonsense"`},
		{"replication public-key --data-dir /nowhere", 1, "", "/nowhere/replication-keys: no such file or directory: keyplane serve writes it"},
		{"replication forget --data-dir /nowhere us-west-2", 1, "", "there is no data of keyplane serve in /nowhere"},
		{"replication forget", 2, "", "which Region is lost?"},
		{"replication forget us west", 2, "", "which Region is lost?"},
		{"replication public-key --nonsense", 2, "", "not defined: -nonsense"},
		{"policy", 2, "", "keyplane policy simulate"},
		{"policy help", 0, "3 denied", ""},
		{"policy nonsense", 2, "", `there is no command "nonsense"`},
		{"policy simulate --action kms:Decrypt", 2, "", "keyplane policy simulate"},
		{"policy simulate --principal p --action kms:Decrypt --context x", 2, "", "not of the form K=V"},
		{"policy simulate --principal p --action kms:Decrypt --boundary /nowhere", 1, "", "--principal has to be an ARN"},
	} {
		if strings.HasPrefix(c.args, "hsm") && !hasHSM {
			c.status, c.stderr = 1, "without cgo"
		}
		t.Run(c.args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			status := run(strings.Fields(c.args), &stdout, &stderr)
			if status != c.status || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
				t.Errorf("status %d, want %d\nstdout %s\nstderr %s", status, c.status, &stdout, &stderr)
			}
			if c.status == 0 && c.stdout != "" && stderr.Len() > 0 || c.status == 2 && stdout.Len() > 0 {
				t.Errorf("on the wrong stream\nstdout %s\nstderr %s", &stdout, &stderr)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	defer func(v string) { version = v }(version)
	version = "v1.2.3-test"
	var stdout, stderr bytes.Buffer
	if status := run([]string{"--version"}, &stdout, &stderr); status != 0 || stdout.String() != "keyplane v1.2.3-test\n" {
		t.Errorf("%d, %q", status, &stdout)
	}
	version = ""
	if versionText() == "" {
		t.Error("no version")
	}
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keyplane.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The file wins over the defaults, and each flag over the file.
func TestServeConfig(t *testing.T) {
	t.Setenv("AWS_REGION", "")
	file := writeFile(t, `listen: 127.0.0.1:1
data_dir: file-dir
region: eu-west-1
account: "444455556666"
hsm: ["pkcs11:token=file"]
soft_token_pin_file: file-pin
regions: [eu-west-1, eu-west-2]
round_max: 64
log_level: warn
`)
	config := func(args ...string) node.Config {
		t.Helper()
		var stdout, stderr bytes.Buffer
		cfg, done, err := wholeServer("serve").config(args, &stdout, &stderr)
		if err != nil || done || stdout.Len()+stderr.Len() > 0 {
			t.Fatalf("%v: %v, done %v, %s%s", args, err, done, &stdout, &stderr)
		}
		return cfg
	}
	var want node.Config
	want.Defaults()
	if got := config(); !reflect.DeepEqual(got, want) {
		t.Errorf("without anything\ngot  %+v\nwant %+v", got, want)
	}
	want = node.Config{Listen: "127.0.0.1:1", DataDir: "file-dir", Region: "eu-west-1", Regions: []string{"eu-west-1", "eu-west-2"}, Account: "444455556666", HSM: []string{"pkcs11:token=file"},
		SoftTokenPINFile: "file-pin", RoundMax: 64, LogLevel: "warn"}
	want.Defaults()
	if got := config("--config", file); !reflect.DeepEqual(got, want) {
		t.Errorf("with a file\ngot  %+v\nwant %+v", got, want)
	}
	for _, c := range []struct {
		args string
		set  func(*node.Config)
	}{
		{"--listen :2", func(c *node.Config) { c.Listen = ":2" }},
		{"--data-dir flag-dir", func(c *node.Config) { c.DataDir, c.Audit.Dir = "flag-dir", "flag-dir/audit" }},
		{"--region us-west-2", func(c *node.Config) { c.Region, c.Regions = "us-west-2", nil }},
		{"--region us-west-2 --region eu-west-1", func(c *node.Config) { c.Region, c.Regions = "us-west-2", []string{"us-west-2", "eu-west-1"} }},
		{"--account 777788889999", func(c *node.Config) { c.Account = "777788889999" }},
		{"--hsm pkcs11:token=a --hsm pkcs11:token=b", func(c *node.Config) { c.HSM = []string{"pkcs11:token=a", "pkcs11:token=b"} }},
		{"--soft-token-pin-file flag-pin", func(c *node.Config) { c.SoftTokenPINFile = "flag-pin" }},
		{"--portable-crypto", func(c *node.Config) { c.PortableCrypto = true }},
		{"--tls-cert c --tls-key k", func(c *node.Config) { c.TLSCert, c.TLSKey = "c", "k" }},
		{"--attestation-roots r", func(c *node.Config) { c.AttestationRoots = "r" }},
		{"--audit-dir d --audit-durability write", func(c *node.Config) { c.Audit.Dir, c.Audit.Durability = "d", "write" }},
		{"--audit-accept-rollback", func(c *node.Config) { c.Audit.AcceptRollback = true }},
		{"--quotas aws", func(c *node.Config) { c.Quotas = "aws" }},
		{"--stats-socket s", func(c *node.Config) { c.StatsSocket = "s" }},
		{"--log-level debug", func(c *node.Config) { c.LogLevel = "debug" }},
	} {
		changed := want
		c.set(&changed)
		for _, args := range [][]string{append([]string{"--config", file}, strings.Fields(c.args)...), append(strings.Fields(c.args), "--config", file)} {
			if got := config(args...); !reflect.DeepEqual(got, changed) {
				t.Errorf("%v\ngot  %+v\nwant %+v", args, got, changed)
			}
		}
	}
	for what, text := range map[string]string{"unknown field": "listen_on: x\n", "bad value": "round_max: 0x10000\n"} {
		path := writeFile(t, text)
		var stdout, stderr bytes.Buffer
		if _, _, err := wholeServer("serve").config([]string{"--config", path}, &stdout, &stderr); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

// announce names the file with the credentials and never what is in it.
func TestAnnounceKeepsTheSecret(t *testing.T) {
	const id, secretKey = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	t.Setenv(node.EnvAdminID, id)
	t.Setenv(node.EnvAdminSecret, secretKey)
	cfg := node.Config{Listen: "127.0.0.1:0", DataDir: filepath.Join(t.TempDir(), "data")}
	cfg.Defaults()
	var log bytes.Buffer
	n, err := node.Start(t.Context(), cfg, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	announce(&out, cfg, n)
	path, addr := n.CredentialsPath(), n.Addr()
	n.Close()
	for _, want := range []string{addr, path, cfg.Account, cfg.Region, "soft token", "--hsm", "aws --endpoint-url http://" + addr} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, &out)
		}
	}
	for what, text := range map[string]string{"announcement": out.String(), "log": log.String()} {
		if strings.Contains(text, secretKey) || strings.Contains(text, secretKey[:12]) {
			t.Errorf("the %s holds the secret", what)
		}
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.Contains(b, []byte(secretKey)) {
		t.Error("the file does not hold it:", err)
	}
}
