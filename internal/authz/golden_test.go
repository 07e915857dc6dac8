package authz_test

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/keyplane/keyplane/internal/authz/authztest"
)

// goldenCases is the number of cases in testdata/golden, so that none gets lost unseen.
const goldenCases = 5395

// TestGolden asks the golden cases, whose answers are stated by rule: see authztest.Families.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			z, err := gzip.NewReader(f)
			if err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(z)
			lines.Buffer(nil, 1<<20)
			for lines.Scan() {
				var c authztest.Case
				if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
					t.Fatal(err)
				}
				asked++
				checkGolden(t, &c)
			}
			if err := lines.Err(); err != nil {
				t.Fatal(err)
			}
		})
	}
	if asked != goldenCases {
		t.Errorf("%d cases, want %d", asked, goldenCases)
	}
}

func checkGolden(t *testing.T, c *authztest.Case) {
	product, err := authztest.NewProduct(&c.World)
	if c.Want == authztest.Malformed {
		if err == nil {
			t.Errorf("%s: taken, want malformed", c.Name)
		}
		return
	}
	if err != nil {
		t.Errorf("%s: %v", c.Name, err)
		return
	}
	d := product.Decide(&c.Request)
	reason := authztest.ReasonName(d.Reason)
	if d.Reason.Allowed() != (c.Want == authztest.Allow) {
		t.Errorf("%s: %s, want %s", c.Name, reason, c.Want)
	} else if c.Reason != "" && reason != c.Reason {
		t.Errorf("%s: %s, want %s", c.Name, reason, c.Reason)
	}
}
