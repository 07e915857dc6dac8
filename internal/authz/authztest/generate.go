package authztest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"unicode/utf8"
)

// Choices is a sequence of small choices: from bytes of a fuzzer, or without end from a seed.
type Choices struct {
	bytes []byte
	rand  *rand.Rand
}

// FromBytes makes the choices that bytes say; where they end, always the first.
func FromBytes(b []byte) *Choices { return &Choices{bytes: b} }

// FromSeed makes the choices of a seed.
func FromSeed(seed uint64) *Choices { return &Choices{rand: rand.New(rand.NewPCG(seed, 0x5eed))} }

// n chooses one of 0 … n-1, n at most 256.
func (c *Choices) n(n int) int {
	if c.rand != nil {
		return c.rand.IntN(n)
	}
	if len(c.bytes) == 0 {
		return 0
	}
	b := c.bytes[0]
	c.bytes = c.bytes[1:]
	return int(b) % n
}

// percent is true in p of 100 choices, and not at the end of bytes.
func (c *Choices) percent(p int) bool { return c.n(100) >= 100-p }

func (c *Choices) of(list []string) string { return list[c.n(len(list))] }

// Requests is the number of questions that Generate puts to one world.
const Requests = 8

// The accounts, principals and keys of generated worlds.
const (
	accountA = "111122223333"
	accountB = "444455556666"
	keyA     = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	keyA2    = "arn:aws:kms:us-east-1:111122223333:key/0987dcba-09fe-87dc-65ba-ab0987654321"
	keyB     = "arn:aws:kms:us-east-1:444455556666:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	aliasA   = "arn:aws:kms:us-east-1:111122223333:alias/app"
)

var callers = []Caller{
	{Kind: User, Account: accountA, ARN: "arn:aws:iam::111122223333:user/alice", ID: "AIDAALICE", Name: "alice"},
	{Kind: User, Account: accountA, ARN: "arn:aws:iam::111122223333:user/eng/Carol", ID: "AIDACAROL", Name: "Carol"},
	{Kind: AssumedRole, Account: accountA, ARN: "arn:aws:sts::111122223333:assumed-role/Admin/s1", RoleARN: "arn:aws:iam::111122223333:role/Admin", ID: "AROAADMIN", Name: "s1"},
	{Kind: AssumedRole, Account: accountA, ARN: "arn:aws:sts::111122223333:assumed-role/Deploy/ci", RoleARN: "arn:aws:iam::111122223333:role/eng/Deploy", ID: "AROADEPLOY", Name: "ci"},
	{Kind: Root, Account: accountA, ARN: "arn:aws:iam::111122223333:root", ID: accountA},
	{Kind: User, Account: accountB, ARN: "arn:aws:iam::444455556666:user/dave", ID: "AIDADAVE", Name: "dave"},
	{Kind: AssumedRole, Account: accountB, ARN: "arn:aws:sts::444455556666:assumed-role/Partner/x1", RoleARN: "arn:aws:iam::444455556666:role/Partner", ID: "AROAPARTNER", Name: "x1"},
	{Kind: Service, Account: accountA, ARN: "s3.us-east-1.amazonaws.com", ID: "s3.us-east-1.amazonaws.com"},
	{Kind: Service, Account: accountA, ARN: "vault.example.com", ID: "vault.example.com"},
}

