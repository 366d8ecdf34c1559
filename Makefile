# Two commands do all set-up on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Small tensors: one thread a process is fastest when several test processes share the cores.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.PHONY: help demo test test-slow fuzz lint types format bench clean

help:
	@echo "make demo       profile, plan, train and compare three recipes on real data (about 5 minutes)"
	@echo "make test       the test suite (lint and types included)"
	@echo "make test-slow  the long training tests"
	@echo "make fuzz       damaged files and odd configurations, newly drawn every time (about 10 minutes)"
	@echo "make bench      the benchmarks of docs/benchmarks.md"

demo: $(VENV)/.demo
	$(BIN)/tailora demo

test: $(VENV)/.dev lint types
	$(TEST_ENV) $(BIN)/python -m pytest -q -n auto -m "not slow"

test-slow: $(VENV)/.dev
	OMP_NUM_THREADS=2 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m slow

fuzz: $(VENV)/.dev
	$(TEST_ENV) TAILORA_FUZZ=20 $(BIN)/python -m pytest -q tests/test_fuzz.py --hypothesis-profile explore

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/planning.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python -W ignore benchmarks/profile.py
	$(BIN)/python -W ignore benchmarks/signals.py
	$(BIN)/python -W ignore benchmarks/mask.py
	$(BIN)/python -W ignore benchmarks/intrinsic_dimension.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis

# Debian's Python comes without ensurepip unless python3-venv is installed; virtualenv brings its own pip.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); $(PYTHON) -m pip install --user virtualenv && $(PYTHON) -m virtualenv $(VENV); }

$(VENV)/.demo: $(BIN)/python constraints.txt pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo]"
	@touch $@

$(VENV)/.dev: $(BIN)/python constraints.txt pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
