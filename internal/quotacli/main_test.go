package quotacli

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

// What is no value is refused before anything is sent.
func TestValues(t *testing.T) {
	for _, value := range []string{"-0", "-0.0", "-1", "1e16", "NaN", "Inf", "many", ""} {
		var errs bytes.Buffer
		if code := Main([]string{"set", "--quota", "CreateKey", "--value", value, "--endpoint", "http://127.0.0.1:1"}, io.Discard, &errs); code != 2 ||
			!strings.HasPrefix(errs.String(), "keyplane quota set: --value ") {
			t.Errorf("%q: exit status %d: %s", value, code, errs.String())
		}
	}
}
