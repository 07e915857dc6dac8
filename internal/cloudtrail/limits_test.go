package cloudtrail

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/policy"
)

// largest is a record with every part at its most, all of it made of bytes that take six in JSON.
func largest(object int) *Record {
	long := strings.Repeat("\x01", 70_000)
	value := AppendMember([]byte("{"), "x", []byte(strings.Repeat("a", object-len(`{"x":""}`))))
	value = append(value, '}')
	r := &Record{
		Caller: &authz.Caller{
			Principal: policy.Principal{Kind: policy.AssumedRole, ARN: long, RoleARN: "/" + long, ID: long},
			UserID:    long, UserName: long, Source: long, Via: long, ViaName: long, TokenIssued: testTime,
		},
		AccessKeyID: long, Source: KMS, Name: "GenerateDataKeyPairWithoutPlaintext", Region: "us-west-2", UserAgent: []byte(long),
		ErrorCode: "XksProxyVpcEndpointServiceInvalidConfigurationException", ErrorMessage: []byte(long), RequestID: []byte(long), SharedEventID: []byte(long),
		EventID: [36]byte([]byte(testEventID)), TLS: &TLSDetails{Version: long, CipherSuite: long, KeyExchange: long, Host: []byte(long)},
		RequestParameters: value, ResponseElements: value, AdditionalEventData: value, ServiceEventDetails: value,
	}
	for range ResourcesMax + 1 {
		r.AddResource([]byte(long), 0)
		r.Resources[r.Count-1].Type = long
	}
	return r
}

func TestSizeMax(t *testing.T) {
	most := 0
	for object := 8; object < 60_000; object += 97 {
		line := largest(object).Append(nil)
		parse(t, line)
		most = max(most, len(line))
	}
	if most < SizeMax*9/10 {
		t.Errorf("the largest record has %d bytes: the test does not come near the limit", most)
	}
}

func TestCut(t *testing.T) {
	agent := bytes.Repeat([]byte("a"), textMax)
	for in, want := range map[string]string{
		string(agent):                 string(agent),
		string(agent) + "b":           string(agent),
		string(agent[1:]) + "\"":      string(agent[1:]), // its escape would not fit
		string(agent[2:]) + "\"":      string(agent[2:]) + "\"",
		string(agent[2:]) + "€":       string(agent[2:]),
		string(agent[3:]) + "€":       string(agent[3:]) + "€",
		string(agent[6:]) + "\x01bcd": string(agent[6:]) + "\x01",
		"\xff\xc0":                    "\ufffd\ufffd",
		"\x7f\u2028\U0001f600</>&":    "\x7f\u2028\U0001f600</>&",
		"":                            "",
	} {
		r := Record{UserAgent: []byte(in), EventID: [36]byte([]byte(testEventID))}
		if got := parse(t, r.Append(nil))["userAgent"]; got != want {
			t.Errorf("%.20q… of %d bytes: %d bytes, want %d", in, len(in), len(got.(string)), len(want))
		}
	}
}

func TestOmitted(t *testing.T) {
	object := func(n int) []byte {
		return append(AppendMember([]byte("{"), "x", bytes.Repeat([]byte("a"), n-len(`{"x":""}`))), '}')
	}
	omitted := `{"omitted":true,"originalSize":45057,"reason":"requestParameters too large"}`
	for _, c := range []struct {
		request, response int
		want              string // "": as it is
		wantResponse      bool   // as it is
	}{
		{45_056, 1024, "", true}, // 46 KB less the 2 KB that are kept for the rest
		{45_057, 1024, omitted, true},
		{45_056, 1025, "", false},
		{10_000, 30_000, "", true},
	} {
		r := Record{RequestParameters: object(c.request), ResponseElements: object(c.response), EventID: [36]byte([]byte(testEventID))}
		line := string(r.Append(nil))
		parse(t, []byte(line))
		if c.want == "" {
			c.want = string(r.RequestParameters)
		}
		if !strings.Contains(line, `"requestParameters":`+c.want+`,"responseElements"`) {
			t.Errorf("request of %d bytes: %.100s", c.request, line[strings.Index(line, `"requestParameters"`):])
		}
		if strings.Contains(line, `"responseElements":`+string(r.ResponseElements)) != c.wantResponse {
			t.Errorf("a reply of %d bytes beside a request of %d", c.response, c.request)
		}
	}
}

// Times are compared with package time's over the centuries, at each end of days, years and leap days.
func TestTimes(t *testing.T) {
	check := func(v time.Time) {
		if got, want := string(appendTime(nil, v)), v.UTC().Format("2006-01-02T15:04:05Z"); got != want {
			t.Fatalf("%s, want %s", got, want)
		}
		if got, want := string(appendDate(nil, v.Unix())), v.UTC().Format("Jan 2, 2006, 3:04:05 PM"); v.Year() >= 1000 && got != want {
			t.Fatalf("%s, want %s", got, want)
		}
	}
	for at := int64(unixYear0); at <= unixYear9999; at += 86_400*27 + 12_345 {
		check(time.Unix(at, 0))
	}
	for y := 1890; y < 2110; y++ {
		for m := time.January; m <= time.December; m++ {
			first := time.Date(y, m, 1, 0, 0, 0, 0, time.UTC)
			for _, s := range []int{-43_201, -1, 0, 1, 43_199, 43_200} {
				check(first.Add(time.Duration(s) * time.Second))
			}
		}
	}
	if got := string(appendTime(nil, time.Unix(unixYear9999+1, 0))) + string(appendTime(nil, time.Unix(unixYear0-1, 0))); got != "9999-12-31T23:59:59Z0000-01-01T00:00:00Z" {
		t.Error(got)
	}
}
