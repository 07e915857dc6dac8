package keyid

import (
	"bytes"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

const (
	uuidText = "1234abcd-12ab-34cd-56ef-1234567890ab"
	mrkText  = "mrk-1234abcd12ab34cd56ef1234567890ab"
	arnHead  = "arn:aws:kms:us-east-1:111122223333:"
)

var bits = [16]byte{0x12, 0x34, 0xab, 0xcd, 0x12, 0xab, 0x34, 0xcd, 0x56, 0xef, 0x12, 0x34, 0x56, 0x78, 0x90, 0xab}

func TestAccount(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Account
		ok   bool
	}{
		{"000000000000", 0, true},
		{"000000000001", 1, true},
		{"111122223333", 111122223333, true},
		{"999999999999", AccountMax, true},
		{"", 0, false},
		{"11112222333", 0, false},
		{"1111222233334", 0, false},
		{"11112222333a", 0, false},
		{"+11122223333", 0, false},
		{" 11122223333", 0, false},
		{"１１１１", 0, false}, // full-width digits, 12 bytes
	} {
		got, ok := ParseAccount([]byte(c.in))
		if got != c.want || ok != c.ok {
			t.Errorf("ParseAccount(%q) = %d, %t", c.in, got, ok)
		}
		if ok && got.String() != c.in {
			t.Errorf("ParseAccount(%q).String() = %q", c.in, got.String())
		}
	}
}

func TestAccountBeyondTwelveDigitsPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("Append of AccountMax+1 returned")
		}
	}()
	(AccountMax + 1).Append(nil)
}

func TestParseID(t *testing.T) {
	for in, want := range map[string]ID{
		uuidText:                               {UUID: bits},
		mrkText:                                {UUID: bits, MultiRegion: true},
		"00000000-0000-0000-0000-000000000000": {},
		"ffffffff-ffff-ffff-ffff-ffffffffffff": {UUID: [16]byte(bytes.Repeat([]byte{0xff}, 16))},
		"mrk-00000000000000000000000000000000": {MultiRegion: true},
	} {
		got, ok := ParseID([]byte(in))
		if !ok || got != want {
			t.Errorf("ParseID(%q) = %v, %t", in, got, ok)
		}
		if got.String() != in {
			t.Errorf("ParseID(%q).String() = %q", in, got.String())
		}
	}
	for _, in := range []string{
		"", "-", "mrk-", uuidText[:35], uuidText + "0", mrkText[:35], mrkText + "0", strings.ToUpper(uuidText), "mrk-1234ABCD12ab34cd56ef1234567890ab",
		"MRK-1234abcd12ab34cd56ef1234567890ab", "1234abcd12ab34cd56ef1234567890ab", "{1234abcd-12ab-34cd-56ef-1234567890a}",
		"mrk-1234abcd-12ab-34cd-56ef-12345678", "1234abcd+12ab-34cd-56ef-1234567890ab", "1234abcd-12ab-34cd-56ef-1234567890ag", "1234abcd-12ab-34cd-56ef-1234567890a ",
		"1234abcd-12ab-34cd-56ef-1234567890a\x00", "-1234abc-12ab-34cd-56ef-1234567890ab",
	} {
		if got, ok := ParseID([]byte(in)); ok || got != (ID{}) {
			t.Errorf("ParseID(%q) = %v, %t, want refusal", in, got, ok)
		}
	}
	// Every position of both forms refuses a byte that is not a digit (or, at a hyphen, not a hyphen).
	for _, form := range []string{uuidText, mrkText} {
		for i := range form {
			for _, c := range []byte{'g', 'G', 'A', '/', ':', '`', '@', 0, 0x80, 0xff} {
				b := []byte(form)
				b[i] = c
				if _, ok := ParseID(b); ok {
					t.Errorf("ParseID(%q) accepted", b)
				}
			}
		}
	}
}

func TestNewID(t *testing.T) {
	ones := [16]byte(bytes.Repeat([]byte{0xff}, 16))
	for random, want := range map[[16]byte]string{
		{}:   "00000000-0000-4000-8000-000000000000",
		ones: "ffffffff-ffff-4fff-bfff-ffffffffffff",
		bits: "1234abcd-12ab-44cd-96ef-1234567890ab",
	} {
		if got := NewID(random, false).String(); got != want {
			t.Errorf("NewID(%x, false) = %s, want %s", random, got, want)
		}
		if got := NewID(random, true); got.UUID != random || !got.MultiRegion {
			t.Errorf("NewID(%x, true) = %s", random, got)
		}
	}
}

