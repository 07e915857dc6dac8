package controlplane

import (
	"fmt"
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// BenchmarkServe is whole operations, signing by the client included, one after the other on the embedded etcd.
func BenchmarkServe(b *testing.B) {
	e := newEnv(b)
	m := e.create("{}")
	n := 0
	for _, op := range []struct {
		name string
		body func() string
	}{
		{"CreateKey", func() string { return "{}" }},
		{"DescribeKey", func() string { return obj("KeyId", m.KeyId) }},
		{"UpdateKeyDescription", func() string { n++; return obj("KeyId", m.KeyId, "Description", fmt.Sprint(n)) }},
		{"ListKeys", func() string { return obj("Limit", 100) }},
	} {
		b.Run("op="+op.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if resp := e.call(op.name, op.body()); resp.Code != kmsapi.OK {
					b.Fatalf("%s", resp.Body)
				}
			}
		})
	}
}

// BenchmarkKeyRecord is what a miss of the data plane's cache costs in the control plane.
func BenchmarkKeyRecord(b *testing.B) {
	e := newEnv(b)
	n := e.name(e.create("{}").KeyId)
	b.ReportAllocs()
	for b.Loop() {
		r, err := shared.KeyRecord(b.Context(), n.Region, n.Account, n.ID)
		if err != nil {
			b.Fatal(err)
		}
		r.Wipe()
	}
}
