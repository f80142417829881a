# The ways to run this project. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ENGINE ?= torch

.PHONY: help setup demo test test-fast soak check format bench clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## Make the virtual environment and install everything into it

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing graftwork and its dependencies (a minute or two the first time) ..."
	@$(BIN)/python -m pip install --quiet --editable '.[server,dev]'
	@touch $@

demo: setup ## Train, serve and measure three adapters on real data (about 14 minutes on 2 cores)
	@PYTHONPATH=deploy $(BIN)/python -m demo --engine $(ENGINE)

test: setup ## The whole test suite, with the real base model
	@PYTHONPATH=deploy $(BIN)/python -m demo.data
	@$(BIN)/python -m pytest

test-fast: setup ## Only the tests that need neither torch nor a model, in seconds
	@$(BIN)/python -m pytest -m 'not torch and not model'

soak: setup ## Everything at once on the engine for SOAK_SECONDS (600)
	@SOAK_SECONDS=$${SOAK_SECONDS:-600} GOMP_SPINCOUNT=20000 $(BIN)/python -m pytest -s tests/soak

check: setup ## Lint, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup ## Rewrite the code as the linter wants it
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: setup ## Every benchmark, each writing build/bench/NAME.json
	@PYTHONPATH=deploy $(BIN)/python -m demo.data
	@PYTHONPATH=deploy $(BIN)/python tests/benchmarks/run.py

clean: ## Remove what building and testing left behind (not the caches of models and data)
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
