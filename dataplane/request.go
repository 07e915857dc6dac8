package dataplane

import (
	"net/netip"
	"sync"
	"time"

	"github.com/keyplane/keyplane/cache"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/attest"
	"github.com/keyplane/keyplane/internal/awsjson"
	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/invariants"
	"github.com/keyplane/keyplane/internal/kdf"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/pubkey"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/internal/uuid"
	"github.com/keyplane/keyplane/internal/xks"
)

// request is everything one request needs, pooled. Slices marked "borrows" alias fasthttp's memory of the request and are valid until the
// handler returns; buffers keep their memory across requests and are wiped whole on release.
type request struct {
	now    time.Time      // when the handler was called, or after the last read of the store: what deadlines count from
	date   time.Time      // what it is decided and recorded by: when the handler was called, by Config.Now
	id     [uuid.Len]byte // of the reply's x-amzn-RequestId
	header headerBlock    // borrows
	signed sigv4.Request  // borrows
	auth   sigv4.Scratch
	who    sigv4.Identity
	region *region    // that it was signed for; the home Region of one that is not, yet
	ip     netip.Addr // of the client; invalid if it has none
	op     *operation // nil until routed
	xml    bool       // the reply is XML: IAM's and STS's
	scan   awsjson.Scanner
	in     input // borrows
	faults kmsapi.Violations

	attested *attest.Document // whom the reply is for; nil without a Recipient

	key, dest *keyView                // what the request uses, on lease; dest is ReEncrypt's destination
	leases    [6]cache.Lease[keyView] // of them, and of those that they are by now (fence.go)
	seen      seen                    // what it was decided from; empty without a lease of the process
	blob      blob.Header             // of the ciphertext sent
	sealed    []byte                  // borrows, or is a proxy's; ciphertext || tag of the ciphertext sent
	job       hsm.Job
	use       hsm.KeyJob

	resident       [2]*resident // by derivation of job: whose versions are resident; the last residents of them
	residents      int
	charged        KeyStore                                // the last whose rate the request was counted in
	blocks, images [2 * residentBlocks * kdf.BlockLen]byte // what use encrypts of them
	ask            question                                // what authorize asks

	event      string            // the operation's name, "" until routed
	scanned    bool              // in is what the client sent
	recorded   recorded          // who keeps the audit record
	unanswered bool              // no control plane answered it, which was to
	record     cloudtrail.Record // borrows
	shared     [uuid.Len]byte    // the record's SharedEventID

	xks xksRequest // borrows; of requests to an XKS proxy

	name  []byte // buffer: cache names and ARNs
	aad   []byte // buffer
	plain []byte // buffer: data key, random bytes, decrypted plaintext, or what a private key gave
	ctext []byte // buffer: the ciphertext or signature that is made
	out   []byte // buffer: the reply's body
	msg   []byte // buffer: the message of a refusal

	params []byte // buffer: requestParameters of the record
	extra  []byte // buffer: its additionalEventData
	line   []byte // buffer: the record

	pooled bool // it is in the pool; kept by builds with invariants only
}

// reusable names the fields that keep memory while the request is in the pool, for builds with invariants.
var reusable = []string{"name", "aad", "plain", "ctext", "out", "msg", "ask.name", "ask.scratch.symbols", "ask.scratch.text", "ask.scratch.action", "params", "extra", "line", "auth.canon", "auth.msg", "scan.names", "faults.buf"}

// Capacities that hold the largest request, so that buffers are made once.
const (
	nameCap  = 512
	aadCap   = blob.HeaderLen + kmsapi.ContextBytesMax
	plainCap = max(xks.PlaintextMax+xks.TagLen, pubkey.SignatureMax)
	ctextCap = max(blob.ExternalLenMax, xks.PlaintextMax+xks.TagLen)
	outCap   = 8 << 10 // base64 of a full blob, its ARN and the member names
	msgCap   = 1 << 10

	paramsCap = 1 << 10
	extraCap  = 256
	lineCap   = 4 << 10
)

type requestPool struct{ pool sync.Pool }

