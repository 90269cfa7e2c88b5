# Two commands do everything: `make demo` and `make test`. Each makes the virtual environment when it is missing.
#
#   PYTHON=python3.12      another interpreter (3.11 or newer)
#   VENV=/path             another place for the environment
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu
#                          PyTorch's CPU wheel: a laptop without an NVIDIA GPU saves gigabytes
#   LLMJP_DATA=/path       a folder of real corpora and benchmarks (docs/data.md); without it the project's own text

VENV ?= .venv
PYTHON ?= python3
TORCH_INDEX ?=
DEMO_DIR ?= demo
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export DS_ACCELERATOR ?= $(shell command -v nvidia-smi >/dev/null 2>&1 || echo cpu)
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
# Tests that start ranks pin them to cores and look at the clock: one target after another, whatever -j says.
.NOTPARALLEL:
.PHONY: help setup demo test test-fast test-slow test-full test-all check bench chaos slurm-up slurm-down clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@echo "making $(VENV) (two to three minutes, once)"
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version}; set PYTHON="'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(grep '^torch==' constraints.txt)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(READY) ## make the virtual environment

demo: $(READY) ## from Japanese text to an evaluated, exported model, in minutes
	@$(BIN)/llmjp demo --force --output $(DEMO_DIR)

test: test-fast test-slow ## every test but those of test-full (up to 15 minutes)

test-fast: $(READY) ## the quick tests: no ranks, under two seconds each (up to 2 minutes on 2 cores)
	@fast='$(BIN)/python -m pytest -q -m "not full and not slow" --part'; eval "$$fast 1/2" & other=$$!; \
	eval "$$fast 2/2"; code=$$?; wait $$other && exit $$code

test-slow: $(READY)
	@$(BIN)/python -m pytest -m "slow and not full"

test-full: $(READY)
	@$(BIN)/python -m pytest -m full

test-all: test test-full ## every test, minutes more

check: $(READY) ## format, lint, types
	@$(BIN)/ruff format --check src tests benchmarks slurm
	@$(BIN)/ruff check src tests benchmarks slurm
	@$(BIN)/mypy

bench: $(READY) ## the figures of docs/benchmarks.md, measured here
	@$(BIN)/python -m benchmarks

chaos: $(READY) ## FAULTS=50 random faults (SEED=1) over one run on a throw-away Slurm (20 minutes)
	@LLMJP_CHAOS_FAULTS=$(or $(FAULTS),50) LLMJP_CHAOS_SEED=$(or $(SEED),1) \
	$(BIN)/python -m pytest -q -s -m full tests/slurm/test_chaos.py

slurm-up: ## a throw-away Slurm of 4 nodes on this machine (apt-get install slurm-wlm munge)
	@$(PYTHON) slurm/throwaway.py up --nodes $(or $(NODES),4)

slurm-down: ## end it, with everything that runs on it
	@$(PYTHON) slurm/throwaway.py down

clean: ## remove what make demo made
	@rm -rf $(DEMO_DIR)
