package authz

import "testing"

// Every action has its code, but those that are reserved without an operation of their own.
func TestActionCodes(t *testing.T) {
	codes := map[any]string{}
	for name, a := range Actions {
		if a.Code == 0 {
			if name != "SynchronizeMultiRegionKey" {
				t.Errorf("%s has no code", name)
			}
			continue
		}
		if other := codes[a.Code]; other != "" {
			t.Errorf("%s and %s have the code %d", name, other, a.Code)
		}
		codes[a.Code] = name
	}
}
