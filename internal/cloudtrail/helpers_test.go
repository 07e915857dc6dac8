package cloudtrail

import (
	"net/netip"
	"time"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
)

const (
	testAccount  keyid.Account = 111122223333
	otherAccount keyid.Account = 444455556666
	testKeyARN                 = "arn:aws:kms:us-west-2:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	testEventID                = "e0eb83e3-63bc-4394-be29-c0f6a2a2ac9b"
)

var testTime = time.Date(2026, 11, 26, 9, 5, 7, 999_000_000, time.FixedZone("", 3600))

func user() *authz.Caller {
	return &authz.Caller{
		Principal: policy.Principal{Kind: policy.User, Account: testAccount, ARN: "arn:aws:iam::111122223333:user/Alice", ID: "AIDACKCEVSQ6C2EXAMPLE"},
		UserID:    "AIDACKCEVSQ6C2EXAMPLE", UserName: "Alice",
	}
}

func session() *authz.Caller {
	return &authz.Caller{
		Principal: policy.Principal{
			Kind: policy.AssumedRole, Account: testAccount, ARN: "arn:aws:sts::111122223333:assumed-role/app/web-1",
			RoleARN: "arn:aws:iam::111122223333:role/service/app", ID: "AROACKCEVSQ6C2EXAMPLE",
		},
		UserID: "AROACKCEVSQ6C2EXAMPLE:web-1", TokenIssued: time.Date(2026, 11, 26, 8, 0, 0, 0, time.UTC),
	}
}

// dataKey is a record of GenerateDataKey as a client of the SDK makes one. The buffer holds its objects.
func dataKey(r *Record, buf []byte, context *blob.Context, c *authz.Caller) []byte {
	r.Reset()
	r.Time, r.Caller, r.AccessKeyID = testTime, c, "AKIAIOSFODNN7EXAMPLE"
	r.Source, r.Name, r.Region = KMS, "GenerateDataKey", "us-west-2"
	r.SourceIP, r.UserAgent = testAddr, testAgent
	start := len(buf)
	buf = append(buf, '{')
	buf = AppendMember(buf, "keyId", testKeyARNBytes)
	buf = AppendMember(buf, "keySpec", testSpec)
	buf = append(AppendMemberContext(buf, "encryptionContext", context), '}')
	r.RequestParameters = buf[start:]
	start = len(buf)
	buf = append(AppendMember(append(buf, '{'), "keyMaterialId", testMaterial), '}')
	r.AdditionalEventData = buf[start:]
	r.RequestID, r.EventID, r.ReadOnly, r.Recipient = testRequestID, [36]byte([]byte(testEventID)), true, testAccount
	r.AddResource(testKeyARNBytes, testAccount)
	return buf
}

var (
	testAddr        = netip.MustParseAddr("::ffff:192.0.2.17")
	testAgent       = []byte("aws-sdk-go-v2/1.41.0 ua/2.1 os/linux lang/go#1.26.0 md/GOOS#linux md/GOARCH#amd64 api/kms#1.49.0 m/E")
	testKeyARNBytes = []byte(testKeyARN)
	testSpec        = []byte("AES_256")
	testMaterial    = []byte("123d5b1a0b4b2f0e9e5a1d6e7c1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c")
	testRequestID   = []byte("0e7b1c1a-3b0e-4e5c-8f5a-2d6a3d1c9b7e")
)

func testContext() *blob.Context {
	c := new(blob.Context)
	c.Add([]byte("tenant"), []byte("4711"))
	c.Add([]byte("purpose"), []byte("column \"card\""))
	return c
}
