package dataplane

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/planted"
)

// region is one of the Regions that the server is of. Keys, aliases, grants and quotas are of one Region each, and a request is about those of the
// Region that it was signed for. Principals and what they are allowed are of none.
type region struct {
	name, partition string
	index           int // in Config.Regions
}

// regionsMax is because the index is a byte of names in the caches.
const regionsMax = 256

func newRegions(names []string) ([]region, error) {
	if len(names) == 0 || len(names) > regionsMax {
		return nil, errors.New("dataplane: 1 to 256 Regions are needed")
	}
	list := make([]region, len(names))
	for i, name := range names {
		if name == "" || slices.Contains(names[:i], name) {
			return nil, errors.New("dataplane: a Region has no name, or that of another")
		}
		list[i] = region{name: name, partition: keyid.Partition(name), index: i}
	}
	return list, nil
}

// region is the one of that name, nil if the server is not of it. What sigv4 hands out is the very string, so that this compares pointers.
func (s *Server) region(name string) *region {
	for i := range s.regions {
		if s.regions[i].name == name {
			return &s.regions[i]
		}
	}
	return nil
}

// keyNameLen is the length of names in the cache of keys. Names of grants begin with one.
const keyNameLen = 8 + 1 + 16

// appendOwner begins a name in a cache: Region (1) || account (7), which has 40 bits.
func (at *region) appendOwner(dst []byte, a keyid.Account) []byte {
	return binary.BigEndian.AppendUint64(dst, uint64(at.index)<<56|uint64(a))
}

func (at *region) appendKeyName(dst []byte, a keyid.Account, id keyid.ID) []byte {
	dst = at.appendOwner(dst, a)
	form := byte(0)
	if id.MultiRegion {
		form = 1
	}
	dst = append(dst, form)
	return append(dst, id.UUID[:]...)
}

func (at *region) appendAliasName(dst []byte, a keyid.Account, name []byte) []byte {
	return append(at.appendOwner(dst, a), name...)
}

// KeyChanged makes every view of the key in that Region that was read until now unreachable, also that there is none: the control plane calls it
// between commit and reply. Of a Region that the server is not of there is nothing to forget; so it is with the others.
func (s *Server) KeyChanged(region string, a keyid.Account, id keyid.ID) {
	if at := s.region(region); at != nil && !planted.Is(planted.EpochIgnored) {
		s.keys.Invalidate(at.appendKeyName(nil, a, id))
	}
}

// AliasChanged is KeyChanged for an alias, "alias/…".
func (s *Server) AliasChanged(region string, a keyid.Account, name string) {
	if at := s.region(region); at != nil && !planted.Is(planted.AliasCached) {
		s.aliases.Invalidate(at.appendAliasName(nil, a, []byte(name)))
	}
}

// AllChanged is KeyChanged for everything: what changed is not known.
func (s *Server) AllChanged() {
	s.keys.InvalidateAll()
	s.aliases.InvalidateAll()
	s.grants.InvalidateAll()
}

// GrantsChanged is KeyChanged for the grants of a key to one grantee, a name of authz.Caller.Grantees. "" is for all of them, and forgets those of every key: that
// does not happen often.
func (s *Server) GrantsChanged(region string, a keyid.Account, id keyid.ID, grantee string) {
	at := s.region(region)
	switch {
	case at == nil || planted.Is(planted.GrantCached):
	case grantee == "":
		s.grants.InvalidateAll()
	default:
		s.grants.Invalidate(append(at.appendKeyName(nil, a, id), grantee...))
	}
}

// GrantMade is GrantsChanged where a grant was made and nothing else changed.
func (s *Server) GrantMade(region string, a keyid.Account, id keyid.ID, grantee string, g *authz.Grant) {
	s.changeGrants(region, a, id, grantee, func(old *authz.GrantSet) *authz.GrantSet { return old.With(*g) })
}

// GrantRemoved is GrantsChanged where a grant was removed and nothing else changed.
func (s *Server) GrantRemoved(region string, a keyid.Account, id keyid.ID, grantee, grant string) {
	s.changeGrants(region, a, id, grantee, func(old *authz.GrantSet) *authz.GrantSet { return old.Without(grant) })
}

func (s *Server) changeGrants(region string, a keyid.Account, id keyid.ID, grantee string, change func(*authz.GrantSet) *authz.GrantSet) {
	at := s.region(region)
	if at == nil || planted.Is(planted.GrantCached) {
		return
	}
	s.grants.Change(append(at.appendKeyName(nil, a, id), grantee...), func(old *authz.GrantSet) (*authz.GrantSet, int64, error) {
		set := change(old)
		return set, set.Size(), nil
	})
}
