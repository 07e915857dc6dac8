package apitest

import (
	"crypto/tls"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keyplane/keyplane/internal/etcdtest"
	"github.com/keyplane/keyplane/internal/planetls"
	"github.com/keyplane/keyplane/internal/planetls/planetlstest"
)

// disableMax is what docs/planes.md says of a change while a member is dead, 2 s with its commit, and what a busy machine adds to it.
const disableMax = 2500 * time.Millisecond

// TestSplitKilled: of a cluster of processes a control plane and a data node are killed under load. Clients of the other node with the SDK's standard retries see no failure, and
// a change is in force everywhere when it is answered, as soon as promised.
func TestSplitKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("seven processes")
	}
	ctx := t.Context()
	etcd := must(etcdtest.Start(ctx, etcdtest.Config{Members: 3, Dir: t.TempDir(), NoSync: true}))(t)
	t.Cleanup(func() {
		if err := etcd.Close(); err != nil {
			t.Error(err)
		}
	})
	ca := planetlstest.New(t)
	controls := []string{freeAddr(t), freeAddr(t)}
	urls := "https://" + controls[0] + ",https://" + controls[1]
	probe := must(planetls.Open(ca.Files(t, planetls.RoleClient, "probe"), nil))(t)
	root := t.TempDir()
	first := filepath.Join(root, "control-0")
	start := func(command, role, id string, args ...string) *Process {
		t.Helper()
		dir := filepath.Join(root, id)
		if dir != first {
			if err := copyToken(first, dir); err != nil {
				t.Fatal(err)
			}
		}
		f := ca.Files(t, role, id)
		return Launch(t, dir, append([]string{command, "--etcd", strings.Join(etcd.Endpoints(), ","), "--control", urls, "--planes-cert", f.Cert, "--planes-key", f.Key,
			"--planes-ca", f.CA}, args...)...)
	}
	config := must(probe.Client(planetls.RoleControl, "127.0.0.1"))(t)
	control := func(i int) *Process {
		t.Helper()
		p := start("controlplane", planetls.RoleControl, "control-"+string(rune('0'+i)), "--listen-planes", controls[i])
		waitReady(t, p, controls[i], config)
		return p
	}
	c0 := control(0)
	control(1)
	data := func(id string) *Process {
		t.Helper()
		p := start("dataplane", planetls.RoleData, id)
		select {
		case addr := <-p.addr:
			p.Addr = strings.TrimSuffix(addr, ",")
		case <-p.ended:
			t.Fatalf("%s ended at once:\n%s", id, p.out)
		case <-time.After(processStartMax):
			t.Fatalf("%s does not serve:\n%s", id, p.out)
		}
		p.AccessKeyID, p.SecretAccessKey = readCredentials(t, filepath.Join(first, "credentials"))
		return p
	}
	lives, dies := data("data-0"), data("data-1")

	standard := func(o *kms.Options) { o.Retryer = retry.NewStandard() }
	c := lives.KMS(t, standard)
	key, other := newKey(t, c), newKey(t, c)
	sealed := must(dies.KMS(t, standard).Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")}))(t)
	closed := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: other.KeyId, Plaintext: []byte("y")}))(t)

	var answered, asked atomic.Int64
	over := make(chan struct{})
	var load sync.WaitGroup
	stopLoad := sync.OnceFunc(func() { close(over); load.Wait() })
	defer stopLoad()
	run := func(n *atomic.Int64, call func() error) {
		load.Go(func() {
			for {
				select {
				case <-over:
					return
				case <-time.After(5 * time.Millisecond):
				}
				if err := call(); err != nil {
					t.Error("under load:", err)
					return
				}
				n.Add(1)
			}
		})
	}
	for range 3 {
		run(&answered, func() error {
			_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob})
			return err
		})
	}
	for range 2 {
		run(&asked, func() error {
			_, err := c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId})
			return err
		})
	}
	more := func(what string) {
		t.Helper()
		a, b := answered.Load(), asked.Load()
		waitFor(t, what, func() bool { return answered.Load() > a+30 && asked.Load() > b+20 })
	}
	more("the load runs")
	c0.Kill(t)
	dies.Kill(t)
	began := time.Now()
	must(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: other.KeyId}))(t)
	took := time.Since(began)
	if _, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: closed.CiphertextBlob}); !refusedAsDisabled(err) {
		t.Error("a disabled key is used:", err)
	}
	more("the load goes on without them")
	stopLoad()
	t.Logf("DisableKey took %v; %d and %d requests were answered", took, answered.Load(), asked.Load())
	if took > disableMax {
		t.Errorf("DisableKey took %v with a dead control plane and a dead data node", took)
	}
}

// waitReady waits until a control plane says that it is ready.
func waitReady(t *testing.T, p *Process, addr string, config *tls.Config) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config}
	defer transport.CloseIdleConnections()
	hc := &http.Client{Transport: transport, Timeout: 2 * time.Second}
	var last error
	for until := time.Now().Add(processStartMax); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		select {
		case <-p.ended:
			t.Fatalf("the control plane ended at once:\n%s", p.out)
		default:
		}
		var r *http.Response
		if r, last = hc.Get("https://" + addr + "/readyz"); last == nil {
			_ = r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return
			}
			last = errors.New(r.Status)
		}
	}
	t.Fatalf("the control plane at %s is not ready: %v\n%s", addr, last, p.out)
}
