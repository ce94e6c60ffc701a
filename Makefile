# Each target works on a fresh clone with Python 3.11 or later. ARGS passes arguments on, as in
# `make demo ARGS="--events 1000"`.

# uv creates the environment. If uv is not installed, a private copy is installed in build/uv, not in .venv: uv manages
# .venv and would remove it.
UV := $(shell command -v uv || echo build/uv/bin/uv)
ARGS ?=
# Tests wait for servers and processes more than they compute, so more tests than cores run at the same time.
JOBS ?= 4
SIDE_BY_SIDE = -n $(JOBS) --dist worksteal
PYTEST = $(UV) run --frozen pytest $(SIDE_BY_SIDE)
FAST = $(PYTEST) -m "not slow and not packaging"
# Tests start many processes, and each takes twice as long to start without compiled modules.
unexport PYTHONDONTWRITEBYTECODE
SEEDS ?= 1
MINUTES ?= 10

.DEFAULT_GOAL := help
.PHONY: help demo test coverage check docs bench faults scenarios secrets mutants soak fuzz

help:            ## list the targets
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: | $(UV)    ## start all parts, emit a load, and check that it was counted exactly
	@$(UV) run --quiet --frozen --no-dev tallystream demo $(ARGS)

test: | $(UV)    ## run the fast test suites (some minutes); JOBS=1 runs one test at a time
	@$(FAST) $(ARGS)

coverage: | $(UV)  ## run the fast test suites and measure their coverage, processes included; twice the time
	@$(FAST) --cov --cov-report=term $(ARGS)

check: | $(UV)   ## run the linters, type checks, layer checks and slow test suites (minutes)
	$(UV) run --frozen ruff check
	$(UV) run --frozen ruff format --check
	$(UV) run --frozen mypy
	$(UV) run --frozen lint-imports
	.ci/lua
	UV=$(UV) .ci/types
	.ci/prose
	$(PYTEST) -m "slow or packaging" $(ARGS)

faults: | $(UV)  ## inject faults and check the totals: SEEDS=200, ROWS=14,15, SEED=123 (repeats a run), ARGS=--verbose
	@$(UV) run --quiet --frozen python -m tests.faults --seeds $(SEEDS) $(if $(ROWS),--rows $(ROWS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

scenarios: | $(UV) ## play drawn scenarios, with clocks, commands and faults, and check every answer: SEEDS=200, SEED=123
	@$(UV) run --quiet --frozen python -m tests.scenarios --seeds $(SEEDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

docs: | $(UV)    ## build the documentation to build/docs; a broken link or reference is an error
	@$(UV) run --quiet --frozen --group docs sphinx-build -q -W --keep-going -n -b html docs build/docs

secrets: | $(UV) ## write server users, passwords and tokens for docker compose to secrets/, and link .env to them
	@$(UV) run --quiet --frozen --no-dev tallystream acl secrets && ln -s secrets/tallystream.env .env

mutants: | $(UV)   ## break the product in known ways; the fault suite must catch each
	@$(UV) run --quiet --frozen python -m tests.faults.check_mutants $(ARGS)

soak: | $(UV)    ## run a sustained load with random faults and check the memory of all processes: MINUTES=10, RATE=100000
	@$(UV) run --quiet --frozen python -m tests.faults.soak --minutes $(MINUTES) $(if $(RATE),--rate $(RATE)) $(ARGS)

fuzz: | $(UV)    ## feed broken input to every decoder, for SECONDS=60 each
	@TALLYSTREAM_FUZZ_SECONDS=$(or $(SECONDS),60) $(UV) run --frozen pytest tests/fuzz --timeout 0 -s $(ARGS)

bench: | $(UV)   ## compare ways to count events on one server; writes benchmarks/results.json
	@$(UV) run --quiet --frozen --group bench python -m benchmarks $(ARGS)

build/uv/bin/uv:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "tallystream needs Python 3.11 or later as python3, or uv (https://docs.astral.sh/uv/)" >&2; exit 1; }
	@python3 -m venv build/uv || { \
	  echo "python3 cannot create a virtual environment: install python3-venv or uv" >&2; exit 1; }
	@build/uv/bin/pip install --quiet uv
