package cloudtrail

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keyplane/keyplane/internal/policy"
)

// parse reads a record as strictly as JSON can be read: no duplicate names, no invalid UTF-8, nothing behind it but the line's end.
func parse(t testing.TB, line []byte) map[string]any {
	t.Helper()
	if n := len(line); n == 0 || n > SizeMax || line[n-1] != '\n' || strings.Count(string(line), "\n") != 1 {
		t.Fatalf("%d bytes that are not one line: %.200q", n, line)
	}
	var v map[string]any
	if err := json.Unmarshal(line, &v, jsontext.AllowDuplicateNames(false), jsontext.AllowInvalidUTF8(false)); err != nil {
		t.Fatalf("%v: %.2000s", err, line)
	}
	return v
}

func golden(t testing.TB, text string) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// sameMembers compares member by member.
func sameMembers(t *testing.T, got, want map[string]any) {
	t.Helper()
	for name, w := range want {
		if g, ok := got[name]; !ok || !reflect.DeepEqual(g, w) {
			t.Errorf("%s:\n got %v\nwant %v", name, g, w)
		}
	}
	for name, g := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s is not in the golden record: %v", name, g)
		}
	}
}

const (
	goldenKey  = `"resources":[{"accountId":"111122223333","type":"AWS::KMS::Key","ARN":"` + testKeyARN + `"}]`
	goldenTail = `"eventType":"AwsApiCall","managementEvent":true,"recipientAccountId":"111122223333","eventCategory":"Management"`
	goldenHead = `{"eventVersion":"1.11","eventTime":"2026-11-26T08:05:07Z","eventSource":"kms.amazonaws.com","eventName":"GenerateDataKey",
		"awsRegion":"us-west-2","sourceIPAddress":"192.0.2.17",
		"userAgent":"aws-sdk-go-v2/1.41.0 ua/2.1 os/linux lang/go#1.26.0 md/GOOS#linux md/GOARCH#amd64 api/kms#1.49.0 m/E",
		"requestParameters":{"keyId":"` + testKeyARN + `","keySpec":"AES_256","encryptionContext":{"tenant":"4711","purpose":"column \"card\""}},
		"responseElements":null,
		"additionalEventData":{"keyMaterialId":"123d5b1a0b4b2f0e9e5a1d6e7c1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c"},
		"requestID":"0e7b1c1a-3b0e-4e5c-8f5a-2d6a3d1c9b7e","eventID":"e0eb83e3-63bc-4394-be29-c0f6a2a2ac9b","readOnly":true,`
)

func TestDataKeyGolden(t *testing.T) {
	var r Record
	dataKey(&r, nil, testContext(), user())
	sameMembers(t, parse(t, r.Append(nil)), golden(t, goldenHead+goldenKey+","+goldenTail+`,
		"userIdentity":{"type":"IAMUser","principalId":"AIDACKCEVSQ6C2EXAMPLE","arn":"arn:aws:iam::111122223333:user/Alice",
			"accountId":"111122223333","accessKeyId":"AKIAIOSFODNN7EXAMPLE","userName":"Alice"}}`))
}

// The order is CloudTrail's, and readers of ours go by it.
func TestOrder(t *testing.T) {
	var r Record
	dataKey(&r, nil, testContext(), session())
	r.ErrorCode, r.ErrorMessage, r.SharedEventID, r.ServiceEventDetails, r.TLS = "X", []byte("x"), []byte("s"), []byte("{}"), &TLSDetails{}
	line, at := string(r.Append(nil)), 0
	for _, name := range []string{
		"eventVersion", "userIdentity", "eventTime", "eventSource", "eventName", "awsRegion", "sourceIPAddress", "userAgent", "errorCode",
		"errorMessage", "requestParameters", "responseElements", "additionalEventData", "requestID", "eventID", "readOnly", "resources", "eventType",
		"managementEvent", "recipientAccountId", "sharedEventID", "serviceEventDetails", "eventCategory", "tlsDetails",
	} {
		i := strings.Index(line, `"`+name+`":`)
		if i < at {
			t.Fatalf("%s is at %d, not behind %d: %s", name, i, at, line)
		}
		at = i
	}
}

