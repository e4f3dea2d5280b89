# The words people type. `make help` lists them; what they need is installed by packaging/setup.

# Outside the clone, so that RocksDB (tens of minutes) is compiled once for all clones of this user.
cache := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/larder
export CARGO_TARGET_DIR ?= $(cache)/target

# One profile everywhere: a second one would compile RocksDB a second time.
profile := --release
larder  := $(CARGO_TARGET_DIR)/release/larder

.PHONY: help run demo test bench lint deny deb build

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

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

bench: ## the figures of the design, as tables
	packaging/setup test
	cargo test $(profile) -p larder --test bench -- --nocapture

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
