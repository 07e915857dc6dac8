package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
)

// passesMax bounds how often members are asked while a key is made: they come and go meanwhile.
const passesMax = 5

// triesMax bounds how often a member that answers may fail to take its copy.
const triesMax = 2

// NewKey makes an AES-256 key on one member and brings it to every other one that answers, and to two at least: ErrTooFew. Each of them has encrypted the same
// blocks to the same images with its copy. A member that answers, and does not take the key, is an error: a *MemberError. The keys are the copies, one for each
// different root; they have no ID yet. A member that is away is asked too, and waited for as long as AwayTimeout; longer where too few others are there. One that
// comes back while the key is made has it too. images are those of Config.Blocks: the same for the same key. No other step of the making begins when ctx has ended.
func (c *Cluster) NewKey(ctx context.Context) (copies []hsm.Key, images *[blocksLen]byte, err error) {
	n := c.conn.Load()
	if n == nil {
		return nil, nil, ErrDisconnected
	}
	w := work{conn: n, ctx: ctx, began: time.Now(), late: make([]bool, len(n.seats))}
	if err := n.result(w.everywhere()); err != nil {
		w.drop()
		return nil, nil, err
	}
	return w.copies, w.images, nil
}

// Repair brings a key to those members that have come up and have none of its copies. all are the copies and, where added, those that were made; they
// have no ID yet. err says which member did not take it; others may have. No other step begins when ctx has ended.
func (c *Cluster) Repair(ctx context.Context, copies []hsm.Key) (all []hsm.Key, added bool, err error) {
	n := c.conn.Load()
	if n == nil {
		return copies, false, ErrDisconnected
	}
	if !slices.ContainsFunc(n.seats, func(s *seat) bool {
		l := s.link.Load()
		return l != nil && copyOf(copies, l.root) == nil
	}) {
		return copies, false, nil
	}
	w := work{conn: n, ctx: ctx, copies: slices.Clone(copies)}
	up := n.active(ctx, n.here())
	// Those that have it prove it first: the new copies are made from theirs, and compared with them. One that cannot is no matter while another one can.
	var lacking []*seat
	var faults []error
	for _, s := range up {
		if w.lacks(s) {
			lacking = append(lacking, s)
		} else if err := w.bring(s); errors.Is(err, ErrDiffers) {
			return copies, false, &MemberError{s.Name, err}
		} else if err != nil {
			faults = append(faults, &MemberError{s.Name, err})
		}
	}
	if w.images == nil {
		return copies, false, n.result(errors.Join(append(faults, hsm.ErrUnavailable)...))
	}
	faults = nil
	for _, s := range lacking {
		if err := w.bring(s); err != nil {
			faults = append(faults, &MemberError{s.Name, err})
		}
	}
	return w.copies, len(w.copies) > len(copies), n.result(errors.Join(faults...))
}

// work is the making of one key's copies.
type work struct {
	*conn
	ctx    context.Context
	copies []hsm.Key
	images *[blocksLen]byte // nil: no member has proved one yet
	proved []*seat          // whose copies have given the images

	// Of NewKey.
	began time.Time
	late  []bool // of each seat: it was away, and had not come in the time that there is
}

// reachable are the members that answer after the making began, or hardly before this call. Of one that was too late once it is only seen whether it has come.
func (w *work) reachable() []*seat {
	since := time.Now().Add(-awayPause)
	if since.Before(w.began) {
		since = w.began
	}
	up := answering(w.seats, func(s *seat) error {
		i, most := slices.Index(w.seats, s), w.c.cfg.AwayTimeout
		switch {
		case s.here():
			most += w.c.cfg.CallTimeout // it may turn out to be lost
		case w.late[i]:
			most /= 10
		}
		ctx, cancel := context.WithTimeout(w.ctx, most)
		defer cancel()
		_, err := s.lookSince(ctx, since)
		w.late[i] = w.late[i] || ctx.Err() != nil
		return err
	})
	if len(up) < MembersMin {
		up = w.active(w.ctx, w.seats)
	}
	return up
}

// lacks says that there is no copy for the seat's root.
func (w *work) lacks(s *seat) bool {
	l := s.link.Load()
	return l == nil || copyOf(w.copies, l.root) == nil
}

// everywhere brings the key to all members that answer, till they all have it.
func (w *work) everywhere() error {
	tries := map[*seat]int{}
	var last error
	for range passesMax {
		up := w.reachable()
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if len(up) < MembersMin {
			return fmt.Errorf("%w: %d of %d", ErrTooFew, len(up), len(w.seats))
		}
		if !slices.ContainsFunc(w.proved, func(s *seat) bool { return slices.Contains(up, s) }) {
			w.drop() // whoever has it is away: another one is made
		}
		w.ready()
		whole := true
		for _, s := range up {
			if slices.Contains(w.proved, s) && !w.lacks(s) {
				continue
			}
			whole = false
			if err := w.bring(s); err != nil {
				if w.ctx.Err() != nil {
					return w.ctx.Err()
				}
				s.log.Warn("a new key does not come into the HSM", "err", err)
				last = err
				// Whether it is away, or who has the key, the next pass finds out.
				if _, from := errors.AsType[*MemberError](err); from {
					continue
				}
				last = &MemberError{s.Name, err}
				if tries[s]++; tries[s] == triesMax || errors.Is(err, ErrDiffers) {
					return last
				}
			}
		}
		if whole {
			return nil
		}
	}
	if last == nil {
		last = fmt.Errorf("%w: the HSMs come and go", hsm.ErrUnavailable)
	}
	return last
}

