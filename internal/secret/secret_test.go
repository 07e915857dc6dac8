package secret

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"strings"
	"testing"
)

// plain is in no text that redacting code writes by itself.
const plain = "hunter2-\x01\xfe-secret"

// shows reports whether text has the secret, in any of the forms in which a printing path could write bytes.
func shows(text string) bool {
	text = strings.ToLower(text)
	for _, form := range []string{
		plain, "hunter2", hex.EncodeToString([]byte(plain)), base64.StdEncoding.EncodeToString([]byte(plain)), strings.Trim(fmt.Sprint([]byte(plain[:4])), "[]"),
		"0x68, 0x75, 0x6e", "68 75 6e", "0x68756e",
	} {
		if strings.Contains(text, strings.ToLower(form)) {
			return true
		}
	}
	return false
}

func TestShowsFindsSecrets(t *testing.T) {
	b := []byte(plain)
	js, _ := json.Marshal(b)
	for _, text := range []string{
		fmt.Sprint(b), string(b), fmt.Sprintf("%x", b), fmt.Sprintf("%X", b), fmt.Sprintf("% x", b), fmt.Sprintf("%#x", b), fmt.Sprintf("%q", b), fmt.Sprintf("%#v", b), string(js),
	} {
		if !shows(text) {
			t.Errorf("%q passes for redacted", text)
		}
	}
}

type exported struct{ Key Bytes }

type unexported struct{ key Bytes }

func TestNothingPrintsTheBytes(t *testing.T) {
	s := New([]byte(plain))
	for name, v := range map[string]any{
		"value": s, "pointer": &s, "slice": []Bytes{s}, "map": map[string]Bytes{"k": s}, "array": [1]Bytes{s}, "interface": []any{s, &s},
		"exported field": exported{s}, "pointer to exported field": &exported{s},
		"unexported field": unexported{s}, "pointer to unexported field": &unexported{s}, "nested": map[string]any{"k": []unexported{{s}}},
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%#x", "%d", "%b", "%o", "%c", "%U", "%p", "%t", "%e", "%T", "%10.3v", "%!"} {
			if got := fmt.Sprintf(verb, v); shows(got) {
				t.Errorf("%s with %s: %s", name, verb, got)
			}
		}
		for how, got := range map[string]string{
			"Sprint": fmt.Sprint(v), "Sprintln": fmt.Sprintln(v), "Errorf": fmt.Errorf("x: %v", v).Error(), "errors.Join": errors.Join(fmt.Errorf("%v", v)).Error(),
			"log": logged(func(b *bytes.Buffer) { log.New(b, "", 0).Print(v) }),
			"slog text": logged(func(b *bytes.Buffer) {
				slog.New(slog.NewTextHandler(b, nil)).Info("m", "k", v, slog.Any("a", v), slog.Group("g", "k", v))
			}),
			"slog JSON": logged(func(b *bytes.Buffer) {
				slog.New(slog.NewJSONHandler(b, nil)).Info("m", "k", v, slog.Any("a", v), slog.Group("g", "k", v))
			}),
			"json": marshalled(json.Marshal, v), "xml": marshalled(xml.Marshal, v),
		} {
			if shows(got) {
				t.Errorf("%s with %s: %s", name, how, got)
			}
		}
	}
}

func logged(f func(*bytes.Buffer)) string {
	var b bytes.Buffer
	f(&b)
	return b.String()
}

func marshalled(f func(any) ([]byte, error), v any) string {
	b, err := f(v)
	return string(b) + fmt.Sprint(err)
}

// Redacted text is what stands in the secret's place, where the method can say so.
func TestRedacted(t *testing.T) {
	s := New([]byte(plain))
	text, _ := s.MarshalText()
	js, _ := json.Marshal(exported{s})
	for got, want := range map[string]string{
		fmt.Sprintf("%x", s): Redacted, fmt.Sprintf("%#v", exported{s}): "secret.exported{Key:REDACTED}", s.String(): Redacted, s.GoString(): Redacted,
		string(text): Redacted, string(js): `{"Key":"REDACTED"}`, s.LogValue().String(): Redacted,
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := fmt.Sprint(Bytes{}); got != Redacted {
		t.Errorf("an empty secret can be told by %q", got)
	}
}

func TestWipe(t *testing.T) {
	b := []byte(plain)
	s := New(b)
	other := s
	if s.Len() != len(plain) || string(s.Expose()) != plain {
		t.Fatalf("Expose gives %q", s.Expose())
	}
	s.Wipe()
	if !bytes.Equal(b, make([]byte, len(plain))) || !bytes.Equal(other.Expose(), make([]byte, len(plain))) {
		t.Errorf("left after Wipe: %q, %q", b, other.Expose())
	}
	if s.Len() != 0 || s.Expose() != nil {
		t.Errorf("Wipe leaves %d bytes", s.Len())
	}
	s.Wipe()
	var zero Bytes
	zero.Wipe()
	if zero.Len() != 0 || zero.Expose() != nil || !zero.Equal(nil) {
		t.Error("the zero value is not empty")
	}
	part := []byte("abcdef")
	Wipe(part[:3])
	if string(part) != "\x00\x00\x00def" {
		t.Errorf("Wipe(part[:3]) left %q", part)
	}
	Wipe(nil)
}

func TestEqual(t *testing.T) {
	s := New([]byte("abc"))
	for in, want := range map[string]bool{"abc": true, "abd": false, "ab": false, "abcd": false, "": false} {
		if s.Equal([]byte(in)) != want {
			t.Errorf("Equal(%q) = %t", in, !want)
		}
	}
}