var (
	principals = []string{
		"*", "111122223333", "444455556666", "arn:aws:iam::111122223333:root", "arn:aws:iam::444455556666:root",
		"arn:aws:iam::111122223333:user/alice", "arn:aws:iam::111122223333:user/Alice", "arn:aws:iam::111122223333:user/eng/Carol",
		"arn:aws:iam::111122223333:role/Admin", "arn:aws:iam::111122223333:role/eng/Deploy", "arn:aws:iam::444455556666:user/dave",
		"arn:aws:iam::444455556666:user/alice", "arn:aws:iam::444455556666:role/Partner", "arn:aws:sts::111122223333:assumed-role/Admin/s1",
		"arn:aws:sts::111122223333:assumed-role/Admin/s2", "arn:aws:sts::111122223333:assumed-role/Deploy/ci",
		"arn:aws:sts::444455556666:assumed-role/Partner/x1",
	}
	services = []string{"s3.amazonaws.com", "s3.us-east-1.amazonaws.com", "S3.AmazonAWS.com", "s3.us-west-2.amazonaws.com", "vault.example.com", "ec2.amazonaws.com"}

	grantable = []string{"Decrypt", "Encrypt", "GenerateDataKey", "ReEncryptFrom", "ReEncryptTo", "DescribeKey", "CreateGrant", "Sign", "GetPublicKey", "RetireGrant", "GenerateMac"}
	keyed     = append([]string{"PutKeyPolicy", "DisableKey", "ListGrants", "GetKeyRotationStatus", "ScheduleKeyDeletion", "TagResource", "ImportKeyMaterial", "RevokeGrant"}, grantable...)
	keyless   = []string{"CreateKey", "ListKeys", "GenerateRandom", "ListAliases", "CreateAlias", "ListRetirableGrants"}
)

// attribute is a condition key with values to compare it with; the values that requests have are among them or match them.
type attribute struct {
	name   string
	typ    byte // s string, n numeric, d date, b Bool, i IP address, a ARN
	multi  bool
	values []string
}

