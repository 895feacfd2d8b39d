# Everything a person or a continuous integration needs, from a fresh clone with Python, git and make.
#
# The first target that needs it makes `.venv` from the lock files in requirements/ (names, versions, hashes), and
# again when a lock file changes. `make PYTHON=/path/to/python3.12 …` chooses the interpreter.

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
SUITE ?= calls streams payloads sync
FUZZ_SECONDS ?= 60
POWER_CUTS ?= 3000
FUZZ_TARGETS ?= frames plain result exception lease agent worker nested peer answer tape
PYTEST ?=
TESTS ?= tests
WORKERS ?= 4
DOCS_PORT ?= 8000
AGAIN ?=
MACHINES_DATA ?= juicefs
MACHINES_TESTS ?= tests/conformance tests/e2e/test_examples.py tests/cluster/test_sharing.py
MACHINES_PACKAGES ?= pyjokes==0.8.3 cowsay==6.1 tensorflow
AS_USER := as_user$(if $(filter-out 0,$(SOAK)),, and not once)
# The modules with such tests: each process would import all the others, too, to leave their tests out.
USER_TESTS = $(if $(filter tests,$(TESTS)),$(shell grep -rlE 'mark\.as_user' --include='test_*.py' tests | sort),$(TESTS))
export SOAK
# Bytecode is kept: otherwise each of the thousands of processes that tests start would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-17s %s\n", $$1, $$2}'

$(VENV)/.runtime: requirements/bootstrap.txt requirements/run.txt pyproject.toml .ci/install
	@.ci/install run '$(VENV)' '$(PYTHON)'
	@touch $@

$(VENV)/.installed: $(VENV)/.runtime requirements/dev.txt
	@.ci/install dev '$(VENV)' '$(PYTHON)'
	@touch $@

$(VENV)/.bench: $(VENV)/.installed requirements/bench.txt
	@echo "== installing what the benchmarks compare with"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/bench.txt
	@touch $@

$(VENV)/.fuzz: $(VENV)/.installed requirements/fuzz.txt
	@echo "== installing what fuzzes"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/fuzz.txt
	@touch $@

.PHONY: install
install: $(VENV)/.installed ## make .venv from the lock files

.PHONY: quickstart
quickstart: $(VENV)/.runtime ## run the three first examples
	@$(BIN)/python -u examples/quickstart.py

.PHONY: quickstart-server
quickstart-server: $(VENV)/.installed ## the same on a server of its own, which ends with them
	@$(BIN)/atoll server --demo examples/on_cloud.py

.PHONY: check
check: $(VENV)/.installed ## format, lint, types, layers
	@echo "== ruff format"; $(BIN)/ruff format --check
	@echo "== ruff check"; $(BIN)/ruff check
	@echo "== mypy"; $(BIN)/mypy --strict src tests benchmarks docs/site
	@echo "== lint-imports"; $(BIN)/lint-imports --no-cache

.PHONY: format
format: $(VENV)/.installed ## mend what ruff can mend
	@$(BIN)/ruff check --fix; $(BIN)/ruff format

# Tests wait about half of their time: for timeouts, disks and programs. Hence more processes than a small machine has cores.
# The last lines are those of pytest, of the last suite that ran; the first failure does not hide the second.
# The plain user runs the tests whose result depends on the user alone (marker `as_user`).
.PHONY: test
test: $(VENV)/.installed ## the test suite in WORKERS=4 processes; root repeats the user's part as a plain user (SOAK=1: long forms)
	@status=0; $(MAKE) test-here || status=1; \
	if [ "$$(id -u)" = 0 ]; then $(MAKE) test-user || status=1; fi; exit $$status

.PHONY: screens
screens: $(VENV)/.installed ## write the images in docs/screens anew, from programs on a pseudo terminal
	@SCREENS=1 $(BIN)/python -m pytest -q tests/e2e/test_screens.py

.PHONY: test-here
test-here: $(VENV)/.installed ## the test suite as the calling user (AGAIN=1: tests that failed are run once more, alone)
	@echo "== the test suite as $$(id -un 2>/dev/null || id -u)"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST) $(TESTS) || { \
	status=$$?; [ -n '$(AGAIN)' ] || exit $$status; echo "== once more, by themselves: those that failed"; \
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures=none $(PYTEST) $(TESTS); }

.PHONY: test-user
test-user: $(VENV)/.installed ## root only: tests that depend on the user, as a plain user in a copy of this directory
	@.ci/as-plain-user test-here PYTEST='-m "$(AS_USER)" $(PYTEST)' TESTS='$(USER_TESTS)' WORKERS='$(WORKERS)' AGAIN='$(AGAIN)'

# Nothing leads out of the machines' network: packages of the examples come from a directory.
.PHONY: test-machines
test-machines: $(VENV)/.installed ## root only: conformance suite and examples on several machines, namespaces with /data on JuiceFS (MACHINES_DATA=path)
	@.ci/tools $(VENV)
	@$(BIN)/pip download --quiet --dest $(abspath $(VENV))/machines-packages $(MACHINES_PACKAGES)
	@ATOLL_CONFORMANCE=cluster ATOLL_CLUSTER_DATA=$(MACHINES_DATA) \
	ATOLL_CLUSTER_PACKAGES=$(abspath $(VENV))/machines-packages $(MAKE) test-here TESTS='$(MACHINES_TESTS)' WORKERS=1

.PHONY: docs
docs: $(VENV)/.installed ## the docs as a site in build/site: searchable, read without a network, from file:// too
	@$(BIN)/python docs/site/build.py build/site

.PHONY: docs-serve
docs-serve: docs ## the same, at http://127.0.0.1:8000 (DOCS_PORT)
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site $(DOCS_PORT)

.PHONY: powerloss
powerloss: $(VENV)/.installed ## root only: what power cuts may leave of a sync (POWER_CUTS=3000 disks, about 10 minutes)
	@ATOLL_POWER_CUTS=$(POWER_CUTS) $(BIN)/python -m pytest -s tests/e2e/test_power_loss.py

.PHONY: fuzz
fuzz: $(VENV)/.fuzz ## atheris on what hostile peers can send (FUZZ_SECONDS=60 for each target)
	@set -o pipefail; for target in $(FUZZ_TARGETS); do echo "== $$target"; \
	$(BIN)/python tests/fuzz/run.py $$target -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 \
	  -artifact_prefix=tests/fuzz/.corpus/ 2>&1 | tail -n 12 || exit; done

.PHONY: tools
tools: $(VENV)/.installed ## programs that this machine lacks and some tests use, from Debian packages, in .venv/tools
	@.ci/tools $(VENV)

.PHONY: bench
bench: $(VENV)/.bench ## benchmarks beside their peers (SUITE="calls sync", BENCH="--rounds 5")
	@.ci/tools $(VENV)
	@.ci/tools $(VENV) redis-server:redis-server
	@for suite in $(SUITE); do $(BIN)/python -u benchmarks/$$suite.py $(BENCH) || exit; done

.PHONY: lock
lock: $(VENV)/.installed ## resolve requirements/*.in anew
	@.ci/lock $(BIN)/uv

.PHONY: clean
clean: ## remove what the targets above made; functions' state stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
