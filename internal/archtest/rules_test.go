package archtest

// rule says what one package, or all below one ("cmd/..."), may import besides the standard library. Paths below the module are written
// without it. Where several rules match a package, the one that names it is its rule, else the longest pattern.
type rule struct {
	pkg   string
	ours  []string // packages of this module
	third []string // modules or packages of others, with all below them; "*" is any
	not   []string // packages, of whomever, that it must not import although the above or the standard library's freedom would allow it
	reach []string // packages it must not depend on through others either, with all below them
	why   string
}

// leaves are the internal packages that both planes share.
var leaves = []string{
	"internal/aesgcm", "internal/audit", "internal/authz", "internal/awsjson", "internal/awsquery", "internal/blob", "internal/bytesconv", "internal/cloudtrail", "internal/failpoint", "internal/granttoken", "internal/invariants", "internal/kdf", "internal/keyid", "internal/keyspec",
	"internal/kmsapi", "internal/lastuse", "internal/pkcs11uri", "internal/planted", "internal/policy", "internal/secret", "internal/sigv4", "internal/simulate", "internal/snapshot", "internal/uuid",
	"internal/xks",
}

// aboveLeaves is what no leaf may reach: planes, HTTP, storage, tokens.
var aboveLeaves = []string{
	ours("dataplane"), ours("controlplane"), ours("batch"), ours("cache"), ours("ratelimit"), ours("hsm"), ours("cmd"), ours("loadtest"),
	"net/http", "github.com/valyala/fasthttp", "go.etcd.io", "github.com/miekg/pkcs11",
}

