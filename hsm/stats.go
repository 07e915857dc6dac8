package hsm

// Stats counts since NewShards.
type Stats struct {
	Slots  []SlotStats  // in token order
	Shards []ShardStats // by shard number
}

// SlotStats is one token's.
type SlotStats struct {
	Info        TokenInfo
	Root        RootID
	State       State
	Serving     int // shards that serve now
	Stuck       int // calls that have not come back
	Canaries    uint64
	Quarantines uint64
	Resets      uint64
	Hangs       uint64
	Alarms      uint64 // logged or suppressed
}

// ShardStats is one session seat's.
type ShardStats struct {
	Slot     int // index into Slots
	Serving  bool
	Rounds   uint64 // crossings, failed ones too
	Jobs     uint64
	Blocks   uint64 // AES blocks of jobs
	Random   uint64 // bytes drawn from the token
	Failures uint64 // crossings that failed
	Retries  uint64 // rounds run again here, and jobs sent elsewhere
	Replaced uint64 // sessions replaced
}

// Stats reads the counters; the numbers are each exact but not of one instant.
func (s *Shards) Stats() Stats {
	var t Stats
	for _, sl := range s.slots {
		st := SlotStats{
			Info: sl.info, Root: sl.root, State: sl.state.Load(), Stuck: int(sl.stuck.Load()),
			Canaries: sl.canaries.Load(), Quarantines: sl.quarantines.Load(), Resets: sl.resets.Load(),
			Hangs: sl.hangs.Load(), Alarms: sl.alarms.Load(),
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
