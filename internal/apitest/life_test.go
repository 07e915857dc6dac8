package apitest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyplane/keyplane/internal/node"
)

var (
	lifePrograms  = flag.Int("life-programs", 100, "how many random programs TestLifePrograms runs")
	lifeHistories = flag.Int("life-histories", 24, "how many histories TestLinearizable checks")
)

const (
	lifeKeysMax = 3
	// programsPerServer keeps a server's years below 292, which nanoseconds count.
	programsPerServer = 90
	// restartOf is which of so many draws restarts the server: rapid draws small numbers, and large ones, more often than others.
	restartOf, restartsEvery = 5, 9
)

// lives is what programs share: a server, whose clock only goes forward. Programs have keys of their own.
type lives struct {
	t     *testing.T
	s     *Server
	c     *Client
	clock *Clock

	programs, steps, refusals, restarts, keys int
	wrappingKeys                              int
}

// TestLifePrograms runs random programs of what a key can go through against the reference model of lifemodel_test.go: whether each operation is refused, and
// with which exception, and all that can be seen of the keys, are what the model says. Every ciphertext of a program is decrypted time and again.
func TestLifePrograms(t *testing.T) {
	t.Parallel()
	began := time.Now()
	w := &lives{t: t}
	w.start()
	if err := flag.Set("rapid.checks", strconv.Itoa(*lifePrograms)); err != nil {
		t.Fatal(err)
	}
	if err := flag.Set("rapid.nofailfile", "true"); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, w.program)
	w.end()
	want := *lifePrograms
	if testing.Short() {
		want /= 5 // as rapid has it
	}
	if w.programs < want || w.steps < 10*w.programs || w.refusals < w.programs {
		t.Errorf("too little has happened: %d programs, %d operations, %d refused", w.programs, w.steps, w.refusals)
	}
	t.Logf("life: %d random programs with %d keys, %d operations, %d of them refused, %d restarts: no disagreement with the model; %.1f s",
		w.programs, w.keys, w.steps, w.refusals, w.restarts, time.Since(began).Seconds())
}

// start brings up a server; end looks at what is left on it. Every program has left its keys to be deleted, and they are.
func (w *lives) start() {
	w.clock = NewClock(time.Date(2026, 12, 31, 23, 0, 0, 0, time.UTC))
	w.s = Start(w.t, WithClock(w.clock), func(c *node.Config) { c.Quotas = "off" })
	w.c = w.s.Client(w.t)
}

func (w *lives) end() {
	w.t.Helper()
	w.clock.Advance(31 * days)
	w.s.Work(w.t)
	var list struct{ Keys []any }
	w.c.Do(w.t, "ListKeys", "{}").Members(w.t, &list)
	equal(w.t, "keys that are left", len(list.Keys), 0)
	if n := w.s.Stats().Panics; n != 0 {
		w.t.Errorf("%d requests ended in a panic", n)
	}
	w.s.Close()
}

// life is one program.
type life struct {
	*lives
	rt      *rapid.T
	keys    []*livingKey
	aliases map[string]int // index of the key, of those that there are
}

// livingKey is a key with its model, and what was made with it.
type livingKey struct {
	lifeKey
	id, arn  string
	products []product
	bytes    [3][32]byte // what is imported
	token    string      // import token, base64
	wrapping *rsa.PublicKey
	tokenEnd time.Time
}

// product is a ciphertext, a MAC or a signature, of a message that names it.
type product struct {
	blob    string // base64
	message string // base64
	version int    // index in versions
}