var rules = []rule{
	// Above the planes.
	{pkg: "cmd/...", ours: []string{"*"}, third: []string{"*"}, why: "wires everything"},
	{pkg: "internal/node", ours: []string{"*"}, third: []string{"*"}, not: []string{ours("loadtest"), ours("hsm/hsmtest"), ours("internal/authz/authztest"), ours("internal/xks/xkstest")},
		why: "wires one process; part of cmd in all but its folder, so that tests can start it"},
	{pkg: "internal/apitest", ours: []string{"*"}, third: []string{"*"}, why: "tests both planes in one process"},
	{pkg: "internal/etcdtest", third: []string{"go.etcd.io/etcd", "go.uber.org/zap"}, reach: []string{ours("dataplane"), ours("controlplane"), ours("hsm"), ours("batch")},
		why: "clusters of etcd for tests; it knows etcd and nothing of ours"},
	{pkg: "internal/etcdtest/member", third: []string{"go.etcd.io/etcd"}, reach: []string{ours("dataplane"), ours("controlplane"), ours("hsm"), ours("batch")}, why: "etcd's own server as a program"},
	{pkg: "internal/demo", third: []string{"github.com/aws/aws-sdk-go-v2", "github.com/aws/smithy-go"},
		reach: []string{ours("dataplane"), ours("controlplane"), ours("hsm"), ours("batch")},
		why:   "a user's program: it knows the official SDK and nothing of ours"},
	{pkg: "internal/cluster", ours: []string{"hsm/hsmtest/slowhsm"}, reach: []string{ours("dataplane"), ours("controlplane"), ours("batch"), "go.etcd.io"},
		why: "starts programs and stands between them: it knows them by their command lines"},
	{pkg: "internal/cluster/...", ours: []string{"internal/cluster"}, reach: []string{ours("dataplane"), ours("controlplane"), ours("batch"), "go.etcd.io"}, why: "the command of make cluster"},
	{pkg: "internal/faults", ours: []string{"hsm", "hsm/hsmtest/slowhsm", "internal/audit", "internal/cluster", "internal/kmsapi", "internal/planes", "internal/planetls", "internal/planted", "internal/sigv4"},
		third: []string{"github.com/anishathalye/porcupine", "github.com/aws/aws-sdk-go-v2", "github.com/aws/smithy-go"},
		reach: []string{ours("dataplane"), ours("controlplane"), ours("batch"), "go.etcd.io"},
		why:   "a client that breaks things: it knows the server by its wire protocol and what it leaves on disks"},
	{pkg: "bench", ours: []string{"*"}, third: []string{"*"}, why: "measures what crosses packages"},
	{pkg: "internal/quotacli", ours: []string{"internal/iamcli"},
		reach: []string{ours("dataplane"), ours("controlplane"), ours("hsm"), ours("batch")}, why: "a client: it knows the server by its wire protocol only"},
	{pkg: "internal/iamcli", ours: []string{"internal/sigv4"}, third: []string{"github.com/aws/aws-sdk-go-v2"},
		reach: []string{ours("dataplane"), ours("controlplane"), ours("hsm"), ours("batch")}, why: "a client: it knows the server by its wire protocol only"},
	{pkg: "loadtest", ours: []string{"internal/kmsapi", "internal/plot", "internal/secret", "internal/sigv4"},
		third: []string{"github.com/valyala/fasthttp", "github.com/HdrHistogram/hdrhistogram-go", "github.com/aws/aws-sdk-go-v2", "github.com/aws/smithy-go", "golang.org/x/sys/unix", "golang.org/x/term"},
		reach: []string{ours("dataplane"), ours("controlplane"), ours("hsm"), ours("batch")},
		why:   "a client: it signs and measures, and knows the server by its wire protocol only"},

	// The planes, never sideways.
	{pkg: "dataplane", ours: append([]string{"batch", "cache", "ratelimit", "hsm", "internal/attest", "internal/fence", "internal/pubkey", "internal/quota", "internal/softkey"}, leaves...), third: []string{"github.com/valyala/fasthttp"},
		not:   []string{"net/http", "database/sql", "os/exec"},
		reach: []string{ours("controlplane"), "go.etcd.io", "google.golang.org/grpc", ours("hsm/p11"), ours("hsm/softtoken"), "github.com/miekg/pkcs11"},
		why:   "serves from snapshots: hsm for its types, no storage, no tokens, no other plane"},
	{pkg: "controlplane", ours: append([]string{"hsm", "ratelimit", "internal/quota", "controlplane/iam", "controlplane/replication", "controlplane/store", "internal/failpoint", "internal/fence"}, leaves...), third: []string{"github.com/go-json-experiment/json"},
		reach: []string{ours("dataplane"), ours("batch"), ours("hsm/p11"), ours("hsm/softtoken"), "github.com/valyala/fasthttp", "github.com/miekg/pkcs11"},
		why:   "writes keys to the store and publishes snapshots; it makes keys through the types of hsm"},
	{pkg: "controlplane/replication", third: []string{"github.com/go-json-experiment/json"}, not: []string{"net/http"},
		reach: []string{ours("dataplane"), ours("hsm"), ours("controlplane/store"), "go.etcd.io"},
		why:   "messages between Regions, signed; it imports nothing of ours, and does not know how they travel"},
	{pkg: "controlplane/keystores", ours: []string{"controlplane", "controlplane/store", "hsm", "hsm/cluster", "ratelimit", "internal/keyid", "internal/keyspec", "internal/kmsapi", "internal/quota", "internal/secret", "internal/snapshot", "internal/xks", "internal/xksclient"},
		reach: []string{ours("dataplane"), ours("batch"), ours("hsm/p11"), ours("hsm/softtoken"), "github.com/valyala/fasthttp", "github.com/miekg/pkcs11"},
		why:   "what both planes want of custom key stores, on top of clusters and the client of proxies"},
	{pkg: "controlplane/keyring", ours: []string{"hsm", "internal/keyspec", "internal/kmsapi", "internal/snapshot"},
		reach: []string{ours("dataplane"), ours("batch"), ours("hsm/p11"), ours("hsm/softtoken"), "net/http"},
		why:   "the HSM's key ring as the control plane uses it; of no plane, so that both planes' tests can have it"},
	{pkg: "controlplane/iam", ours: append([]string{"controlplane/store"}, leaves...), third: []string{"github.com/go-json-experiment/json"},
		reach: []string{ours("dataplane"), ours("batch"), ours("hsm"), "github.com/valyala/fasthttp", "github.com/miekg/pkcs11"},
		why:   "principals and their policies: IAM's and STS's operations, the table of access keys"},
	{pkg: "controlplane/quotas", ours: append([]string{"ratelimit", "internal/quota", "controlplane/store"}, leaves...), third: []string{"github.com/go-json-experiment/json"},
		reach: []string{ours("dataplane"), ours("batch"), ours("hsm"), "github.com/valyala/fasthttp", "github.com/miekg/pkcs11"},
		why:   "what accounts may use: Service Quotas' operations, the table of request quotas"},
	{pkg: "controlplane/store", ours: leaves,
		third: []string{"go.etcd.io/etcd", "github.com/go-json-experiment/json", "go.uber.org/zap", "google.golang.org/grpc", "golang.org/x/sys/unix"},
		not:   []string{"net/http"},
		reach: []string{ours("hsm"), ours("dataplane"), ours("batch"), "github.com/valyala/fasthttp"},
		why:   "the only package that knows etcd; no HTTP of ours, no HSM"},

	{pkg: "controlplane/store/storetest", ours: []string{"controlplane/store"}, third: []string{"go.etcd.io/etcd", "go.uber.org/zap"}, why: "a store for the tests of other packages, and what somebody does to it who can write to etcd"},
	{pkg: "controlplane/follower", ours: []string{"controlplane/store", "internal/fence", "internal/planted"}, not: []string{"net/http"},
		reach: []string{ours("hsm"), ours("dataplane"), ours("batch"), "github.com/valyala/fasthttp"},
		why:   "when a process applies a change, and for how long it may answer; what a change means to it is its caller's"},
	{pkg: "controlplane/barrier", ours: []string{"controlplane/store", "controlplane/follower", "internal/fence", "internal/planted"}, not: []string{"net/http"},
		reach: []string{ours("hsm"), ours("dataplane"), ours("batch"), "github.com/valyala/fasthttp"},
		why:   "when a change is in force everywhere; how members tell is the wire's"},

	// Machinery of the planes, which do not know each other.
	{pkg: "batch", reach: []string{"net/http", "net"}, why: "standard library only: no keys, no HSM, no HTTP"},
	{pkg: "cache", ours: []string{"internal/secret", "internal/invariants", "internal/planted"},
		third: []string{"github.com/dgraph-io/ristretto/v2", "github.com/cespare/xxhash/v2"},
		why:   "does not know what it stores"},
	{pkg: "ratelimit", ours: []string{"internal/invariants", "internal/keyid"}, third: []string{"github.com/cespare/xxhash/v2"}, not: []string{"net/http"},
		why: "arithmetic on time, for accounts: no HTTP, no errors of the wire"},
	{pkg: "hsm", ours: []string{"internal/secret", "internal/kdf", "internal/invariants", "internal/keyspec", "internal/pubkey", "internal/softkey"}, not: []string{"net/http"},
		reach: []string{ours("internal/kmsapi"), ours("batch"), ours("dataplane"), ours("controlplane"), "net/http", "runtime/cgo", "github.com/valyala/fasthttp"},
		why:   "pure Go; rounds of AES blocks, built by kdf; no KMS API, no HTTP, no batch: cmd joins them"},
	{pkg: "hsm/p11", ours: []string{"hsm", "internal/secret", "internal/kdf", "internal/pkcs11uri", "internal/invariants", "internal/keyspec", "internal/keywrap", "internal/pubkey"}, third: []string{"github.com/miekg/pkcs11"},
		not: []string{"net/http"}, reach: []string{ours("batch"), ours("dataplane"), ours("controlplane")}, why: "the only cgo that calls PKCS#11 modules"},
	{pkg: "hsm/cluster", ours: []string{"hsm", "internal/keyspec", "internal/secret"}, not: []string{"net/http"},
		reach: []string{ours("hsm/p11"), ours("hsm/softtoken"), "github.com/miekg/pkcs11", ours("batch"), ours("dataplane"), ours("controlplane"), ours("internal/kmsapi")},
		why:   "several tokens that hold the same keys; who opens them is told to it"},
	{pkg: "hsm/softtoken", ours: []string{"hsm", "internal/secret", "internal/kdf", "internal/invariants", "internal/keyspec", "internal/keywrap", "internal/pubkey", "internal/softkey"}, not: []string{"net/http"},
		reach: []string{ours("hsm/p11"), "github.com/miekg/pkcs11", ours("batch"), ours("dataplane"), ours("controlplane")},
		why:   "no module, for builds without cgo; crypto/x509, for PKCS #8, brings Go's own net with it, which uses cgo where there is one"},
	{pkg: "hsm/hsmtest", ours: []string{"hsm", "internal/secret", "internal/kdf", "internal/pkcs11uri", "internal/invariants", "internal/keyspec", "internal/pubkey", "internal/softkey"},
		why: "the conformance suite, which each implementation's tests call"},
	{pkg: "hsm/hsmtest/slowhsm", ours: []string{"hsm", "internal/pkcs11uri"}, reach: []string{"runtime/cgo", "net/http"},
		why: "a module in C for tests and bench, built on demand; the package opens none"},

	// Leaves. What is not listed here may import the four that import nothing themselves.
	{pkg: "internal/...", ours: []string{"internal/kmsapi", "internal/secret", "internal/bytesconv", "internal/invariants"}, reach: aboveLeaves,
		why: "a leaf until a row of its own says otherwise"},
	{pkg: "internal/aesgcm", ours: []string{"internal/invariants"}, third: []string{"github.com/klauspost/cpuid/v2"}, reach: aboveLeaves, why: "cpuid to choose the path"},
	{pkg: "internal/archtest", why: "tests only"},
	{pkg: "internal/audit", third: []string{"golang.org/x/mod/sumdb", "github.com/klauspost/compress/zstd", "golang.org/x/sys/unix"}, reach: aboveLeaves,
		why: "files and hashes; imports nothing of ours"},
	{pkg: "internal/auditcli", ours: []string{"internal/audit", "internal/audit/auditkey"}, third: []string{"golang.org/x/mod/sumdb/note"}, reach: aboveLeaves, why: "offline: the files of a log and a public key"},
	{pkg: "internal/audit/auditkey", third: []string{"golang.org/x/mod/sumdb/note"}, reach: aboveLeaves, why: "notes and keys; the token that signs is an interface"},
	{pkg: "internal/auditexport", reach: aboveLeaves, why: "records in JSON to files in JSON; where records come from is an iterator"},
	{pkg: "internal/awsjson", ours: []string{"internal/bytesconv", "internal/kmsapi", "internal/invariants"}, reach: aboveLeaves, why: "its limits are in kmsapi"},
	{pkg: "internal/backup", third: []string{"golang.org/x/mod/sumdb/note"}, reach: aboveLeaves, why: "a file format; imports nothing of ours, and does not know the store"},
	{pkg: "internal/blob", ours: []string{"internal/keyid", "internal/kmsapi", "internal/invariants"}, reach: aboveLeaves, why: "headers name keys"},
	{pkg: "internal/bytesconv", why: "the unsafe file"},
	{pkg: "internal/cloudtrail", ours: []string{"internal/authz", "internal/policy", "internal/blob", "internal/bytesconv", "internal/keyid", "internal/uuid"}, reach: aboveLeaves,
		why: "records as text: it knows whom a caller is, and not who asks for a record or where it goes"},
	{pkg: "internal/fence", ours: []string{"internal/planted"}, third: []string{"golang.org/x/sys/unix"}, reach: aboveLeaves, why: "arithmetic on a clock that goes on while the machine sleeps"},
	{pkg: "internal/granttoken", ours: []string{"internal/keyid"}, reach: aboveLeaves, why: "tokens name accounts and keys"},
	{pkg: "internal/invariants", why: "checks anything, knows nothing"},
	{pkg: "internal/kdf", ours: []string{"internal/invariants"}, reach: append([]string{ours("internal/aesgcm"), "runtime/cgo"}, aboveLeaves...),
		why: "inputs of a block cipher that is elsewhere; hsm imports it and stays pure Go"},
	{pkg: "internal/kdf/xaes", ours: []string{"internal/kdf", "internal/aesgcm"}, reach: aboveLeaves, why: "the derivation and the cipher together"},
	{pkg: "internal/keyid", ours: []string{"internal/kmsapi"}, reach: aboveLeaves, why: "faults of a name are exceptions"},
	{pkg: "internal/keyspec", reach: aboveLeaves, why: "a table; imports nothing"},
	{pkg: "internal/keywrap", reach: aboveLeaves, why: "a block cipher in, a construction out; imports nothing of ours"},
	{pkg: "internal/pubkey", ours: []string{"internal/keyspec"}, third: []string{"filippo.io/mldsa", "github.com/decred/dcrd/dcrec/secp256k1/v4", "github.com/cloudflare/circl/kem/mlkem/mlkem512"},
		reach: aboveLeaves, why: "what needs no private key; one library for each algorithm that Go's lacks"},
	{pkg: "internal/softkey", ours: []string{"internal/keyspec", "internal/pubkey", "internal/secret"},
		third: []string{"filippo.io/mldsa", "github.com/decred/dcrd/dcrec/secp256k1/v4", "github.com/cloudflare/circl/kem/mlkem/mlkem512", "golang.org/x/sys/unix"}, reach: aboveLeaves,
		why: "private keys in software, for the soft token and for what a token lacks"},
	{pkg: "internal/attest", third: []string{"github.com/fxamacker/cbor/v2"}, reach: aboveLeaves, why: "attestation documents in, facts out; CMS out"},
	{pkg: "internal/kmsapi", not: []string{"net", "net/http"}, reach: aboveLeaves, why: "tables; imports nothing of ours"},
	{pkg: "internal/lastuse", ours: []string{"internal/keyid", "internal/uuid"}, not: []string{"net/http"}, reach: aboveLeaves,
		why: "reads records as text and keeps one file: it knows the names of keys"},
	{pkg: "internal/planes", ours: []string{"ratelimit", "internal/cloudtrail", "internal/keyid", "internal/kmsapi", "internal/lastuse", "internal/planetls", "internal/planted", "internal/sigv4"},
		third: []string{"golang.org/x/net/netutil"},
		reach: []string{ours("dataplane"), ours("controlplane"), ours("batch"), "github.com/valyala/fasthttp", "go.etcd.io", "github.com/miekg/pkcs11"},
		why:   "messages between the planes over net/http: it knows what they carry, and neither plane"},
	{pkg: "internal/pkcs11uri", reach: aboveLeaves, why: "RFC 7512 text; imports nothing of ours"},
	{pkg: "internal/planeca", ours: []string{"hsm", "internal/planetls"}, reach: []string{ours("dataplane"), ours("controlplane"), ours("batch"), "go.etcd.io", "github.com/valyala/fasthttp", ours("hsm/p11")},
		why: "certificates: of hsm the key that signs them; renewal is one handler and one client of net/http, mounted by others"},
	{pkg: "internal/planetls", ours: []string{"hsm"}, not: []string{"net/http"}, reach: []string{ours("dataplane"), ours("controlplane"), ours("batch"), "go.etcd.io", "github.com/valyala/fasthttp"},
		why: "certificates and handshakes; of hsm the check of private files. It knows no protocol above TLS"},
	{pkg: "internal/planetls/planetlstest", ours: []string{"internal/planetls"}, why: "certificates for tests"},
	{pkg: "internal/plot", reach: aboveLeaves, why: "draws; imports nothing of ours"},
	{pkg: "internal/planted", why: "bugs by name; imports nothing of ours"},
	{pkg: "internal/policy", ours: []string{"internal/bytesconv", "internal/keyid", "internal/kmsapi", "internal/invariants"}, third: []string{"github.com/go-json-experiment/json"},
		reach: aboveLeaves, why: "pure function of principal, action, key and context; strict JSON"},
	{pkg: "internal/authz", ours: []string{"internal/policy", "internal/bytesconv", "internal/keyid", "internal/kmsapi", "internal/invariants"}, reach: aboveLeaves,
		why: "policies and grants together; pure"},
	{pkg: "internal/authz/authztest", ours: []string{"internal/authz", "internal/policy", "internal/keyid"}, reach: aboveLeaves,
		why: "a second evaluator for tests: it knows the types of the first to ask it the same"},
	{pkg: "internal/quota", ours: []string{"internal/kmsapi", "ratelimit"}, not: []string{"net/http"}, reach: []string{ours("dataplane"), ours("controlplane"), ours("hsm")},
		why: "a table: names and values of quotas, and their pools"},
	{pkg: "internal/secret", reach: aboveLeaves, why: "imports nothing of ours"},
	{pkg: "internal/sigv4", ours: []string{"internal/authz", "internal/bytesconv", "internal/keyid", "internal/kmsapi", "internal/planted", "internal/secret", "internal/invariants"}, reach: aboveLeaves,
		why: "pure: bytes of a request in, code out; signing keys are secrets, scopes name accounts; whom a key speaks for is authz's Caller"},
	{pkg: "internal/simulate", ours: []string{"internal/authz", "internal/policy", "internal/keyid", "internal/kmsapi"}, reach: aboveLeaves,
		why: "questions to authz that a person writes, and its answers in words"},
	{pkg: "internal/xks", ours: []string{"internal/awsjson", "internal/kmsapi"}, reach: aboveLeaves, why: "the wire form of the XKS proxy API"},
	{pkg: "internal/xks/xkstest", why: "a proxy for tests, which shares no code with what it tests"},
	{pkg: "internal/xksclient", ours: []string{"ratelimit", "internal/kmsapi", "internal/sigv4", "internal/uuid", "internal/xks"},
		reach: []string{ours("dataplane"), ours("controlplane"), ours("hsm"), ours("batch"), "github.com/valyala/fasthttp"}, why: "a client of other people's proxies"},
	{pkg: "internal/snapshot", ours: []string{"internal/authz", "internal/policy", "internal/keyid", "internal/keyspec", "internal/kmsapi", "internal/secret", "internal/invariants"}, reach: aboveLeaves,
		why: "where the planes meet"},
	{pkg: "internal/wycheproof", reach: aboveLeaves, why: "vectors of others, read for tests"},
	{pkg: "internal/uuid", reach: aboveLeaves, why: "imports nothing of ours"},
}

