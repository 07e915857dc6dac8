package planes

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/lastuse"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/ratelimit"
)

func testRequest() *Request {
	return &Request{
		Region: "eu-central-1", RequestID: "6f1c0f7e-0b6b-4b0e-9d7e-9b1b6c1f0a11", SourceIP: "192.0.2.7", SecureTransport: true,
		TLS: &cloudtrail.TLSDetails{Version: "TLSv1.3", CipherSuite: "TLS_AES_128_GCM_SHA256", KeyExchange: "X25519MLKEM768", Host: []byte("kms.example")},
		Signed: &sigv4.Request{
			Method: []byte("POST"), Path: []byte("/"), Query: []byte{},
			Headers: []sigv4.Header{{Name: []byte("x-amz-target"), Value: []byte("TrentService.CreateKey")}, {Name: []byte("authorization"), Value: []byte("AWS4-HMAC-SHA256 x")}},
			Body:    []byte(`{"Description":"x"}`),
		},
	}
}

// frames has one of each kind of messages; parse returns what it is when it is written again.
var frames = []struct {
	name  string
	frame []byte
	parse func([]byte) ([]byte, error)
}{
	{"request", appendRequest(nil, testRequest()), func(b []byte) ([]byte, error) {
		q, err := parseRequest(b)
		if err != nil {
			return nil, err
		}
		return appendRequest(nil, q), nil
	}},
	{"managed", appendManaged(nil, testRequest(), "alias/aws/s3"), func(b []byte) ([]byte, error) {
		q, alias, err := parseManaged(b)
		if err != nil {
			return nil, err
		}
		return appendManaged(nil, q, alias), nil
	}},
	{"lease", appendLeaseMessage(nil, &leaseMessage{epoch: 7, complete: true, asks: []leaseAsk{
		{pool{"eu-central-1", 111122223333, 5}, 17.5, 100, int64(time.Second)}, {pool{"us-east-1", 1, ratelimit.PoolsMax - 1}, 0, math.Inf(1), 0},
	}}), func(b []byte) ([]byte, error) {
		m, err := parseLeaseMessage(b)
		if err != nil {
			return nil, err
		}
		return appendLeaseMessage(nil, m), nil
	}},
	{"shares", appendLeaseAnswer(nil, &leaseAnswer{9, []leaseShare{{10, 1}, {0, int64(leaseLeftMax)}}}), func(b []byte) ([]byte, error) {
		a, err := parseLeaseAnswer(b)
		if err != nil {
			return nil, err
		}
		return appendLeaseAnswer(nil, a), nil
	}},
	{"uses", appendUses(nil, &Uses{Start: 1_700_000_000, Entries: []lastuse.Entry{
		{Region: "eu-central-1", Account: keyid.Account(111122223333), ID: keyid.ID{UUID: [16]byte{1}, MultiRegion: true}, Use: lastuse.Use{Seconds: 1, Operation: 3, EventID: [16]byte{2}}},
		{Region: "us-east-1", Account: keyid.AccountMax, Use: lastuse.Use{Operation: 1, RequestID: [16]byte{9}}},
	}}), func(b []byte) ([]byte, error) {
		u, err := parseUses(b)
		if err != nil {
			return nil, err
		}
		return appendUses(nil, u), nil
	}},
}

// What is written is read; a byte less, a byte more and a length that is too large are refused.
func TestFrames(t *testing.T) {
	for _, c := range frames {
		if again, err := c.parse(c.frame); err != nil || !bytes.Equal(again, c.frame) {
			t.Errorf("%s: %v\n%x\n%x", c.name, err, again, c.frame)
		}
		for n := range c.frame {
			if _, err := c.parse(c.frame[:n]); !errors.Is(err, errFrame) {
				t.Errorf("%s: the first %d bytes are read: %v", c.name, n, err)
			}
		}
		if _, err := c.parse(append(bytes.Clone(c.frame), 0)); !errors.Is(err, errFrame) {
			t.Errorf("%s: a byte more is read", c.name)
		}
	}
	if q, err := parseRequest(frames[0].frame); err != nil || !reflect.DeepEqual(q, testRequest()) {
		t.Errorf("%+v, %v", q, err)
	}
	bare := testRequest()
	bare.TLS, bare.SecureTransport = nil, false
	if q, err := parseRequest(appendRequest(nil, bare)); err != nil || !reflect.DeepEqual(q, bare) {
		t.Errorf("%+v, %v", q, err)
	}
}

// Values that nobody writes are refused.
func TestFramesAreStrict(t *testing.T) {
	long := testRequest()
	long.RequestID = fmt.Sprintf("%0*d", shortMax+1, 0)
	many := testRequest()
	many.Signed.Headers = make([]sigv4.Header, 65)
	large := testRequest()
	large.Signed.Body = make([]byte, 64<<10+1)
	ask := func(change func(*leaseAsk)) []byte {
		a := leaseAsk{pool: pool{"r", 1, 1}}
		change(&a)
		return appendLeaseMessage(nil, &leaseMessage{asks: []leaseAsk{a}})
	}
	for name, c := range map[string]struct {
		kind  int
		frame []byte
	}{
		"a long request ID": {0, appendRequest(nil, long)}, "many headers": {0, appendRequest(nil, many)}, "a large body": {0, appendRequest(nil, large)},
		"a negative demand":       {2, ask(func(a *leaseAsk) { a.demand = -1 })},
		"no number":               {2, ask(func(a *leaseAsk) { a.rate = math.NaN() })},
		"minus zero":              {2, ask(func(a *leaseAsk) { a.rate = math.Copysign(0, -1) })},
		"a pool that there isn't": {2, ask(func(a *leaseAsk) { a.pool.pool = ratelimit.PoolsMax })},
		"no account":              {2, ask(func(a *leaseAsk) { a.account = keyid.AccountMax + 1 })},
		"a lease for years":       {2, ask(func(a *leaseAsk) { a.left = math.MaxInt64 })},
		"no operation":            {4, appendUses(nil, &Uses{Entries: []lastuse.Entry{{Region: "r"}}})},
		"an unknown operation":    {4, appendUses(nil, &Uses{Entries: []lastuse.Entry{{Region: "r", Use: lastuse.Use{Operation: 200}}}})},
	} {
		if _, err := frames[c.kind].parse(c.frame); !errors.Is(err, errFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever bytes come, a frame is refused or is the one that its content is written as.
func FuzzFrames(f *testing.F) {
	for i, c := range frames {
		f.Add(uint8(i), c.frame)
	}
	f.Fuzz(func(t *testing.T, kind uint8, frame []byte) {
		c := frames[int(kind)%len(frames)]
		again, err := c.parse(bytes.Clone(frame))
		if err != nil {
			return
		}
		// The list of Regions may have some that no entry names, or in another order: then the second writing is the form.
		if kind := int(kind) % len(frames); kind == 2 || kind == 4 {
			third, err := c.parse(again)
			if err != nil || !bytes.Equal(third, again) {
				t.Fatalf("%s: %v", c.name, err)
			}
			return
		}
		if !bytes.Equal(again, frame) {
			t.Fatalf("%s: %x is read as %x", c.name, frame, again)
		}
	})
}
