package replication

import (
	"errors"

	"github.com/go-json-experiment/json"
)

// Kind is what a message asks for.
type Kind string

const (
	State   Kind = "state"   // what do you have of this key?
	Create  Kind = "create"  // make a replica of this key, without material
	Sync    Kind = "sync"    // this is what related keys share now; say what material you lack, or take this
	Promote Kind = "promote" // you are the primary from now on
	Gone    Kind = "gone"    // my replica was deleted
	// Handover is no request: its envelope is the proof that its sender made its receiver the primary at a moment (Endpoint.Handover).
	Handover Kind = "handover"
)

// Message is a request or its answer. What it says of a key is bounded by the envelope's length alone; whoever reads it checks it.
type Message struct {
	From    string `json:"from"` // Region
	To      string `json:"to"`   // Region
	Kind    Kind   `json:"kind"`
	Nonce   string `json:"nonce"`            // 32 hexadecimal digits, of this message alone
	Answers string `json:"answers,omitzero"` // of an answer: the request's nonce; "" of a request
	Time    int64  `json:"time"`             // milliseconds since 1970, by the sender's clock

	Account string `json:"account"`
	KeyID   string `json:"keyId"`

	// Of requests.
	Creation *Creation  `json:"creation,omitzero"` // Create
	Shared   *Shared    `json:"shared,omitzero"`   // Create, Sync, Promote
	Material []Material `json:"material,omitempty"`
	Root     string     `json:"root,omitzero"`     // Sync: hex of the root that wraps all the material, "" if there are several
	Token    []byte     `json:"token,omitzero"`    // Sync: from the answer that named the public key
	Caller   *Caller    `json:"caller,omitzero"`   // Create, Promote: who asked for it
	Handover []byte     `json:"handover,omitzero"` // Promote: the proof that the sender asked for it, for other Regions

	Answer *Answer `json:"answer,omitzero"` // of an answer
}

// Shared is what related keys have in common.
type Shared struct {
	Spec     string    `json:"spec"`
	Usage    string    `json:"usage"`
	Origin   string    `json:"origin"`
	Primary  string    `json:"primary"`
	Replicas []string  `json:"replicas,omitempty"`
	Epoch    uint64    `json:"epoch"`
	Revision uint64    `json:"revision"`
	Void     uint64    `json:"void,omitzero"` // handovers at this revision of the epoch and at earlier ones were taken back
	Current  uint32    `json:"current,omitzero"`
	Versions []Version `json:"versions,omitempty"`
	Public   []byte    `json:"public,omitzero"` // DER, of an asymmetric key
	Images   []byte    `json:"images,omitzero"` // of an HMAC key
	Rotation *Rotation `json:"rotation,omitzero"`
	Import   *Import   `json:"import,omitzero"` // of an asymmetric or HMAC key that was imported
	// Handovers are the envelopes that prove the latest changes of the primary, the last one last: Handover, from one primary to the next.
	Handovers [][]byte `json:"handovers,omitempty"`
}

// Version is one backing key of a symmetric key, without it.
type Version struct {
	Number     uint32  `json:"number"`
	MaterialID string  `json:"materialId"`
	Created    int64   `json:"created"`
	Rotated    int64   `json:"rotated,omitzero"`
	OnDemand   bool    `json:"onDemand,omitzero"`
	Import     *Import `json:"import,omitzero"`
}

// Import is what related keys share of imported material. When it was imported, and when it expires, is each Region's own.
type Import struct {
	Description string `json:"description,omitzero"`
	Fingerprint string `json:"fingerprint,omitzero"`
}

// Rotation is the schedule. Dates are milliseconds since 1970.
type Rotation struct {
	Enabled  bool  `json:"enabled,omitzero"`
	Period   int32 `json:"period,omitzero"`
	Next     int64 `json:"next,omitzero"`
	OnDemand int64 `json:"onDemand,omitzero"`
}

