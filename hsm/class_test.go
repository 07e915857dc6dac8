package hsm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// bindingConstants reads every CKR_* constant out of miekg/pkcs11's source.
func bindingConstants(t *testing.T) map[string]CKR {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11").Output()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]CKR{}
	re := regexp.MustCompile(`(?m)^\s*(CKR_\w+)\s*=\s*(0x[0-9A-Fa-f]+)`)
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range re.FindAllStringSubmatch(string(b), -1) {
			v, err := strconv.ParseUint(m[2], 0, 64)
			if err != nil {
				t.Fatal(err)
			}
			found[m[1]] = CKR(v)
		}
	}
	if len(found) < 90 {
		t.Fatalf("only %d constants found", len(found))
	}
	return found
}

func TestEveryCodeHasAClass(t *testing.T) {
	codes := bindingConstants(t)
	for code, name := range ckrNames {
		codes[name] = code
	}
	for name, code := range codes {
		if code.String() != name {
			t.Errorf("%s = %#x prints as %s", name, uint(code), code)
		}
		if code == CKR_OK {
			continue
		}
		for _, p := range []phase{anyPhase, opens, makes, manages} {
			if _, known := classify(code, p); !known {
				t.Errorf("%s has no class in phase %d", name, p)
			}
		}
	}
}

func TestClassesAreSound(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range rows {
		key := fmt.Sprint(r.code, r.phase)
		if seen[key] {
			t.Errorf("%s has two rows for one phase", r.code)
		}
		seen[key] = true
		c := r.class
		if r.code == CKR_USER_ALREADY_LOGGED_IN {
			continue
		}
		switch {
		case c.Has(actD) != (c.Result == DataError):
			t.Errorf("%s: D and the client's data error go together", r.code)
		case c.Has(actD) && r.phase != opens:
			t.Errorf("%s: a device fault may not become the client's fault", r.code)
		case !c.Has(actD) && !c.Has(actS):
			t.Errorf("%s: the session must be replaced", r.code)
		case c.Has(actX) && !(c.Has(actQ) && c.Has(actA)):
			t.Errorf("%s: X without Q and A", r.code)
		case c.Has(actL) && !c.Has(actH):
			t.Errorf("%s: a new login makes new handles", r.code)
		case c.Has(actElsewhere) && !c.Has(actR):
			t.Errorf("%s: elsewhere without R", r.code)
		case c.Result == Done || c.Result == Retry:
			t.Errorf("%s: result %d", r.code, c.Result)
		}
	}
}

func TestClassify(t *testing.T) {
	for _, test := range []struct {
		code     CKR
		function string
		actions  Action
		result   Result
	}{
		{CKR_OK, "C_Encrypt", 0, Done},
		{CKR_ENCRYPTED_DATA_INVALID, "C_Decrypt", actD, DataError},
		{CKR_ENCRYPTED_DATA_INVALID, "C_DecryptInit", actS | actA, Internal},
		{CKR_DATA_LEN_RANGE, "C_Encrypt", actS | actA, Internal},
		{CKR_SIGNATURE_INVALID, "C_Verify", actD, DataError},
		{CKR_GENERAL_ERROR, "C_Decrypt", actD | actCanary, DataError},
		{CKR_GENERAL_ERROR, "C_Encrypt", actS | actR | actCanary, Internal},
		{CKR_GENERAL_ERROR, "C_OpenSession", actS | actR | actCanary, Internal},
		{CKR_DEVICE_ERROR, "C_Encrypt", actS | actR | actElsewhere | actCanary, Internal},
		{CKR_PIN_LOCKED, "C_Login", actS | actX | actQ | actA | actR | actElsewhere, Internal},
		{CKR_SESSION_COUNT, "C_OpenSession", actS | actA, Throttled},
		{CKR_DEVICE_REMOVED, "C_Encrypt", actS | actH | actL | actR | actElsewhere | actQ, Unavailable},
		{0x80000123, "C_Encrypt", device.Actions, Internal}, // a vendor's
		{0x7777, "C_Encrypt", device.Actions, Internal},     // nobody's
	} {
		if c := Classify(test.code, test.function); c.Actions != test.actions || c.Result != test.result {
			t.Errorf("%s from %s: %+v", test.code, test.function, c)
		}
	}
}

func TestOutcome(t *testing.T) {
	busy := &Error{CKR_DEVICE_MEMORY, "C_Encrypt"}
	for _, test := range []struct {
		err            error
		outcome, final Result
		retryable      bool
	}{
		{nil, Done, Internal, false},
		{busy, Throttled, Throttled, false},
		{&refusal{busy}, Retry, Throttled, true},
		{fmt.Errorf("wrapped: %w", &refusal{ErrTimeout}), Retry, Timeout, true},
		{ErrTimeout, Timeout, Timeout, false},
		{ErrUnavailable, Unavailable, Unavailable, false},
		{ErrNoRoot, Unavailable, Unavailable, false},
		{ErrNoRoots, Unavailable, Unavailable, false},
		{ErrWrong, Internal, Internal, false},
		{ErrJob, Internal, Internal, false},
		{&Error{CKR_DATA_INVALID, "C_Decrypt"}, DataError, DataError, false},
		{errors.New("anything"), Internal, Internal, false},
	} {
		if got := Outcome(test.err); got != test.outcome {
			t.Errorf("Outcome(%v) = %d", test.err, got)
		}
		if got := Retryable(test.err); got != test.retryable {
			t.Errorf("Retryable(%v) = %v", test.err, got)
		}
		if test.err != nil {
			if got := Final(test.err); got != test.final {
				t.Errorf("Final(%v) = %d", test.err, got)
			}
		}
	}
	if s := busy.Error(); s != "hsm: C_Encrypt: CKR_DEVICE_MEMORY" {
		t.Errorf("text: %s", s)
	}
	if s := CKR(0x80000123).String(); s != "CKR 0x80000123" {
		t.Errorf("text: %s", s)
	}
}