func TestIdentities(t *testing.T) {
	via, foreign, root, service := user(), session(), user(), user()
	via.Via, via.ViaName, via.TokenIssued = "s3.us-west-2.amazonaws.com", "s3.amazonaws.com", time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	foreign.Account = otherAccount
	root.Kind, root.ARN, root.UserID, root.UserName = policy.Root, "arn:aws:iam::111122223333:root", "111122223333", ""
	service.Kind, service.ARN, service.Account = policy.Service, "s3.us-west-2.amazonaws.com", otherAccount
	source := session()
	source.Source = "bob"
	issuer := `"sessionIssuer":{"type":"Role","principalId":"AROACKCEVSQ6C2EXAMPLE","arn":"arn:aws:iam::111122223333:role/service/app",
		"accountId":"111122223333","userName":"app"},"attributes":{"creationDate":"2026-11-26T08:00:00Z","mfaAuthenticated":"false"}`
	role := `"type":"AssumedRole","principalId":"AROACKCEVSQ6C2EXAMPLE:web-1","arn":"arn:aws:sts::111122223333:assumed-role/app/web-1",
		"accountId":"111122223333","accessKeyId":"AKIAIOSFODNN7EXAMPLE"`
	for name, c := range map[string]struct {
		r    Record
		want string
	}{
		"root": {Record{Caller: root}, `{"type":"Root","principalId":"111122223333","arn":"arn:aws:iam::111122223333:root","accountId":"111122223333",
			"accessKeyId":"AKIAIOSFODNN7EXAMPLE"}`},
		"role":            {Record{Caller: session()}, `{` + role + `,"sessionContext":{` + issuer + `}}`},
		"source identity": {Record{Caller: source}, `{` + role + `,"sessionContext":{` + issuer + `,"sourceIdentity":"bob"}}`},
		"forward access session": {Record{Caller: via}, `{"type":"IAMUser","principalId":"AIDACKCEVSQ6C2EXAMPLE",
			"arn":"arn:aws:iam::111122223333:user/Alice","accountId":"111122223333","accessKeyId":"AKIAIOSFODNN7EXAMPLE","userName":"Alice",
			"sessionContext":{"attributes":{"creationDate":"2026-01-02T03:04:05Z","mfaAuthenticated":"false"}},"invokedBy":"s3.amazonaws.com"}`},
		"service":       {Record{Caller: service}, `{"type":"AWSService","invokedBy":"s3.us-west-2.amazonaws.com","accessKeyId":"AKIAIOSFODNN7EXAMPLE"}`},
		"cross-account": {Record{Caller: foreign}, `{"type":"AWSAccount","principalId":"AROACKCEVSQ6C2EXAMPLE:web-1","accountId":"444455556666"}`},
		"unknown":       {Record{}, `{"type":"Unknown","accessKeyId":"AKIAIOSFODNN7EXAMPLE"}`},
		"event":         {Record{Type: AwsServiceEvent}, `{"accountId":"111122223333","invokedBy":"AWS Internal"}`},
	} {
		t.Run(name, func(t *testing.T) {
			c.r.AccessKeyID, c.r.Recipient, c.r.EventID = "AKIAIOSFODNN7EXAMPLE", testAccount, [36]byte([]byte(testEventID))
			got, _ := parse(t, c.r.Append(nil))["userIdentity"].(map[string]any)
			sameMembers(t, got, golden(t, c.want))
		})
	}
}

func TestServiceEventGolden(t *testing.T) {
	r := Record{
		Time: testTime, Source: KMS, Name: "RotateKey", Region: "us-west-2", Type: AwsServiceEvent, Recipient: testAccount, EventID: [36]byte([]byte(testEventID)),
		ServiceEventDetails: AppendMember([]byte("{"), "keyId", testKeyARNBytes),
	}
	r.ServiceEventDetails = append(r.ServiceEventDetails, '}')
	r.AddResource(testKeyARNBytes, testAccount)
	sameMembers(t, parse(t, r.Append(nil)), golden(t, `{"eventVersion":"1.11","userIdentity":{"accountId":"111122223333","invokedBy":"AWS Internal"},
		"eventTime":"2026-11-26T08:05:07Z","eventSource":"kms.amazonaws.com","eventName":"RotateKey","awsRegion":"us-west-2",
		"sourceIPAddress":"AWS Internal","userAgent":"AWS Internal","requestParameters":null,"responseElements":null,
		"eventID":"e0eb83e3-63bc-4394-be29-c0f6a2a2ac9b","readOnly":false,`+goldenKey+`,"eventType":"AwsServiceEvent","managementEvent":true,
		"recipientAccountId":"111122223333","serviceEventDetails":{"keyId":"`+testKeyARN+`"},"eventCategory":"Management"}`))
}

// A failure in another account, over TLS, of an operation on an alias.
func TestFailureGolden(t *testing.T) {
	alias := []byte("arn:aws:kms:us-west-2:444455556666:alias/app")
	r := Record{
		Time: testTime, Caller: user(), Source: KMS, Name: "UpdateAlias", Region: "us-west-2", SourceIP: netip.MustParseAddr("2001:db8::1%eth0"),
		ErrorCode: "AccessDeniedException", ErrorMessage: []byte("User: \"x\"\n"), EventID: [36]byte([]byte(testEventID)), RequestID: testRequestID,
		Recipient: otherAccount, SharedEventID: []byte("shared"),
		TLS: &TLSDetails{Version: "TLSv1.3", CipherSuite: "TLS_AES_128_GCM_SHA256", KeyExchange: "X25519MLKEM768", Host: []byte("kms.example")},
	}
	r.AddResource(alias, otherAccount)
	r.AddResource(testKeyARNBytes, testAccount)
	sameMembers(t, parse(t, r.Append(nil)), golden(t, `{"eventVersion":"1.11",
		"userIdentity":{"type":"AWSAccount","principalId":"AIDACKCEVSQ6C2EXAMPLE","accountId":"111122223333"},
		"eventTime":"2026-11-26T08:05:07Z","eventSource":"kms.amazonaws.com","eventName":"UpdateAlias","awsRegion":"us-west-2",
		"sourceIPAddress":"2001:db8::1","errorCode":"AccessDeniedException","errorMessage":"User: \"x\"\n","requestParameters":null,
		"responseElements":null,"requestID":"0e7b1c1a-3b0e-4e5c-8f5a-2d6a3d1c9b7e","eventID":"e0eb83e3-63bc-4394-be29-c0f6a2a2ac9b","readOnly":false,
		"resources":[{"accountId":"444455556666","type":"AWS::KMS::Key","ARN":"arn:aws:kms:us-west-2:444455556666:alias/app"},
			{"accountId":"111122223333","type":"AWS::KMS::Key","ARN":"`+testKeyARN+`"}],
		"eventType":"AwsApiCall","managementEvent":true,"recipientAccountId":"444455556666","sharedEventID":"shared","eventCategory":"Management",
		"tlsDetails":{"tlsVersion":"TLSv1.3","cipherSuite":"TLS_AES_128_GCM_SHA256","clientProvidedHostHeader":"kms.example","keyExchange":"X25519MLKEM768"}}`))
}