func (w *lives) program(rt *rapid.T) {
	if w.programs++; w.programs%programsPerServer == 0 {
		w.end()
		w.start()
	}
	p := &life{lives: w, rt: rt, aliases: map[string]int{}}
	actions := map[string]func(*rapid.T){
		"create": p.create, "enable": p.on("EnableKey"), "disable": p.on("DisableKey"), "schedule": p.schedule, "cancel": p.on("CancelKeyDeletion"),
		"rotate": p.enableRotation, "rotateNot": p.on("DisableKeyRotation"), "rotateNow": p.rotateNow,
		"alias": p.createAlias, "aliasMove": p.moveAlias, "aliasNot": p.deleteAlias, "tag": p.tag, "untag": p.untag, "describe": p.describe,
		"use": p.use, "use2": p.use, "useOld": p.useOld, "useOld2": p.useOld, "pass": p.pass, "passLong": p.passLong, "restart": p.restart, "look": p.look,
	}
	if lifeBuilt("ImportKeyMaterial") {
		actions["import"], actions["import2"], actions["importNot"] = p.importMaterial, p.importMaterial, p.deleteMaterial
	}
	rt.Repeat(actions)
	for i := range p.keys {
		p.lookAt(i)
	}
	for i, k := range p.keys {
		if k.state != gone && k.state != pendingDeletion {
			p.do(i, "ScheduleKeyDeletion", k.verdict("ScheduleKeyDeletion"), map[string]any{"PendingWindowInDays": 7})
		}
	}
	p.settle()
}

// key draws a key of the program, and makes one if there is none.
func (p *life) key() (int, *livingKey) {
	if len(p.keys) == 0 {
		p.create(p.rt)
	}
	i := rapid.IntRange(0, len(p.keys)-1).Draw(p.rt, "key")
	return i, p.keys[i]
}

// send is one operation, whose outcome has to be one of those wanted. It returns the reply's members, nil of a refusal.
func (p *life) send(op string, body map[string]any, wants ...string) map[string]any {
	p.rt.Helper()
	p.steps++
	reply, err := p.c.Try(op, marshal(p.t, body))
	if err != nil || reply == nil {
		p.rt.Fatalf("%s: %v", op, err)
	}
	if !slices.Contains(wants, reply.Type) || (reply.Type == isFine) != (reply.Status == 200) {
		p.rt.Fatalf("%s at %s: got %d %s, want one of %q\nrequest %v\n%s", op, p.clock.Now(), reply.Status, reply.Body, wants, body, p.story())
	}
	if reply.Status != 200 {
		p.refusals++
		return nil
	}
	out := map[string]any{}
	if len(reply.Body) > 0 {
		if err := json.Unmarshal(reply.Body, &out); err != nil {
			p.rt.Fatal(err)
		}
	}
	return out
}

// do is send about one of the program's keys.
func (p *life) do(i int, op, want string, members map[string]any) map[string]any {
	p.rt.Helper()
	body := map[string]any{"KeyId": p.keys[i].id}
	for name, v := range members {
		body[name] = v
	}
	return p.send(op, body, want)
}

// settle has what is due done, by the server and by the model: after each step that something can be due after.
func (p *life) settle() {
	p.s.Work(p.t)
	now := p.clock.Now()
	for i, k := range p.keys {
		k.settle(now)
		if k.state == gone {
			for name, of := range p.aliases {
				if of == i {
					delete(p.aliases, name)
				}
			}
		}
	}
}

func (p *life) story() (s string) {
	for _, k := range p.keys {
		s += fmt.Sprintf("%s: %+v\n", k.id, k.lifeKey)
	}
	return s
}

func (p *life) create(rt *rapid.T) {
	if len(p.keys) >= lifeKeysMax {
		return
	}
	kinds := []lifeKind{lifeSymmetric, lifeSymmetric, lifeSymmetric, lifeHMAC, lifeSigning}
	if lifeBuilt("ImportKeyMaterial") {
		kinds = append(kinds, lifeExternal)
	}
	kind := rapid.SampledFrom(kinds).Draw(rt, "kind")
	body := map[lifeKind]map[string]any{
		lifeSymmetric: {}, lifeExternal: {"Origin": "EXTERNAL"}, lifeHMAC: {"KeySpec": "HMAC_256", "KeyUsage": "GENERATE_VERIFY_MAC"},
		lifeSigning: {"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"},
	}[kind]
	m := p.send("CreateKey", body, isFine)["KeyMetadata"].(map[string]any)
	k := &livingKey{lifeKey: *newLifeKey(kind), id: m["KeyId"].(string), arn: m["Arn"].(string)}
	for i := range k.bytes {
		_, _ = rand.Read(k.bytes[i][:])
	}
	p.keys = append(p.keys, k)
	p.lives.keys++
}

