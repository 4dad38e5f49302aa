# Two commands for a fresh machine with Python 3.11, git and make: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-

LOWEST := .venv-lowest

.PHONY: demo test test-slow test-cluster check lowest dist lint types clean

demo: $(STAMP)run  ## The whole pipeline on scikit-learn's digits, in a few minutes.
	$(BIN)/kr run recipes/digits.toml --out runs/digits

# Quick tests use a thread each, so they go to a process per core; those of a file share what it
# sets up. Slow ones start processes of their own.
test: $(STAMP)dev lint types  ## Lint, types and the tests that take minutes in all.
	$(BIN)/pytest -q -n auto --maxprocesses 8 --dist loadfile

test-slow: $(STAMP)slow  ## The tests that take longer; those of the page need Chromium.
	$(BIN)/pytest -q -m "slow and not cluster"

test-cluster: $(STAMP)slow  ## Parts on real clusters of Ray and Dask, on this machine.
	$(BIN)/pytest -q -m cluster

check: test test-slow test-cluster

# pip has no such resolution, so the lower bounds are its constraints; warnings of old versions and
# the tools of the slow tests do not matter here.
lowest: $(LOWEST)/.installed  ## The quick tests with the lowest versions that pyproject.toml allows.
	$(LOWEST)/bin/pytest -q -o filterwarnings=default

dist: $(STAMP)dev  ## Wheel and sdist, in dist/.
	$(BIN)/pip install --quiet build
	$(BIN)/python -m build

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
	$(BIN)/pip install --quiet --editable '.[dev,dp,medmnist,table,hub,dicom,loggers,release]'
	touch $@

$(STAMP)slow: $(STAMP)dev
	$(BIN)/pip install --quiet --editable '.[dev,dp,medmnist,table,hub,dicom,loggers,release,browser,ray,dask]'
	touch $@

# the tools come after the package: together pip takes a quarter of an hour to find versions
$(LOWEST)/.installed: pyproject.toml tests/lowest.py
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) tests/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/constraints.txt \
		--editable '.[dp,medmnist,table,hub,dicom,loggers,release]'
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/constraints.txt \
		--editable '.[dev,dp,medmnist,table,hub,dicom,loggers,release]'
	touch $@

clean:
	rm -rf $(VENV) $(LOWEST) benchmarks/.venv-peers runs build dist .pytest_cache .mypy_cache .ruff_cache
