package hsm

// Stats counts since NewShards.
type Stats struct {
	Slots  []SlotStats  `json:"slots"`  // in token order
	Shards []ShardStats `json:"shards"` // by shard number
}

// SlotStats is one token's.
type SlotStats struct {
	Info        TokenInfo `json:"info"`
	Root        RootID    `json:"root"`
	State       State     `json:"state"`
	Serving     int       `json:"serving"` // shards that serve now
	Stuck       int       `json:"stuck"`   // calls that have not come back
	Canaries    uint64    `json:"canaries"`
	Quarantines uint64    `json:"quarantines"`
	Resets      uint64    `json:"resets"`
	Hangs       uint64    `json:"hangs"`
	Alarms      uint64    `json:"alarms"`     // logged or suppressed
	Verified    uint64    `json:"verified"`   // rounds of its shards that were done again elsewhere, with the same result
	Unverified  uint64    `json:"unverified"` // rounds that should have been and could not be
	Lies        uint64    `json:"lies"`       // results that another session contradicts
}

// ShardStats is one session seat's.
type ShardStats struct {
	Slot     int    `json:"slot"` // index into Slots
	Serving  bool   `json:"serving"`
	Rounds   uint64 `json:"rounds"` // crossings, failed ones too
	Jobs     uint64 `json:"jobs"`
	Blocks   uint64 `json:"blocks"`   // AES blocks of jobs
	Random   uint64 `json:"random"`   // bytes drawn from the token
	Failures uint64 `json:"failures"` // crossings that failed
	Retries  uint64 `json:"retries"`  // rounds run again here, and jobs sent elsewhere
	Replaced uint64 `json:"replaced"` // sessions replaced
}

// Stats reads the counters; the numbers are each exact but not of one instant.
func (s *Shards) Stats() Stats {
	var t Stats
	for _, sl := range s.slots {
		st := SlotStats{
			Info: sl.info, Root: sl.root, State: sl.state.Load(), Stuck: int(sl.stuck.Load()),
			Canaries: sl.canaries.Load(), Quarantines: sl.quarantines.Load(), Resets: sl.resets.Load(),
			Hangs: sl.hangs.Load(), Alarms: sl.alarms.Load(),
			Verified: sl.verified.Load(), Unverified: sl.unverified.Load(), Lies: sl.lies.Load(),
		}
		for _, sh := range sl.shards {
			if sh.serving() {
				st.Serving++
			}
		}
		t.Slots = append(t.Slots, st)
	}
	for _, sh := range s.shards {
		st := ShardStats{
			Serving: sh.serving(), Rounds: sh.rounds.Load(), Jobs: sh.jobs.Load(), Blocks: sh.blocks.Load(),
			Random: sh.random.Load(), Failures: sh.failures.Load(), Retries: sh.retries.Load(), Replaced: sh.replaced.Load(),
		}
		for i, sl := range s.slots {
			if sl == sh.slot {
				st.Slot = i
			}
		}
		t.Shards = append(t.Shards, st)
	}
	return t
}
