# Two commands do everything on a fresh machine with Go, gcc and make: `make run` and `make test`.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

GO       ?= go
BIN      := bin/keyplane
VERSION  := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -X main.version=$(VERSION)

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 5s
FUZZGUIDED  ?= yes

# Debian packages: PKCS#11 modules and their tools, a real client, OpenSSL for a second opinion, the load generator, the portable AES-GCM.
PACKAGES := softhsm2 libnss3 libnss3-tools libbearssl0 awscli openssl strace wrk

.PHONY: build run demo test life race race-ci invariants alloc differential audit-load tamper key-stores cluster faults faults-ci faults-bugs barrier golden fuzz lint bench quota-keys hsm-test deps ci

build:
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/keyplane

# The main job on the embedded default: no configuration, no packages.
run: build
	./$(BIN) serve

# Creates a key on a fresh SoftHSM token, envelope-encrypts this repository, kill -9, restart, decrypt, compare, load test.
demo: deps build
	$(GO) run ./internal/demo -keyplane $(BIN)

# The two packages that take longest begin first: the processors are not left to one of them in the end.
test: deps
	$(GO) test -shuffle=on -timeout 15m ./internal/apitest ./hsm/p11 ./...

# Five years of rotations and deletions, a thousand random lives of keys against a model, two hundred histories of clients at once, clock jumps, kill -9 at every
# failpoint, and forty times at random under writers: minutes. `make test` does the same with a tenth of the lives and histories and six kills.
life: deps
	$(GO) test -count=1 -timeout 1h -v -run 'FiveYears|LifePrograms|Linearizable|ClockJumps|Failpoints|TestCrash' ./internal/apitest \
		-args -life-programs 1000 -life-histories 200 -crash-rounds 40 | grep -E 'life:|^ok|^FAIL|^panic|^---|_test.go'