// Material is one backing key, wrapped.
type Material struct {
	ID string `json:"id"` // material ID of a version, "" of the private or HMAC key
	// Copied says that Wrapped is as the sender keeps it, under a root that both have. Otherwise it is wrapped for the receiver's public key.
	Copied   bool   `json:"copied,omitzero"`
	Software bool   `json:"software,omitzero"` // of what is copied
	Wrapping string `json:"wrapping,omitzero"` // of what is not: the wrapping algorithm
	Wrapped  []byte `json:"wrapped"`
}

// Creation is what a replica does not share.
type Creation struct {
	Epoch       uint64 `json:"epoch"` // the two order what the primary has asked for, and name it
	Revision    uint64 `json:"revision"`
	Policy      []byte `json:"policy"`
	Description string `json:"description,omitzero"`
	Tags        []Tag  `json:"tags,omitempty"`
}

// Tag is one tag.
type Tag struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Caller is who asked the primary, for the record in the other Region.
type Caller struct {
	Kind      uint8  `json:"kind"`
	Account   string `json:"account"`
	ARN       string `json:"arn"`
	UserID    string `json:"userId"`
	UserName  string `json:"userName,omitzero"`
	AccessKey string `json:"accessKey,omitzero"`
}

// Answer says what became of a request, and what the answering Region has of the key.
type Answer struct {
	Refused string `json:"refused,omitzero"` // name of an exception; "": it was done
	Text    string `json:"text,omitzero"`    // its message

	Exists   bool   `json:"exists,omitzero"`
	Primary  string `json:"primary,omitzero"`
	Epoch    uint64 `json:"epoch,omitzero"`
	Revision uint64 `json:"revision,omitzero"`
	State    string `json:"state,omitzero"`
	Created  int64  `json:"created,omitzero"`

	// Sync: the IDs of the material that is lacking; a public key (DER) to wrap it for, and what to send back with it, or where a copy will do no public key, and the proof
	// that the root is there.
	Need   []string `json:"need,omitempty"`
	Public []byte   `json:"public,omitzero"`
	Token  []byte   `json:"token,omitzero"`
	// How it can be wrapped: the names of wrapping algorithms, the preferred one first.
	Wrapping []string `json:"wrapping,omitempty"`

	// State: what decides about the replica.
	Policy []byte            `json:"policy,omitzero"`
	Bound  map[string]string `json:"bound,omitempty"`
	Tags   []Tag             `json:"tags,omitempty"`
	Alias  []string          `json:"alias,omitempty"`
	// State: the ID of the imported material that waits for a rotation and is there, "" for none.
	Waiting string `json:"waiting,omitzero"`
}

var errMessage = errors.New("replication: the message is not well formed")

// decode reads a message: strictly, and with the parts that its kind has.
func decode(b []byte) (*Message, error) {
	m := new(Message)
	if err := json.Unmarshal(b, m, json.RejectUnknownMembers(true)); err != nil {
		return nil, errMessage // json's text could repeat what it read
	}
	if len(m.Nonce) != 2*nonceLen || (m.Answers != "") != (m.Answer != nil) {
		return nil, errMessage
	}
	if m.Answer != nil {
		if m.Creation != nil || m.Shared != nil || m.Material != nil || m.Token != nil || m.Caller != nil || m.Handover != nil || m.Root != "" || len(m.Answers) != 2*nonceLen {
			return nil, errMessage
		}
		return m, nil
	}
	creation, shared, material, caller := false, false, false, false
	switch m.Kind {
	case State, Gone:
	case Create:
		creation, shared, caller = true, true, true
	case Sync:
		shared, material = true, true
	case Promote:
		shared, caller = true, true
	case Handover:
		shared = true
	default:
		return nil, errMessage
	}
	if (m.Creation != nil) != creation || (m.Shared != nil) != shared || m.Caller != nil && !caller || m.Handover != nil && m.Kind != Promote ||
		!material && (m.Material != nil || m.Token != nil || m.Root != "") {
		return nil, errMessage
	}
	return m, nil
}
