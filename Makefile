# Everything a newcomer needs: Rust (cargo), Python 3.11 or newer, git, make and a C compiler.
SHELL := /bin/sh
.DEFAULT_GOAL := help

# `PYTHON=python3.12 make bench-bridge` measures on that interpreter; everything else runs on the one of .venv.
ifeq ($(origin PYTHON),environment)
MEASURED_PYTHON := $(PYTHON)
endif

BASE_PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV        := $(CURDIR)/.venv
PYTHON      := $(VENV)/bin/python

# One interpreter for everything: the wheel, the tests and the embedded Python of the cargo tests.
export PYO3_PYTHON := $(PYTHON)
export VIRTUAL_ENV := $(VENV)
export PATH        := $(VENV)/bin:$(PATH)
export NO_PROXY    := 127.0.0.1,localhost
export PIP_QUIET   := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONHOME PYTHONPATH ANTHROPIC_API_KEY ANTHROPIC_AUTH_TOKEN ANTHROPIC_BASE_URL

# Where the interpreter's shared library is: the embedded tests link it.
LIBDIR = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR") or "")')
PURELIB = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
SHARED = $(shell $(PYTHON) -c 'import sysconfig; print(int(bool(sysconfig.get_config_var("Py_ENABLE_SHARED"))))')

RUST_SOURCES   := $(shell find rust Cargo.toml -name '*.rs' -o -name Cargo.toml -o -name Cargo.lock)

.PHONY: help
help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.tools: pyproject.toml
	@test -n "$(BASE_PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or set BASE_PYTHON"; exit 1; }
	@"$(BASE_PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(BASE_PYTHON) is older than Python 3.11: set BASE_PYTHON=/path/to/python3.11"; exit 1; }
	"$(BASE_PYTHON)" -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --upgrade "pip>=25.1"
	$(PYTHON) -m pip install --quiet --group build
	@touch $@

$(VENV)/.dev: $(VENV)/.tools
	$(PYTHON) -m pip install --quiet --group dev
	@touch $@

$(VENV)/.built: $(VENV)/.tools $(RUST_SOURCES)
	$(VENV)/bin/maturin develop --release --quiet
	@touch $@

.PHONY: build
build: $(VENV)/.built ## build the release wheel into .venv

.PHONY: demo
demo: build ## run the whole way offline, with the demo model, in ./mnemosyne-demo
	@$(VENV)/bin/mnemosyne demo

.PHONY: embed
embed: build ## drive a Python agent from a Rust binary
	@test "$(SHARED)" = 1 || { echo "this Python was built without a shared library, so no program can embed it"; exit 1; }
	@PYTHONPATH=$(PURELIB) LD_LIBRARY_PATH=$(LIBDIR) \
	  cargo run --quiet --package mnemosyne --example embed

.PHONY: test
test: test-rust test-python ## all tests

.PHONY: test-rust
test-rust: build ## cargo tests: unit, property, integration, embedding
	@if [ "$(SHARED)" = 1 ]; then \
	  PYTHONPATH=$(PURELIB) LD_LIBRARY_PATH=$(LIBDIR) cargo test --workspace --quiet; \
	else \
	  echo "skipped: the tests that embed Python, because $(PYTHON) was built without a shared library"; \
	  cargo test --workspace --quiet --exclude mnemosyne --exclude mnemosyne-bridge --exclude mnemosyne-python; \
	fi

.PHONY: test-python
test-python: build $(VENV)/.dev ## pytest: unit, bridge, command line, end to end on the demo server
	$(PYTHON) -m pytest --quiet

# Names on the PATH, or paths.
PYTHONS ?= python3.11 python3.12 python3.13

