# Everything a developer does, in one place. `make demo` and `make test` set up what they need by themselves.

CARGO ?= cargo
DEMO_ARGS ?=
BENCH_ARGS ?=
FUZZ_SECONDS ?= 60
DIFFERENTIAL_INPUTS ?= 10000000

# Where setup could not install a browser, the tests in one are skipped, and say so.
BROWSER_OR_NONE = { command -v chromedriver && { command -v chromium || command -v chromium-browser || command -v google-chrome \
	|| command -v google-chrome-stable; }; } >/dev/null 2>&1 || export BALANCE_SYNC_BROWSER=none

# What finds violations of WCAG in the tests in a browser comes from npm; without it that test is skipped, and says so.
AXE_OR_NONE = { command -v npm >/dev/null 2>&1 && (cd crates/admin/ui-check && npm ci --silent); } || export BALANCE_SYNC_AXE=none

.PHONY: help setup build man demo test matrix schemathesis screenshots chaos losses days retire drills upgrade rehearsal sim bench fuzz differential coverage lint ui-check chart dist dist-test image fmt clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install redis-server and postgresql if they are missing
	@sh tests/setup.sh

build: ## Build balance-sync and balance-sync-lab in release mode
	$(CARGO) build --release --locked --package balance-sync-cli --package balance-sync-lab

man: ## Write the man pages of both programs to target/man
	$(CARGO) build --locked --package balance-sync-cli --package balance-sync-lab
	target/debug/balance-sync man target/man
	target/debug/balance-sync-lab man target/man

demo: setup ## Show the main job on private servers (DEMO_ARGS="--tenants 20 --rate 10000")
	$(CARGO) build --release --locked --package balance-sync-cli --package balance-sync-lab
	target/release/balance-sync-lab demo $(DEMO_ARGS)

test: ## Run all tests: unit, property, real servers, whole system, alert rules
	@sh tests/setup.sh pgbouncer promtool chromium chromedriver npm
	$(CARGO) build --locked --package balance-sync-cli --package balance-sync-lab
	@# Most of them wait most of the time: for servers to start, for what they are to notice.
	@$(BROWSER_OR_NONE); $(AXE_OR_NONE); RUST_TEST_THREADS=$${RUST_TEST_THREADS:-3} $(CARGO) test --locked --workspace

matrix: ## Run the tests on several versions of Redis, Postgres and PgBouncer (MATRIX_ONLY="redis-6.2 valkey")
	@sh tests/setup.sh pgbouncer
	@CARGO="$(CARGO)" sh tests/matrix.sh

schemathesis: setup ## Send made-up requests to the admin API (SCHEMATHESIS_EXAMPLES=50; skipped where schemathesis can't be installed)
	@CARGO="$(CARGO)" sh tests/schemathesis.sh

screenshots: ## Take the pictures of the dashboard in docs/img anew, from a real fleet
	@sh tests/setup.sh chromium chromedriver
	$(CARGO) build --locked --package balance-sync-cli
	@mkdir -p docs/img
	BALANCE_SYNC_SCREENSHOTS=$(CURDIR)/docs/img $(CARGO) test --locked --package balance-sync-tests --test browser -- every_page

chaos: setup ## Faults on real servers for a while (CHAOS_SECONDS=120, CHAOS_SEED=random, CHAOS_RATE=1500)
	$(CARGO) build --locked --package balance-sync-cli
	CHAOS_SECONDS=$${CHAOS_SECONDS:-120} $(CARGO) test --locked --package balance-sync-tests --test chaos -- --nocapture

losses: setup ## Make real servers lose what they acknowledged, in a random order (CHAOS_LOSSES=6, CHAOS_SEED=random)
	$(CARGO) build --locked --package balance-sync-cli
	$(CARGO) test --locked --package balance-sync-tests --test faults any_loss -- --ignored --nocapture

days: setup ## A scaled-down day next to the ledger's own worker, parked and unparked (CHAOS_SEED=random)
	$(CARGO) build --locked --package balance-sync-cli
	$(CARGO) test --locked --package balance-sync-tests --test faults days -- --ignored --nocapture

retire: setup ## Go back to the ledger's own worker and forward again at random moments, with workers killed (CHAOS_SEED=random, RETIRE_ROUNDS=12)
	$(CARGO) build --locked --package balance-sync-cli
	$(CARGO) test --locked --package balance-sync-tests --test system retire -- --ignored --nocapture

drills: setup ## Time ten failures until the first screen and the terminal report them (DRILL=password)
	$(CARGO) build --release --locked --package balance-sync-cli
	BALANCE_SYNC_BIN=$(CURDIR)/target/release/balance-sync $(CARGO) test --locked --package balance-sync-tests --test system drills -- --ignored --nocapture --test-threads 1

upgrade: setup ## Workers of two releases in one fleet, and a rolling restart under load (UPGRADE_FROM=tag, UPGRADE_RATE=5000, UPGRADE_TENANTS=40, UPGRADE_LAG_P99=1)
	@CARGO="$(CARGO)" sh tests/upgrade/run.sh

