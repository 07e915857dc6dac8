package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"
)

// Filter says which records Search yields: those that match every field that is set.
type Filter struct {
	From, To  time.Time // eventTime, From <= t < To
	Principal string    // userIdentity: ARN, principal ID, access key ID, or the ARN of the role of a session
	Key       string    // key ARN of one of the resources, or the key ID at its end
	Region    string    // awsRegion
	EventName string
	ErrorCode string
	Limit     int // records; 0: all
}

// disorder is how far records may be from the order of their eventTime: it is the time of arrival, they are appended when they are answered.
const disorder = 5 * time.Minute

// event is what Search reads of a record.
type event struct {
	EventTime    time.Time `json:"eventTime"`
	Region       string    `json:"awsRegion"`
	EventName    string    `json:"eventName"`
	ErrorCode    string    `json:"errorCode"`
	UserIdentity struct {
		ARN            string `json:"arn"`
		PrincipalID    string `json:"principalId"`
		AccessKeyID    string `json:"accessKeyId"`
		SessionContext struct {
			SessionIssuer struct {
				ARN string `json:"arn"`
			} `json:"sessionIssuer"`
		} `json:"sessionContext"`
	} `json:"userIdentity"`
	Resources []struct {
		ARN string `json:"ARN"`
	} `json:"resources"`
}

// Search yields the records that match, oldest first, until yield returns false. It borrows record. It reads the segments and does not verify them;
// segments whose records are all outside From and To are skipped. A record that is not JSON matches only a Filter without fields.
func Search(ctx context.Context, dir string, f Filter, yield func(record []byte) bool) error {
	firsts, err := liveSegments(dir)
	if err != nil {
		return err
	}
	skip, err := outside(dir, firsts, f)
	if err != nil {
		return err
	}
	found, on := 0, true
	for i, first := range firsts {
		if skip[i] {
			continue
		}
		seen := 0
		err := eachEntry(dir, first, func(_ uint64, entry []byte) bool {
			if seen++; seen%1024 == 0 && ctx.Err() != nil {
				return false
			}
			if f.matches(entry[2:]) {
				found++
				on = yield(entry[2:]) && found != f.Limit
			}
			return on
		})
		switch last := i+1 == len(firsts); {
		case errors.Is(err, fs.ErrNotExist): // retention was faster
		case last && (errors.Is(err, errTorn) || errors.Is(err, errEmpty)): // an append is under way
		case err != nil:
			return err
		}
		if ctx.Err() != nil || !on {
			return ctx.Err()
		}
	}
	return nil
}

// outside says which segments have no record between From and To, going by the first record of each and of the next. Where time went back
// more than disorder, nothing is known.
func outside(dir string, firsts []uint64, f Filter) ([]bool, error) {
	skip := make([]bool, len(firsts))
	if f.From.IsZero() && f.To.IsZero() {
		return skip, nil
	}
	times := make([]time.Time, len(firsts))
	for i, first := range firsts {
		err := eachEntry(dir, first, func(_ uint64, entry []byte) bool {
			var e event
			if json.Unmarshal(entry[2:], &e) == nil {
				times[i] = e.EventTime
			}
			return false
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errTorn) && !errors.Is(err, io.EOF) && !errors.Is(err, errEmpty) {
			return nil, err
		}
	}
	for i, begin := range times {
		var end time.Time
		if i+1 < len(times) {
			end = times[i+1]
		}
		if begin.IsZero() || !end.IsZero() && end.Add(disorder).Before(begin) {
			continue
		}
		skip[i] = !f.To.IsZero() && !begin.Add(-disorder).Before(f.To) || !end.IsZero() && end.Add(disorder).Before(f.From)
	}
	return skip, nil
}

func (f *Filter) matches(record []byte) bool {
	plain := f.From.IsZero() && f.To.IsZero()
	for _, want := range []string{f.Principal, f.Key, f.Region, f.EventName, f.ErrorCode} {
		// A value without characters that JSON may escape is in the record as it is.
		if want != "" && isPlain(want) && !bytes.Contains(record, []byte(want)) && bytes.IndexByte(record, '\\') < 0 {
			return false
		}
		plain = plain && want == ""
	}
	if plain {
		return true
	}
	var e event
	if json.Unmarshal(record, &e) != nil {
		return false
	}
	u := &e.UserIdentity
	return (f.From.IsZero() || !e.EventTime.Before(f.From)) && (f.To.IsZero() || e.EventTime.Before(f.To)) &&
		(f.Region == "" || e.Region == f.Region) && (f.EventName == "" || e.EventName == f.EventName) && (f.ErrorCode == "" || e.ErrorCode == f.ErrorCode) &&
		(f.Principal == "" || slices.Contains([]string{u.ARN, u.PrincipalID, u.AccessKeyID, u.SessionContext.SessionIssuer.ARN}, f.Principal)) &&
		(f.Key == "" || f.namesKey(&e))
}

func (f *Filter) namesKey(e *event) bool {
	for _, r := range e.Resources {
		if r.ARN == f.Key || strings.HasSuffix(r.ARN, ":key/"+f.Key) {
			return true
		}
	}
	return false
}

func isPlain(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e || strings.ContainsRune(`"\/<>&`, r) })
}
