package dataplane

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/attest/attesttest"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
	"github.com/keyplane/keyplane/internal/xks"
)

var update = flag.Bool("update", false, "rewrite the responses in testdata")

// TestGolden runs testdata/<operation>/*.txt: one behaviour per file, its sections in order.
//
//	state     key NAME STATE [spec=S] [usage=U] [versions=N] [store=ID] | alias NAME KEY | store ID cloudhsm|external | disconnected ID | throttled ID
//	as        how the requests below are signed: admin | other account | unsigned | wrong secret | unknown key | old | early | region R
//	hsm       what befalls the HSM, the store, or the proxies of external key stores, from here on; see (*golden).fail
//	request   OPERATION BODY
//	http      a request as it is on the wire, lines ended by LF here; nothing of it is signed
//	response  STATUS BODY ["close" where the server closes the connection]
//
// In requests {{…}} stands for a value and in responses for what was recognised: see expand and recognise.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*/*.txt")
	if err != nil || len(files) < 100 {
		t.Fatalf("%d golden files, %v", len(files), err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(strings.TrimPrefix(f, "testdata/"), ".txt"), func(t *testing.T) { runGolden(t, f) })
	}
}

type golden struct {
	*world
	sig   signature
	names []string // of keys

	secret []byte // that the last {{kem}} is of
}