func (p *requestPool) acquire() *request {
	if r, ok := p.pool.Get().(*request); ok {
		if invariants.Enabled {
			r.pooled = false
			invariants.Zeroed(r, reusable...) // nobody used it after its release
		}
		return r
	}
	r := &request{
		name:  make([]byte, 0, nameCap),
		aad:   make([]byte, 0, aadCap),
		plain: make([]byte, 0, plainCap),
		ctext: make([]byte, 0, ctextCap),
		out:   make([]byte, 0, outCap),
		msg:   make([]byte, 0, msgCap),

		params: make([]byte, 0, paramsCap),
		extra:  make([]byte, 0, extraCap),
		line:   make([]byte, 0, lineCap),
	}
	return r
}

// release wipes r and returns it to the pool. The caller does not use it again.
func (p *requestPool) release(r *request) {
	invariants.Check(!r.pooled, "request released twice")
	r.reset()
	if invariants.Enabled {
		invariants.Zeroed(r, reusable...)
		r.pooled = true
	}
	p.pool.Put(r)
}

// reset leaves nothing of a request but empty buffers. Within a request buffers only grow, or are emptied first, so clearing up to their lengths leaves their whole
// capacities zero; builds with invariants check that.
func (r *request) reset() {
	r.releaseKeys()
	r.header.reset()
	r.auth.Reset()
	r.scan.Reset(nil)
	r.in.reset()
	r.faults.Reset()
	r.job.Wipe()
	r.use.Key, r.use.Mechanism, r.use.In, r.use.Out, r.use.N, r.use.Err, r.use.Attempt = nil, hsm.NoMechanism, nil, nil, 0, nil, 0
	r.use.K1 = [kdf.BlockLen]byte{}
	r.resident, r.residents, r.charged = [2]*resident{}, 0, nil
	clear(r.blocks[:])
	clear(r.images[:])
	r.now, r.date, r.id = time.Time{}, time.Time{}, [uuid.Len]byte{}
	r.signed, r.who, r.region, r.ip, r.op = sigv4.Request{}, sigv4.Identity{}, nil, netip.Addr{}, nil
	r.xml, r.attested = false, nil
	r.blob, r.sealed = blob.Header{}, nil
	r.xks = xksRequest{}
	if r.seen.marked > 0 || r.seen.decided > 0 {
		r.seen = seen{}
	}
	r.ask.reset()
	r.event, r.scanned, r.recorded, r.unanswered = "", false, recordNone, false
	r.record.Reset()
	r.shared = [uuid.Len]byte{}
	r.name, r.aad, r.plain = wiped(r.name, nameCap), wiped(r.aad, aadCap), wiped(r.plain, plainCap)
	r.ctext, r.out, r.msg = wiped(r.ctext, ctextCap), wiped(r.out, outCap), wiped(r.msg, msgCap)
	r.params, r.extra, r.line = wiped(r.params, paramsCap), wiped(r.extra, extraCap), wiped(r.line, lineCap)
}

// renewNow is for after what may have taken long.
func (r *request) renewNow() { r.now = time.Now() }

// hold keeps a lease of a key until releaseKeys. One request uses two keys at most, and each may be looked at again twice.
func (r *request) hold(l cache.Lease[keyView]) {
	i := 0
	for i < len(r.leases)-1 && r.leases[i].Value() != nil {
		i++
	}
	invariants.Check(r.leases[i].Value() == nil, "a request uses more keys than it can hold")
	r.leases[i] = l
}

// releaseKeys gives the keys back, whose offsets may be wiped from then on. Nothing of the request reads them afterwards: job and reply have
// copies. That holds for a request that panicked too: whatever used its keys ran on the goroutine that has unwound.
func (r *request) releaseKeys() {
	r.key, r.dest = nil, nil
	for i := range r.leases {
		r.leases[i].Release()
	}
}

// wiped clears b and empties it. A buffer that outgrew four times its class is dropped.
func wiped(b []byte, class int) []byte {
	clear(b)
	if cap(b) > 4*class {
		return make([]byte, 0, class)
	}
	return b[:0]
}

// emptied is b without its bytes, for a buffer that is used a second time in one request: wiped would not reach beyond the second use.
func emptied(b []byte) []byte {
	clear(b)
	return b[:0]
}

// refuse sets the message of a refusal to the code's own text.
func (r *request) refuse(c kmsapi.Code) kmsapi.Code {
	r.msg = append(emptied(r.msg), c.Text()...) // it may replace a longer text
	return c
}

// refuseText sets the message of a refusal.
func (r *request) refuseText(c kmsapi.Code, text string) kmsapi.Code {
	r.msg = append(emptied(r.msg), text...)
	return c
}
