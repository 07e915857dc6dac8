package cloudtrail

import (
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/blob"
)

// FuzzRecord puts any bytes wherever a client's bytes go: the record is one line of strict JSON, within the limit, and every text comes back
// as it went in, as far as it is text and fits.
func FuzzRecord(f *testing.F) {
	f.Add([]byte("agent"), []byte("message"), []byte("key"), []byte("value"), "AKIA", int64(0))
	f.Add([]byte("\"\\\n\xff\x00"), []byte(strings.Repeat("é", 600)), []byte(`"},"eventName":"x`), []byte("\u2028{"), "\"", int64(-1))
	f.Fuzz(func(t *testing.T, agent, message, key, value []byte, id string, number int64) {
		context := new(blob.Context)
		context.Add(key, value)
		var r Record
		dataKey(&r, nil, context, user())
		r.UserAgent, r.ErrorCode, r.ErrorMessage, r.AccessKeyID, r.RequestID, r.SharedEventID = agent, "X", message, id, key, value
		r.Caller.UserName, r.Caller.ARN, r.Caller.UserID, r.Caller.ViaName = id, string(key), string(value), string(message)
		object := AppendMember([]byte("{"), "text", message)
		object = AppendMemberContext(object, "encryptionContext", context)
		object = append(AppendMemberBool(AppendMemberInt(object, "number", number), "flag", number > 0), '}')
		r.RequestParameters, r.TLS = object, &TLSDetails{Host: agent, Version: id}
		r.Resources[0].ARN = value
		v := parse(t, r.Append([]byte{})) // more than SizeMax, or more than one line, fails there
		if v["eventName"] != "GenerateDataKey" || v["errorCode"] != "X" {
			t.Errorf("a member was replaced: %v", v)
		}
		parameters, ok := v["requestParameters"].(map[string]any)
		if !ok || parameters["omitted"] == true && len(object) > 40_000 {
			return
		}
		if want := string([]rune(string(message))); parameters["text"] != want { // each byte that is not UTF-8 is U+FFFD
			t.Errorf("text %q, want %q", parameters["text"], want)
		}
		if got, _ := parameters["encryptionContext"].(map[string]any); context.Len() == 1 && got[string(key)] != string(value) {
			t.Errorf("context %v, want %q: %q", got, key, value)
		}
	})
}
