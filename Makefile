# The words people type. `make help` lists them; what they need is installed by packaging/setup.

# Outside the clone, so that RocksDB (tens of minutes) is compiled once for all clones of this user.
cache := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/larder
export CARGO_TARGET_DIR ?= $(cache)/target

# One profile everywhere: a second one would compile RocksDB a second time.
profile := --release
larder  := $(CARGO_TARGET_DIR)/release/larder

# How long `make soak` soaks, `make jepsen` breaks things, and each fuzz target of `make fuzz` goes on.
SOAK_SECONDS ?= 600
FUZZ_SECONDS ?= 300
JEPSEN_SECONDS ?= 600
# How many times `make losses` loses everything.
LOSSES ?= 200
# How many seeds `make sim` tries.
SIM_SEEDS ?= 100000
# How many pushes of a month `make bench-archive` replays.
PUSHES ?= 10000

.PHONY: help run demo test sim bench bench-check bench-archive bench-restore bench-cluster bench-fleet bench-scale losses soak jepsen fuzz lint deny deb build

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

build:
	packaging/setup build
	cargo build $(profile) -p larder

run: build ## one node with its defaults: registry on 127.0.0.1:5000, data in ./larder-data
	$(larder) serve

demo: build ## three nodes, real docker, one bucket; push, pull, lose every disk, restore
	packaging/setup test
	packaging/demo/run --larder $(larder)

test: ## every suite, then the package in a clean Debian root
	packaging/setup test
	cargo test $(profile) --workspace
	tests/package/run

sim: ## every simulation of the logic between nodes with 100,000 seeds; SIM_SEEDS, or one by SIM_SEED
	packaging/setup build
	SIM_SEEDS=$(SIM_SEEDS) cargo test $(profile) -p larder --lib peers:: -- --nocapture

bench: ## the figures of the design, and beside docker-registry and nginx, as tables; BENCH_ONLY, BENCH_SECONDS
	packaging/setup test
	cargo test $(profile) -p larder --test bench -- --nocapture --include-ignored --test-threads=1 --skip check::

bench-check: ## instructions of the core paths beside the numbers kept in tests/bench; BENCH_UPDATE=1 keeps the new ones
	packaging/setup test
	cargo test $(profile) -p larder --test bench check:: -- --nocapture --ignored

bench-cluster: ## the same of many nodes with a network between them; needs root; BENCH_QUICK, BENCH_MIB
	packaging/setup test
	cargo test $(profile) -p larder --test bench-cluster -- --ignored --nocapture --test-threads=1

bench-archive: ## a month of 10,000 pushes: requests, bytes and dollars for each, beside docker-registry on S3; PUSHES
	packaging/setup test
	PUSHES=$(PUSHES) cargo test $(profile) -p larder --test bench-archive -- --nocapture

bench-restore: ## a node back from a bucket with 1,000,000 blobs in 100,000 images, and with a layer of 3 GiB
	packaging/setup build
	SCALE=100 cargo test $(profile) -p larder --test bench-restore -- --nocapture --test-threads=1

bench-fleet: ## how 128, 1,000 and 10,000 nodes behave, simulated, and what a connection costs; ten minutes
	packaging/setup build
	BENCH_FLEET=1 cargo test $(profile) -p larder --lib peers::tests::fleet -- --nocapture --test-threads=1

bench-scale: ## the same of a node with 1,000,000 tags, 100,000 repositories and 1,000,000 blobs, and a plan to compact 10,000 packs of as many
	packaging/setup build
	SCALE=100 cargo test $(profile) -p larder --test scale -- --nocapture
	SCALE=100 cargo test $(profile) -p larder --lib archive::tests::large -- --nocapture

losses: ## kill every node and lose every disk at random moments, LOSSES times, and restore from the bucket
	packaging/setup build
	LOSSES=$(LOSSES) cargo test $(profile) -p larder --test losses -- --nocapture

soak: ## 64 clients doing everything at once for 10 minutes, against a model; SOAK_SECONDS
	packaging/setup build
	SOAK_SECONDS=$(SOAK_SECONDS) cargo test $(profile) -p larder --test soak -- --nocapture

jepsen: ## five nodes, clients, and a network, clocks and disks that fail at random; JEPSEN_SECONDS, LARDER_TEST_SEED
	packaging/setup test
	JEPSEN_SECONDS=$(JEPSEN_SECONDS) cargo test $(profile) -p larder --test jepsen -- --nocapture

fuzz: ## every parser of strangers' bytes, 5 minutes each, two at a time; FUZZ_SECONDS
	packaging/setup build
	FUZZ_SECONDS=$(FUZZ_SECONDS) cargo test $(profile) -p larder --lib fuzz -- --nocapture --test-threads=2
	FUZZ_SECONDS=$(FUZZ_SECONDS) cargo test $(profile) -p larder --test fuzz -- --nocapture --test-threads=2

lint: ## format, clippy and rustdoc, all without a warning
	packaging/setup build
	cargo fmt --all --check
	cargo clippy $(profile) --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc $(profile) --workspace --no-deps --document-private-items

deny: ## licences, sources and banned crates
	packaging/setup test
	$(cache)/tools/bin/cargo-deny --workspace check bans licenses sources

deb: build ## the Debian package; prints where it is
	packaging/deb
