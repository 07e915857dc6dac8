package apitest

import (
	"flag"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keyplane/keyplane/internal/node"
)

var longReplication = flag.Bool("replication-long", false, "TestReplicationFailpoints kills at every failpoint in every operation that comes by")

// replicatedPair are two sites whose processes have ended, to make copies of: a has the primary of each key.
type replicatedPair struct {
	a, b    *site
	shared  string              // has a replica in b, and has been primary there
	single  string              // has no replica yet
	blobs   map[string][]string // ciphertexts by key ID
	program string              // keyplane with failpoints
}

// prepareReplicated makes them in this process.
func prepareReplicated(t *testing.T) *replicatedPair {
	t.Helper()
	s, other := twoServers(t, func(c *node.Config) { c.Quotas = "off" })
	p := &replicatedPair{blobs: map[string][]string{}, program: build(t, "failpoints")}
	as := func(s *Server) *site {
		return &site{Process: &Process{Endpoint: s.Endpoint}, region: s.cfg.Region, dir: s.cfg.DataDir, args: []string{"--quotas", "off"}}
	}
	p.a, p.b = as(s), as(other)
	for _, id := range []*string{&p.shared, &p.single} {
		var made struct{ KeyMetadata struct{ KeyId string } }
		p.a.ask(t, &made, "CreateKey", map[string]any{"MultiRegion": true})
		*id = made.KeyMetadata.KeyId
		p.blobs[*id] = []string{p.a.seal(t, *id)}
	}
	p.a.ask(t, &struct{}{}, "ReplicateKey", map[string]any{"KeyId": p.shared, "ReplicaRegion": west})
	agreed(t, p.a, p.b, p.shared)
	// There and back: then the primary is known to know that all is done, and the processes that start on this have nothing to replicate.
	for _, to := range []*site{p.b, p.a} {
		from := p.a
		if to == p.a {
			from = p.b
		}
		p.promote(t, from, to)
		agreed(t, to, from, p.shared)
	}
	s.Close()
	other.Close()
	return p
}

// The operations that processes are killed in. They return the reply, nil if the process that was asked died of it.
func (p *replicatedPair) replicate(t *testing.T, a, _ *site) *Reply {
	return a.ask(t, nil, "ReplicateKey", map[string]any{"KeyId": p.single, "ReplicaRegion": west})
}

func (p *replicatedPair) rotate(t *testing.T, a, _ *site) *Reply {
	return a.ask(t, nil, "RotateKeyOnDemand", map[string]any{"KeyId": p.shared})
}

func (p *replicatedPair) promote(t *testing.T, from, to *site) *Reply {
	return from.ask(t, nil, "UpdatePrimaryRegion", map[string]any{"KeyId": p.shared, "PrimaryRegion": to.region})
}

// operation is one that processes are killed in.
type operation struct {
	name     string
	do       func(p *replicatedPair, t *testing.T, a, b *site) *Reply
	key      func(*replicatedPair) string
	versions int    // of the key, in the end
	there    bool   // the primary is in the other Region in the end
	again    string // the exception of the same request once more, "" if it is done once more
}

func (p *replicatedPair) theShared() string { return p.shared }
func (p *replicatedPair) theSingle() string { return p.single }

var (
	replicates = operation{"ReplicateKey", (*replicatedPair).replicate, (*replicatedPair).theSingle, 1, false, "AlreadyExistsException"}
	rotates    = operation{"RotateKeyOnDemand", (*replicatedPair).rotate, (*replicatedPair).theShared, 3, false, ""}
	promotes   = operation{"UpdatePrimaryRegion", (*replicatedPair).promote, (*replicatedPair).theShared, 1, true, "UnsupportedOperationException"}
)

// replicationKills are all failpoints of replication, with the operations that come by.
var replicationKills = []struct {
	failpoint string
	receiver  bool // it is the other Region's process that comes by
	during    operation
	both      bool // when it has died, the other process is killed too, and this one is alone for a while
	long      bool // only with -replication-long
}{
	{"replicate.intended", false, replicates, false, false},
	{"replicate.created", false, replicates, false, false},
	{"replicate.making", true, replicates, false, false},
	{"sync.wrapped", false, replicates, true, true},
	{"sync.taken", false, replicates, false, true},
	{"sync.installed", true, replicates, false, false},
	{"sync.wrapped", false, rotates, false, false},
	{"sync.taken", false, rotates, true, false},
	{"sync.installed", true, rotates, false, true},
	{"promote.intended", false, promotes, false, false},
	{"promote.frozen", false, promotes, true, false},
	{"promote.promoted", false, promotes, false, false},
	{"promote.promoted", false, promotes, true, true},
	{"promote.taken", true, promotes, false, false},
	{"sync.taken", true, promotes, false, true}, // the new primary tells the old one
	{"sync.installed", false, promotes, false, true},
}

