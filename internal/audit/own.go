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
	record, err := json.Marshal(ownRecord{
		EventVersion: "1.11", UserIdentity: map[string]string{"invokedBy": "AWS Internal"}, EventTime: time.Now().UTC().Format(time.RFC3339),
		EventSource: ownSource, EventName: name, EventType: "AwsServiceEvent", ManagementEvent: true, EventCategory: "Management",
		ServiceEventDetails: details,
	})
	if err != nil {
		return err
	}
	return l.Append(record)
}

// retainedFrom is the index in a record of retention, 0 of any other record.
func retainedFrom(record []byte) uint64 {
	if !bytes.Contains(record, []byte(eventRetention)) {
		return 0
	}
	var r struct {
		EventSource         string `json:"eventSource"`
		EventName           string `json:"eventName"`
		ServiceEventDetails struct {
			FirstIndex uint64 `json:"firstIndex"`
		} `json:"serviceEventDetails"`
	}
	if json.Unmarshal(record, &r) != nil || r.EventSource != ownSource || r.EventName != eventRetention {
		return 0
	}
	return r.ServiceEventDetails.FirstIndex
}
