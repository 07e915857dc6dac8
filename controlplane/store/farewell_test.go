package store

import (
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
)

// TestFarewellPages: the pages have every farewell of the Region once, in order, and none of a Region whose name only begins with its own.
func TestFarewellPages(t *testing.T) {
	s := shared
	put := func(region string, i byte) {
		t.Helper()
		n := KeyName{Region: region, Account: 111122223333, ID: keyid.NewID([16]byte{i}, true)}
		value, err := encode(&storedFarewell{"p-farewell-1"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.client.Do(t.Context(), clientv3.OpPut(n.farewellKey(), string(value))); err != nil {
			t.Fatal(err)
		}
	}
	for i := range byte(5) {
		put("r-farewell-1", i)
	}
	put("r-farewell-12", 9)
	var after *Farewell
	var got []byte
	for {
		list, err := s.Farewells(t.Context(), "r-farewell-1", after, 2)
		if err != nil {
			t.Fatal(err)
		}
		for i := range list {
			if list[i].Region != "r-farewell-1" || list[i].Primary != "p-farewell-1" {
				t.Errorf("listed %+v", list[i])
			}
			got, after = append(got, list[i].ID.UUID[0]), &list[i]
		}
		if len(list) < 2 {
			break
		}
	}
	if string(got) != "\x00\x01\x02\x03\x04" {
		t.Errorf("the pages have %v", got)
	}
}