# Where goroutines share memory. The rest are functions of their arguments, which the race detector makes slow and has nothing to say about.
RACED := ./batch/... ./cache/... $(patsubst %,./%...,$(filter-out %/testdata/,$(wildcard controlplane/*/))) ./dataplane/... ./hsm ./hsm/cluster ./hsm/hsmtest/... ./ratelimit/... ./internal/audit/... \
	./internal/auditexport/... ./internal/authz ./internal/lastuse ./internal/planes ./internal/planetls ./internal/policy ./internal/sigv4 ./internal/uuid ./internal/xksclient

# All of it; ci leaves out what takes as long again: the control plane's life stories, the soft token's keys, and what drives whole processes and modules.
race: deps
	$(GO) test -race -short -timeout 30m $(RACED) ./controlplane ./hsm/p11 ./hsm/softtoken ./loadtest/... ./internal/apitest ./internal/node

race-ci: deps
	$(GO) test -race -short -timeout 20m $(RACED)

invariants: deps
	$(GO) test -short -tags invariants -timeout 10m ./batch/... ./cache/... ./dataplane/... ./hsm ./hsm/softtoken ./internal/apitest ./internal/invariants

# Allocations on the hot path, counted as totals: 100 000 requests of each kind on the soft token and on SoftHSM. `make test` sends a fifth.
alloc: deps
	$(GO) test -count=1 -run Alloc -v ./dataplane -args -alloc.requests 100000 | grep -E 'alloc|^ok|^FAIL|^panic|^---'
	$(GO) test -count=1 -run Alloc -v ./batch ./cache ./controlplane ./hsm/... ./internal/... ./loadtest ./ratelimit | grep -E 'alloc|^ok|^FAIL|^panic|^---'

# Ten million questions of who may do what, to both evaluators: minutes. `make test` asks twenty thousand.
differential:
	$(GO) test -count=1 -timeout 2h -v -run Differential ./internal/authz -args -differential 10000000 | grep -E 'differential|^ok|^FAIL|^---'

# Every answer has its audit record, in a minute of load with a kill -9 in the middle. `make test` takes four seconds.
audit-load: deps
	$(GO) test -count=1 -v -run TestAuditKilled ./internal/apitest -args -audit-load 60s | grep -E 'answers|^ok|^FAIL|^---'

# Ten thousand random changes of an audit log, all of which `keyplane audit verify` has to find: two minutes. `make test` makes 1500.
tamper:
	$(GO) test -count=1 -timeout 1h -v -run 'Tampering|VerifySpeed' ./internal/audit -args -tamperings 10000 | grep -E 'tamper|record|^ok|^FAIL|^---'

# Custom key stores: HSMs that come and go under load, proxies that are slow, dead or wrong, and how little keys of the default store mind. A machine that does nothing
# else is wanted: the last is a ratio of latencies.
key-stores: deps
	$(GO) test -count=1 -v -run 'CloudHSM|BadProxy|BesideBadProxy' ./internal/apitest -args -bad-proxy-rounds 8 | grep -E 'requests|bad proxy|badproxy_test|^ok|^FAIL|^---'

# Three etcd members, two control planes and three data nodes, each with a SoftHSM token of its own that has the same roots, on this machine until it is interrupted.
cluster: deps build
	$(GO) run ./internal/cluster/start -keyplane $(BIN)

# Every kind of fault ten times, in a cluster of processes, under clients that verify: half an hour. FAULTFLAGS='-seed N' repeats a run. faults-ci is its short form, for CI: eight kinds,
# three times each. faults-bugs proves that planted bugs are found.
faults: deps
	$(GO) run ./internal/faults -split -injections 10 -trials 6 -histories 200 -o bin/faults.json $(FAULTFLAGS)

faults-ci: deps
	$(GO) run ./internal/faults -split -short -injections 3 -histories 10 -o bin/faults.json $(FAULTFLAGS)

faults-bugs: deps
	$(GO) run ./internal/faults -bugs $(FAULTFLAGS)

# Ten thousand changes over a real etcd cluster under faults, none of which may be missed by a process that answers, and how long a change takes: five minutes of a machine
# that does nothing else.
barrier:
	$(GO) test -count=1 -v -run 'InForce|Latency' -timeout 20m ./controlplane/barrier -args -barrier.trials 10000 -barrier.figures

# Rewrites the golden files; read the diff.
golden:
	$(GO) test -count=1 -run Golden ./dataplane -update
	git diff --stat -- dataplane/testdata

# Every fuzz target for FUZZTIME. Crashers land in testdata/fuzz.
fuzz: deps
	GO='$(GO)' FUZZTIME='$(FUZZTIME)' FUZZGUIDED='$(FUZZGUIDED)' .ci/fuzz

lint:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then echo "gofmt: $$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) mod tidy -diff
	CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/keyplane

# Ratios to the floor, in one session; forty minutes, results in bench/results. BENCHFLAGS='-rounds 1 -tables floor' for a quick look,
# BENCHFLAGS=-check to fail where a promise is missed.
bench: deps build
	$(GO) build -o bin/bench ./bench
	./bin/bench -keyplane $(BIN) $(BENCHFLAGS)

# 100 000 keys in one account, made over the API: the next one is refused, lists, latency and start with as many. Some minutes.
quota-keys: deps build
	$(GO) build -o bin/bench ./bench
	./bin/bench -keyplane $(BIN) -tables quotakeys -rounds 1 -check $(BENCHFLAGS)

# The conformance suite of hsm.Token on the soft token, SoftHSM and NSS softokn.
hsm-test: deps
	$(GO) test -count=1 -v -run 'Conformance|Token' ./hsm/... | grep -E '^(---|===|ok|FAIL|PASS|panic)' | grep -v '=== '

deps:
	@missing=; for p in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	fi

# What alloc counts, test counts too; and the race detector's builds check invariants (internal/invariants), in more packages than the target invariants.
ci: FUZZTIME = 1s
ci: FUZZGUIDED = no
ci: deps lint build test race-ci fuzz demo
	$(MAKE) bench BENCHFLAGS='-rounds 1 -each 2s -tables floor'
