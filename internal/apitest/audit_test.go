package apitest

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/audit"
)

var killedFor = flag.Duration("audit-load", 4*time.Second, "how long TestAuditKilled loads the server; it is killed in the middle")

// auditCLI runs a command of keyplane audit on the log of a data directory.
func auditCLI(t *testing.T, args ...string) (status int, stdout string) {
	t.Helper()
	cmd := exec.Command(Binary(t), append([]string{"audit"}, args...)...)
	cmd.Env = cleanEnv()
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	if _, ended := err.(*exec.ExitError); err != nil && !ended {
		t.Fatal(err)
	}
	if said.Len() > 0 {
		t.Logf("keyplane audit %v: %s", args, &said)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

// verifyAudit verifies the log of a server that has stopped, with nothing but its files and the public key.
func verifyAudit(t *testing.T, dir string) {
	t.Helper()
	status, key := auditCLI(t, "public-key", "--data-dir", dir, "--region", Region, "--account", Account)
	if status != 0 {
		t.Fatalf("public-key: exit status %d", status)
	}
	key, _, _ = strings.Cut(key, "\n")
	if status, said := auditCLI(t, "verify", "--dir", filepath.Join(dir, "audit"), "--public-key", key); status != 0 {
		t.Errorf("verify: exit status %d: %s", status, said)
	}
}

// recordsOf are the records of a log by the request ID that they have.
func recordsOf(t *testing.T, dir string) map[string][]string {
	t.Helper()
	records := map[string][]string{}
	err := audit.Search(context.Background(), filepath.Join(dir, "audit"), audit.Filter{}, func(record []byte) bool {
		var v struct {
			RequestID string `json:"requestID"`
		}
		if err := json.Unmarshal(record, &v); err != nil {
			t.Errorf("%v: %s", err, record)
		}
		records[v.RequestID] = append(records[v.RequestID], string(record))
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return records
}

// outcomes are the request IDs of replies and what they said: "" for a success.
type outcomes struct {
	mu sync.Mutex
	of map[string]string
}

func (o *outcomes) add(t *testing.T, r *Reply) {
	t.Helper()
	id := r.Header.Get("x-amzn-RequestId")
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, twice := o.of[id]; twice || id == "" {
		t.Errorf("request ID %q is used twice", id)
	}
	o.of[id] = r.Type
}

// check compares replies with records: each has one, which says the same. Internal errors may have none.
func (o *outcomes) check(t *testing.T, records map[string][]string) {
	t.Helper()
	missing := 0
	for id, exception := range o.of {
		want := `"errorCode":"` + exception + `"`
		switch lines := records[id]; {
		case exception == "KMSInternalException" && len(lines) < 2: // because it could not be recorded in time; the record may be there all the same
		case len(lines) != 1:
			if missing++; missing < 10 {
				t.Errorf("request %s, answered %q, has %d records", id, exception, len(lines))
			}
		case exception == "" && strings.Contains(lines[0], `"errorCode"`), exception != "" && !strings.Contains(lines[0], want):
			t.Errorf("request %s was answered %q, its record is %s", id, exception, lines[0])
		}
	}
	if missing > 0 {
		t.Errorf("%d of %d answered requests have not one record", missing, len(o.of))
	}
}

// TestAuditKilled: each answer has its record, also when the server is killed under load; what was on the disk is what was signed, and the log goes on.
func TestAuditKilled(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	o := outcomes{of: map[string]string{}}
	var key struct{ KeyMetadata struct{ KeyId string } }
	load := func(p *Process, until <-chan struct{}) {
		var wg sync.WaitGroup
		for i := range 16 {
			client := p.Client(t)
			rnd := rand.New(rand.NewSource(int64(i)))
			wg.Go(func() {
				for {
					select {
					case <-until:
						return
					default:
					}
					op, body := "GenerateDataKey", `{"KeyId":"`+key.KeyMetadata.KeyId+`","KeySpec":"AES_256"}`
					switch rnd.Intn(20) {
					case 0:
						op, body = "GenerateDataKey", `{"KeyId":"alias/none","KeySpec":"AES_256"}`
					case 1:
						op, body = "DescribeKey", `{"KeyId":"`+key.KeyMetadata.KeyId+`"}`
					case 2:
						op, body = "GenerateRandom", `{"NumberOfBytes":16}`
					}
					r, err := client.Try(op, body)
					if err != nil || r == nil {
						return // killed
					}
					o.add(t, r)
				}
			})
		}
		wg.Wait()
	}
	p := Command(t, dir, "--audit-durability", "fsync")
	first := p.Do(t, "CreateKey", "{}")
	first.Members(t, &key)
	o.add(t, first)
	time.AfterFunc(*killedFor/2, func() { _ = p.cmd.Process.Kill() })
	load(p, nil)
	p.Kill(t)
	answered := len(o.of)
	p = Command(t, dir, "--audit-durability", "write")
	end := make(chan struct{})
	time.AfterFunc(*killedFor/2, func() { close(end) })
	load(p, end)
	if code := stop(t, p); code != 0 {
		t.Errorf("the exit status is %d", code)
	}
	verifyAudit(t, dir)
	records := recordsOf(t, dir)
	o.check(t, records)
	t.Logf("%d answers before the kill, %d after it, %d records", answered, len(o.of)-answered, len(records))
	if answered < 100 || len(o.of)-answered < 100 {
		t.Error("too few answers to tell")
	}
}

// TestAuditRolledBack: a server does not start with an older copy of its log, unless it is told to.
func TestAuditRolledBack(t *testing.T) {
	if testing.Short() {
		t.Skip("four starts")
	}
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	p := Command(t, dir)
	p.Do(t, "CreateKey", "{}")
	stop(t, p)
	old := filepath.Join(t.TempDir(), "audit")
	run := func(name string, args ...string) {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	run("cp", "-a", filepath.Join(dir, "audit"), old)
	p = Command(t, dir)
	p.Do(t, "CreateKey", "{}")
	stop(t, p)
	run("rm", "-r", filepath.Join(dir, "audit"))
	run("cp", "-a", old, filepath.Join(dir, "audit"))
	p = Launch(t, dir)
	if code := p.Wait(t); code != 1 || !strings.Contains(p.Output(), "--audit-accept-rollback") {
		t.Errorf("with an older copy: exit status %d: %s", code, p.Output())
	}
	p = Command(t, dir, "--audit-accept-rollback")
	p.Do(t, "ListKeys", "{}")
	stop(t, p)
	verifyAudit(t, dir)
	if status, said := auditCLI(t, "search", "--dir", filepath.Join(dir, "audit"), "--event-name", "AuditRollbackAccepted"); status != 0 || strings.Count(said, "\n") != 1 {
		t.Errorf("exit status %d, %q", status, said)
	}
}

// sink is a client that has one request in flight at a time, of a server whose audit log fails and comes back.
type sink struct {
	*Client
	o    *outcomes
	body string
}

// ask sends one request and returns what it was answered, within the second that an answer may take.
func (s *sink) ask(t *testing.T) string {
	t.Helper()
	began := time.Now()
	r := s.Do(t, "GenerateDataKey", s.body)
	if took := time.Since(began); took > time.Second {
		t.Errorf("an answer took %v", took)
	}
	if r.Type == "" {
		s.o.add(t, r)
	} else if r.Type != "KMSInternalException" || r.Status != 500 || strings.Contains(string(r.Body), "Plaintext") {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	return r.Type
}

// until asks until the answer is want and returns how long that took.
func (s *sink) until(t *testing.T, want string) time.Duration {
	t.Helper()
	began := time.Now()
	for s.ask(t) != want {
		if time.Since(began) > 30*time.Second {
			t.Fatalf("no answer is %q", want)
		}
	}
	return time.Since(began)
}

// TestAuditSink: while the log's disk is full, fails or hangs no call succeeds; each is answered in a second, and a second after the disk is well they
// succeed again. What was answered is in the log. The disk is a tmpfs of a megabyte; strace makes system calls fail and hang.
func TestAuditSink(t *testing.T) {
	if testing.Short() {
		t.Skip("ten seconds")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: a file system of its own, and ptrace of a process that forbids it")
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("strace is needed: make deps")
	}
	log := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "keyplane-test", log).CombinedOutput(); err != nil {
		t.Skipf("no file system can be mounted here: %s", out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", log).Run() })
	dir := filepath.Join(t.TempDir(), "data")
	usual := writePrivate(t, t.TempDir(), "keyplane.yaml", strings.Replace(patient, "audit: {timeout: 10s, durability: write}", "audit: {timeout: 250ms}", 1))
	p := Command(t, dir, "--config", usual, "--audit-dir", log)
	var key struct{ KeyMetadata struct{ KeyId string } }
	p.Do(t, "CreateKey", "{}").Members(t, &key)
	s := &sink{Client: p.Client(t), o: &outcomes{of: map[string]string{}}, body: `{"KeyId":"` + key.KeyMetadata.KeyId + `","KeySpec":"AES_256"}`}
	s.until(t, "")

	// Of the log's own files: the segment that is written, and the one with which a failed log tries the disk. etcd is on another disk.
	inject := func(what string) (end func()) {
		segments, err := filepath.Glob(filepath.Join(log, "segment-*.log"))
		if err != nil || len(segments) == 0 {
			t.Fatal(segments, err)
		}
		cmd := exec.Command(strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:"+what, "-P", slices.Max(segments),
			"-P", filepath.Join(log, "probe.tmp"), "-p", strconv.Itoa(p.cmd.Process.Pid))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return func() {
			_ = cmd.Process.Signal(syscall.SIGINT)
			_ = cmd.Wait()
		}
	}
	for _, c := range []struct {
		name string
		fail func() (end func())
	}{
		{"full", func() func() {
			filler := filepath.Join(log, "filler")
			f, err := os.Create(filler)
			if err != nil {
				t.Fatal(err)
			}
			for err == nil { // until there is no room
				_, err = f.Write(make([]byte, 4096))
			}
			f.Close()
			return func() {
				if err := os.Remove(filler); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{"failing", func() func() { return inject("error=EIO") }},
		{"hung", func() func() { return inject("delay_enter=3s") }},
	} {
		end := c.fail()
		s.until(t, "KMSInternalException")
		failed := 0
		for range 20 {
			if s.ask(t) != "" {
				failed++
			}
			time.Sleep(10 * time.Millisecond)
		}
		if r := p.Exchange(t, []byte("GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")); failed == 20 && (r == nil || r.Status == 200) {
			t.Errorf("%s: /readyz does not say so", c.name)
		}
		end()
		took := s.until(t, "")
		t.Logf("%s: %d of 20 calls refused; well again after %v", c.name, failed, took)
		if failed == 0 {
			t.Errorf("%s: no call was refused", c.name)
		}
		if limit := time.Second; c.name != "hung" && took > limit || took > 3*time.Second+limit {
			t.Errorf("%s: calls succeed %v after the disk is well", c.name, took)
		}
	}
	if code := stop(t, p); code != 0 {
		t.Errorf("the exit status is %d", code)
	}
	records := map[string][]string{}
	if err := audit.Search(context.Background(), log, audit.Filter{}, func(record []byte) bool {
		var v struct {
			RequestID string `json:"requestID"`
		}
		if err := json.Unmarshal(record, &v); err != nil {
			t.Error(err)
		}
		records[v.RequestID] = append(records[v.RequestID], string(record))
		return true
	}); err != nil {
		t.Fatal(err)
	}
	s.o.check(t, records)
}