// on is an operation that takes nothing but a key, and changes the model if it succeeds.
func (p *life) on(op string) func(*rapid.T) {
	return func(*rapid.T) {
		i, k := p.key()
		want := k.verdict(op)
		p.do(i, op, want, nil)
		if want == isFine {
			switch op {
			case "EnableKey":
				k.state = enabled
				defer p.settle()
			case "DisableKey":
				k.state = disabled
			case "CancelKeyDeletion":
				k.deletion, k.state = time.Time{}, disabled
				if !k.complete() {
					k.state = pendingImport
				}
			case "DisableKeyRotation":
				k.rotates, k.next = false, time.Time{}
			}
		}
	}
}

func (p *life) schedule(rt *rapid.T) {
	i, k := p.key()
	window := rapid.IntRange(7, 30).Draw(rt, "days")
	want := k.verdict("ScheduleKeyDeletion")
	p.do(i, "ScheduleKeyDeletion", want, map[string]any{"PendingWindowInDays": window})
	if want == isFine {
		k.state, k.deletion = pendingDeletion, p.clock.Now().Add(time.Duration(window)*days)
	}
	p.settle()
}

func (p *life) enableRotation(rt *rapid.T) {
	i, k := p.key()
	period := rapid.SampledFrom([]int{90, 91, 180, 365, 366, 2560}).Draw(rt, "period")
	want := k.verdict("EnableKeyRotation")
	p.do(i, "EnableKeyRotation", want, map[string]any{"RotationPeriodInDays": period})
	if d := time.Duration(period) * days; want == isFine && (!k.rotates || k.period != d) {
		k.rotates, k.period, k.next = true, d, p.clock.Now().Add(d)
	}
}

func (p *life) rotateNow(*rapid.T) {
	i, k := p.key()
	want := k.verdict("RotateKeyOnDemand")
	if want == isFine {
		want = k.rotationRefused(p.clock.Now())
	}
	p.do(i, "RotateKeyOnDemand", want, nil)
	k.asked = k.asked || want == isFine
	p.settle()
}

// name draws one of three alias names of the program.
func (p *life) name() string {
	return fmt.Sprintf("alias/%d-%d", p.programs, rapid.IntRange(0, 2).Draw(p.rt, "alias"))
}

func (p *life) createAlias(*rapid.T) {
	i, k := p.key()
	name := p.name()
	want := k.verdict("CreateAlias")
	if _, there := p.aliases[name]; want == isFine && there {
		want = isExisting
	}
	p.send("CreateAlias", map[string]any{"AliasName": name, "TargetKeyId": k.id}, want)
	if want == isFine {
		p.aliases[name], k.aliases[name] = i, true
	}
}

func (p *life) moveAlias(*rapid.T) {
	i, k := p.key()
	name := p.name()
	from, there := p.aliases[name]
	wants := []string{k.verdict("UpdateAlias")}
	switch {
	case !there:
		wants = []string{isNotFound}
	case k.state != gone && p.keys[from].kind.class() != k.kind.class():
		if wants[0] == isFine {
			wants = nil
		}
		wants = append(wants, isInvalid) // which of two reasons comes first is not known
	}
	if p.send("UpdateAlias", map[string]any{"AliasName": name, "TargetKeyId": k.id}, wants...) != nil {
		delete(p.keys[from].aliases, name)
		p.aliases[name], k.aliases[name] = i, true
	}
}