var (
	arnValues  = []string{"arn:aws:iam::111122223333:user/alice", "arn:aws:iam::111122223333:user/*", "arn:aws:iam::*:role/eng/*", "arn:aws:iam::111122223333:*", "*", "arn:*:iam::1111????3333:user/?lice", "arn:aws:iam::111122223333:role/Admin", "arn:aws:iam::111122223333:root", "arn:aws:*:user/alice:::", "${aws:PrincipalArn}", "arn:aws:iam::${aws:PrincipalAccount}:user/${aws:username}", "arn:aws:s3:::logs", "arn:aws:s3:::log*"}
	numbers    = []string{"10", "5", "10.0", "1e1", "-3", "+7", "365", "0.5", "1767225600"}
	dates      = []string{"2026-01-01T00:00:00Z", "2026", "2025-12-31", "2026-06", "2026-01-01T01:00:00+01:00", "1767225600", "2026-01-01T00:00Z", "2026-01-01T00:00:00.000Z", "2030-01-01T00:00:00Z"}
	truth      = []string{"true", "false", "True", "FALSE"}
	addresses  = []string{"10.0.0.7", "10.0.0.0/8", "192.0.2.0/24", "2001:db8::/32", "0.0.0.0/0", "::/0", "2001:db8::1", "10.0.0.6/31", "10.0.0.8/29"}
	teams      = []string{"red", "Red", "blue", "r*", "?ed", "*", "r?d*", "${aws:PrincipalTag/team}", "${aws:username}", "${aws:PrincipalTag/none, 'red'}", "${aws:PrincipalTag/team, 'blue'}", "r${*}", "${aws:ResourceTag/env}", "pre-${aws:PrincipalTag/team}", "${kms:EncryptionContextKeys}", "${nope}", "${kms:EncryptionContext:dept}", "caf\u00e9", ""}
	images     = []string{"9fedcba8", "00000000", "9FEDCBA8", "9fed*", "*", "0"} // the first two are what documents attest
	contextKey = []string{"dept", "id", "Dept", "purpose", "d*", "?d", "*", "${aws:PrincipalTag/team}"}

	attributes = []attribute{
		{"aws:PrincipalArn", 'a', false, arnValues},
		{"aws:PrincipalAccount", 's', false, []string{accountA, accountB, "1111*", "*", "${kms:CallerAccount}"}},
		{"aws:PrincipalTag/team", 's', false, teams},
		{"aws:PrincipalTag/cost", 'n', false, numbers},
		{"aws:PrincipalType", 's', false, []string{"User", "AssumedRole", "Account", "user", "*"}},
		{"aws:PrincipalIsAWSService", 'b', false, truth},
		{"aws:PrincipalOrgID", 's', false, []string{"o-abc", "*"}},
		{"aws:userid", 's', false, []string{"AIDAALICE", "AROAADMIN:s1", "AROAADMIN:*", "aroa*", accountA, "*:ci", "${aws:userid}"}},
		{"aws:username", 's', false, []string{"alice", "Alice", "al*", "Carol", "${aws:username}", "*"}},
		{"aws:SourceIp", 'i', false, addresses},
		{"aws:SourceVpce", 's', false, []string{"vpce-1", "vpce-*"}},
		{"aws:SourceArn", 'a', false, arnValues},
		{"aws:SourceAccount", 's', false, []string{accountA, accountB, "${aws:PrincipalAccount}"}},
		{"aws:SourceIdentity", 's', false, []string{"zoe", "ZOE", "z*"}},
		{"aws:CalledVia", 's', true, []string{"s3.amazonaws.com", "S3.amazonaws.com", "*.amazonaws.com", "ec2.amazonaws.com"}},
		{"aws:CalledViaFirst", 's', false, []string{"s3.amazonaws.com", "ec2.*"}},
		{"aws:CalledViaLast", 's', false, []string{"s3.amazonaws.com", "s3.*"}},
		{"aws:ViaAWSService", 'b', false, truth},
		{"aws:SecureTransport", 'b', false, truth},
		{"aws:CurrentTime", 'd', false, dates},
		{"aws:EpochTime", 'd', false, dates},
		{"aws:EpochTime", 'n', false, numbers},
		{"aws:TokenIssueTime", 'd', false, dates},
		{"aws:RequestedRegion", 's', false, []string{"us-east-1", "us-*", "eu-west-1"}},
		{"aws:RequestTag/team", 's', false, teams},
		{"aws:ResourceTag/env", 's', false, teams},
		{"aws:TagKeys", 's', true, []string{"team", "Team", "env", "t*", "cost", "${aws:PrincipalTag/team}"}},
		{"aws:ResourceAccount", 's', false, []string{accountA, accountB, "${aws:PrincipalAccount}"}},
		{"aws:UserAgent", 's', false, []string{"aws-cli/2.1", "aws-cli/*", "AWS-CLI/2.1"}},
		{"aws:NoSuchKey", 's', false, []string{"x", "*"}},
		{"kms:CallerAccount", 's', false, []string{accountA, accountB, "4*"}},
		{"kms:ViaService", 's', false, []string{"s3.us-east-1.amazonaws.com", "s3.*.amazonaws.com", "ec2.us-east-1.amazonaws.com", "S3.us-east-1.amazonaws.com"}},
		{"kms:KeySpec", 's', false, []string{"SYMMETRIC_DEFAULT", "RSA_*", "RSA_2048", "HMAC_256"}},
		{"kms:CustomerMasterKeySpec", 's', false, []string{"SYMMETRIC_DEFAULT", "RSA_2048"}},
		{"kms:KeyUsage", 's', false, []string{"ENCRYPT_DECRYPT", "SIGN_VERIFY", "encrypt_decrypt"}},
		{"kms:KeyOrigin", 's', false, []string{"AWS_KMS", "EXTERNAL"}},
		{"kms:MultiRegion", 'b', false, truth},
		{"kms:MultiRegionKeyType", 's', false, []string{"PRIMARY", "REPLICA"}},
		{"kms:ResourceAliases", 's', true, []string{"alias/app", "alias/a*", "alias/*", "alias/other", "alias/App", "app"}},
		{"kms:RequestAlias", 's', false, []string{"alias/app", "alias/*", "alias/other"}},
		{"kms:EncryptionContext:dept", 's', false, teams},
		{"kms:EncryptionContext:id", 'n', false, numbers},
		{"kms:EncryptionContextKeys", 's', true, contextKey},
		{"kms:EncryptionAlgorithm", 's', false, []string{"SYMMETRIC_DEFAULT", "RSAES_*"}},
		{"kms:ReEncryptOnSameKey", 'b', false, truth},
		{"kms:GrantOperations", 's', true, []string{"Decrypt", "Encrypt", "decrypt", "*crypt", "GenerateDataKey", "D*"}},
		{"kms:GranteePrincipal", 'a', false, arnValues},
		{"kms:GrantConstraintType", 's', false, []string{"EncryptionContextEquals", "EncryptionContextSubset", "EncryptionContext*"}},
		{"kms:GrantIsForAWSResource", 'b', false, truth},
		{"kms:RotationPeriodInDays", 'n', false, numbers},
		{"kms:ValidTo", 'd', false, dates},
		{"kms:RecipientAttestation:ImageSha384", 's', false, images},
		{"kms:RecipientAttestation:PCR3", 's', false, images},
		{"kms:RecipientAttestation:NitroTPMPCR4", 's', false, images},
	}

	operatorsOf = map[byte][]string{
		's': {"StringEquals", "StringLike", "StringNotEquals", "StringNotLike", "StringEqualsIgnoreCase", "StringNotEqualsIgnoreCase"},
		'n': {"NumericEquals", "NumericNotEquals", "NumericLessThan", "NumericLessThanEquals", "NumericGreaterThan", "NumericGreaterThanEquals"},
		'd': {"DateEquals", "DateNotEquals", "DateLessThan", "DateLessThanEquals", "DateGreaterThan", "DateGreaterThanEquals"},
		'b': {"Bool"},
		'i': {"IpAddress", "NotIpAddress"},
		'a': {"ArnLike", "ArnEquals", "ArnNotLike", "ArnNotEquals"},
		'x': {"BinaryEquals"},
	}
	valuesOf = map[byte][]string{'s': teams, 'n': numbers, 'd': dates, 'b': truth, 'i': addresses, 'a': arnValues, 'x': {"cmVk", "YWxpY2U=", "eA=="}}
)