// topLevel are the folders of the repository's root that may hold packages.
var topLevel = []string{"batch", "bench", "cache", "cmd", "controlplane", "dataplane", "hsm", "internal", "loadtest", "ratelimit"}

// hotPath packages serve a request without allocating and without printing: no formatting, no reflection, no logging in their files.
var hotPath = []string{
	"batch", "dataplane", "internal/aesgcm", "internal/awsjson", "internal/blob", "internal/cloudtrail", "internal/failpoint", "internal/granttoken", "internal/kdf", "internal/keyid",
	"internal/kmsapi", "internal/sigv4", "internal/snapshot", "internal/uuid",
}

// notHot is what they must not import.
var notHot = []string{"encoding/json", "encoding/json/v2", "expvar", "fmt", "log", "log/slog", "reflect"}

// exception lets one file, or all of a folder ("hsm/p11/..."), import one package that is refused elsewhere.
type exception struct{ file, imports, why string }

// guarded packages are refused in every file but those of exceptions.
var guarded = []string{"C", "math/rand", "math/rand/v2", "unsafe"}

// exceptions holds the file, what it may import, and why. A line that matches nothing in the repository is an error too, unless its
// folder does not exist.
var exceptions = []exception{
	{"internal/bytesconv/...", "unsafe", "string and []byte without a copy: the reason for the package"},
	{"hsm/p11/...", "C", "calls PKCS#11 modules"},
	{"hsm/p11/...", "unsafe", "pointers for the calls of cgo"},
	{"internal/aesgcm/libcrypto_cgo.go", "C", "calls libcrypto: measured, no heap allocation per message"},
	{"internal/aesgcm/libcrypto_cgo.go", "unsafe", "pointers for the calls of cgo"},
	{"internal/aesgcm/bearssl_cgo.go", "C", "calls BearSSL: the only constant-time AES-GCM without AES instructions"},
	{"internal/aesgcm/bearssl_cgo.go", "unsafe", "pointers for the calls of cgo"},
	{"internal/authz/authztest/generate.go", "math/rand/v2", "random cases of tests, repeated from a seed"},
	{"hsm/lane.go", "math/rand/v2", "the place of a known block is no secret: it has to vary, and cost nothing"},
	{"hsm/verify.go", "math/rand/v2", "in which order blocks are encrypted again is no secret"},
	{"internal/cluster/ports.go", "math/rand/v2", "which port to try first is no secret"},
	{"internal/faults/...", "math/rand/v2", "what is broken when has to be repeated from a seed"},
	{"loadtest/...", "math/rand/v2", "which key and when a request is sent is no secret and has to be cheap; seeded runs repeat"},
	{"batch/batcher.go", "fmt", "New words a refused Config; never per job"},
	{"dataplane/server.go", "log/slog", "Config names the logger of recovered panics and of the life of the server"},
}