func (p *life) deleteAlias(*rapid.T) {
	name := p.name()
	from, there := p.aliases[name]
	want := isNotFound
	if there {
		want = isFine
		delete(p.aliases, name)
		delete(p.keys[from].aliases, name)
	}
	p.send("DeleteAlias", map[string]any{"AliasName": name}, want)
}

func (p *life) tag(rt *rapid.T) {
	i, k := p.key()
	key, value := rapid.SampledFrom([]string{"a", "A", "b"}).Draw(rt, "tag"), rapid.StringMatching("[a-z]{0,3}").Draw(rt, "value")
	want := k.verdict("TagResource")
	p.do(i, "TagResource", want, map[string]any{"Tags": []map[string]string{{"TagKey": key, "TagValue": value}}})
	if want == isFine {
		k.tags[key] = value
	}
}

func (p *life) untag(rt *rapid.T) {
	i, k := p.key()
	key := rapid.SampledFrom([]string{"a", "A", "b"}).Draw(rt, "tag")
	want := k.verdict("UntagResource")
	p.do(i, "UntagResource", want, map[string]any{"TagKeys": []string{key}})
	if want == isFine {
		delete(k.tags, key)
	}
}

func (p *life) describe(rt *rapid.T) {
	i, k := p.key()
	text := rapid.StringMatching("[a-z ]{0,8}").Draw(rt, "text")
	want := k.verdict("UpdateKeyDescription")
	p.do(i, "UpdateKeyDescription", want, map[string]any{"Description": text})
	if want == isFine {
		k.text = text
	}
}

// operations are what makes a product with a key, and what takes it back, with the members that both have besides the message.
func (k *livingKey) operations() (makes, takes, product string, members map[string]any) {
	switch k.kind {
	case lifeHMAC:
		return "GenerateMac", "VerifyMac", "Mac", map[string]any{"MacAlgorithm": "HMAC_SHA_256"}
	case lifeSigning:
		return "Sign", "Verify", "Signature", map[string]any{"SigningAlgorithm": "ECDSA_SHA_256"}
	}
	return "Encrypt", "Decrypt", "CiphertextBlob", map[string]any{}
}

// use makes something with a key, named by its ID or by one of its aliases.
func (p *life) use(rt *rapid.T) {
	_, k := p.key()
	makes, _, product_, members := k.operations()
	message := encode(fmt.Appendf(nil, "%s %d", k.id, len(k.products)))
	if makes == "Encrypt" {
		members["Plaintext"] = message
	} else {
		members["Message"] = message
	}
	members["KeyId"] = k.id
	if names := k.names(); len(names) > 0 && rapid.Bool().Draw(rt, "by alias") {
		members["KeyId"] = names[0]
	}
	if out := p.send(makes, members, k.verdict(makes)); out != nil {
		k.products = append(k.products, product{out[product_].(string), message, k.current})
	}
}

// useOld takes back something that was made with a key, also one that is deleted.
func (p *life) useOld(rt *rapid.T) {
	_, k := p.key()
	if len(k.products) > 0 {
		p.take(k, k.products[rapid.IntRange(0, len(k.products)-1).Draw(rt, "product")])
	}
}

func (p *life) take(k *livingKey, made product) {
	p.rt.Helper()
	_, takes, name, members := k.operations()
	members[name] = made.blob
	want := k.verdict(takes)
	if takes == "Decrypt" {
		if want == isNotFound {
			want = "AccessDeniedException" // which says nothing of whether there was such a key
		}
	} else {
		members["KeyId"], members["Message"] = k.id, made.message
	}
	out := p.send(takes, members, want)
	if out == nil || takes != "Decrypt" {
		return
	}
	if out["Plaintext"] != made.message || out["KeyId"] != k.arn {
		p.rt.Fatalf("decrypted %v, want %s", out, made.message)
	}
	p.learn(k, made.version, out["KeyMaterialId"])
}