// generator writes one world.
type generator struct {
	*Choices
	w     *World
	focus []string // actions that policies and requests have in common
	about []string // ARNs of resources
	old   bool     // the document has no variables
}

// Generate makes a world, and questions about it.
func Generate(c *Choices) (*World, []Request) {
	g := &generator{Choices: c, w: &World{}}
	w := g.w
	caller := callers[g.n(len(callers))]
	w.Caller = caller
	if caller.Kind != Root && caller.Kind != Service {
		w.Caller.Tags = g.tags(40)
	}
	if caller.Kind == AssumedRole {
		w.Caller.SessionTags = g.tags(30)
		w.Caller.TokenIssued = g.of([]string{"2025-12-31T23:30:00Z", "2026-01-01T00:00:00Z"})
		if g.percent(20) {
			w.Caller.Source = "zoe"
		}
	}
	if caller.Kind != Service && g.percent(20) {
		w.Caller.Via = g.of([]string{"s3.us-east-1.amazonaws.com", "ec2.us-east-1.amazonaws.com"})
	}
	w.Caller.Deleted = g.percent(1)

	owner := caller.Account
	if g.percent(30) {
		owner = accountA
		if caller.Account == accountA {
			owner = accountB
		}
	}
	hasKey := !g.percent(12)
	if hasKey {
		for range 3 {
			g.focus = append(g.focus, "kms:"+g.of(keyed))
		}
		if g.percent(50) {
			g.focus[0] = "kms:Decrypt"
		}
		g.about = []string{"arn:aws:kms:us-east-1:" + owner + ":key/1234abcd-12ab-34cd-56ef-1234567890ab"}
		w.KeyPolicy = g.keyPolicy()
		if g.percent(8) {
			w.Bind = map[string]string{g.named(): "AIDAFORMER"}
			for arn := range w.Bind {
				if strings.HasSuffix(arn, ":root") {
					w.Bind = nil // accounts are not made again
				}
			}
		}
		for range []int{0, 0, 1, 2, 3}[g.n(5)] {
			w.Grants = append(w.Grants, g.grant())
		}
	} else {
		owner = caller.Account
		for range 2 {
			g.focus = append(g.focus, "kms:"+g.of(keyless))
		}
		g.about = []string{"*", "arn:aws:kms:us-east-1:" + owner + ":alias/app"}
	}
	if caller.Kind == User || caller.Kind == AssumedRole {
		for range []int{1, 0, 2, 1}[g.n(4)] {
			w.Identity = append(w.Identity, g.identityPolicy(false))
		}
		if g.percent(20) {
			w.Boundary = g.identityPolicy(true)
		}
		if caller.Kind == AssumedRole && g.percent(35) {
			for range 1 + g.n(2) {
				w.Session = append(w.Session, g.identityPolicy(true))
			}
		}
	}
	requests := make([]Request, Requests)
	for i := range requests {
		requests[i] = g.request(owner, hasKey)
	}
	return w, requests
}

