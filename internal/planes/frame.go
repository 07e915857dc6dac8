package planes

import (
	"encoding/binary"
	"errors"
	"math"

	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/lastuse"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/ratelimit"
)

// Limits of frames, in bytes.
const (
	shortMax   = 256 // of names, addresses and the like
	requestMax = kmsapi.BodyMax + 2*kmsapi.HeadersMax + 8<<10
	answerMax  = 8 << 20 // of an answer to a client, which the control plane bounds far below

	// LeaseAsksMax and UsesMax bound the entries of one message.
	LeaseAsksMax = 4096
	UsesMax      = 4096

	leaseAskMin = 1 + 8 + 1 + 8 + 8 + 8
	leaseMax    = 64 + LeaseAsksMax*leaseAskMin + regionsMax*(2+shortMax)
	useLen      = 1 + 8 + 17 + 1 + 8 + 16 + 16
	usesMax     = 64 + UsesMax*useLen + regionsMax*(2+shortMax)
	regionsMax  = 255
	revisionLen = 8
)

// errFrame says no more: what is in a frame is nobody's business.
var errFrame = errors.New("planes: a message is not of its form")

// reader takes a frame apart. After the first fault everything it returns is zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.b) {
		r.bad = true
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) u8() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() int {
	if b := r.take(2); b != nil {
		return int(binary.BigEndian.Uint16(b))
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) flag() bool {
	v := r.u8()
	r.bad = r.bad || v > 1
	return v == 1
}

// bytes reads a text of at most limit bytes behind its length.
func (r *reader) bytes(limit int) []byte {
	b := r.take(4)
	if b == nil {
		return nil
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(limit) {
		r.bad = true
		return nil
	}
	return r.take(int(n))
}

func (r *reader) text(limit int) string { return string(r.bytes(limit)) }

// end reports whether everything was read and nothing was wrong.
func (r *reader) end() bool { return !r.bad && len(r.b) == 0 }

func appendBytes[T ~[]byte | ~string](dst []byte, b T) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(b))), b...)
}