rehearsal: setup ## Play docs/migrating-from-midaz.md next to a stand-in for the ledger (REHEARSAL_STAGE=20, REHEARSAL_RATE=3000, REHEARSAL_TENANTS=40)
	$(CARGO) build --release --locked --package balance-sync-cli
	BALANCE_SYNC_BIN=$(CURDIR)/target/release/balance-sync $(CARGO) test --locked --package balance-sync-tests --test faults rehearsal -- --include-ignored --nocapture --test-threads 1

sim: ## Simulate fleets with faults on virtual time, and find the planted bugs (SIM_MINUTES=1, SIM_SEED=random), or only the fleets of SIM_ENTRIES Redis servers
	$(CARGO) build --release --locked --package balance-sync-sim
	@SIM_MINUTES="$(SIM_MINUTES)" SIM_SEED="$(SIM_SEED)" SIM_ENTRIES="$(SIM_ENTRIES)" target/release/balance-sync-sim

bench: setup ## Measure speed and cost on private servers (BENCH_ARGS="--only drain_1 --scale 0.1")
	$(CARGO) build --release --locked --package balance-sync-cli --package balance-sync-tests --bins
	$(CARGO) bench --locked --package balance-sync-domain
	target/release/bench $(BENCH_ARGS)

fuzz: ## Feed made-up members and values to the parsers (FUZZ_SECONDS=60 for each)
	@$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-fuzz
	@# Without a sanitizer, which would need a nightly toolchain: the parsers are safe Rust, and overflows still panic.
	@# The corpus that is checked in is only read; what is found grows under target/.
	@for target in member value; do \
		mkdir -p target/fuzz/corpus/$$target && \
		$(CARGO) fuzz run --fuzz-dir crates/domain/fuzz --sanitizer none --target-dir target/fuzz $$target \
			target/fuzz/corpus/$$target crates/domain/fuzz/corpus/$$target \
			-- -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 || exit 1; \
	done

differential: ## Compare the reading of values with a naive one (DIFFERENTIAL_INPUTS=10000000, DIFFERENTIAL_SEED=1)
	DIFFERENTIAL_INPUTS=$(DIFFERENTIAL_INPUTS) \
		$(CARGO) test --release --locked --package balance-sync-domain --test it -- --nocapture differential

coverage: setup ## Line coverage of all crates but the sandbox, by cargo-llvm-cov or cargo-tarpaulin
	@sh tests/setup.sh pgbouncer
	@$(BROWSER_OR_NONE); CARGO="$(CARGO)" sh tests/coverage.sh

lint: ui-check ## Formatting, clippy, links in the documentation, dependencies, the dashboard's JavaScript
	@sh tests/setup.sh
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check bans licenses sources
	@# The product binary links no test servers, no simulator and no load.
	@tree=$$($(CARGO) tree --locked --package balance-sync-cli --edges normal --target all --prefix none) || exit 1; \
	if echo "$$tree" | grep -E '^balance-sync-(lab|sandbox|sim|tests) '; then \
		echo 'balance-sync-cli must not depend on these' >&2; exit 1; fi

ui-check: ## Check the types of the dashboard's JavaScript against the OpenAPI document (skipped where there is no npm)
	@sh tests/setup.sh npm
	@if command -v npm >/dev/null 2>&1; then cd crates/admin/ui-check && npm ci --silent && npm run --silent check; \
	else echo "npm is not installed, the dashboard's JavaScript was not checked"; fi

chart: target/chart/venv/ready ## Check and package the Helm chart (REWRITE=1 takes over how it is rendered now)
	@target/chart/venv/bin/python tests/chart/check.py

target/chart/venv/ready: tests/chart/requirements.txt
	@sh tests/setup.sh venv
	python3 -m venv target/chart/venv
	target/chart/venv/bin/pip install --quiet --disable-pip-version-check --requirement tests/chart/requirements.txt
	@touch $@

dist: chart ## Build what a release consists of into target/dist: tarball, Debian package, chart, bill of materials, checksums
	@sh tests/setup.sh
	@CARGO="$(CARGO)" sh deploy/dist/dist.sh
	@target/chart/venv/bin/python tests/chart/sbom.py target/dist/*.cdx.json

dist-test: dist ## Install the Debian package into a fresh Debian and run it there, under systemd as well (root; Debian)
	@sh tests/setup.sh debootstrap systemd-nspawn
	$(CARGO) build --release --locked --package balance-sync-lab
	@sh deploy/dist/try.sh

image: dist ## Build the container image from target/dist, without a daemon or base image (root; Debian)
	@sh tests/setup.sh buildah
	@target/chart/venv/bin/hadolint deploy/Dockerfile
	@sh deploy/dist/image.sh

fmt: ## Format the code
	$(CARGO) fmt --all

clean: ## Remove what was built
	$(CARGO) clean