// TestReplicationFailpoints kills one of two processes that replicate at every failpoint that replication has, some with the other one, and looks at what comes
// of it when both are there again: one primary, the replica Enabled, the same versions, and all ciphertexts open in both Regions. What survives
// works all the time, and what was asked for can be asked for again.
func TestReplicationFailpoints(t *testing.T) {
	t.Parallel()
	began := time.Now()
	var missing []string
	for _, name := range failpoints(t) {
		if isReplicating(name) {
			missing = append(missing, name)
		}
	}
	for _, k := range replicationKills {
		missing = slices.DeleteFunc(missing, func(name string) bool { return name == k.failpoint })
	}
	if len(missing) > 0 {
		t.Errorf("nothing comes by %v", missing)
	}
	if testing.Short() {
		t.Skip("it builds the command once more")
	}
	p := prepareReplicated(t)
	tried := 0
	t.Run("at", func(t *testing.T) {
		for _, k := range replicationKills {
			if k.long && !*longReplication {
				continue
			}
			tried++
			name := k.failpoint + "/" + k.during.name
			if k.both {
				name += "/both"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				p.try(t, k.failpoint, k.receiver, k.both, k.during)
			})
		}
	})
	t.Logf("replication: killed %d times: one primary, the same versions everywhere, nothing lost; %.1f s", tried, time.Since(began).Seconds())
}

func (p *replicatedPair) try(t *testing.T, failpoint string, receiver, both bool, o operation) {
	a, b := p.a.copied(t), p.b.copied(t)
	a.knows(p.b.replicationKey(t, p.program), "http://"+b.listen)
	b.knows(p.a.replicationKey(t, p.program), "http://"+a.listen)
	dies, survives := a, b
	if receiver {
		dies, survives = b, a
	}
	survives.launch(t, p.program, "")
	dies.launch(t, p.program, failpoint)
	a.serve(t)
	b.serve(t)

	id := o.key(p)
	blobs := slices.Clone(p.blobs[id])
	r := o.do(p, t, a, b)
	dies.killed(t)
	if r == nil && receiver {
		t.Error("the caller was not answered by the process that lives")
	}
	if r != nil && r.Status != 200 && r.Type != "DependencyTimeoutException" {
		t.Errorf("%s: %d %s", o.name, r.Status, r.Body)
	}
	if both {
		survives.Kill(t)
		dies.start(t, p.program)
		dies, survives = survives, dies
	}
	switch state := survives.sees(t, id).State; {
	case state == types.KeyStateEnabled || state == types.KeyStateUpdating:
		blobs = append(blobs, survives.seal(t, id))
		survives.open(t, id, blobs...)
	case survives == a || id == p.shared:
		t.Errorf("the key is %q where it is left", state)
	}
	dies.start(t, p.program)

	primary, replica := a, b
	if o.there {
		primary, replica = b, a
	}
	check := func(versions int) {
		t.Helper()
		eventually(t, "the operation is done", func() bool { return len(primary.sees(t, id).Rotations) >= versions })
		equal(t, "versions", agreed(t, primary, replica, id), versions)
		for _, s := range []*site{a, b} {
			blobs = append(blobs, s.seal(t, id))
		}
		a.open(t, id, blobs...)
		b.open(t, id, blobs...)
	}
	once := o.versions
	if o.again == "" {
		once--
	}
	check(once)
	again := o.do(p, t, a, b)
	if again == nil || again.Type != o.again {
		t.Fatalf("%s again: %+v", o.name, again)
	}
	check(o.versions)
	if o.there { // and it can come back
		if r := p.promote(t, b, a); r == nil || r.Status != 200 {
			t.Fatalf("UpdatePrimaryRegion back: %+v", r)
		}
		primary, replica = a, b
		check(o.versions)
	}
	// What is shared can be changed, and the replica hears of it: nothing is left half done.
	if r := primary.ask(t, nil, "EnableKeyRotation", map[string]any{"KeyId": id, "RotationPeriodInDays": 100}); r == nil || r.Status != 200 {
		t.Fatalf("EnableKeyRotation: %+v", r)
	}
	eventually(t, "the replica knows the schedule", func() bool {
		var status struct {
			KeyRotationEnabled   bool
			RotationPeriodInDays int
		}
		replica.ask(t, &status, "GetKeyRotationStatus", map[string]any{"KeyId": id})
		return status.KeyRotationEnabled && status.RotationPeriodInDays == 100
	})
}