func appendFlag(dst []byte, v bool) []byte {
	if v {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// Request is a client's request, as it was signed, on its way from a data node, which verified it.
type Request struct {
	Region          string // that it is for; of one that was signed for none of the node's, its home Region
	Signed          *sigv4.Request
	RequestID       string
	SourceIP        string
	SecureTransport bool
	TLS             *cloudtrail.TLSDetails // nil: not known
}

func appendRequest(dst []byte, r *Request) []byte {
	dst = appendBytes(appendBytes(appendBytes(dst, r.Region), r.RequestID), r.SourceIP)
	dst = appendFlag(appendFlag(dst, r.SecureTransport), r.TLS != nil)
	if t := r.TLS; t != nil {
		dst = appendBytes(appendBytes(appendBytes(dst, t.Version), t.CipherSuite), t.KeyExchange)
		if dst = appendFlag(dst, t.Host != nil); t.Host != nil {
			dst = appendBytes(dst, t.Host)
		}
	}
	s := r.Signed
	dst = appendBytes(appendBytes(appendBytes(dst, s.Method), s.Path), s.Query)
	dst = append(dst, byte(len(s.Headers)))
	for i := range s.Headers {
		dst = appendBytes(appendBytes(dst, s.Headers[i].Name), s.Headers[i].Value)
	}
	return appendBytes(dst, s.Body)
}

func readRequest(r *reader) *Request {
	q := &Request{Region: r.text(shortMax), RequestID: r.text(shortMax), SourceIP: r.text(shortMax), SecureTransport: r.flag()}
	if r.flag() {
		q.TLS = &cloudtrail.TLSDetails{Version: r.text(shortMax), CipherSuite: r.text(shortMax), KeyExchange: r.text(shortMax)}
		if r.flag() {
			q.TLS.Host = r.bytes(shortMax)
		}
	}
	q.Signed = &sigv4.Request{Method: r.bytes(kmsapi.HeadersMax), Path: r.bytes(kmsapi.HeadersMax), Query: r.bytes(kmsapi.HeadersMax)}
	n := int(r.u8())
	if n > kmsapi.HeaderCountMax {
		r.bad = true
		n = 0
	}
	q.Signed.Headers = make([]sigv4.Header, n)
	for i := range q.Signed.Headers {
		q.Signed.Headers[i] = sigv4.Header{Name: r.bytes(kmsapi.HeaderNameMax), Value: r.bytes(kmsapi.HeadersMax)}
	}
	q.Signed.Body = r.bytes(kmsapi.BodyMax)
	return q
}

// parseRequest borrows b.
func parseRequest(b []byte) (*Request, error) {
	r := &reader{b: b}
	q := readRequest(r)
	if !r.end() {
		return nil, errFrame
	}
	return q, nil
}

func appendManaged(dst []byte, q *Request, alias string) []byte {
	return appendBytes(appendRequest(dst, q), alias)
}

func parseManaged(b []byte) (q *Request, alias string, err error) {
	r := &reader{b: b}
	q = readRequest(r)
	alias = r.text(kmsapi.AliasNameMax)
	if !r.end() {
		return nil, "", errFrame
	}
	return q, alias, nil
}

// regionList numbers the Regions of a message.
type regionList []string

func (l *regionList) index(region string) (byte, bool) {
	for i, r := range *l {
		if r == region {
			return byte(i), true
		}
	}
	if len(*l) == regionsMax || len(region) > shortMax {
		return 0, false
	}
	*l = append(*l, region)
	return byte(len(*l) - 1), true
}

func (l regionList) append(dst []byte) []byte {
	dst = append(dst, byte(len(l)))
	for _, r := range l {
		dst = appendBytes(dst, r)
	}
	return dst
}

func (r *reader) regions() []string {
	list := make([]string, r.u8())
	for i := range list {
		list[i] = r.text(shortMax)
	}
	return list
}

func (r *reader) region(list []string) string {
	i := int(r.u8())
	if i >= len(list) {
		r.bad = true
		return ""
	}
	return list[i]
}

func (r *reader) account() keyid.Account {
	a := r.u64()
	r.bad = r.bad || a > uint64(keyid.AccountMax)
	return keyid.Account(a)
}

// pool names one pool of an account in a Region.
type pool struct {
	region  string
	account keyid.Account
	pool    ratelimit.Pool
}

// leaseAsk is what a node says of one pool: how many requests a second come to it, and which part it has, for how long still.
type leaseAsk struct {
	pool
	demand float64
	rate   float64
	left   int64 // nanoseconds; 0: it has none
}

// leaseMessage is what a node asks at one time.
type leaseMessage struct {
	epoch    uint64 // of the owner whose answer it had last; 0: none
	complete bool   // all that the node has is in this and the parts before
	asks     []leaseAsk
}

// leaseShare is the answer to one ask.
type leaseShare struct {
	rate float64
	left int64 // nanoseconds from when the node asked; 0: the owner cannot say yet
}

// leaseAnswer has a share for each ask, or none: then the owner is a new one, which has to be told all that the node has.
type leaseAnswer struct {
	epoch  uint64
	shares []leaseShare
}

func appendLeaseMessage(dst []byte, m *leaseMessage) []byte {
	dst = appendFlag(binary.BigEndian.AppendUint64(dst, m.epoch), m.complete)
	var regions regionList
	for i := range m.asks {
		regions.index(m.asks[i].region)
	}
	dst = binary.BigEndian.AppendUint16(regions.append(dst), uint16(len(m.asks)))
	for i := range m.asks {
		a := &m.asks[i]
		at, _ := regions.index(a.region)
		dst = append(binary.BigEndian.AppendUint64(append(dst, at), uint64(a.account)), byte(a.pool.pool))
		dst = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(dst, math.Float64bits(a.demand)), math.Float64bits(a.rate))
		dst = binary.BigEndian.AppendUint64(dst, uint64(a.left))
	}
	return dst
}

// rate reads a number of requests a second, which may be infinite.
func (r *reader) rate() float64 {
	f := math.Float64frombits(r.u64())
	if !(f >= 0) || math.Signbit(f) {
		r.bad = true
		return 0
	}
	return f
}

// span reads a time of at most leaseLeftMax.
func (r *reader) span() int64 {
	n := r.u64()
	r.bad = r.bad || n > uint64(leaseLeftMax)
	return int64(n)
}

func parseLeaseMessage(b []byte) (*leaseMessage, error) {
	r := &reader{b: b}
	m := &leaseMessage{epoch: r.u64(), complete: r.flag()}
	regions := r.regions()
	n := r.u16()
	if n > LeaseAsksMax || n*leaseAskMin > len(r.b) {
		return nil, errFrame
	}
	m.asks = make([]leaseAsk, n)
	for i := range m.asks {
		m.asks[i] = leaseAsk{pool: pool{r.region(regions), r.account(), ratelimit.Pool(r.u8())}, demand: r.rate(), rate: r.rate(), left: r.span()}
		r.bad = r.bad || m.asks[i].pool.pool >= ratelimit.PoolsMax
	}
	if !r.end() {
		return nil, errFrame
	}
	return m, nil
}

func appendLeaseAnswer(dst []byte, a *leaseAnswer) []byte {
	dst = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint64(dst, a.epoch), uint16(len(a.shares)))
	for _, s := range a.shares {
		dst = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(dst, math.Float64bits(s.rate)), uint64(s.left))
	}
	return dst
}

