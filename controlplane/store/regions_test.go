package store

import (
	"slices"
	"testing"
)

// Regions with keys are found, also where the name of one begins with another's; a deleted key is none.
func TestKeyRegions(t *testing.T) {
	ctx := t.Context()
	want := []string{"home-a", "home", "home-a-1", "home1"}
	has := func(region string) bool {
		t.Helper()
		all, err := shared.KeyRegions(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if sorted := slices.Sorted(slices.Values(all)); len(slices.Compact(sorted)) != len(all) {
			t.Errorf("one is there twice: %v", all)
		}
		return slices.Contains(all, region)
	}
	for _, region := range want {
		if has(region) {
			t.Errorf("%s has keys already", region)
		}
		for range 3 {
			if err := shared.CreateKey(ctx, newKey(region), 10); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, region := range want {
		if !has(region) {
			t.Errorf("%s is missing", region)
		}
	}
	if has("hom") || has("home-") {
		t.Error("a Region without keys is there")
	}
}