// ready has members whose roots are not the others' get ready for keys that are brought to them, or that they give away: it takes them seconds, once. Nobody waits.
func (n *conn) ready() {
	var links []*link
	for _, s := range n.seats {
		links = append(links, s.link.Load())
	}
	for i, l := range links {
		if l == nil || l.prepared.Load() || !slices.ContainsFunc(links, func(other *link) bool { return other != nil && other.root != l.root }) || !l.enter() {
			continue
		}
		if l.prepared.Swap(true) {
			l.leave()
			continue
		}
		s := n.seats[i]
		go func() {
			defer l.leave()
			if _, err := s.wrapping(l); err != nil {
				s.log.Warn("the HSM is not ready for keys that are brought to it: it is tried again with the next", "err", err)
				l.prepared.Store(false)
			}
		}()
	}
}

// drop forgets the key.
func (w *work) drop() {
	for i := range w.copies {
		clear(w.copies[i].Wrapped)
	}
	w.copies, w.images, w.proved = nil, nil, nil
}

// bring has a member prove its copy, and makes that first where there is none: the key itself, if nobody has it, or a copy from one who does. The error is a
// *MemberError where it is another member's.
func (w *work) bring(s *seat) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	l := s.link.Load()
	if l == nil || !l.enter() {
		return hsm.ErrUnavailable
	}
	defer l.leave()
	k := copyOf(w.copies, l.root)
	if k != nil {
		return w.prove(s, l, k)
	}
	var err error
	if len(w.copies) == 0 {
		k, _, err = l.ring.Generate(keyspec.AES256)
	} else {
		k, err = w.carry(s, l)
	}
	if err != nil {
		return err
	}
	if err := w.prove(s, l, k); err != nil {
		clear(k.Wrapped)
		return err
	}
	w.copies = append(w.copies, *k)
	return nil
}

// prove compares the images of a member's copy.
func (w *work) prove(s *seat, l *link, k *hsm.Key) error {
	images, err := w.conn.images(l, k)
	if err != nil {
		return err
	}
	if w.images == nil {
		w.images = images
	} else if *images != *w.images {
		return ErrDiffers
	}
	w.proved = append(w.proved, s)
	return nil
}

// carry makes a copy for the member s from one that has proved its own. The key is in clear in neither's way: it is wrapped for an RSA key that s has made.
func (w *work) carry(s *seat, l *link) (*hsm.Key, error) {
	to, err := s.wrapping(l)
	if err != nil {
		return nil, err
	}
	err = hsm.ErrUnavailable
	for _, from := range w.proved {
		var material []byte
		var by keyspec.Wrapping
		if material, by, err = w.export(from, to); err != nil {
			err = &MemberError{from.Name, err}
			continue
		}
		var k *hsm.Key
		k, _, err = l.ring.Import(keyspec.AES256, to.key, by, material)
		clear(material)
		if err == nil {
			return k, nil
		}
		l.forgetWrapping(to) // the next attempt makes another
		return nil, err
	}
	return nil, err
}

// export wraps the key in the member from, in the first way that both can.
func (w *work) export(from *seat, to *wrapping) (material []byte, by keyspec.Wrapping, err error) {
	l := from.link.Load()
	if l == nil || !l.enter() {
		return nil, 0, hsm.ErrUnavailable
	}
	defer l.leave()
	k := copyOf(w.copies, l.root)
	if k == nil { // it came back as another token
		return nil, 0, hsm.ErrUnavailable
	}
	err = hsm.ErrNotOffered
	for _, by = range to.ways {
		if material, err = l.ring.Export(k, by, to.public); !errors.Is(err, hsm.ErrNotOffered) {
			break
		}
	}
	return material, by, err
}

// wrapping is an RSA key that a member has made for keys to be brought to it. It lives as long as the link, and is kept nowhere else.
type wrapping struct {
	key    *hsm.Key
	public []byte
	ways   []keyspec.Wrapping // in which the member imports
}

// wrapping makes the member's wrapping key, once. The caller is inside.
func (s *seat) wrapping(l *link) (*wrapping, error) {
	l.wrapMu.Lock()
	defer l.wrapMu.Unlock()
	if l.wrap != nil {
		return l.wrap, nil
	}
	ways := make(chan []keyspec.Wrapping, 1)
	if err := s.bounded(l, s.conn.c.cfg.MakeTimeout, func() error {
		var can []keyspec.Wrapping
		for _, way := range []keyspec.Wrapping{keyspec.WrapRSAAES256, keyspec.WrapRSAAES1} {
			// A software token has nothing but this process.
			ok, inside, err := l.token.Imports(keyspec.AES256, way)
			if err != nil {
				return err
			}
			if ok && (inside || l.token.Info().Software) {
				can = append(can, way)
			}
		}
		ways <- can
		return nil
	}); err != nil {
		return nil, err
	}
	w := &wrapping{ways: <-ways}
	if len(w.ways) == 0 {
		return nil, fmt.Errorf("%w: importing AES keys without their being in clear outside", hsm.ErrNotOffered)
	}
	err := s.conn.result(nil)
	if err != nil {
		return nil, err
	}
	if w.key, w.public, err = l.ring.Generate(keyspec.RSA3072); err != nil {
		return nil, err
	}
	l.wrap = w
	return w, nil
}

// forgetWrapping has another wrapping key made when one is needed.
func (l *link) forgetWrapping(w *wrapping) {
	l.wrapMu.Lock()
	defer l.wrapMu.Unlock()
	if l.wrap == w {
		l.wrap = nil
	}
}
