// Package batch lets concurrent callers share one round of work. It knows nothing about keys, HSMs or HTTP.
//
// Rounds form by themselves. There is no worker goroutine and no timer:
//
//	Do(shard, job)
//	  queue is full, batcher closed       → ErrFull, ErrClosed at once; full is also a queue that WaitMax is not enough for
//	  shard idle                          → this caller leads
//	  shard busy                          → wait: the leader runs my job, or hands me the lead
//	lead
//	  yield the processor once            callers that are ready to run queue up behind me
//	  take up to RoundMax jobs            those past their deadline get ErrDeadline and take no room in the round
//	  Run(shard, round)                   outside every lock
//	  wake the round's other callers
//	  jobs left or arrived meanwhile      → the first of them leads the next round; else the shard is idle
//
// What queued while a round ran is the next round, so light load pays no waiting and heavy load batches by itself. The yield is what lets
// rounds grow on few cores: without it a leader ends its round before anyone else could run.
//
// An overload is refused as it comes: a shard knows how long its rounds take under load, so it knows how long its queue will. Whoever was let
// in is served, in order of arrival, by rounds that are full. A few jobs that others wait for come in whatever the wait (Insist).
//
// Every goroutine here belongs to a caller of Do. A job belongs to the batcher from the call of Do to its return, whatever it returns.
package batch