// learn notes the ID of a material, which never changes, and is no other's.
func (p *life) learn(k *livingKey, version int, id any) {
	p.rt.Helper()
	text, _ := id.(string)
	for i := range k.versions {
		v := &k.versions[i]
		switch {
		case i == version && v.material == "":
			v.material = text
		case (v.material == text) != (i == version):
			p.rt.Fatalf("material %d of %s is %s; %s", version, k.id, text, p.story())
		}
	}
}

// pass lets some hours or weeks pass, passLong up to two years: rotations are missed, and keys are deleted.
func (p *life) pass(rt *rapid.T) {
	p.forward(rapid.SampledFrom([]time.Duration{time.Millisecond, 10 * time.Minute, 23 * time.Hour, 7 * days, 10 * days, 30 * days}).Draw(rt, "time"))
}

func (p *life) passLong(rt *rapid.T) {
	p.forward(time.Duration(rapid.IntRange(60, 740).Draw(rt, "days")) * days)
}

func (p *life) forward(d time.Duration) {
	p.clock.Advance(d)
	p.settle()
}

func (p *life) restart(rt *rapid.T) {
	if rapid.IntRange(0, restartsEvery-1).Draw(rt, "luck") != restartOf {
		return
	}
	p.s.Restart(p.t)
	p.lives.c = p.s.Client(p.t)
	p.restarts++
	p.settle()
}

// materialFor wraps one of the key's materials for its import token, which is made anew when it has expired.
func (p *life) materialFor(i, bytes int) (wrapped string, want string) {
	k := p.keys[i]
	want = k.verdict("GetParametersForImport")
	if k.token == "" || !k.tokenEnd.After(p.clock.Now()) {
		out := p.do(i, "GetParametersForImport", want, map[string]any{"WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"})
		if out == nil {
			return "", want
		}
		p.wrappingKeys++
		public, err := x509.ParsePKIXPublicKey(must(base64.StdEncoding.DecodeString(out["PublicKey"].(string)))(p.t))
		if err != nil {
			p.rt.Fatal(err)
		}
		k.token, k.wrapping, k.tokenEnd = out["ImportToken"].(string), public.(*rsa.PublicKey), p.clock.Now().Add(24*time.Hour)
	}
	return encode(must(rsa.EncryptOAEP(sha256.New(), rand.Reader, k.wrapping, k.bytes[bytes][:], nil))(p.t)), isFine
}

