package apitest

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/node"
)

const (
	// cellsRun are the cells of the key state matrix that TestKeyStates runs: eight states for each row whose operation is built, since
	// PendingReplicaDeletion shares the column of PendingDeletion.
	cellsRun = 57 * 8
	// cellsNone of them are of Unavailable and keys that no custom key store has.
	cellsNone = 23
	// rowsNotBuilt are the rows that wait for their operation, and the two that need another Region: controlplane runs those.
	rowsNotBuilt = 2
)

// withoutKey are the operations that concern no one key, or none that is there already.
var withoutKey = strings.Fields(`ConnectCustomKeyStore CreateCustomKeyStore CreateKey DeleteCustomKeyStore DescribeCustomKeyStores
	DisconnectCustomKeyStore GenerateRandom ListKeys ListRetirableGrants UpdateCustomKeyStore`)

// stateRow is a row of controlplane/testdata/keystate.tsv.
type stateRow struct {
	op    string // ReEncryptTo is ReEncrypt, of its second key
	key   string // spec and usage, or what else the key is
	cells map[kmsapi.KeyState]string
}

func (r *stateRow) operation() *kmsapi.Operation {
	return kmsapi.Route([]byte(kmsapi.TargetPrefix + strings.TrimSuffix(r.op, "To")))
}

// stateCase is a cell with its key and what the operation needs besides.
type stateCase struct {
	stateRow
	state kmsapi.KeyState
	key   *stateKey
	body  map[string]any
}

// stateKey is a key on its way into a state. Results were made with it when it was enabled.
type stateKey struct {
	id, arn string
	state   kmsapi.KeyState
	results map[string]any // members of replies, by name
}

// TestKeyStates runs every cell of the key state matrix of the operations that are built, through a server: on a key that is put into the
// state in the store while the server is down, since most states cannot be reached otherwise. Unavailable is no record's state: such keys are in a custom key store
// that was disconnected.
func TestKeyStates(t *testing.T) {
	t.Parallel()
	rows := readStates(t)
	cluster := NewHSMCluster(t, 2, 0)
	s := Start(t, cluster.Configured, func(c *node.Config) { c.Quotas = "off" }) // the pools of key pairs are small
	m := &stateMaker{t: t, s: s, c: s.Client(t), keys: map[string]*stateKey{}}
	m.store = m.do("CreateCustomKeyStore", map[string]any{
		"CustomKeyStoreName": "HSMs", "CloudHsmClusterId": ClusterID, "TrustAnchorCertificate": cluster.Anchor, "KeyStorePassword": ClusterPassword,
	})["CustomKeyStoreId"]
	equal(t, "ConnectionErrorCode", connect(t, s.KMS(t), m.store.(string)), "")
	m.other = m.make("symmetric", nil)
	m.other.results["CiphertextBlob"] = m.do("Encrypt", map[string]any{"KeyId": m.other.id, "Plaintext": "YQ=="})["CiphertextBlob"]
	var cases []stateCase
	notBuilt, none := 0, 0
	for _, row := range rows {
		if !row.operation().Built || row.key == "multi-Region" {
			notBuilt++
			continue
		}
		for state, cell := range row.cells {
			if cell == "" {
				t.Fatalf("%s %s: an empty cell", row.op, state)
			}
			if state == kmsapi.StateUnavailable && row.key != "symmetric" {
				none++ // such keys are in no key store
				continue
			}
			cases = append(cases, m.prepare(row, state))
		}
	}
	m.do("DisconnectCustomKeyStore", map[string]any{"CustomKeyStoreId": m.store})
	s.Close()
	forceStates(t, &s.cfg, m.keys)
	s.start(t)
	c := s.Client(t)
	cells := 0
	for i := range cases {
		cells++
		cases[i].run(t, c)
	}
	if cells+none != cellsRun || none != cellsNone || notBuilt != rowsNotBuilt {
		t.Errorf("%d cells were run, %d are of no key and %d rows skipped, want %d, %d and %d", cells, none, notBuilt, cellsRun-cellsNone, cellsNone, rowsNotBuilt)
	}
	if n := s.Stats().Panics; n != 0 {
		t.Errorf("%d requests ended in a panic", n)
	}
}

