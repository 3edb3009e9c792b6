# Nothing is needed beforehand but Python 3.11 or newer (with its venv module), make and a package registry.
# Every target installs what it lacks into .venv; a second run starts at once.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# What `make run` serves.
HOST ?= 127.0.0.1
PORT ?= 8080
DATABASE ?= sqlite:///data/nexus.db
TARGETS ?= examples.orders:services

# In how many processes `make test` runs all tests; auto is one more than there are cores, 4 at most.
WORKERS ?= auto

# What `make test` and `make bench` hand on, for example ARGS="tests/nexus_spec -k links".
ARGS ?=

# How long `make chaos` runs, and the seed that it repeats; a new one by default.
CHAOS_SECONDS ?= 600
CHAOS_SEED ?=

LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command "make lock" $(UPGRADE)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test check format chaos bench lock wheel clean

help: ## Show what there is to make.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.run ## Serve the example service on 127.0.0.1:8080, data in ./data (HOST, PORT, DATABASE, TARGETS).
	@mkdir -p data
	@exec $(BIN)/nexus-gateway serve $(TARGETS) --host $(HOST) --port $(PORT) \
		--database $(DATABASE) --allow-private-callbacks

test: $(VENV)/.dev ## Run every test, with the branch coverage gate (or some tests, without it: ARGS="tests/clients -x").
ifeq ($(strip $(ARGS)),)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal --cov --cov-report=term
else
	$(BIN)/python -m pytest $(ARGS)
endif

check: $(VENV)/.dev ## Check format, lint, types, the direction of imports, and YAML and TOML files.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/yamllint --strict .
	$(BIN)/taplo format --check --diff pyproject.toml

format: $(VENV)/.dev ## Put every file into the format that `make check` asks for.
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/taplo format pyproject.toml

chaos: $(VENV)/.dev ## Crash gateways under load for ten minutes, and check what they promise (CHAOS_SECONDS, CHAOS_SEED).
	CHAOS_SECONDS=$(CHAOS_SECONDS) CHAOS_SEED=$(CHAOS_SEED) $(BIN)/python -m tests.chaos.campaign $(ARGS)

bench: $(VENV)/.dev ## Run the benchmarks.
	$(BIN)/python -m benchmarks.run $(ARGS)

lock: $(VENV)/.dev ## Bring requirements*.lock up to pyproject.toml (UPGRADE=--upgrade: to the newest releases too).
	$(LOCK) pyproject.toml --extra temporal --group dev --output-file requirements-dev.lock
	$(LOCK) pyproject.toml --constraint requirements-dev.lock --output-file requirements.lock
	$(LOCK) --group build --constraint requirements-dev.lock --output-file requirements-build.lock

wheel: $(VENV)/.dev ## Build the wheel and the source distribution into ./dist.
	$(BIN)/python -m build --no-isolation

clean: ## Remove what was installed, built and cached; ./data is kept.
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis \
		.schemathesis .coverage .coverage.* htmlcov
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# --- stamps: what .venv holds ------------------------------------------------------------------

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
		echo "error: $(PYTHON) not found. Install Python 3.11 or newer (Debian: apt install python3 python3-venv)," \
			"or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: Python 3.11 or newer is needed and $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
			"Name a newer one: make PYTHON=python3.13" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "error: $(PYTHON) has no venv module (Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# The locks carry the hash of every file, so no index is trusted, and name everything: --no-deps keeps pip
# from resolving anew, where a release of tomorrow could break an installation of today. Editable: the code that is served
# and tested is the code in this folder.
$(VENV)/.run: requirements.lock requirements-build.lock pyproject.toml | $(VENV)/.made
	@echo "installing the gateway"
	@$(PIP) install --no-deps --require-hashes -r requirements.lock -r requirements-build.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	@echo "installing what the tests and checks need"
	@$(PIP) install --no-deps --require-hashes -r requirements-dev.lock
	@touch $@
