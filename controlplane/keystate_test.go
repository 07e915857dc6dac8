package controlplane

import (
	_ "embed"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

//go:embed testdata/keystate.tsv
var keyStateTSV string

// TestKeyStateMatrix runs every cell of testdata/keystate.tsv that is the control plane's through Serve, on a key that is put into the column's
// state in the store, and looks at what state the key is in then. apitest runs the whole table through a server.
func TestKeyStateMatrix(t *testing.T) {
	e, related := newEnv(t), oneToken(t, 2)
	other := e.create("{}")
	var columns []string
	cells, rows := 0, map[string]bool{}
	for line := range strings.Lines(keyStateTSV) {
		fields := strings.Split(strings.TrimSpace(line), "\t")
		switch {
		case strings.HasPrefix(line, "#"):
		case columns == nil:
			columns = fields[2:]
		case !controlPlanes(fields[0]):
		default:
			rows[fields[0]] = true
			for i, cell := range fields[2:] {
				states := []kmsapi.KeyState{kmsapi.KeyStateOf(columns[i])}
				if states[0] == kmsapi.StatePendingDeletion { // one column for both
					states = append(states, kmsapi.StatePendingReplicaDeletion)
				}
				for _, state := range states {
					cells++
					if fields[1] == "multi-Region" {
						related.cell(fields[0], state, cell)
						continue
					}
					e.cell(fields[0], fields[1], state, cell, other)
				}
			}
		}
	}
	if cells != 31*8 {
		t.Errorf("%d cells were run", cells)
	}
	for op := range matrix {
		if !rows[op] {
			t.Errorf("%s has no row in the test data", op)
		}
	}
	if len(rows) != len(matrix) {
		t.Errorf("%d rows for %d operations", len(rows), len(matrix))
	}
}

// controlPlanes says whether an operation of the table is built, and this plane's. ReEncryptTo, the second key of ReEncrypt, is no operation.
func controlPlanes(name string) bool {
	op := kmsapi.Route([]byte(kmsapi.TargetPrefix + name))
	return op != nil && op.Plane == kmsapi.ControlPlane && op.Built
}

func (e *env) cell(op, kind string, state kmsapi.KeyState, cell string, other wire) {
	e.Helper()
	unavailable := state == kmsapi.StateUnavailable && cell != "-" // of what is in custom key stores nothing is imported
	kinds := map[string]func() wire{
		"symmetric": func() wire { return e.create("{}") }, "EXTERNAL": func() wire { return e.external("{}", "0") },
		"unavailable": func() wire { return e.createIn(e.oneKeyStore()) },
	}
	if unavailable {
		kind = "unavailable"
	}
	m := kinds[kind]()
	alias := "alias/of-" + m.KeyId
	if op == "UpdateAlias" {
		e.ok("CreateAlias", aliasBody(alias, other.KeyId), nil) // the key in the state is the target
	} else if op == "DeleteAlias" {
		e.ok("CreateAlias", aliasBody(alias, m.KeyId), nil)
	}
	admin := "arn:aws:iam::" + e.account.String() + ":user/administrator"
	grant := obj("KeyId", m.KeyId, "GranteePrincipal", admin, "Operations", []string{"Decrypt", "RetireGrant"})
	var granted createGrantOut
	if op == "RetireGrant" || op == "RevokeGrant" {
		e.ok("CreateGrant", grant, &granted)
	}
	body := map[string]string{
		"CreateAlias": aliasBody(alias, m.KeyId), "UpdateAlias": aliasBody(alias, m.KeyId), "DeleteAlias": obj("AliasName", alias),
		"TagResource":            obj("KeyId", m.KeyId, "Tags", tags("a", "b")),
		"UntagResource":          obj("KeyId", m.KeyId, "TagKeys", []string{"a"}),
		"UpdateKeyDescription":   obj("KeyId", m.KeyId, "Description", "d"),
		"PutKeyPolicy":           obj("KeyId", m.KeyId, "Policy", keyPolicyOf(e)),
		"CreateGrant":            grant,
		"RetireGrant":            obj("GrantToken", granted.GrantToken),
		"RevokeGrant":            obj("KeyId", m.KeyId, "GrantId", granted.GrantId),
		"GetParametersForImport": e.parametersBody(m.KeyId),
	}[op]
	if op == "ImportKeyMaterial" && unavailable {
		body = obj("KeyId", m.KeyId, "ImportToken", "AAAA", "EncryptedKeyMaterial", "AAAA", "ExpirationModel", materialStays)
	} else if op == "ImportKeyMaterial" {
		body = e.importBody(m.KeyId, "0")
	}
	if body == "" {
		body = obj("KeyId", m.KeyId)
	}
	if unavailable {
		e.ok("DisconnectCustomKeyStore", obj("CustomKeyStoreId", m.CustomKeyStoreId), &noMembers{})
	} else {
		e.force(m.KeyId, state)
	}
	texts := map[string]string{
		"8": " is pending deletion.", "-": " is unavailable.",
		"3": " is pending deletion.", "4": " is not pending deletion.", "5": " is pending import.", "4,13": " is not pending deletion.",
		"10": " is pending deletion.", "14": " is creating.", "15": " is updating.",
	}
	if state == kmsapi.StatePendingReplicaDeletion {
		texts["3"], texts["8"], texts["10"] = " is pending replica deletion.", " is pending replica deletion.", " is pending replica deletion."
	}
	next := state
	if cell == "7" || cell == "9" {
		e.fails(op, body, kmsapi.UnsupportedOperation, m.Arn+" origin is AWS_CLOUDHSM which is not valid for this operation.")
	} else if cell == "6" {
		e.fails(op, body, kmsapi.UnsupportedOperation, m.Arn+" origin is EXTERNAL which is not valid for this operation.")
	} else if cell == "1" {
		e.fails(op, body, kmsapi.Disabled, m.Arn+" is disabled.")
	} else if text, refused := texts[cell]; refused {
		e.fails(op, body, kmsapi.KMSInvalidState, m.Arn+text)
	} else {
		if cell != "ok" && cell != "12" {
			e.Fatalf("%s %s: what is %q?", op, state, cell)
		}
		if resp := e.call(op, body); resp.Code != kmsapi.OK {
			e.Errorf("%s in state %s: %s", op, state, resp.Body)
		}
		switch {
		case cell == "12":
		case op == "EnableKey":
			next = kmsapi.StateEnabled
		case op == "DisableKey", op == "CancelKeyDeletion":
			next = kmsapi.StateDisabled
		case op == "ImportKeyMaterial" && state == kmsapi.StatePendingImport:
			next = kmsapi.StateEnabled
		case op == "DeleteImportedKeyMaterial" && (state == kmsapi.StateEnabled || state == kmsapi.StateDisabled):
			next = kmsapi.StatePendingImport
		case op == "ScheduleKeyDeletion":
			next = kmsapi.StatePendingDeletion
		}
	}
	k, err := shared.Key(e.Context(), e.name(m.KeyId))
	if err != nil {
		e.Fatal(err)
	}
	record := next
	if unavailable && next == state {
		record = kmsapi.StateEnabled // unless it was switched, which shows when the key store is back
		if op == "DisableKey" {
			record = kmsapi.StateDisabled
		}
	}
	if k.State != record || k.Resume != 0 {
		e.Errorf("%s in state %s: the record has %s, resumes %q; want %s", op, state, k.State, k.Resume, record)
	}
	if d := e.describe(m.KeyId); d.KeyState != next.String() || d.Enabled != (next == kmsapi.StateEnabled) ||
		(d.DeletionDate != 0) != (next == kmsapi.StatePendingDeletion) {
		e.Errorf("%s in state %s: described as %+v", op, state, d)
	}
	if unavailable {
		e.ok("ConnectCustomKeyStore", obj("CustomKeyStoreId", m.CustomKeyStoreId), &noMembers{})
		e.turns()
		if d := e.describe(m.KeyId); d.KeyState != record.String() {
			e.Errorf("%s in state %s: when the key store is back, described as %+v", op, state, d)
		}
	}
}

// cell is env.cell for the operations with the primary of related keys.
func (w *world) cell(op string, state kmsapi.KeyState, cell string) {
	w.Helper()
	e, there := w.regions[0], w.regions[1].region
	m := e.create(obj("MultiRegion", true))
	body := obj("KeyId", m.KeyId, "ReplicaRegion", there)
	if op == "UpdatePrimaryRegion" {
		e.replicateTo(m.KeyId, there)
		w.settle()
		body = obj("KeyId", m.KeyId, "PrimaryRegion", there)
	}
	e.force(m.KeyId, state)
	text := m.Arn + stateTexts[state]
	switch cell {
	case "ok":
		if resp := e.call(op, body); resp.Code != kmsapi.OK {
			w.Errorf("%s in state %s: %s", op, state, resp.Body)
		}
	case "1":
		e.fails(op, body, kmsapi.Disabled, text)
	case "3", "5", "14", "15", "-":
		e.fails(op, body, kmsapi.KMSInvalidState, text)
	default:
		w.Fatalf("%s %s: what is %q?", op, state, cell)
	}
}

// force puts a key into a state that no operation of this version leads to.
func (e *env) force(keyID string, state kmsapi.KeyState) {
	e.Helper()
	if _, err := shared.UpdateKey(e.Context(), e.name(keyID), func(k *store.Key) error {
		k.State, k.DeletionDate = state, time.Time{}
		if state == kmsapi.StatePendingDeletion {
			k.DeletionDate = e.clock.now().Add(7 * 24 * time.Hour)
		}
		return nil
	}); err != nil {
		e.Fatal(err)
	}
}

// A state that the matrix does not know, or an operation without a row, allows nothing.
func TestStateErrorUnknown(t *testing.T) {
	for _, state := range []kmsapi.KeyState{0, 99} {
		if err := stateError("DescribeKey", state, ""); err == nil {
			t.Errorf("state %d is allowed", state)
		}
	}
	for _, state := range kmsapi.KeyStates {
		if err := stateError("NoSuchOperation", state, ""); err == nil {
			t.Error("an operation without a row is allowed")
		}
		if stateTexts[state] == "" {
			t.Errorf("no text for %s", state)
		}
	}
	if after("DescribeKey", kmsapi.StateCreating) != kmsapi.StateCreating {
		t.Error("an operation that switches nothing switched the state")
	}
}
