//go:build !race && !invariants

package dataplane

import (
	"encoding/base64"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/xks"
	"github.com/keyplane/keyplane/ratelimit"
)

// TestXKSAlloc is TestAlloc for the proxy of an external key store.
func TestXKSAlloc(t *testing.T) {
	for _, kind := range tokenKinds {
		t.Run(kind.name, func(t *testing.T) {
			p := newProxy(newWorld(t, worldConfig{tokens: []hsm.Token{kind.open(t)}, plain: true, tcp: true}), func(cfg *XKSConfig) {
				cfg.Prefixes[0].Rate = ratelimit.Limit{Interval: time.Microsecond, Burst: 1e5}
				cfg.Prefixes[0].Keys = append(cfg.Prefixes[0].Keys,
					XKSKey{ID: "alice", Region: testRegion, Account: ours, Key: keyID("k1"), Principals: []string{"arn:aws:iam::1*:user/Al?ce"}, Operations: []string{"Enc*"}, Services: []string{"*"}},
					XKSKey{ID: "bob", Region: testRegion, Account: ours, Key: keyID("k1"), Principals: []string{"arn:aws:iam::*:user/Bob"}})
			})
			p.addKeys()
			for _, c := range xksAllocCases(p) {
				t.Run(c.name, func(t *testing.T) { testAlloc(t, p.world, c) })
			}
		})
	}
}

func xksAllocCases(p *proxy) []allocCase {
	aad := xksB64(xksTestAAD)
	request := func(path string, body xksBody) []byte {
		return p.raw(xksOldID, "POST", xksBasePath+path, jsonOf(p, body))
	}
	dataKey := base64.StdEncoding.EncodeToString(make([]byte, 85+32)) // what KMS has encrypted before it asks
	plain := encryptBody(dataKey, xksBody{"additionalAuthenticatedData": aad})
	proved := merged(plain, xksBody{"ciphertextDataIntegrityValueAlgorithm": xks.AlgorithmCDIV})
	large := merged(proved, xksBody{"plaintext": base64.StdEncoding.EncodeToString(make([]byte, xks.PlaintextMax)),
		"additionalAuthenticatedData": base64.StdEncoding.EncodeToString(make([]byte, xks.AADMax))})
	sealed := p.sealedBody(p.post("/keys/ext.k1/encrypt", proved), xksBody{"additionalAuthenticatedData": aad})
	tampered := merged(sealed, xksBody{"authenticationTag": base64.StdEncoding.EncodeToString(make([]byte, xks.TagLen))})
	unsigned := request("/keys/ext.k1/encrypt", proved)
	unsigned[len(unsigned)-3] ^= 1
	return []allocCase{
		{"Encrypt", request("/keys/ext.k1/encrypt", plain), "200", allocRequests / 4, allocsMost},
		{"Encrypt/CDIV", request("/keys/ext.k1/encrypt", proved), "200", allocRequests / 4, allocsMost},
		{"Encrypt/largest", request("/keys/ext.k1/encrypt", large), "200", allocRequests / 8, allocsMost},
		{"Encrypt/access control", request("/keys/alice/encrypt", proved), "200", allocRequests / 4, allocsMost},
		{"Decrypt", request("/keys/ext.k1/decrypt", sealed), "200", allocRequests / 4, allocsMost},
		{"GetKeyMetadata", request("/keys/ext.k1/metadata", xksBody{"requestMetadata": metadata("CreateKey", nil)}), "200", allocRequests / 8, allocsMost},
		{"refused/bad tag", request("/keys/ext.k1/decrypt", tampered), "400", allocRequests / 4, allocsMost},
		{"refused/access control", request("/keys/bob/encrypt", proved), "403", allocRequests / 8, allocsMost},
		{"refused/disabled", request("/keys/ext.off/encrypt", proved), "400", allocRequests / 8, allocsMost},
		{"refused/unknown key", request("/keys/nobody/encrypt", proved), "404", allocRequests / 8, allocsMost},
		{"refused/signature", unsigned, "401", allocRequests / 8, allocsMost},
		{"refused/path", p.raw(xksOldID, "POST", "/elsewhere"+xks.BasePath+"/keys/ext.k1/encrypt", nil), "404", allocRequests / 8, allocsMost},
	}
}
