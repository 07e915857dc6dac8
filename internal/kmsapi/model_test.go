package kmsapi

import (
	"encoding/json"
	"os"
	"sort"
	"testing"
)

// model is what the tables are held against: the published service model, without its documentation.
type model struct {
	Metadata   struct{ TargetPrefix, JSONVersion, Protocol string }
	Operations map[string]struct {
		Errors []struct{ Shape string }
	}
	Shapes map[string]struct {
		Type             string
		Exception, Fault bool
		Members          map[string]json.RawMessage
		Enum             []string
		Min, Max         *int
	}
}

func loadModel(t *testing.T) *model {
	t.Helper()
	b, err := os.ReadFile("testdata/kms-model.json")
	if err != nil {
		t.Fatal(err)
	}
	m := new(model)
	if err := json.Unmarshal(b, m); err != nil {
		t.Fatal(err)
	}
	if len(m.Operations) != 56 || m.Metadata.Protocol != "json" {
		t.Fatalf("%d operations over %q: not the model these tests were written for", len(m.Operations), m.Metadata.Protocol)
	}
	return m
}

func TestOperationsMatchTheModel(t *testing.T) {
	m := loadModel(t)
	if TargetPrefix != m.Metadata.TargetPrefix+"." {
		t.Errorf("target prefix %q", TargetPrefix)
	}
	rows := map[string]int{}
	for _, op := range Operations {
		rows[op.Name]++
		if _, ok := m.Operations[op.Name]; !ok {
			t.Errorf("%s is not in the model", op.Name)
		}
		if op.Plane != DataPlane && op.Plane != ControlPlane {
			t.Errorf("%s is served by nobody", op.Name)
		}
		if op.Plane == DataPlane && op.Write {
			t.Errorf("%s changes state on the data plane", op.Name)
		}
	}
	for name := range m.Operations {
		if rows[name] != 1 {
			t.Errorf("%s has %d rows", name, rows[name])
		}
	}
	if !sort.SliceIsSorted(Operations, func(i, j int) bool { return Operations[i].Name < Operations[j].Name }) {
		t.Error("the rows are not in alphabetical order")
	}
}

func TestErrorsMatchTheModel(t *testing.T) {
	m := loadModel(t)
	inModel := 0
	for name, shape := range m.Shapes {
		if !shape.Exception {
			continue
		}
		inModel++
		c := CodeOf(name)
		if c == OK {
			t.Errorf("%s has no row", name)
			continue
		}
		if table[c].source != "model" {
			t.Errorf("%s: source %q", name, table[c].source)
		}
		if shape.Fault != (c.Status() >= 500) {
			t.Errorf("%s: status %d, server fault %t", name, c.Status(), shape.Fault)
		}
		if _, lower := shape.Members["message"]; table[c].upper == lower {
			t.Errorf("%s: Message in upper case %t, against the model", name, table[c].upper)
		}
	}
	for c := OK + 1; c < codeCount; c++ {
		if table[c].source == "model" {
			inModel--
		}
	}
	if inModel != 0 {
		t.Errorf("%d more exceptions in the model than rows from it", inModel)
	}
	for name, op := range m.Operations {
		for _, e := range op.Errors {
			if CodeOf(e.Shape) == OK {
				t.Errorf("%s may answer %s, which has no row", name, e.Shape)
			}
		}
	}
}

func TestErrorTable(t *testing.T) {
	seen := map[string]Code{}
	for c := OK + 1; c < codeCount; c++ {
		row := table[c]
		if row.typ == "" {
			t.Errorf("code %d has no row", c)
			continue
		}
		if other, dup := seen[row.typ]; dup {
			t.Errorf("codes %d and %d are both %s", other, c, row.typ)
		}
		seen[row.typ] = c
		if CodeOf(c.Type()) != c || c.String() != row.typ {
			t.Errorf("%s is code %d, then %d", row.typ, c, CodeOf(c.Type()))
		}
		switch row.source {
		case "model", "front end":
			// 400 for every client fault and 5xx for every server fault.
			if row.status != 400 && (row.status < 500 || row.status > 599) {
				t.Errorf("%s: status %d", row.typ, row.status)
			}
		case "http":
			if row.status < 400 || row.status > 499 {
				t.Errorf("%s: status %d", row.typ, row.status)
			}
		default:
			t.Errorf("%s: source %q", row.typ, row.source)
		}
		if row.status >= 500 && row.retry != RetryTransient {
			t.Errorf("%s: a fault of ours that may not be retried", row.typ)
		}
		if c.Retry() != row.retry || c.Status() != row.status || c.Text() != row.text {
			t.Errorf("%s: accessors disagree with the table", row.typ)
		}
	}
	if OK.String() != "OK" || OK.Type() != "" || CodeOf("") != OK || CodeOf("NoSuchException") != OK {
		t.Error("the zero Code is not success")
	}
	if Throttling.Retry() != RetryThrottle {
		t.Error("throttled clients are not told to back off")
	}
	for _, c := range []Code{InvalidCiphertext, KMSInvalidMac, KMSInvalidSignature} {
		if c.Text() != "" {
			t.Errorf("%v says why", c)
		}
	}
}

// The limits that the model states are the model's.
func TestLimitsMatchTheModel(t *testing.T) {
	m := loadModel(t)
	for shape, want := range map[string][2]int{
		"KeyIdType": {1, KeyIDMax}, "PlaintextType": {1, PlaintextMax}, "CiphertextType": {1, CiphertextBlobMax}, "NumberOfBytesType": {1, RandomBytesMax},
		"GrantTokenList": {0, GrantTokensMax}, "GrantTokenType": {1, GrantTokenMax}, "GrantIdType": {1, GrantIDMax},
		"GrantNameType": {1, GrantNameMax}, "PrincipalIdType": {1, PrincipalMax}, "ServicePrincipalType": {1, ServicePrincipalMax},
		"GrantConstraintSourceArnType": {SourceArnMin, SourceArnMax}, "AliasNameType": {1, AliasNameMax}, "DescriptionType": {0, DescriptionMax},
		"PolicyType": {1, PolicyModelMax}, "PolicyNameType": {1, PolicyNameMax}, "TagKeyType": {1, TagKeyMax}, "TagValueType": {0, TagValueMax},
		"LimitType": {1, LimitMax}, "MarkerType": {1, MarkerMax}, "AttestationDocumentType": {1, AttestationMax}, "CustomKeyStoreIdType": {1, CustomKeyStoreIDMax},
	} {
		s, ok := m.Shapes[shape]
		if !ok || s.Min == nil || s.Max == nil || *s.Min != want[0] || *s.Max != want[1] {
			t.Errorf("%s: want %v, the model has %+v", shape, want, s)
		}
	}
}

func TestKeyStatesMatchTheModel(t *testing.T) {
	m := loadModel(t)
	modelled := map[string]bool{}
	for _, name := range m.Shapes["KeyState"].Enum {
		modelled[name] = true
		if KeyStateOf(name).String() != name {
			t.Errorf("%s is read as %v", name, KeyStateOf(name))
		}
	}
	if len(KeyStates) != len(modelled) || len(keyStateNames) != len(modelled)+1 {
		t.Errorf("%d states, the model has %d", len(KeyStates), len(modelled))
	}
	for _, s := range KeyStates {
		if !modelled[s.String()] {
			t.Errorf("%v is not in the model", s)
		}
	}
	if KeyStateOf("") != 0 || KeyStateOf("enabled") != 0 || KeyState(0).String() != "" || KeyState(200).String() != "" {
		t.Error("a state that does not exist has a name")
	}
}