func TestParse(t *testing.T) {
	id, mrk := ID{UUID: bits}, ID{UUID: bits, MultiRegion: true}
	long := "alias/" + strings.Repeat("a", kmsapi.AliasNameMax-len("alias/"))
	for _, c := range []struct {
		in    string
		fault Fault
		want  Ref
	}{
		{uuidText, None, Ref{Kind: KeyID, ID: id}},
		{mrkText, None, Ref{Kind: KeyID, ID: mrk}},
		{arnHead + "key/" + uuidText, None, Ref{Kind: KeyARN, ID: id}},
		{arnHead + "key/" + mrkText, None, Ref{Kind: KeyARN, ID: mrk}},
		{"alias/ExampleAlias", None, Ref{Kind: AliasName, Alias: []byte("alias/ExampleAlias")}},
		{"alias/a/b_c-D/9", None, Ref{Kind: AliasName, Alias: []byte("alias/a/b_c-D/9")}},
		{"alias/aws/s3", None, Ref{Kind: AliasName, Alias: []byte("alias/aws/s3")}},
		{long, None, Ref{Kind: AliasName, Alias: []byte(long)}},
		{arnHead + "alias/ExampleAlias", None, Ref{Kind: AliasARN, Alias: []byte("alias/ExampleAlias")}},
		{arnHead + long, None, Ref{Kind: AliasARN, Alias: []byte(long)}},

		{"", BadKeyID, Ref{}},
		{"ExampleAlias", BadKeyID, Ref{}}, // a bare name is an invalid key ID
		{"key/" + uuidText, BadKeyID, Ref{}},
		{"ALIAS/x", BadKeyID, Ref{}},
		{"ARN:aws:kms:us-east-1:111122223333:key/" + uuidText, BadKeyID, Ref{}},
		{"arn", BadKeyID, Ref{}},
		{arnHead + "key/", BadKeyID, Ref{}},
		{arnHead + "key/ExampleAlias", BadKeyID, Ref{}},
		{arnHead + "key/" + uuidText + "/", BadKeyID, Ref{}},
		{arnHead + "key/" + strings.ToUpper(uuidText), BadKeyID, Ref{}},

		{"arn:", BadARN, Ref{}},
		{"arn:aws:kms:us-east-1:111122223333", BadARN, Ref{}},
		{arnHead, BadARN, Ref{}},
		{arnHead + uuidText, BadARN, Ref{}},
		{arnHead + "grant/" + uuidText, BadARN, Ref{}},
		{"arn::kms:us-east-1:111122223333:key/" + uuidText, BadARN, Ref{}},
		{"arn:AWS:kms:us-east-1:111122223333:key/" + uuidText, BadARN, Ref{}},
		{"arn:aws:s3:us-east-1:111122223333:key/" + uuidText, BadARN, Ref{}},
		{"arn:aws:KMS:us-east-1:111122223333:key/" + uuidText, BadARN, Ref{}},
		{"arn:aws:kms::111122223333:key/" + uuidText, BadARN, Ref{}},
		{"arn:aws:kms:us_east_1:111122223333:key/" + uuidText, BadARN, Ref{}},
		{"arn:aws:kms:us-east-1::key/" + uuidText, BadARN, Ref{}},
		{"arn:aws:kms:us-east-1:11112222333:key/" + uuidText, BadARN, Ref{}},
		{"arn:aws:kms:us-east-1:*:key/" + uuidText, BadARN, Ref{}},
		{"arn:aws:kms:" + strings.Repeat("r", arnLabelMax+1) + ":111122223333:key/" + uuidText, BadARN, Ref{}},
		{"arn:" + strings.Repeat("p", arnLabelMax+1) + ":kms:us-east-1:111122223333:key/" + uuidText, BadARN, Ref{}},

		{"alias/", BadAlias, Ref{}},
		{"alias/a b", BadAlias, Ref{}},
		{"alias/a:b", BadAlias, Ref{}},
		{"alias/é", BadAlias, Ref{}},
		{long + "a", BadAlias, Ref{}},
		{arnHead + "alias/", BadAlias, Ref{}},
		{arnHead + "alias/a:b", BadAlias, Ref{}},
		{arnHead + long + "a", BadAlias, Ref{}},
	} {
		got, fault := Parse([]byte(c.in))
		if fault != c.fault || got.Kind != c.want.Kind || got.ID != c.want.ID || !bytes.Equal(got.Alias, c.want.Alias) {
			t.Errorf("Parse(%q) = %+v, %d; want %+v, %d", c.in, got, fault, c.want, c.fault)
			continue
		}
		if arn := got.Kind == KeyARN || got.Kind == AliasARN; arn != (got.Account == 111122223333) || arn != (string(got.Region) == "us-east-1") || arn != (string(got.Partition) == "aws") {
			t.Errorf("Parse(%q) = %+v", c.in, got)
		}
		if fault == None && string(got.Append(nil)) != c.in {
			t.Errorf("Parse(%q) appends as %q", c.in, got.Append(nil))
		}
	}
	r, fault := Parse([]byte("arn:" + strings.Repeat("p", arnLabelMax) + ":kms:" + strings.Repeat("r", arnLabelMax) + ":111122223333:key/" + uuidText))
	if fault != None || len(r.Partition) != arnLabelMax || len(r.Region) != arnLabelMax {
		t.Errorf("labels at the limit: %+v, %d", r, fault)
	}
	if got := new(Ref).Append(nil); len(got) != 0 {
		t.Errorf("the zero Ref appends %q", got)
	}
}

