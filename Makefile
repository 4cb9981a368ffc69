# Each target makes what it needs; `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
NEWEST := .venv-newest
# More arguments for pip, for example --extra-index-url https://download.pytorch.org/whl/cpu,
# which on Linux gives the PyTorch without CUDA (a tenth of the size).
PIP_ARGS ?=
# Tests at a time.
JOBS ?= 2
# More arguments for pytest and for the benchmark, for example TEST="tests/pmarray -x".
TEST ?=
# Of what Hypothesis samples in `make test`; none: another one in every run.
HYPOTHESIS_SEED ?=
BENCH ?= collect
SEED ?= 1
MINUTES ?= 5
KILLS ?= 200
EXAMPLES ?= 500
CYCLES ?= 100
MEDIA ?= all
PLACES ?= dram memmap zarr

.DEFAULT_GOAL := help
.PHONY: help demo test property lint types campaigns crash barriers interrupts crash-peers crash-training powercut docs bench clean damage fuzz test-without test-lowest test-newest numpy-suite peer-suites

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# One stamp for each set of extras: reinstalled when the requirements change, and only then.
$(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[$*]'
	@touch $@

demo: $(VENV)/.swag ## Train on MNIST, collect the posterior on disk, print a table, draw a picture
	$(BIN)/swag train memmap:./runs/demo --fresh
	$(BIN)/swag evaluate memmap:./runs/demo --figure ./runs/demo.png

test: $(VENV)/.swag,test ## Run the whole suite, doctests included (HYPOTHESIS_SEED=1)
	$(BIN)/python -m tests.machine $(addprefix --hypothesis-seed=,$(HYPOTHESIS_SEED)) -n $(JOBS) --dist=worksteal $(TEST)

property: $(VENV)/.swag,test ## The properties and all that is sampled, with more examples (SEED=1 EXAMPLES=500)
	HYPOTHESIS_PROFILE=property HYPOTHESIS_EXAMPLES=$(EXAMPLES) $(BIN)/python -m tests.machine --hypothesis-seed=$(SEED) -m "hypothesis or sampled" -n $(JOBS) --dist=worksteal $(TEST)

test-without: $(VENV)/.swag,test ## What depends on the machine, without what it has (tests/machine.py)
	PMARRAY_TEST_WITHOUT=all $(BIN)/python -m tests.machine -m uses -n $(JOBS) --dist=worksteal $(TEST)

# The lower bounds stand in pyproject.toml alone; of what they do not name, pip takes the newest.
$(LOWEST)/.installed: pyproject.toml tests/lowest.py
	@$(PYTHON) tests/lowest.py >/dev/null
	$(PYTHON) -m venv --clear $(LOWEST)
	$(PYTHON) tests/lowest.py >$(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c $(LOWEST)/constraints.txt -e '.[swag,test]'
	@touch $@

test-lowest: $(LOWEST)/.installed ## The suite with the lowest versions of all (PYTHON=python3.11)
	$(LOWEST)/bin/python -m tests.machine $(addprefix --hypothesis-seed=,$(HYPOTHESIS_SEED)) -n $(JOBS) --dist=worksteal $(TEST)

# Newer versions of some packages are for newer Pythons alone, and pip takes older ones elsewhere.
NEWEST_PYTHON = $(firstword $(foreach n,14 13 12,$(shell python3.$(n) -c 'print("python3.$(n)")' 2>/dev/null)) $(PYTHON))

$(NEWEST)/bin/python:
	$(NEWEST_PYTHON) -m venv $(NEWEST)

# No stamp: what is the newest is asked for in every run.
test-newest: | $(NEWEST)/bin/python ## The tests of pmarray with the newest versions of all, on the newest Python
	grep '^torch==' constraints.txt >$(NEWEST)/constraints.txt # another build takes gigabytes
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --upgrade --upgrade-strategy eager -c $(NEWEST)/constraints.txt -e '.[swag,test]'
	$(NEWEST)/bin/python -m tests.machine $(addprefix --hypothesis-seed=,$(HYPOTHESIS_SEED)) -n $(JOBS) --dist=worksteal tests/pmarray $(TEST)

campaigns: $(VENV)/.swag,test ## Minutes of interrupts, crash, fuzz and damage, two at a time (SEED=1)
	$(BIN)/python -m tests.campaigns --seed $(SEED) --jobs $(JOBS)

lint: $(VENV)/.swag,test ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.swag,test ## Check the types, strictly
	$(BIN)/mypy

numpy-suite: $(VENV)/.swag,test ## Run NumPy's own tests with stored arrays (PLACES="dram memmap zarr")
	$(BIN)/python -m tests.numpy_suite $(PLACES)

peer-suites: $(VENV)/.swag,test ## Run suites of other projects whose source is there (tests/peer_suites)
	$(BIN)/python -m tests.peer_suites

crash: $(VENV)/.swag,test ## Power cuts and kills, seed after seed (SEED=1 MINUTES=60)
	$(BIN)/python -m tests.crash --seed $(SEED) --minutes $(MINUTES)

barriers: $(VENV)/.swag,test ## Leave out each barrier in turn; a power cut has to show it (SEED=1 MINUTES=30)
	$(BIN)/python -m tests.crash.barriers --seed $(SEED) --minutes $(MINUTES)

interrupts: $(VENV)/.swag,test ## Exceptions wherever they can arrive (SEED=1 MINUTES=60)
	$(BIN)/python -m tests.crash.interrupts --seed $(SEED) --minutes $(MINUTES)

damage: $(VENV)/.swag,test ## Damage the journals of crashed groups (SEED=1 MINUTES=10)
	$(BIN)/python -m tests.crash.damage --seed $(SEED) --minutes $(MINUTES)

crash-peers: $(VENV)/.swag,bench,test ## The same for other libraries, over FUSE (SEED=1 MINUTES=10)
	$(BIN)/python -m tests.crash.peers --seed $(SEED) --minutes $(MINUTES)

crash-training: $(VENV)/.swag,test ## Kill swag train and resume it (KILLS=200 SEED=1)
	$(BIN)/python -m tests.crash.training --kills $(KILLS) --seed $(SEED)

powercut: $(VENV)/.swag,test ## Cut a machine's power, in QEMU (CYCLES=100 SEED=1 MEDIA="disk devdax")
	$(BIN)/python -m tests.powercut cuts --cycles $(CYCLES) --seed $(SEED) --media "$(MEDIA)"
	$(BIN)/python -m tests.powercut logs --cycles $(CYCLES) --seed $(SEED) --media "$(MEDIA)"

fuzz: $(VENV)/.swag,test ## Directories of strangers, parser by parser (MINUTES=90 SEED=1)
	$(BIN)/python -m tests.fuzz --seed $(SEED) --minutes $(MINUTES)

docs: $(VENV)/.docs ## Build the site into ./site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.swag,bench ## Time collection against training alone (BENCH=... for another one)
	$(BIN)/python -m benchmarks $(BENCH)

clean: ## Remove the environments, caches and runs
	rm -rf $(VENV) $(LOWEST) $(NEWEST) runs site build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
