# The commands of this repository. They need Python 3.11 or newer, git and make; everything else goes into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all test-image test-cluster cluster lint types docs clean

help: ## Say what there is.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(INSTALLED) ## Train, sample, evaluate and register on handwritten digits: minutes on two CPU cores.
	@$(BIN)/python -m pipeline run quickstart

test: $(INSTALLED) lint types ## Lint, types and the fast tests: what every change has to pass.
	@echo "tests"
	@$(BIN)/python -m pytest -m "not slow and not image and not cluster" --cov --cov-report=term:skip-covered

test-all: $(INSTALLED) lint types ## The same with the slow tests: full-size models, kills, whole runs.
	@echo "tests, the slow ones too"
	@$(BIN)/python -m pytest -m "not image and not cluster" --cov --cov-report=term:skip-covered

test-image: $(INSTALLED) ## Build the container image with podman and test it.
	@echo "the container image"
	@$(BIN)/python -m pytest -m image --durations=10

test-cluster: $(INSTALLED) ## Test everything on a whole Kubernetes on this machine; as root, an hour and a half.
	@echo "a whole Kubernetes on this machine"
	@test -n "$(DVAE_CLUSTER_HOST)" || $(BIN)/python -m tests.cluster prepare
	@$(BIN)/python -m pytest -m cluster --durations=25

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

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python # the modules are read, not imported: it needs little
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@