func (g *generator) tags(p int) (t []Tag) {
	if g.percent(p) {
		t = append(t, Tag{g.of([]string{"team", "Team"}), g.of([]string{"red", "blue", "Red", "r*", "dept", "", "caf\u00e9", "\u212aing"})})
	}
	if g.percent(p / 2) {
		t = append(t, Tag{"cost", g.of([]string{"10", "5", "x", "1e1", "7"})})
	}
	return t
}

// named is an ARN, 12 digits or "*" that an AWS principal can be, often one of the caller.
func (g *generator) named() string {
	c := &g.w.Caller
	if c.Kind == Service || !g.percent(65) {
		return g.of(principals)
	}
	own := []string{c.ARN, "arn:aws:iam::" + c.Account + ":root", c.Account}
	if c.RoleARN != "" {
		own = append(own, c.RoleARN, c.RoleARN)
	}
	return g.of(own)
}

func quote(b []byte, s string) []byte {
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}

// list writes one text alone or as a list, more as a list.
func (g *generator) list(b []byte, values []string) []byte {
	if len(values) == 1 && !g.percent(20) {
		return quote(b, values[0])
	}
	b = append(b, '[')
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = quote(b, v)
	}
	return append(b, ']')
}

// several makes one to three values.
func (g *generator) several(one func() string) []string {
	values := []string{one()}
	for len(values) < 3 && g.percent(25) {
		values = append(values, one())
	}
	return values
}

func (g *generator) version(b []byte) []byte {
	n := g.n(10)
	g.old = n >= 8
	switch {
	case n < 8:
		b = append(b, `{"Version":"2012-10-17","Statement":[`...)
	case n == 8:
		b = append(b, `{"Version":"2008-10-17","Statement":[`...)
	default:
		b = append(b, `{"Statement":[`...)
	}
	return b
}

func (g *generator) keyPolicy() Document {
	b := g.version(make([]byte, 0, 1024))
	n := 1 + g.n(3)
	if g.percent(55) {
		b = append(b, `{"Sid":"delegate","Effect":"Allow","Principal":{"AWS":"`...)
		account := g.w.Caller.Account
		b = append(b, g.of([]string{account, "arn:aws:iam::" + account + ":root"})...)
		b = append(b, `"},"Action":"kms:*","Resource":"*"}`...)
		if n > 1 || g.percent(60) {
			b = append(b, ',')
		} else {
			n = 0
		}
	}
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		b = g.statement(b, true, false)
	}
	return append(b, "]}"...)
}

// identityPolicy writes a policy without principals; wide ones allow more, as boundaries and session policies do.
func (g *generator) identityPolicy(wide bool) Document {
	b := g.version(make([]byte, 0, 1024))
	for i := range 1 + g.n(3) {
		if i > 0 {
			b = append(b, ',')
		}
		b = g.statement(b, false, wide && i == 0)
	}
	return append(b, "]}"...)
}

