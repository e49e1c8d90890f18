# The commands of this repository. They need Python 3.11 or newer, git and make; everything else goes into .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest
WORKERS ?= auto # processes that share the fast tests

.PHONY: quickstart test test-all test-image test-cluster cluster lint types clean

quickstart: $(INSTALLED)
	@$(BIN)/python -m pipeline run quickstart

test: $(INSTALLED) lint types
	@echo "tests"
	@$(PYTEST) -n $(WORKERS) --dist loadgroup -m "not slow and not study and not image and not cluster" --cov --cov-report=term:skip-covered

test-all: $(INSTALLED) lint types
	@echo "tests, the slow ones too"
	@$(PYTEST) -n $(WORKERS) --dist loadgroup -m "not slow and not study and not image and not cluster"
	@$(PYTEST) -m "slow and not study and not image and not cluster" --durations=15

test-image: $(INSTALLED)
	@echo "the container image"
	@$(PYTEST) -m image --durations=10

test-cluster: $(INSTALLED)
	@echo "a whole Kubernetes on this machine"
	@test -n "$(DVAE_CLUSTER_HOST)" || $(BIN)/python -m tests.cluster prepare
	@$(PYTEST) -m cluster --durations=25
	@test -n "$(DVAE_CLUSTER_HOST)" || $(BIN)/python -m tests.cluster.proven write

# The same cluster without tests, until Ctrl-C.
cluster: $(INSTALLED)
	@$(BIN)/python -m tests.cluster

lint: $(INSTALLED)
	@echo "lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(INSTALLED)
	@echo "types"
	@$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache

# The stamp is written last: an installation that was cut is taken up again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; name one with 'make PYTHON=/path/to/python3.11'"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "error: $(PYTHON) cannot make a virtual environment (on Debian: apt install python3-venv)"; exit 1; }
	@echo "installing into $(VENV): about 7 GB, 3 to 5 minutes the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,server,dev]'
	@touch $@
