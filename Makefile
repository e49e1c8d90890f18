# The commands of this repository. They need Python 3.11 or newer, git and make; everything else goes into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest
SHARED := --dist loadfile --no-loadscope-reorder # by several processes, a file at a time
WORKERS ?= 3# of them for the fast tests, which wait half of the time; the slow ones are two at a time
COVERAGE ?= # options that measure it, which takes half as long again

unexport PYTHONDONTWRITEBYTECODE # or each process of the tests compiles all modules anew
test test-slow: export OMP_NUM_THREADS := 1 # several processes are at work; threads of each take a third more time

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all test-slow test-image test-cluster cluster lint types docs clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(INSTALLED) ## Train, sample, evaluate and register on handwritten digits: minutes on two CPU cores.
	@$(BIN)/python -m pipeline run quickstart

test: $(INSTALLED) lint types ## Lint, types and the fast tests: what every change has to pass.
	@echo "tests"
	@$(PYTEST) -n $(WORKERS) $(SHARED) -m "not slow and not study and not image and not cluster" $(COVERAGE)

test-all: test test-slow ## The same, and the slow tests.

test-slow: $(INSTALLED) ## The slow tests: full-size models, kills, whole runs.
	@echo "slow tests"
	@$(PYTEST) -n 2 $(SHARED) -m "slow and not study and not image and not cluster" --durations=15

test-image: $(INSTALLED) ## Build the container image with podman and test it.
	@echo "the container image"
	@$(PYTEST) -m image --durations=10

test-cluster: $(INSTALLED) ## Test everything on a whole Kubernetes on this machine; as root, an hour and a half.
	@echo "a whole Kubernetes on this machine"
	@test -n "$(DVAE_CLUSTER_HOST)" || $(BIN)/python -m tests.cluster prepare
	@$(PYTEST) -m cluster --durations=25
	@test -n "$(DVAE_CLUSTER_HOST)" || $(BIN)/python -m tests.cluster.proven write

cluster: $(INSTALLED) ## Start that Kubernetes without tests, until Ctrl-C.
	@$(BIN)/python -m tests.cluster

lint: $(INSTALLED) ## Run ruff: rules and formatting.
	@echo "lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(INSTALLED) ## Run mypy.
	@echo "types"
	@$(BIN)/mypy

docs: $(VENV)/.docs ## Build the documentation, with a reference of every module, into build/docs.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## Remove the environment, builds and caches; runs and their artifacts stay.
	rm -rf $(VENV) build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; name one with 'make PYTHON=/path/to/python3.11'"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "error: $(PYTHON) cannot make a virtual environment (on Debian: apt install python3-venv)"; exit 1; }

# The stamps are written last: an installation that was cut is taken up again.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV): about 7 GB, 3 to 5 minutes the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,server,dev]'
	@touch $@

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python # the modules are parsed, not imported: no heavy packages
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@