.PHONY: test-pythons
test-pythons: build ## the bridge's tests, from one wheel, on every Python of PYTHONS that is installed
	rm -rf target/pythons/wheels
	$(VENV)/bin/maturin build --release --quiet --out target/pythons/wheels
	@tests/pythons.sh target/pythons/wheels/*.whl $(PYTHONS)

# Programs that the tests of kept keys talk to; without them these tests are skipped, with this reason.
KEYCHAIN := gnome-keyring-daemon dbus-run-session age

.PHONY: docs
docs: $(VENV)/.dev ## the documents as a site in target/docs, with the reference of the Python names; no link to nothing
	$(VENV)/bin/mkdocs build --quiet

.PHONY: browser
browser: ## install what looks at the window's page in the tests, as root and by apt-get: chromium and its driver
	@command -v chromium chromedriver > /dev/null || { apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
	  apt-get -qq install --yes --no-install-recommends chromium chromium-driver > /dev/null; } || \
	  echo "not installed; the tests of the page are skipped"

.PHONY: keychain
keychain: ## install what the tests of kept keys talk to, as root and by apt-get: gnome-keyring, dbus, age
	@for program in $(KEYCHAIN); do command -v $$program > /dev/null || missing="$$missing $$program"; done; \
	test -z "$$missing" || { apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
	  apt-get -qq install --yes --no-install-recommends gnome-keyring dbus-daemon age > /dev/null; } || \
	  echo "not installed:$$missing; what needs them will be skipped"

VOICES := $(CURDIR)/target/voices
AIMOCK := @copilotkit/aimock@^1.43.0
# What others wrote and what this machine can run; the agent SDK is 365 MB and is asked for by name.
HEARD  := $(VOICES)/python/.installed \
          $(if $(shell command -v npm),$(VOICES)/node/.installed) \
          $(if $(filter 1,$(MNEMOSYNE_AGENT_SDK)),$(VOICES)/agent-sdk/.installed)

$(VOICES)/python/.installed $(VOICES)/agent-sdk/.installed: $(VENV)/.tools
	$(PYTHON) -m venv --without-pip $(@D)
	$(PYTHON) -m pip --python $(@D)/bin/python install --group $(if $(findstring agent-sdk,$@),voices-agent-sdk,voices)
	@touch $@

# Where npm cannot have it, its tests are skipped with a reason.
$(VOICES)/node/.installed:
	@npm install --silent --no-audit --no-fund --prefix $(@D) "$(AIMOCK)" && touch $@ || echo "npm cannot install $(AIMOCK)"

.PHONY: voices
voices: build $(VENV)/.dev $(HEARD) ## independent checkers and clients: llmock, aimock; MNEMOSYNE_AGENT_SDK=1: claude-agent-sdk
	$(PYTHON) -m pytest --quiet tests/voices

.PHONY: lint
lint: build $(VENV)/.dev ## formatting, clippy, ruff, mypy, stubs, and which crates may see Python
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy python/mnemosyne
	cd /tmp && $(PYTHON) -m mypy.stubtest mnemosyne._core
	@for crate in core store runtime server; do \
	  if cargo tree --quiet --package mnemosyne-$$crate --edges normal,build | grep -q pyo3; then \
	    echo "mnemosyne-$$crate depends on pyo3"; exit 1; \
	  fi; \
	done; echo "core, store, runtime and server do not depend on pyo3"

.PHONY: soak-kill
soak-kill: build $(VENV)/.dev ## kill a run 200 times at chosen points of its requests and commands (about 20 minutes)
	MNEMOSYNE_PROXY_KILLS=$${MNEMOSYNE_PROXY_KILLS:-200} $(PYTHON) -m pytest --quiet tests/e2e/test_recorded_kill.py

.PHONY: bench-demo
bench-demo: build ## time and memory of --help and the demo, from the release wheel in a clean environment
	$(VENV)/bin/maturin build --release --quiet --out target/bench/wheels
	$(PYTHON) -m venv --clear target/bench/venv
	target/bench/venv/bin/python -m pip install --quiet target/bench/wheels/*.whl
	@target/bench/venv/bin/python tests/bench/demo.py $(CURDIR)/target/bench/venv/bin/mnemosyne

.PHONY: bench-history
bench-history: build $(VENV)/.dev ## bytes that a conversation of 200 turns stores, turn by turn
	@$(PYTHON) tests/python/long_conversation.py

.PHONY: bench-upcalls
bench-upcalls: build ## what one call of an agent's context costs, beside a plain await
	@$(PYTHON) tests/bench/upcalls.py target

.PHONY: soak-bridge
soak-bridge: build ## 1,000,000 items through one bridge; nothing may be left behind
	$(PYTHON) tests/bench/soak_bridge.py

.PHONY: soak-workers
soak-workers: build $(VENV)/.dev ## 2,000 restarts of worker processes, nothing left behind; 50 live items cancelled; leases waited for
	$(PYTHON) tests/bench/soak_workers.py
	MNEMOSYNE_LIVE_ITEMS=50 MNEMOSYNE_LONG=1 $(PYTHON) -m pytest --quiet tests/python/test_workers.py

.PHONY: bench-workers
bench-workers: build ## an item through a worker process beside one on the loop thread; start, restart and memory
	@$(PYTHON) tests/bench/workers.py

.PHONY: soak-supervision
soak-supervision: build $(VENV)/.dev ## 10,000 restarts of agents under load; nothing may be lost, done twice or left behind
	$(PYTHON) tests/bench/soak_supervision.py
	MNEMOSYNE_LEASES=1 $(PYTHON) -m pytest --quiet tests/e2e/test_operating.py

.PHONY: bench-supervision
bench-supervision: build ## memory and time of idle agents, and how soon one works again after a crash
	@$(PYTHON) tests/bench/supervision.py

MEASURED_PYTHON ?= $(PYTHON)
.PHONY: bench-bridge
bench-bridge: $(VENV)/.tools ## the bridge beside asyncio and bare threads, from the release wheel; PYTHON=python3.12 for another one
	@rm -rf target/bench/bridge-wheel
	$(VENV)/bin/maturin build --release --quiet --features bench --out target/bench/bridge-wheel
	$(MEASURED_PYTHON) -m venv --clear target/bench/bridge-venv
	target/bench/bridge-venv/bin/python -m pip install --quiet target/bench/bridge-wheel/*.whl
	@target/bench/bridge-venv/bin/python tests/bench/bridge.py $(ROUNDS)

.PHONY: bench-overload
bench-overload: build $(VENV)/.dev ## requests during 20 minutes of 529, minute by minute, beside the SDK's own retry
	@$(PYTHON) tests/bench/overload.py

.PHONY: bench-store
bench-store: build ## durable work beside LangGraph and DBOS on SQLite
	@$(PYTHON) tests/bench/store.py --folder target/bench

.PHONY: soak-store
soak-store: build ## the store's proofs at full length: 1,000 kills, 10,000 sequences, 1,000 power cuts
	MNEMOSYNE_STORE_KILLS=1000 MNEMOSYNE_STORE_SEQUENCES=10000 MNEMOSYNE_STORE_POWER_CUTS=1000 \
	  cargo test --release --package mnemosyne-store --test proofs -- --nocapture

.PHONY: soak-window
soak-window: build $(VENV)/.dev browser ## the window: 500 made-up requests per operation, pictures of its page in target/window
	@mkdir -p target/window
	MNEMOSYNE_EXAMPLES=500 MNEMOSYNE_PICTURES=$(CURDIR)/target/window \
	  $(PYTHON) -m pytest --quiet tests/e2e/test_window_document.py tests/e2e/test_window_page.py

.PHONY: bench-window
bench-window: build $(VENV)/.dev ## the window: the first snapshot, /health under load, what slow clients cost
	@$(PYTHON) tests/bench/window.py

.PHONY: bench-operate
bench-operate: build ## what judging a plan of 100 tasks costs, and counting a work item
	@$(PYTHON) tests/bench/validation.py
	@$(PYTHON) tests/bench/metrics.py

.PHONY: ci
ci: ## what runs on every change
	./.ci/run

.PHONY: clean
clean: ## remove everything that was built
	rm -rf target $(VENV) dist