func parseLeaseAnswer(b []byte) (*leaseAnswer, error) {
	r := &reader{b: b}
	a := &leaseAnswer{epoch: r.u64()}
	n := r.u16()
	if n > LeaseAsksMax || n*16 > len(r.b) {
		return nil, errFrame
	}
	a.shares = make([]leaseShare, n)
	for i := range a.shares {
		a.shares[i] = leaseShare{r.rate(), r.span()}
	}
	if !r.end() {
		return nil, errFrame
	}
	return a, nil
}

// Uses are last uses of keys that a node tells, and since when it knows all of its own, in seconds since 1970.
type Uses struct {
	Start   int64
	Entries []lastuse.Entry
}

func appendUses(dst []byte, u *Uses) []byte {
	var regions regionList
	for i := range u.Entries {
		regions.index(u.Entries[i].Region)
	}
	dst = binary.BigEndian.AppendUint16(regions.append(binary.BigEndian.AppendUint64(dst, uint64(u.Start))), uint16(len(u.Entries)))
	for i := range u.Entries {
		e := &u.Entries[i]
		at, _ := regions.index(e.Region)
		dst = append(binary.BigEndian.AppendUint64(append(dst, at), uint64(e.Account)), e.ID.UUID[:]...)
		dst = append(appendFlag(dst, e.ID.MultiRegion), byte(e.Operation))
		dst = append(append(binary.BigEndian.AppendUint64(dst, uint64(e.Seconds)), e.EventID[:]...), e.RequestID[:]...)
	}
	return dst
}

func parseUses(b []byte) (*Uses, error) {
	r := &reader{b: b}
	u := &Uses{Start: int64(r.u64())}
	regions := r.regions()
	n := r.u16()
	if n > UsesMax || n*useLen > len(r.b) {
		return nil, errFrame
	}
	u.Entries = make([]lastuse.Entry, n)
	for i := range u.Entries {
		e := &u.Entries[i]
		e.Region, e.Account = r.region(regions), r.account()
		copy(e.ID.UUID[:], r.take(16))
		e.ID.MultiRegion = r.flag()
		e.Operation, e.Seconds = lastuse.Operation(r.u8()), int64(r.u64())
		copy(e.EventID[:], r.take(16))
		copy(e.RequestID[:], r.take(16))
		r.bad = r.bad || !e.Operation.Valid()
	}
	if !r.end() {
		return nil, errFrame
	}
	return u, nil
}