func (g *generator) statement(b []byte, principal, wide bool) []byte {
	deny := g.percent(20)
	if deny {
		b = append(b, `{"Effect":"Deny"`...)
	} else {
		b = append(b, `{"Effect":"Allow"`...)
	}
	if principal {
		b = g.principal(b)
	}
	if !principal || !g.percent(2) {
		if g.percent(10) {
			b = append(b, `,"NotAction":`...)
		} else {
			b = append(b, `,"Action":`...)
		}
		b = g.list(b, g.several(g.action))
	}
	if !principal || !g.percent(2) {
		if g.percent(8) {
			b = append(b, `,"NotResource":`...)
		} else {
			b = append(b, `,"Resource":`...)
		}
		b = g.list(b, g.several(g.resource))
	}
	if p := 55; deny || !wide && g.percent(p) {
		b = g.condition(b)
	}
	return append(b, '}')
}

func (g *generator) principal(b []byte) []byte {
	if g.percent(10) {
		b = append(b, `,"NotPrincipal":`...)
	} else {
		b = append(b, `,"Principal":`...)
	}
	serves := 8
	if g.w.Caller.Kind == Service {
		serves = 75
	}
	switch {
	case g.percent(8):
		return append(b, `"*"`...)
	case g.percent(serves):
		b = append(b, `{"Service":`...)
		b = g.list(b, g.several(func() string { return g.of(services) }))
		if g.percent(30) {
			b = append(b, `,"AWS":`...)
			b = g.list(b, g.several(g.named))
		}
	case g.percent(3):
		b = append(b, `{"Federated":"cognito-identity.amazonaws.com"`...)
	default:
		b = append(b, `{"AWS":`...)
		b = g.list(b, g.several(g.named))
	}
	return append(b, '}')
}

func (g *generator) action() string {
	name := g.of(g.focus)
	switch g.n(10) {
	case 0, 1, 2:
		return name
	case 3, 4:
		return "kms:*"
	case 5:
		return strings.ToUpper(name)
	case 6:
		return name[:5+g.n(len(name)-5)] + "*"
	case 7:
		i := 4 + g.n(len(name)-4)
		return name[:i] + "?" + name[i+1:]
	case 8:
		return g.of([]string{"*", "kms:*Key*", "kms:*crypt*", "KMS:re*", "s3:*", "kms:*o*T*"})
	}
	return "kms:" + g.of(keyed)
}

func (g *generator) resource() string {
	if g.percent(45) {
		arn := g.of(g.about)
		switch g.n(8) {
		case 0:
			return arn
		case 1:
			return "arn:aws:kms:*:*:key/*"
		case 2:
			return "arn:aws:kms:us-east-1:" + accountA + ":*"
		case 3:
			return strings.Replace(arn, "us-east-1", "us-????-1", 1)
		case 4:
			return "arn:aws:kms:us-east-1:${aws:PrincipalAccount}:*"
		case 5:
			return g.of([]string{keyA2, aliasA, keyB, keyA, "arn:AWS:KMS:*", "arn:aws:kms:us-east-1:*:key/${aws:username}*", "arn:*:alias/*"})
		case 6:
			return "arn:aws:kms:*:*:key/1234*${aws:PrincipalTag/none, '-12ab-'}*ab"
		}
	}
	return "*"
}

// condition writes a Condition of one to three keys. Each operator is written once, with one key each.
func (g *generator) condition(b []byte) []byte {
	b = append(b, `,"Condition":{`...)
	var used []string
	for i := range 1 + g.n(2) + g.n(2) {
		a := &attributes[g.n(len(attributes))]
		name, values := g.operator(a)
		again := false
		for _, u := range used {
			again = again || u == name
		}
		if again {
			continue
		}
		used = append(used, name)
		if i > 0 {
			b = append(b, ',')
		}
		b = quote(b, name)
		b = append(b, ":{"...)
		key := a.name
		switch g.n(12) {
		case 10:
			key = strings.ToLower(key)
		case 11:
			key = strings.ToUpper(key)
		}
		b = quote(b, key)
		b = append(b, ':')
		b = g.list(b, g.several(func() string {
			v := g.of(values)
			if v == "${aws:PrincipalArn}" && g.old {
				v = "*" // without variables it is no ARN
			}
			return v
		}))
		b = append(b, '}')
	}
	return append(b, "}"...)
}

