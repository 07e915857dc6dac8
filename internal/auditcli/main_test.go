package auditcli

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/audit"
	"github.com/keyplane/keyplane/internal/audit/auditkey"
)

const keyName, origin = "keyplane/us-east-1", "keyplane/us-east-1/serve"

// testKey signs as an HSM's key does.
type testKey struct{ *ecdsa.PrivateKey }

func (k testKey) Public() *ecdsa.PublicKey { return &k.PublicKey }
func (k testKey) Sign(digest []byte) ([]byte, error) {
	return ecdsa.SignASN1(rand.Reader, k.PrivateKey, digest)
}

// newLog makes a log of n records, one a second from 2026-11-26T00:00:00Z on, every tenth of them refused.
func newLog(t *testing.T, n int) (dir string, key *ecdsa.PublicKey) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := auditkey.NewSigner(keyName, testKey{private})
	if err != nil {
		t.Fatal(err)
	}
	v, err := auditkey.NewVerifier(keyName, &private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "audit")
	l, err := audit.Open(t.Context(), audit.Config{Dir: dir, Durability: audit.Write, Timeout: 10 * time.Second, Origin: origin, Signer: s, Verifier: v,
		SegmentBytes: 20_000, CheckpointEvery: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		errorCode := ""
		if i%10 == 0 {
			errorCode = `"errorCode":"AccessDeniedException",`
		}
		record := fmt.Sprintf(`{"eventTime":"%s","awsRegion":"us-east-1","eventName":"%s",%s"userIdentity":{"arn":"arn:aws:iam::111122223333:user/u%d","accessKeyId":"AKIA%d"},"resources":[{"ARN":"arn:aws:kms:us-east-1:111122223333:key/k%d"}]}`,
			time.Date(2026, 11, 26, 0, 0, i, 0, time.UTC).Format(time.RFC3339), []string{"Encrypt", "Decrypt"}[i%2], errorCode, i%3, i%3, i%7)
		if err := l.Append([]byte(record)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, &private.PublicKey
}

func run(args ...string) (status int, stdout, stderr string) {
	var out, errs bytes.Buffer
	status = Main(args, &out, &errs)
	return status, out.String(), errs.String()
}

func TestVerify(t *testing.T) {
	dir, key := newLog(t, 500)
	vkey, err := auditkey.VerifierKey(keyName, key)
	if err != nil {
		t.Fatal(err)
	}
	pemText, err := auditkey.PEM(key)
	if err != nil {
		t.Fatal(err)
	}
	pemFile, vkeyFile, newest := filepath.Join(t.TempDir(), "key.pem"), filepath.Join(t.TempDir(), "key"), filepath.Join(t.TempDir(), "newest")
	tip, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{pemFile: pemText, vkeyFile: []byte(vkey + "\n"), newest: tip} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range []string{vkey, pemFile, vkeyFile} {
		status, out, errs := run("verify", "--dir", dir, "--public-key", k)
		if status != 0 || !strings.Contains(out, "records       500") || !strings.Contains(out, "up to index 500") || !strings.Contains(out, "rollback      not checked") {
			t.Errorf("status %d\n%s%s", status, out, errs)
		}
	}
	if status, out, errs := run("verify", "--dir", dir, "--public-key", vkey, "--newest", newest); status != 0 || strings.Contains(out, "not checked") {
		t.Errorf("status %d\n%s%s", status, out, errs)
	}
	_, other := newLog(t, 1)
	wrong, err := auditkey.VerifierKey(keyName, other)
	if err != nil {
		t.Fatal(err)
	}
	if status, out, _ := run("verify", "--dir", dir, "--public-key", wrong); status != 3 || !strings.Contains(out, "FAULT") {
		t.Errorf("another key: status %d\n%s", status, out)
	}
	segments, err := filepath.Glob(filepath.Join(dir, "segment-*.log"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	content, err := os.ReadFile(segments[len(segments)-1])
	if err != nil {
		t.Fatal(err)
	}
	content[20] ^= 1
	if err := os.WriteFile(segments[len(segments)-1], content, 0o600); err != nil {
		t.Fatal(err)
	}
	if status, out, errs := run("verify", "--dir", dir, "--public-key", vkey); status != 3 || !strings.Contains(out, "NOT what was signed") || errs != "" {
		t.Errorf("status %d\n%s%s", status, out, errs)
	}
}

// TestVerifyBegun: a log in its first seconds, and one as a crash leaves it, with the key in either form.
func TestVerifyBegun(t *testing.T) {
	dir, key := newLog(t, 1)
	vkey, err := auditkey.VerifierKey(keyName, key)
	if err != nil {
		t.Fatal(err)
	}
	pemText, err := auditkey.PEM(key)
	if err != nil {
		t.Fatal(err)
	}
	pemFile, newest := filepath.Join(t.TempDir(), "key.pem"), filepath.Join(t.TempDir(), "newest")
	if err := os.WriteFile(pemFile, pemText, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "checkpoint"), newest); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{vkey, pemFile} {
		status, out, errs := run("verify", "--dir", dir, "--public-key", k)
		if status != 0 || !strings.Contains(out, "after a crash checkpoint is the one before") || !strings.Contains(out, "All that is covered") {
			t.Errorf("after a crash: status %d\n%s%s", status, out, errs)
		}
	}
	if err := os.Remove(filepath.Join(dir, "checkpoints")); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{vkey, pemFile} {
		status, out, errs := run("verify", "--dir", dir, "--public-key", k)
		if status != 0 || !strings.Contains(out, "not yet       1 records") || !strings.Contains(out, "Nothing is covered yet") {
			t.Errorf("without a checkpoint: status %d\n%s%s", status, out, errs)
		}
		if status, out, errs := run("verify", "--dir", dir, "--public-key", k, "--newest", newest); status != 3 || !strings.Contains(out, "FAULT") {
			t.Errorf("but one is kept elsewhere: status %d\n%s%s", status, out, errs)
		}
	}
}

func TestSearch(t *testing.T) {
	dir, _ := newLog(t, 500)
	for _, c := range []struct {
		args string
		want int
	}{
		{"", 500},
		{"--limit 7", 7},
		{"--event-name Decrypt", 250},
		{"--error-code AccessDeniedException", 50},
		{"--error-code AccessDeniedException --event-name Decrypt", 0},
		{"--principal arn:aws:iam::111122223333:user/u1", 167},
		{"--principal AKIA1", 167},
		{"--principal AKIA", 0},
		{"--key k3", 71},
		{"--region us-east-1", 500},
		{"--region us-east-1 --key k3", 71},
		{"--region us-east", 0},
		{"--key arn:aws:kms:us-east-1:111122223333:key/k3 --principal AKIA0", 24},
		{"--from 2026-11-26T00:01:00Z", 440},
		{"--to 2026-11-26T00:01:00Z", 60},
		{"--from 2026-11-26T00:01:00Z --to 2026-11-26T00:02:00Z --event-name Encrypt", 30},
		{"--from 2026-11-27", 0},
		{"--to 2026-11-26", 0},
		{"--from 2026-11-26T00:00:00+01:00 --limit 1", 1},
	} {
		status, out, errs := run(append([]string{"search", "--dir", dir}, strings.Fields(c.args)...)...)
		if n := strings.Count(out, "\n"); status != 0 || n != c.want || errs != "" {
			t.Errorf("%s: status %d, %d records, want %d; %s", c.args, status, n, c.want, errs)
		}
	}
}

func TestTiles(t *testing.T) {
	dir, _ := newLog(t, 600)
	out := filepath.Join(t.TempDir(), "tiles")
	if status, _, errs := run("tiles", "--dir", dir, "--out", out); status != 0 {
		t.Fatal(errs)
	}
	for _, name := range []string{"checkpoint", "tile/0/000", "tile/0/001", "tile/0/002.p/88", "tile/1/000.p/2", "tile/entries/000", "tile/entries/002.p/88"} {
		if _, err := os.Stat(filepath.Join(out, name)); err != nil {
			t.Error(err)
		}
	}
	if status, _, errs := run("tiles", "--dir", dir, "--out", out); status != 1 || !strings.Contains(errs, "not empty") {
		t.Errorf("status %d, %s", status, errs)
	}
}

func TestUsage(t *testing.T) {
	empty := t.TempDir()
	for _, c := range []struct {
		args   string
		status int
		text   string // in either stream
	}{
		{"", 2, "keyplane audit verify|search|tiles"},
		{"help", 0, "--public-key FILE|KEY"},
		{"verify --help", 0, "--public-key FILE|KEY"},
		{"nonsense", 2, `there is no command "nonsense"`},
		{"verify", 2, "--dir is missing"},
		{"verify --dir " + empty, 2, "--public-key is missing"},
		{"verify --dir " + empty + " --public-key /nowhere", 1, "/nowhere"},
		{"verify --dir " + empty + " --public-key a+b+c", 1, "verifier key"},
		{"verify --dir /nowhere --public-key a+b+c --nonsense", 2, "nonsense"},
		{"search", 2, "--dir is missing"},
		{"search --dir /nowhere", 1, "/nowhere"},
		{"search --dir " + empty + " extra", 2, `unexpected argument "extra"`},
		{"search --dir " + empty + " --from yesterday", 2, "yesterday"},
		{"search --dir " + empty + " --limit -1", 2, "--limit is negative"},
		{"tiles --dir " + empty, 2, "--out is missing"},
		{"tiles --dir " + empty + " --out " + empty + "/out", 1, "nothing signed"},
	} {
		status, out, errs := run(strings.Fields(c.args)...)
		if status != c.status || !strings.Contains(out+errs, c.text) || status != 0 && out != "" {
			t.Errorf("%s: status %d, want %d\n%s%s", c.args, status, c.status, out, errs)
		}
	}
}
