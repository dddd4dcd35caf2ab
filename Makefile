# Every target sets up what it needs in .venv; a second run starts at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test soak check docs bench clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "streamseq needs Python 3.11 or newer; name one: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once; about a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## ingest, train, stop, resume, result: the whole road in about five minutes
	$(BIN)/streamseq demo

test: $(READY)  ## the whole test suite, in a process for each core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not alone and not soak"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "alone and not soak"

soak: $(READY)  ## writers killed, disks full and broken, power cut, at every call: thousands of times
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m soak

check: $(READY)  ## lint, types, import contracts, and the documentation's links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) docs

docs: $(READY)  ## the documentation as a site, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(READY)  ## the benchmarks, side by side; writes docs/benchmarks.md
	$(BIN)/python benchmarks/run.py

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) build site *.egg-info .mypy_cache .ruff_cache .import_linter_cache