// operator chooses an operator for a condition key and the values to choose from, now and then of a type that is not the key's.
func (g *generator) operator(a *attribute) (name string, values []string) {
	if g.percent(8) {
		return "Null", truth
	}
	typ, values := a.typ, a.values
	switch n := g.n(20); {
	case n == 19:
		typ = "sndbiax"[g.n(7)]
		values = valuesOf[typ]
	case n > 14 && typ != 's':
		typ = 's'
	}
	name = g.of(operatorsOf[typ])
	set := 5
	if a.multi {
		set = 70
	}
	if g.percent(set) {
		name = g.of([]string{"ForAnyValue:", "ForAllValues:"}) + name
	}
	if g.percent(15) {
		name += "IfExists"
	}
	return name, values
}

var contexts = []map[string]string{
	nil, {}, {"dept": "red"}, {"dept": "red", "id": "10"}, {"dept": "blue", "id": "x"}, {"Dept": "red"}, {"purpose": "red", "red": "alice"}, {"dept": "alice", "id": "5"},
}

// hasContext reports whether an action is one with an encryption context.
func hasContext(action string) bool {
	return strings.Contains(action, "crypt") || strings.HasPrefix(action, "kms:GenerateDataKey") || action == "kms:CreateGrant"
}

func (g *generator) grant() Grant {
	x := Grant{Grantee: g.named()}
	switch {
	case g.w.Caller.Kind == Service && g.percent(60):
		x.Grantee = g.of(services)
	case x.Grantee == "*":
		x.Grantee = principals[5]
	case isAccount(x.Grantee):
		x.Grantee = "arn:aws:iam::" + x.Grantee + ":root"
	}
	if !strings.HasSuffix(x.Grantee, ":root") && g.percent(5) {
		x.GranteeID = "AIDAFORMER"
	}
	x.Operations = g.several(func() string {
		if name := strings.TrimPrefix(g.of(g.focus), "kms:"); slices.Contains(grantable, name) && g.percent(80) {
			return name
		}
		return g.of(grantable)
	})
	constraint := contexts[1+g.n(len(contexts)-1)]
	if len(constraint) == 0 && slices.ContainsFunc(x.Operations, func(o string) bool { return !hasContext("kms:" + o) }) {
		constraint = contexts[2] // an empty constraint and no context at all do not meet: constraints are of symmetric keys
	}
	switch g.n(6) {
	case 4:
		x.Equals = constraint
	case 5:
		x.Subset = constraint
	}
	if g.percent(12) {
		x.SourceARN = g.of([]string{"arn:aws:s3:::logs", "arn:aws:s3:::logs2"})
	}
	return x
}

