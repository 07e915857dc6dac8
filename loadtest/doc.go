// Package loadtest signs KMS requests, sends them to one or more endpoints with the same keys and reports throughput, latency and errors. It is
// the engine behind `keyplane loadtest` and works against any KMS endpoint: keyplane's or AWS's.
//
//	main.go          Main: command line -> run or search -> report and exit status; flags.go: the flags and --help
//	config.go        Config, its bounds, an endpoint's address
//	run.go           Run: set up, connect, warm up, measure, stop
//	  setup.go       what several runs in a row can share
//	    site.go      Region, endpoints and credentials from the AWS chain
//	    keys.go      finds or creates the KMS keys, makes the ciphertexts for Decrypt (the only use of the AWS SDK's client)
//	    operation.go what can be sent
//	    presign.go   one signed request per target and endpoint, signed again before its five minutes are over
//	  worker.go      the hot loop: wait, pick a target, exchange, check, record
//	    schedule.go      when a request is due: as soon as possible (closed loop) or at a rate (open loop) that is constant, a ramp or steps
//	    sleeper.go       waiting for it, to some ten microseconds where the system allows
//	    distribution.go  which key it names
//	    client.go        one keep-alive connection per worker
//	    reply.go         is the answer a good one, and if not, of which kind (kind.go)
//	    recorder.go      counters and histograms; timeline.go: the same by interval
//	search.go        Search: the highest rate that keeps p99 within a bound, by probes that are runs
//	report.go        Report and its JSON; text.go: the same for people, and the progress line; html.go: as a page with plots
//
// What the figures mean. In an open loop (Config.Rate > 0) a request has an intended start, and its latency counts from there, whether
// or not a connection was free: a server that stalls is charged for every request that was due meanwhile. In a closed loop each worker
// sends its next request when the last one is answered, so a stalling server is asked less; reports say which it was. Latency is that of
// requests which started in the measured window and succeeded; throughput is successes whose answer arrived inside the window.
//
// Overload is an open loop that offers more than can be served. The report keeps apart what was offered (due in the window), sent, served,
// refused (answered with an error of the server's, by its type) and failed otherwise. A request is sent late for one of two reasons, which
// are kept apart too: every connection was busy, or the generator itself was late, because its machine was. What had no connection until the
// end of the window is never sent; what the warm-up could not send is given up when the window begins. More connections than are busy make
// offered and sent the same.
//
// A signature covers the body and the date, not the connection, and KMS accepts it for five minutes, so the same signed bytes are sent
// many times: the generator costs one write and one read per request and is rarely what is measured (BenchmarkAgainstWrk). A server still
// does the whole verification for each, because it cannot know the bytes beforehand.
//
// It does not know how a server works inside. Requests go to the endpoints given and nowhere else (no proxy, no redirect); only the AWS
// credential chain may ask elsewhere, for credentials.
//
// Goroutines: Run owns all of them (workers, the one that signs again, the one that draws progress) and has waited for each when it returns.
package loadtest
