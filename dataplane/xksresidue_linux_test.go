//go:build !race

package dataplane

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime/debug"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/internal/xks"
)

// TestNoXKSPlaintextStays is TestNoDataKeyStays for the proxy of an external key store: plaintexts go in by Encrypt, with a CDIV, and come out by Decrypt.
func TestNoXKSPlaintextStays(t *testing.T) {
	if os.Getenv("KEYPLANE_RESIDUE_CHILD") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestNoXKSPlaintextStays$", "-test.v", "-test.timeout=60s")
		cmd.Env = append(os.Environ(), "KEYPLANE_RESIDUE_CHILD=1", "GODEBUG=asyncpreemptoff=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("--- PASS: TestNoXKSPlaintextStays")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	debug.FreeOSMemory()                             // of tests before
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // or a collection would tidy up what we forgot
	p := newProxy(newWorld(t, worldConfig{plain: true, tcp: true}), nil)
	p.addKey("k1", kmsapi.StateEnabled, 1)
	k := &residueClient{proxy: p, hunt: &hunt{patterns: map[uint64][][]byte{}}}
	const each = 100
	var canary [30]byte
	var err error
	for i := range k.conns { // one for each operation, or the one's request would lie over what is left of the other's
		k.conns[i], err = p.dial()
		p.must(err)
		defer k.conns[i].Close()
	}
	for range each {
		p.must(k.takePlaintext(&canary))
	}
	if n := len(k.hunt.patterns); n != 2*each {
		t.Fatalf("%d patterns", n)
	}
	for deadline := time.Now().Add(3 * time.Second); k.hunt.memory(t) != 1; time.Sleep(20 * time.Millisecond) { // 1 is the canary
		if time.Now().After(deadline) {
			clear(canary[:])
			t.Fatalf("%d plaintexts are left in memory", k.hunt.memory(t))
		}
	}
	clear(canary[:])
	if n := k.hunt.memory(t); n != 0 {
		t.Errorf("%d plaintexts are left in memory", n)
	}
}

// residueClient keeps nothing of what it sends and reads.
type residueClient struct {
	*proxy
	hunt      *hunt
	conns     [2]net.Conn
	body, raw [4096]byte
	buf       [4096]byte
	plain     [30]byte // 40 base64 digits, no padding
}

const residueMetadata = `"encryptionAlgorithm":"AES_GCM","requestMetadata":{"awsPrincipalArn":"arn:aws:iam::123456789012:user/Alice","kmsKeyArn":"arn:aws:kms:us-east-2:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab","kmsOperation":"Encrypt","kmsRequestId":"1"}}`

// takePlaintext has a plaintext encrypted and decrypted and gives it to the hunt. The last one is kept in canary: what the scan has to find.
func (k *residueClient) takePlaintext(canary *[30]byte) error {
	defer func() { clear(k.body[:]); clear(k.raw[:]); clear(k.buf[:]); clear(k.plain[:]) }()
	_, _ = rand.Read(k.plain[:])
	body := base64.StdEncoding.AppendEncode(append(k.body[:0], `{"plaintext":"`...), k.plain[:])
	sealed, err := k.exchange(k.conns[0], "encrypt", append(body, `","ciphertextDataIntegrityValueAlgorithm":"SHA_256",`+residueMetadata...))
	if err != nil {
		return err
	}
	body = append(append(k.body[:0], sealed[:bytes.Index(sealed, []byte(`,"ciphertextDataIntegrityValue"`))]...), `,`+residueMetadata...)
	opened, err := k.exchange(k.conns[1], "decrypt", body)
	if err != nil {
		return err
	}
	text, found := bytes.CutPrefix(opened, []byte(`{"plaintext":"`))
	if !found || len(text) < 40 {
		return fmt.Errorf("no plaintext in the reply: %d bytes", len(opened))
	}
	k.hunt.add(text[:40])
	k.hunt.add(k.plain[:])
	copy(canary[:], k.plain[:])
	return nil
}

// exchange sends a body and returns that of the reply, in k.buf.
func (k *residueClient) exchange(c net.Conn, operation string, body []byte) ([]byte, error) {
	path := xksBasePath + "/keys/ext.k1/" + operation
	r := sigv4.Request{Method: []byte("POST"), Path: []byte(path), Body: body, Headers: []sigv4.Header{
		{Name: []byte("host"), Value: []byte("xks.test")}, {Name: []byte("x-amz-date"), Value: sigv4.AppendDate(nil, time.Now())}}}
	var scratch sigv4.Scratch
	authorization, err := sigv4.AppendAuthorization(nil, k.keys[xksOldID], xksRegion, xks.SigningName, &r, &scratch)
	if err != nil {
		return nil, err
	}
	raw := fmt.Appendf(k.raw[:0], "POST %s HTTP/1.1\r\nhost: xks.test\r\nx-amz-date: %s\r\nauthorization: %s\r\ncontent-length: %d\r\n\r\n", path, r.Headers[1].Value, authorization, len(body))
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(append(raw, body...)); err != nil {
		return nil, err
	}
	clear(k.buf[:])
	n, err := io.ReadAtLeast(c, k.buf[:], 1)
	for err == nil && !bytes.HasSuffix(k.buf[:n], []byte(`"}`)) {
		var m int
		m, err = c.Read(k.buf[n:])
		n += m
	}
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(k.buf[:n], []byte("HTTP/1.1 200")) {
		return nil, fmt.Errorf("%s: %.12q", operation, k.buf[:n])
	}
	return k.buf[bytes.IndexByte(k.buf[:n], '{'):n], nil
}
