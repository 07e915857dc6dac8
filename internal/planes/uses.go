package planes

import (
	"context"
	"sync"
	"time"

	"github.com/keyplane/keyplane/internal/lastuse"
)

// usesEvery is how often last uses are told, usesPause how long a control plane that has not taken them is left alone, and usesTimeout how long it may take.
const (
	usesEvery   = 100 * time.Millisecond
	usesPause   = time.Second
	usesTimeout = 5 * time.Second
)

// TellUses tells every control plane the last uses of keys in this node's index, those since it did so before, and all where the control plane is a new process: the
// index is what lasts. It ends with ctx, whose error it returns.
func (c *Client) TellUses(ctx context.Context, x *lastuse.Index) error {
	var all sync.WaitGroup
	for _, t := range c.targets {
		all.Go(func() { c.tellUses(ctx, t, x) })
	}
	all.Wait()
	return ctx.Err()
}

func (c *Client) tellUses(ctx context.Context, t *target, x *lastuse.Index) {
	feed := x.Feed()
	instance, pause := "", usesEvery
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = usesEvery
		at, _ := t.instance.Load().(string)
		if !t.up.Load() || at == "" {
			continue
		}
		if instance != "" && at != instance {
			feed.All()
		}
		for greet := at != instance; greet || feed.Pending(); greet = false { // one at least, for since when all uses are known
			entries, back := feed.Next(UsesMax)
			answered, err := c.sendUses(ctx, t, &Uses{Start: x.Start().Unix(), Entries: entries})
			if err != nil || answered != at { // another process has it already: the next probe says so
				back()
				pause = usesPause
				break
			}
			instance = at
		}
	}
}

func (c *Client) sendUses(ctx context.Context, t *target, u *Uses) (instance string, err error) {
	ctx, cancel := context.WithTimeout(ctx, usesTimeout)
	defer cancel()
	b, _, err := c.send(ctx, t, pathUses, appendUses(nil, u), shortMax)
	return string(b), err
}

// LastUses is what a control plane knows of the last uses of keys at all nodes: a controlplane.LastUses. Its index keeps what nodes have told that are gone.
type LastUses struct {
	*lastuse.Index
	mu     sync.Mutex
	starts map[string]int64 // of nodes that have told, in seconds since 1970
}

// OpenLastUses opens the file at path. After an error, of which the index is empty, all nodes tell again.
func OpenLastUses(path string) (*LastUses, error) {
	x, err := lastuse.Open(path, time.Unix(0, 0)) // it knows all that the nodes do
	return &LastUses{Index: x, starts: map[string]int64{}}, err
}

// Take is ServerConfig.Uses. Audit records have whole seconds: of uses at two nodes within one, either is the last.
func (l *LastUses) Take(node string, u *Uses) error {
	l.Merge(u.Entries)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.starts[node] = u.Start
	return nil
}

// Start is since when every use is known: by each node that has told.
func (l *LastUses) Start() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.starts) == 0 {
		return time.Now().UTC().Truncate(time.Second)
	}
	start := l.Index.Start()
	for _, s := range l.starts {
		if t := time.Unix(s, 0).UTC(); t.After(start) {
			start = t
		}
	}
	return start
}