// readStates reads the table, and fails the test unless every operation is in it that concerns a key.
func readStates(t *testing.T) []stateRow {
	t.Helper()
	text, err := os.ReadFile("../../controlplane/testdata/keystate.tsv")
	if err != nil {
		t.Fatal(err)
	}
	var rows []stateRow
	var columns []string
	seen := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		fields := strings.Split(strings.TrimSpace(line), "\t")
		switch {
		case strings.HasPrefix(line, "#"):
		case columns == nil:
			columns = fields
		default:
			row := stateRow{op: fields[0], key: fields[1], cells: map[kmsapi.KeyState]string{}}
			for i, cell := range fields[2:] {
				row.cells[kmsapi.KeyStateOf(columns[i+2])] = cell
			}
			row.cells[kmsapi.StatePendingReplicaDeletion] = row.cells[kmsapi.StatePendingDeletion]
			if row.operation() == nil || len(row.cells) != len(kmsapi.KeyStates) {
				t.Fatalf("what is this row? %s", line)
			}
			rows, seen[row.operation().Name] = append(rows, row), true
		}
	}
	for _, op := range kmsapi.Operations {
		if seen[op.Name] == slices.Contains(withoutKey, op.Name) {
			t.Errorf("%s is in the table: %v", op.Name, seen[op.Name])
		}
	}
	return rows
}

// stateMaker makes keys, one for each cell of an operation that changes something, else one for each kind of key and state.
type stateMaker struct {
	t     *testing.T
	s     *Server
	c     *Client
	keys  map[string]*stateKey
	other *stateKey // stays enabled
	store any       // CustomKeyStoreId
}

