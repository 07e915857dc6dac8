package lastuse

import (
	"bytes"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/uuid"
)

// Operation is a cryptographic operation.
type Operation uint8

// operations are the service model's KeyLastUsageTrackingOperation. Their positions are in the file: new ones go to the end.
var operations = [...]string{
	"", "Decrypt", "DeriveSharedSecret", "Encrypt", "GenerateDataKey", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext",
	"GenerateDataKeyWithoutPlaintext", "GenerateMac", "ReEncrypt", "Sign", "Verify", "VerifyMac", "Encapsulate", "Decapsulate",
}

// String is the operation's name.
func (o Operation) String() string { return operations[o] }

// Valid reports whether o is one of those that this version knows.
func (o Operation) Valid() bool { return o > 0 && int(o) < len(operations) }

func operationOf(name []byte) Operation {
	for i := 1; i < len(operations); i++ {
		if string(name) == operations[i] {
			return Operation(i)
		}
	}
	return 0
}

// event is what a record says of a use.
type event struct {
	use  Use
	keys [2]keyid.Ref // borrow the record; ReEncrypt has two
	n    int
}

var (
	beforeTime       = []byte(`},"eventTime":"`)
	kmsSource        = []byte(`","eventSource":"kms.amazonaws.com","eventName":"`)
	xksSource        = []byte(`","eventSource":"xks-proxy.keyplane","eventName":"`) // use of a key as an external key
	beforeError      = []byte(`,"errorCode":"`)
	beforeParameters = []byte(`,"requestParameters":`)
	beforeElements   = []byte(`,"responseElements":`)
	beforeAdditional = []byte(`,"additionalEventData":`)
	beforeRequestID  = []byte(`,"requestID":"`)
	beforeEventID    = []byte(`","eventID":"`)
	beforeResources  = []byte(`,"resources":[`)
	readOnlyTrue     = []byte(`","readOnly":true`)
	beforeARN        = []byte(`,"ARN":"`)
)

const timeLen = len("2006-01-02T15:04:05Z")

// scan reads a record, false for one that is no successful use of a key. It goes by the order of members that package cloudtrail writes, and by
// what a quote inside a text is: always escaped. So what is looked for in front of requestParameters cannot be in a text, and the objects behind
// it, whose members clients name, are skipped by their brackets.
func scan(record []byte, e *event) bool {
	at, b, ok := timeOf(record)
	if !ok {
		return false
	}
	b, found := bytes.CutPrefix(b, kmsSource)
	if !found {
		if b, found = bytes.CutPrefix(b, xksSource); !found {
			return false
		}
	}
	i := bytes.IndexByte(b, '"')
	if i < 0 {
		return false
	}
	if e.use.Operation = operationOf(b[:i]); e.use.Operation == 0 {
		return false
	}
	e.use.Seconds = at
	j := bytes.Index(b[i:], beforeParameters)
	if j < 0 || bytes.Contains(b[i:i+j], beforeError) {
		return false
	}
	if b = skip(b[i+j+len(beforeParameters):]); b == nil {
		return false
	}
	if b, found = bytes.CutPrefix(b, beforeElements); !found {
		return false
	}
	if b = skip(b); b == nil {
		return false
	}
	if rest, found := bytes.CutPrefix(b, beforeAdditional); found {
		if b = skip(rest); b == nil {
			return false
		}
	}
	if b, found = bytes.CutPrefix(b, beforeRequestID); !found || len(b) < uuid.Len || !uuid.Parse(&e.use.RequestID, b[:uuid.Len]) {
		return false
	}
	if b, found = bytes.CutPrefix(b[uuid.Len:], beforeEventID); !found || len(b) < uuid.Len || !uuid.Parse(&e.use.EventID, b[:uuid.Len]) {
		return false
	}
	if b, found = bytes.CutPrefix(b[uuid.Len:], readOnlyTrue); !found {
		return false
	}
	if b, found = bytes.CutPrefix(b, beforeResources); !found {
		return false
	}
	return e.resources(b)
}

// timeOf reads the eventTime of a record, in seconds since 1970, and returns what is behind it.
func timeOf(record []byte) (at int64, rest []byte, ok bool) {
	i := bytes.Index(record, beforeTime)
	if i < 0 || len(record)-i < len(beforeTime)+timeLen {
		return 0, nil, false
	}
	b := record[i+len(beforeTime):]
	at, ok = seconds(b[:timeLen])
	return at, b[timeLen:], ok
}

// resources reads the key ARNs of the list that has begun.
func (e *event) resources(b []byte) bool {
	e.n = 0
	for e.n < len(e.keys) && len(b) > 0 && b[0] == '{' {
		i := bytes.Index(b, beforeARN)
		if i < 0 {
			return false
		}
		arn := b[i+len(beforeARN):]
		j := bytes.IndexByte(arn, '"')
		if j < 0 {
			return false
		}
		if ref, fault := keyid.Parse(arn[:j]); fault == keyid.None && ref.Kind == keyid.KeyARN {
			e.keys[e.n] = ref
			e.n++
		}
		b = bytes.TrimPrefix(bytes.TrimPrefix(arn[j:], []byte(`"}`)), []byte(`,`))
	}
	return e.n > 0
}

// skip returns what is behind a null or an object, nil if there is neither.
func skip(b []byte) []byte {
	if rest, ok := bytes.CutPrefix(b, []byte("null")); ok {
		return rest
	}
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			// To the quote that ends the text: one behind an even number of backslashes.
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth <= 0 {
				return b[i+1:]
			}
		}
	}
	return nil
}

// seconds reads 2006-01-02T15:04:05Z as seconds since 1970.
func seconds(s []byte) (int64, bool) {
	const form = "0000-00-00T00:00:00Z"
	var n [6]int64 // year, month, day, hour, minute, second
	field := 0
	for i, c := range s {
		switch {
		case form[i] == '0' && c-'0' < 10:
			n[field] = n[field]*10 + int64(c-'0')
		case form[i] == c && form[i] != '0':
			field++
		default:
			return 0, false
		}
	}
	y, m, d := n[0], n[1], n[2]
	if m < 1 || m > 12 || d < 1 || d > 31 || n[3] > 23 || n[4] > 59 || n[5] > 60 {
		return 0, false
	}
	// Days since 1970 (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil), from March of the year 0 on.
	if m <= 2 {
		y, m = y-1, m+12
	}
	if y < 0 {
		return 0, false
	}
	days := 365*y + y/4 - y/100 + y/400 + (153*(m-3)+2)/5 + d - 1 - 719468
	return days*86400 + n[3]*3600 + n[4]*60 + n[5], true
}