func TestAppendARN(t *testing.T) {
	dst := []byte("x")
	if got := string(AppendKeyARN(dst, "aws-cn", "cn-north-1", 42, ID{UUID: bits})); got != "xarn:aws-cn:kms:cn-north-1:000000000042:key/"+uuidText {
		t.Error(got)
	}
	if got := string(AppendAliasARN(dst, "aws", "us-east-1", 111122223333, []byte("alias/a/b"))); got != "x"+arnHead+"alias/a/b" {
		t.Error(got)
	}
}

func TestAliasNames(t *testing.T) {
	for c := range 256 { // ^alias/[a-zA-Z0-9/_-]+$
		want := c < 0x80 && strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/_-", rune(c))
		if got := ValidAliasName(append([]byte("alias/x"), byte(c))); got != want {
			t.Errorf("byte %#x: %t", c, got)
		}
	}
	for in, want := range map[string]bool{"alias/aws/x": true, "alias/aws/": true, "alias/aws": false, "alias/awsx/y": false, "alias/AWS/x": false} {
		if got := ReservedAliasName([]byte(in)); got != want {
			t.Errorf("ReservedAliasName(%q) = %t", in, got)
		}
	}
}

func TestPartition(t *testing.T) {
	for region, want := range map[string]string{
		"us-east-1": "aws", "eu-central-1": "aws", "cn-north-1": "aws-cn", "cn-northwest-1": "aws-cn", "us-gov-west-1": "aws-us-gov",
		"": "aws", "cn": "aws", "us-gov": "aws", "local": "aws",
	} {
		if got := Partition(region); got != want {
			t.Errorf("Partition(%q) = %q", region, got)
		}
	}
}

func TestFaults(t *testing.T) {
	long := strings.Repeat("x", echoMax)
	for _, c := range []struct {
		in   string
		code kmsapi.Code
		text string
	}{
		{uuidText, kmsapi.OK, ""},
		{"foo", kmsapi.NotFound, "Invalid keyId 'foo'"},
		{arnHead + "key/foo", kmsapi.NotFound, "Invalid keyId 'foo'"},
		{"arn:aws:kms:us-east-1", kmsapi.InvalidArn, "Invalid arn 'arn:aws:kms:us-east-1'"},
		{"alias/a b", kmsapi.NotFound, "Alias 'alias/a b' is not found."},
		{long, kmsapi.NotFound, "Invalid keyId '" + long + "'"},
		{long + "x", kmsapi.NotFound, "Invalid keyId"},
	} {
		_, f := Parse([]byte(c.in))
		if got := string(f.AppendMessage(nil, []byte(c.in))); f.Code() != c.code || got != c.text {
			t.Errorf("%q: %v, %q", c.in, f.Code(), got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		uuidText, mrkText, arnHead + "key/" + uuidText, arnHead + "key/" + mrkText, "alias/a/b", arnHead + "alias/x", "alias/", "arn:aws:kms:::", "",
		strings.ToUpper(uuidText), arnHead + "key/x",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r, fault := Parse(in)
		if fault != None {
			if r.Kind != 0 || fault.Code() == kmsapi.OK {
				t.Fatalf("Parse(%q) = %+v, %d", in, r, fault)
			}
			if got := fault.AppendMessage(nil, in); len(got) == 0 || len(got) > echoMax+64 {
				t.Fatalf("message for %q: %q", in, got)
			}
			return
		}
		if got := r.Append(nil); !bytes.Equal(got, in) {
			t.Fatalf("Parse(%q) appends as %q", in, got)
		}
		switch r.Kind { // the form for callers who hold partition and Region as strings gives the same bytes
		case KeyARN:
			if got := AppendKeyARN(nil, string(r.Partition), string(r.Region), r.Account, r.ID); !bytes.Equal(got, in) {
				t.Fatalf("AppendKeyARN = %q for %q", got, in)
			}
		case AliasARN:
			if got := AppendAliasARN(nil, string(r.Partition), string(r.Region), r.Account, r.Alias); !bytes.Equal(got, in) {
				t.Fatalf("AppendAliasARN = %q for %q", got, in)
			}
		}
	})
}