// do is one operation that succeeds.
func (m *stateMaker) do(op string, members map[string]any) map[string]any {
	m.t.Helper()
	reply := m.c.Do(m.t, op, marshal(m.t, members))
	if reply.Status != 200 {
		m.t.Fatalf("%s: %s", op, reply.Body)
	}
	out := map[string]any{}
	if len(reply.Body) > 0 {
		reply.Members(m.t, &out)
	}
	return out
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// make makes a key, in a custom key store unless that is nil.
func (m *stateMaker) make(kind string, store any) *stateKey {
	m.t.Helper()
	members := map[string]any{}
	if store != nil {
		members["CustomKeyStoreId"], members["Origin"] = store, "AWS_CLOUDHSM"
	}
	if spec, usage, ok := strings.Cut(kind, " "); ok {
		members["KeySpec"], members["KeyUsage"] = spec, usage
	} else if kind == "EXTERNAL" {
		members["Origin"] = kind
	} else if kind != "symmetric" {
		m.t.Fatalf("nobody knows how to make a key that is %s", kind)
	}
	made := m.do("CreateKey", members)["KeyMetadata"].(map[string]any)
	k := &stateKey{id: made["KeyId"].(string), arn: made["Arn"].(string), results: map[string]any{}}
	if kind == "EXTERNAL" {
		var p struct{ ImportToken, PublicKey []byte }
		m.c.Do(m.t, "GetParametersForImport", marshal(m.t, map[string]any{"KeyId": k.id, "WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"})).Members(m.t, &p)
		key := must(x509.ParsePKIXPublicKey(p.PublicKey))(m.t).(*rsa.PublicKey)
		k.results["ImportToken"], k.results["EncryptedKeyMaterial"] = p.ImportToken, must(rsa.EncryptOAEP(sha256.New(), rand.Reader, key, make([]byte, 32), nil))(m.t)
		m.do("ImportKeyMaterial", k.importing())
	}
	return k
}

// importing is a request to import once more what was imported.
func (k *stateKey) importing() map[string]any {
	return map[string]any{
		"KeyId": k.id, "ImportToken": k.results["ImportToken"], "EncryptedKeyMaterial": k.results["EncryptedKeyMaterial"], "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE",
	}
}

// prepare makes the key of a cell, if there is none yet, and the request.
func (m *stateMaker) prepare(row stateRow, state kmsapi.KeyState) stateCase {
	m.t.Helper()
	name := row.key + "/" + state.String()
	if row.operation().Write {
		name = row.op + "/" + name
	}
	k := m.keys[name]
	if k == nil {
		var store any
		if state == kmsapi.StateUnavailable {
			store = m.store
		}
		k = m.make(row.key, store)
		k.state, m.keys[name] = state, k
	}
	c := stateCase{stateRow: row, state: state, key: k, body: map[string]any{"KeyId": k.id}}
	c.body = m.request(&c)
	return c
}

// request is the body of a cell's request.
func (m *stateMaker) request(c *stateCase) map[string]any {
	m.t.Helper()
	id, alias := c.key.id, "alias/of-"+c.key.id
	// on adds members to the key's ID.
	on := func(pairs ...any) map[string]any {
		body := map[string]any{"KeyId": id}
		for i := 0; i < len(pairs); i += 2 {
			body[pairs[i].(string)] = pairs[i+1]
		}
		return body
	}
	// result is a member of a reply that was given when the key was enabled.
	result := func(op, member string, body map[string]any) any {
		m.t.Helper()
		if c.key.results[op] == nil {
			c.key.results[op] = m.do(op, body)[member]
		}
		return c.key.results[op]
	}
	spec, _, _ := strings.Cut(c.stateRow.key, " ")
	encryption := map[string]string{"symmetric": "SYMMETRIC_DEFAULT", "RSA_2048": "RSAES_OAEP_SHA_256"}[spec]
	signing := map[string]string{"RSA_2048": "RSASSA_PSS_SHA_256", "ECC_NIST_P256": "ECDSA_SHA_256", "ML_DSA_44": "ML_DSA_SHAKE_256"}[spec]
	admin := "arn:aws:iam::" + Account + ":user/administrator"
	switch c.op {
	case "CreateAlias":
		return map[string]any{"AliasName": alias, "TargetKeyId": id}
	case "UpdateAlias": // the key in the state is the target
		m.do("CreateAlias", map[string]any{"AliasName": alias, "TargetKeyId": m.other.id})
		return map[string]any{"AliasName": alias, "TargetKeyId": id}
	case "DeleteAlias":
		m.do("CreateAlias", map[string]any{"AliasName": alias, "TargetKeyId": id})
		return map[string]any{"AliasName": alias}
	case "TagResource":
		return on("Tags", []map[string]string{{"TagKey": "a", "TagValue": "b"}})
	case "UntagResource":
		return on("TagKeys", []string{"a"})
	case "UpdateKeyDescription":
		return on("Description", "d")
	case "PutKeyPolicy":
		return on("Policy", m.do("GetKeyPolicy", on())["Policy"])
	case "CreateGrant":
		return on("GranteePrincipal", admin, "Operations", []string{"DescribeKey"})
	case "GetParametersForImport":
		return on("WrappingAlgorithm", "RSAES_OAEP_SHA_256", "WrappingKeySpec", "RSA_2048")
	case "ImportKeyMaterial":
		return c.key.importing()
	case "RetireGrant":
		return map[string]any{"GrantToken": result("CreateGrant", "GrantToken", on("GranteePrincipal", admin, "Operations", []string{"RetireGrant"}))}
	case "RevokeGrant":
		return on("GrantId", result("CreateGrant", "GrantId", on("GranteePrincipal", admin, "Operations", []string{"DescribeKey"})))
	case "Encrypt":
		return on("Plaintext", "YQ==", "EncryptionAlgorithm", encryption)
	case "Decrypt":
		blob := result("Encrypt", "CiphertextBlob", on("Plaintext", "YQ==", "EncryptionAlgorithm", encryption))
		return on("CiphertextBlob", blob, "EncryptionAlgorithm", encryption)
	case "ReEncrypt":
		blob := result("Encrypt", "CiphertextBlob", on("Plaintext", "YQ==", "EncryptionAlgorithm", encryption))
		return map[string]any{"CiphertextBlob": blob, "SourceKeyId": id, "SourceEncryptionAlgorithm": encryption, "DestinationKeyId": m.other.id}
	case "ReEncryptTo":
		return map[string]any{"CiphertextBlob": m.other.results["CiphertextBlob"], "DestinationKeyId": id, "DestinationEncryptionAlgorithm": encryption}
	case "GenerateDataKey", "GenerateDataKeyWithoutPlaintext":
		return on("KeySpec", "AES_256")
	case "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext":
		return on("KeyPairSpec", "ECC_NIST_P256")
	case "Sign":
		return on("Message", "YQ==", "SigningAlgorithm", signing)
	case "Verify":
		return on("Message", "YQ==", "SigningAlgorithm", signing, "Signature", result("Sign", "Signature", on("Message", "YQ==", "SigningAlgorithm", signing)))
	case "GenerateMac":
		return on("Message", "YQ==", "MacAlgorithm", "HMAC_SHA_256")
	case "VerifyMac":
		return on("Message", "YQ==", "MacAlgorithm", "HMAC_SHA_256", "Mac", result("GenerateMac", "Mac", on("Message", "YQ==", "MacAlgorithm", "HMAC_SHA_256")))
	case "DeriveSharedSecret":
		peer := must(ecdh.P256().GenerateKey(rand.Reader))(m.t)
		return on("KeyAgreementAlgorithm", "ECDH", "PublicKey", must(x509.MarshalPKIXPublicKey(peer.PublicKey()))(m.t))
	case "Encapsulate":
		return on("EncapsulationAlgorithm", "ML_KEM")
	case "Decapsulate":
		blob := result("Encapsulate", "SharedSecretCiphertextBlob", on("EncapsulationAlgorithm", "ML_KEM"))
		return on("EncapsulationAlgorithm", "ML_KEM", "SharedSecretCiphertextBlob", blob)
	}
	return on()
}

// forceStates opens the store of a server that is down and puts keys into their states.
func forceStates(t *testing.T, cfg *node.Config, keys map[string]*stateKey) {
	t.Helper()
	offline, err := node.OpenOffline(context.Background(), cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	st := offline.Store
	defer func() {
		if err := offline.Close(); err != nil {
			t.Error(err)
		}
	}()
	account, _ := keyid.ParseAccount([]byte(Account))
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		if keys[name].state == kmsapi.StateUnavailable {
			continue
		}
		id, _ := keyid.ParseID([]byte(keys[name].id))
		k, err := st.UpdateKey(t.Context(), store.KeyName{Region: Region, Account: account, ID: id}, func(k *store.Key) error {
			if k.State = keys[name].state; k.State == kmsapi.StatePendingDeletion {
				k.DeletionDate = time.Now().Add(7 * 24 * time.Hour)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		k.Wipe()
	}
}

// refusals are what a cell's footnote says, after the key's ARN.
var refusals = map[string]struct{ exception, text string }{
	"1": {"DisabledException", " is disabled."}, "3": {"KMSInvalidStateException", " is pending deletion."},
	"4": {"KMSInvalidStateException", " is not pending deletion."}, "4,13": {"KMSInvalidStateException", " is not pending deletion."},
	"5": {"KMSInvalidStateException", " is pending import."}, "10": {"KMSInvalidStateException", " is pending deletion."},
	"8":  {"KMSInvalidStateException", " is pending deletion."},
	"6":  {"UnsupportedOperationException", " origin is EXTERNAL which is not valid for this operation."},
	"11": {"KMSInvalidStateException", " is unavailable."},
	"7":  {"UnsupportedOperationException", " origin is AWS_CLOUDHSM which is not valid for this operation."},
	"14": {"KMSInvalidStateException", " is creating."}, "15": {"KMSInvalidStateException", " is updating."},
}

// run is the request of a cell and what has to come of it.
func (c *stateCase) run(t *testing.T, client *Client) {
	t.Helper()
	reply := client.Do(t, c.operation().Name, marshal(t, c.body))
	cell := c.cells[c.state]
	if cell == "ok" || cell == "12" {
		if reply.Status != 200 {
			t.Errorf("%s with %s, %s: %s", c.op, c.stateRow.key, c.state, reply.Body)
		}
		return
	}
	want, known := refusals[cell]
	if !known {
		t.Fatalf("%s with %s, %s: what is %q?", c.op, c.stateRow.key, c.state, cell)
	}
	if c.state == kmsapi.StatePendingReplicaDeletion {
		want.text = strings.Replace(want.text, " is pending deletion.", " is pending replica deletion.", 1)
	}
	reply.WellFormed(t)
	if reply.Status != 400 || reply.Type != want.exception || reply.Message != c.key.arn+want.text {
		t.Errorf("%s with %s, %s: got %d %s, want %s …%s", c.op, c.stateRow.key, c.state, reply.Status, reply.Body, want.exception, want.text)
	}
}
