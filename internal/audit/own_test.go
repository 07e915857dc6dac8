package audit

import (
	"bytes"
	"strings"
	"testing"
)

// TestRetainedFrom: only what the log writes itself permits a removal.
func TestRetainedFrom(t *testing.T) {
	cfg := testConfig(t.TempDir())
	l := mustOpen(t, cfg)
	if err := l.appendOwn(eventRetention, map[string]any{"firstIndex": uint64(1 << 62)}); err != nil {
		t.Fatal(err)
	}
	if err := l.appendOwn(eventRollback, map[string]any{"published": "x", "keptRecords": 7}); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	records := read(t, cfg.Dir)
	own := records[0]
	if got := retainedFrom([]byte(own)); got != 1<<62 {
		t.Fatalf("%d of %s", got, own)
	}
	if got := retainedFrom([]byte(records[1])); got != 0 {
		t.Errorf("%d of a rollback", got)
	}
	for what, forged := range map[string]string{
		"members twice": `{"eventSource":"kms.amazonaws.com","eventName":"X","eventSource":"audit.keyplane","eventName":"AuditRetention",` +
			`"serviceEventDetails":{"firstIndex":999999999},"x":"","awsRegion":"us-east-1"}`,
		"another source":      strings.Replace(own, ownSource, "kms.amazonaws.com", 1),
		"a source after it":   strings.TrimSuffix(own, "}") + `,"eventSource":"kms.amazonaws.com"}`,
		"a source before it":  strings.Replace(own, `"eventSource"`, `"eventSource":"kms.amazonaws.com","eventSource"`, 1),
		"another index":       strings.Replace(own, `{"firstIndex"`, `{"firstIndex":1,"firstIndex"`, 1),
		"capitals":            strings.Replace(own, `"firstIndex"`, `"firstindex"`, 1),
		"another identity":    strings.Replace(own, "AWS Internal", "alice", 1),
		"space":               strings.Replace(own, `,"eventTime"`, `, "eventTime"`, 1),
		"something after it":  own + " ",
		"something before it": " " + own,
		"no time":             strings.Replace(own, `"eventTime":"`, `"eventTime":"x`, 1),
		"a string":            `{"userAgent":` + strings.ReplaceAll(own, `"`, `\"`) + `}`,
		"half":                own[:len(own)/2],
		"the prefix":          string(ownPrefix),
	} {
		if got := retainedFrom([]byte(forged)); got != 0 || forged == own {
			t.Errorf("%s: %d of %s", what, got, forged)
		}
	}
	if bytes.HasPrefix(record(0), ownPrefix) {
		t.Error("a caller's record begins as the log's own")
	}
}
