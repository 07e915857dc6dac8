package apitest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/node"
)

// jumps are how far wall clocks are wrong here, both ways.
var jumps = []time.Duration{time.Second, time.Minute, time.Hour, days, 8 * days, 31 * days, 366 * days, 3653 * days}

// jumped is a server whose wall clock is set, with a key for each thing that a date decides.
type jumped struct {
	*Server
	t       *testing.T
	clock   *Clock
	c       *Client
	what    string // for messages
	deleted string // scheduled for deletion in seven days
	rotates string // every 90 days
	holds   string // has imported material for 30 days
	bytes   []byte
	blobs   map[string]string
	began   time.Time
}

// TestClockJumps: a wall clock that is set forward or back, by a second or by ten years, and right again or not, destroys nothing before its waiting period has been
// seen to pass, rotates nothing twice, and leaves no schedule in a far future. Material that has expired by a clock that was ahead is there again.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	began := time.Now()
	clock := NewClock(time.Date(2040, 6, 1, 12, 0, 0, 0, time.UTC))
	s := Start(t, WithClock(clock), func(c *node.Config) { c.Quotas = "off" })
	tried := 0
	for _, far := range jumps {
		for _, d := range []time.Duration{far, -far} {
			for _, corrected := range []bool{true, false} {
				j := &jumped{Server: s, t: t, clock: clock, c: s.Client(t), blobs: map[string]string{}, began: clock.Now(),
					what: fmt.Sprintf("set by %v, corrected %v", d, corrected)}
				j.prepare(corrected && far >= 31*days)
				j.jump(d)
				if corrected {
					j.jump(-d)
				}
				j.wait(d, corrected)
				tried++
			}
		}
	}
	t.Logf("life: the clock was set %d times by 1 s to 10 years, and corrected in half of the cases: nothing early, nothing twice; %.1f s", tried, time.Since(began).Seconds())
}

// do is one operation that succeeds.
func (j *jumped) do(op string, members map[string]any, v any) {
	j.t.Helper()
	r := j.c.Do(j.t, op, marshal(j.t, members))
	if r.Status != 200 {
		j.t.Fatalf("%s: %s: %s", j.what, op, r.Body)
	}
	if v != nil {
		r.Members(j.t, v)
	}
}

func (j *jumped) prepare(imports bool) {
	j.t.Helper()
	create := func(body map[string]any) string {
		var made struct{ KeyMetadata struct{ KeyId string } }
		j.do("CreateKey", body, &made)
		return made.KeyMetadata.KeyId
	}
	j.deleted, j.rotates = create(map[string]any{}), create(map[string]any{})
	ids := []string{j.rotates}
	j.do("EnableKeyRotation", map[string]any{"KeyId": j.rotates, "RotationPeriodInDays": 90}, nil)
	if imports {
		j.holds, j.bytes = create(map[string]any{"Origin": "EXTERNAL"}), slices.Repeat([]byte{byte(j.clock.Now().Unix())}, 32)
		if r := importTo(j.t, &j.Endpoint, j.holds, j.bytes, j.clock.Now().Add(30*days)); r == nil || r.Status != 200 {
			j.t.Fatalf("%s: %+v", j.what, r)
		}
		ids = append(ids, j.holds)
	}
	for _, id := range ids {
		var out struct{ CiphertextBlob string }
		j.do("Encrypt", map[string]any{"KeyId": id, "Plaintext": encode([]byte(id))}, &out)
		j.blobs[id] = out.CiphertextBlob
	}
	j.do("ScheduleKeyDeletion", map[string]any{"KeyId": j.deleted, "PendingWindowInDays": 7}, nil)
	j.Work(j.t)
}

// jump sets the clock; the workers go by it, time and again.
func (j *jumped) jump(d time.Duration) {
	j.t.Helper()
	j.clock.Jump(d)
	for range 3 {
		j.Work(j.t)
		j.clock.Advance(time.Minute)
	}
	j.pending()
	j.opens(j.rotates)
}

func (j *jumped) state(id string) string {
	j.t.Helper()
	r := j.c.Do(j.t, "DescribeKey", marshal(j.t, map[string]any{"KeyId": id}))
	if r.Type == isNotFound {
		return gone
	}
	var m struct{ KeyMetadata struct{ KeyState string } }
	r.Members(j.t, &m)
	return m.KeyMetadata.KeyState
}

func (j *jumped) pending() {
	j.t.Helper()
	equal(j.t, "the state of the key that is pending deletion, "+j.what, j.state(j.deleted), pendingDeletion)
}

func (j *jumped) opens(id string) {
	j.t.Helper()
	var out struct{ Plaintext string }
	j.do("Decrypt", map[string]any{"CiphertextBlob": j.blobs[id]}, &out)
	equal(j.t, "the old plaintext", out.Plaintext, encode([]byte(id)))
}

func (j *jumped) rotations() int {
	j.t.Helper()
	var list struct{ Rotations []any }
	j.do("ListKeyRotations", map[string]any{"KeyId": j.rotates}, &list)
	return len(list.Rotations)
}

// wait lets the waiting period pass, and looks what was made of the schedules.
func (j *jumped) wait(d time.Duration, corrected bool) {
	j.t.Helper()
	rotated := 0
	if d >= 90*days {
		rotated = 1 // however many periods were missed; a clock that is behind, and right again, rotates nothing
	}
	equal(j.t, "rotations, "+j.what, j.rotations(), rotated)
	var status struct{ NextRotationDate float64 }
	j.do("GetKeyRotationStatus", map[string]any{"KeyId": j.rotates}, &status)
	next := time.UnixMilli(int64(status.NextRotationDate * 1000)).UTC()
	if left := next.Sub(j.clock.Now()); left <= 0 || left > 92*days || corrected && d < 0 && next.Sub(j.began) != 90*days {
		j.t.Errorf("%s: the next rotation is in %v", j.what, left)
	}
	if j.holds != "" {
		equal(j.t, "the state of the key with material, "+j.what, j.state(j.holds), enabled)
		j.opens(j.holds)
	}
	// The waiting period has passed to a minute.
	j.clock.Advance(7*days - 10*time.Minute)
	j.Work(j.t)
	j.pending()
	j.clock.Advance(10 * time.Minute)
	j.Work(j.t)
	switch {
	case j.clock.Now().Before(j.began.Add(7 * days)):
		j.pending() // the date has not come by a clock that is behind
		j.do("CancelKeyDeletion", map[string]any{"KeyId": j.deleted}, nil)
	default:
		equal(j.t, "the state after the waiting period, "+j.what, j.state(j.deleted), gone)
	}
	equal(j.t, "rotations after a week, "+j.what, j.rotations(), rotated)
	j.do("DisableKeyRotation", map[string]any{"KeyId": j.rotates}, nil)
}
