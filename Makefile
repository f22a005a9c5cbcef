# Everything a developer does, in one place. `make demo` and `make test` set up what they need by themselves.

CARGO ?= cargo
DEMO_ARGS ?=

.PHONY: help setup build demo test chaos lint fmt clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install redis-server and postgresql if they are missing
	@sh tests/setup.sh

build: ## Build the binary in release mode
	$(CARGO) build --release --locked --package balance-sync-cli

demo: setup ## Show the main job on private servers (DEMO_ARGS="--tenants 20 --rate 10000")
	$(CARGO) build --release --locked --package balance-sync-cli
	target/release/balance-sync demo $(DEMO_ARGS)

test: setup ## Run all tests: unit, property, real servers, whole system
	$(CARGO) build --locked --package balance-sync-cli
	$(CARGO) test --locked --workspace

chaos: setup ## Faults on real servers for a while (CHAOS_SECONDS=120, CHAOS_SEED=random)
	$(CARGO) build --locked --package balance-sync-cli
	CHAOS_SECONDS=$${CHAOS_SECONDS:-120} $(CARGO) test --locked --package balance-sync-tests --test chaos -- --nocapture

lint: ## Formatting, clippy, and licences and sources if cargo-deny is installed
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; \
	else echo "cargo-deny is not installed, licences and sources were not checked (cargo install cargo-deny)"; fi

fmt: ## Format the code
	$(CARGO) fmt --all

clean: ## Remove what was built
	$(CARGO) clean