func runGolden(t *testing.T, file string) {
	ar, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// Only where somebody waits for a timeout it is short: a busy machine is slow too.
	cfg := worldConfig{tcp: true, server: Config{ReadTimeout: 10 * time.Second}, roundTimeout: 10 * time.Second}
	if strings.HasSuffix(file, "/slow-sender.txt") {
		cfg.server.ReadTimeout = 300 * time.Millisecond
	}
	if strings.Contains(string(txtar.Format(ar)), "\nhang\n") {
		cfg.roundTimeout = 500 * time.Millisecond
	}
	if strings.HasSuffix(file, "/recipient.txt") {
		cfg.server.AttestationRoots = authority(t).Roots(t)
	}
	g := &golden{world: newWorld(t, cfg)}
	var out []txtar.File
	got := ""
	for _, f := range ar.Files {
		text := string(f.Data)
		if f.Name == "response" {
			if *update {
				continue
			}
			if got == "" {
				t.Fatal("a response without a request")
			}
			if got != text {
				t.Errorf("%s\n got %s\nwant %s", ar.Comment, got, text)
			}
			f.Data, got = []byte(got), ""
			out = append(out, f)
			continue
		}
		if got != "" {
			t.Fatal("a request without a response")
		}
		switch f.Name {
		case "state":
			for line := range strings.Lines(text) {
				g.state(strings.Fields(line))
			}
		case "as":
			g.sig = signer(t, strings.TrimSpace(text))
		case "hsm":
			g.fail(strings.Fields(text))
		case "request":
			op, body, _ := strings.Cut(strings.TrimSuffix(text, "\n"), " ")
			body = g.expand(body)
			got = g.recognise(body, g.do(g.sign(g.sig, kmsapi.TargetPrefix+op, []byte(body))))
		case "http":
			got = g.recognise("", g.do([]byte(g.expand(strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\r\n")))))
		default:
			t.Fatalf("no such section: %s", f.Name)
		}
		out = append(out, f)
		if *update && (f.Name == "request" || f.Name == "http") {
			out, got = append(out, txtar.File{Name: "response", Data: []byte(got)}), ""
		}
	}
	if got != "" {
		t.Fatal("a request without a response")
	}
	if *update {
		ar.Files = out
		if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func (g *golden) state(f []string) {
	switch {
	case len(f) == 3 && f[0] == "alias":
		g.records.aliases[f[1]] = keyID(f[2])
	case len(f) == 3 && f[0] == "store":
		if f[2] == "external" {
			g.addExternalStore(f[1])
		} else {
			g.addCluster(f[1])
		}
	case len(f) == 2 && f[0] == "disconnected":
		g.storeState(f[1]).connected.Store(false)
	case len(f) == 2 && f[0] == "throttled":
		g.storeState(f[1]).full.Store(true)
	case len(f) >= 3 && f[0] == "key" && kmsapi.KeyStateOf(f[2]) != 0:
		g.names = append(g.names, f[1])
		versions, spec, usage, store := 1, kmsapi.SymmetricDefault, kmsapi.EncryptDecrypt, ""
		for _, option := range f[3:] {
			name, value, _ := strings.Cut(option, "=")
			switch name {
			case "spec":
				spec = value
			case "usage":
				usage = value
			case "store":
				store = value
			case "versions":
				versions, _ = strconv.Atoi(value)
			}
		}
		if s := keyspec.Of(spec); s != keyspec.None {
			k := g.addPrivateKey(f[1], kmsapi.KeyStateOf(f[2]), s, keyspec.UsageOf(usage))
			k.Spec, k.Usage = spec, usage
			return
		}
		k := g.addKey(f[1], kmsapi.KeyStateOf(f[2]), versions)
		k.Spec, k.Usage = spec, usage
		if store != "" {
			g.inStore(k, g.stores.Store(testRegion, ours, store))
		}
	default:
		g.Fatalf("no such state: %q", f)
	}
}

func (g *golden) storeState(id string) *testStore {
	switch s := g.stores.Store(testRegion, ours, id).(type) {
	case *externalStore:
		return &s.testStore
	case *clusterStore:
		return &s.testStore
	}
	g.Fatalf("no such key store: %q", id)
	return nil
}

func signer(t *testing.T, text string) signature {
	region, isRegion := strings.CutPrefix(text, "region ")
	s, ok := map[string]signature{
		"admin": {}, "other account": {key: otherKey}, "unsigned": {none: true}, "wrong secret": {secret: "not the secret"},
		"unknown key": {key: "AKIANOBODY"}, "expired session": {key: expiredKey, token: expiredToken},
		"session without token": {key: expiredKey}, "token of nobody": {token: expiredToken}, "old": {at: time.Now().Add(-time.Hour)}, "early": {at: time.Now().Add(time.Hour)},
	}[text]
	if isRegion {
		return signature{region: region}
	}
	if !ok {
		t.Fatalf("no such signer: %q", text)
	}
	return s
}

// fail has calls into the HSM, or reads of the store, go wrong.
func (g *golden) fail(f []string) {
	g.token.Clear()
	g.instead, g.records.err = nil, nil
	g.proxies(nil)
	instead := map[string]error{"full": batch.ErrFull, "late": batch.ErrDeadline, "closed": batch.ErrClosed, "panic": batch.ErrPanic,
		"no-root": hsm.ErrNoRoot, "wrong": hsm.ErrWrong}
	if err, ok := instead[f[0]]; ok {
		g.instead = func() error { return err }
		return
	}
	switch f[0] {
	case "works":
	case "hang":
		hang := make(chan struct{})
		g.Cleanup(func() { close(hang) })
		g.token.Add(hsmtest.Fault{Op: hsmtest.Round, Times: hsmtest.Forever, Hang: hang})
	case "ckr": // ckr CODE TIMES
		code, err := strconv.ParseUint(f[1], 0, 32)
		g.must(err)
		times, err := strconv.Atoi(f[2])
		g.must(err)
		g.token.Add(hsmtest.Fault{Op: hsmtest.Round, Times: times, CKR: hsm.CKR(code)})
	case "proxy": // proxy TimedOut | InvalidCiphertextException | …: xks.Failure
		for failure := xks.Validation; failure <= xks.Unhealthy; failure++ {
			if failure.String() == f[1] {
				g.proxies(xks.Fail(failure, xks.AtCrypto, nil))
				return
			}
		}
		g.Fatalf("no such failure: %q", f)
	case "store": // store timeout | damaged
		g.records.err = map[string]error{"timeout": os.ErrDeadlineExceeded, "damaged": snapshot.ErrDamaged}[f[1]]
		if f[1] == "timeout" {
			g.records.err = fmt.Errorf("reading: %w", contextDeadline)
		}
	default:
		g.Fatalf("no such fault: %q", f)
	}
}

// proxies has every call of a proxy fail.
func (g *golden) proxies(err error) {
	g.stores.mu.Lock()
	defer g.stores.mu.Unlock()
	for _, s := range g.stores.all {
		if s, ok := s.(*externalStore); ok {
			s.set(func(s *externalStore) { s.fail = err })
		}
	}
}

var template = regexp.MustCompile(`\{\{([^{}]*)\}\}`)

// expand fills in a request:
//
//	{{id K}} {{arn K}} {{material K}}   of the key K
//	{{blob K[:VERSION] [name=value…]}}  a blob of "hello" under K
//	{{document [PCR0 [AGE]]}}           an attestation document in base64, its first register 48 times the byte, its age a duration
//	{{signature K ALGORITHM}} {{mac K}} {{rsa K ALGORITHM}}   a signature, MAC or ciphertext of "hello" by, or for, the key K
//	{{peer SPEC}}                       the public key of the other side of a key agreement
//	{{kem K}}                           the ciphertext of a secret for the key K
//	{{x TEXT N}}                        TEXT, N times
//	{{zeros N}}                         N zero bytes in base64
//	{{pairs N}}                         N pairs of an encryption context
func (g *golden) expand(text string) string {
	return template.ReplaceAllStringFunc(text, func(s string) string {
		f := strings.Fields(s[2 : len(s)-2])
		number := func(i int) int { n, err := strconv.Atoi(f[i]); g.must(err); return n }
		switch f[0] {
		case "id":
			return keyID(f[1]).String()
		case "arn":
			return keyARN(f[1])
		case "blob":
			context := map[string]string{}
			for _, pair := range f[2:] {
				k, v, _ := strings.Cut(pair, "=")
				context[k] = v
			}
			name, version, _ := strings.Cut(f[1], ":")
			n, _ := strconv.Atoi(version)
			return base64.StdEncoding.EncodeToString(g.blob(name, max(1, n), context, []byte("hello")))
		case "document":
			pcr0, age := uint64(0), time.Duration(0)
			var err error
			if len(f) > 1 {
				pcr0, err = strconv.ParseUint(f[1], 0, 8)
				g.must(err)
			}
			if len(f) > 2 {
				age, err = time.ParseDuration(f[2])
				g.must(err)
			}
			return base64.StdEncoding.EncodeToString(document(g, byte(pcr0), age))
		case "signature":
			k := g.records.keys[keyID(f[1])]
			return b64(g.signature(k, keyspec.AlgorithmOf(f[2]), []byte("hello")))
		case "mac":
			return b64(g.mustUse(g.records.keys[keyID(f[1])], hsm.MAC, []byte("hello")))
		case "rsa":
			return b64(g.encryptOAEP(g.records.keys[keyID(f[1])], keyspec.AlgorithmOf(f[2]), []byte("hello")))
		case "peer":
			_, spki := peer(g, keyspec.Of(f[1]))
			return b64(spki)
		case "kem":
			var ciphertext []byte
			g.secret, ciphertext = g.encapsulated(g.records.keys[keyID(f[1])])
			return b64(ciphertext)
		case "x":
			return strings.Repeat(f[1], number(2))
		case "zeros":
			return base64.StdEncoding.EncodeToString(make([]byte, number(1)))
		case "pairs":
			var pairs []string
			for i := range number(1) {
				pairs = append(pairs, fmt.Sprintf(`"k%03d":"v"`, i))
			}
			return strings.Join(pairs, ",")
		}
		g.Fatalf("no such template: %s", s)
		return ""
	})
}

// isSymmetric says that the reply is about a key with versions.
func (g *golden) isSymmetric(body []byte) bool {
	var out struct{ KeyId string }
	_ = json.Unmarshal(body, &out)
	return !slices.ContainsFunc(g.names, func(n string) bool { return keyARN(n) == out.KeyId && g.records.keys[keyID(n)].Private != nil })
}

// recogniseKeys does the same for what private and public keys make.
func (g *golden) recogniseKeys(request string, body []byte, text string) string {
	g.Helper()
	var in struct {
		KeyId, MessageType, DestinationEncryptionAlgorithm, EncryptionAlgorithm string
		Message                                                                 []byte
		EncryptionContext                                                       map[string]string
	}
	var out keyReply
	if json.Unmarshal([]byte(request), &in) != nil || json.Unmarshal(body, &out) != nil {
		return text
	}
	replace := func(old []byte, ok bool, name string) {
		if old == nil {
			return
		}
		if !ok {
			name = "garbage"
		}
		text = strings.ReplaceAll(text, strconv.Quote(b64(old)), strconv.Quote("{{"+name+"}}"))
	}
	for _, n := range g.names {
		k := g.records.keys[keyID(n)]
		if out.KeyId != keyARN(n) {
			continue
		}
		if k.Private == nil {
			if out.PrivateKeyCiphertextBlob != nil {
				_, _, private, ok := g.open(out.PrivateKeyCiphertextBlob, in.EncryptionContext)
				ok = ok && matches(g, keyspec.Of(out.KeyPairSpec), private, out.PublicKey)
				replace(out.PrivateKeyPlaintext, ok && bytes.Equal(private, out.PrivateKeyPlaintext), "private key")
				replace(out.PrivateKeyCiphertextBlob, ok, "blob of the private key")
				replace(out.PublicKey, ok, "its public key")
			}
			continue
		}
		replace(out.PublicKey, bytes.Equal(out.PublicKey, k.Private.Public), "public key of "+n)
		if out.Signature != nil {
			replace(out.Signature, g.verifies(k, keyspec.AlgorithmOf(out.SigningAlgorithm), in.MessageType, in.Message, out.Signature), "signature by "+n)
		}
		if out.Mac != nil {
			replace(out.Mac, bytes.Equal(out.Mac, g.mustUse(k, hsm.MAC, in.Message)), "mac by "+n)
		}
		switch {
		case out.KeyAgreementAlgorithm != "" && out.SharedSecret != nil:
			replace(out.SharedSecret, bytes.Equal(out.SharedSecret, g.agreed(k)), "what the peer computes")
		case out.SharedSecretCiphertextBlob != nil:
			ok := bytes.Equal(out.SharedSecret, g.mustUse(k, hsm.DecapsulateMLKEM, out.SharedSecretCiphertextBlob))
			replace(out.SharedSecret, ok, "secret")
			replace(out.SharedSecretCiphertextBlob, ok, "its ciphertext for "+n)
		case out.SharedSecret != nil:
			replace(out.SharedSecret, bytes.Equal(out.SharedSecret, g.secret), "the secret")
		}
		if out.CiphertextBlob != nil {
			a := keyspec.AlgorithmOf(out.EncryptionAlgorithm + out.DestinationEncryptionAlgorithm)
			plaintext, err := g.use(k, decryption(a), out.CiphertextBlob)
			replace(out.CiphertextBlob, err == nil && string(plaintext) == "hello", "ciphertext for "+n)
		}
	}
	return text
}

var date = regexp.MustCompile(`\d{8}T\d{6}Z`)

// recognise is a reply as a response section has it, with templates for what differs from run to run. A ciphertext is opened, by other
// code than the server's, with the encryption context of the request.
func (g *golden) recognise(request string, r reply) string {
	g.Helper()
	if ct := r.header.Get("Content-Type"); ct != kmsapi.ContentType {
		g.Errorf("Content-Type is %q", ct)
	}
	if id := r.header.Get("x-amzn-RequestId"); !requestIDForm.MatchString(id) {
		g.Errorf("x-amzn-RequestId is %q", id)
	}
	if !json.Valid(r.body) {
		g.Errorf("not JSON: %s", r.body)
	}
	text := string(r.body)
	var in struct {
		EncryptionContext, DestinationEncryptionContext map[string]string
		Plaintext                                       string
	}
	var out struct{ CiphertextBlob, CiphertextForRecipient, Plaintext []byte }
	_ = json.Unmarshal([]byte(request), &in)
	_ = json.Unmarshal(r.body, &out)
	replace := func(old []byte, name string) {
		text = strings.ReplaceAll(text, strconv.Quote(base64.StdEncoding.EncodeToString(old)), strconv.Quote("{{"+name+"}}"))
	}
	if out.CiphertextForRecipient != nil {
		g.must(func() (err error) {
			out.Plaintext, err = attesttest.Open(recipientKey(), out.CiphertextForRecipient)
			return err
		}())
		replace(out.CiphertextForRecipient, fmt.Sprintf("sealed %d bytes", len(out.Plaintext)))
	}
	if len(out.CiphertextBlob) > 0 && out.CiphertextBlob[0] == 1 && g.isSymmetric(r.body) {
		context := in.EncryptionContext
		if in.DestinationEncryptionContext != nil {
			context = in.DestinationEncryptionContext
		}
		id, version, plaintext, ok := g.open(out.CiphertextBlob, context)
		what := fmt.Sprintf("%d bytes", len(plaintext))
		switch {
		case !ok:
			what = "garbage"
		case string(plaintext) == "hello" || in.Plaintext != "" && base64.StdEncoding.EncodeToString(plaintext) == in.Plaintext:
			what = "the plaintext"
		case out.Plaintext != nil && string(out.Plaintext) == string(plaintext):
			replace(out.Plaintext, fmt.Sprintf("%d bytes", len(plaintext)))
			what = "these"
		}
		name := id.String()
		for _, n := range g.names {
			if keyID(n) == id {
				name = n
			}
		}
		replace(out.CiphertextBlob, fmt.Sprintf("blob %s:%d %s of %v", name, version, what, slices.Sorted(maps.Keys(context))))
	} else if string(out.Plaintext) != "hello" && out.Plaintext != nil {
		replace(out.Plaintext, fmt.Sprintf("%d bytes", len(out.Plaintext)))
	}
	text = g.recogniseKeys(request, r.body, text)
	for _, n := range g.names {
		text = strings.ReplaceAll(text, keyARN(n), "{{arn "+n+"}}")
		text = strings.ReplaceAll(text, keyID(n).String(), "{{id "+n+"}}")
		for _, v := range g.records.keys[keyID(n)].Versions {
			text = strings.ReplaceAll(text, string(v.MaterialID[:]), fmt.Sprintf("{{material %s:%d}}", n, v.Number))
		}
	}
	text = date.ReplaceAllString(text, "{{date}}")
	if r.close {
		text += " close"
	}
	return fmt.Sprintf("%d %s\n", r.status, text)
}
