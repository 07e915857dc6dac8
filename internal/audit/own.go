package audit

import (
	"bytes"
	"encoding/json"
	"time"
)

// Records that the log writes itself are service events of ownSource, a name that no record of a caller has.
const (
	ownSource      = "audit.keyplane"
	eventRetention = "AuditRetention"        // serviceEventDetails.firstIndex: segments before it are about to be removed
	eventRollback  = "AuditRollbackAccepted" // serviceEventDetails.published: the checkpoint that the log does not continue
)

type ownRecord struct {
	EventVersion        string            `json:"eventVersion"`
	UserIdentity        map[string]string `json:"userIdentity"`
	EventTime           string            `json:"eventTime"`
	EventSource         string            `json:"eventSource"`
	EventName           string            `json:"eventName"`
	EventType           string            `json:"eventType"`
	ReadOnly            bool              `json:"readOnly"`
	ManagementEvent     bool              `json:"managementEvent"`
	EventCategory       string            `json:"eventCategory"`
	ServiceEventDetails map[string]any    `json:"serviceEventDetails"`
}

func (l *Log) appendOwn(name string, details map[string]any) error {
	record, err := ownEvent(name, time.Now().UTC().Format(time.RFC3339), details)
	if err != nil {
		return err
	}
	return l.Append(record)
}

func ownEvent(name, at string, details map[string]any) ([]byte, error) {
	return json.Marshal(ownRecord{
		EventVersion: "1.11", UserIdentity: ownIdentity, EventTime: at, EventSource: ownSource, EventName: name, EventType: "AwsServiceEvent",
		ManagementEvent: true, EventCategory: "Management", ServiceEventDetails: details,
	})
}

var ownIdentity = map[string]string{"invokedBy": "AWS Internal"}

// ownPrefix begins every record of the log's own, and no record of a caller.
var ownPrefix = []byte(`{"eventVersion":"1.11","userIdentity":{"invokedBy":"AWS Internal"},"eventTime":"`)

// retainedFrom is the index in a record of retention, 0 of any other record. It takes exactly what appendOwn writes, byte by byte: a record that has
// members twice, or more of them, may be a caller's.
func retainedFrom(record []byte) uint64 {
	if !bytes.HasPrefix(record, ownPrefix) {
		return 0
	}
	var r struct {
		EventTime           string `json:"eventTime"`
		ServiceEventDetails struct {
			FirstIndex uint64 `json:"firstIndex"`
		} `json:"serviceEventDetails"`
	}
	if json.Unmarshal(record, &r) != nil {
		return 0
	}
	first := r.ServiceEventDetails.FirstIndex
	at, err := time.Parse(time.RFC3339, r.EventTime)
	if err != nil || at.UTC().Format(time.RFC3339) != r.EventTime {
		return 0
	}
	own, err := ownEvent(eventRetention, r.EventTime, map[string]any{"firstIndex": first})
	if err != nil || !bytes.Equal(own, record) {
		return 0
	}
	return first
}
