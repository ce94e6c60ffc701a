# One verb a line; each works on a fresh clone that has Python 3.11 or later. `make demo ARGS="--events 1000"`
# hands arguments on.

# uv makes the environment. Where it is not installed, a private copy goes to build/uv: not into .venv,
# which uv owns and would remove it from.
UV := $(shell command -v uv || echo build/uv/bin/uv)
ARGS ?=
# Tests wait for servers and processes more than they compute, so more of them than there are cores run at a time.
JOBS ?= 4
SIDE_BY_SIDE = -n $(JOBS) --dist worksteal
SEEDS ?= 1
MINUTES ?= 10

.DEFAULT_GOAL := help
.PHONY: help demo test check docs bench faults secrets mutants soak fuzz

help:            ## show this
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: | $(UV)    ## start everything, send it a load, and say whether it was counted exactly
	@$(UV) run --quiet --frozen --no-dev tallystream demo $(ARGS)

test: | $(UV)    ## the fast suites (some minutes); JOBS=1 for one after the other
	@$(UV) run --frozen pytest -m "not slow and not packaging" $(SIDE_BY_SIDE) $(ARGS)

check: | $(UV)   ## linters, types, layers, and the slow suites (minutes)
	$(UV) run --frozen ruff check
	$(UV) run --frozen ruff format --check
	$(UV) run --frozen mypy
	$(UV) run --frozen lint-imports
	.ci/lua
	$(UV) run --frozen pytest -m "slow or packaging" $(SIDE_BY_SIDE) $(ARGS)

faults: | $(UV)  ## inject faults, check the books: SEEDS=200, ROWS=14,15, SEED=123 (replays), ARGS=--verbose
	@$(UV) run --quiet --frozen python -m tests.faults --seeds $(SEEDS) $(if $(ROWS),--rows $(ROWS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

docs: | $(UV)    ## build the documentation to build/docs; a broken link or reference is an error
	@$(UV) run --quiet --frozen --group docs sphinx-build -q -W --keep-going -n -b html docs build/docs

secrets: | $(UV) ## users of the server, passwords and tokens for docker compose: secrets/, and .env beside it
	@$(UV) run --quiet --frozen --no-dev tallystream acl secrets && ln -s secrets/tallystream.env .env

mutants: | $(UV)   ## break the product in known ways; the fault suite must notice each
	@$(UV) run --quiet --frozen python -m tests.faults.check_mutants $(ARGS)

soak: | $(UV)    ## a sustained load with random faults, the memory of all processes watched: MINUTES=10, RATE=100000
	@$(UV) run --quiet --frozen python -m tests.faults.soak --minutes $(MINUTES) $(if $(RATE),--rate $(RATE)) $(ARGS)

fuzz: | $(UV)    ## broken input for whatever reads bytes of others, SECONDS=60 for each reader
	@TALLYSTREAM_FUZZ_SECONDS=$(or $(SECONDS),60) $(UV) run --frozen pytest tests/fuzz --timeout 0 -s $(ARGS)

bench: | $(UV)   ## the side-by-side figures
	@$(UV) run --quiet --frozen --group bench python -m benchmarks $(ARGS)

build/uv/bin/uv:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "tallystream needs Python 3.11 or later as python3, or uv (https://docs.astral.sh/uv/)" >&2; exit 1; }
	@python3 -m venv build/uv || { \
	  echo "python3 cannot make a virtual environment: install python3-venv, or uv" >&2; exit 1; }
	@build/uv/bin/pip install --quiet uv
