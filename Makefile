# Two commands for a fresh machine with Python 3.11, git and make: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-

.PHONY: demo test test-slow check lint types clean

demo: $(STAMP)run  ## The whole pipeline on scikit-learn's digits, in a few minutes.
	$(BIN)/kr run recipes/digits.toml --out runs/digits

test: $(STAMP)dev lint types  ## Lint, types and the tests that take minutes in all.
	$(BIN)/pytest -q

test-slow: $(STAMP)slow  ## The tests that take longer; those of the page need Chromium.
	$(BIN)/pytest -q -m slow

check: test test-slow

lint: $(STAMP)dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)dev
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP)run: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable .
	touch $@

$(STAMP)dev: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[dev,dp,medmnist,release]'
	touch $@

$(STAMP)slow: $(STAMP)dev
	$(BIN)/pip install --quiet --editable '.[dev,dp,medmnist,release,browser]'
	touch $@

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache
