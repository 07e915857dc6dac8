package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/keyplane/keyplane/internal/cluster"
	"github.com/keyplane/keyplane/internal/planted"
)

// bug is a planted bug, and the run that has to find it.
type bug struct {
	name  string
	what  string
	split bool     // it is in what only a cluster has
	only  string   // role of the processes that have it; "": all
	kinds []string // of faults that bring it out; none where it shows without
}

// bugs are all planted bugs.
var bugs = []bug{
	{name: planted.AliasCached, what: "a moved or deleted alias stays in the cache"},
	{name: planted.GrantCached, what: "a revoked grant stays in the cache"},
	{name: planted.EpochIgnored, what: "a changed key stays in the cache"},
	{name: planted.ResultSwapped, what: "Decrypt returns another call's result"},
	{name: planted.WriteLost, what: "some writes are acknowledged and not written"},
	{name: planted.AuditLost, what: "some records are not written"},
	{name: planted.AuditAfterReply, what: "the reply leaves before its record is written", kinds: []string{"data node killed"}},
	{name: planted.SignatureIgnored, what: "a control plane believes a node that a request was signed", split: true, only: "control"},
	{name: planted.BarrierAtOnce, what: "a change is answered before other nodes have applied it", split: true, kinds: []string{"latency from data nodes to etcd", "data node frozen for longer than a lease"}},
	{name: planted.LeaseForever, what: "a node goes on answering from a view of any age", split: true, kinds: []string{"data node cut off from etcd"}},
	{name: planted.FollowerSkips, what: "the follower drops some of the changes", split: true},
	{name: planted.StaleLatest, what: "the newest revision is asked of one etcd member, which may be cut off", split: true, kinds: []string{"data node reaches only an etcd member that is cut off"}},
	{name: planted.CreateRepeated, what: "a change whose answer was lost is sent to another control plane", split: true, kinds: []string{"control plane killed", "connections from data nodes to control planes reset"}},
	{name: planted.DeletedEarly, what: "keys are destroyed a day before their date"},
}

// bugLoad is for how long clients run at least, where a bug shows at the end.
const bugLoad = 3 * time.Second

// find has a run for each planted bug, and one without any that must find nothing, and prints which invariant found it. keyplane is a build with the tags testclock and
// plantedbugs; "" makes one.
func (o options) find(ctx context.Context, only, keyplane string, say io.Writer) error {
	dir, err := os.MkdirTemp("", "keyplane-bugs")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if keyplane == "" {
		if keyplane, err = cluster.BuildKeyplane(dir, "testclock", "plantedbugs"); err != nil {
			return err
		}
	}
	type line struct{ name, what, by, example string }
	var table []line
	missed := 0
	for _, b := range append([]bug{{name: "none", what: "no bug: nothing is to be found", split: o.split, kinds: []string{"data node killed"}}}, bugs...) {
		if only != "" && only != b.name {
			continue
		}
		began := time.Now()
		of := o
		of.bug, of.bugRole, of.split, of.kinds, of.injections, of.pause = b.name, b.only, b.split || o.split, b.kinds, 3, time.Millisecond
		of.trialsMin = 60
		of.nofaults, of.hold = len(b.kinds) == 0, bugLoad
		p, err := of.do(ctx, false, keyplane, io.Discard)
		l := line{name: b.name, what: b.what, by: "NOT FOUND"}
		if p != nil {
			for _, v := range p.Violations {
				if v.Invariant != unexpected {
					l.by, l.example = v.Invariant, v.Examples[0]
					break
				}
			}
		}
		found := l.by != "NOT FOUND"
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case b.name == "none" && (err != nil || found):
			l.by, missed = fmt.Sprint("WRONGLY FOUND: ", l.by, " ", err), missed+1
		case b.name == "none":
			l.by = "nothing"
		case !found:
			l.by, missed = fmt.Sprint(l.by, " ", err), missed+1
		}
		table = append(table, l)
		fmt.Fprintf(say, "%-18s %5.1f s  %s\n", b.name, time.Since(began).Seconds(), l.by)
	}
	fmt.Fprintf(say, "\n%-18s %-52s %s\n", "planted bug", "what it does", "found by")
	for _, l := range table {
		fmt.Fprintf(say, "%-18s %-52s %s\n", l.name, l.what, l.by)
		if l.example != "" {
			fmt.Fprintf(say, "%-18s   e.g. %s\n", "", l.example)
		}
	}
	if missed > 0 {
		return fmt.Errorf("%d of %d planted bugs were not found, or something was found where there is none", missed, len(table))
	}
	return nil
}