func (p *life) importMaterial(rt *rapid.T) {
	i, k := p.external()
	if k == nil {
		return
	}
	bytes := rapid.IntRange(0, len(k.bytes)-1).Draw(rt, "material")
	isNew := rapid.Bool().Draw(rt, "new")
	var expires time.Time
	if rapid.Bool().Draw(rt, "expires") {
		expires = p.clock.Now().Add(time.Duration(rapid.IntRange(1, 365).Draw(rt, "valid days")) * days)
	}
	wrapped, refused := p.materialFor(i, bytes)
	if refused != isFine {
		return
	}
	members := map[string]any{"ImportToken": k.token, "EncryptedKeyMaterial": wrapped, "ImportType": "EXISTING_KEY_MATERIAL", "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}
	if isNew {
		members["ImportType"] = "NEW_KEY_MATERIAL"
	}
	if !expires.IsZero() {
		members["ExpirationModel"], members["ValidTo"] = "KEY_MATERIAL_EXPIRES", float64(expires.UnixMilli())/1000
	}
	want := k.verdict("ImportKeyMaterial")
	if want == isFine {
		want = k.importRefused(bytes, isNew)
	}
	if out := p.do(i, "ImportKeyMaterial", want, members); out != nil {
		k.imported(bytes, out["KeyMaterialId"].(string), expires)
	}
	p.settle()
}

// external draws a key of origin EXTERNAL; nil if the program has none.
func (p *life) external() (int, *livingKey) {
	var of []int
	for i, k := range p.keys {
		if k.kind == lifeExternal {
			of = append(of, i)
		}
	}
	if len(of) == 0 {
		return 0, nil
	}
	i := rapid.SampledFrom(of).Draw(p.rt, "external key")
	return i, p.keys[i]
}

func (p *life) deleteMaterial(rt *rapid.T) {
	i, k := p.external()
	if k == nil {
		return
	}
	members, at := map[string]any{}, k.current
	if len(k.versions) > 0 && rapid.Bool().Draw(rt, "by ID") {
		at = rapid.IntRange(0, len(k.versions)-1).Draw(rt, "version")
		members["KeyMaterialId"] = k.versions[at].material
	}
	want := k.verdict("DeleteImportedKeyMaterial")
	p.do(i, "DeleteImportedKeyMaterial", want, members)
	if want == isFine && at >= 0 {
		k.drop(at)
	}
}

func (p *life) look(*rapid.T) {
	i, _ := p.key()
	p.lookAt(i)
}

// lookAt compares all that can be seen of a key with the model.
func (p *life) lookAt(i int) {
	p.rt.Helper()
	k := p.keys[i]
	same := func(what string, got, want any) {
		p.rt.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			p.rt.Fatalf("%s of %s at %s is %v, want %v\n%s", what, k.id, p.clock.Now(), got, want, p.story())
		}
	}
	date := func(v any) time.Time {
		seconds, there := v.(float64)
		if !there {
			return time.Time{}
		}
		return time.UnixMilli(int64(seconds*1000 + .5)).UTC()
	}
	out := p.do(i, "DescribeKey", k.verdict("DescribeKey"), nil)
	if out == nil {
		return
	}
	m := out["KeyMetadata"].(map[string]any)
	same("KeyState", m["KeyState"], k.state)
	same("Enabled", m["Enabled"], k.state == enabled)
	same("DeletionDate", date(m["DeletionDate"]), k.deletion)
	same("Description", m["Description"], k.text)
	model, validTo := k.expiration()
	if got, _ := m["ExpirationModel"].(string); k.kind == lifeExternal {
		same("ExpirationModel", got, model)
		same("ValidTo", date(m["ValidTo"]), validTo)
	}
	if k.kind == lifeSymmetric {
		p.learn(k, k.current, m["CurrentKeyMaterialId"])
	}
	tags := map[string]string{}
	for _, v := range p.do(i, "ListResourceTags", isFine, nil)["Tags"].([]any) {
		v := v.(map[string]any)
		tags[v["TagKey"].(string)] = v["TagValue"].(string)
	}
	same("tags", tags, k.tags)
	names := []string{}
	for _, v := range p.do(i, "ListAliases", isFine, nil)["Aliases"].([]any) {
		names = append(names, v.(map[string]any)["AliasName"].(string))
	}
	slices.Sort(names)
	same("aliases", names, k.names())
	if status := p.do(i, "GetKeyRotationStatus", k.verdict("GetKeyRotationStatus"), nil); status != nil {
		rotates := k.rotates && k.state != pendingDeletion
		same("KeyRotationEnabled", status["KeyRotationEnabled"], rotates)
		if rotates {
			same("RotationPeriodInDays", status["RotationPeriodInDays"], int(k.period/days))
			same("NextRotationDate", date(status["NextRotationDate"]), k.next)
		}
	}
	if list := p.do(i, "ListKeyRotations", k.verdict("ListKeyRotations"), nil); list != nil {
		var got, want []string
		for _, v := range list["Rotations"].([]any) {
			v := v.(map[string]any)
			got = append(got, fmt.Sprint(date(v["RotationDate"]), v["RotationType"] == "ON_DEMAND"))
		}
		for _, v := range k.versions {
			if !v.rotated.IsZero() {
				want = append(want, fmt.Sprint(v.rotated, v.onDemand))
			}
		}
		same("rotations", got, want)
	}
	for _, made := range k.products {
		p.take(k, made)
	}
}