func (g *generator) request(owner string, hasKey bool) Request {
	r := Request{Owner: owner, Region: "us-east-1", Now: g.of([]string{"2026-01-01T00:00:00Z", "2025-12-31T12:00:00Z", "2026-07-01T08:30:00Z"})}
	r.Action = g.of(g.focus)
	r.Resource = g.of(g.about)
	r.SourceIP = g.of([]string{"10.0.0.7", "192.0.2.1", "2001:db8::1", ""})
	r.Plain = g.percent(15)
	if g.percent(30) {
		r.UserAgent = "aws-cli/2.1"
	}
	if g.percent(12) {
		r.SourceARN = g.of([]string{"arn:aws:s3:::logs", "arn:aws:s3:::logs2", "arn:aws:iam::111122223333:user/alice", "notanarn"})
		r.SourceAccount = accountA
	}
	if !hasKey {
		if r.Action == "kms:CreateKey" {
			r.Extra = append(r.Extra, Extra{"kms:KeySpec", g.of([]string{"SYMMETRIC_DEFAULT", "RSA_2048"})}, Extra{"kms:KeyUsage", "ENCRYPT_DECRYPT"})
		}
	} else {
		r.Key = &KeyFacts{Spec: g.of([]string{"SYMMETRIC_DEFAULT", "RSA_2048"}), Usage: g.of([]string{"ENCRYPT_DECRYPT", "SIGN_VERIFY"}), Origin: "AWS_KMS"}
		if g.percent(30) {
			r.Key.MultiRegion, r.Key.MultiRegionKeyType = true, g.of([]string{"PRIMARY", "REPLICA"})
		}
		if g.percent(40) {
			r.Key.Tags = []Tag{{"env", g.of([]string{"red", "blue", ""})}}
		}
		switch g.n(8) {
		case 1, 2, 3:
			r.Key.Aliases = []string{"alias/app"}
		case 4:
			r.Key.Aliases = []string{"alias/app", "alias/other"}
		case 5:
			r.Key.Aliases = manyAliases[:50+g.n(2)]
		}
		if g.percent(25) {
			r.RequestAlias = g.of([]string{"alias/app", "alias/other"})
		}
		if hasContext(r.Action) {
			r.EncryptionContext = contexts[1+g.n(len(contexts)-1)]
		}
		if g.percent(40) {
			r.EncryptionAlgorithm = "SYMMETRIC_DEFAULT"
		}
		if strings.HasPrefix(r.Action, "kms:ReEncrypt") {
			r.ReEncrypt, r.SameKey = true, g.percent(40)
		}
	}
	switch r.Action {
	case "kms:CreateGrant":
		for _, o := range g.several(func() string { return g.of([]string{"Decrypt", "Encrypt", "GenerateDataKey"}) }) {
			r.Extra = append(r.Extra, Extra{"kms:GrantOperations", o})
		}
		r.Extra = append(r.Extra, Extra{"kms:GranteePrincipal", g.of(principals[5:])})
		if g.percent(40) {
			r.Extra = append(r.Extra, Extra{"kms:GrantConstraintType", g.of([]string{"EncryptionContextEquals", "EncryptionContextSubset"})})
		}
		r.Extra = append(r.Extra, Extra{"kms:GrantIsForAWSResource", g.of([]string{"false", "true"})})
	case "kms:TagResource", "kms:CreateKey":
		for _, k := range [][]string{{"team"}, {"team", "env"}, {"Team"}, nil}[g.n(4)] {
			r.Extra = append(r.Extra, Extra{"aws:TagKeys", k}, Extra{"aws:RequestTag/" + k, g.of([]string{"red", "blue", "alice"})})
		}
	case "kms:ScheduleKeyDeletion":
		r.Extra = append(r.Extra, Extra{"kms:ScheduleKeyDeletionPendingWindowInDays", g.of([]string{"7", "30"})})
	case "kms:Decrypt", "kms:GenerateDataKey", "kms:GenerateRandom", "kms:DeriveSharedSecret":
		switch g.n(4) {
		case 1:
			image := g.of(images[:2])
			r.Extra = append(r.Extra, Extra{"kms:RecipientAttestation:ImageSha384", image}, Extra{"kms:RecipientAttestation:PCR0", image},
				Extra{"kms:RecipientAttestation:PCR3", g.of(images[:2])})
		case 2:
			r.Extra = append(r.Extra, Extra{"kms:RecipientAttestation:NitroTPMPCR4", g.of(images[:2])})
		}
	case "kms:ImportKeyMaterial":
		r.Extra = append(r.Extra, Extra{"kms:ValidTo", g.of([]string{"1767225600", "1900000000"})}, Extra{"kms:ExpirationModel", "KEY_MATERIAL_EXPIRES"})
	}
	if g.percent(6) {
		r.Extra = append(r.Extra, Extra{"kms:RotationPeriodInDays", g.of([]string{"365", "90"})}, Extra{"aws:SourceVpce", "vpce-1"})
	}
	return r
}

var manyAliases = func() []string {
	list := []string{"alias/app"}
	for i := range 50 {
		list = append(list, fmt.Sprintf("alias/%02d", i))
	}
	return list
}()
