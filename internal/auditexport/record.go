package auditexport

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// event is what the export reads of a record.
type event struct {
	EventTime     time.Time `json:"eventTime"`
	EventID       string    `json:"eventID"`
	SharedEventID string    `json:"sharedEventID"`
	Region        string    `json:"awsRegion"`
	Recipient     string    `json:"recipientAccountId"`
	ErrorCode     string    `json:"errorCode"`
	Resources     []struct {
		Account string `json:"accountId"`
	} `json:"resources"`
}

// chain names the files of one account in one Region.
type chain struct{ Account, Region string }

func (c chain) String() string { return c.Account + "/" + c.Region }

// valid keeps everything out of paths that is not an account and a Region.
func (c chain) valid() bool {
	for _, b := range []byte(c.Account) {
		if b < '0' || b > '9' {
			return false
		}
	}
	for _, b := range []byte(c.Region) {
		if (b < 'a' || b > 'z') && (b < '0' || b > '9') && b != '-' {
			return false
		}
	}
	return len(c.Account) == 12 && len(c.Region) > 0 && len(c.Region) <= 32
}

// parse reads a record; ok is false for a line that is not a CloudTrail record with a recipient.
func parse(record []byte) (e event, ok bool) {
	if json.Unmarshal(record, &e) != nil || e.EventTime.IsZero() || e.EventID == "" {
		return e, false
	}
	return e, chain{e.Recipient, e.Region}.valid()
}

// owners are the accounts, other than the recipient, whose resources the record names. What a refused call names is what the caller wrote, which
// may be nobody's, unless the service says by a sharedEventID that it is shared.
func (e *event) owners() (accounts []string) {
	if e.ErrorCode != "" && e.SharedEventID == "" {
		return nil
	}
next:
	for _, r := range e.Resources {
		if r.Account == e.Recipient || !(chain{r.Account, e.Region}).valid() {
			continue
		}
		for _, a := range accounts {
			if a == r.Account {
				continue next
			}
		}
		accounts = append(accounts, r.Account)
	}
	return accounts
}

// derivedID is a UUID (RFC 9562 version 8) made of an event ID and what it is for.
func derivedID(eventID, purpose string) string {
	u := sha256.Sum256([]byte("keyplane audit export\n" + purpose + "\n" + eventID))
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// member is one member of a record, its value as it stands.
type member struct {
	name  string
	value json.RawMessage
}

// members splits a record; the order is kept.
func members(record []byte) (list []member, err error) {
	d := json.NewDecoder(bytes.NewReader(record))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("auditexport: a record is not an object")
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		m := member{name: t.(string)} // a key, or Token had failed
		if err := d.Decode(&m.value); err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, nil
}

func appendMembers(dst []byte, list []member) []byte {
	dst = append(dst, '{')
	for i, m := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, quote(m.name)...)
		dst = append(append(dst, ':'), m.value...)
	}
	return append(dst, '}')
}

// quote makes a JSON string of one that came out of JSON.
func quote(s string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a bytes.Buffer and a string: no error
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// share returns the record as its recipient gets it when others get a copy, and one copy per owner.
func share(record []byte, e *event, owners []string) (original []byte, copies [][]byte, err error) {
	list, err := members(record)
	if err != nil {
		return nil, nil, err
	}
	shared := e.SharedEventID
	if shared == "" {
		shared = derivedID(e.EventID, "shared")
		for i, m := range list {
			if m.name == "recipientAccountId" {
				rest := append([]member{{"sharedEventID", quote(shared)}}, list[i+1:]...)
				list = append(list[:i+1:i+1], rest...)
				break
			}
		}
	}
	original = appendMembers(nil, list)
	for _, owner := range owners {
		theirs := append([]member(nil), list...)
		for i := range theirs {
			m := &theirs[i]
			switch m.name {
			case "userIdentity":
				if m.value, err = reduced(m.value); err != nil {
					return nil, nil, err
				}
			case "eventID":
				m.value = quote(derivedID(e.EventID, owner))
			case "recipientAccountId":
				m.value = quote(owner)
			}
		}
		copies = append(copies, appendMembers(nil, theirs))
	}
	return original, copies, nil
}

// reduced is what another account may see of a caller. Services act for nobody's account and stay as they are.
func reduced(identity json.RawMessage) (json.RawMessage, error) {
	var in struct {
		Type        string `json:"type"`
		PrincipalID string `json:"principalId,omitempty"`
		AccountID   string `json:"accountId,omitempty"`
		InvokedBy   string `json:"invokedBy,omitempty"`
	}
	if err := json.Unmarshal(identity, &in); err != nil {
		return nil, err
	}
	if in.Type == "AWSService" {
		return json.Marshal(map[string]string{"type": in.Type, "invokedBy": in.InvokedBy})
	}
	in.Type = "AWSAccount"
	return json.Marshal(in)
}
