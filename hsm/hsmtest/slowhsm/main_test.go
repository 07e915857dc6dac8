package slowhsm

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// checked holds the module, an echoing module and the driver, all compiled with sanitisers: testdata.
var checked struct{ module, echo, driver string }

var sanitisers = []string{"-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "keyplane-slowhsm-")
	if err == nil {
		err = buildChecked(dir)
	}
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

func buildChecked(dir string) (err error) {
	if checked.module, err = compile(dir, append(flags, sanitisers...)...); err != nil {
		return err
	}
	checked.echo, checked.driver = filepath.Join(dir, "echo.so"), filepath.Join(dir, "driver")
	warnings := []string{"-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror"}
	for _, args := range [][]string{
		{"-fPIC", "-shared", "-o", checked.echo, "testdata/echo.c"},
		{"-o", checked.driver, "testdata/driver.c", "-ldl", "-lpthread"},
	} {
		args = append(append(warnings[:len(warnings):len(warnings)], sanitisers...), args...)
		if out, err := exec.Command("cc", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("cc %v: %w\n%s", args, err, out)
		}
	}
	return nil
}

// driver is a process that calls the checked module, in front of the echo module.
type driver struct {
	*HSM
	cmd *exec.Cmd
	in  *os.File
	out *bufio.Scanner
	err strings.Builder

	aborts bool // it ends by SIGABRT
}

// start runs a driver with the settings and, on top, the environment; every variable of the module is out of it otherwise.
func start(t *testing.T, s Settings, env ...string) *driver {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, moduleName)
	if err := os.Symlink(checked.module, path); err != nil {
		t.Fatal(err)
	}
	h, err := at(path, "pkcs11:token=echo?module-path="+checked.echo, s)
	if err != nil {
		t.Fatal(err)
	}
	d := &driver{HSM: h, cmd: exec.Command(checked.driver, path)}
	d.cmd.Env = append(append([]string{"PATH=" + os.Getenv("PATH"), "ASAN_OPTIONS=detect_leaks=1"}, h.Env()...), env...)
	d.cmd.Stderr = &d.err
	stdin, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.cmd.Stdin, d.in, d.out = stdin, in, bufio.NewScanner(out)
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	t.Cleanup(func() {
		in.Close()
		if err := d.cmd.Wait(); d.aborts {
			if status, ok := d.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGABRT {
				t.Errorf("driver: %v\n%s", err, d.err.String())
			}
		} else if err != nil {
			t.Errorf("driver: %v\n%s", err, d.err.String())
		}
	})
	return d
}

// ready starts a driver with the module initialised and a session open.
func ready(t *testing.T, s Settings, env ...string) *driver {
	t.Helper()
	d := start(t, s, env...)
	for _, command := range []string{"load", "call C_Initialize", "open"} {
		d.want(t, command, 0)
	}
	return d
}

// do gives a command and returns the first number of the answer, and the second as microseconds.
func (d *driver) do(t *testing.T, command string) (rv uint64, took time.Duration) {
	t.Helper()
	fmt.Fprintln(d.in, command)
	if !d.out.Scan() {
		d.in.Close()
		_ = d.cmd.Wait()
		t.Fatalf("%s: no answer from the driver\n%s", command, d.err.String())
	}
	words := strings.Fields(d.out.Text())
	rv, err := strconv.ParseUint(words[0], 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	if len(words) > 1 {
		us, err := strconv.ParseInt(words[1], 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		took = time.Duration(us) * time.Microsecond
	}
	return rv, took
}

// want gives a command whose answer is known.
func (d *driver) want(t *testing.T, command string, want uint64) time.Duration {
	t.Helper()
	rv, took := d.do(t, command)
	if rv != want {
		t.Fatalf("%s: %#x, want %#x", command, rv, want)
	}
	return took
}

// line gives a command and returns the whole answer.
func (d *driver) line(t *testing.T, command string) string {
	t.Helper()
	d.do(t, command)
	return d.out.Text()
}

func (d *driver) set(t *testing.T, s Settings) {
	t.Helper()
	if err := d.Set(s); err != nil {
		t.Fatal(err)
	}
}

func (d *driver) counts(t *testing.T) Report {
	t.Helper()
	r, err := d.Report()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (d *driver) clean(t *testing.T) {
	t.Helper()
	if err := d.counts(t).Violations(); err != nil {
		t.Error(err)
	}
}
